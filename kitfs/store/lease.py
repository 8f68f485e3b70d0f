"""Lease blobs: a process that has a blob open holds a shared flock on the blob's ``lease`` file.

To evict a blob, a process needs an exclusive flock on that file. The kernel releases a lease when its process dies. The
times of the lease file record the blob's last use. A blob's directory is moved, and its files are made and replaced,
only under a flock on the directory itself. An entry is the directory of a blob. The inode of its lease file identifies
the entry, because another entry of the same digest may replace it. Threading: a lease belongs to one Blob.
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

POLL: Final = 0.002  # seconds between two attempts
CONDEMNED: Final = 0o100  # a bit of the mode of a lease file
PATIENCE: Final = 20.0  # seconds to wait for a lock that processes normally hold only for a moment


class Lease:
    """A shared lease on the blob in ``directory``. ``file`` is the open lease file.

    While the lease is held, the blob is not evicted. The directory may still be moved: to the place of verified blobs,
    or into the trash after a failed verification. ``locked`` reports whether the directory is in its place.
    """

    def __init__(self, directory: str, file: OpenFile) -> None:
        self.directory: Final = directory
        self.file: Final = file

    @classmethod
    def take(cls, directory: str, *, make: bool) -> Lease | None:
        """Take a lease on a blob. Without ``make``, return None if the directory is missing; with ``make``, make it.

        Raises OSError, and StoreBusy if another process is evicting the blob and does not finish.
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
                    continue  # the directory was evicted between the two calls
                return None
            if _shared(file) and same(file, path):
                file.touch()
                return cls(directory, file)
            file.close()
            if not make and not os.path.exists(path):
                return None
            if time.monotonic() > deadline:
                raise StoreBusy(f"another process is evicting {directory} and does not finish")
            # The directory is being evicted. Poll instead of blocking, because a process that has retired a corrupt
            # blob holds its lease until it exits.
            time.sleep(POLL)

    @property
    def condemned(self) -> bool:
        """Return whether a process has marked the bytes of the entry as wrong or lost. Raises Closed."""
        return bool(self.file.stat().st_mode & CONDEMNED)

    def alone(self) -> bool:
        """Make the lease exclusive if no other process has a lease; return whether it is exclusive now."""
        return exclusive(self.file)

    def close(self) -> None:
        """Release the lease, and record the current time as the blob's last use."""
        try:
            self.file.touch()
        except (Closed, OSError):
            pass  # with an older time, the blob may only be evicted a little too early
        release(self.file)


@contextmanager
def locked(directory: str, lease: OpenFile | None) -> Iterator[bool]:
    """Lock a blob's directory for a ``with`` block; yield whether the directory is the entry that ``lease`` belongs to.

    ``lease`` is an open lease file; None accepts any entry. The entry stays in its place while the lock is held. Raises
    StoreBusy if another process, which may be stopped, does not release the lock.
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
    """Take a shared lease on a verified blob, and return it. Returns None if the directory has no verified blob.

    The caller must release the lease. If ``touch`` is False, the blob's last use is not updated. Raises StoreError if
    the process has no descriptor left.
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
                lease.touch()  # a process that has already chosen the blob for eviction sees that it is in use
            return lease
    except OSError:
        pass  # the blob is being evicted
    release(lease)
    return None


def condemn(lease: OpenFile) -> None:
    """Mark the bytes of an entry as wrong or lost, for all processes that have the entry open (``Lease.condemned``).

    The mark is a mode of the lease file, because changing a mode needs no space on a full disk. Raises OSError and
    Closed.
    """
    with lease.number() as fd:
        os.fchmod(fd, 0o600 | CONDEMNED)


def release(held: OpenFile) -> None:
    """Release a lock and close its file.

    Closing alone would not release the lock, because a child that was just forked may still have its copy open.
    """
    try:
        held.flock(fcntl.LOCK_UN)
    except (Closed, OSError):
        pass  # this is a forked child, whose copy is closed
    held.close()


def check_descriptors(error: OSError) -> None:
    """Raise StoreError if a file could not be opened because the process or the system has no descriptor left.

    The file may exist in that case. A caller that treated it as missing would refuse or evict a blob that exists.
    """
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise StoreError(f"the store cannot be read: {(error.strerror or str(error)).lower()}") from error


def exclusive(file: OpenFile) -> bool:
    """Try to take an exclusive lock without waiting; return whether that succeeded."""
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
    """Make a directory and its parents, even if other processes remove them meanwhile.

    ``os.makedirs`` cannot be used: if a directory is removed just after mkdir has failed with EEXIST, it raises an
    error as if a file were in the way.
    """
    try:
        make_directory(directory)
    except FileExistsError:
        pass
    except FileNotFoundError:
        make_directories(os.path.dirname(directory))


def same(file: OpenFile, path: str) -> bool:
    """Return whether an open file is the file at ``path``."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    ours = file.stat()
    return (there.st_ino, there.st_dev) == (ours.st_ino, ours.st_dev)
