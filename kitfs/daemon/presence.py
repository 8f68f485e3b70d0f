"""Find out the state of a mount from its record, the mount table, the daemon's lock and the daemon's answer.

    alive             the mount is at its mount point, and is sealed or its daemon answers
    restarting        the worker of the mount has died, and the supervisor has not yet been able to replace it
    does not answer   the mount exists and the daemon's process runs, but the process is stopped or stuck
    detached          the daemon's mount is not at the mount point any more; the daemon serves files that are still open
    dead              the daemon's process has ended without unmounting

The kernel serves a sealed mount without a process. The record of a sealed mount has a field ``seal``:

    dev, number       the device and the id of the EROFS mount, as in mountinfo
    status            the object of ``kitfs status`` at the time of sealing

A record gets its ``seal`` just before the EROFS mount replaces the FUSE mount. The mount table then decides which of
the two mounts the record describes, so the state is known even if the daemon is killed between these two steps.

No function here sends a request to the mounted file system, because the request could block.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from kitfs.daemon.run_dir import Record, RunDir, ask
from kitfs.erofs import mounting as erofs
from kitfs.errors import NotFound
from kitfs.fuse.mount_table import FSTYPE, MountInfo, mount_at, mounts

ANSWER: Final = 5.0  # seconds to wait for the answer of a daemon
RESTART: Final = 2.0  # seconds in which a client whose connection a dying worker closed connects again
CONCURRENCY: Final = 16  # daemons that are asked at the same time


class Presence(NamedTuple):
    """The state of a mount, and its status object. The status object is empty if the daemon did not answer."""

    state: str
    status: dict[str, Any]


def is_lazy_at(record: Record, there: MountInfo | None) -> bool:
    """Return whether the topmost mount at the mount point of a record is the FUSE mount that the record describes.

    The record of an older version of kitfs has no device, and describes any FUSE mount of kitfs at the mount point.
    """
    return (
        there is not None
        and there.fstype == FSTYPE
        and record.transport != erofs.FSTYPE
        and record.dev in ("", there.dev)
    )


def is_sealed_at(record: Record, there: MountInfo | None) -> bool:
    """Return whether the topmost mount at the mount point of a record is the sealed mount that the record describes."""
    return (
        there is not None
        and there.fstype == erofs.FSTYPE
        and record.seal.get("dev") == there.dev
        and there.source in (record.reference, erofs.UNNAMED)
    )


def is_at(record: Record, there: MountInfo | None) -> bool:
    """Return whether the topmost mount at the mount point of a record is the mount that the record describes."""
    return is_lazy_at(record, there) or is_sealed_at(record, there)


def is_of_kitfs(there: MountInfo | None) -> bool:
    """Return whether a mount was made by kitfs, with any run-time directory.

    A sealed mount has an extended attribute that identifies it. Reading the attribute cannot block, because the kernel
    serves the mount.
    """
    if there is None or there.fstype != erofs.FSTYPE:
        return there is not None and there.fstype == FSTYPE
    try:
        return bool(os.getxattr(there.mountpoint, "user.kitfs.manifest"))
    except OSError:
        return False


def mounted_record(run: RunDir, mountpoint: str) -> tuple[Record, MountInfo | None]:
    """Return the record of the mount at a mount point, and what is mounted there. Raises NotFound without a record."""
    there = mount_at(mountpoint)
    record = record_at(run, mountpoint, there)
    if record is None:
        raise NotFound(f"kitfs has no mount at {mountpoint}")
    return record, there


def record_at(run: RunDir, mountpoint: str, there: MountInfo | None) -> Record | None:
    """Return the record of the mount at a mount point.

    If the mount at the mount point does not belong to this run-time directory, the result is None, or the record of a
    daemon whose mount was detached from the mount point. The record of a sealed mount that has ended is removed.
    """
    all_there = [mount for mount in mounts() if mount.mountpoint == mountpoint]
    found = []
    for record in run.records():
        if record.mountpoint != mountpoint:
            continue
        if record.seal and not run.alive(record) and not any(is_at(record, mount) for mount in all_there):
            run.forget(record)
        else:
            found.append(record)
    best = next((record for record in reversed(found) if is_at(record, there)), found[-1] if found else None)
    return None if best is None else _current(run, best, there)


def _current(run: RunDir, record: Record, there: MountInfo | None) -> Record:
    """Return a record as it is now. If the mount was sealed, its transport is EROFS, and its process may have ended."""
    if not is_sealed_at(record, there):
        return record
    return replace(record, transport=erofs.FSTYPE, pid=record.pid if run.alive(record) else None)


def presence(run: RunDir, record: Record, *, timeout: float = ANSWER) -> Presence:
    """Return the state of a mount, after waiting at most ``timeout`` seconds for its daemon."""
    found = _presence(run, record, mount_at(record.mountpoint), timeout)
    if found.state != "alive":
        current, there = run.record(record.mountpoint), mount_at(record.mountpoint)
        if current is not None and current.nonce == record.nonce and is_sealed_at(current, there):
            return _presence(run, current, there, timeout)  # it was sealed since the record was read
    return found


def _presence(run: RunDir, record: Record, there: MountInfo | None, timeout: float) -> Presence:
    if is_sealed_at(record, there):
        return Presence("alive", _sealed_status(_current(run, record, there)))
    if not run.alive(record):
        return Presence("dead", {})
    try:
        status = _asked(run, record, timeout)
    except (OSError, ValueError):
        return Presence("does not answer" if is_at(record, there) else "detached", {})
    if not is_at(record, there):
        return Presence("detached", status)
    if "restarting" in status:
        return Presence("restarting", {"worker_pid": None})
    return Presence("alive", status)


def _asked(run: RunDir, record: Record, timeout: float) -> dict[str, Any]:
    """Return the answer of a daemon. Raises OSError or ValueError if it does not answer.

    The answer of a supervisor that is replacing its worker has a field ``restarting``, the reason. A worker that dies
    closes the connections that it has accepted, so this function connects again.
    """
    deadline = time.monotonic() + RESTART
    while True:
        try:
            status: dict[str, Any] = ask(run.file_of(record, "sock"), timeout=timeout)
            return status
        except TimeoutError:
            raise
        except (OSError, ValueError):
            if time.monotonic() > deadline or not run.alive(record):
                raise
            time.sleep(0.05)


def leave(run: RunDir, record: Record) -> None:
    """Remove the record of a daemon that is about to exit, or only its socket if a sealed mount stays."""
    current = run.record(record.mountpoint)
    if current is not None and current.nonce == record.nonce and is_sealed_at(current, mount_at(record.mountpoint)):
        run.close_socket(record)
    else:
        run.forget(record)


def _sealed_status(record: Record) -> dict[str, Any]:
    now = {"transport": record.transport, "pid": record.pid, "uptime_s": round(time.time() - record.started, 3)}
    return {**record.seal["status"], **now, "worker_pid": None, "mode": "sealed", "not_sealed": None}


def presences(run: RunDir, records: Sequence[Record]) -> list[Presence]:
    """Return the states of several mounts, whose daemons are asked at the same time."""
    from concurrent.futures import ThreadPoolExecutor

    if not records:
        return []
    with ThreadPoolExecutor(min(len(records), CONCURRENCY)) as pool:
        return list(pool.map(lambda record: presence(run, record), records))


def records_of(run: RunDir, store: str) -> list[Record]:
    """Return the records of the mounts that use a store. ``store`` is the real path of the store's directory.

    The record of a dead daemon is removed if it left no mount behind.
    """
    table: dict[str, list[MountInfo]] = {}
    for mount in mounts():
        table.setdefault(mount.mountpoint, []).append(mount)  # a later mount covers an earlier one
    found = []
    for record in run.records():
        if record.store != store:
            continue
        there = table.get(record.mountpoint, [])
        if run.alive(record) or any(is_at(record, mount) for mount in there):
            found.append(_current(run, record, there[-1] if there else None))
        else:
            run.forget(record)
    return found
