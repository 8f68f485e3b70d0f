"""Read the keys and identities whose statements count as signed. Threading: the functions have no state."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from kitfs.errors import UsageError
from kitfs.oci.names import LayoutReference, Reference
from kitfs.ops.provenance.statements import Trusted
from kitfs.ops.signing.files import read_public_key
from kitfs.trust.keyless import Keyless
from kitfs.trust.policy_file import read_policy


def trusted_of(
    reference: Reference | LayoutReference,
    *,
    keys: Sequence[str] = (),
    policy: str | None = None,
    identity: str | None = None,
    issuer: str | None = None,
    root: str | None = None,
) -> list[Trusted]:
    """Return the trusted signers of a kit. The name of a key is its fingerprint with the name of its file.

    ``keys``: files of public keys. ``policy``: a file; the keys that its rules demand for the kit are trusted.
    ``identity`` and ``issuer``: an identity with certificates of Sigstore, which are checked with the file ``root``.
    Raises UsageError.
    """
    found = []
    for file in keys:
        key = read_public_key(file)
        found.append(Trusted(f"{key.name} ({os.path.basename(file)})", key))
    if (identity is None) != (issuer is None) or (identity is None and root is not None):
        raise UsageError("--certificate-identity and --certificate-oidc-issuer must be given together")
    if identity is not None and issuer is not None:
        signer = Keyless(identity, issuer, root)
        found.append(Trusted(signer.name, signer))
    if policy is not None:
        found += _in_policy(policy, reference)
    return found


def _in_policy(file: str, reference: Reference | LayoutReference) -> Iterator[Trusted]:
    """Yield the keys that the rules of a policy demand for a kit."""
    for rule in read_policy(file).rules_for(reference):
        for demand in rule.demands:
            for requirement in demand:
                for key in requirement.keys:
                    yield Trusted(f"{key.name} ({rule.name})", key)
