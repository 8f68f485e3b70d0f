"""Replace the FUSE mount of a complete kit by a sealed mount while programs use the kit.

The daemon may be killed between any two of these steps:

    1. The image is mounted without being attached to a directory, and is compared with the tree.
    2. The record gets the ``seal`` (``presence``). Until the end of step 4 it still describes the FUSE mount.
    3. The sealed mount is attached beneath the FUSE mount.
    4. The FUSE mount is detached. From now on lookups reach the sealed mount; the daemon serves files that are open.

Bind mounts of the FUSE mount stay FUSE mounts. So the daemon runs until the last bind mount and the last open file are
gone. Threading: a thread waits for the kit to be complete; any thread may call ``seal``.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from kitfs.daemon.run_dir import Record, RunDir
from kitfs.daemon.seal import NEVER, Seal
from kitfs.erofs import mounting
from kitfs.erofs.refusal import Reason, Refusal
from kitfs.fuse.mount_table import MountInfo, mount_at

if TYPE_CHECKING:
    from kitfs.daemon.shutdown import Shutdown
    from kitfs.erofs.mounting import NewMount

INTERVAL: Final = 1.0  # seconds between two checks of whether the layers are complete
PASSING: Final = frozenset({Reason.INCOMPLETE, Reason.COVERED})  # reasons that may disappear without a new mount


class Sealer:
    """A sealer replaces a FUSE mount by a sealed mount when the kit is complete.

    ``record`` is the record of the mount in ``run``. ``status`` returns the status that is stored in the record.
    ``refused`` is the reason why the mount is not sealed, or None if it is sealed already.
    """

    def __init__(
        self,
        seal: Seal,
        run: RunDir,
        record: Record,
        end: Shutdown,
        *,
        mode: str,
        refused: Refusal | None,
        status: Callable[[], dict[str, Any]],
        log: logging.Logger,
    ) -> None:
        self._seal = seal
        self._run = run
        self._record = record
        self._end = end
        self._mode = mode
        self._refused = refused
        self._status = status
        self._log = log
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.is_sealed = refused is None

    @property
    def not_sealed(self) -> str | None:
        """Return the reason why the mount is not sealed, or None if it is sealed."""
        return None if self.is_sealed else str(self._refused)

    def start(self) -> None:
        """Begin to wait for the kit to be complete, unless the mount must not seal itself."""
        if self._mode != NEVER and self._refused is not None and self._refused.reason in PASSING:
            threading.Thread(target=self._watch, name="kitfs-seal", daemon=True).start()

    def stop(self) -> None:
        """Prevent further swaps, and wait until a running swap has ended."""
        self._stopped.set()
        with self._lock:
            pass

    def _watch(self) -> None:
        while not self._stopped.wait(INTERVAL):
            try:
                self.seal()
                return
            except Refusal as e:
                if e.reason not in PASSING:
                    self._log.info("%s is not sealed: %s", self._record.mountpoint, e)
                    return
            except Exception:  # noqa: BLE001 - the mount works without being sealed
                self._log.exception("sealing %s failed because of a bug in kitfs", self._record.mountpoint)
                return

    def seal(self) -> None:
        """Seal the mount, or return if it is sealed already. Raises Refusal, which ``not_sealed`` then reports."""
        with self._lock:
            if self.is_sealed:
                return
            try:
                if self._stopped.is_set():
                    raise Refusal(Reason.COVERED, "the mount is being unmounted")
                self._seal.check_complete()
                sealed = self._seal.mount()
                try:
                    self._swap(sealed)
                finally:
                    os.close(sealed.fd)
            except Refusal as e:
                self._refused = e
                raise
            self.is_sealed = True
        self._log.info("sealed %s: the kernel reads the store, and this process serves only files that are open",
                       self._record.mountpoint)  # fmt: skip

    def _swap(self, sealed: NewMount) -> None:
        mountpoint = self._record.mountpoint
        there = mount_at(mountpoint)
        if there is None or there.number != self._record.number:
            raise Refusal(Reason.COVERED)
        top = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if mounting.mount_number(top) != self._record.number:
                raise Refusal(Reason.COVERED)
            self._run.write(replace(self._record, seal=seal_of(sealed, self._status())))
            try:
                mounting.attach_beneath(sealed, top)
                self._detach(top, sealed)
            except Refusal:
                self._run.write(self._record)
                raise
        finally:
            os.close(top)
        self._end.sealed(MountInfo(mountpoint, self._record.reference, mounting.FSTYPE, sealed.dev, sealed.number))

    def _detach(self, top: int, sealed: NewMount) -> None:
        """Detach the FUSE mount. If that fails, detach the sealed mount beneath it and raise Refusal."""
        try:
            mounting.detach(top)
        except OSError as e:
            try:
                mounting.detach(sealed.fd)
            except OSError as again:
                self._log.warning(
                    "cannot detach the sealed mount, which lies under the FUSE mount at %s: %s",
                    self._record.mountpoint,
                    again.strerror,
                )
            raise Refusal(Reason.FAILED, f"{Reason.FAILED.value}: {(e.strerror or str(e)).lower()} (umount2)")


def seal_of(sealed: NewMount, status: dict[str, Any]) -> dict[str, Any]:
    """Return the ``seal`` field for the record of a sealed mount."""
    return {"dev": sealed.dev, "number": sealed.number, "status": status}
