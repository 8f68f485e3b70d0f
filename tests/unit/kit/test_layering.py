"""Tests of merging layers and following symbolic links. The tests need no files on disk."""

from __future__ import annotations

from typing import Any, cast

import pytest

from kitfs.errors import UnsafePath
from kitfs.kit.layering import BadLink, End, Links, PlacedLayer, merge
from kitfs.layers.builder import IndexBuilder
from kitfs.layers.index import LayerIndex, Member
from kitfs.system import MAX_LINKS


def index(*entries: str) -> LayerIndex:
    """Return an index of files (``path``), directories (``path/``) and symbolic links (``path->target``)."""
    builder = IndexBuilder(max_entries=100)
    for entry in entries:
        path, arrow, target = entry.partition("->")
        if arrow:
            builder.add_symlink(path, target)
        elif entry.endswith("/"):
            builder.add_directory(entry, 0o755)
        else:
            builder.add_file(entry, 0, 0o644, ())
    return builder.finish()


def links(*entries: str, confined: bool = False) -> Links:
    return Links(index(*entries).get, confined=confined)


def test_directories_come_before_what_is_in_them() -> None:
    merged = merge([PlacedLayer("a", index("d/e/f", "d/g"), "d"), PlacedLayer("b", index("h"), "h", below="d/e")])
    assert list(merged.winners) == ["d", "d/e", "d/e/f", "d/e/h", "d/g"]


def test_entries_that_give_way_are_named() -> None:
    """A file does not replace a directory that is not empty. Entries below a file are left out. Both are reported."""
    merged = merge([PlacedLayer("a", index("d/x"), ""), PlacedLayer("b", index("d", "d2"), ""),
                    PlacedLayer("c", index("d2/y"), "")])  # fmt: skip
    assert merged.left_out == (
        "b: left out 'd': a file where an earlier layer has something else",
        "c: left out 'd2': a dir where an earlier layer has something else",
        "c: left out 'd2/y': below 'd2', which is a file",
    )


def test_names_below_a_symbolic_link_of_another_layer_are_refused() -> None:
    """If such a name were unpacked, the file would be written to the target of the link."""
    with pytest.raises(UnsafePath, match="a has a symbolic link at 's'"):
        merge([PlacedLayer("a", index("s->t"), ""), PlacedLayer("b", index("s/x"), "")])


def test_a_place_outside_the_target_is_refused() -> None:
    """``below`` is a path from a Kitfile. It may lead out of the target."""
    with pytest.raises(UnsafePath, match="leaves the root"):
        merge([PlacedLayer("a", index("x"), "", below="../up")])


def test_names_that_are_reserved_at_the_root_are_left_to_the_caller() -> None:
    """A reserved name is left out at the root, but not in directories."""
    assert list(merge([PlacedLayer("a", index("K", "d/K"), "")], reserved=("K",)).winners) == ["d", "d/K"]


class CountedIndex:
    """An index that counts lookups of names."""

    def __init__(self, index: LayerIndex) -> None:
        self._index = index
        self.lookups = 0

    def child(self, row: int, name: bytes) -> int:
        self.lookups += 1
        return self._index.child(row, name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._index, name)


def test_a_merge_does_not_look_up_each_directory_from_the_root() -> None:
    """A hostile archive of 10 KiB can contain 1,900 nested directories."""
    deep = CountedIndex(index("a/" * 90 + "x", "a/b/c", "z/y"))
    merged = merge([PlacedLayer("a", cast("LayerIndex", deep), ""), PlacedLayer("b", index("a/b/d"), "")])
    assert list(merged.winners)[-4:] == ["a/b/c", "a/b/d", "z", "z/y"]
    assert deep.lookups < 3 * 100


def test_links_are_followed_to_their_end() -> None:
    """A path may contain directories and several links. Its last name need not exist."""
    tree = links("d/f", "l->d", "m->l/f", "up->d/../l", "gone->d/nothing/x")
    assert tree.end("m") == End("d/f", missing=False, followed=2)
    assert tree.end("up/f") == End("d/f", missing=False, followed=2)
    assert tree.end("gone") == End("d/nothing/x", missing=True, followed=1)


@pytest.mark.parametrize("target", ["/etc", "..", "d/../../x", "nothing/../x", "out2"])
def test_a_link_that_leads_out_is_bad(target: str) -> None:
    """A link is refused if it leads out directly, through another link, or through a missing name."""
    with pytest.raises(BadLink) as e:
        links("d/f", "out2->../x", f"l->{target}").end("l")
    assert not e.value.circular


def test_a_confined_walk_stays_at_the_root() -> None:
    """As after chroot(2), ".." at the root stays at the root. A link with an absolute target is refused."""
    assert links("d/f", "l->../../d/f", confined=True).end("l").path == "d/f"
    with pytest.raises(BadLink):
        links("l->/d", confined=True).end("l")


def test_circles_and_long_chains_are_bad() -> None:
    """Linux follows at most MAX_LINKS links in a path."""
    with pytest.raises(BadLink) as e:
        links("a->b", "b->a").end("a")
    assert e.value.circular
    chain = [f"l{n}->l{n + 1}" for n in range(MAX_LINKS + 1)]
    assert links(*chain).end("l1").followed == MAX_LINKS
    with pytest.raises(BadLink):
        links(*chain).end("l0")


def test_each_link_is_followed_once() -> None:
    """Each link contains the next link twice, so a walk that follows every occurrence would need 2**30 steps."""
    looked = 0
    names = index("l30/", *(f"l{n}->l{n + 1}/../l{n + 1}" for n in range(30)))

    def look(path: str) -> Member | None:
        nonlocal looked
        looked += 1
        return names.get(path)

    with pytest.raises(BadLink):
        Links(look, confined=False).end("l0")
    assert looked < 1000
