"""From ``mount`` to ``umount``: the process that serves one mount.

``start`` forks the daemon and waits until the mount answers; ``serve`` is the daemon's whole life, and what
``--foreground`` runs in place. The daemon takes the mount's lock first and keeps it until its process ends, so that
two mounts of one directory cannot race and a dead daemon is known by its free lock. It resolves, mounts, publishes
its record, and then waits for a signal or for the unmount.

Threading: ``start`` must be called while the process has one thread (it forks). In the daemon the main thread waits
for signals; the transport, the status socket and the store have threads of their own.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Protocol

from kitfs.daemon.logs import _logging
from kitfs.daemon.mountpoint import _mountpoint
from kitfs.daemon.presence import is_at
from kitfs.daemon.request import MountRequest, terms_of
from kitfs.daemon.run_dir import Record, RunDir, listen
from kitfs.daemon.shutdown import Shutdown, Transport
from kitfs.errors import MountError
from kitfs.system import allow_many_files, notify_systemd

if TYPE_CHECKING:
    from kitfs.fuse.filesystem import FileSystem
    from kitfs.kit.layer import Layer
    from kitfs.metrics import Counters


START_PATIENCE: Final = 60.0  # seconds that a second mount of the same directory waits for the first one to answer
FILES_OF_LAYER: Final = 3  # descriptors: its lease, its map and its bytes
FILES_OF_COMPRESSED: Final = 6  # those of its decoded form too
SPARE_FILES: Final = 256  # descriptors of the mount itself: connections, the catalog, one of /dev/fuse for each worker


class Ready(Protocol):
    """Called when the mount answers, with what was warned of until then; ``made``: False for a mount that was there
    before.
    """

    def __call__(self, record: Record, warnings: Sequence[str], /, *, made: bool) -> None: ...


def serve(request: MountRequest, ready: Ready, *, foreground: bool = False) -> None:
    """Mount, call ``ready`` when the mount answers, and return when it is unmounted. ``foreground``: log to stderr too.

    A mount that is there already and was made by the same request answers instead, at once, but not with
    ``foreground``. Raises KitfsError when the mount cannot be made. Installs handlers for SIGTERM and SIGINT.
    """
    allow_many_files()
    run = RunDir(request.run_dir)
    deadline = time.monotonic() + START_PATIENCE
    while True:
        with run.hold(request.mountpoint) as nonce:
            if nonce:
                _serve_locked(request, run, ready, nonce, foreground)
                return
        if (record := _of_another(run, request.mountpoint)) is not None:
            ready(record, _checked(request, record, run, foreground), made=False)
            return
        if time.monotonic() > deadline:
            raise MountError(
                f"{request.mountpoint} is being mounted by another process that does not get ready", errno=errno.EBUSY
            )
        time.sleep(0.02)


def _of_another(run: RunDir, mountpoint: str) -> Record | None:
    """The record of the daemon that serves a mount point; None while there is none yet.

    A daemon that was detached from there and only serves files that are still open is moved out of the way. Raises
    MountError for a mount that another one covers.
    """
    from kitfs.fuse.mounting import mounts

    record = run.record(mountpoint)
    if record is None or not run.alive(record):
        return None
    there = [mount for mount in mounts() if mount.mountpoint == mountpoint]
    if there and is_at(record, there[-1]):
        return record
    if any(is_at(record, mount) for mount in there):
        text = f"{mountpoint} is already a mount of {record.reference}, covered by another one, of {there[-1].source}"
        raise MountError(text, errno=errno.EBUSY)
    run.displace(record)
    return None


def _checked(request: MountRequest, record: Record, run: RunDir, foreground: bool) -> Sequence[str]:
    """The warnings of a request for what is mounted already. Raises MountError for another request."""
    from kitfs.daemon.same_mount import check
    from kitfs.daemon.status import LastError

    log = logging.getLogger("kitfs")
    log.propagate = False
    told = LastError()
    log.addHandler(told)
    try:
        check(request, record, run, foreground=foreground, log=log)
    finally:
        log.removeHandler(told)
    return told.warnings


def _interrupted(number: int, frame: object) -> None:
    """SIGTERM before the mount answers: unwind, so that a mount point that was made is removed."""
    raise MountError(f"interrupted by {signal.Signals(number).name}", errno=errno.EINTR)


def _check_files(layers: Sequence[Layer], mountpoint: str) -> None:
    """Raises MountError for a kit whose layers take more descriptors than this process may have."""
    from kitfs.oci.names import LayoutReference

    needed = SPARE_FILES
    for layer in layers:
        needed += FILES_OF_COMPRESSED if layer.compressed else FILES_OF_LAYER
        needed += isinstance(layer.kit, LayoutReference)  # the file of the layout
    limit = allow_many_files(needed)
    if limit < needed:
        text = (
            f"{len(layers)} layers take up to {needed} descriptors, and this process may open {limit}: raise its limit"
        )
        raise MountError(
            f"cannot mount at {mountpoint}: {text} (ulimit -Hn, LimitNOFILE= of systemd), or choose a part of the kit with --only"
        )


def _serve_locked(request: MountRequest, run: RunDir, ready: Ready, nonce: str, stderr: bool) -> None:
    from kitfs.daemon import notes
    from kitfs.daemon.status import LastError, StatusSocket, status_of
    from kitfs.fuse.filesystem import FileSystem
    from kitfs.kit.tree import tree_of
    from kitfs.kit.workspace import Workspace
    from kitfs.metrics import Counters
    from kitfs.modelkit.filters import Filter
    from kitfs.oci.names import parse_any

    signal.signal(signal.SIGTERM, _interrupted)
    with ExitStack() as stack:
        made = stack.enter_context(_mountpoint(request.mountpoint))
        run.forget(request.mountpoint)  # a dead daemon's record, so that it is not mistaken for this one's
        log_path = run.file(request.mountpoint, "log")
        last_error = LastError()
        log = stack.enter_context(_logging(log_path, request.log_level, last_error, stderr))
        counters = Counters()
        workspace = stack.enter_context(Workspace.open(request.workspace, counters=counters, log=log))
        filters = [Filter.parse(f) for f in request.only]
        kit = workspace.resolver.open(
            parse_any(request.reference), filters=filters, labels=request.labels, remote=request.remote
        )
        stack.callback(kit.close)
        _check_files(kit.layers, request.mountpoint)
        notes.warn(kit, request, workspace.resolver, log)
        closed = notes.ClosedNote(request, log)
        filesystem = FileSystem(
            tree_of(kit, counters=counters, log=log, met=closed.met),
            uid=request.uid,
            gid=request.gid,
            umask=request.umask,
            file_mode=request.file_mode,
            dir_mode=request.dir_mode,
            mtime=kit.created,
            counters=counters,
            log=log,
            reference=request.reference,
            manifest_digest=kit.digest,
        )
        end = Shutdown(request.mountpoint, log)
        transport = _transport(request, filesystem, counters, log)
        transport.mount()
        stack.callback(end.detach)
        there = end.watch(transport)
        made.unlock()
        record = Record(
            reference=request.reference,
            digest=kit.digest,
            mountpoint=request.mountpoint,
            pid=os.getpid(),
            transport=transport.name,
            store=os.path.realpath(request.cache_dir),
            log=log_path,
            started=time.time(),
            labels=request.labels,
            terms=terms_of(request, nonce),
            dev=there.dev,
            number=there.number,
            nonce=nonce,
        )
        for layer in kit.layers:
            layer.load_state()
        closed.look(kit)
        server = StatusSocket(
            listen(run.file(request.mountpoint, "sock")), lambda: status_of(record, kit, counters, last_error), log
        )
        stack.callback(server.close)
        stack.callback(run.forget, record)
        run.write(record)
        made.kept = True
        log.info(
            "mounted %s (%s) on %s with the %s transport",
            request.reference,
            kit.digest,
            request.mountpoint,
            transport.name,
        )
        notify_systemd("READY=1")
        end.check()
        ready(record, last_error.warnings, made=True)
        end.wait()
        notify_systemd("STOPPING=1")
        log.info("unmounted %s", request.mountpoint)


def _transport(request: MountRequest, filesystem: FileSystem, counters: Counters, log: logging.Logger) -> Transport:
    from kitfs.fuse.mounting import MountOptions

    options = MountOptions(mountpoint=request.mountpoint, source=request.reference, allow_other=request.allow_other)
    if request.transport_name == "kernel":
        from kitfs.fuse.session import KernelTransport

        return KernelTransport(filesystem, options, counters=counters, log=log)
    from kitfs.fuse.libfuse import LibfuseTransport

    return LibfuseTransport(filesystem, options, counters=counters, log=log)
