"""Serve a request for a mount: make a new mount, or use the mount that exists already.

A daemon takes the mount's lock first and keeps it until its processes end. So two daemons cannot mount on one directory
at the same time, and a free lock shows that a daemon is dead. ``life`` runs a new mount in a worker, and this process
becomes the worker's ``supervisor``. With the libfuse transport, whose mount cannot outlive its process, this process
runs the mount itself. ``start`` calls ``serve`` in a forked process, and ``--foreground`` calls it in its own process.
Threading: only the main thread may call ``serve``, and no other thread may exist.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from kitfs.daemon.request import MountRequest, terms_of
from kitfs.daemon.run_dir import Lock, Record, RunDir
from kitfs.daemon.small import ReadyMount, replace_program
from kitfs.daemon.supervisor import Running, Supervisor, fork
from kitfs.errors import MountError, error_from_json
from kitfs.system import allow_many_files, notify_systemd

if TYPE_CHECKING:
    from kitfs.daemon.channel import Channel
    from kitfs.daemon.serving import Handed

START_PATIENCE: Final = 60.0  # seconds to wait for another process that is mounting on the same directory


class Ready(Protocol):
    """A function that is called when the mount is ready, with the warnings so far.

    ``made`` is False for a mount that existed before.
    """

    def __call__(self, record: Record, warnings: Sequence[str], /, *, made: bool) -> None: ...


def serve(
    request: MountRequest, ready: Ready, *, foreground: bool = False, in_worker: Callable[[], None] = lambda: None
) -> None:
    """Mount a kit, call ``ready`` when the mount is ready, and wait until the kit is unmounted.

    A sealed mount needs no process, so for a sealed mount the function waits only with ``foreground``. If the same
    request is mounted already, ``ready`` is called for the existing mount, and the function returns. With
    ``foreground``, the log is also written to stderr. An existing mount is then an error, except a sealed mount without
    a process. ``in_worker`` is called in the forked worker, which must close the descriptors of the caller there.
    Raises KitfsError if mounting fails. Installs handlers for SIGTERM and SIGINT.
    """
    allow_many_files()
    run = RunDir(request.run_dir)
    deadline = time.monotonic() + START_PATIENCE
    while True:
        with run.hold(request.mountpoint) as lock:
            if lock is not None:
                if (record := _sealed_at(run, request.mountpoint)) is None:
                    _live(request, run, ready, lock, foreground, in_worker)
                else:
                    _use(record, request, run, ready, lock.nonce, foreground=foreground)
                return
        if (record := _of_another(run, request.mountpoint)) is not None:
            ready(record, _checked(request, record, run, foreground), made=False)
            return
        if time.monotonic() > deadline:
            raise MountError(
                f"cannot mount at {request.mountpoint}: another process is mounting there (try again)",
                errno=errno.EBUSY,
            )
        time.sleep(0.02)


def _live(
    request: MountRequest,
    run: RunDir,
    ready: Ready,
    lock: Lock,
    foreground: bool,
    in_worker: Callable[[], None],
) -> None:
    """Mount a kit, and wait until this process is not needed any more."""
    if request.transport_name == "libfuse":
        from kitfs.daemon.life import live

        def is_ready(record: Record, warnings: Sequence[str], _: Handed | None) -> None:
            notify_systemd("READY=1")
            ready(record, warnings, made=True)

        live(request, run, is_ready, lock.nonce, pid=os.getpid(), foreground=foreground, upgrade=None)
        notify_systemd("STOPPING=1")
        return
    pid = os.getpid()

    def work(channel: Channel) -> NoReturn:
        from kitfs.daemon.worker import work_first

        in_worker()
        work_first(channel, request, run, lock.nonce, pid=pid, foreground=foreground)

    mount = _Mount(run, request.mountpoint, ready, foreground=foreground)
    supervisor = Supervisor(*fork(work), mount, lock=lock.fd)
    outcome = supervisor.run()
    if outcome.error:
        if supervisor.is_interrupted:
            raise KeyboardInterrupt
        if not outcome.error["message"]:
            log = run.file(request.mountpoint, "log")
            raise MountError(f"cannot mount at {request.mountpoint}: the daemon died (see its log {log})")
        raise error_from_json(outcome.error)
    if foreground and outcome.sealed and (record := _sealed_at(run, request.mountpoint)) is not None:
        _stay(record, request, run)
    notify_systemd("STOPPING=1")


class _Mount(ReadyMount):
    """The mount of a supervisor that has just been started."""

    def __init__(self, run: RunDir, mountpoint: str, ready: Ready, *, foreground: bool) -> None:
        super().__init__({}, run.file(mountpoint, "log"))
        self._mountpoint = mountpoint
        self._is_ready = ready
        self._foreground = foreground

    def ready(self, message: dict[str, Any]) -> None:
        self._record = message["record"]
        if not self._foreground:
            with suppress(OSError), open(self._log, "ab") as log:
                os.dup2(log.fileno(), 2)  # for the messages of a worker that cannot start
        notify_systemd("READY=1")
        self._is_ready(Record(**self._record), message["warnings"], made=True)

    def settle(self, running: Running) -> None:
        if not self._foreground:  # otherwise the caller waits for the end of the mount in this program
            replace_program(running, self._log, self._mountpoint)


def _of_another(run: RunDir, mountpoint: str) -> Record | None:
    """Return the record of the daemon that serves a mount point. Return None if no such daemon has a record yet.

    If the daemon was detached from the mount point and only serves files that are still open, the daemon's files in the
    run-time directory are renamed, and the result is None. Raises MountError if another mount covers the mount of the
    daemon.
    """
    from kitfs.daemon.presence import is_at
    from kitfs.fuse.mount_table import mounts

    record = run.record(mountpoint)
    if record is None or not run.alive(record):
        return None
    there = [mount for mount in mounts() if mount.mountpoint == mountpoint]
    if there and is_at(record, there[-1]):
        return record
    if any(is_at(record, mount) for mount in there):
        text = f"{record.reference} is already mounted there, covered by a mount of {there[-1].source}"
        raise MountError(f"cannot mount at {mountpoint}: {text}", errno=errno.EBUSY)
    run.displace(record)
    return None


def _checked(request: MountRequest, record: Record, run: RunDir, foreground: bool) -> Sequence[str]:
    """Check a request for a mount that exists already, and return the warnings.

    Raises MountError if the mount was made by a request that differs.
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


