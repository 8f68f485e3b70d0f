"""Which chunks of a blob are there: a header and one byte per chunk, in a file that every process with the blob open
reads and marks.

    present   64 bytes of header: magic (8), version (4), boot id (16), zeros; then one byte per chunk: 0 absent, 1
    present
    synced    the last copy of ``present`` whose chunks had been fsynced before; same format

A byte and not a bit: two processes must not lose each other's marks. By pread and pwrite, never mapped: a page of a
mapping for which the disk has no room, or which it cannot read, kills the process (SIGBUS). What was seen to be there
stays there, so it is remembered, and a warm look is no system call. ``present`` is believed only in the boot that
wrote it, since its pages may have reached the disk before the data's; after a reboot ``synced`` is. Where the system
has no boot id, nobody can tell whether it was rebooted: ``synced`` is believed then, and whoever opens a blob has a
map of its own. OFD locks on the bytes (fcntl(2), "Open file description locks") are the flights of other processes: a
chunk that somebody fetches is locked, and the kernel lets go when that process dies. Threading: marks and looks are
single bytes; no lock is taken. A memory that loses a mark to a race looks again.
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
PAGE: Final = 4096  # marks read at once: fewer are read only where fewer are asked for
FLOCK: Final = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, len, pid


def boot_id() -> bytes:
    """16 bytes that differ from boot to boot (random(4), /proc/sys/kernel/random/boot_id); zeros where there is
    none.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
            return bytes.fromhex(f.read().strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)


def _header(boot: bytes) -> bytes:
    return (MAGIC + struct.pack("<I", VERSION) + boot).ljust(HEADER, b"\0")


class ChunkMap:
    """The map of one blob in ``directory``; opened under the directory's lock. ``chunks`` None: nobody knows yet."""

    def __init__(self, directory: str, chunks: int | None, *, boot: bytes | None = None) -> None:
        self._directory = directory
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
        """Let go of the file, and of its flights; marks stay in it."""
        self._file.close()

    def has(self, first: int, last: int) -> bool:
        """Whether chunks ``first`` to ``last``, both included, are all there."""
        return self.first_missing(first, last) is None

    def first_missing(self, first: int, last: int) -> int | None:
        """The first absent chunk of ``first`` to ``last``, None when all are there."""
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
        """The first chunk of ``first`` to ``last`` that is there, None when none is."""
        at = first
        while at <= last:
            marks = self._look(at, last)
            found = marks.find(b"\1")
            if found >= 0:
                return at + found
            at += len(marks)
        return None

    def _look(self, first: int, last: int) -> bytes:
        """The marks of up to ``PAGE`` chunks from ``first`` on, at least one; what they say is remembered."""
        wanted = min(last + 1 - first, PAGE)
        marks = self._file.pread(wanted, HEADER + first).ljust(wanted, b"\0")
        there = len(marks) - len(marks.lstrip(b"\1"))
        if there:
            self._remember(first, there)
        return marks

    def _remember(self, first: int, count: int) -> None:
        seen = self._seen
        if first <= len(seen):  # of a map of unknown length the beginning is remembered, as far as it has no gap
            seen[first : first + count] = b"\1" * count

    def mark(self, first: int, count: int = 1) -> None:
        """Say that chunks are there; their bytes must have been written before. Raises OSError (ENOSPC, EIO): then
        nobody is told.
        """
        marks = b"\1" * count
        written = self._file.pwrite(marks, HEADER + first)
        self._remember(first, written)
        if written < count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def count(self) -> int:
        """How many chunks are there. Of a map of unknown length only the beginning up to the first gap is counted."""
        if self.chunks is None:
            gap = self.first_missing(0, UNKNOWN_CHUNKS)
            return UNKNOWN_CHUNKS if gap is None else gap
        if self._seen.find(b"\0") < 0:
            return self.chunks
        return self._file.pread(self.chunks, HEADER).count(1)

    def save(self) -> None:
        """Write ``synced``; the data must have been fsynced before."""
        chunks = self.count() if self.chunks is None else self.chunks
        with whole_file(os.path.join(self._directory, "synced")) as f:
            f.write(self._file.pread(HEADER + chunks, 0))

    def try_lock(self, first: int, count: int) -> bool:
        """Take the flight of chunks for this open file; False when another process has one of them."""
        return self._lock(fcntl.F_WRLCK, HEADER + first, count)

    def unlock(self, first: int, count: int) -> None:
        """End the flight of chunks. A file that is closed has none."""
        with suppress(Closed):
            self._lock(fcntl.F_UNLCK, HEADER + first, count)

    def try_lock_stream(self) -> bool:
        """Take the flight of the whole stream: byte 0 of the file stands for it."""
        return self._lock(fcntl.F_WRLCK, 0, 1)

    def unlock_stream(self) -> None:
        """End the flight of the whole stream. A file that is closed has none."""
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
        return False  # no boot id: the map may be of any boot
    try:
        with open(open_file(path), "rb") as f:
            return f.read(HEADER) == _header(boot)
    except FileNotFoundError:
        return False


def _adopt(directory: str, path: str, boot: bytes, length: int) -> None:
    """A fresh map for this boot: what ``synced`` says, else nothing. By rename: a crash leaves the old one, which is
    not believed.
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
