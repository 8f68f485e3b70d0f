"""File descriptors that are never used by their number alone, and that belong to one process.

A number is given to the next file as soon as it is free. So an OpenFile is closed when its last user has left it, and
every later use raises Closed; no read and no write reaches another file of the program. Locks (flock(2), and the
"Open file description locks" of fcntl(2)) belong to what a forked child shares with its parent: a child that kept its
copy would hold the lock after the parent has died. So a child closes its copies at once, which drops none of the
parent's locks.

Threading: every method from any thread; a read or a write takes no lock.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from kitfs import forks
from kitfs.errors import Closed
from kitfs.ownership import open_file

PIECE: Final = 1 << 20  # bytes of one read when a file or a stream is processed from beginning to end


class OpenFile:
    """An open file; the arguments are those of os.open, and it is closed on exec. ``opener`` opens it in another way.
    Raises OSError.
    """

    __slots__ = ("__weakref__", "_closing", "_fd", "_path", "_users")

    def __init__(
        self,
        path: str,
        flags: int,
        mode: int = 0o600,
        *,
        dir_fd: int | None = None,
        opener: Callable[[], int] | None = None,
    ) -> None:
        self._path: Final = path
        self._users: set[object] = set()
        self._closing = False
        self._fd = -1
        with forks.guard:
            self._fd = os.open(path, flags | os.O_CLOEXEC, mode, dir_fd=dir_fd) if opener is None else opener()
            forks.watch_child(self)

    def __repr__(self) -> str:
        return f"<OpenFile {self._path}{' closed' if self._closing else ''}>"

    def __del__(self) -> None:
        if self._fd >= 0:
            self._users.clear()
            self.close()

    def pread(self, size: int, offset: int) -> bytes:
        """Bytes at an offset, as os.pread. Raises Closed, OSError."""
        user = self._enter()
        try:
            return os.pread(self._fd, size, offset)
        finally:
            self._leave(user)

    def pwrite(self, data: bytes | memoryview, offset: int) -> int:
        """Write at an offset, as os.pwrite. Raises Closed, OSError."""
        user = self._enter()
        try:
            return os.pwrite(self._fd, data, offset)
        finally:
            self._leave(user)

    @contextmanager
    def number(self) -> Iterator[int]:
        """The descriptor's number, which stays its own for the time of the block. Raises Closed."""
        user = self._enter()
        try:
            yield self._fd
        finally:
            self._leave(user)

    def flock(self, operation: int) -> None:
        """As fcntl.flock. Raises Closed, OSError."""
        with self.number() as fd:
            fcntl.flock(fd, operation)

    def stat(self) -> os.stat_result:
        """As os.fstat. Raises Closed, OSError."""
        with self.number() as fd:
            return os.fstat(fd)

    def touch(self) -> None:
        """Set the file's times to now. Raises Closed, OSError."""
        with self.number() as fd:
            os.utime(fd)

    def _enter(self) -> object:
        # Entered before it is asked whether it closes, and closed before it is asked who is inside: one of the two
        # sees the other.
        user = object()
        self._users.add(user)
        if self._closing:
            self._leave(user)
            raise Closed(f"{self._path} was closed")
        return user

    def _leave(self, user: object) -> None:
        self._users.discard(user)
        if self._closing:
            self._close_unused()

    def close(self) -> None:
        """Let go of the file, when its last user has left it. Nothing happens the second time."""
        self._closing = True
        self._close_unused()

    def _close_unused(self) -> None:
        with forks.guard:
            if self._fd >= 0 and not self._users:
                fd, self._fd = self._fd, -1
                os.close(fd)

    def after_fork_in_child(self) -> None:
        """Close the child's copy, whoever used it in the parent."""
        self._users.clear()
        self.close()


class OwnFile(OpenFile):
    """An open file of the store: see ``ownership.open_file``. Raises OSError, Unsafe among them."""

    __slots__ = ()

    def __init__(self, path: str, flags: int) -> None:
        super().__init__(path, flags, opener=lambda: open_file(path, flags))