def _sealed_at(run: RunDir, mountpoint: str) -> Record | None:
    """Return the record of a sealed mount without a process at a mount point, or None if no such mount exists."""
    from kitfs.daemon.presence import is_sealed_at
    from kitfs.fuse.mount_table import mount_at

    record = run.record(mountpoint)
    return record if record is not None and is_sealed_at(record, mount_at(mountpoint)) else None


def _use(record: Record, request: MountRequest, run: RunDir, ready: Ready, nonce: str, *, foreground: bool) -> None:
    """Use an existing sealed mount for a request.

    With ``foreground``, this process becomes the process of the mount, and waits until the mount ends.
    """
    warnings = _checked(request, record, run, foreground=False)
    if not foreground:
        ready(record, warnings, made=False)
        return
    record = replace(record, pid=os.getpid(), nonce=nonce, terms=terms_of(request, nonce))
    run.write(record)
    notify_systemd("READY=1")
    ready(record, warnings, made=False)
    _stay(record, request, run)
    notify_systemd("STOPPING=1")


def _stay(record: Record, request: MountRequest, run: RunDir) -> None:
    """Wait until a sealed mount has ended or a signal arrives, and unmount it then."""
    from kitfs.daemon.logs import daemon_log
    from kitfs.daemon.presence import leave
    from kitfs.daemon.shutdown import Shutdown
    from kitfs.daemon.status import LastError
    from kitfs.fuse.mount_table import mount_at

    with daemon_log(record.log, request.log_level, LastError(), True) as log:
        end = Shutdown(record.mountpoint, log)
        if (there := mount_at(record.mountpoint)) is not None:
            end.sealed(there)
        end.stay()
        end.finish()
    leave(run, record)
