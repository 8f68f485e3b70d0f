"""Open files of a kit as Python file objects, and find paths in its tree."""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import translate
from typing import TYPE_CHECKING, Any, Final, cast

from kitfs import forks
from kitfs.kit.inode import NoEntry
from kitfs.kit.node import Node
from kitfs.kit.tree import Tree
from kitfs.sdk.session import Session

BUFFER: Final = 128 << 10  # bytes that a file object reads ahead
PIECE: Final = 4 << 20  # most bytes that are read from the tree at a time
WILDCARDS: Final = re.compile(r"[*?[]")

if TYPE_CHECKING:
    from kitfs.sdk.kit import Kit


def directory_node(session: Session, path: str) -> Node:
    """Find a directory. Raises NotFound, NotADirectoryError, KitfsError."""
    node = session.tree.resolve(path)
    if node.kind != "dir":
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    return node


def file_node(session: Session, path: str) -> Node:
    """Find a file. Raises NotFound, IsADirectoryError, KitfsError."""
    node = session.tree.resolve(path)
    if node.kind != "file":
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    return node


def matching(tree: Tree, pattern: str) -> list[Node]:
    """Return the entries whose paths match a pattern (see ``Kit.glob``), sorted by path.

    Raises KitfsError, and ValueError for a pattern that is empty or absolute.
    """
    if pattern.startswith("/"):
        raise ValueError(f"the pattern {pattern!r} must be relative to the root of the kit")
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    if not parts:
        raise ValueError("cannot match paths: the pattern is empty")
    found = {node.path: node for node in _matching(tree, tree.root, parts)}
    return [found[path] for path in sorted(found)]


def _matching(tree: Tree, node: Node, parts: Sequence[str]) -> Iterator[Node]:
    """Yield the entries below a node that match the parts of a pattern. An entry may be yielded more than once."""
    if not parts:
        yield node
        return
    first, rest = parts[0], parts[1:]
    if node.kind != "dir":
        return
    if first == "**":
        yield from _matching(tree, node, rest) if rest else ()
        for _, child in tree.list(node):
            if not rest:
                yield child
            yield from _matching(tree, child, parts)
    elif WILDCARDS.search(first):
        match = re.compile(translate(first)).match
        for name, child in tree.list(node):
            if match(name):
                yield from _matching(tree, child, rest)
    else:
        try:
            child = tree.lookup(node, first)
        except NoEntry:
            return
        yield from _matching(tree, child, rest)


class _RawFile(io.RawIOBase):
    """An unbuffered file of a kit. It holds a reference to the kit, which therefore stays open."""

    def __init__(self, kit: Kit, path: str, size: int) -> None:
        super().__init__()
        self.kit: Final = kit
        self.name = path
        self.size = size
        self._at = 0
        self._node: tuple[Session, Node] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to the negative position {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        with self.kit._using() as session:  # noqa: SLF001 - a file is a part of its kit
            if self._node is None or self._node[0] is not session:
                self._node = session, file_node(session, self.name)
            data = session.tree.pread(self._node[1], self._at, min(len(view), PIECE)) if self._at < self.size else b""
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class KitFile(io.BufferedReader):
    """A file of a kit that is open for reading. It is closed when its kit is closed.

    A forked child continues at the same position, with its own buffer.
    """

    def __init__(self, kit: Kit, path: str, size: int, at: int = 0) -> None:
        self._raw: Final = _RawFile(kit, path, size)
        self._generation = forks.generation
        super().__init__(cast("io.RawIOBase", self._raw), BUFFER)
        if at:
            self.seek(at)

    @property
    def size(self) -> int:
        """The length of the file in bytes."""
        return self._raw.size

    @property
    def closed(self) -> bool:
        """Return whether the file or its kit is closed."""
        return super().closed or self._raw.kit.closed

    def _ready(self) -> None:
        """Check that the file can be used. Raises Closed.

        A forked child gets a new buffer, because a thread of the parent may have held the lock of the old buffer.
        """
        if self._raw.kit.closed:
            raise self._raw.kit._was_closed()  # noqa: SLF001 - a file is a part of its kit
        if self._generation != forks.generation:
            at = super().tell()
            super().__init__(cast("io.RawIOBase", self._raw), BUFFER)
            super().seek(at)
            self._generation = forks.generation

    def read(self, size: int | None = -1, /) -> bytes:
        self._ready()
        return super().read(size)

    def read1(self, size: int = -1, /) -> bytes:
        self._ready()
        return super().read1(size)

    def readinto(self, buffer: Any, /) -> int:
        self._ready()
        return super().readinto(buffer)

    def readinto1(self, buffer: Any, /) -> int:
        self._ready()
        return super().readinto1(buffer)

    def peek(self, size: int = 0, /) -> bytes:
        self._ready()
        return super().peek(size)

    def readline(self, size: int | None = -1, /) -> bytes:
        self._ready()
        return super().readline(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._ready()
        return super().seek(offset, whence)

    def tell(self) -> int:
        self._ready()
        return super().tell()

    def __reduce__(self) -> tuple[Any, ...]:
        return KitFile, (self._raw.kit, self._raw.name, self._raw.size, self.tell())

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return self.__reduce__()
