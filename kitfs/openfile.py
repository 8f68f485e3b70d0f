"""Open files that belong to one process, and never use a descriptor after it is closed.

The kernel reuses the number of a closed descriptor for the next file. So an OpenFile is closed only after the reads and
writes in progress, and every later use raises Closed. No read or write can reach another file of the program. A parent
and its forked child share file locks (flock(2), and the "Open file description locks" of fcntl(2)), so a child that
kept its copy of a descriptor would hold the lock after the parent has died. Therefore a child closes its copies at
once. The locks of the parent stay.

Threading: any thread may call every method. Reads and writes take no lock.
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

PIECE: Final = 1 << 20  # bytes of a read when a file or a stream is processed from beginning to end
# Linux caches a larger write in larger pages, for which it may have to move memory. On a machine whose memory was full
# of cached files, writing 1 GiB took 0.26 s in writes of 256 KiB, and 1.3 s to 2.8 s in writes of 1 MiB.
WRITE: Final = 256 << 10  # bytes of one write to a file


class OpenFile:
    """An open file, which is closed on exec. Raises OSError if it cannot be opened.

    The arguments are those of os.open. If ``opener`` is given, it is called instead of os.open.
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
        """Read bytes at an offset, as os.pread does. Raises Closed and OSError."""
        user = self._enter()
        try:
            return os.pread(self._fd, size, offset)
        finally:
            self._leave(user)

    def pwrite(self, data: bytes | memoryview, offset: int) -> int:
        """Write bytes at an offset, as os.pwrite does. Raises Closed and OSError."""
        user = self._enter()
        try:
            return os.pwrite(self._fd, data, offset)
        finally:
            self._leave(user)

    @contextmanager
    def number(self) -> Iterator[int]:
        """Yield the number of the descriptor, which is valid during the ``with`` block. Raises Closed."""
        user = self._enter()
        try:
            yield self._fd
        finally:
            self._leave(user)

    def flock(self, operation: int) -> None:
        """Lock or unlock the file, as fcntl.flock does. Raises Closed and OSError."""
        with self.number() as fd:
            fcntl.flock(fd, operation)

    def stat(self) -> os.stat_result:
        """Return the status of the file, as os.fstat does. Raises Closed and OSError."""
        with self.number() as fd:
            return os.fstat(fd)

    def touch(self) -> None:
        """Set the times of the file to the current time. Raises Closed and OSError."""
        with self.number() as fd:
            os.utime(fd)

    def _enter(self) -> object:
        # A user is added before ``_closing`` is checked, and ``close`` sets ``_closing`` before it looks for users.
        # So either the user sees that the file is closing, or ``close`` sees the user.
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
        """Close the child's copy of the descriptor, even if a thread of the parent was using the descriptor."""
        self._users.clear()
        self.close()


class OwnFile(OpenFile):
    """An open file of the store (``ownership.open_file``). Raises OSError, in particular Unsafe."""

    __slots__ = ()

    def __init__(self, path: str, flags: int) -> None:
        super().__init__(path, flags, opener=lambda: open_file(path, flags))
