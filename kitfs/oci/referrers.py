"""Compute the name of the referrers tag, and change the index under that tag.

Registries without the referrers API list referrers under this tag. Sources: distribution-spec v1.1, "Referrers Tag
Schema" and "Pushing Manifests with Subject". Unknown fields of an index are kept. This module does no I/O.
"""

from __future__ import annotations

import re
from typing import Any, Final

from kitfs.errors import ManifestError
from kitfs.gocompat.json import dumps, loads
from kitfs.oci.manifest import IMAGE_INDEX, Descriptor
from kitfs.oci.names import Digest

TAG: Final = re.compile(r"sha(?:256|512)-[0-9a-f]{64}")  # only half of the digits of a sha512 digest
EMPTY: Final = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'


def tag_of(digest: Digest) -> str:
    """Return the tag under which the referrers of a manifest are listed."""
    return f"{digest.algorithm[:32]}-{digest.hex[:64]}"


def is_tag(tag: str) -> bool:
    """Return whether a tag has the form of a referrers tag."""
    return TAG.fullmatch(tag) is not None


def subject_of(data: bytes) -> Digest | None:
    """Return the digest of the subject of a manifest or index, or None if it has no subject.

    Raises ManifestError for a subject that is not a descriptor.
    """
    subject = _fields(data).get("subject")
    return None if subject is None else Descriptor.from_json(subject, "manifest.subject").digest


def entry_of(media_type: str, digest: Digest, data: bytes) -> Descriptor:
    """Return the descriptor of a manifest for a list of referrers.

    The descriptor contains the manifest's annotations and artifact type. If the artifact type is missing, the media
    type of the config replaces it.
    """
    fields = _fields(data)
    config = fields.get("config")
    kind = fields.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else "")
    entry = {
        "mediaType": media_type,
        "digest": digest,
        "size": len(data),
        "artifactType": kind,
        "annotations": fields.get("annotations"),
    }
    return Descriptor.from_json(entry, "manifest")


def with_entry(index: bytes, entry: Descriptor) -> bytes | None:
    """Return the index with an additional entry, or None if the index already has that entry.

    Raises ManifestError for bytes that are not an index.
    """
    fields, rows = _index(index)
    if any(_names(row, entry.digest) for row in rows):
        return None
    return dumps({**fields, "manifests": [*rows, entry.to_json()]})


def without_entry(index: bytes, digest: Digest) -> bytes | None:
    """Return the index without the entry of a manifest, or None if the index does not have that entry.

    Raises ManifestError for bytes that are not an index.
    """
    fields, rows = _index(index)
    left = [row for row in rows if not _names(row, digest)]
    return None if len(left) == len(rows) else dumps({**fields, "manifests": left})


def _index(data: bytes) -> tuple[dict[str, Any], list[Any]]:
    fields = _fields(data)
    rows = fields.get("manifests")
    if fields.get("mediaType", IMAGE_INDEX) != IMAGE_INDEX or not isinstance(rows, list):
        raise ManifestError("the fallback tag of the referrers API is not an image index, so it is not changed")
    return fields, rows


def _names(row: Any, digest: Digest) -> bool:
    return isinstance(row, dict) and row.get("digest") == digest


def _fields(data: bytes) -> dict[str, Any]:
    try:
        fields = loads(data)
    except ValueError as e:
        raise ManifestError(f"not a manifest: {e}")
    if not isinstance(fields, dict):
        raise ManifestError("not a manifest: an object was expected")
    return fields
