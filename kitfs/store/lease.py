"""Leases on blobs: a process that has a blob open holds a shared flock on the blob's ``lease`` file, and the evictor
needs an exclusive one.

The kernel releases a lease when its process dies. The times of the lease file are the blob's last use. A blob's
directory is moved away, and its files are made and replaced, only under a flock on the directory itself. The inode of
``lease`` identifies an entry, since another entry of the same digest may have taken its place. Threading: a lease
belongs to one Blob.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from kitfs.errors import Closed, StoreBusy, StoreError
from kitfs.openfile import OpenFile, OwnFile
from kitfs.ownership import make_directories, make_directory

POLL: Final = 0.002  # seconds between two tries
PATIENCE: Final = 20.0  # seconds that another process may hold a lock that it needs for a moment only


class Lease:
    """A shared lease on the blob in ``directory``, open as ``file``; ``take`` takes it.

    While the lease is held the evictor leaves the directory alone. A failed verification may still move it, and so does
    the rename to the place of verified blobs: ``locked`` tells whether it is in its place.
    """

    def __init__(self, directory: str, file: OpenFile) -> None:
        self.directory: Final = directory
        self.file: Final = file

    @classmethod
    def take(cls, directory: str, *, make: bool) -> Lease | None:
        """Take a lease on a blob; with ``make`` its directory is made when it is missing, else None is returned.

        Raises StoreBusy when another process does not finish evicting the blob, OSError.
        """
        path = os.path.join(directory, "lease")
        deadline = time.monotonic() + PATIENCE
        while True:
            if make:
                _make(directory)
            try:
                file: OpenFile = OwnFile(path, os.O_RDWR | os.O_CREAT)
            except FileNotFoundError:
                if make:
                    continue  # the directory was evicted between the two lines
                return None
            if _shared(file) and same(file, path):
                file.touch()
                return cls(directory, file)
            file.close()
            if not make and not os.path.exists(path):
                return None
            if time.monotonic() > deadline:
                raise StoreBusy(f"another process is evicting {directory} and does not finish")
            # The directory is being evicted. Poll rather than block: a process that retired a corrupt blob holds its
            # lease until it exits.
            time.sleep(POLL)

    def alone(self) -> bool:
        """Make the lease exclusive for good, unless another process holds one; returns whether it is exclusive."""
        return exclusive(self.file)

    def close(self) -> None:
        """Release the lease, and record now as the blob's last use."""
        try:
            self.file.touch()
        except (Closed, OSError):
            pass  # an older time only means that the blob is evicted a little early
        release(self.file)


@contextmanager
def locked(directory: str, lease: OpenFile | None) -> Iterator[bool]:
    """Lock a blob's directory for a block; yields whether it is the entry whose lease is open as ``lease`` (None: any
    entry will do).

    The entry stays in its place while the lock is held. Raises StoreBusy when another process, which may be stopped,
    does not release the lock.
    """
    try:
        entry = OpenFile(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield False
        return
    try:
        deadline = time.monotonic() + PATIENCE
        while not exclusive(entry):
            if time.monotonic() > deadline:
                raise StoreBusy(f"another process has locked {directory} and does not release it")
            time.sleep(POLL)
        yield same(entry, directory) if lease is None else same(lease, os.path.join(directory, "lease"))
    finally:
        release(entry)


def hold_sealed(directory: str, *, touch: bool = True) -> OpenFile | None:
    """Take a shared lease on a blob that is whole and verified; the caller releases it. None when there is no such
    blob. Without ``touch`` this does not count as a use of the blob.

    Raises StoreError when the process has no descriptor left.
    """
    try:
        lease = OwnFile(os.path.join(directory, "lease"), os.O_RDWR)
    except OSError as e:
        check_descriptors(e)
        return None
    try:
        lease.flock(fcntl.LOCK_SH | fcntl.LOCK_NB)
        if same(lease, os.path.join(directory, "lease")) and os.path.exists(os.path.join(directory, "sealed")):
            if touch:
                lease.touch()  # an evictor that has already chosen the blob sees that it was used since
            return lease
    except OSError:
        pass  # it is being evicted
    release(lease)
    return None


def release(held: OpenFile) -> None:
    """Release a lock and close its file. Closing alone is not enough: a child that was forked a moment ago may still
    have its copy open.
    """
    try:
        held.flock(fcntl.LOCK_UN)
    except (Closed, OSError):
        pass  # in a forked child, whose copy is closed
    held.close()


def check_descriptors(error: OSError) -> None:
    """Raise StoreError when a file could not be opened because the process, or the system, has no descriptor left.

    Such an error does not tell whether the file exists. A caller that took the file for missing would refuse, forget
    or evict a blob that exists.
    """
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise StoreError(f"the store cannot be read: {(error.strerror or str(error)).lower()}") from error


def exclusive(file: OpenFile) -> bool:
    """Try to take an exclusive lock without waiting; returns whether it was taken."""
    return _flock(file, fcntl.LOCK_EX)


def _shared(file: OpenFile) -> bool:
    return _flock(file, fcntl.LOCK_SH)


def _flock(file: OpenFile, operation: int) -> bool:
    try:
        file.flock(operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make(directory: str) -> None:
    """Make a directory and its parents. ``os.makedirs`` does not work here: when the directory is removed just after
    its mkdir failed with EEXIST, it reports a file in the way.
    """
    try:
        make_directory(directory)
    except FileExistsError:
        pass
    except FileNotFoundError:
        make_directories(os.path.dirname(directory))


def same(file: OpenFile, path: str) -> bool:
    """Tell whether an open file is the one that ``path`` leads to."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    ours = file.stat()
    return (there.st_ino, there.st_dev) == (ours.st_ino, ours.st_dev)
