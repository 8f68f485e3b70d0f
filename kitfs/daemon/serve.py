"""The life of a daemon: the process that serves one mount, from ``mount`` to ``umount``.

The daemon takes the mount's lock first and keeps it until its process ends, so that two mounts of one directory cannot
race and a dead daemon is recognized by its free lock. It opens the kit, mounts it, publishes its record, and then waits
for a signal or for the unmount. ``start`` forks the process; ``--foreground`` calls ``serve`` in its own.

Threading: the main thread waits for signals; the transport, the status socket and the store have threads of their own.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from kitfs.daemon.logs import daemon_log
from kitfs.daemon.mountpoint import claim_mountpoint
from kitfs.daemon.presence import is_at
from kitfs.daemon.request import MountRequest, terms_of
from kitfs.daemon.run_dir import Record, RunDir, listen
from kitfs.daemon.shutdown import Shutdown, Transport
from kitfs.errors import MountError
from kitfs.system import allow_many_files, notify_systemd

if TYPE_CHECKING:
    from kitfs.daemon.notes import ClosedNote
    from kitfs.daemon.status import LastError
    from kitfs.fuse.filesystem import FileSystem
    from kitfs.fuse.mounting import MountInfo
    from kitfs.kit.kit import Kit
    from kitfs.kit.layer import Layer
    from kitfs.metrics import Counters
    from kitfs.store.store import Store


START_PATIENCE: Final = 60.0  # seconds that a second mount of a directory waits for the first one to answer
FILES_OF_LAYER: Final = 3  # descriptors: its lease, its map and its bytes
FILES_OF_COMPRESSED: Final = 6  # and those of its decoded form
SPARE_FILES: Final = 256  # descriptors of the mount itself: connections, the catalog, one of /dev/fuse for each worker


class Ready(Protocol):
    """A function that is called when the mount answers, with the warnings so far. ``made`` is False for a mount that
    existed before.
    """

    def __call__(self, record: Record, warnings: Sequence[str], /, *, made: bool) -> None: ...


def serve(request: MountRequest, ready: Ready, *, foreground: bool = False) -> None:
    """Mount, call ``ready`` when the mount answers, and return when it is unmounted.

    If the same request is mounted already, ``ready`` is called for that mount, and the function returns; with
    ``foreground`` this is an error. With ``foreground``, the log goes to stderr too. Raises KitfsError when the mount
    cannot be made. Installs handlers for SIGTERM and SIGINT.
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
                f"{request.mountpoint} is being mounted by another process, which is not ready yet; try again",
                errno=errno.EBUSY,
            )
        time.sleep(0.02)


