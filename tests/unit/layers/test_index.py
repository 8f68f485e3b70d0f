"""What an index promises: identities of hard links, bounds on what archives imply, and the JSON form that a damaged
cache cannot fake.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from kitfs.errors import LayerError
from kitfs.layers.index import Extent, IndexBuilder, LayerIndex, raw_index
from kitfs.layers.names import SkipReason


def builder(max_entries: int = 1000) -> IndexBuilder:
    return IndexBuilder(max_entries=max_entries)


def add(b: IndexBuilder, name: str, at: int = 0, size: int = 1) -> None:
    b.add_file(name, size, 0o644, (Extent(0, at, size),))


def links(b: IndexBuilder) -> dict[str, str]:
    return {p: m.link for p, m in b.finish().members.items()}


def test_the_first_name_is_the_identity() -> None:
    """Links of links are links of the first name."""
    b = builder()
    add(b, "a")
    b.add_hard_link("b", "a")
    b.add_hard_link("c", "./b")
    assert links(b) == {"a": "", "b": "a", "c": "a"}


def test_an_identity_moves_on_when_its_name_is_taken() -> None:
    """A later file takes the first name: the links that are left are one file by the next name, and the new file is
    another.
    """
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
    """Links to a symlink are one inode; a new symlink in the first name's place is another."""
    b = builder()
    b.add_symlink("a", "x")
    b.add_hard_link("b", "a")
    b.add_symlink("a", "y")
    assert {p: (m.link, m.target) for p, m in b.finish().members.items()} == {"b": ("", "x"), "a": ("", "y")}


def test_a_link_to_what_it_is_already_changes_nothing() -> None:
    """Naming a file twice, directly or through a link, is neither left out nor a link of a file to itself."""
    b = builder()
    add(b, "a")
    b.add_hard_link("a", "a")
    b.add_hard_link("b", "a")
    b.add_hard_link("a", "b")
    b.add_hard_link("b", "b")
    index = b.finish()
    assert index.skipped == ()
    assert {p: m.link for p, m in index.members.items()} == {"a": "", "b": "a"}


def test_a_link_that_was_left_out_has_no_identity() -> None:
    """A hard link where a directory is changes nothing."""
    b = builder()
    add(b, "a")
    add(b, "d/x")
    b.add_hard_link("d", "a")
    assert links(b) == {"a": "", "d/x": ""}


def test_short_archives_cannot_imply_endless_directories() -> None:
    """Every directory without an entry costs; what fits an entry's share of names does not."""
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
    """A megabyte of a name that is left out is not kept."""
    b = builder()
    b.skip("n" * (1 << 20), SkipReason.FIFO)
    b.add_hard_link("h", "/" + "t" * (1 << 20))
    assert all(len(s.name) + len(s.text) < 3000 for s in b.finish().skipped)


def test_raw() -> None:
    """A raw layer is one file; without a usable path nothing but what was left out."""
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


def test_json_gives_back_the_index() -> None:
    """Members, order, what was left out, bytes that are no UTF-8."""
    again = LayerIndex.from_json(json.loads(json.dumps(sample().to_json())))
    assert list(again.members.items()) == list(sample().members.items())
    assert again.skipped == sample().skipped
    assert again.get("implied") == sample().get("implied")


DAMAGE: list[tuple[str, Any]] = [
    ("version", 1),
    ("version", None),
    ("paths", None),
    ("paths", "ddddddd"),
    ("paths.1", "../f"),
    ("paths.1", "/f"),
    ("paths.1", "d//f"),
    ("paths.1", ""),
    ("paths.1", 7),
    ("paths.1", "d"),
    ("paths.1", "d/empty/f"),
    ("paths.1", "n" * 256),
    ("paths.1", "\ud800"),
    ("paths.1", "d/l/f"),
    ("kinds", "dfffff"),
    ("kinds", "dffffxss"),
    ("kinds", "ffffffsf"),
    ("kinds", 7),
    ("modes.0", 0o1755),
    ("modes.0", -1),
    ("modes.0", 1.5),
    ("modes.0", True),
    ("sizes.1", 1 << 63),
    ("sizes.1", 3.0),
    ("sizes.3", 4100),
    ("sizes.0", 1),
    ("sizes.6", 2),
    ("offsets.1", 1 << 63),
    ("offsets.1", (1 << 63) - 1),
    ("offsets.1", 1e300),
    ("offsets.0", 512),
    ("offsets.1", None),
    ("offsets", []),
    ("extents", []),
    ("extents.3", [[0, 0, 5], [4, 5, 7]]),
    ("extents.3", [[0, 0]]),
    ("extents.3", [[0, 0, float("inf")]]),
    ("extents.3", "ab"),
    ("extents.03", [[0, 0, 1]]),
    ("extents.99", [[0, 0, 1]]),
    ("extents.x", []),
    ("targets.6", ""),
    ("targets.6", "a\0bcd"),
    ("targets.6", 5),
    ("targets.1", "x"),
    ("targets.99", "x"),
    ("links.5", "d/none"),
    ("links.5", "d/empty"),
    ("links.5", "d/h"),
    ("links.5", "d"),
    ("links.5", ["d/f"]),
    ("links.5", None),
    ("links.0", "d/f"),
    ("skipped", None),
    ("skipped.0", ["a"]),
    ("skipped.0", ["a", 1]),
    ("skipped.0", "ab"),
]


@pytest.mark.parametrize(("where", "value"), DAMAGE, ids=[f"{w}-{str(v)[:20]!a}" for w, v in DAMAGE])
def test_damaged_json(where: str, value: Any) -> None:
    """Whatever no index gives is a ValueError, never an index."""
    damaged = copy.deepcopy(sample().to_json())
    column, _, row = where.partition(".")
    if not row:
        damaged[column] = value
    elif isinstance(damaged[column], dict):
        damaged[column][row] = value
    else:
        damaged[column][int(row)] = value
    with pytest.raises(ValueError):
        LayerIndex.from_json(damaged)


@pytest.mark.parametrize("value", [None, [], {}, 7, "text", {"version": 2}])
def test_json_of_something_else(value: Any) -> None:
    """Another value is a ValueError."""
    with pytest.raises(ValueError):
        LayerIndex.from_json(value)
