"""Wait for the end of a mount, and bring it about on a signal.

Threading: the main thread waits; the transport has a thread of its own, and any thread may announce a sealed mount.
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
    from kitfs.fuse.mounting import MountInfo

GRACE: Final = 10.0  # seconds that SIGTERM waits for programs that use the mount, before it detaches lazily


class Transport(Protocol):
    """The methods of a transport that a daemon uses."""

    @property
    def name(self) -> str: ...

    def mount(self) -> None: ...

    def serve(self, ready: Callable[[], None]) -> None: ...

    def known_wrong(self, digest: str) -> None: ...

    @property
    def native_files(self) -> int: ...


class Shutdown:
    """Waits for the end of a mount: an unmount by another process, or SIGTERM or SIGINT.

    A signal unmounts at once, or lazily after ``GRACE`` seconds if the mount is in use.
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

    def watch(self, transport: Transport) -> MountInfo:
        """Run the transport on its thread, and return the mount when it answers. Raises the error that ended the
        transport before.
        """
        from kitfs.fuse.mounting import FSTYPE, mount_at

        answering = threading.Event()

        def run() -> None:
            try:
                transport.serve(answering.set)
            except BaseException as e:  # noqa: BLE001 - handed to the main thread, which raises it
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
        there = mount_at(self._mountpoint)
        if there is None or there.fstype != FSTYPE or (not self._serving.is_set() and self._signal is None):
            raise self._gone()
        self._mount = there
        return there

    def sealed(self, there: MountInfo) -> None:
        """Take a sealed mount for the one that is waited for, in place of the transport's mount if there was one."""
        self.is_sealed = True
        self._mount = there

    def check(self) -> None:
        """Raise MountError when the mount is not at its mount point any more."""
        if not self._is_there():
            raise self._gone()

    def _gone(self) -> MountError:
        return MountError(f"{self._mountpoint} was unmounted, or something was mounted over it, before it answered")

    def _is_there(self) -> bool:
        """Tell whether the mount point leads to this mount, and not to another that came after it. A mount that was
        never seen counts as this one.
        """
        from kitfs.fuse.mounting import mount_at

        there = mount_at(self._mountpoint)
        return there is not None and (self._mount is None or there.number == self._mount.number)

    def wait(self) -> None:
        """Return when the transport has ended, or on a signal. Raises the error that broke the transport."""
        self._wake.wait()
        if self._failure is not None and self._signal is None:
            raise self._failure

    def stay(self) -> None:
        """Return when a sealed mount has ended, or on a signal. It is looked for when the table of mounts changes."""
        with open("/proc/self/mountinfo", "rb") as table:
            poll = select.poll()
            poll.register(table, select.POLLERR | select.POLLPRI)
            poll.register(self._signal_out, select.POLLIN)
            while self._signal is None and self._mount_exists():
                poll.poll()

    def _mount_exists(self) -> bool:
        """Tell whether this mount is at its mount point, perhaps covered by another one."""
        from kitfs.fuse.mounting import mounts

        wanted = None if self._mount is None else (self._mount.number, self._mount.dev)
        return any((m.number, m.dev) == wanted and m.mountpoint == self._mountpoint for m in mounts())

    def finish(self) -> None:
        """After a signal, unmount. Raises the error that broke the transport."""
        if self._signal is not None and self._has_mount():
            self._log.info("%s: unmounting", signal.Signals(self._signal).name)
            self.detach()
        if self._failure is not None:
            raise self._failure

    def _has_mount(self) -> bool:
        """Tell whether this process still has a mount to end. A sealed one stays unless a signal asks for its end."""
        return self._signal is not None if self.is_sealed else self._serving.is_set()

    def detach(self) -> None:
        """Unmount as soon as no program uses the mount, and lazily after ``GRACE`` seconds.

        Does nothing when it is unmounted already.
        """
        from kitfs.fuse.mounting import unmount

        deadline = time.monotonic() + GRACE
        while self._has_mount() and self._is_there():
            lazy = time.monotonic() > deadline
            try:
                unmount(self._mountpoint, lazy=lazy)
                if lazy:
                    self._log.warning("%s is still in use: detached lazily", self._mountpoint)
                break
            except MountError as e:
                if e.errno != errno.EBUSY:
                    self._log.warning("%s", e)
                    break
            time.sleep(0.1)
