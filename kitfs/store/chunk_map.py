"""Which chunks of a blob are stored: a header and one byte per chunk, in a file that every process with the blob open
reads and marks.

    present   64 bytes of header: magic (8), version (4), boot id (16), zeros; then one byte per chunk: 0 absent,
              1 present
    synced    the last copy of ``present`` whose chunks had been fsynced before; same format

It has a byte and not a bit per chunk, so that two processes cannot lose each other's marks. It is read and written by
pread and pwrite and never mapped: a page of a mapping for which the disk has no room, or which the disk cannot read,
kills the process (SIGBUS). A stored chunk stays stored, so marks are remembered, and a warm lookup makes no system
call.

``present`` is trusted only in the boot that wrote it, since its pages may have reached the disk before the data; after
a reboot ``synced`` is trusted instead. On a system without a boot id a reboot cannot be recognized: ``synced`` is
trusted then, and every opening has a map of its own.

OFD locks on the bytes (fcntl(2), "Open file description locks") show other processes which chunks are being fetched. A
chunk being fetched is locked; the kernel releases the lock if its process dies. Threading: marks and lookups are single
bytes and take no lock. If a race loses a remembered mark, the file is read again.
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
UNKNOWN_CHUNKS: Final = 1 << 23  # chunks that a blob of unknown size may have; the file is sparse
PAGE: Final = 4096  # marks read at once, at most
FLOCK: Final = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, len, pid


def boot_id() -> bytes:
    """Return 16 bytes that differ from boot to boot (random(4), /proc/sys/kernel/random/boot_id); zeros on a system
    without one.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
            return bytes.fromhex(f.read().strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


def _header(boot: bytes) -> bytes:
    return (MAGIC + struct.pack("<I", VERSION) + boot).ljust(HEADER, b"\0")


class ChunkMap:
    """The map of one blob in ``directory``; opened under the directory's lock. ``chunks`` is None while the size is not
    known.
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

    def close(self) -> None:
        """Close the file and release its locks; the marks stay in it."""
        self._file.close()

    def has(self, first: int, last: int) -> bool:
        """Tell whether the chunks ``first`` to ``last``, both included, are all stored."""
        return self.first_missing(first, last) is None

    def first_missing(self, first: int, last: int) -> int | None:
        """Return the first absent chunk of ``first`` to ``last``; None when all are stored."""
        seen = self._seen
        at = seen.find(b"\0", first, last + 1)
        if at < 0:
            if last < len(seen):
                return None
            at = max(first, len(seen))
        while at <= last:
            marks = self._look(at, last)
            gap = marks.find(b"\0")
            if gap >= 0:
                return at + gap
            at += len(marks)
        return None

    def first_present(self, first: int, last: int) -> int | None:
        """Return the first stored chunk of ``first`` to ``last``; None when none is stored."""
        at = first
        while at <= last:
            marks = self._look(at, last)
            found = marks.find(b"\1")
            if found >= 0:
                return at + found
            at += len(marks)
        return None

    def _look(self, first: int, last: int) -> bytes:
        """Read the marks of up to ``PAGE`` chunks from ``first`` on, at least one, and remember them."""
        wanted = min(last + 1 - first, PAGE)
        marks = self._file.pread(wanted, HEADER + first).ljust(wanted, b"\0")
        there = len(marks) - len(marks.lstrip(b"\1"))
        if there:
            self._remember(first, there)
        return marks

    def _remember(self, first: int, count: int) -> None:
        seen = self._seen
        if first <= len(seen):  # for a blob of unknown size only the marks before the first gap are remembered
            seen[first : first + count] = b"\1" * count

    def mark(self, first: int, count: int = 1) -> None:
        """Mark chunks as stored; their bytes must have been written before. Raises OSError (ENOSPC, EIO); no other
        process sees the marks then.
        """
        marks = b"\1" * count
        written = self._file.pwrite(marks, HEADER + first)
        self._remember(first, written)
        if written < count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def count(self) -> int:
        """Return how many chunks are stored. For a blob of unknown size only those before the first absent one are
        counted.
        """
        if self.chunks is None:
            gap = self.first_missing(0, UNKNOWN_CHUNKS)
            return UNKNOWN_CHUNKS if gap is None else gap
        if self._seen.find(b"\0") < 0:
            return self.chunks
        return self._file.pread(self.chunks, HEADER).count(1)

    def marks(self) -> bytes:
        """Return the marks as they are now, for ``save``: read them first, fsync the data, then save them."""
        return self._file.pread(HEADER + (self.count() if self.chunks is None else self.chunks), 0)

    def save(self, directory: str, marks: bytes) -> None:
        """Write ``synced`` in the entry's directory, with marks whose data was fsynced since they were read. Raises
        OSError.
        """
        with whole_file(os.path.join(directory, "synced")) as f:
            f.write(marks)

    def try_lock(self, first: int, count: int) -> bool:
        """Lock chunks that are to be fetched; False when another process has locked one of them."""
        return self._lock(fcntl.F_WRLCK, HEADER + first, count)

    def unlock(self, first: int, count: int) -> None:
        """Release the lock of chunks. A file that is closed has none."""
        with suppress(Closed):
            self._lock(fcntl.F_UNLCK, HEADER + first, count)

    def try_lock_stream(self) -> bool:
        """Lock the stream of the whole blob: byte 0 of the file stands for it. False when another process has it."""
        return self._lock(fcntl.F_WRLCK, 0, 1)

    def unlock_stream(self) -> None:
        """Release the lock of the stream. A file that is closed has none."""
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
        return False  # without a boot id the map may be of any boot
    try:
        with open(open_file(path), "rb") as f:
            return f.read(HEADER) == _header(boot)
    except FileNotFoundError:
        return False


def _adopt(directory: str, path: str, boot: bytes, length: int) -> None:
    """Make a map for this boot with the marks of ``synced``, by rename: a crash leaves the old map, which is not
    trusted.
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
