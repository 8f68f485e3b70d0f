"""What an unpack writes: the layers of a kit laid over each other, to the tree that a mount shows. Pure.

The rules are README's *Semantics*: layers lie over each other as ``kit.layering`` has it, and a layer that has a name
within its declared path comes before one that has it outside. What a mount leaves out because it would lead out of
the tree is refused here: ``UnsafePath``, before anything is written. Threading: none; one call, one thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from kitfs.errors import UnsafePath
from kitfs.kit.layering import MAX_NAMED, BadLink, Links, PlacedLayer, in_order, merge
from kitfs.layers.index import Member
from kitfs.layers.names import Skipped


class Item(NamedTuple):
    """A name that is written: ``member`` of the layer ``source`` (its number)."""

    path: str
    member: Member
    source: int


class UnpackPlan(NamedTuple):
    """``directories`` parents first; ``files`` by layer, each in the order of its archive; ``links`` are further
    names of files, of which ``targets`` has the first; ``left_out`` are lines for people."""

    directories: dict[str, Item]
    files: tuple[tuple[Item, ...], ...]
    links: dict[str, Item]
    targets: dict[str, str]
    symlinks: tuple[Item, ...]
    left_out: tuple[str, ...]

    def items(self) -> Iterator[Item]:
        """Every file, link and symbolic link, layer by layer."""
        by_source: list[list[Item]] = [list(files) for files in self.files]
        for item in (*self.links.values(), *self.symlinks):
            by_source[item.source].append(item)
        for items in by_source:
            yield from items


def outline(sources: Sequence[PlacedLayer], *, reserved: Collection[str] = ()) -> UnpackPlan:
    """The tree of ``sources``, in the order in which they lie over each other. ``reserved`` names at the root are
    left to the caller.

    Raises UnsafePath for what would lead out of the target: absolute paths, "..", names below symbolic links,
    symbolic links that lead out, devices and fifos.
    """
    left_out: list[str] = []
    for source in sources:
        left_out += _refused(source.name, source.index.skipped)
    merged = merge(sources, reserved=reserved)
    left_out += merged.left_out[: MAX_NAMED - len(left_out)] if len(left_out) < MAX_NAMED else ()
    won = merged.winners
    files: list[list[Item]] = [[] for _ in sources]
    directories: dict[str, Item] = {}
    links: dict[str, Item] = {}
    targets: dict[str, str] = {}
    linked = {(w.number, w.member.link) for w in won.values() if w.member.link}
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
    """Raise UnsafePath unless a symbolic link, followed in the tree as far as names exist, stays in it."""
    try:
        links.end(path)
    except BadLink:
        raise UnsafePath(
            f"the symbolic link {path!r} leads to {target[:200]!r}, out of the directory; nothing was unpacked"
        )


def _refused(name: str, skipped: Sequence[Skipped]) -> Iterator[str]:
    """Lines for entries that are left out. Raises UnsafePath for entries that look like an attack."""
    for entry in skipped:
        if entry.reason.unsafe:
            raise UnsafePath(f"{name} holds {entry.name[:200]!r}: {entry.text[:400]}; nothing was unpacked")
    for entry in skipped[:MAX_NAMED]:
        yield f"{name}: {entry}"
    if len(skipped) > MAX_NAMED:
        yield f"{name}: left out {len(skipped) - MAX_NAMED} more"
