"""Serve a mount over /dev/fuse (the kernel transport), on cloned descriptors if possible.

Threading: ``serve`` runs until the mount has ended; any thread may call the other methods.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from kitfs.errors import MountError
from kitfs.fuse.connection import Connection
from kitfs.fuse.mounting import DEVICE, MountOptions, end_mount, mount_fuse, raise_readahead
from kitfs.metrics import Counters

if TYPE_CHECKING:
    from kitfs.fuse.filesystem import FileSystem

_DEV_IOC_CLONE: Final = 0x8004E500  # FUSE_DEV_IOC_CLONE = _IOR(229, 0, uint32_t)


class KernelTransport:
    """A mount that is served over /dev/fuse."""

    name: Final = "kernel"

    def __init__(
        self,
        filesystem: FileSystem,
        options: MountOptions,
        *,
        counters: Counters,
        log: logging.Logger,
        passthrough: bool = True,
    ) -> None:
        self._filesystem = filesystem
        self._passthrough = passthrough and os.geteuid() == 0  # an ordinary user may not name backing files
        self._options = options
        self._counters = counters
        self._log = log
        self._fd: int | None = None
        self._connection: Connection | None = None

    def __repr__(self) -> str:
        return f"<KernelTransport {self._options.source} on {self._options.mountpoint}>"

    def mount(self) -> None:
        """Make the mount. Its requests wait until ``serve`` is called. Raises MountError."""
        self._fd = mount_fuse(self._options)

    def serve(self, ready: Callable[[], None]) -> None:
        """Serve the mount until it has ended, on this thread and others. ``ready`` is called when the mount is ready.

        Raises MountError if the kernel's protocol is too old.
        """
        if self._fd is None:
            raise MountError(f"cannot serve {self._options.mountpoint}: it is not mounted", errno=errno.EINVAL)
        fd, self._fd = self._fd, None
        fds = [fd]
        try:
            fds += [_cloned(fd) for _ in range(_workers() - 1)]
            self._connection = Connection(
                self._filesystem, fds, counters=self._counters, log=self._log, passthrough=self._passthrough
            )
            self._connection.run(partial(self._answers, ready))
        finally:
            self._connection = None
            for each in set(fds):
                os.close(each)

    def _answers(self, ready: Callable[[], None]) -> None:
        raise_readahead(self._options.mountpoint)
        ready()

    @property
    def native_files(self) -> int:
        """Return how many open files the kernel reads directly from the store (FUSE passthrough)."""
        connection = self._connection
        return 0 if connection is None else connection.native_files

    def known_wrong(self, digest: str) -> None:
        """Ask the kernel to drop the cached pages of a layer whose bytes turned out to be wrong. Returns at once."""
        inodes = self._filesystem.failed(digest)
        connection = self._connection
        if connection is not None and inodes:
            connection.invalidate(inodes)

    def stop(self) -> None:
        """Unmount, or detach the mount if it is in use. ``serve`` returns when the last file is closed."""
        try:
            end_mount(self._options.mountpoint)
        finally:
            if self._fd is not None:  # ``serve`` was never called
                os.close(self._fd)
                self._fd = None


def _workers() -> int:
    return min(4, max(2, os.cpu_count() or 2))


def _cloned(fd: int) -> int:
    """Return another descriptor of the same connection, with a queue of its own.

    If that is not possible, return ``fd`` itself. The workers then share ``fd``.
    """
    try:
        clone = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return fd  # fusermount3 may have opened a device that this user may not open
    try:
        fcntl.ioctl(clone, _DEV_IOC_CLONE, struct.pack("=I", fd))
    except OSError:
        os.close(clone)
        return fd
    return clone