def _of_another(run: RunDir, mountpoint: str) -> Record | None:
    """Return the record of the daemon that serves the mount point; None when there is no such mount, or when it does
    not answer yet.

    A daemon that was detached from the mount point and only serves files that are still open is displaced. Raises
    MountError for a mount that is covered by another one.
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
    """Return the warnings of a request for a mount that exists already. Raises MountError when it is not the same
    request.
    """
    from kitfs.daemon.same_mount import check
    from kitfs.daemon.status import LastError

    log = logging.getLogger("kitfs")
    log.propagate = False
    warned = LastError()
    log.addHandler(warned)
    try:
        check(request, record, run, foreground=foreground, log=log)
    finally:
        log.removeHandler(warned)
    return warned.warnings


def _interrupted(number: int, frame: object) -> None:
    """Unwind on SIGTERM before the mount answers, so that a mount point that was made is removed."""
    raise MountError(f"interrupted by {signal.Signals(number).name}", errno=errno.EINTR)


def _check_files(layers: Sequence[Layer], mountpoint: str) -> None:
    """Raise MountError for a kit whose layers take more descriptors than this process may open."""
    from kitfs.oci.names import LayoutReference

    needed = SPARE_FILES
    for layer in layers:
        needed += FILES_OF_COMPRESSED if layer.compressed else FILES_OF_LAYER
        needed += isinstance(layer.kit, LayoutReference)  # the file of the layout
    limit = allow_many_files(needed)
    if limit < needed:
        raise MountError(
            f"cannot mount at {mountpoint}: {len(layers)} layers take up to {needed} descriptors, and this process may "
            f"open {limit}: raise its limit (ulimit -Hn, LimitNOFILE= of systemd), or mount a part of it with --only"
        )


class _Starting(NamedTuple):
    """What the steps of a start share; ``stack`` undoes them in reverse order."""

    request: MountRequest
    run: RunDir
    stack: ExitStack
    counters: Counters
    last_error: LastError
    log: logging.Logger
    log_path: str


def _serve_locked(request: MountRequest, run: RunDir, ready: Ready, nonce: str, stderr: bool) -> None:
    from kitfs.daemon.notes import ClosedNote
    from kitfs.daemon.status import LastError
    from kitfs.metrics import Counters

    signal.signal(signal.SIGTERM, _interrupted)
    with ExitStack() as stack:
        mountpoint = stack.enter_context(claim_mountpoint(request.mountpoint))
        run.forget(request.mountpoint)  # a dead daemon's record, so that it is not mistaken for this one's
        log_path, last_error = run.file(request.mountpoint, "log"), LastError()
        log = stack.enter_context(daemon_log(log_path, request.log_level, last_error, stderr))
        at = _Starting(request, run, stack, Counters(), last_error, log, log_path)
        closed = ClosedNote(request, log)
        kit, store = _open_kit(at)
        filesystem = _filesystem(at, kit, closed)
        end = Shutdown(request.mountpoint, log)
        transport = _transport(at, filesystem)
        store.on_failure(transport.known_wrong)
        transport.mount()
        stack.callback(end.detach)
        there = end.watch(transport)
        mountpoint.unlock()
        record = _record(at, kit, transport.name, there, nonce)
        for layer in kit.layers:
            layer.load_state()
        closed.look(kit)
        _publish(at, record, kit)
        mountpoint.kept = True
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


def _open_kit(at: _Starting) -> tuple[Kit, Store]:
    """Open the workspace and the kit of the request, both until the end of the mount, and warn about the kit. Returns
    the kit and the store of its blobs.
    """
    from kitfs.daemon import notes
    from kitfs.kit.workspace import Workspace
    from kitfs.modelkit.filters import Filter
    from kitfs.oci.names import parse_any

    request = at.request
    workspace = at.stack.enter_context(Workspace.open(request.workspace, counters=at.counters, log=at.log))
    filters = [Filter.parse(f) for f in request.only]
    kit = workspace.resolver.open(
        parse_any(request.reference), filters=filters, labels=request.labels, remote=request.remote
    )
    at.stack.callback(kit.close)
    _check_files(kit.layers, request.mountpoint)
    notes.warn(kit, request, workspace.resolver, at.log)
    return kit, workspace.store


def _filesystem(at: _Starting, kit: Kit, closed: ClosedNote) -> FileSystem:
    """Return the file system that shows a kit with the owner and modes of the request."""
    from kitfs.fuse.filesystem import FileSystem
    from kitfs.kit.tree import tree_of

    request = at.request
    return FileSystem(
        tree_of(kit, counters=at.counters, log=at.log, met=closed.met),
        uid=request.uid,
        gid=request.gid,
        umask=request.umask,
        file_mode=request.file_mode,
        dir_mode=request.dir_mode,
        mtime=kit.created,
        counters=at.counters,
        log=at.log,
        reference=request.reference,
        manifest_digest=kit.digest,
    )


def _record(at: _Starting, kit: Kit, transport: str, there: MountInfo, nonce: str) -> Record:
    """Return the record of a mount that answers at ``there``."""
    request = at.request
    return Record(
        reference=request.reference,
        digest=kit.digest,
        mountpoint=request.mountpoint,
        pid=os.getpid(),
        transport=transport,
        store=os.path.realpath(request.cache_dir),
        log=at.log_path,
        started=time.time(),
        labels=request.labels,
        terms=terms_of(request, nonce),
        dev=there.dev,
        number=there.number,
        nonce=nonce,
    )


def _publish(at: _Starting, record: Record, kit: Kit) -> None:
    """Open the status socket and write the record, both until the end of the mount."""
    from kitfs.daemon.status import StatusSocket, status_of

    socket = listen(at.run.file(record.mountpoint, "sock"))
    server = StatusSocket(socket, lambda: status_of(record, kit, at.counters, at.last_error), at.log)
    at.stack.callback(server.close)
    at.stack.callback(at.run.forget, record)
    at.run.write(record)


def _transport(at: _Starting, filesystem: FileSystem) -> Transport:
    from kitfs.fuse.mounting import MountOptions

    request = at.request
    options = MountOptions(mountpoint=request.mountpoint, source=request.reference, allow_other=request.allow_other)
    if request.transport_name == "kernel":
        from kitfs.fuse.session import KernelTransport

        return KernelTransport(filesystem, options, counters=at.counters, log=at.log)
    from kitfs.fuse.libfuse import LibfuseTransport

    return LibfuseTransport(filesystem, options, counters=at.counters, log=at.log)
