"""Run a mount from the claim of its mount point to its end. This is the work of a mount's first worker.

A kit that is complete and verified in the store is mounted *sealed*: the kernel serves it from an EROFS image, and no
worker is needed. Any other kit is mounted *lazily*, through FUSE, and is sealed when it is complete (``swap``). If the
worker of a lazy mount dies, another worker continues the mount (``continuing``).

Threading: the main thread waits for signals. The transport, the status socket, the sealer and the store have threads of
their own.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from kitfs.daemon.logs import daemon_log
from kitfs.daemon.mountpoint import claim_mountpoint
from kitfs.daemon.opening import Shown, Starting, open_shown, open_transport
from kitfs.daemon.request import MountRequest, terms_of
from kitfs.daemon.run_dir import Record, RunDir, listen
from kitfs.daemon.seal import NEVER
from kitfs.daemon.serving import Handed, PassUpgrade, Serving
from kitfs.daemon.shutdown import Shutdown
from kitfs.daemon.swap import seal_of
from kitfs.erofs import mounting
from kitfs.erofs.refusal import Reason, Refusal
from kitfs.errors import MountError
from kitfs.fuse.mount_table import MountInfo
from kitfs.fuse.mounting import unmount

if TYPE_CHECKING:
    from kitfs.daemon.mountpoint import CreatedMountpoint
    from kitfs.daemon.notes import ClosedNote


class Ready(Protocol):
    """A function that is called when the mount is ready, with the warnings so far.

    The last argument is None if no other worker can continue the mount.
    """

    def __call__(self, record: Record, warnings: Sequence[str], handed: Handed | None, /) -> None: ...


def live(
    request: MountRequest,
    run: RunDir,
    ready: Ready,
    nonce: str,
    *,
    pid: int,
    foreground: bool,
    upgrade: PassUpgrade | None,
) -> bool:
    """Mount a kit, call ``ready`` when the mount is ready, and wait until this process is not needed any more.

    Returns whether the mount is sealed. The caller must hold the lock of the mount; ``nonce`` is the nonce in the lock
    file. ``pid`` is the process of the mount that the record names. Raises KitfsError if mounting fails.
    """
    from kitfs.daemon.notes import ClosedNote
    from kitfs.daemon.status import LastError
    from kitfs.metrics import Counters

    end_on_signals()
    with ExitStack() as stack:
        claimed = stack.enter_context(claim_mountpoint(request.mountpoint))
        run.forget(request.mountpoint)  # removes a dead daemon's record, which could be mistaken for the new daemon's
        log_path, last_error = run.file(request.mountpoint, "log"), LastError()
        log = stack.enter_context(daemon_log(log_path, request.log_level, last_error, foreground))
        with ExitStack() as serving:
            at = Starting(request, run, serving, Counters(), last_error, log, log_path)
            closed = ClosedNote(request, log)
            shown = open_shown(at, closed)
            end = Shutdown(request.mountpoint, log)
            life = _Life(at, shown, end, claimed, closed, ready, nonce, pid)
            try:
                life.mount_sealed(foreground=foreground)
            except Refusal as e:
                refused = e
            else:
                return True
            life.serve(refused, upgrade)
        return end.is_sealed


def end_on_signals() -> None:
    """Raise MountError on SIGTERM or SIGINT until ``Shutdown`` handles them, so that the work so far is undone.

    Further signals are ignored while the work is undone: a service manager may signal the supervisor, too, which passes
    its signal to this process.
    """

    def interrupted(number: int, frame: object) -> NoReturn:
        for later in (signal.SIGTERM, signal.SIGINT):
            signal.signal(later, signal.SIG_IGN)
        raise MountError(f"interrupted by {signal.Signals(number).name}", errno=errno.EINTR)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupted)


class _Life:
    """A mount of an opened kit, sealed or lazy."""

    def __init__(
        self,
        at: Starting,
        shown: Shown,
        end: Shutdown,
        claimed: CreatedMountpoint,
        closed: ClosedNote,
        ready: Ready,
        nonce: str,
        pid: int,
    ) -> None:
        self._at = at
        self._shown = shown
        self._end = end
        self._claimed = claimed
        self._closed = closed
        self._ready = ready
        self._nonce = nonce
        self._pid = pid
        self._serving: Final = Serving(at, shown, end)

    def mount_sealed(self, *, foreground: bool) -> None:
        """Mount the kit sealed, and call ``ready``. Without ``foreground``, the record names no process.

        Raises Refusal if the kit cannot be sealed.
        """
        request = self._at.request
        if request.seal == NEVER:
            raise Refusal(Reason.SETTING)
        sealed = self._serving.seal.mount()
        try:
            mounting.attach(sealed, request.mountpoint)
        finally:
            os.close(sealed.fd)
        there = MountInfo(request.mountpoint, request.reference, mounting.FSTYPE, sealed.dev, sealed.number)
        try:
            self._claimed.unlock()
            self._end.sealed(there)
            self._look()
            record = self._record(mounting.FSTYPE, there, self._pid if foreground else None)
            record = replace(record, seal=seal_of(sealed, self._serving.status(record, "sealed", None)))
            self._at.run.write(record)
            self._answer(record, None)
        except BaseException:
            unmount(request.mountpoint, lazy=True)
            raise

    def serve(self, refused: Refusal, upgrade: PassUpgrade | None) -> None:
        """Mount the kit through FUSE, call ``ready``, and wait until the transport has ended."""
        at, end = self._at, self._end
        transport = open_transport(at, self._shown.filesystem)
        self._shown.store.on_failure(transport.known_wrong)
        transport.mount()
        at.stack.callback(end.detach)
        there = end.watch(transport)
        self._claimed.unlock()
        record = self._record(transport.name, there, self._pid)
        self._look()
        listening = listen(at.run.file(record.mountpoint, "sock"))
        sealer = self._serving.publish(record, listening, transport, refused, upgrade)
        at.run.write(record)
        self._answer(record, self._serving.handed(listening, transport.kept))
        self._serving.run(record, sealer)

    def _record(self, transport: str, there: MountInfo, pid: int | None) -> Record:
        """Return the record of a mount that is ready. ``there`` is the mount's line of mountinfo."""
        request = self._at.request
        return Record(
            reference=request.reference,
            digest=self._shown.kit.digest,
            mountpoint=request.mountpoint,
            pid=pid,
            transport=transport,
            store=os.path.realpath(request.cache_dir),
            log=self._at.log_path,
            started=time.time(),
            labels=request.labels,
            terms=terms_of(request, self._nonce),
            dev=there.dev,
            number=there.number,
            nonce=self._nonce,
        )

    def _look(self) -> None:
        """Look up which bytes of each layer the store has. Warn about files that other users may not use."""
        for layer in self._shown.kit.layers:
            layer.load_state()
        self._closed.look(self._shown.kit)

    def _answer(self, record: Record, handed: Handed | None) -> None:
        """Report to the log and to the caller that the mount is ready."""
        self._claimed.kept = True
        how = "sealed" if record.seal else f"with the {record.transport} transport"
        self._at.log.info("mounted %s (%s) on %s %s", record.reference, record.digest, record.mountpoint, how)
        self._end.check()
        self._ready(record, self._at.last_error.warnings, handed)
