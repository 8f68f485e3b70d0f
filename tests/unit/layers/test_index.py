"""Tests of layer indexes: hard links, limits for hostile archives, and damaged files."""

from __future__ import annotations

import array
import mmap
from pathlib import Path

import pytest

from kitfs.errors import LayerError
from kitfs.layers.builder import IndexBuilder, raw_index
from kitfs.layers.index import Extent, LayerIndex, Member
from kitfs.layers.index_file import pack, unpack
from kitfs.layers.names import SkipReason


def builder(max_entries: int = 1000) -> IndexBuilder:
    return IndexBuilder(max_entries=max_entries)


def add(b: IndexBuilder, name: str, at: int = 0, size: int = 1) -> None:
    b.add_file(name, size, 0o644, (Extent(0, at, size),))


def links(b: IndexBuilder) -> dict[str, str]:
    return {p: m.link for p, m in b.finish().members.items()}


def test_the_first_name_is_the_identity() -> None:
    """If a hard link names another hard link, the index records a link to the first name."""
    b = builder()
    add(b, "a")
    b.add_hard_link("b", "a")
    b.add_hard_link("c", "./b")
    assert links(b) == {"a": "", "b": "a", "c": "a"}


def test_an_identity_moves_on_when_its_name_is_taken() -> None:
    """If a later file replaces the first name of linked files, the next name becomes the first name."""
    b = builder()
    add(b, "a", 512)
    b.add_hard_link("b", "a")
    b.add_hard_link("c", "a")
    add(b, "a", 1024)
    b.add_hard_link("d", "a")
    index = b.finish()
    assert {p: (m.link, m.extents[0].blob_offset) for p, m in index.members.items()} == {
        "b": ("", 512), "c": ("b", 512), "a": ("", 1024), "d": ("a", 1024),
    }  # fmt: skip


def test_symlinks_that_were_linked_and_replaced_are_two() -> None:
    """Hard links to a symlink share an inode. A new symlink at the first name gets another inode."""
    b = builder()
    b.add_symlink("a", "x")
    b.add_hard_link("b", "a")
    b.add_symlink("a", "y")
    assert {p: (m.link, m.target) for p, m in b.finish().members.items()} == {"b": ("", "x"), "a": ("", "y")}


def test_a_link_to_what_it_is_already_changes_nothing() -> None:
    """A hard link to the same name, directly or through another link, changes nothing."""
    b = builder()
    add(b, "a")
    b.add_hard_link("a", "a")
    b.add_hard_link("b", "a")
    b.add_hard_link("a", "b")
    b.add_hard_link("b", "b")
    index = b.finish()
    assert list(index.skipped) == []
    assert {p: m.link for p, m in index.members.items()} == {"a": "", "b": "a"}


def test_a_link_that_was_left_out_has_no_identity() -> None:
    """A hard link that would replace a directory is left out."""
    b = builder()
    add(b, "a")
    add(b, "d/x")
    b.add_hard_link("d", "a")
    assert links(b) == {"a": "", "d/x": ""}


def test_short_archives_cannot_imply_endless_directories() -> None:
    """Directories without an entry of their own count against the limit for names (--max-entries)."""
    b = builder()
    for i in range(3):
        add(b, f"{i:03}/" + "a/" * 2000 + "x")
    with pytest.raises(LayerError, match="--max-entries"):
        add(b, "3/" + "a/" * 2000 + "x")
    b = builder()
    for i in range(1000):
        add(b, f"{i:03}/a/b/c/d/e/f/x")
    assert len(b.finish().members) == 1000


def test_left_out_names_are_cut() -> None:
    """If a left-out name has a megabyte, only a part of it is stored."""
    b = builder()
    b.skip("n" * (1 << 20), SkipReason.FIFO)
    b.add_hard_link("h", "/" + "t" * (1 << 20))
    assert all(len(s.name) + len(s.text) < 3000 for s in b.finish().skipped)


def test_raw() -> None:
    """The index of a raw layer contains one file.

    If the layer's path is not valid, the index contains only a left-out name.
    """
    index = raw_index("m/w.bin", 9, 0o4644)
    assert [tuple(m) for m in index.members.values()] == [("m/w.bin", "file", 0o644, 9, (Extent(0, 0, 9),), "", "")]
    assert raw_index("m/empty", 0, 0o600).members["m/empty"].extents == ()
    assert raw_index("x/" * 2000 + "f", 1, 0o644).total == 1
    assert [s.name for s in raw_index("../w.bin", 9, 0o644).skipped] == ["../w.bin"]


def sample() -> LayerIndex:
    b = builder()
    b.add_directory("d", 0o700)
    add(b, "d/f", 512, 3)
    b.add_file("d/empty", 0, 0o644, ())
    b.add_file("d/sparse", 9000, 0o600, (Extent(0, 1024, 5), Extent(4096, 1029, 7)))
    b.add_file("d/hole", 9000, 0o600, ())
    b.add_hard_link("d/h", "d/f")
    b.add_symlink("d/l", "été")
    add(b, "implied/\udcff", 4096, 1)
    b.skip("/x", SkipReason.ABSOLUTE_PATH)
    b.skip("h", SkipReason.LEAVES_ROOT, link="../x")
    b.skip("f/x", SkipReason.BELOW_FILE, "f")
    return b.finish()


def test_the_file_of_an_index_is_the_index() -> None:
    """The file contains members, their order, left-out names, and bytes that are not UTF-8."""
    again = LayerIndex(bytes(sample().data))
    assert list(again.members.items()) == list(sample().members.items())
    assert list(again.skipped) == list(sample().skipped)
    assert again.get("implied") == sample().get("implied") == Member("implied", "dir", 0o755)
    assert again == sample()
    assert (again.total, again.counts.end) == (3 + 9000 + 9000 + 3 + 5 + 1, 4097)


