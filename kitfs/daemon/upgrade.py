"""Replace the worker of a mount by a worker of the version of kitfs that is installed now."""

from __future__ import annotations

import errno
from typing import Any, Final, NamedTuple

from kitfs.daemon.presence import is_sealed_at, record_at
from kitfs.daemon.run_dir import RunDir, ask
from kitfs.daemon.serving import UPGRADE
from kitfs.daemon.supervisor import UPGRADE_PATIENCE
from kitfs.errors import MountError, NotFound
from kitfs.fuse.mount_table import mount_at

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
    there = mount_at(mountpoint)
    record = record_at(run, mountpoint, there)
    if record is None:
        raise NotFound(f"kitfs has no mount at {mountpoint}")
    if is_sealed_at(record, there):
        return Upgraded(mountpoint, None, None)
    failed = f"cannot upgrade the mount at {mountpoint}"
    try:
        answer: Any = ask(run.file_of(record, "sock"), timeout=UPGRADE_PATIENCE + MARGIN, command=UPGRADE)
    except ConnectionRefusedError:
        raise MountError(f"{failed}: its daemon has died; run: kitfs umount {mountpoint}", errno=errno.EBUSY)
    except (OSError, ValueError) as e:
        raise MountError(f"{failed}: its daemon does not answer: {e}", errno=errno.EBUSY)
    if "error" in answer:
        raise MountError(f"{failed}, which is served as before: {answer['message']}", errno=errno.EBUSY)
    if "restarting" in answer:
        raise MountError(f"{failed}: its worker is being restarted (try again)", errno=errno.EBUSY)
    if "upgraded" not in answer:
        remedy = f"unmount it and mount it again: kitfs umount {mountpoint}"
        raise MountError(f"{failed}: its daemon cannot replace its worker; {remedy}", errno=errno.EOPNOTSUPP)
    return Upgraded(mountpoint, answer["upgraded"], answer["version"])
