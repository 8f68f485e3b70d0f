"""Sign a kit at its registry with a private key. Threading: each call uses one thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from kitfs.kit.workspace import Workspace
from kitfs.oci.names import Digest, Reference
from kitfs.ops.signing.target import subject_of
from kitfs.trust.bundle import bundle_of
from kitfs.trust.keys import PrivateKey
from kitfs.trust.publish import push_bundle, push_tagged
from kitfs.trust.signatures import Shape, signatures_of
from kitfs.trust.simple_signing import payload_of
from kitfs.trust.statement import PAYLOAD_TYPE, SIGN, signed_bytes, statement_about

DOCKER_HUB: Final = {"docker.io": "index.docker.io"}  # how cosign writes docker.io in a payload


@dataclass(frozen=True, slots=True)
class Signed:
    """The result of ``sign``. ``digest``: the digest of the kit.

    ``shape``: "bundle" or "tag", the form in which the signature is stored. ``signature``: the digest of the manifest
    that was pushed, or None if this key had already signed the kit in this shape.
    """

    digest: Digest
    signer: str
    shape: Shape
    signature: Digest | None


def sign(
    workspace: Workspace,
    reference: Reference,
    key: PrivateKey,
    *,
    labels: Mapping[str, str],
    shape: Shape,
    now: datetime,
) -> Signed:
    """Sign the manifest that a reference names at its registry.

    If the reference names an index, ``labels`` select the kit. Nothing is pushed if this key has already signed the kit
    in this shape. Raises NotFound, RegistryError, ManifestError or UsageError.
    """
    repository = workspace.push_to(reference)
    subject = subject_of(repository, reference, labels).descriptor
    found = signatures_of(repository, subject.digest)
    if any(one.shape == shape for one in found.by(key.public)):
        return Signed(subject.digest, key.public.name, shape, None)
    if shape == "bundle":
        payload = statement_about(subject.digest, SIGN, {})
        bundle = bundle_of(payload, key.sign(signed_bytes(PAYLOAD_TYPE, payload)), key.public.hint)
        pushed = push_bundle(repository, subject, bundle, SIGN, now)
    else:
        registry = DOCKER_HUB.get(reference.registry, reference.registry)
        payload = payload_of(f"{registry}/{reference.repository}", subject.digest)
        pushed = push_tagged(repository, subject.digest, payload, key.sign(payload))
    return Signed(subject.digest, key.public.name, shape, pushed)
