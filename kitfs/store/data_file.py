"""The bytes of a blob on disk: one sparse file, ``rest``.

``meta.json`` has a list of cuts for later: a cut is a member that is stored in a file of its own from its first byte,
which FUSE passthrough needs. A blob without cuts is always valid. The file is never truncated or punched, so an open
descriptor stays right. Threading: positional reads and writes only.
"""

from __future__ import annotations

import os

from kitfs.openfile import OwnFile


class SyncFailedError(OSError):
    """The disk did not take written bytes: a later sync may report success although they are lost."""


class DataFile:
    """The sparse file in ``directory``, made when it is missing."""

    def __init__(self, directory: str) -> None:
        self._file = OwnFile(os.path.join(directory, "rest"), os.O_RDWR | os.O_CREAT)

    def pread(self, offset: int, size: int) -> bytes:
        """Return bytes at an offset; fewer at the end of the file. Raises Closed, OSError."""
        data = self._file.pread(size, offset)
        while len(data) < size:
            more = self._file.pread(size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read into a buffer at an offset; return the number of bytes. Raises Closed, OSError."""
        with self._file.number() as fd:
            return os.preadv(fd, [view], offset) if len(view) else 0

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all bytes at an offset. Raises Closed, OSError (ENOSPC, EDQUOT, EIO)."""
        view = memoryview(data)
        while len(view):
            done = self._file.pwrite(view, offset)
            offset += done
            view = view[done:]

    def sync(self) -> None:
        """Return when every byte that was written is on the disk. Raises SyncFailedError, Closed."""
        with self._file.number() as fd:
            try:
                os.fdatasync(fd)
            except OSError as e:
                raise SyncFailedError(e.errno, e.strerror) from e

    def close(self) -> None:
        """Close the file when nothing reads or writes it any more."""
        self._file.close()
