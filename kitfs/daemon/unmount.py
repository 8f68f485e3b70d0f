"""Unmount a kit from a process that is not its daemon, as ``umount`` does.

When ``unmount`` returns, the mount point is free, and the daemon has ended unless the unmount was lazy.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from contextlib import suppress
from typing import Final

from kitfs.daemon.presence import is_at, is_lazy_at, is_of_kitfs, is_sealed_at, record_at
from kitfs.daemon.run_dir import Record, RunDir
from kitfs.errors import MountError
from kitfs.fuse import mounting
from kitfs.fuse.mount_table import FSTYPE, MountInfo, holders_of, mount_at, mounts

PATIENCE: Final = 15.0  # seconds to wait for the end of a daemon after an unmount
LAZY_PATIENCE: Final = 1.0  # seconds to wait after a lazy unmount, since open files may keep the daemon running


def unmount(run: RunDir, mountpoint: str, *, lazy: bool, patience: float = PATIENCE) -> None:
    """Unmount the kit at ``mountpoint``, and wait until its daemon has ended. With ``lazy``, do not wait.

    A mount whose daemon died is unmounted too. A daemon that was stopped (SIGSTOP) is continued, so that it can end.
    Raises MountError if kitfs has no mount at ``mountpoint``, if the mount is in use or covered by another mount, or if
    the mount or the daemon still exists after the attempt.
    """
    there = mount_at(mountpoint)
    record = record_at(run, mountpoint, there)
    known = record is not None and is_at(record, there)
    ours = known or is_of_kitfs(there)
    if there is not None and not ours and _covers(record, mountpoint):
        cover = f"{there.source} ({there.fstype})"
        raise MountError(
            f"cannot unmount {mountpoint}: it is covered by a mount of {cover} (unmount that mount first)",
            errno=errno.EBUSY,
        )
    if not ours and record is None:
        raise MountError(f"kitfs has no mount at {mountpoint}", errno=errno.EINVAL)
    while ours and there is not None:
        dead = record is not None and is_lazy_at(record, there) and not run.alive(record)
        if not lazy and record is not None and is_sealed_at(record, there) and (pids := users_of_detached(run, record)):
            # Programs that opened files before the mount was sealed count as its users, too.
            used = mounting.users_text(pids)
            raise MountError(f"cannot unmount {mountpoint}: it is {used}", errno=errno.EBUSY)
        mounting.unmount(mountpoint, lazy=lazy or dead, daemon=_processes_of(record))
        again = mount_at(mountpoint)
        if again is not None and again.number == there.number:
            raise MountError(f"cannot unmount {mountpoint}: it was still mounted after the attempt", errno=errno.EBUSY)
        if not known:
            return  # the mount belongs to another run-time directory
        # A daemon that was sealing the mount has attached another mount beneath it.
        record, there = run.record(mountpoint) or record, again
        ours = record is not None and is_sealed_at(record, there)
    if record is not None:
        _await_end(run, record, lazy=lazy, patience=patience)


def _covers(record: Record | None, mountpoint: str) -> bool:
    """Return whether the topmost mount at a mount point covers a mount of kitfs."""
    return any(
        mount.fstype == FSTYPE or (record is not None and is_at(record, mount))
        for mount in mounts()
        if mount.mountpoint == mountpoint
    )


def _await_end(run: RunDir, record: Record, *, lazy: bool, patience: float) -> None:
    """Wait for the end of a daemon whose mount is detached, and remove the files that the daemon may have left.

    Raises MountError if the daemon does not end.
    """
    _continue(run, record)
    deadline = time.monotonic() + (min(LAZY_PATIENCE, patience) if lazy else patience)
    asked = time.monotonic() + LAZY_PATIENCE
    while not run.wait_gone(record, 0.1):
        if time.monotonic() > deadline and lazy:
            return  # the daemon still serves the files that are open
        if time.monotonic() > asked and not lazy and (pids := users_of_detached(run, record)):
            text = f"its files are still {mounting.in_use_by(pids)}, so its daemon (process {record.pid}) continues"
            raise MountError(f"{record.mountpoint} is detached, but {text}", errno=errno.EBUSY)
        if time.monotonic() > deadline:
            text = f"its daemon (process {record.pid}) does not exit (see its log {record.log})"
            raise MountError(f"{record.mountpoint} is unmounted, but {text}", errno=errno.EBUSY)
    run.forget(record)


def users_of_detached(run: RunDir, record: Record) -> list[int]:
    """Return the ids of the visible processes that have files of a FUSE mount open after it was detached or sealed.

    When the daemon has ended, the mount has no users, and its numbers may be those of another mount.
    """
    if not record.dev or not run.alive(record):
        return []
    return holders_of(MountInfo(record.mountpoint, record.reference, FSTYPE, record.dev, record.number), detached=True)


def _continue(run: RunDir, record: Record) -> None:
    """Continue the supervisor and the worker of a mount if they were stopped by a signal."""
    for pid in _processes_of(record):
        with suppress(OSError):
            _continue_one(run, record, pid)


def _processes_of(record: Record | None) -> list[int]:
    """Return the ids of the supervisor and of the worker of a mount."""
    if record is None or record.pid is None:
        return []
    pids = [record.pid]
    with suppress(OSError), open(f"/proc/{record.pid}/task/{record.pid}/children", "rb") as f:
        pids += map(int, f.read().split())
    return pids


def _continue_one(run: RunDir, record: Record, pid: int) -> None:
    """Continue a process that was stopped. Raises OSError if the process does not exist.

    A process is continued only if it has the mount's lock file open, because another process may have got the process
    id since.
    """
    with open(f"/proc/{pid}/stat", "rb") as f:
        if f.read().rpartition(b")")[2].split()[:1] != [b"T"]:
            return
    lock = os.stat(run.file_of(record, "lock"))
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(OSError):
            if os.path.samestat(lock, os.stat(f"/proc/{pid}/fd/{fd}")):
                os.kill(pid, signal.SIGCONT)
                return
