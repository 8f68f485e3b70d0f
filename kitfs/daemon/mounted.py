"""List the kits that the mounts of a store show."""

from __future__ import annotations

import os

from kitfs.daemon.presence import is_at, is_sealed_at
from kitfs.daemon.run_dir import RunDir
from kitfs.errors import MountError
from kitfs.fuse.mount_table import MountInfo, mounts
from kitfs.ops.library.cache import MountedKit


def mounted_kits(run_dir: str, store: str) -> list[MountedKit]:
    """Return the kits of the mounts that have a record in a run-time directory and use a store.

    ``store`` is the path of the store's directory. If the run-time directory cannot be used, the result is empty.
    """
    if not os.path.isdir(run_dir):
        return []
    table: dict[str, MountInfo] = {mount.mountpoint: mount for mount in mounts()}  # a later mount covers an earlier one
    found = []
    try:
        records = RunDir(run_dir).records()
    except MountError:
        return []
    for record in records:
        there = table.get(record.mountpoint)
        if record.store != os.path.realpath(store) or not is_at(record, there):
            continue
        layers = record.seal["status"].get("layers", ()) if is_sealed_at(record, there) else ()
        sealed = frozenset(layer["digest"] for layer in layers)
        found.append(MountedKit(record.reference, record.digest, record.mountpoint, sealed))
    return found
