"""Push signatures into the repository of the kit that they sign, as referrers or under cosign's tag.

Threading: the module has no state. If two processes at the same time sign the same digest under cosign's tag, one of
the two signatures may be lost, as with cosign. Referrers do not have this problem.
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
    """A repository whose manifests and blobs can be read and written."""


def push_bundle(target: Destination, subject: Descriptor, bundle: bytes, predicate_type: str, now: datetime) -> Digest:
    """Push a bundle as a referrer of ``subject``, and return the digest of the referrer. Raises RegistryError."""
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
    """Add layers to the manifest under a tag of cosign, and return the digest of the new manifest.

    The repository must have the blobs of the layers. The existing layers of the manifest stay. If the manifest has all
    of the layers already, nothing is pushed. Raises RegistryError, and ManifestError if the tag does not point to a
    manifest with signatures.
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
