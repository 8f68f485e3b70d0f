"""Read and write the bytes of a blob on disk, which are in a sparse file named ``rest``.

The file is never truncated, and no holes are punched into it, so the content that a reader sees through an open
descriptor stays valid. The list "cuts" in ``meta.json`` is always empty. It is reserved for a format in which each
member of a layer has its own file. Threading: any thread may read and write, because all offsets are explicit.
"""

from __future__ import annotations

import os

from kitfs.openfile import WRITE, OwnFile


class SyncFailedError(OSError):
    """The disk failed to sync written bytes. A later sync may report success although the bytes are lost."""


class DataFile:
    """The sparse file in ``directory``. A missing file is made."""

    def __init__(self, directory: str) -> None:
        self._file = OwnFile(os.path.join(directory, "rest"), os.O_RDWR | os.O_CREAT)

    def pread(self, offset: int, size: int) -> bytes:
        """Return bytes at an offset; fewer at the end of the file. Raises Closed and OSError."""
        data = self._file.pread(size, offset)
        while len(data) < size:
            more = self._file.pread(size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read bytes at an offset into a buffer, and return their number. Raises Closed and OSError."""
        with self._file.number() as fd:
            return os.preadv(fd, [view], offset) if len(view) else 0

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all bytes at an offset. Raises Closed and OSError (ENOSPC, EDQUOT, EIO)."""
        view = memoryview(data)
        while len(view):
            done = self._file.pwrite(view[:WRITE], offset)
            offset += done
            view = view[done:]

    def sync(self) -> None:
        """Wait until all written bytes are on the disk. Raises SyncFailedError and Closed."""
        with self._file.number() as fd:
            try:
                os.fdatasync(fd)
            except OSError as e:
                raise SyncFailedError(e.errno, e.strerror) from e

    def close(self) -> None:
        """Close the file as soon as no thread is reading or writing it."""
        self._file.close()
