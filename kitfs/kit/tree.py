"""The tree of a kit: layers laid over each other, name by name, as somebody asks.

A lookup waits for the layers whose declared path relates to the name, a listing for those that relate to the
directory; the others are not touched. What is merged once never changes. The rules are README's *Semantics*: layers
lie over each other as ``kit.layering`` has it, a layer that declares a name comes before one that has it all the
same, and a synthetic file always wins. It knows no FUSE: ``filesystem`` speaks for it to kernels, ``ls`` and ``cat``
read it directly.

Threading: many threads at once. Dictionaries only grow, by single atomic steps; no lock is held while a layer is
waited for.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

from kitfs.errors import KitfsError, NotFound, RegistryError, WouldBlock
from kitfs.kit.inode import ROOT, Inode, NoEntry
from kitfs.kit.kit import Kit
from kitfs.kit.layering import BadLink, Links, Numbered, Winner, joined, left_out_entry, winner, winners
from kitfs.layers.index import SIZE_MAX, LayerIndex, Member
from kitfs.layers.names import NAME_MAX, encoded
from kitfs.metrics import Counters
from kitfs.oci.paths import paths_overlap

MAX_NAMED: Final = 10_000  # left-out entries of a layer that are named in the log, one line each
BLOCK: Final = 4096
MAX_BLOCKS: Final = SIZE_MAX // BLOCK  # what programs can multiply out again; holes can sum up to more


class TreeLayer(Protocol):
    """What the tree needs of a layer; ``path`` is its declared place: "" may hold anything, None says nothing.

    ``wait=False`` raises WouldBlock instead of going to the network.
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

    def check(self, *, wait: bool = True) -> None: ...

    @property
    def whole_file(self) -> bool: ...

    def open_whole(self) -> io.FileIO | None: ...


class SyntheticFile(NamedTuple):
    """A file at the root that is in no layer; digest and media type are what its attributes show."""

    data: bytes
    digest: str
    media_type: str


class Node:
    """One name of the tree. ``kind`` file, dir or symlink; ``mode`` permission bits; ``size`` in bytes; ``path`` from
    the root.

    ``since``: the number of the lowest layer whose entries below a directory are in the tree.
    """

    __slots__ = (
        "children",
        "inode",
        "key",
        "kind",
        "layer",
        "member",
        "mode",
        "nlink",
        "path",
        "since",
        "size",
        "synthetic",
        "target",
    )

    def __init__(
        self,
        path: str,
        member: Member,
        layer: TreeLayer | None,
        *,
        nlink: int = 1,
        since: int = 0,
        synthetic: SyntheticFile | None = None,
    ) -> None:
        self.path = path
        self.kind = member.kind
        self.mode = member.mode
        self.size = member.size
        self.target = member.target
        self.member = member
        self.layer = layer
        self.since = since
        self.nlink = 2 if member.kind == "dir" else nlink
        self.synthetic = synthetic
        self.children: dict[str, Node] = {}
        first = member.extents[0].blob_offset if member.extents else -1
        self.key = (layer.digest if layer is not None else "", member.link or path, first)
        self.inode = Inode(0)

    def __repr__(self) -> str:
        return f"<Node {self.inode} {self.kind} {self.path!r} {self.mode:04o} {self.size}>"

    @property
    def name(self) -> str:
        """The last component."""
        return self.path.rpartition("/")[2]


