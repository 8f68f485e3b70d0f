"""Approve a kit: sign a statement that the kit may be used, and attach the statement to the kit.

Threading: each call uses one thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from kitfs.errors import UsageError
from kitfs.kit.workspace import Workspace
from kitfs.oci.names import LOCAL, Digest, Reference
from kitfs.ops.library.tags import required
from kitfs.ops.provenance.record import document_about
from kitfs.ops.signing.target import subject_of
from kitfs.ops.transfer.referrers import attach
from kitfs.trust.attestations import APPROVAL
from kitfs.trust.keys import PrivateKey
from kitfs.trust.publish import push_document

MAX_NOTE: Final = 4096  # characters


@dataclass(frozen=True, slots=True)
class Approved:
    """The result of ``approve``. ``digest``: the digest of the kit. ``approval``: the digest of the new manifest."""

    digest: Digest
    signer: str
    approval: Digest


def approve(
    workspace: Workspace,
    reference: Reference,
    key: PrivateKey,
    *,
    note: str,
    labels: Mapping[str, str],
    now: datetime,
) -> Approved:
    """Sign an approval of a kit, and attach it to the kit at its registry.

    If the reference has no registry, the approval is kept in the store. If the reference names an index, ``labels``
    select the kit. Raises NotFound, RegistryError or ManifestError, and UsageError for a note that is too long.
    """
    if len(note) > MAX_NOTE:
        raise UsageError(f"the note has {len(note)} characters; at most {MAX_NOTE} are allowed")
    predicate = {"approvedOn": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "note": note}
    if reference.registry == LOCAL:
        subject = required(workspace.store, reference).descriptor
        document = document_about(subject, APPROVAL, predicate, key, now)
        attach(workspace.store, reference.name, subject.digest, document)
    else:
        repository = workspace.push_to(reference)
        subject = subject_of(repository, reference, labels).descriptor
        document = document_about(subject, APPROVAL, predicate, key, now)
        push_document(repository, document)
    return Approved(subject.digest, key.public.name, document.digest)
