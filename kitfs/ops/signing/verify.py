"""Verify that a kit is signed, at its registry or in a layout. Nothing is stored.

Threading: each call uses one thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kitfs.errors import SignatureError
from kitfs.kit.workspace import Workspace
from kitfs.oci.names import Digest, LayoutReference, Reference
from kitfs.ops.signing.target import subject_of
from kitfs.trust.keyless import Keyless
from kitfs.trust.keys import PublicKey
from kitfs.trust.policy import seen
from kitfs.trust.signatures import Found, Shape, signatures_of


@dataclass(frozen=True, slots=True)
class Verified:
    """A signature that was verified. ``digest``: the digest of the bundle or payload that contains it."""

    signer: str
    shape: Shape
    digest: Digest


def verify(
    workspace: Workspace,
    reference: Reference | LayoutReference,
    signer: PublicKey | Keyless,
    *,
    labels: Mapping[str, str],
) -> tuple[Digest, list[Verified]]:
    """Return the digest that a reference names, and the signatures of that digest by ``signer`` (at least one).

    The signatures are read from the registry or the layout. If the reference names an index, ``labels`` select the kit.
    Raises NotFound, RegistryError, ManifestError or UsageError, and SignatureError if no signature is by ``signer``.
    """
    places = workspace.asked_apart(reference)
    digest = subject_of(workspace.asked(reference), reference, labels).descriptor.digest
    found = Found(())
    for place in places:
        found = signatures_of(place, digest)
        if good := found.by(signer):
            return digest, [Verified(signer.name, one.shape, one.digest) for one in good]
    if found.failures:
        raise found.failures[0]
    raise SignatureError(f"{digest} is not signed by {signer.name}; {seen(found)}")
