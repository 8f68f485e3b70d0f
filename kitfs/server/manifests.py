"""Check manifests that are pushed to the registry, list the blobs they need, and make their referrer descriptors.

These functions do no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kitfs.errors import ManifestError
from kitfs.gocompat.json import loads
from kitfs.oci.manifest import ACCEPT, DOCKER_LIST, IMAGE_INDEX, IMAGE_MANIFEST, MAX_MANIFEST, check_fields, children
from kitfs.oci.names import Digest
from kitfs.server.api_errors import ApiError
from kitfs.server.names import digest_of
from kitfs.store.repositories import BLOBS, MANIFESTS

INDEXES: Final = (IMAGE_INDEX, DOCKER_LIST)


NOT_DISTRIBUTED: Final = (
    "application/vnd.oci.image.layer.nondistributable.v1.",
    "application/vnd.docker.image.rootfs.foreign.diff.",
)  # layers whose type says that their bytes are elsewhere


@dataclass(frozen=True, slots=True)
class ServedManifest:
    """A manifest that the registry serves."""

    digest: Digest
    media_type: str
    data: bytes


class PushedManifest(NamedTuple):
    """A manifest that was pushed: its digest, the digest of its subject, and its new tags."""

    digest: Digest
    subject: Digest | None
    tags: tuple[str, ...]


def too_big() -> ApiError:
    """Return the 413 response to a manifest that is too large."""
    return ApiError(413, "MANIFEST_INVALID", f"the manifest is too large: the limit is {MAX_MANIFEST} bytes")


def read_manifest(data: bytes, content_type: str) -> tuple[dict[str, Any], str]:
    """Parse a pushed manifest into (manifest, media type).

    Raises ApiError if the bytes are not a manifest, or if their media type differs from the Content-Type.
    """
    try:
        manifest = loads(data)
    except ValueError as e:
        raise _invalid(f"it is not JSON: {e}")
    if not isinstance(manifest, dict):
        raise _invalid("it is not a JSON object")
    inside = manifest.get("mediaType")
    named = content_type.partition(";")[0].strip().lower()
    if named and isinstance(inside, str) and inside and inside != named:
        raise _invalid(f"its Content-Type is {named[:100]}, but its mediaType is {inside[:100]}")
    media_type = (
        named
        or (inside if isinstance(inside, str) else "")
        or (IMAGE_INDEX if "manifests" in manifest else IMAGE_MANIFEST)
    )
    if media_type not in ACCEPT:
        raise _invalid(f"media type {media_type[:100]!r} is not one of {', '.join(ACCEPT)}")
    if manifest.get("schemaVersion") != 2:
        raise _invalid("schemaVersion must be 2")
    try:
        check_fields(manifest, is_index=media_type in INDEXES)
    except ManifestError as e:
        raise _invalid(str(e))
    return manifest, media_type


def _invalid(message: str) -> ApiError:
    return ApiError(400, "MANIFEST_INVALID", f"manifest invalid: {message}")


def parts_of(manifest: dict[str, Any], media_type: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield (descriptor, kind of link) for everything that a repository must contain before the manifest is pushed."""
    is_index = media_type in INDEXES
    listed = manifest.get("manifests" if is_index else "layers")
    listed = [] if listed is None else listed
    if not is_index and not (_is_descriptor(manifest.get("config")) and isinstance(listed, list)):
        raise _invalid("it must have a config and a list of layers")
    if not isinstance(listed, list) or not all(map(_is_descriptor, listed)):
        raise _invalid("its layers or manifests are not a list of descriptors")
    found = children(manifest)
    descriptors, kind = (found.manifests, MANIFESTS) if is_index else (found.blobs, BLOBS)
    for descriptor in descriptors:
        elsewhere = str(descriptor.get("mediaType", "")).startswith(NOT_DISTRIBUTED) or bool(descriptor.get("urls"))
        if not elsewhere:
            yield descriptor, kind


def _is_descriptor(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("digest"), str)


def subject_of(manifest: dict[str, Any]) -> Digest | None:
    """Return the digest of a manifest's subject, or None if it has no subject. Raises ApiError."""
    subject = manifest.get("subject")
    if subject is None:
        return None
    if not isinstance(subject, dict):
        raise _invalid("subject must be a descriptor")
    return digest_of(str(subject.get("digest")), code="MANIFEST_INVALID")


def referrer_of(manifest: dict[str, Any], media_type: str, digest: Digest, size: int) -> dict[str, Any]:
    """Return a manifest's descriptor for the list of referrers (distribution-spec, "Listing Referrers").

    Raises ApiError for an artifact type or annotations that are not strings.
    """
    config = manifest.get("config")
    config_type = config.get("mediaType") if isinstance(config, dict) and media_type not in INDEXES else None
    artifact_type = manifest.get("artifactType") or config_type
    annotations = manifest.get("annotations") or {}
    if not isinstance(artifact_type, (str, type(None))):
        raise _invalid("artifactType must be a string")
    if not isinstance(annotations, dict) or not all(isinstance(value, str) for value in annotations.values()):
        raise _invalid("annotations must be strings")
    descriptor = {
        "mediaType": media_type,
        "digest": str(digest),
        "size": size,
        "artifactType": artifact_type,
        "annotations": annotations,
    }
    return {key: value for key, value in descriptor.items() if value}
