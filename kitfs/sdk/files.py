"""Files of a kit as Python file objects."""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, Any, Final, cast

from kitfs import forks
from kitfs.kit.tree import Node
from kitfs.sdk.session import Session

BUFFER: Final = 128 << 10  # bytes that a file object reads at once
PIECE: Final = 4 << 20

if TYPE_CHECKING:
    from kitfs.sdk.kit import Kit


def _directory(session: Session, path: str) -> Node:
    node = session.tree.resolve(path)
    if node.kind != "dir":
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    return node


def _file(session: Session, path: str) -> Node:
    node = session.tree.resolve(path)
    if node.kind != "file":
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    return node


class _RawFile(io.RawIOBase):
    """A file of a kit, by position. It keeps the kit."""

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
            raise ValueError(f"a negative position: {base + offset}")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        with self.kit._using() as session:  # noqa: SLF001 - one class in two parts
            if self._node is None or self._node[0] is not session:
                self._node = session, _file(session, self.name)
            data = session.tree.pread(self._node[1], self._at, min(len(view), PIECE)) if self._at < self.size else b""
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class KitFile(io.BufferedReader):
    """A file of a kit, open for reading; ``size`` in bytes. Closed when its kit is, whatever it has in its buffer.

    A forked child reads on where the file stood, with a buffer of its own.
    """

    def __init__(self, kit: Kit, path: str, size: int, at: int = 0) -> None:
        self._raw: Final = _RawFile(kit, path, size)
        self._generation = forks.generation
        super().__init__(cast("io.RawIOBase", self._raw), BUFFER)
        if at:
            self.seek(at)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._raw.size

    @property
    def closed(self) -> bool:
        """Whether the file or its kit was closed."""
        return super().closed or self._raw.kit.closed

    def _ready(self) -> None:
        """Raises Closed. In a child the buffer is made again: a thread of the parent may have held its lock."""
        if self._raw.kit.closed:
            raise self._raw.kit._was_closed()  # noqa: SLF001 - one class in two parts
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
