"""Record which chunks of a blob are stored, in a file that all processes share.

    present   64 bytes of header: magic (8), version (4), boot id (16), zeros; then a *mark* for each chunk, which is a
              byte: 0 absent, 1 present
    synced    an older copy of ``present``, in the same format; all chunks that are marked in it were fsynced

A mark is a byte and not a bit, so that two processes cannot overwrite each other's marks. The file is read and written
by pread and pwrite and is never mapped: a mapped page kills the process (SIGBUS) if the disk cannot read it or has no
space for it. A stored chunk stays stored, so marks are cached in memory, and looking up a cached mark makes no system
call.

``present`` is trusted only until the next boot, because its pages may have reached the disk before the data. After a
reboot, ``synced`` is trusted instead. On a system without a boot id, a reboot cannot be recognized: ``synced`` is
trusted, and every opening has a map of its own.

OFD locks on the marks (fcntl(2), "Open file description locks") show other processes which chunks are being fetched.
The kernel releases a lock if its process dies. Threading: setting and reading a mark takes no lock, because a mark is a
single byte. If a race loses a mark in the cache, the file is read again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from contextlib import suppress
from typing import Final

from kitfs.errors import Closed
from kitfs.openfile import OwnFile
from kitfs.ownership import open_file
from kitfs.store.durable import whole_file

MAGIC: Final = b"KITFSMAP"
VERSION: Final = 1
HEADER: Final = 64
UNKNOWN_CHUNKS: Final = 1 << 23  # the limit for chunks of a blob of unknown size; the file is sparse
PAGE: Final = 4096  # the largest number of marks that are read at once
FLOCK: Final = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, len, pid


def boot_id() -> bytes:
    """Return 16 bytes that differ from boot to boot (random(4), /proc/sys/kernel/random/boot_id).

    On a system without a boot id, the bytes are zeros.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
            return bytes.fromhex(f.read().strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


def _header(boot: bytes) -> bytes:
    return (MAGIC + struct.pack("<I", VERSION) + boot).ljust(HEADER, b"\0")


class ChunkMap:
    """The chunk map of the blob in ``directory``. The caller must hold the directory's lock when it opens the map.

    ``chunks`` is the number of chunks, or None while the size of the blob is unknown.
    """

    def __init__(self, directory: str, chunks: int | None, *, boot: bytes | None = None) -> None:
        self._boot = boot_id() if boot is None else boot
        self.chunks = chunks
        length = HEADER + (UNKNOWN_CHUNKS if chunks is None else chunks)
        path = os.path.join(directory, "present")
        if not _trusted(path, self._boot):
            _adopt(directory, path, self._boot, length)
        self._file = OwnFile(path, os.O_RDWR)
        if self._file.stat().st_size < length:
            with self._file.number() as fd:
                os.ftruncate(fd, length)
        self._seen = bytearray(length - HEADER if chunks is not None else 0)
        self._held = bytearray(len(self._seen))  # 1 for each chunk that this object has locked

    def close(self) -> None:
        """Close the file, which releases its locks."""
        self._file.close()

    def has(self, first: int, last: int) -> bool:
        """Return whether all chunks from ``first`` to ``last``, inclusive, are stored."""
        return self.first_missing(first, last) is None

    def first_missing(self, first: int, last: int) -> int | None:
        """Return the first absent chunk from ``first`` to ``last``, inclusive; None if all are stored."""
        seen = self._seen
        at = seen.find(b"\0", first, last + 1)
        if at < 0:
            if last < len(seen):
                return None
            at = max(first, len(seen))
        elif self._held[at]:
            return at  # absent, because no other process may store it now, and ``try_lock`` has read its mark
        while at <= last:
            marks = self._look(at, last)
            gap = marks.find(b"\0")
            if gap >= 0:
                return at + gap
            at += len(marks)
        return None

    def first_present(self, first: int, last: int) -> int | None:
        """Return the first stored chunk from ``first`` to ``last``, inclusive; None if all are absent."""
        at = first
        while at <= last:
            marks = self._look(at, last)
            found = marks.find(b"\1")
            if found >= 0:
                return at + found
            at += len(marks)
        return None

    def first_known(self, first: int, last: int) -> int | None:
        """Return the first chunk from ``first`` to ``last``, inclusive, that is stored according to the cache.

        The result is None if no such chunk is known. The file is not read. The caller must have locked the chunks,
        because ``try_lock`` caches their marks.
        """
        if self.chunks is None:
            return self.first_present(first, last)
        at = self._seen.find(b"\1", first, last + 1)
        return None if at < 0 else at

    def _look(self, first: int, last: int) -> bytes:
        """Read the marks of at least one and at most ``PAGE`` chunks from ``first`` on, and cache them."""
        wanted = min(last + 1 - first, PAGE)
        marks = self._file.pread(wanted, HEADER + first).ljust(wanted, b"\0")
        there = len(marks) - len(marks.lstrip(b"\1"))
        if there:
            self._remember(first, there)
        return marks

    def _remember(self, first: int, count: int) -> None:
        seen = self._seen
        if first <= len(seen):  # for a blob of unknown size, only the marks before the first gap are cached
            seen[first : first + count] = b"\1" * count

    def mark(self, first: int, count: int = 1) -> None:
        """Mark chunks as stored. Their bytes must have been written before.

        Raises OSError (ENOSPC, EIO); other processes do not see the marks in that case.
        """
        marks = b"\1" * count
        written = self._file.pwrite(marks, HEADER + first)
        self._remember(first, written)
        if written < count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def count(self) -> int:
        """Return how many chunks are stored.

        For a blob of unknown size, only the chunks before the first absent chunk are counted.
        """
        if self.chunks is None:
            gap = self.first_missing(0, UNKNOWN_CHUNKS)
            return UNKNOWN_CHUNKS if gap is None else gap
        if self._seen.find(b"\0") < 0:
            return self.chunks
        return self._file.pread(self.chunks, HEADER).count(1)

    def marks(self) -> bytes:
        """Return the current marks for ``save``. The caller must fsync the data between ``marks`` and ``save``."""
        return self._file.pread(HEADER + (self.count() if self.chunks is None else self.chunks), 0)

    def save(self, directory: str, marks: bytes) -> None:
        """Write the file ``synced`` in the entry's directory.

        ``marks`` is a result of the method ``marks``, and the data must have been fsynced after that call. Raises
        OSError.
        """
        with whole_file(os.path.join(directory, "synced")) as f:
            f.write(marks)

    def try_lock(self, first: int, count: int) -> bool:
        """Lock chunks before they are fetched. Returns False if another process has locked any of them.

        The marks that other processes have set are cached, and the marks of locked chunks are not read again.
        """
        if not self._lock(fcntl.F_WRLCK, HEADER + first, count):
            return False
        if self.chunks is not None:
            marks = self._file.pread(count, HEADER + first)
            for at in range(first, first + len(marks)) if b"\1" in marks else ():
                if marks[at - first]:
                    self._seen[at] = 1
            self._held[first : first + count] = b"\1" * count
        return True

    def unlock(self, first: int, count: int) -> None:
        """Release the lock of chunks. Does nothing if the file is closed."""
        if self.chunks is not None:
            self._held[first : first + count] = bytes(count)
        with suppress(Closed):
            self._lock(fcntl.F_UNLCK, HEADER + first, count)

    def try_lock_stream(self) -> bool:
        """Lock the stream of the whole blob, by a lock on byte 0. Returns False if another process has locked it."""
        return self._lock(fcntl.F_WRLCK, 0, 1)

    def unlock_stream(self) -> None:
        """Release the lock of the stream. Does nothing if the file is closed."""
        with suppress(Closed):
            self._lock(fcntl.F_UNLCK, 0, 1)

    def _lock(self, kind: int, start: int, length: int) -> bool:
        try:
            with self._file.number() as fd:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(FLOCK, kind, os.SEEK_SET, start, length, 0))
        except OSError as e:
            if e.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True


def _trusted(path: str, boot: bytes) -> bool:
    if not any(boot):
        return False  # without a boot id, the map may be from an earlier boot
    try:
        with open(open_file(path), "rb") as f:
            return f.read(HEADER) == _header(boot)
    except FileNotFoundError:
        return False


def _adopt(directory: str, path: str, boot: bytes, length: int) -> None:
    """Make a map for this boot with the marks of ``synced``, and rename it into place.

    A crash before the rename leaves the old map, which is not trusted.
    """
    marks = b""
    try:
        with open(open_file(os.path.join(directory, "synced")), "rb") as f:
            if f.read(12) == _header(boot)[:12]:
                f.seek(HEADER)
                marks = f.read(length - HEADER)
    except FileNotFoundError:
        pass
    with whole_file(path, durable=False) as f:
        f.write(_header(boot))
        f.write(marks.translate(bytes([0]) + b"\1" + bytes(254)))
        f.truncate(length)
