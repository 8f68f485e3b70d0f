"""A diff compares the files of two kits by the indexes of their layers and, on request, by their bytes."""

from __future__ import annotations

from kitfs.openfile import PIECE
from kitfs.ops.diff.files import ComparedFile, FileChanges, compare_files
from tests.unit.ops.diff.files import file_of


def what(before: ComparedFile, after: ComparedFile, *, content: bool = False) -> tuple[str, ...]:
    """Return the differences between two files with the same path."""
    changes = compare_files({"f": before}, {"f": after}, content=content)
    return next((change.what for change in (*changes.changed, *changes.maybe)), ())


def test_paths_of_one_kit_are_added_or_removed_in_order() -> None:
    file = file_of(b"x")
    changes = compare_files({"old/b": file, "old/a": file, "both": file}, {"both": file, "new": file})
    assert changes == FileChanges([("new", file)], [("old/a", file), ("old/b", file)], [], [])


def test_the_same_bytes_of_one_layer_are_equal_and_not_read() -> None:
    one, other = file_of(b"abc", layer="l"), file_of(b"abc", layer="l")
    assert what(one, other, content=True) == ()
    assert (one.reads, other.reads) == ([], [])


def test_files_of_one_size_in_different_layers_may_differ() -> None:
    assert what(file_of(b"abc", layer="1"), file_of(b"xyz", layer="2")) == ("maybe",)


def test_with_content_the_bytes_decide() -> None:
    one, same, other = file_of(b"abc", layer="1"), file_of(b"abc", layer="2"), file_of(b"xyz", layer="3")
    assert what(one, same, content=True) == ()
    assert what(one, other, content=True) == ("content",)


def test_bytes_are_read_up_to_the_first_difference() -> None:
    size = 3 * PIECE
    one, other = file_of(bytes(size), layer="1"), file_of(b"\1" + bytes(size - 1), layer="2")
    assert what(one, other, content=True) == ("content",)
    assert one.reads == [(0, PIECE)]


def test_layers_that_are_one_file_are_compared_by_their_digests() -> None:
    one, other = file_of(b"abc", layer="1", is_whole_layer=True), file_of(b"xyz", layer="2", is_whole_layer=True)
    assert what(one, other) == ("content",)
    assert what(one, one._replace(position=("elsewhere",))) == ()


def test_sizes_modes_and_kinds_differ_without_a_read() -> None:
    one = file_of(b"abc", layer="1")
    assert what(one, file_of(b"abcd", layer="2")) == ("size",)
    assert what(one, file_of(b"abcd", layer="2")._replace(mode=0o755)) == ("size", "mode")
    assert what(one, one._replace(mode=0o755)) == ("mode",)
    assert what(one, one._replace(kind="symlink", target="t")) == ("kind",)
    assert one.reads == []


def test_a_mode_that_differs_is_a_change_even_if_the_bytes_may_differ_too() -> None:
    changes = compare_files({"f": file_of(b"abc", layer="1")}, {"f": file_of(b"xyz", layer="2")._replace(mode=0o600)})
    assert [change.what for change in changes.changed] == [("mode", "maybe")]
    assert changes.maybe == []


def test_empty_files_are_equal_in_any_layer() -> None:
    assert what(file_of(b"", layer="1"), file_of(b"", layer="2")) == ()


def test_symbolic_links_are_compared_by_their_targets() -> None:
    link = file_of(b"", layer="1")._replace(kind="symlink", target="a")
    assert what(link, link._replace(layer="2", mode=0o755)) == ()
    assert what(link, link._replace(target="b")) == ("target",)