def test_an_index_is_mapped_from_a_file(tmp_path: Path) -> None:
    """The index works on a memory mapping of its file."""
    (tmp_path / "index").write_bytes(sample().data)
    with open(tmp_path / "index", "rb") as f:
        index = LayerIndex(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
    assert index == sample()
    assert index.members["d/sparse"].extents == (Extent(0, 1024, 5), Extent(4096, 1029, 7))
    assert [s.name for s in index.skipped] == ["/x", "h", "f/x"]


def test_rows_are_a_tree() -> None:
    """The entries of a directory are adjacent rows, sorted by bytes. Every row except the root has a parent."""
    index = sample()
    root = [index.name(row) for row in index.children(0)]
    assert root == ["d", "implied"]
    d = index.find("d")
    assert [index.name(row) for row in index.children(d)] == ["empty", "f", "h", "hole", "l", "sparse"]
    assert [index.path(row) for row in index.children(index.find("implied"))] == ["implied/\udcff"]
    assert (index.explicit(d), index.explicit(index.find("implied")), index.explicit(0)) == (True, False, False)
    assert (index.find("d/f/x"), index.find("nothing"), index.child(d, b"g"), index.find("")) == (-1, -1, -1, 0)
    assert {index.first(index.find(name)) for name in ("d/f", "d/h")} == {index.find("d/f")}
    assert [index.nlink(index.find(name)) for name in ("d/f", "d/h", "d/hole")] == [2, 2, 1]
    assert [index.offset(index.find(name)) for name in ("d/f", "d/h", "d/sparse", "d/hole", "d/empty", "d")] == [
        512, 512, 1024, -1, -1, -1,
    ]  # fmt: skip


def test_an_entry_costs_little() -> None:
    """An entry needs thirty bytes plus its name, both in one large directory and in many small ones."""
    for pattern in ("d/{:06}", "d/{0:03}/{0:06}"):
        b = builder(10_000)
        for i in range(10_000):
            add(b, pattern.format(i), i * 512)
        assert len(b.finish().data) < 10_000 * 45 + 400_000 * (pattern.count("/") - 1)


def test_an_archive_has_one_index() -> None:
    """If an archive is indexed twice, the two indexes have the same bytes."""
    assert sample().data == sample().data
    b = builder()
    add(b, "d/f")
    assert b.finish() != sample()


@pytest.mark.parametrize("at", range(0, 700, 13))
def test_a_damaged_file_is_refused(at: int) -> None:
    """A change of any byte is detected, for example by a torn write."""
    damaged = bytearray(sample().data)
    damaged[at] ^= 0x10
    with pytest.raises(ValueError, match="index"):
        LayerIndex(bytes(damaged))


@pytest.mark.parametrize("size", [0, 1, 31, 32, 100, 400, -1, -8])
def test_a_file_that_is_cut_off_is_refused(size: int) -> None:
    """A file is refused if its length is not the length in its header."""
    with pytest.raises(ValueError, match="index"):
        LayerIndex(sample().data[:size])
    with pytest.raises(ValueError, match="index"):
        LayerIndex(bytes(sample().data) + bytes(8))


FORGED: list[tuple[str, str, list[int]]] = [
    ("parent", "I", [0, 1, 0, 0, 0, 0, 0, 0, 0]),  # a directory that contains itself
    ("parent", "I", [0, 0, 0, 5, 1, 1, 1, 1, 1]),
    ("parent", "I", [0, 0]),
    ("name_at", "I", [0, 0, 9, 3, 4, 5, 6, 7, 8, 9]),
    ("name_at", "I", [0, 0, 1, 2, 3, 4, 5, 6, 7, 1 << 30]),
    ("order", "I", [99] * 8),
    ("order", "I", [1]),
    ("linked", "I", [1, 2, 3]),
    ("first", "I", [50, 50]),
    ("flags", "H", [0]),
]


@pytest.mark.parametrize(("name", "code", "column"), FORGED)
def test_columns_that_do_not_fit_each_other_are_refused(name: str, code: str, column: list[int]) -> None:
    """Such an index file is refused even if its checksum is correct.

    A walk over the rows therefore always ends, and never leaves the rows.
    """
    data = sample().data
    sections = {key: bytes(memoryview(data)[where]) for key, where in unpack(data).items()}
    assert LayerIndex(pack(sections)) == sample()
    with pytest.raises(ValueError, match="do not match"):
        LayerIndex(pack({**sections, name: array.array(code, column).tobytes()}))


def test_sections_that_are_not_known_are_left_alone() -> None:
    """Unknown sections are ignored, because later versions may write them.

    If a known section is missing, an error is raised.
    """
    data = sample().data
    sections = {key: bytes(memoryview(data)[where]) for key, where in unpack(data).items()}
    assert LayerIndex(pack({**sections, "chunks": b"123"})).members.keys() == sample().members.keys()
    del sections["targets"]
    with pytest.raises(ValueError, match="missing or incomplete"):
        LayerIndex(pack(sections))


def test_targets_of_symbolic_links_are_bounded() -> None:
    """A million link targets of 4 KiB compress well, but exceed the memory limit for names."""
    b = builder(5000)
    for i in range(4100):
        b.add_symlink(f"l{i}", "t" * 4000)
    with pytest.raises(LayerError, match="--max-entries"):
        [b.add_symlink(f"m{i}", "t" * 4000) for i in range(200)]
