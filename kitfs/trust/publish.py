"""Put signatures beside the kit that they sign, in a repository: as a referrer, or under cosign's tag.

Threading: no state. Two processes that sign the same digest in the tag's shape at the same moment may lose one of the
two signatures, as with cosign; referrers do not have this problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from kitfs.content import Destination, Manifests, ReadFrom
from kitfs.errors import NotFound
from kitfs.oci.manifest import CREATED, IMAGE_MANIFEST, Descriptor, Manifest
from kitfs.oci.names import Digest
from kitfs.trust import simple_signing
from kitfs.trust.bundle import MEDIA_TYPE
from kitfs.trust.signatures import PREDICATE_TYPE

EMPTY: Final = b"{}"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"  # image-spec v1.1, "Guidance for an empty descriptor"
CONTENT: Final = "dev.sigstore.bundle.content"


class Repository(Destination, Manifests, Protocol):
    """A repository that is read and written."""


def push_bundle(target: Destination, subject: Descriptor, bundle: bytes, predicate_type: str, now: datetime) -> Digest:
    """Push a bundle as a referrer of ``subject``; return the digest of its manifest. Raises RegistryError."""
    config = Descriptor(EMPTY_TYPE, Digest.of(EMPTY), len(EMPTY))
    layer = Descriptor(MEDIA_TYPE, Digest.of(bundle), len(bundle))
    manifest = Manifest(
        config,
        (layer,),
        IMAGE_MANIFEST,
        MEDIA_TYPE,
        subject,
        {
            CONTENT: "dsse-envelope",
            PREDICATE_TYPE: predicate_type,
            CREATED: now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
    ).to_json()
    target.upload(config, _reader(EMPTY))
    target.upload(layer, _reader(bundle))
    return target.put_manifest(Digest.of(manifest), IMAGE_MANIFEST, manifest)


def push_tagged(target: Repository, digest: Digest, payload: bytes, signature: bytes) -> Digest:
    """Add a signature to the manifest under cosign's tag; return the digest of that manifest. Raises RegistryError."""
    layer = simple_signing.layer_of(payload, signature)
    target.upload(layer, _reader(payload))
    return add_layers(target, simple_signing.tag_of(digest), [layer])


def add_layers(target: Repository, tag: str, layers: Sequence[Descriptor]) -> Digest:
    """Add layers, whose blobs the repository has, to the manifest under a tag of cosign; return its digest.

    Layers that the manifest has stay. Nothing is pushed if it has all of them. Raises RegistryError, and ManifestError
    if something else stands under the tag.
    """
    try:
        found, data = target.manifest(tag)
        before, digest = Manifest.parse(data), found.digest
    except NotFound:
        before, digest = None, Digest.of(b"")
    missing = [layer for layer in layers if before is None or layer not in before.layers]
    for layer in missing:
        data, config = simple_signing.manifest_of(before, layer)
        before = Manifest.parse(data)
        target.upload(before.config, _reader(config))
    return target.put_manifest(tag, IMAGE_MANIFEST, data) if missing else digest


def _reader(data: bytes) -> ReadFrom:
    def read(offset: int) -> Iterator[bytes]:
        if data[offset:]:
            yield data[offset:]

    return read
