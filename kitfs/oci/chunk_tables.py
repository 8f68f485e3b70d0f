"""Name the chunk tables of a kit (``layers.chunk_table``) in its manifest, and list them in a referrer.

The descriptor of a layer has an annotation, ``ANNOTATION``, whose value is a JSON object:

    {"digest": digest of the table, "size": its size in bytes, "head": digest of its head, "headSize": size of its head}

So the digest of the kit's manifest vouches for every chunk of every layer. The annotation names the blob with the
table, because the digest of a manifest that refers to the kit cannot be in the kit. The tables are also the layers of
such a manifest, a referrer of the kit (``referrer_of``), because a registry deletes blobs that no manifest names. The
referrer is made from the kit's manifest alone, so it is the same for every copy of the kit. This module does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from kitfs.errors import InvalidReference
from kitfs.gocompat.json import dumps, own_json
from kitfs.layers.chunk_table import MAX_HEAD, BuiltTable
from kitfs.oci.manifest import CREATED, IMAGE_MANIFEST, Descriptor, Manifest, children
from kitfs.oci.names import Digest

ANNOTATION: Final = "org.kitfs.chunk-table"
LAYER: Final = "org.kitfs.layer"  # in the referrer: the digest of the layer that a table belongs to
MEDIA_TYPE: Final = "application/vnd.kitfs.chunk-table.v1"
EMPTY: Final = b"{}"
EMPTY_CONFIG: Final = Descriptor("application/vnd.oci.empty.v1+json", Digest.of(EMPTY), len(EMPTY))
MAX_TABLE: Final = 8 << 30  # bytes


class NamedTable(NamedTuple):
    """A chunk table: the descriptor of its blob, and the digest and the size (in bytes) of its head."""

    blob: Descriptor
    head: Digest
    head_size: int


def named(table: BuiltTable) -> NamedTable:
    """Return the names of a table that was just built."""
    blob = Descriptor(MEDIA_TYPE, Digest.of(table.data), len(table.data))
    return NamedTable(blob, Digest.of(table.data[: table.head]), table.head)


def annotation_of(table: NamedTable) -> str:
    """Return the value of the annotation that names a table."""
    fields = {"digest": table.blob.digest, "size": table.blob.size, "head": table.head, "headSize": table.head_size}
    return dumps(fields).decode()


def table_of(annotations: Mapping[str, Any]) -> NamedTable | None:
    """Return the table that the annotations of a layer name. None if they name no table, or are damaged."""
    value = annotations.get(ANNOTATION)
    try:
        fields = own_json(value.encode()) if isinstance(value, str) else None
        if not isinstance(fields, dict):
            return None
        size, head_size = fields["size"], fields["headSize"]
        digest, head = Digest.parse(fields["digest"]), Digest.parse(fields["head"])
    except (ValueError, KeyError, InvalidReference):
        return None
    if head.algorithm != "sha256":  # as all other digests in a table
        return None
    if not (isinstance(size, int) and isinstance(head_size, int) and 0 < head_size <= size <= MAX_TABLE):
        return None
    return None if head_size > MAX_HEAD else NamedTable(Descriptor(MEDIA_TYPE, digest, size), head, head_size)


def tables_of(layers: Iterable[Descriptor]) -> tuple[Descriptor, ...]:
    """Return the descriptors of the tables of the layers, each digest once."""
    found = (table_of(layer.annotations) for layer in layers)
    return tuple({table.blob.digest: table.blob for table in found if table is not None}.values())


def with_tables(blobs: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the digests in the descriptors of blobs (JSON objects), and the digests of the tables that they name."""
    found: set[str] = set()
    for blob in blobs:
        found.add(blob["digest"])
        annotations = blob.get("annotations")
        table = table_of(annotations) if isinstance(annotations, dict) else None
        if table is not None:
            found.add(table.blob.digest)
    return found


def blob_digests(data: bytes) -> set[str]:
    """Return the digests of the config, the layers and the chunk tables of a manifest.

    The result is an empty set if the manifest is damaged.
    """
    try:
        manifest = own_json(data)
    except ValueError:
        return set()
    return with_tables(children(manifest).blobs) if isinstance(manifest, dict) else set()


def referrer_of(kit: Descriptor, manifest: Manifest) -> bytes | None:
    """Return the manifest that refers to a kit and lists its chunk tables. None if the kit has no tables."""
    tables: dict[Digest, Descriptor] = {}
    for layer in manifest.layers:
        table = table_of(layer.annotations)
        if table is not None:
            blob = table.blob
            tables[blob.digest] = Descriptor(blob.media_type, blob.digest, blob.size, {LAYER: str(layer.digest)})
    return _list_of(tuple(tables.values()), kit, manifest) if tables else None


def unbound_referrer_of(kit: Descriptor, manifest: Manifest, tables: Mapping[Digest, NamedTable]) -> bytes:
    """Return the manifest that refers to a kit and lists ``tables`` of its layers, which the kit does not name.

    ``tables`` maps the digest of a layer to its table. The descriptor of a table has ``ANNOTATION``, as the descriptor
    of a layer would have it.
    """
    listed = tuple(
        Descriptor(
            MEDIA_TYPE, table.blob.digest, table.blob.size, {LAYER: str(layer), ANNOTATION: annotation_of(table)}
        )
        for layer, table in tables.items()
    )
    return _list_of(listed, kit, manifest)


def _list_of(tables: tuple[Descriptor, ...], kit: Descriptor, manifest: Manifest) -> bytes:
    created = {name: value for name, value in manifest.annotations.items() if name == CREATED}
    subject = Descriptor(kit.media_type or IMAGE_MANIFEST, kit.digest, kit.size)
    return Manifest(EMPTY_CONFIG, tables, IMAGE_MANIFEST, MEDIA_TYPE, subject, created).to_json()
