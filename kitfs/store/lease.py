"""Leases on blobs: whoever has a blob open holds a shared flock on its ``lease``; the evictor needs an exclusive one.

The kernel lets go of a lease when its process dies. The file's times are the blob's last use. Threading: a lease belongs to one Blob.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import Final

POLL: Final = 0.002  # seconds between two tries


class Lease:
    """A shared lease on the blob in ``directory``, which is made when missing. Right after it was taken the directory is the live one."""

    def __init__(self, directory: str) -> None:
        path = os.path.join(directory, "lease")
        while True:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            try:
                self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                continue  # evicted between the two lines
            if _shared(self._fd) and _same(self._fd, path):
                os.utime(self._fd)
                return
            os.close(self._fd)
            time.sleep(POLL)  # it is being evicted: begin again. Not waited for: who retired a blob keeps its lease to his end

    def alone(self) -> bool:
        """Make the lease exclusive, if nobody else has one; it stays so."""
        return exclusive(self._fd)

    def close(self) -> None:
        """Give the lease back; now is the blob's last use."""
        try:
            os.utime(self._fd)
        except OSError:
            pass  # a time that is a little old evicts a little early, and that is all
        os.close(self._fd)


def exclusive(fd: int) -> bool:
    """Whether an exclusive lock could be had at once."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _shared(fd: int) -> bool:
    """Whether a shared lock could be had at once."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(fd: int, path: str) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    ours = os.fstat(fd)
    return (there.st_ino, there.st_dev) == (ours.st_ino, ours.st_dev)
