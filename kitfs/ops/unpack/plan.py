"""Plan an unpack: merge the layers of a kit into the tree that a mount shows, and list the names to write.

``kit.layering`` has the rules of the merge. A mount leaves out entries that would lead out of the tree; an unpack
refuses the kit instead (``UnsafePath``), before anything is written. Pure. Threading: none; each call uses one thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from kitfs.errors import UnsafePath
from kitfs.kit.layering import MAX_NAMED, BadLink, Links, PlacedLayer, in_order, merge
from kitfs.layers.index import Member
from kitfs.layers.names import Skipped


class Item(NamedTuple):
    """A name to write: its member, and the number of the layer that has it."""

    path: str
    member: Member
    source: int


class UnpackPlan(NamedTuple):
    """All names that an unpack writes.

    ``directories`` has parents before their children, and ``files`` a tuple for each layer, in the order of its
    archive. ``links`` are further names of files (hard links), and ``targets`` maps each of them to the first name of
    its file. ``left_out`` are lines for people about entries that are not written.
    """

    directories: dict[str, Item]
    files: tuple[tuple[Item, ...], ...]
    links: dict[str, Item]
    targets: dict[str, str]
    symlinks: tuple[Item, ...]
    left_out: tuple[str, ...]

    def items(self) -> Iterator[Item]:
        """Yield every file, hard link and symbolic link, layer by layer."""
        by_source: list[list[Item]] = [list(files) for files in self.files]
        for item in (*self.links.values(), *self.symlinks):
            by_source[item.source].append(item)
        for items in by_source:
            yield from items


def plan_unpack(sources: Sequence[PlacedLayer], *, reserved: Collection[str] = ()) -> UnpackPlan:
    """Plan the unpack of layers, the lowest first. ``reserved`` names at the root are left out.

    Raises UnsafePath for entries that are dangerous to write: absolute paths, paths with "..", names below symbolic
    links, symbolic links that lead out of the target, devices and fifos.
    """
    left_out: list[str] = []
    for source in sources:
        left_out += _left_out(source.name, source.index.skipped)
    merged = merge(sources, reserved=reserved)
    left_out += merged.left_out[: MAX_NAMED - len(left_out)] if len(left_out) < MAX_NAMED else ()
    won = merged.winners
    files: list[list[Item]] = [[] for _ in sources]
    directories: dict[str, Item] = {}
    links: dict[str, Item] = {}
    targets: dict[str, str] = {}
    linked = {(number, link) for number, link in ((w.number, w.member.link) for w in won.values()) if link}
    firsts: dict[tuple[int, str], str] = {}
    symlinks: list[Item] = []
    links_of = Links(lambda path: won[path].member if path in won else None, confined=False)
    for path, number in in_order(sources, won):
        member = won[path].member
        item = Item(path, member, number)
        if member.kind == "symlink":
            _check_link(links_of, path, member.target)
            symlinks.append(item)
        elif (file := (number, member.link or member.path)) in linked and (
            first := firsts.setdefault(file, path)
        ) != path:
            links[path], targets[path] = item, first
        else:
            files[number].append(item)
    for path, found in won.items():
        if found.member.kind == "dir":
            directories[path] = Item(path, found.member, found.number)
    return UnpackPlan(directories, tuple(map(tuple, files)), links, targets, tuple(symlinks), tuple(left_out))


def _check_link(links: Links, path: str, target: str) -> None:
    """Raise UnsafePath if a symbolic link, followed through the tree as far as its names exist, leads out of it."""
    try:
        links.end(path)
    except BadLink:
        raise UnsafePath(
            f"the symbolic link {path!r} leads out of the directory, to {target[:200]!r}; nothing was unpacked"
        )


def _left_out(name: str, skipped: Collection[Skipped]) -> Iterator[str]:
    """Yield a line for each entry that a layer leaves out. Raises UnsafePath if one of them is unsafe to write."""
    for entry in skipped:
        if entry.reason.unsafe:
            raise UnsafePath(f"{name} holds {entry.name[:200]!r}: {entry.text[:400]}; nothing was unpacked")
    for entry in itertools.islice(skipped, MAX_NAMED):
        yield f"{name}: {entry}"
    if len(skipped) > MAX_NAMED:
        yield f"{name}: left out {len(skipped) - MAX_NAMED} more"