class Tree:
    """The merged tree of ``layers``, in the order in which they lie over each other, and of ``files`` at the root by
    name.

    ``met`` is called with the digest and the index of each layer when it is first looked into.
    """

    def __init__(
        self,
        layers: Sequence[TreeLayer],
        files: Mapping[str, SyntheticFile],
        *,
        counters: Counters,
        log: logging.Logger,
        met: Callable[[str, LayerIndex], None] = lambda digest, index: None,
    ) -> None:
        self.layers: Final = tuple(layers)
        self._numbered: Final = tuple(enumerate(layers))
        self._counters = counters
        self._log = log
        self._on_met = met
        self._lock = threading.Lock()  # for what is said once
        self._said: set[tuple[str, str]] = set()
        self._links: dict[str, Counter[str]] = {}
        self._nodes: dict[Inode, Node] = {}
        self._totals: tuple[int, int] | None = None
        self.root: Final = Node("", Member("", "dir", 0o755), None)
        self.root.inode = ROOT
        self._nodes[ROOT] = self.root
        for name, file in files.items():
            node = Node(name, Member(name, "file", 0o644, len(file.data)), None, synthetic=file)
            self.root.children[name] = self._registered(node)

    def node(self, inode: Inode) -> Node:
        """The node that was given out under a number. Raises OSError ESTALE."""
        try:
            return self._nodes[inode]
        except KeyError:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    def lookup(self, parent: Node, name: str, *, wait: bool = True) -> Node:
        """The node of a name in a directory. Raises NoEntry, OSError (ENOTDIR, ENAMETOOLONG), WouldBlock,
        KitfsError.
        """
        known = parent.children.get(name)
        if known is not None:
            return known
        if parent.kind != "dir":
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if len(name) > NAME_MAX // 4 and len(encoded(name)) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        path = joined(parent.path, name)
        covering = [
            Numbered(number, self._index(layer, wait), layer.path or "")
            for number, layer in self._numbered[parent.since :]
            if paths_overlap(path, layer.path or "")
        ]
        found = winner(path, covering)
        final = True
        if found is None:
            strays, final = self._strays(path, wait, parent.since)
            found = winner(path, strays)
        if found is None:
            raise NoEntry(final=final)
        node = self._won(path, found, parent.since)
        return parent.children.setdefault(name, node)

    def list(self, directory: Node, *, wait: bool = True) -> list[tuple[str, Node]]:
        """(name, node) of everything in a directory, sorted by name as bytes. Raises OSError (ENOTDIR), WouldBlock,
        KitfsError.
        """
        if directory.kind != "dir":
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        at = directory.path
        indexes = {
            n: self._to_list(at, layer, wait)
            for n, layer in self._numbered[directory.since :]
            if paths_overlap(at, layer.path or "")
        }
        for number, layer in self._numbered[directory.since :]:
            if number not in indexes and (index := self._known(layer)) is not None:
                indexes[number] = index
        here = [Numbered(number, indexes[number], self.layers[number].path or "") for number in sorted(indexes)]
        for name, path, found in winners(at, here, without=directory.children):
            directory.children.setdefault(name, self._won(path, found, directory.since))
        return sorted(directory.children.items(), key=_by_bytes)

    def walk(self, directory: Node) -> Iterator[tuple[str, Node]]:
        """(path, node) of everything below a directory, each directory before what is in it."""
        pending = [iter(self.list(directory))]
        while pending:
            _, node = next(pending[-1], ("", None))
            if node is None:
                pending.pop()
                continue
            yield node.path, node
            if node.kind == "dir":
                pending.append(iter(self.list(node)))

    def resolve(self, path: str) -> Node:
        """The node behind a path from the root, symbolic links followed inside the tree. Raises NotFound,
        KitfsError.
        """

        def look(at: str) -> Member:
            try:
                return self._at(at).member
            except OSError as e:
                raise NotFound(f"no {path!r} in the kit: {(e.strerror or str(e)).lower()}")

        try:
            return self._at(Links(look, confined=True).end(path).path)
        except BadLink as e:
            raise NotFound(f"no {path!r} in the kit: {e.path!r} links {'in a circle' if e.circular else 'out of it'}")

    def _at(self, path: str) -> Node:
        """Return the node at a path without links. Raises as ``lookup`` does."""
        node = self.root
        for name in path.split("/") if path else ():
            node = self.lookup(node, name)
        return node

    def pread(self, node: Node, offset: int, size: int, *, wait: bool = True) -> bytes:
        """Bytes of a file, short at its end. Raises WouldBlock, KitfsError."""
        if node.synthetic is not None:
            return node.synthetic.data[offset : offset + size]
        assert node.layer is not None
        return node.layer.pread(node.member, offset, size, wait=wait)

    def totals(self, *, wait: bool = True) -> tuple[int, int]:
        """(blocks of 4 KiB, at most ``MAX_BLOCKS``; entries). A compressed layer that nobody has read yet, or that
        cannot be had, is one file.

        statfs must not move a hundred gigabytes because a monitor asked how full the mount is.
        """
        if self._totals is not None:
            return self._totals
        sizes: dict[str, int] = {
            name: node.size for name, node in self.root.children.items() if node.synthetic is not None
        }
        kept = set(sizes)
        estimated = 0
        for layer in self.layers:
            try:
                index = self._known(layer) if layer.compressed else self._index(layer, wait)
            except KitfsError:
                index = None
            if index is None:
                estimated += 1
                sizes[f"\0{estimated}"] = layer.size
                continue
            for path in index.paths():
                member = index.members.get(path)
                if path and path not in kept and (path not in sizes or (member is not None and member.kind == "file")):
                    sizes[path] = member.size if member is not None and member.kind == "file" else 0
        totals = min(sum(-(-size // BLOCK) for size in sizes.values()), MAX_BLOCKS), len(sizes)
        if not estimated:
            self._totals = totals
        return totals

    def _to_list(self, directory: str, layer: TreeLayer, wait: bool) -> LayerIndex:
        """The index of a layer that may have names in a directory. A registry's error says what it keeps from being
        listed, and why.
        """
        try:
            return self._index(layer, wait)
        except RegistryError as e:
            why = f"the names in layer {layer.digest[:19]} are not known on this host yet, and it cannot be read now"
            raise type(e)(f"/{directory} cannot be listed: {why}: {e}", status=e.status, code=e.code, url=e.url)

    def _index(self, layer: TreeLayer, wait: bool) -> LayerIndex:
        index = layer.index(wait=wait)
        if layer.digest not in self._links:
            self._met(layer, index)
        return index

    def _known(self, layer: TreeLayer) -> LayerIndex | None:
        """A layer's index if it is at hand."""
        try:
            return self._index(layer, wait=False)
        except (WouldBlock, KitfsError):
            return None

    def _met(self, layer: TreeLayer, index: LayerIndex) -> None:
        """An index that comes for the first time: count hard links, and name what was left out."""
        links = Counter(m.link for m in index.members.values() if m.link)
        with self._lock:
            if layer.digest in self._links:
                return
            self._links[layer.digest] = links
        self._on_met(layer.digest, index)
        self._counters.add("skipped_entries", len(index.skipped))
        for skipped in index.skipped[:MAX_NAMED]:
            self._log.warning("layer %s: %s", layer.digest[:19], skipped)
        if len(index.skipped) > MAX_NAMED:
            self._log.warning("layer %s: left out %d more", layer.digest[:19], len(index.skipped) - MAX_NAMED)

    def _strays(self, path: str, wait: bool, since: int) -> tuple[Sequence[Numbered], bool]:
        """Layers outside whose declared path a name lies and which may hold it all the same; and whether that is all
        there can be.
        """
        found = []
        final = True
        for number, layer in self._numbered[since:]:
            if paths_overlap(path, layer.path or ""):
                continue
            index = self._known(layer)
            if index is None:
                try:
                    index = None if layer.first_entry_agrees(wait=wait) else self._index(layer, wait)
                except KitfsError:
                    pass  # a layer that cannot be had keeps nobody from the others
            if index is None:
                final = False
            else:
                found.append(Numbered(number, index, layer.path or ""))
        return found, final

    def _won(self, path: str, found: Winner, since: int) -> Node:
        """Return the node of a winner below a directory whose layers count from ``since`` on."""
        for number, member in found.left_out:
            self._conflict(path, member, self.layers[number])
        layer = self.layers[found.number]
        links = self._links[layer.digest][found.member.link or path] if found.member.kind != "dir" else 0
        return self._registered(Node(path, found.member, layer, nlink=1 + links, since=max(since, found.since)))

    def _conflict(self, path: str, member: Member, layer: TreeLayer) -> None:
        with self._lock:
            if (layer.digest, path) in self._said:
                return
            self._said.add((layer.digest, path))
        self._counters.add("skipped_entries")
        self._log.warning("layer %s: %s", layer.digest[:19], left_out_entry(path, member))

    def _registered(self, node: Node) -> Node:
        """A node with its number: a hash of layer and path, so that it is the same in every mount; hard links share
        theirs.
        """
        text = "\0".join(map(str, node.key)).encode("utf-8", "surrogateescape")
        number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
        while True:
            number = max(number, ROOT + 1)
            taken = self._nodes.setdefault(Inode(number), node)
            if taken is node or taken.key == node.key:
                node.inode = Inode(number)
                return node if taken.path != node.path else taken
            number = (number + 1) & (1 << 63) - 1


def tree_of(
    kit: Kit,
    *,
    counters: Counters,
    log: logging.Logger,
    met: Callable[[str, LayerIndex], None] = lambda digest, index: None,
) -> Tree:
    """The tree of an opened kit: its layers, and its Kitfile over them."""
    config = kit.manifest.config
    files = (
        {}
        if kit.kitfile_bytes is None
        else {"Kitfile": SyntheticFile(kit.kitfile_bytes, config.digest, config.media_type)}
    )
    return Tree(kit.layers, files, counters=counters, log=log, met=met)


def _by_bytes(item: tuple[str, Node]) -> bytes:
    return item[0].encode("utf-8", "surrogateescape")
