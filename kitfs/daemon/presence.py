"""Whether a record is true: the mount table, the daemon's lock and its answer, combined in one place for every verb.

    alive             the mount is at its mount point, and its daemon answers
    does not answer   the mount exists and the daemon's process runs, but it is stopped or stuck
    detached          nothing at the mount point leads to the daemon any more; it serves files that are still open
    dead              the daemon's process has ended without unmounting

Nothing here makes a request of the mounted file system. Threading: no shared state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from kitfs.daemon.run_dir import Record, RunDir, ask
from kitfs.fuse.mounting import FSTYPE, MountInfo, mount_at, mounts

ANSWER: Final = 5.0  # seconds that a daemon has to answer
CONCURRENCY: Final = 16  # daemons that are asked at the same time


class Presence(NamedTuple):
    """The state of a mount, and the daemon's own status object, which is empty unless the daemon answered."""

    state: str
    status: dict[str, Any]


def is_at(record: Record, there: MountInfo | None) -> bool:
    """Tell whether the topmost mount at the mount point of a record is the one that the record describes.

    The record of an older kitfs names no device.
    """
    return there is not None and there.fstype == FSTYPE and record.dev in ("", there.dev)


def record_at(run: RunDir, mountpoint: str, there: MountInfo | None) -> Record | None:
    """Return the record of the mount at a mount point. If the mount there is not of this run-time directory, return the
    record of a daemon that was detached from there, or None.
    """
    found = [record for record in run.records() if record.mountpoint == mountpoint]
    return next((record for record in reversed(found) if is_at(record, there)), found[-1] if found else None)


def presence(run: RunDir, record: Record, *, timeout: float = ANSWER) -> Presence:
    """Return the state of one mount. The daemon has ``timeout`` seconds to answer."""
    if not run.alive(record):
        return Presence("dead", {})
    there = is_at(record, mount_at(record.mountpoint))
    try:
        status: dict[str, Any] = ask(run.file_of(record, "sock"), timeout=timeout)
    except (OSError, ValueError):
        return Presence("does not answer" if there else "detached", {})
    return Presence("alive" if there else "detached", status)


def presences(run: RunDir, records: Sequence[Record]) -> list[Presence]:
    """Return the states of several mounts, which are asked at the same time."""
    from concurrent.futures import ThreadPoolExecutor

    if not records:
        return []
    with ThreadPoolExecutor(min(len(records), CONCURRENCY)) as pool:
        return list(pool.map(lambda record: presence(run, record), records))


def records_of(run: RunDir, store: str) -> list[Record]:
    """Return the records of a store's mounts (``store`` is a real path). Records of daemons that left no mount behind
    are removed.
    """
    table = {mount.mountpoint: mount for mount in mounts()}  # a later mount covers an earlier one
    found = []
    for record in run.records():
        if record.store != store:
            continue
        if run.alive(record) or is_at(record, table.get(record.mountpoint)):
            found.append(record)
        else:
            run.forget(record)
    return found
