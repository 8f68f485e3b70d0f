"""Find the signatures over a digest in a repository or a layout, and check which of them a key verifies.

Signatures in both shapes of cosign are found: bundles that are referrers of the digest, and the layers of the manifest
under the tag ``sha256-HEX.sig``. Anybody with permission to push can push false signatures. So numbers and sizes are
limited, and a signature that cannot be read is ignored. Only a statement with the predicate ``statement.SIGN`` is a
signature of a kit; attestations are not. Threading: the module has no state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from kitfs.content import Manifests
from kitfs.errors import IntegrityError, KitfsError, ManifestError, NotFound
from kitfs.oci.manifest import CREATED, Descriptor, Manifest
from kitfs.oci.names import Digest
from kitfs.trust import simple_signing
from kitfs.trust.bundle import FAMILY, MAX_BUNDLE, Bundle
from kitfs.trust.keyless import Keyless, identity_in
from kitfs.trust.keys import PublicKey
from kitfs.trust.simple_signing import MAX_PAYLOAD, Payload
from kitfs.trust.statement import SIGN, Statement

MAX_SIGNATURES: Final = 100  # of one digest in one shape; limits the requests that somebody else can cause
MAX_TIME: Final = 40  # characters of a time in an annotation
MAX_SHOWN: Final = 100  # characters of a name that a signature gives to its signer
EMPTY_TYPES: Final = ("", "application/vnd.oci.empty.v1+json")  # artifact types that say nothing
PREDICATE_TYPE: Final = "dev.sigstore.bundle.predicateType"  # annotation of a bundle's manifest
STATED_PREDICATE_TYPE: Final = "in-toto.io/predicate-type"  # annotation of a statement that is not signed

Shape = Literal["bundle", "tag"]


class SignatureSource(Manifests, Protocol):
    """The methods of a repository or a layout that are needed to find signatures."""

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes: ...

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]: ...


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature over a digest. It is not verified yet.

    ``digest`` is the digest of the blob with the signature: a bundle or a payload. ``value`` is the signature over the
    bytes ``signed``. ``hint`` identifies the key. ``identity`` is the repository in a payload, or "" for a bundle.
    ``bundle`` is the bundle with the signature. ``certificate`` is True if the signer has a certificate instead of a
    key. ``created`` is the time that the manifest of the signature states, or "".
    """

    shape: Shape
    digest: Digest
    signed: bytes
    value: bytes
    hint: str = ""
    identity: str = ""
    certificate: bool = False
    bundle: Bundle | None = None
    created: str = ""

    def is_by(self, signer: PublicKey | Keyless) -> bool:
        """Return whether ``signer``, a key or an identity with a certificate, made this signature."""
        if isinstance(signer, Keyless):
            return self.certificate and self.bundle is not None and signer.has_signed(self.bundle)
        return not self.certificate and signer.verifies(self.value, self.signed)

    @property
    def signer(self) -> str:
        """Return the name of the signer as the signature states it. The name is not verified."""
        if self.certificate:
            named = "" if self.bundle is None else identity_in(self.bundle.certificate)
            return f"a certificate of {named}" if named else "a certificate"
        return f"key SHA256:{self.hint[:MAX_SHOWN]}" if self.hint else "an unnamed key"


@dataclass(frozen=True, slots=True)
class Found:
    """The signatures over a digest in one place.

    ``failures`` are the errors that occurred while signatures were read. If there are any, signatures may be missing.
    """

    signatures: tuple[Signature, ...]
    failures: tuple[KitfsError, ...] = ()

    def by(self, signer: PublicKey | Keyless) -> tuple[Signature, ...]:
        """Return the signatures by ``signer``, which is a key or an identity with a certificate."""
        return tuple(one for one in self.signatures if one.is_by(signer))


def signatures_of(source: SignatureSource, digest: Digest) -> Found:
    """Return the signatures over a digest, of both shapes. If one shape fails, the other is still returned."""
    found: list[Signature] = []
    failures: list[KitfsError] = []
    for shape in (_bundles, _tagged):
        try:
            found += shape(source, digest)
        except NotFound:
            continue
        except KitfsError as e:
            failures.append(e)
    return Found(tuple(found), tuple(failures))


def referring_bundles(
    source: SignatureSource, digest: Digest, predicate_type: str
) -> Iterator[tuple[Descriptor, bytes, str]]:
    """Yield the bundles whose subject is a digest: the descriptor of the blob, its bytes, and the annotated time.

    A bundle whose annotation names another predicate is not fetched. The predicate in the signed payload is not checked
    here.
    """

    def fits(annotations: Mapping[str, str]) -> bool:
        return annotations.get(PREDICATE_TYPE, predicate_type) == predicate_type

    for manifest in referring_manifests(source, digest, (FAMILY,), fits):
        for layer in manifest.layers[:1]:
            if layer.media_type.startswith(FAMILY):
                with suppress(ManifestError, IntegrityError, NotFound):
                    yield layer, source.blob_bytes(layer, MAX_BUNDLE), created_of(manifest)


def created_of(manifest: Manifest) -> str:
    """Return the time in the annotation of a manifest, or "". The time is not signed."""
    return manifest.annotations.get(CREATED, "")[:MAX_TIME]


def referring_manifests(
    source: SignatureSource, digest: Digest, types: tuple[str, ...], fits: Callable[[Mapping[str, str]], bool]
) -> Iterator[Manifest]:
    """Yield the manifests whose subject is a digest, at most MAX_SIGNATURES. Unreadable manifests are omitted.

    ``types``: how the artifact type must begin; a manifest without an artifact type is yielded, too. ``fits`` is called
    with the annotations in the list of referrers, and with those of the manifest.
    """
    seen = 0
    for entry in source.referrers(digest):
        if not entry.artifact_type.startswith(types) and entry.artifact_type not in EMPTY_TYPES:
            continue
        if not fits(entry.annotations):
            continue
        seen += 1
        if seen > MAX_SIGNATURES:
            return
        try:
            manifest = Manifest.parse(source.manifest(entry.digest)[1])
        except (ManifestError, IntegrityError, NotFound):
            continue
        if fits(manifest.annotations):
            yield manifest


def _bundles(source: SignatureSource, digest: Digest) -> Iterator[Signature]:
    for layer, data, created in referring_bundles(source, digest, SIGN):
        try:
            bundle = Bundle.parse(data)
            if bundle.payload is not None:
                statement = Statement.parse(bundle.payload)
                if statement.predicate_type != SIGN or not statement.is_about(digest):
                    continue
                artifact = b""
            else:
                artifact = source.manifest(digest)[1]  # a message signature signs the manifest itself
        except ManifestError:
            continue
        yield Signature(
            "bundle",
            layer.digest,
            bundle.signed(artifact),
            bundle.signature,
            hint=bundle.hint,
            certificate=bool(bundle.certificate),
            bundle=bundle,
            created=created,
        )


def _tagged(source: SignatureSource, digest: Digest) -> Iterator[Signature]:
    manifest = Manifest.parse(source.manifest(simple_signing.tag_of(digest))[1])
    for layer in manifest.layers[:MAX_SIGNATURES]:
        try:
            value = simple_signing.signature_of(layer)
            data = source.blob_bytes(layer, MAX_PAYLOAD)
            payload = Payload.parse(data)
        except (ManifestError, IntegrityError, NotFound):
            continue
        if payload.digest == digest:
            certificate = bool(layer.annotations.get(simple_signing.CERTIFICATE))
            yield Signature("tag", layer.digest, data, value, identity=payload.identity, certificate=certificate)
