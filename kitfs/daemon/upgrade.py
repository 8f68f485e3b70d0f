"""Replace the worker of a mount by a worker of the version of kitfs that is installed now."""

from __future__ import annotations

import errno
from typing import Final, NamedTuple

from kitfs.daemon.presence import is_sealed_at, mounted_record
from kitfs.daemon.run_dir import RunDir
from kitfs.daemon.serving import UPGRADE
from kitfs.daemon.supervisor import UPGRADE_PATIENCE
from kitfs.errors import MountError

MARGIN: Final = 10.0  # seconds to wait for the answer after the supervisor has given up


class Upgraded(NamedTuple):
    """A mount that was upgraded. The last two fields are None for a sealed mount, which needs no worker."""

    mountpoint: str
    worker_pid: int | None
    version: str | None


def upgrade(run: RunDir, mountpoint: str) -> Upgraded:
    """Replace the worker of the mount at ``mountpoint``. Programs can use the mount meanwhile.

    Raises NotFound if kitfs has no mount there, and MountError if the old worker was not replaced and still serves the
    mount.
    """
    record, there = mounted_record(run, mountpoint)
    if is_sealed_at(record, there):
        return Upgraded(mountpoint, None, None)
    failed = f"cannot upgrade the mount at {mountpoint}"
    answer = run.command(record, UPGRADE, timeout=UPGRADE_PATIENCE + MARGIN, failed=failed)
    if "error" in answer:
        raise MountError(f"{failed}, which is served as before: {answer['message']}", errno=errno.EBUSY)
    if "restarting" in answer:
        raise MountError(f"{failed}: its worker is being restarted (try again)", errno=errno.EBUSY)
    if "upgraded" not in answer:
        remedy = f"unmount it and mount it again: kitfs umount {mountpoint}"
        raise MountError(f"{failed}: its daemon cannot replace its worker; {remedy}", errno=errno.EOPNOTSUPP)
    return Upgraded(mountpoint, answer["upgraded"], answer["version"])
