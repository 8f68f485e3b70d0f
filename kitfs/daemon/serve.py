"""Serve a request for a mount: make a new mount, or use the mount that exists already.

A daemon takes the mount's lock first and keeps it until its process ends. So two daemons cannot mount on one directory
at the same time, and a free lock shows that a daemon is dead. ``life`` runs a new mount. ``start`` calls ``serve`` in a
forked process, and ``--foreground`` calls it in its own process. Threading: only the main thread may call ``serve``.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from kitfs.daemon.life import Ready, leave, live
from kitfs.daemon.presence import is_at, is_sealed_at
from kitfs.daemon.request import MountRequest, terms_of
from kitfs.daemon.run_dir import Record, RunDir
from kitfs.daemon.shutdown import Shutdown
from kitfs.errors import MountError
from kitfs.system import allow_many_files, notify_systemd

START_PATIENCE: Final = 60.0  # seconds to wait for another process that is mounting on the same directory


def serve(request: MountRequest, ready: Ready, *, foreground: bool = False) -> None:
    """Mount a kit, call ``ready`` when the mount is ready, and wait until the kit is unmounted.

    A sealed mount needs no process, so for a sealed mount the function waits only with ``foreground``. If the same
    request is mounted already, ``ready`` is called for the existing mount, and the function returns. With
    ``foreground``, the log is also written to stderr. An existing mount is then an error, except a sealed mount without
    a process. Raises KitfsError if mounting fails. Installs handlers for SIGTERM and SIGINT.
    """
    allow_many_files()
    run = RunDir(request.run_dir)
    deadline = time.monotonic() + START_PATIENCE
    while True:
        with run.hold(request.mountpoint) as nonce:
            if nonce:
                if (record := _sealed_at(run, request.mountpoint)) is None:
                    live(request, run, ready, nonce, foreground=foreground)
                else:
                    _use(record, request, run, ready, nonce, foreground=foreground)
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


def _of_another(run: RunDir, mountpoint: str) -> Record | None:
    """Return the record of the daemon that serves a mount point. Return None if no such daemon has a record yet.

    If the daemon was detached from the mount point and only serves files that are still open, the daemon's files in the
    run-time directory are renamed, and the result is None. Raises MountError if another mount covers the mount of the
    daemon.
    """
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
    from kitfs.fuse.mount_table import mount_at

    record = run.record(mountpoint)
    return record if record is not None and is_sealed_at(record, mount_at(mountpoint)) else None


def _use(record: Record, request: MountRequest, run: RunDir, ready: Ready, nonce: str, *, foreground: bool) -> None:
    """Use an existing sealed mount for a request.

    With ``foreground``, this process becomes the process of the mount, and waits until the mount ends.
    """
    from kitfs.fuse.mount_table import mount_at

    warnings = _checked(request, record, run, foreground=False)
    if not foreground:
        ready(record, warnings, made=False)
        return
    there = mount_at(request.mountpoint)
    record = replace(record, pid=os.getpid(), nonce=nonce, terms=terms_of(request, nonce))
    run.write(record)
    end = Shutdown(request.mountpoint, logging.getLogger("kitfs"))
    if there is not None:
        end.sealed(there)
    notify_systemd("READY=1")
    ready(record, warnings, made=False)
    end.stay()
    end.finish()
    leave(run, record)
    notify_systemd("STOPPING=1")
