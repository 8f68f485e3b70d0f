"""The directory that a kit is mounted on: it is checked or made, and locked while the mount is being made. Threading:
no shared state.
"""

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
    """A mount point.

    ``made``: kitfs made the directory. ``kept``: it stays after the block. ``lock`` keeps mounts of other run-time
    directories away.
    """

    made: bool = False
    kept: bool = False
    lock: int = -1

    def unlock(self) -> None:
        """Let other processes use the mount point: they can see what is mounted there now."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


@contextmanager
def claim_mountpoint(path: str) -> Iterator[CreatedMountpoint]:
    """Check a mount point or make it, and lock it for a block. A directory that was made here is removed again unless
    it is ``kept``.

    Raises MountError when the path cannot be a mount point, or something is mounted there.
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
        _check_free(path)  # another run-time directory's mount may have come first
        yield made
    finally:
        made.unlock()
        if made.made and not made.kept:
            try:
                os.rmdir(path)
            except OSError:
                pass  # another program put a file there, or removed the directory


def _check_free(path: str) -> None:
    """Raise MountError when something is mounted at a path."""
    from kitfs.daemon.presence import is_of_kitfs
    from kitfs.fuse.mounting import mount_at

    there = mount_at(path)
    if there is not None:
        # The mount is not asked whether it answers: a stalled one would block. This process holds the lock, so a mount
        # of this run-time directory has no daemon any more.
        unknown = f" whose daemon died, or has another --run-dir; clear it with: kitfs umount {path}"
        hint = unknown if is_of_kitfs(there) else f", of {there.source}"
        raise MountError(f"{path} is already a mount{hint}", errno=errno.EBUSY)


def _locked(path: str) -> int:
    """Return a descriptor that holds a flock on a directory; -1 when the directory cannot be opened or its file system
    has no locks.
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
                    f"cannot mount at {path}: another process is mounting there; try again", errno=errno.EBUSY
                )
            time.sleep(0.02)
        except OSError:
            os.close(fd)
            return -1
