"""Ask the daemon of a mount to seal it now. Threading: no shared state."""

from __future__ import annotations

import errno
from typing import Any, Final

from kitfs.daemon.life import SEAL
from kitfs.daemon.presence import is_sealed_at, record_at
from kitfs.daemon.run_dir import RunDir, ask
from kitfs.errors import MountError, NotFound, error_from_json
from kitfs.fuse.mounting import mount_at

PATIENCE: Final = 600.0  # seconds; an image of 100,000 files takes a few


def seal_now(run: RunDir, mountpoint: str) -> None:
    """Seal the mount at ``mountpoint``, also one with ``--seal never``. Does nothing if it is sealed.

    Raises NotFound if nothing of kitfs is mounted there, and MountError, with the reason, if it is not sealed.
    """
    there = mount_at(mountpoint)
    record = record_at(run, mountpoint, there)
    if record is None:
        raise NotFound(f"nothing of kitfs is mounted at {mountpoint}")
    if is_sealed_at(record, there):
        return
    try:
        answer: Any = ask(run.file_of(record, "sock"), timeout=PATIENCE, command=SEAL)
    except (OSError, ValueError) as e:
        raise MountError(f"cannot seal {mountpoint}: its daemon does not answer: {e}", errno=errno.EBUSY)
    if not isinstance(answer, dict) or "error" in answer:
        raise error_from_json(answer)
    if not answer.get("sealed"):
        raise MountError(
            f"cannot seal {mountpoint}: its daemon is of an older kitfs; unmount it and mount it again",
            errno=errno.EOPNOTSUPP,
        )
