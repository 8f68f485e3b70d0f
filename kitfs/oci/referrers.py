"""The tag that stands in for the referrers API, as a value: its name, and the index below it with an entry more or
less.

Follows distribution-spec v1.1 "Referrers Tag Schema" and "Pushing Manifests with Subject". What it does not know of
an index stays in it. No I/O here.
"""

from __future__ import annotations

from typing import Any, Final

from kitfs.errors import ManifestError
from kitfs.gocompat.json import dumps, loads
from kitfs.oci.manifest import IMAGE_INDEX, Descriptor
from kitfs.oci.names import Digest

EMPTY: Final = b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}'


def tag_of(digest: Digest) -> str:
    """The tag under which the referrers of a manifest are listed."""
    return f"{digest.algorithm[:32]}-{digest.hex[:64]}"


def subject_of(data: bytes) -> Digest | None:
    """The digest that a manifest or index names as its subject. Raises ManifestError for a subject that is no
    descriptor.
    """
    subject = _fields(data).get("subject")
    return None if subject is None else Descriptor.from_json(subject, "manifest.subject").digest


def entry_of(media_type: str, digest: Digest, data: bytes) -> Descriptor:
    """What a referrers list says of a manifest: its artifact type (else its config's media type) and its
    annotations.
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


def listing(index: bytes, entry: Descriptor) -> bytes | None:
    """The index with one more entry, None when it has it already. Raises ManifestError if the data is not an index."""
    fields, rows = _index(index)
    if any(_names(row, entry.digest) for row in rows):
        return None
    return dumps({**fields, "manifests": [*rows, entry.to_json()]})


def omitting(index: bytes, digest: Digest) -> bytes | None:
    """The index without a manifest, None when it does not have it. Raises ManifestError if the data is not an index."""
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
