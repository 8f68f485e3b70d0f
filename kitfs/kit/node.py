"""Define the nodes of a kit's tree, and the interface through which the tree uses a layer.

Threading: nodes and listings do not change, so threads may share them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

from kitfs.kit.inode import Inode
from kitfs.layers.index import LayerIndex, Member


class TreeLayer(Protocol):
    """The methods that the tree calls on a layer.

    ``path`` is the path that the Kitfile declares for the layer. A layer with the path "" may contain any name; None
    means that no path is declared. With ``wait=False``, a method raises WouldBlock instead of using the network.
    """

    @property
    def compressed(self) -> bool: ...

    @property
    def size(self) -> int: ...

    @property
    def media_type(self) -> str: ...

    @property
    def path(self) -> str | None: ...

    @property
    def digest(self) -> str: ...

    def index(self, *, wait: bool = True) -> LayerIndex: ...

    def first_entry_agrees(self, *, wait: bool = True) -> bool: ...

    def pread(self, member: Member, offset: int, size: int, *, wait: bool = True) -> bytes: ...

    def state(self) -> str: ...

    def is_verified(self) -> bool: ...

    def check(self, *, wait: bool = True) -> None: ...

    @property
    def whole_file(self) -> bool: ...

    def open_whole(self) -> io.FileIO | None: ...


class SyntheticFile(NamedTuple):
    """A file at the root that is in no layer. Its extended attributes show ``digest`` and ``media_type``."""

    data: bytes
    digest: str
    media_type: str


class Node:
    """A file, directory or symbolic link of the tree, with its path.

    ``kind`` is "file", "dir" or "symlink". ``mode`` has the permission bits only, ``size`` is in bytes, and ``path`` is
    relative to the root. ``layer`` is None for the root and for synthetic files.
    """

    __slots__ = ("_index", "_member", "_row", "inode", "kind", "layer", "mode", "nlink", "path", "size", "synthetic")

    def __init__(
        self,
        inode: Inode,
        path: str,
        kind: str,
        mode: int,
        size: int,
        nlink: int,
        *,
        layer: TreeLayer | None = None,
        index: LayerIndex | None = None,
        row: int = 0,
        synthetic: SyntheticFile | None = None,
    ) -> None:
        self.inode = inode
        self.path = path
        self.kind = kind
        self.mode = mode
        self.size = size
        self.nlink = nlink
        self.layer = layer
        self.synthetic = synthetic
        self._index = index
        self._row = row
        self._member: Member | None = None

    def __repr__(self) -> str:
        return f"<Node {self.inode} {self.kind} {self.path!r} {self.mode:04o} {self.size}>"

    @property
    def name(self) -> str:
        """Return the last component of the path."""
        return self.path.rpartition("/")[2]

    @property
    def member(self) -> Member:
        """Return the node's member in its layer."""
        if self._member is None:
            plain = Member(self.path, self.kind, self.mode, self.size)
            self._member = plain if self._index is None else self._index.member(self._row)
        return self._member

    @property
    def target(self) -> str:
        """Return the target of a symbolic link; "" for other kinds."""
        return "" if self._index is None else self._index.target(self._row)


class Listing(Collection[tuple[str, Node]]):
    """The entries of a directory as pairs (name, node), sorted by the bytes of the name.

    ``refs`` has a number for each entry. It is an array, or a range if a single layer has the whole directory. ``node``
    returns the node for a number, and is called when the entry is read. Any number of readers may share a listing.
    """

    def __init__(self, refs: Sequence[int], node: Callable[[int], Node]) -> None:
        self._refs = refs
        self._node = node

    def __len__(self) -> int:
        return len(self._refs)

    def __iter__(self) -> Iterator[tuple[str, Node]]:
        return self.beginning_at(0)

    def __contains__(self, entry: object) -> bool:
        return any(found[0] == entry for found in self)

    def beginning_at(self, place: int) -> Iterator[tuple[str, Node]]:
        """Yield the entries from position ``place`` on."""
        for at in range(place, len(self._refs)):
            found = self._node(self._refs[at])
            yield found.name, found
