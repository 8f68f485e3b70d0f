"""Wait for the end of a mount, and unmount on a signal.

Threading: the main thread waits. The transport has a thread of its own, and any thread may call ``Shutdown.sealed``.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from kitfs.errors import MountError

if TYPE_CHECKING:
    from kitfs.fuse.kernel import Held
    from kitfs.fuse.mount_table import MountInfo

GRACE: Final = 10.0  # seconds: after a signal, a mount that is in use for so long is detached lazily


class Transport(Protocol):
    """The methods of a transport that a daemon uses."""

    @property
    def name(self) -> str: ...

    def mount(self) -> None: ...

    def serve(self, ready: Callable[[], None]) -> None: ...

    def known_wrong(self, digest: str) -> None: ...

    @property
    def kept(self) -> Held | None: ...

    @property
    def native_files(self) -> int: ...


class Shutdown:
    """The end of a mount: another process unmounts it, or this process receives SIGTERM or SIGINT.

    On a signal, the mount is unmounted at once, or lazily after ``GRACE`` seconds if it is in use.
    """

    def __init__(self, mountpoint: str, log: logging.Logger) -> None:
        self._mountpoint = mountpoint
        self._log = log
        self._wake = threading.Event()
        self._signal: int | None = None
        self._signal_out, self._signal_in = os.pipe()
        self._failure: BaseException | None = None
        self._serving = threading.Event()
        self._mount: MountInfo | None = None
        self.is_sealed = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, frame: object) -> None:
        self._signal = number
        self._wake.set()
        os.write(self._signal_in, b"\0")

    def watch(self, transport: Transport, *, there: MountInfo | None = None) -> MountInfo:
        """Run the transport on a thread of its own, and return the mount when it is ready.

        ``there`` is the mount if it existed before. It may have been unmounted meanwhile. Raises the error of a
        transport that fails before the mount is ready.
        """
        from kitfs.fuse.mount_table import FSTYPE, mount_at

        answering = threading.Event()

        def run() -> None:
            try:
                transport.serve(answering.set)
            except BaseException as e:  # noqa: BLE001 - the main thread raises the error
                self._failure = e
            finally:
                self._serving.clear()
                answering.set()
                self._wake.set()

        self._serving.set()
        threading.Thread(target=run, name="kitfs-transport", daemon=True).start()
        answering.wait()
        if self._failure is not None:
            raise self._failure
        if there is not None:
            self._mount = there
            return there
        there = mount_at(self._mountpoint)
        if there is None or there.fstype != FSTYPE or (not self._serving.is_set() and self._signal is None):
            raise self._gone()
        self._mount = there
        return there

    def sealed(self, there: MountInfo) -> None:
        """Record that a sealed mount replaced the transport's mount, so that ``stay`` waits for its end."""
        self.is_sealed = True
        self._mount = there

    def check(self) -> None:
        """Raise MountError if the mount is no longer at its mount point."""
        if not self._is_there():
            raise self._gone()

    def _gone(self) -> MountError:
        return MountError(f"{self._mountpoint} was unmounted, or covered by another mount, before the mount was ready")

    def _is_there(self) -> bool:
        """Return whether this mount is the topmost mount at its mount point.

        Until this mount is seen in the mount table, any mount at the mount point counts as this mount.
        """
        from kitfs.fuse.mount_table import mount_at

        there = mount_at(self._mountpoint)
        return there is not None and (self._mount is None or there.number == self._mount.number)

    def wait(self) -> None:
        """Wait until the transport has ended or a signal arrives. Raises the error of a transport that failed."""
        self._wake.wait()
        if self._failure is not None and self._signal is None:
            raise self._failure

    def stay(self) -> None:
        """Wait until a sealed mount has ended or a signal arrives. The mount table is read whenever it changes."""
        with open("/proc/self/mountinfo", "rb") as table:
            poll = select.poll()
            poll.register(table, select.POLLERR | select.POLLPRI)
            poll.register(self._signal_out, select.POLLIN)
            while self._signal is None and self._mount_exists():
                poll.poll()

    def _mount_exists(self) -> bool:
        """Return whether this mount is at its mount point, even if other mounts cover it."""
        from kitfs.fuse.mount_table import mounts

        wanted = None if self._mount is None else (self._mount.number, self._mount.dev)
        return any((m.number, m.dev) == wanted and m.mountpoint == self._mountpoint for m in mounts())

    def finish(self) -> None:
        """Unmount if a signal has arrived. Raises the error of a transport that failed."""
        if self._signal is not None and self._has_mount():
            self._log.info("%s: unmounting", signal.Signals(self._signal).name)
            self.detach()
        if self._failure is not None:
            raise self._failure

    def _has_mount(self) -> bool:
        """Return whether this process must unmount. It unmounts a sealed mount only after a signal."""
        return self._signal is not None if self.is_sealed else self._serving.is_set()

    def detach(self) -> None:
        """Unmount as soon as no program uses the mount, or lazily after ``GRACE`` seconds.

        Does nothing if the mount is unmounted already.
        """
        from kitfs.fuse.mounting import unmount

        deadline = time.monotonic() + GRACE
        while self._has_mount() and self._is_there():
            lazy = time.monotonic() > deadline
            try:
                unmount(self._mountpoint, lazy=lazy)
                if lazy:
                    self._log.warning("detached %s lazily because it is still in use", self._mountpoint)
                break
            except MountError as e:
                if e.errno != errno.EBUSY:
                    self._log.warning("%s", e)
                    break
            time.sleep(0.1)
