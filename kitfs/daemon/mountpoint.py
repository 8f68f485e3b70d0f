"""Check or make the directory that a kit is mounted on, and lock it while the mount is being made."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from kitfs.errors import MountError

POINT_PATIENCE: Final = 5.0  # seconds to wait for another process that is mounting on the same directory


@dataclass(slots=True)
class CreatedMountpoint:
    """A mount point that this process has claimed.

    ``made`` is True if kitfs made the directory, and ``kept`` if the directory stays after the ``with`` block. ``lock``
    is a descriptor of a lock that prevents daemons with another run-time directory from mounting at the same path.
    """

    made: bool = False
    kept: bool = False
    lock: int = -1

    def unlock(self) -> None:
        """Release the lock. It is not needed after the mount is made, because other processes see the mount."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


@contextmanager
def claim_mountpoint(path: str) -> Iterator[CreatedMountpoint]:
    """Check a mount point or make it, and lock it for a ``with`` block.

    A directory that this function made is removed at the end unless it is ``kept``. Raises MountError if the path
    cannot be a mount point, or if it is a mount point already.
    """
    made = CreatedMountpoint()
    _check_free(path)
    try:
        try:
            info = os.stat(path)
        except FileNotFoundError:
            os.mkdir(path, 0o755)
            made.made = True
        else:
            if not stat.S_ISDIR(info.st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "it is not a directory")
            if os.listdir(path):
                raise OSError(errno.ENOTEMPTY, "the directory is not empty (empty it, or use another directory)")
    except FileNotFoundError:
        parent = os.path.dirname(path)
        why = "a directory cannot be made there" if os.path.isdir(parent) else f"{parent} does not exist"
        raise MountError(f"cannot mount at {path}: {why}", errno=errno.ENOENT)
    except OSError as e:
        raise MountError(f"cannot mount at {path}: {(e.strerror or str(e)).lower()}", errno=e.errno or errno.EIO)
    try:
        made.lock = _locked(path)
        _check_free(path)  # a daemon with another run-time directory may have mounted before the lock was taken
        yield made
    finally:
        made.unlock()
        if made.made and not made.kept:
            try:
                os.rmdir(path)
            except OSError:
                pass  # another program put a file there, or removed the directory


def _check_free(path: str) -> None:
    """Raise MountError if something is mounted at a path."""
    from kitfs.daemon.presence import is_of_kitfs
    from kitfs.fuse.mount_table import mount_at

    there = mount_at(path)
    if there is not None:
        # The mount is not asked for an answer, because a stalled mount would block. This process holds the lock, so a
        # mount of this run-time directory has no daemon any more.
        unknown = f"a kit, but its daemon died or has another --run-dir; unmount it with: kitfs umount {path}"
        what = unknown if is_of_kitfs(there) else there.source
        raise MountError(f"cannot mount at {path}: it is already a mount of {what}", errno=errno.EBUSY)


def _locked(path: str) -> int:
    """Lock a directory with flock, and return the descriptor that holds the lock.

    Returns -1 if the directory cannot be opened, or if its file system has no locks.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1
    deadline = time.monotonic() + POINT_PATIENCE
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                raise MountError(
                    f"cannot mount at {path}: another process is mounting there (try again)", errno=errno.EBUSY
                )
            time.sleep(0.02)
        except OSError:
            os.close(fd)
            return -1
