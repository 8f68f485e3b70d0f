"""Run a mount from the claim of its mount point to its end.

A kit that is complete and verified in the store is mounted *sealed*: the kernel serves it from an EROFS image, and this
process ends, or waits with ``foreground``. Any other kit is mounted *lazily*, through FUSE, and is sealed when it is
complete (``swap``).

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
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

from kitfs.daemon.fill import Filler
from kitfs.daemon.logs import daemon_log
from kitfs.daemon.mountpoint import claim_mountpoint
from kitfs.daemon.opening import Shown, Starting, open_shown, open_transport
from kitfs.daemon.prefetch import Prefetcher
from kitfs.daemon.presence import is_sealed_at
from kitfs.daemon.request import MountRequest, terms_of
from kitfs.daemon.run_dir import Record, RunDir, listen
from kitfs.daemon.seal import NEVER, Seal
from kitfs.daemon.shutdown import Shutdown
from kitfs.daemon.swap import Sealer, seal_of
from kitfs.erofs import mounting
from kitfs.erofs.refusal import Reason, Refusal
from kitfs.errors import MountError, error_to_json
from kitfs.fuse.mount_table import MountInfo, mount_at
from kitfs.fuse.mounting import unmount
from kitfs.system import notify_systemd

if TYPE_CHECKING:
    from kitfs.daemon.mountpoint import CreatedMountpoint
    from kitfs.daemon.notes import ClosedNote
    from kitfs.daemon.shutdown import Transport

SEAL: Final = b"seal"  # the command of the status socket that seals a mount


class Ready(Protocol):
    """A function that is called when the mount is ready, with the warnings so far.

    ``made`` is False for a mount that existed before.
    """

    def __call__(self, record: Record, warnings: Sequence[str], /, *, made: bool) -> None: ...


def live(request: MountRequest, run: RunDir, ready: Ready, nonce: str, *, foreground: bool) -> None:
    """Mount a kit, call ``ready`` when the mount is ready, and wait until this process is not needed any more.

    The caller must hold the lock of the mount; ``nonce`` is the nonce in the lock file. Raises KitfsError if mounting
    fails.
    """
    from kitfs.daemon.notes import ClosedNote
    from kitfs.daemon.status import LastError
    from kitfs.metrics import Counters

    signal.signal(signal.SIGTERM, _interrupted)
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
            life = _Life(at, shown, end, claimed, closed, ready, nonce)
            try:
                record, refused = life.mount_sealed(os.getpid() if foreground else None), None
            except Refusal as e:
                refused = e
            if refused is not None:
                record = life.serve(refused)
        if foreground and end.is_sealed:
            end.stay()
            end.finish()
            leave(run, record)
        notify_systemd("STOPPING=1")


def _interrupted(number: int, frame: object) -> None:
    """Raise MountError on SIGTERM before the mount is ready, so that a mount point that kitfs made is removed."""
    raise MountError(f"interrupted by {signal.Signals(number).name}", errno=errno.EINTR)


def leave(run: RunDir, record: Record) -> None:
    """Remove the record of a daemon that is about to exit, or only its socket if a sealed mount stays."""
    current = run.record(record.mountpoint)
    if current is not None and current.nonce == record.nonce and is_sealed_at(current, mount_at(record.mountpoint)):
        run.close_socket(record)
    else:
        run.forget(record)


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
    ) -> None:
        self._at = at
        self._shown = shown
        self._end = end
        self._claimed = claimed
        self._closed = closed
        self._ready = ready
        self._nonce = nonce
        self._filler = Filler(shown.kit, shown.store, shown.tree.demand, mode=at.request.fill, log=at.log)
        self._prefetcher = Prefetcher(shown.kit, shown.store, shown.tree, mode=at.request.fill, log=at.log)
        self._seal = Seal(at.request, shown.kit, shown.tree, shown.filesystem, shown.store, scratch=at.run.path)

    # -- sealed

    def mount_sealed(self, pid: int | None) -> Record:
        """Mount the kit sealed, call ``ready``, and return the record. The process in the record is ``pid``.

        Raises Refusal if the kit cannot be sealed.
        """
        request = self._at.request
        if request.seal == NEVER:
            raise Refusal(Reason.SETTING)
        sealed = self._seal.mount()
        try:
            mounting.attach(sealed, request.mountpoint)
        finally:
            os.close(sealed.fd)
        there = MountInfo(request.mountpoint, request.reference, mounting.FSTYPE, sealed.dev, sealed.number)
        try:
            self._claimed.unlock()
            self._end.sealed(there)
            self._look()
            record = self._record(mounting.FSTYPE, there, pid)
            record = replace(record, seal=seal_of(sealed, self._status(record, "sealed", None)))
            self._at.run.write(record)
            self._answer(record)
        except BaseException:
            unmount(request.mountpoint, lazy=True)
            raise
        return record

    # -- lazily

    def serve(self, refused: Refusal) -> Record:
        """Mount the kit through FUSE, call ``ready``, and wait until the transport has ended."""
        at, end = self._at, self._end
        transport = open_transport(at, self._shown.filesystem)
        self._shown.store.on_failure(transport.known_wrong)
        transport.mount()
        at.stack.callback(end.detach)
        there = end.watch(transport)
        self._claimed.unlock()
        record = self._record(transport.name, there, os.getpid())
        self._look()
        sealer = self._publish(record, refused, transport)
        self._answer(record)
        sealer.start()
        self._filler.start()
        self._prefetcher.start()
        end.wait()
        self._filler.stop()
        self._prefetcher.stop()
        sealer.stop()
        end.finish()
        if end.is_sealed:
            at.log.info("%s is sealed, and no program uses its former FUSE mount any more", record.mountpoint)
        else:
            at.log.info("unmounted %s", record.mountpoint)
        return record

    # -- both

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

    def _status(self, record: Record, mode: str, not_sealed: str | None) -> dict[str, Any]:
        from kitfs.daemon.status import status_of

        at = self._at
        return status_of(
            record, self._shown.kit, at.counters, at.last_error,
            mode=mode, not_sealed=not_sealed, fill=self._filler.status, prefetch=self._prefetcher.status,
            memory=self._shown.store.buffers.status,
            cache_failure=self._shown.store.disk.failure,
        )  # fmt: skip

    def _publish(self, record: Record, refused: Refusal, transport: Transport) -> Sealer:
        """Write the record, open the status socket until the transport ends, and return the mount's sealer."""
        from kitfs.daemon.status import StatusSocket

        at = self._at
        sealer = Sealer(
            self._seal, at.run, record, self._end, mode=at.request.seal, refused=refused,
            status=lambda: self._status(record, "sealed", None), log=at.log,
        )  # fmt: skip
        server = StatusSocket(
            listen(at.run.file(record.mountpoint, "sock")),
            lambda: self._status(record, "passthrough" if transport.native_files else "lazy", sealer.not_sealed),
            at.log,
            commands={SEAL: partial(_answer_seal, sealer)},
        )
        at.stack.callback(server.close)
        at.stack.callback(leave, at.run, record)
        at.run.write(record)
        return sealer

    def _answer(self, record: Record) -> None:
        """Report to the log, to systemd and to the caller that the mount is ready."""
        self._claimed.kept = True
        how = "sealed" if record.seal else f"with the {record.transport} transport"
        self._at.log.info("mounted %s (%s) on %s %s", record.reference, record.digest, record.mountpoint, how)
        notify_systemd("READY=1")
        self._end.check()
        self._ready(record, self._at.last_error.warnings, made=True)


def _answer_seal(sealer: Sealer) -> dict[str, Any]:
    """Seal a mount, and return the answer for the process that asked for it."""
    try:
        sealer.seal()
    except Refusal as e:
        return error_to_json(MountError(f"the mount is not sealed: {e}", errno=errno.EBUSY))
    return {"sealed": True}
