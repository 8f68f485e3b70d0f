"""Read and write signatures as cosign did before version 3: as layers of a manifest under a tag for the digest.

Source: cosign's ``specs/SIGNATURE_SPEC.md``. The tag for sha256:HEX is ``sha256-HEX.sig``. Each layer of the manifest
is a JSON payload with the signed digest, and an annotation of its descriptor is the signature over the layer's bytes.
This module does no I/O and verifies no signature.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final

from kitfs.errors import ManifestError
from kitfs.gocompat.json import dumps, loads
from kitfs.oci.manifest import IMAGE_MANIFEST, Descriptor, Manifest
from kitfs.oci.names import Digest

LAYER: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
SIGNATURE: Final = "dev.cosignproject.cosign/signature"
CERTIFICATE: Final = "dev.sigstore.cosign/certificate"
TYPE: Final = "cosign container image signature"
MAX_PAYLOAD: Final = 256 << 10  # bytes; cosign writes about 250
EPOCH: Final = "0001-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Payload:
    """The content of a layer, which signs ``digest`` for the repository ``identity``."""

    digest: str
    identity: str

    @classmethod
    def parse(cls, data: bytes) -> Payload:
        """Parse a layer. Raises ManifestError."""
        try:
            critical = loads(data)["critical"]
            found = critical["type"], critical["image"]["docker-manifest-digest"]
            identity = critical["identity"]["docker-reference"]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise ManifestError("not a payload of cosign")
        if found[0] != TYPE or not isinstance(found[1], str) or not isinstance(identity, str):
            raise ManifestError("not a payload of cosign")
        return cls(found[1], identity)


def tag_of(digest: Digest) -> str:
    """Return the tag of the manifest with the signatures of a digest."""
    return f"{digest.algorithm}-{digest.hex}.sig"


def payload_of(name: str, digest: Digest) -> bytes:
    """Return the payload for ``digest`` in the repository ``name``, byte for byte as cosign writes it."""
    identity, image = {"docker-reference": name}, {"docker-manifest-digest": digest}
    return dumps({"critical": {"identity": identity, "image": image, "type": TYPE}, "optional": None})


def layer_of(payload: bytes, signature: bytes) -> Descriptor:
    """Return the descriptor of a payload, with its signature."""
    text = base64.b64encode(signature).decode()
    return Descriptor(LAYER, Digest.of(payload), len(payload), {SIGNATURE: text})


def signature_of(layer: Descriptor) -> bytes:
    """Return the signature over a layer. Raises ManifestError if the layer has no signature."""
    try:
        return base64.b64decode(layer.annotations[SIGNATURE], validate=True)
    except (KeyError, binascii.Error, ValueError):
        raise ManifestError("a layer without a signature")


def manifest_of(before: Manifest | None, layer: Descriptor) -> tuple[bytes, bytes]:
    """Return the manifest ``before`` with an additional layer, and its config. ``before`` is None for a new tag."""
    layers = (*(() if before is None else before.layers), layer)
    config = dumps(
        {
            "architecture": "",
            "created": EPOCH,
            "history": [{"created": EPOCH} for _ in layers],
            "os": "",
            "rootfs": {"type": "layers", "diff_ids": [str(one.digest) for one in layers]},
            "config": {},
        }
    )
    annotations = {} if before is None else before.annotations
    described = Descriptor(CONFIG, Digest.of(config), len(config))
    return Manifest(described, layers, IMAGE_MANIFEST, annotations=annotations).to_json(), config
