"""Leases on blobs: whoever has a blob open holds a shared flock on its ``lease``; the evictor needs an exclusive one.

The kernel lets go of a lease when its process dies. The file's times are the blob's last use. A blob's directory is
moved away, and its files are made and replaced, under a flock on the directory itself; which entry it is, is told by
the inode of its ``lease``, since another may have come in its place. Threading: a lease belongs to one Blob.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from kitfs.errors import Closed, StoreError
from kitfs.openfile import OpenFile, OwnFile
from kitfs.ownership import make_directories, make_directory

POLL: Final = 0.002  # seconds between two tries


class Lease:
    """A shared lease on the blob in ``directory``, which is made when missing. Right after it was taken the directory
    is the live one.

    No evictor moves it away from then on; one who finds the blob to be wrong does, so that whoever touches its files
    asks ``entry``.
    """

    def __init__(self, directory: str) -> None:
        self.directory: Final = directory
        path = os.path.join(directory, "lease")
        while True:
            _make(directory)
            try:
                self.file: OpenFile = OwnFile(path, os.O_RDWR | os.O_CREAT)
            except FileNotFoundError:
                continue  # evicted between the two lines
            if _shared(self.file) and same(self.file, path):
                self.file.touch()
                return
            self.file.close()
            time.sleep(
                POLL
            )  # it is being evicted: begin again. Not waited for: who retired a blob keeps its lease to his end

    def entry(self) -> AbstractContextManager[bool]:
        """The lock of the directory; whether what is there is still the leased entry."""
        return locked(self.directory, self.file)

    def alone(self) -> bool:
        """Make the lease exclusive, if nobody else has one; it stays so."""
        return exclusive(self.file)

    def close(self) -> None:
        """Give the lease back; now is the blob's last use."""
        try:
            self.file.touch()
        except (Closed, OSError):
            pass  # a time that is a little old evicts a little early, and that is all
        release(self.file)


@contextmanager
def locked(directory: str, lease: OpenFile | None) -> Iterator[bool]:
    """The lock of a blob's directory; whether what is there is the entry whose lease is open as ``lease`` (None:
    whichever it is).

    It stays there as long as the lock is held.
    """
    try:
        entry = OpenFile(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield False
        return
    try:
        entry.flock(fcntl.LOCK_EX)
        yield same(entry, directory) if lease is None else same(lease, os.path.join(directory, "lease"))
    finally:
        release(entry)


def release(held: OpenFile) -> None:
    """Give a lock back, and close its file: a child that forked meanwhile may not have closed its copy yet."""
    try:
        held.flock(fcntl.LOCK_UN)
    except (Closed, OSError):
        pass  # in a child, whose copy is closed
    held.close()


def check_descriptors(error: OSError) -> None:
    """Raise StoreError when a file could not be opened because the process, or the system, has no descriptor left.

    Then nobody knows whether the file exists; a caller that took it for missing would refuse, forget or evict what is
    there.
    """
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise StoreError(f"the store cannot be read: {(error.strerror or str(error)).lower()}") from error


def exclusive(file: OpenFile) -> bool:
    """Whether an exclusive lock could be had at once."""
    try:
        file.flock(fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make(directory: str) -> None:
    """Not os.makedirs: it takes a directory that goes away after mkdir met it for a file in the way."""
    try:
        make_directory(directory)
    except FileExistsError:
        pass
    except FileNotFoundError:
        make_directories(os.path.dirname(directory))


def _shared(file: OpenFile) -> bool:
    """Whether a shared lock could be had at once."""
    try:
        file.flock(fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def same(file: OpenFile, path: str) -> bool:
    """Whether an open file is the one that a path leads to."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    ours = file.stat()
    return (there.st_ino, there.st_dev) == (ours.st_ino, ours.st_dev)
