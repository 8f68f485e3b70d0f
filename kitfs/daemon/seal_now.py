"""Verify the kit of a mount against a key or a policy, and ask the daemon of a mount to seal the mount now."""

from __future__ import annotations

import errno
from typing import Final

from kitfs.daemon.presence import is_sealed_at, mounted_record
from kitfs.daemon.run_dir import RunDir
from kitfs.daemon.serving import SEAL
from kitfs.errors import MountError, error_from_json
from kitfs.kit.options import WorkspaceOptions

PATIENCE: Final = 600.0  # seconds to wait for the daemon; an image of 100,000 files takes a few seconds


def verify_mount(run: RunDir, mountpoint: str, options: WorkspaceOptions) -> None:
    """Verify the kit of a mount, and its parents, as the key and the policy of ``options`` demand.

    Raises SignatureError, the errors of opening the kit, and NotFound if kitfs has no mount at ``mountpoint``.
    """
    if options.verify_key is None and options.policy is None:
        return
    from kitfs.kit.workspace import Workspace
    from kitfs.oci.names import Digest, parse_any

    record, _ = mounted_record(run, mountpoint)
    reference = parse_any(record.reference)
    with Workspace.open(options) as workspace:
        workspace.resolver.open(reference, pins={str(reference): Digest.parse(record.digest)}).close()


def seal_now(run: RunDir, mountpoint: str) -> None:
    """Seal the mount at ``mountpoint``, even if it has ``--seal never``. Does nothing if the mount is sealed already.

    Raises NotFound if kitfs has no mount at ``mountpoint``, and MountError with the reason if the mount cannot be
    sealed.
    """
    record, there = mounted_record(run, mountpoint)
    if is_sealed_at(record, there):
        return
    answer = run.command(record, SEAL, timeout=PATIENCE, failed=f"cannot seal {mountpoint}")
    if not isinstance(answer, dict) or "error" in answer:
        raise error_from_json(answer)
    if not answer.get("sealed"):
        raise MountError(
            f"cannot seal {mountpoint}: its daemon is an older version of kitfs; unmount it and mount it again",
            errno=errno.EOPNOTSUPP,
        )
