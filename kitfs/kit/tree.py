"""Build the tree of a kit: merge its layers name by name, when a name is looked up or a directory is listed.

A lookup waits only for the layers whose declared path overlaps the name, and a listing only for the layers whose
declared path overlaps the directory. Other layers are not read. The rules are those of the manual's *Semantics*:
layers are merged as in ``kit.layering``, a layer that declares a name takes precedence over a layer that has the name
outside its declared path, and a synthetic file always wins. This module does not depend on FUSE: ``fuse.filesystem``
shows the tree to the kernel, and verbs read it directly.

The tree searches the indexes for each lookup, so a name needs no memory except for the entry of its inode. Threading:
any number of threads may use a tree. Dictionaries and lists only grow, in single atomic steps, and no lock is held
while a layer is being fetched.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import os
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from kitfs.errors import KitfsError, NotFound, RegistryError, WouldBlock
from kitfs.kit.demand import Demand
from kitfs.kit.inode import ROOT, Inode, InodeTable, NoEntry
from kitfs.kit.kit import Kit
from kitfs.kit.layering import (
    BadLink,
    Candidate,
    Links,
    Numbered,
    Winner,
    here,
    joined,
    left_out_entry,
    winner,
    winners,
)
from kitfs.kit.node import Listing, Node, SyntheticFile, TreeLayer
from kitfs.kit.overlap import DeclaredPaths, surplus
from kitfs.layers.index import ROOT_MODE, SIZE_MAX, LayerIndex, Member
from kitfs.layers.names import NAME_MAX, encoded
from kitfs.metrics import Counters

MAX_NAMED: Final = 10_000  # the log names at most so many left-out entries of a layer, one a line
BLOCK: Final = 4096
MAX_BLOCKS: Final = SIZE_MAX // BLOCK  # so that the size in bytes fits off_t; files with holes can sum up to more


class Tree:
    """The merged tree of ``layers``, the lowest first, and of synthetic ``files`` at the root, by name.

    ``met`` is called with the digest and the index of each layer when the index is first used. A *reference* is an
    integer that identifies an entry: the number of its layer << 32 | its row in that layer. For a synthetic file it is
    ``len(layers)`` << 32 | the number of the file.
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
        self.demand: Final = Demand()
        self._files = sorted(files.items(), key=lambda item: encoded(item[0]))
        self._places = {name: len(layers) << 32 | number for number, (name, _) in enumerate(self._files)}
        self._declared = DeclaredPaths([layer.path or "" for layer in layers])
        self._counters = counters
        self._log = log
        self._on_met = met
        self._lock = threading.Lock()  # guards ``_said``, and the steps of ``_met``
        self._said: set[int] = set()
        self._indexes: list[LayerIndex | None] = [None] * len(layers)
        self._same = list(range(len(layers)))  # for each layer, the number of the first equal layer that was used
        self._by_digest: dict[str, list[int]] = {}
        self._inodes = InodeTable()
        self._since: dict[str, int] = {}  # by directory: the lowest layer whose entries below it are visible, if not 0
        self._restored = False
        self._walked: set[str] = set()  # in a restored tree: the directories that were looked up
        self._totals: tuple[int, int] | None = None
        self.root: Final = Node(ROOT, "", "dir", ROOT_MODE, 0, 2)

    def node(self, inode: Inode) -> Node:
        """Return the node of an inode number. Raises OSError (ESTALE) if the number was not assigned."""
        if inode == ROOT:
            return self.root
        ref = self._inodes.get(inode)
        if ref is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self._node(None, ref)

    def restore(self) -> None:
        """Assign all inode numbers of the layers whose indexes are available without waiting.

        A process that continues the mount of an earlier process calls this method before the first request, because the
        kernel may use numbers that the earlier process has assigned. The numbers depend only on the kit.
        """
        self._restored = True
        for name, ref in self._places.items():
            self._inodes.number_for(_hashed(b"", encoded(name), -1), ref)
        for number in range(len(self.layers)):
            if self._known(number) is not None and self._same[number] == number:
                for row, inode in self._numbers_of(number):
                    self._inodes.number_for(inode, number << 32 | row)

    def _numbers_of(self, number: int) -> Iterator[tuple[int, int]]:
        """Yield (row, preferred inode number) for every inode of a layer whose index is in use."""
        index = self._indexes[number]
        assert index is not None
        digest = self.layers[number].digest.encode()
        for row in range(1, index.counts.rows):
            if index.first(row) == row:
                yield row, _hashed(digest, index.path_bytes(row), index.offset(row))

    def files_of(self, digest: str) -> set[Inode]:
        """Return the preferred inode numbers of all entries of a layer, as far as its index is in use."""
        return {
            Inode(inode)
            for number, layer in enumerate(self.layers)
            if layer.digest == digest and self._indexes[number] is not None
            for _, inode in self._numbers_of(number)
        }

    def _node(self, directory: str | None, ref: int) -> Node:
        """Return the node of a reference. ``directory`` is the path of its directory, if the caller knows the path."""
        number, row = ref >> 32, ref & 0xFFFFFFFF
        if number == len(self.layers):
            name, file = self._files[row]
            inode = self._inodes.number_for(_hashed(b"", encoded(name), -1), ref)
            return Node(inode, name, "file", 0o644, len(file.data), 1, synthetic=file)
        layer, index = self.layers[number], self._indexes[number]
        assert index is not None
        first = index.first(row)
        path = index.path(row) if directory is None else joined(directory, index.name(row))
        name_of_file = encoded(path) if first == row else index.path_bytes(first)
        inode = self._inodes.number_for(
            _hashed(layer.digest.encode(), name_of_file, index.offset(first)), self._same[number] << 32 | first
        )
        kind = index.kind(row)
        nlink = 2 if kind == "dir" else index.nlink(row)
        return Node(inode, path, kind, index.mode(row), index.size(row), nlink, layer=layer, index=index, row=row)

    def lookup(self, parent: Node, name: str, *, wait: bool = True) -> Node:
        """Return the node of a name in a directory.

        Raises NoEntry, OSError (ENOTDIR, ENAMETOOLONG), WouldBlock and KitfsError.
        """
        if parent.kind != "dir":
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if len(name) > NAME_MAX // 4 and len(encoded(name)) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return self._in_directory(parent.path, name, wait)

    def _in_directory(self, directory: str, name: str, wait: bool) -> Node:
        path = joined(directory, name)
        if path in self._places:
            return self._node(directory, self._places[path])
        since = self._counts_from(directory, wait)
        covering = [number for number in self._declared.overlapping(path) if number >= since]
        indexes = [(number, self._index(number, wait)) for number in covering]
        found = winner(_candidates(directory, name, indexes))
        is_final = True
        if found is None:
            strays, is_final = self._strays(wait, since, covering)
            found = winner(_candidates(directory, name, strays))
        if found is None:
            raise NoEntry(final=is_final)
        return self._node(directory, self._won(path, found))

    def _counts_from(self, directory: str, wait: bool) -> int:
        """Return the number of the lowest layer whose entries below a directory are in the tree.

        The directories above the entry must have been looked up. In a restored tree, an earlier process may have looked
        them up, so they are looked up here, which can raise WouldBlock and KitfsError.
        """
        if self._restored and len(self.layers) > 1:
            self._walk(directory, wait)
        if not self._since:
            return 0
        parts = directory.split("/")
        return max(self._since.get("/".join(parts[:count]), 0) for count in range(1, len(parts) + 1))

    def _walk(self, directory: str, wait: bool) -> None:
        """Look up a directory and the directories above it, each only once."""
        parts = directory.split("/") if directory else []
        for count in range(1, len(parts) + 1):
            path = "/".join(parts[:count])
            if path in self._walked:
                continue
            try:
                self._in_directory("/".join(parts[: count - 1]), parts[count - 1], wait)
            except NoEntry:
                return  # a layer that was not known to the earlier process hides the directory
            self._walked.add(path)

    def above(self, directory: Node) -> Inode:
        """Return the inode of the parent of a directory. The root is its own parent."""
        path = directory.path.rpartition("/")[0]
        if not path:
            return ROOT
        return self._in_directory(path.rpartition("/")[0], path.rpartition("/")[2], wait=True).inode

    def list(self, directory: Node, *, wait: bool = True) -> Listing:
        """List a directory. Raises OSError (ENOTDIR), WouldBlock and KitfsError."""
        if directory.kind != "dir":
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        at = directory.path
        since = self._counts_from(at, wait)
        for number in self._declared.overlapping(at):
            if number >= since:
                self._to_list(at, number, wait)
        known = ((number, self._known(number)) for number in range(since, len(self.layers)))
        layers = here(at, (Numbered(n, index, self.layers[n].path or "") for n, index in known if index is not None))
        synthetic = {} if at else self._places
        if len(layers) == 1 and not synthetic:
            number, names, _, row = layers[0]
            children = names.children(row)
            refs: Sequence[int] = range(number << 32 | children.start, number << 32 | children.stop)
        else:
            won = [(encoded(name), ref) for name, ref in synthetic.items()]
            won += (
                (encoded(name), self._won(path, found)) for name, path, found in winners(at, layers, without=synthetic)
            )
            refs = array("Q", (ref for _, ref in (sorted(won) if synthetic else won)))
        return Listing(refs, partial(self._node, at))

    def walk(self, directory: Node) -> Iterator[tuple[str, Node]]:
        """Yield (path, node) for everything below a directory, each directory before its contents."""
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
        """Return the node at a path from the root. Symbolic links are followed if they stay inside the tree.

        Raises NotFound and KitfsError.
        """

        def look(at: str) -> Member:
            try:
                return self._at(at).member
            except OSError as e:
                raise NotFound(f"cannot find {path!r} in the kit: {(e.strerror or str(e)).lower()}")

        try:
            return self._at(Links(look, confined=True).end(path).path)
        except BadLink as e:
            why = (
                "leads through too many symbolic links"
                if e.circular
                else "is a symbolic link that leads out of the kit"
            )
            raise NotFound(f"cannot find {path!r} in the kit: {e.path!r} {why}")

    def _at(self, path: str) -> Node:
        """Return the node at a path, without following links. Raises the errors of ``lookup``."""
        node = self.root
        for name in path.split("/") if path else ():
            node = self.lookup(node, name)
        return node

    def pread(self, node: Node, offset: int, size: int, *, wait: bool = True) -> bytes:
        """Read bytes of a file, fewer at its end. Raises WouldBlock and KitfsError."""
        if node.synthetic is not None:
            return node.synthetic.data[offset : offset + size]
        layer, member = node.layer, node.member
        assert layer is not None
        data = self.demand.read(layer.digest, lambda may: layer.pread(member, offset, size, wait=may), wait=wait)
        self.demand.done(node, offset, len(data))
        return data

    def totals(self, *, wait: bool = True) -> tuple[int, int]:
        """Return (blocks of 4 KiB, entries) of the whole tree, with at most ``MAX_BLOCKS`` blocks.

        A compressed layer without an index counts as one file, because a call of statfs(2) must not fetch the whole
        layer. A layer that cannot be read counts as one file, too.
        """
        if self._totals is not None:
            return self._totals
        indexes: list[LayerIndex] = []
        blocks = sum(-(-len(file.data) // BLOCK) for _, file in self._files)
        entries = len(self._files)
        for number, layer in enumerate(self.layers):
            try:
                index = self._known(number) if layer.compressed else self._index(number, wait)
            except KitfsError:
                index = None
            if index is None:
                blocks, entries = blocks - (-layer.size // BLOCK), entries + 1
            else:
                indexes.append(index)
                blocks, entries = blocks + index.counts.blocks, entries + index.counts.rows - 1
        twice = surplus(indexes, map(encoded, self._places), BLOCK)
        totals = min(blocks - twice[0], MAX_BLOCKS), entries - twice[1]
        if len(indexes) == len(self.layers):
            self._totals = totals
        return totals

    def _to_list(self, directory: str, number: int, wait: bool) -> None:
        """Get the index of a layer that may have names in a directory.

        If the registry fails, the error names the directory and the layer.
        """
        try:
            self._index(number, wait)
        except RegistryError as e:
            digest = self.layers[number].digest[:19]
            why = f"the names in layer {digest} are not known on this host yet, and the layer cannot be read now"
            raise type(e)(f"/{directory} cannot be listed: {why}: {e}", status=e.status, code=e.code, url=e.url)

    def _index(self, number: int, wait: bool) -> LayerIndex:
        index = self.layers[number].index(wait=wait)
        if self._indexes[number] is None:
            self._met(number, index)
        return index

    def _known(self, number: int) -> LayerIndex | None:
        """Return a layer's index if it is available without waiting, otherwise None."""
        try:
            return self._index(number, wait=False)
        except (WouldBlock, KitfsError):
            return None

    def _met(self, number: int, index: LayerIndex) -> None:
        """Register an index that is used for the first time, and log the entries that were left out."""
        digest = self.layers[number].digest
        with self._lock:
            if self._indexes[number] is not None:
                return
            equal = self._by_digest.setdefault(digest, [])
            same = next((other for other in equal if self._indexes[other] == index), number)
            self._same[number] = same
            self._indexes[number] = index
            equal.append(number)
        if same != number:
            return
        self._on_met(digest, index)
        self._counters.add("skipped_entries", len(index.skipped))
        for skipped in itertools.islice(index.skipped, MAX_NAMED):
            self._log.warning("layer %s: %s", digest[:19], skipped)
        if len(index.skipped) > MAX_NAMED:
            self._log.warning("layer %s: left out %d more entries", digest[:19], len(index.skipped) - MAX_NAMED)

    def _strays(self, wait: bool, since: int, covering: Iterable[int]) -> tuple[Sequence[tuple[int, LayerIndex]], bool]:
        """Return (layers, is_final): the layers that may have a name outside their declared path, except ``covering``.

        ``is_final`` is False if another layer, whose index is not available without waiting, may have the name too.
        """
        found = []
        is_final = True
        covered = set(covering)
        for number in range(since, len(self.layers)):
            if number in covered:
                continue
            index = self._known(number)
            if index is None:
                try:
                    trusted = self.layers[number].first_entry_agrees(wait=wait)
                    index = None if trusted else self._index(number, wait)
                except KitfsError:
                    pass  # a layer that cannot be read must not make names of other layers unreadable
            if index is None:
                is_final = False
            else:
                found.append((number, index))
        return found, is_final

    def _won(self, path: str, found: Winner) -> int:
        """Return the reference of a winner, and log the entries that it left out."""
        for candidate in found.left_out:
            self._conflict(path, candidate)
        if found.since:
            self._since[path] = found.since
        return found.number << 32 | found.row

    def _conflict(self, path: str, candidate: Candidate) -> None:
        ref = self._same[candidate.number] << 32 | candidate.row
        with self._lock:
            if ref in self._said:
                return
            self._said.add(ref)
        self._counters.add("skipped_entries")
        digest = self.layers[candidate.number].digest
        self._log.warning("layer %s: %s", digest[:19], left_out_entry(path, candidate))


def _candidates(directory: str, name: str, indexes: Iterable[tuple[int, LayerIndex]]) -> Iterator[Candidate]:
    """Yield the entries of several layers that have a certain name in a directory."""
    raw = encoded(name)
    for number, index in indexes:
        above = index.find(directory)
        row = -1 if above < 0 else index.child(above, raw)
        if row >= 0:
            yield Candidate(number, index, row)


def _hashed(digest: bytes, path: bytes, offset: int) -> int:
    """Return the preferred inode number of a file, which is the same in every mount.

    It is a hash of three values: the digest of the file's layer, the file's first name in that layer, and its offset
    there.
    """
    text = b"%b\0%b\0%d" % (digest, path, offset)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def tree_of(
    kit: Kit,
    *,
    counters: Counters,
    log: logging.Logger,
    met: Callable[[str, LayerIndex], None] = lambda digest, index: None,
) -> Tree:
    """Return the tree of an opened kit: its layers, and its Kitfile as a synthetic file."""
    config = kit.manifest.config
    files = (
        {}
        if kit.kitfile_bytes is None
        else {"Kitfile": SyntheticFile(kit.kitfile_bytes, config.digest, config.media_type)}
    )
    return Tree(kit.layers, files, counters=counters, log=log, met=met)
