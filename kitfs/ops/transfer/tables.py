"""Push the chunk tables of a kit (``oci.chunk_tables``). The module has no threads and no state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from kitfs.content import Destination, Hints
from kitfs.errors import RegistryError
from kitfs.kit.origin import file_pieces
from kitfs.oci.chunk_tables import EMPTY, EMPTY_CONFIG, referrer_of, tables_of
from kitfs.oci.manifest import IMAGE_MANIFEST, Descriptor, Manifest
from kitfs.oci.names import Digest
from kitfs.ops.events import Report, Warned
from kitfs.store.store import Store


def push_tables(
    manifest: Manifest, store: Store, target: Destination, neighbours: Mapping[Digest, Sequence[str]]
) -> bool:
    """Upload the chunk tables of a kit that are in the store. Returns whether the kit has tables and all were sent.

    ``neighbours``: for a blob, other repositories of the same registry that may have it.
    """
    tables = tables_of(manifest.layers)
    sent = 0
    for table in tables:
        file = store.open_sealed(table.digest)
        if file is None:
            continue
        with file:
            read = partial(file_pieces, file)
            target.upload(table, read, mount_from=neighbours.get(table.digest, ()), hints=store.catalog)
        sent += 1
    return bool(tables) and sent == len(tables)


def push_table_list(
    target: Destination,
    kit: Descriptor,
    manifest: Manifest,
    *,
    mount_from: Sequence[str] = (),
    hints: Hints | None,
    report: Report,
) -> None:
    """Push the manifest that refers to a kit and lists its chunk tables, if the kit has tables.

    The repository must have the kit and the tables. A warning is reported if the registry refuses the manifest, because
    the kit can be read nevertheless. ``mount_from``: repositories of the registry that may have such a manifest.
    """
    data = referrer_of(kit, manifest)
    if data is None:
        return
    try:
        put_list(target, data, mount_from=mount_from, hints=hints)
    except RegistryError as e:
        report(Warned(f"the registry may delete the chunk tables of the kit, because it refused the list of them: {e}"))


def put_list(target: Destination, data: bytes, *, mount_from: Sequence[str] = (), hints: Hints | None) -> Digest:
    """Push a manifest that lists chunk tables, and return its digest. Raises RegistryError."""
    target.upload(EMPTY_CONFIG, lambda offset: iter([EMPTY[offset:]]), mount_from=mount_from, hints=hints)
    return target.put_manifest(Digest.of(data), IMAGE_MANIFEST, data)
