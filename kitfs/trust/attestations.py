"""Read statements about a kit other than its signatures: provenance, approvals and statements of other programs.

A statement is found in three shapes: in a Sigstore bundle that refers to the kit (``cosign attest`` of version 3), in a
DSSE envelope under the tag ``sha256-HEX.att`` (``cosign attest`` of earlier versions), and without a signature as a
layer of the type ``application/vnd.in-toto+json``. Anybody with permission to push can push false statements, so
numbers and sizes are limited, and a statement that cannot be read, or is about another digest, is ignored. Threading:
the module has no state.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from kitfs.errors import IntegrityError, ManifestError, NotFound
from kitfs.gocompat.json import loads
from kitfs.oci.manifest import Descriptor, Manifest
from kitfs.oci.names import Digest
from kitfs.oci.referrers import tag_of
from kitfs.trust.bundle import FAMILY, MAX_BUNDLE, Bundle
from kitfs.trust.keyless import Keyless
from kitfs.trust.keys import PublicKey
from kitfs.trust.signatures import (
    MAX_SIGNATURES,
    PREDICATE_TYPE,
    Signature,
    SignatureSource,
    created_of,
    referring_manifests,
)
from kitfs.trust.simple_signing import CERTIFICATE
from kitfs.trust.statement import PAYLOAD_TYPE, SIGN, Statement, signed_bytes

PROVENANCE: Final = "https://slsa.dev/provenance/v1"
APPROVAL: Final = "urn:kitfs:approval:v1"  # the manual page "lineage" documents its fields
ENVELOPE: Final = "application/vnd.dsse.envelope.v1+json"


@dataclass(frozen=True, slots=True)
class Attestation:
    """A statement about a kit.

    ``digest``: the digest of the blob with the statement. ``signature``: the signature over the statement, which is not
    verified yet; None if the statement is not signed. ``created``: the time in the manifest's annotation, which is not
    signed.
    """

    digest: Digest
    statement: Statement
    signature: Signature | None
    created: str

    def is_by(self, signer: PublicKey | Keyless) -> bool:
        """Return whether a key or an identity has signed the statement."""
        return self.signature is not None and self.signature.is_by(signer)


def attestations_of(source: SignatureSource, digest: Digest) -> list[Attestation]:
    """Return the statements about a digest, except signatures of kits. Raises the errors of ``source``."""
    found: list[Attestation] = []
    for manifest in referring_manifests(source, digest, (FAMILY, PAYLOAD_TYPE), _may_state):
        for layer in manifest.layers[:1]:
            with suppress(ManifestError, IntegrityError, NotFound):
                found += _in_layer(source, layer, created_of(manifest))
    with suppress(ManifestError, NotFound):
        tagged = Manifest.parse(source.manifest(f"{tag_of(digest)}.att")[1])
        for layer in tagged.layers[:MAX_SIGNATURES]:
            with suppress(ManifestError, IntegrityError, NotFound):
                found += _in_layer(source, layer, "")
    return [one for one in found if one.statement.predicate_type != SIGN and one.statement.is_about(digest)]


def _may_state(annotations: Mapping[str, str]) -> bool:
    """Return whether a referrer may contain a statement other than a signature of the kit."""
    return annotations.get(PREDICATE_TYPE) != SIGN


def _in_layer(source: SignatureSource, layer: Descriptor, created: str) -> Iterator[Attestation]:
    """Yield the statement in a layer. Raises ManifestError if it cannot be read."""
    if layer.media_type == PAYLOAD_TYPE:
        yield Attestation(layer.digest, Statement.parse(source.blob_bytes(layer, MAX_BUNDLE)), None, created)
    elif layer.media_type.startswith(FAMILY):
        bundle = Bundle.parse(source.blob_bytes(layer, MAX_BUNDLE))
        if bundle.payload is not None:
            signature = Signature(
                "bundle",
                layer.digest,
                bundle.signed(b""),
                bundle.signature,
                hint=bundle.hint,
                certificate=bool(bundle.certificate),
                bundle=bundle,
            )
            yield Attestation(layer.digest, Statement.parse(bundle.payload), signature, created)
    elif layer.media_type == ENVELOPE:
        yield from in_envelope(layer, source.blob_bytes(layer, MAX_BUNDLE))


def in_envelope(layer: Descriptor, data: bytes) -> Iterator[Attestation]:
    """Yield the statement of a DSSE envelope, once for each of its signatures."""
    try:
        fields = loads(data)
        if fields["payloadType"] != PAYLOAD_TYPE:
            raise ManifestError("an envelope without an in-toto statement")
        payload = base64.b64decode(fields["payload"], validate=True)
        values = [base64.b64decode(one["sig"], validate=True) for one in fields["signatures"][:MAX_SIGNATURES]]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ManifestError("not a DSSE envelope")
    statement, signed = Statement.parse(payload), signed_bytes(PAYLOAD_TYPE, payload)
    certificate = bool(layer.annotations.get(CERTIFICATE))
    for value in values:
        signature = Signature("tag", layer.digest, signed, value, certificate=certificate)
        yield Attestation(layer.digest, statement, signature, "")
