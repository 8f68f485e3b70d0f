"""Wait for the end of a mount, and bring it about on a signal. Threading: the main thread waits; the transport has a
thread of its own.
"""

from __future__ import annotations

import errno
import logging
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


class Shutdown:
    """Waits for the end of a mount: an unmount by another process, or SIGTERM or SIGINT.

    A signal unmounts at once, or lazily after ``GRACE`` seconds if the mount is in use.
    """

    def __init__(self, mountpoint: str, log: logging.Logger) -> None:
        self._mountpoint = mountpoint
        self._log = log
        self._wake = threading.Event()
        self._signal: int | None = None
        self._failure: BaseException | None = None
        self._serving = threading.Event()
        self._mount: MountInfo | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)

    def _signalled(self, number: int, frame: object) -> None:
        self._signal = number
        self._wake.set()

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
        """Return when the mount has ended. Raises the error that broke the transport."""
        self._wake.wait()
        if self._serving.is_set() and self._signal is not None:
            self._log.info("%s: unmounting", signal.Signals(self._signal).name)
            self.detach()
        if self._failure is not None:
            raise self._failure

    def detach(self) -> None:
        """Unmount as soon as no program uses the mount, and lazily after ``GRACE`` seconds.

        Does nothing when it is unmounted already.
        """
        from kitfs.fuse.mounting import unmount

        deadline = time.monotonic() + GRACE
        while self._serving.is_set() and self._is_there():
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
