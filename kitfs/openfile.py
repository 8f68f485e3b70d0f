"""File descriptors that are never used after they were closed, and that belong to one process.

The kernel gives the number of a closed descriptor to the next file. So an OpenFile is closed when its last user has
finished, and every later use raises Closed: no read or write reaches another file of the program. Locks (flock(2), and
the "Open file description locks" of fcntl(2)) are shared by a parent and its forked child: a child that kept
its copy would hold the lock after the parent has died. So a child closes its copies at once, which releases none of the
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
    """An open file, closed on exec; the arguments are those of os.open. ``opener`` opens it in another way. Raises
    OSError.
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
        """Read bytes at an offset, as os.pread. Raises Closed, OSError."""
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
        """Yield the descriptor's number, which stays valid for the block. Raises Closed."""
        user = self._enter()
        try:
            yield self._fd
        finally:
            self._leave(user)

    def flock(self, operation: int) -> None:
        """Lock or unlock, as fcntl.flock. Raises Closed, OSError."""
        with self.number() as fd:
            fcntl.flock(fd, operation)

    def stat(self) -> os.stat_result:
        """Return the status, as os.fstat. Raises Closed, OSError."""
        with self.number() as fd:
            return os.fstat(fd)

    def touch(self) -> None:
        """Set the file's times to now. Raises Closed, OSError."""
        with self.number() as fd:
            os.utime(fd)

    def _enter(self) -> object:
        # A user enters before it checks ``_closing``, and ``close`` sets ``_closing`` before it looks for users, so
        # that one of the two always sees the other.
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
        """Close the file as soon as no read or write is in progress. A second call does nothing."""
        self._closing = True
        self._close_unused()

    def _close_unused(self) -> None:
        with forks.guard:
            if self._fd >= 0 and not self._users:
                fd, self._fd = self._fd, -1
                os.close(fd)

    def after_fork_in_child(self) -> None:
        """Close the child's copy, even if a thread of the parent was using it."""
        self._users.clear()
        self.close()


class OwnFile(OpenFile):
    """An open file of the store (``ownership.open_file``). Raises OSError, in particular Unsafe."""

    __slots__ = ()

    def __init__(self, path: str, flags: int) -> None:
        super().__init__(path, flags, opener=lambda: open_file(path, flags))
