"""Plan an unpack: merge the layers of a kit into the tree that a mount shows, and list the names to write.

``kit.layering`` has the rules of the merge. A mount omits entries that lead out of the tree; an unpack refuses the kit
instead (``UnsafePath``), before anything is written. These functions do no I/O. Threading: each call uses one thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from kitfs.errors import UnsafePath
from kitfs.kit.layering import MAX_NAMED, BadLink, Links, PlacedLayer, Winner, in_order, merge
from kitfs.layers.index import Extent, LayerIndex
from kitfs.layers.names import Skipped


class Item(NamedTuple):
    """A name to write: its row in the index of its layer, and the number of the layer.

    A plan may have millions of items, so an item reads its attributes out of the index each time.
    """

    path: str
    layer_index: LayerIndex
    row: int
    source: int

    @property
    def kind(self) -> str:
        """Return "file", "dir" or "symlink"."""
        return self.layer_index.kind(self.row)

    @property
    def mode(self) -> int:
        """Return the permission bits."""
        return self.layer_index.mode(self.row)

    @property
    def size(self) -> int:
        """Return the bytes of a file."""
        return self.layer_index.size(self.row)

    @property
    def extents(self) -> tuple[Extent, ...]:
        """Return where the bytes of a file are in its layer."""
        return self.layer_index.extents(self.row)

    @property
    def offset(self) -> int:
        """Return where the first bytes of a file are in its layer, or -1 if it has no bytes."""
        return self.layer_index.offset(self.row)

    @property
    def target(self) -> str:
        """Return the target of a symbolic link."""
        return self.layer_index.target(self.row)


class UnpackPlan(NamedTuple):
    """All names that an unpack writes.

    ``directories``: parents come before their children. ``files``: a tuple for each layer, in the order of its archive.
    ``links``: further names of files (hard links). ``targets``: maps each hard link to the first name of its file.
    ``left_out``: warnings about entries that are not written.
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
    linked = {(w.number, first) for w, first in ((w, _first(sources, w)) for w in won.values()) if first != w.row}
    firsts: dict[tuple[int, int], str] = {}
    symlinks: list[Item] = []
    links_of = Links(lambda path: won[path].member if path in won else None, confined=False)
    for path, number in in_order(sources, won):
        found = won[path]
        item = Item(path, sources[number].index, found.row, number)
        file = (number, _first(sources, found))
        if found.kind == "symlink":
            _check_link(links_of, path, item.target)
            symlinks.append(item)
        elif file in linked and (first_path := firsts.setdefault(file, path)) != path:
            links[path], targets[path] = item, first_path
        else:
            files[number].append(item)
    for path, found in won.items():
        if found.kind == "dir":
            index = sources[found.number].index
            row = found.row if found.row < index.counts.rows else 0  # a directory above the layer has the root's mode
            directories[path] = Item(path, index, row, found.number)
    return UnpackPlan(directories, tuple(map(tuple, files)), links, targets, tuple(symlinks), tuple(left_out))


def _first(sources: Sequence[PlacedLayer], found: Winner) -> int:
    """Return the row of the first name of a file. A row that is not in the index is returned unchanged."""
    index = sources[found.number].index
    return index.first(found.row) if found.row < index.counts.rows else found.row


def _check_link(links: Links, path: str, target: str) -> None:
    """Raise UnsafePath if a symbolic link leads out of the tree. The link is followed as far as its names exist."""
    try:
        links.end(path)
    except BadLink:
        raise UnsafePath(
            f"the symbolic link {path!r} leads out of the directory, to {target[:200]!r}; nothing was unpacked"
        )


def _left_out(name: str, skipped: Collection[Skipped]) -> Iterator[str]:
    """Yield a warning for each entry that a layer omits. Raises UnsafePath if an omitted entry is unsafe to write."""
    for entry in skipped:
        if entry.reason.unsafe:
            raise UnsafePath(f"{name} holds {entry.name[:200]!r}: {entry.text[:400]}; nothing was unpacked")
    for entry in itertools.islice(skipped, MAX_NAMED):
        yield f"{name}: {entry}"
    if len(skipped) > MAX_NAMED:
        yield f"{name}: left out {len(skipped) - MAX_NAMED} more entries"
