"""x"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from kitfs.errors import ManifestError
from kitfs.gocompat.json import loads
from kitfs.oci.manifest import ACCEPT, DOCKER_LIST, IMAGE_INDEX, IMAGE_MANIFEST, MAX_MANIFEST, check_fields
from kitfs.oci.names import Digest
from kitfs.server.api_errors import ApiError
from kitfs.server.names import digest_of
from kitfs.store.repositories import BLOBS, MANIFESTS

INDEXES: Final = (IMAGE_INDEX, DOCKER_LIST)


NOT_DISTRIBUTED: Final = (
    "application/vnd.oci.image.layer.nondistributable.v1.",
    "application/vnd.docker.image.rootfs.foreign.diff.",
)  # layers whose bytes are elsewhere by their very type


@dataclass(frozen=True, slots=True)
class ServedManifest:
    """A manifest as it is served."""

    digest: Digest
    media_type: str
    data: bytes


class PushedManifest(NamedTuple):
    """A manifest that was pushed: its digest, the subject that it refers to, the tags that it got."""

    digest: Digest
    subject: Digest | None
    tags: tuple[str, ...]


def too_big() -> ApiError:
    """413 of a manifest."""
    return ApiError(413, "MANIFEST_INVALID", f"a manifest has at most {MAX_MANIFEST} bytes")


def read_manifest(data: bytes, content_type: str) -> tuple[dict[str, Any], str]:
    """(manifest, media type). Raises ApiError for what is no manifest, or not what its header says."""
    try:
        manifest = loads(data)
    except ValueError as e:
        raise _invalid(f"not JSON: {e}")
    if not isinstance(manifest, dict):
        raise _invalid("a manifest is an object")
    inside = manifest.get("mediaType")
    named = content_type.partition(";")[0].strip().lower()
    if named and isinstance(inside, str) and inside and inside != named:
        raise _invalid(f"the Content-Type is {named[:100]}, the mediaType {inside[:100]}")
    media_type = (
        named
        or (inside if isinstance(inside, str) else "")
        or (IMAGE_INDEX if "manifests" in manifest else IMAGE_MANIFEST)
    )
    if media_type not in ACCEPT:
        raise _invalid(f"media type {media_type[:100]!r} is none of {', '.join(ACCEPT)}")
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
    """(descriptor, kind of link) of everything that must be there before a manifest is."""
    if media_type in INDEXES:
        descriptors, kind = manifest.get("manifests"), MANIFESTS
    else:
        layers = manifest.get("layers")
        if not isinstance(manifest.get("config"), dict) or not isinstance(layers, (list, type(None))):
            raise _invalid("it needs a config and a list of layers")
        descriptors, kind = [manifest["config"], *(layers or ())], BLOBS
    if not isinstance(descriptors, (list, type(None))) or not all(isinstance(d, dict) for d in descriptors or ()):
        raise _invalid("a list of descriptors was expected")
    for descriptor in descriptors or ():
        elsewhere = str(descriptor.get("mediaType", "")).startswith(NOT_DISTRIBUTED) or bool(descriptor.get("urls"))
        if not elsewhere:
            yield descriptor, kind


def subject_of(manifest: dict[str, Any]) -> Digest | None:
    subject = manifest.get("subject")
    if subject is None:
        return None
    if not isinstance(subject, dict):
        raise _invalid("subject must be a descriptor")
    return digest_of(str(subject.get("digest")), code="MANIFEST_INVALID")


def referrer_of(manifest: dict[str, Any], media_type: str, digest: Digest, size: int) -> dict[str, Any]:
    """The descriptor under which a manifest is listed as a referrer (distribution-spec, "Listing Referrers").

    Raises ApiError for types and annotations that no client could read in it.
    """
    config = manifest.get("config")
    config_type = config.get("mediaType") if isinstance(config, dict) and media_type not in INDEXES else None
    artifact_type = manifest.get("artifactType") or config_type
    annotations = manifest.get("annotations") or {}
    if not isinstance(artifact_type, (str, type(None))):
        raise _invalid("artifactType must be a text")
    if not isinstance(annotations, dict) or not all(isinstance(value, str) for value in annotations.values()):
        raise _invalid("annotations must be texts")
    descriptor = {
        "mediaType": media_type,
        "digest": str(digest),
        "size": size,
        "artifactType": artifact_type,
        "annotations": annotations,
    }
    return {key: value for key, value in descriptor.items() if value}
