"""Serve a mount over /dev/fuse (the kernel transport), on cloned descriptors if possible.

The mount outlives this process if another process keeps the descriptors of ``kept`` open. The next process serves the
mount as a ``Held`` connection.

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
from typing import TYPE_CHECKING, Final, NamedTuple

from kitfs.errors import MountError
from kitfs.fuse.connection import Connection, Continued
from kitfs.fuse.mounting import DEVICE, MountOptions, end_mount, mount_fuse, raise_readahead
from kitfs.metrics import Counters

if TYPE_CHECKING:
    from kitfs.fuse.filesystem import FileSystem

_DEV_IOC_CLONE: Final = 0x8004E500  # FUSE_DEV_IOC_CLONE = _IOR(229, 0, uint32_t)


class Held(NamedTuple):
    """A connection of a mount that an earlier process has served: its descriptors, and that of its backing table."""

    fds: tuple[int, ...]
    table: int
    continued: Continued


class KernelTransport:
    """A mount that is served over /dev/fuse.

    ``held`` is the connection of an existing mount. With ``resend=False``, the connection behaves as with a kernel that
    cannot send requests again.
    """

    name: Final = "kernel"

    def __init__(
        self,
        filesystem: FileSystem,
        options: MountOptions,
        *,
        counters: Counters,
        log: logging.Logger,
        passthrough: bool = True,
        resend: bool = True,
        held: Held | None = None,
    ) -> None:
        self._filesystem = filesystem
        self._passthrough = passthrough and os.geteuid() == 0  # an ordinary user may not name backing files
        self._options = options
        self._counters = counters
        self._log = log
        self._resend = resend
        self._held = held
        self._fd: int | None = None if held is None else held.fds[0]
        self._table = -1 if held is None else held.table
        self._connection: Connection | None = None

    def __repr__(self) -> str:
        return f"<KernelTransport {self._options.source} on {self._options.mountpoint}>"

    def mount(self) -> None:
        """Make the mount, unless it exists. Its requests wait until ``serve`` is called. Raises MountError."""
        if self._held is None:
            self._table = os.memfd_create("kitfs-backings", os.MFD_CLOEXEC)
            self._fd = mount_fuse(self._options)

    def serve(self, ready: Callable[[], None]) -> None:
        """Serve the mount until it has ended, on this thread and others. ``ready`` is called when the mount is ready.

        Raises MountError if the kernel's protocol is too old.
        """
        if self._fd is None:
            raise MountError(f"cannot serve {self._options.mountpoint}: it is not mounted", errno=errno.EINVAL)
        fd, self._fd = self._fd, None
        fds = [fd] if self._held is None else [*self._held.fds]
        try:
            fds += [_cloned(fd) for _ in range(_workers() - len(fds))]
            self._connection = Connection(
                self._filesystem, fds, counters=self._counters, log=self._log, table=self._table,
                passthrough=self._passthrough, resend=self._resend,
                continued=None if self._held is None else self._held.continued,
            )  # fmt: skip
            self._connection.run(partial(self._answers, ready))
        finally:
            self._connection = None
            for each in {*fds, self._table}:
                os.close(each)

    def _answers(self, ready: Callable[[], None]) -> None:
        raise_readahead(self._options.mountpoint)
        ready()

    @property
    def kept(self) -> Held | None:
        """Return the connection for the next process, or None if that process could not serve it.

        The descriptors must stay open after this process. Returns None before the mount is ready and after its end.
        """
        connection = self._connection
        if connection is None or connection.agreed is None or not connection.kept:
            return None
        return Held(connection.kept, self._table, Continued(connection.agreed))

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
                for each in (self._fd, self._table):
                    os.close(each)
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
