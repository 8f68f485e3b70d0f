"""Read and write Sigstore bundles of version 0.3. A bundle has one signature and the data to check it.

Sources: ``sigstore_bundle.proto`` of sigstore/protobuf-specs, and cosign's ``specs/BUNDLE_SPEC.md``. For kits and
images, cosign 3 writes a bundle with a DSSE envelope, which contains a statement. ``cosign sign-blob`` writes a bundle
with the signature of a message. A bundle identifies the signer by a certificate, or by a hint for a key. This module
does no I/O and verifies no signature.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Final

from kitfs.errors import ManifestError
from kitfs.gocompat.json import dumps, loads
from kitfs.trust.statement import PAYLOAD_TYPE, signed_bytes

MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
FAMILY: Final = "application/vnd.dev.sigstore.bundle"  # how the media type of every version begins
OLD_MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle+json;version=0.3"  # another spelling of 0.3
MAX_BUNDLE: Final = 4 << 20  # bytes; the bundle of a signature has 1 KiB with a key, and 10 KiB with a certificate
HASH: Final = "SHA2_256"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle, whose bytes are ``data``.

    ``payload`` is the statement in the envelope. For the signature of a message, ``payload`` is None, and ``digest`` is
    the SHA-256 of the message in hexadecimal, if the bundle contains it. ``hint`` identifies the key, or
    ``certificate`` is the certificate of the signer (DER); the other field is empty.
    """

    data: bytes
    signature: bytes
    payload: bytes | None
    digest: str
    hint: str
    certificate: bytes

    @classmethod
    def parse(cls, data: bytes) -> Bundle:
        """Parse a bundle. Raises ManifestError for bytes that are not a bundle of version 0.3."""
        try:
            fields = loads(data)
            if fields["mediaType"] not in (MEDIA_TYPE, OLD_MEDIA_TYPE):
                raise ManifestError("a bundle that is not of version 0.3")
            signature, payload, digest = _content(fields)
            hint, certificate = _signer(fields["verificationMaterial"])
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ManifestError("not a Sigstore bundle")
        return cls(data, signature, payload, digest, hint, certificate)

    def signed(self, artifact: bytes) -> bytes:
        """Return the bytes that are signed: those of the envelope, or ``artifact`` if the bundle signs a message."""
        return artifact if self.payload is None else signed_bytes(PAYLOAD_TYPE, self.payload)


def bundle_of(payload: bytes, signature: bytes, hint: str) -> bytes:
    """Return a bundle with a statement and the signature of a key, as cosign writes it without a transparency log."""
    return dumps(
        {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": hint}},
            "dsseEnvelope": {
                "payload": _text(payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": _text(signature)}],
            },
        }
    )


def _content(fields: Any) -> tuple[bytes, bytes | None, str]:
    """Return the signature, the payload of the envelope, and the digest of the signed message."""
    envelope, message = fields.get("dsseEnvelope"), fields.get("messageSignature")
    if envelope is not None and message is None:
        [signature] = envelope["signatures"]
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise ManifestError("a bundle whose envelope has no in-toto statement")
        return _bytes(signature["sig"]), _bytes(envelope["payload"]), ""
    digest = message.get("messageDigest") or {"algorithm": HASH, "digest": ""}
    if envelope is not None or digest["algorithm"] != HASH:
        raise ManifestError("a bundle with an unknown kind of content")
    return _bytes(message["signature"]), None, _bytes(digest["digest"]).hex()


def _signer(material: Any) -> tuple[str, bytes]:
    """Return (hint of the key, certificate). The certificate is empty if the signer is a key."""
    if "publicKey" in material:
        hint = material["publicKey"].get("hint", "")
        if not isinstance(hint, str) or {"certificate", "x509CertificateChain"} & material.keys():
            raise ManifestError("a bundle with an unknown kind of signer")
        return hint, b""
    if "certificate" in material:
        return "", _bytes(material["certificate"]["rawBytes"])
    return "", _bytes(material["x509CertificateChain"]["certificates"][0]["rawBytes"])


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(value: Any) -> bytes:
    return base64.b64decode(value, validate=True)
