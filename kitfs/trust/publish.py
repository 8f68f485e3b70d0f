"""Make the manifests of signatures and statements, and push them into the repository of their kit.

A manifest is a referrer of the kit, or is stored under cosign's tag. A signed statement is in a Sigstore bundle. A
statement without a signature is a layer of the type ``application/vnd.in-toto+json`` with the annotation
``in-toto.io/predicate-type``, as BuildKit writes it.

Threading: the module has no state. If two processes at the same time sign the same digest under cosign's tag, one of
the two signatures may be lost, as with cosign. Referrers do not have this problem.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, Protocol

from kitfs.content import Destination, Manifests, ReadFrom
from kitfs.errors import NotFound
from kitfs.oci.manifest import CREATED, IMAGE_MANIFEST, Descriptor, Manifest
from kitfs.oci.names import Digest
from kitfs.trust import simple_signing
from kitfs.trust.bundle import MEDIA_TYPE
from kitfs.trust.signatures import PREDICATE_TYPE, STATED_PREDICATE_TYPE
from kitfs.trust.statement import PAYLOAD_TYPE

EMPTY: Final = b"{}"
EMPTY_TYPE: Final = "application/vnd.oci.empty.v1+json"  # image-spec v1.1, "Guidance for an empty descriptor"
CONTENT: Final = "dev.sigstore.bundle.content"


class Repository(Destination, Manifests, Protocol):
    """A repository whose manifests and blobs can be read and written."""


class Document(NamedTuple):
    """A manifest that refers to a kit, and the manifest's blobs with their descriptors."""

    manifest: bytes
    blobs: tuple[tuple[Descriptor, bytes], ...]

    @property
    def digest(self) -> Digest:
        """The digest of the manifest."""
        return Digest.of(self.manifest)


def signed_document(subject: Descriptor, bundle: bytes, predicate_type: str, now: datetime) -> Document:
    """Return the referrer of ``subject`` with a bundle, as cosign 3 writes it."""
    layer = Descriptor(MEDIA_TYPE, Digest.of(bundle), len(bundle))
    annotations = {CONTENT: "dsse-envelope", PREDICATE_TYPE: predicate_type, CREATED: _time(now)}
    return _document(MEDIA_TYPE, layer, bundle, subject, annotations)


def stated_document(subject: Descriptor, statement: bytes, predicate_type: str, now: datetime) -> Document:
    """Return the referrer of ``subject`` with a statement that nobody has signed."""
    annotations = {STATED_PREDICATE_TYPE: predicate_type}
    layer = Descriptor(PAYLOAD_TYPE, Digest.of(statement), len(statement), annotations)
    return _document(PAYLOAD_TYPE, layer, statement, subject, {**annotations, CREATED: _time(now)})


def _document(
    artifact_type: str, layer: Descriptor, data: bytes, subject: Descriptor, annotations: Mapping[str, str]
) -> Document:
    config = Descriptor(EMPTY_TYPE, Digest.of(EMPTY), len(EMPTY))
    manifest = Manifest(config, (layer,), IMAGE_MANIFEST, artifact_type, subject, annotations)
    return Document(manifest.to_json(), ((config, EMPTY), (layer, data)))


def _time(now: datetime) -> str:
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def push_document(target: Destination, document: Document) -> Digest:
    """Push a manifest that refers to a kit, and return its digest. Raises RegistryError."""
    for descriptor, data in document.blobs:
        target.upload(descriptor, _reader(data))
    return target.put_manifest(document.digest, IMAGE_MANIFEST, document.manifest)


def push_bundle(target: Destination, subject: Descriptor, bundle: bytes, predicate_type: str, now: datetime) -> Digest:
    """Push a bundle as a referrer of ``subject``, and return the digest of the referrer. Raises RegistryError."""
    return push_document(target, signed_document(subject, bundle, predicate_type, now))


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
