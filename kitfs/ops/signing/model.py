"""Sign and verify the files of a kit, as OpenSSF Model Signing v1.0 defines it.

A raw layer has the digest of its file, so it need not be fetched. Other layers are fetched and verified as a whole
before their files are hashed. Threading: ``digests_of`` starts threads, and returns when they have ended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from kitfs.errors import KitfsError, ManifestError, SignatureError, UsageError
from kitfs.kit.kit import Kit
from kitfs.kit.node import Node
from kitfs.kit.tree import Tree, tree_of
from kitfs.kit.workspace import Workspace
from kitfs.oci.names import Digest, LayoutReference, Reference
from kitfs.ops.events import Report
from kitfs.ops.signing.target import subject_of
from kitfs.ops.transfer.warm import warm
from kitfs.trust.bundle import Bundle, bundle_of
from kitfs.trust.keys import PrivateKey, PublicKey
from kitfs.trust.model_signing import HASH, PREDICATE, SignedFiles, hint_of, statement_of
from kitfs.trust.publish import push_bundle
from kitfs.trust.signatures import referring_bundles
from kitfs.trust.statement import PAYLOAD_TYPE, Statement, signed_bytes

PIECE: Final = 1 << 20  # bytes that are hashed at a time


@dataclass(frozen=True, slots=True)
class SignedModel:
    """The result of ``sign_model`` and ``verify_model``.

    ``bundle`` is the signature as it is stored. ``signature`` is the digest of the bundle.
    """

    digest: Digest
    signer: str
    files: int
    signature: Digest
    bundle: bytes


def sign_model(
    workspace: Workspace,
    reference: Reference,
    key: PrivateKey,
    *,
    labels: Mapping[str, str],
    now: datetime,
    report: Report,
) -> SignedModel:
    """Sign the files of a kit at its registry, and attach the signature to the kit.

    Raises IntegrityError or StoreFull, UsageError for a kit with symbolic links or a key that is not ECDSA, and the
    errors of ``Resolver.open`` and of the registry.
    """
    if not key.is_ecdsa:
        raise UsageError("OpenSSF Model Signing needs an ECDSA key (kitfs generate-key-pair makes one)")
    repository = workspace.push_to(reference)
    subject = subject_of(repository, reference, labels).descriptor
    pinned = replace(reference, tag=None, digest=subject.digest)
    with closing(workspace.resolver.open(pinned, remote=True)) as kit:
        files = digests_of(workspace, kit, report)
    payload = statement_of(reference.repository.rpartition("/")[2], files)
    signature = key.sign(signed_bytes(PAYLOAD_TYPE, payload), hash_of_curve=True)
    bundle = bundle_of(payload, signature, hint_of(key.public))
    push_bundle(repository, subject, bundle, PREDICATE, now)
    return SignedModel(subject.digest, key.public.name, len(files), Digest.of(bundle), bundle)


def verify_model(
    workspace: Workspace,
    reference: Reference | LayoutReference,
    key: PublicKey,
    *,
    labels: Mapping[str, str],
    bundle: bytes | None,
    ignored: Iterable[str],
    report: Report,
) -> SignedModel:
    """Verify that the files of a kit are the files that a key has signed.

    ``bundle``: the signature; None means the signatures that are attached to the kit. ``ignored``: paths that are not
    compared. Raises SignatureError if the key has not signed these files, and the errors of ``Resolver.open``.
    """
    with closing(workspace.resolver.open(reference, labels=labels)) as kit:
        signed = _signed_by(key, _bundles(workspace, reference, kit.digest) if bundle is None else [bundle])
        if not signed:
            raise SignatureError(f"{kit.digest} has no signature of OpenSSF Model Signing by {key.name}")
        found = digests_of(workspace, kit, report)
    differences = []
    for data, listed in signed:
        compared = replace(listed, ignored=(*listed.ignored, *ignored), files=_without(listed.files, tuple(ignored)))
        difference = compared.difference(_without(found, tuple(ignored)))
        if not difference:
            return SignedModel(kit.digest, key.name, len(listed.files), Digest.of(data), data)
        differences.append(difference)
    raise SignatureError(f"the files of {kit.digest} are not those that {key.name} signed: {differences[-1]}")


def digests_of(workspace: Workspace, kit: Kit, report: Report) -> dict[str, str]:
    """Return the SHA-256 of every file of a kit, in hex, by its path. Raises UsageError for a symbolic link."""
    fetched = tuple(layer for layer in kit.layers if not _names_its_file(layer.whole_file, layer.digest))
    warm(workspace.store, replace(kit, layers=fetched), report=report)
    for layer in fetched:
        layer.proven_index()
    tree = tree_of(kit, counters=workspace.counters, log=workspace.log)
    found = {}
    for path, node in tree.walk(tree.root):
        if node.kind == "symlink":
            raise UsageError(f"OpenSSF Model Signing covers files only, and {path!r} is a symbolic link")
        if node.kind == "file":
            found[path] = _digest(tree, node)
    return found


def _digest(tree: Tree, node: Node) -> str:
    layer = node.layer
    if layer is not None and _names_its_file(layer.whole_file, layer.digest):
        return layer.digest.partition(":")[2]
    hasher = hashlib.sha256()
    for offset in range(0, node.size, PIECE):
        hasher.update(tree.pread(node, offset, min(PIECE, node.size - offset)))
    return hasher.hexdigest()


def _names_its_file(whole_file: bool, digest: str) -> bool:
    """Return whether the digest of a layer is also the SHA-256 of its only file."""
    return whole_file and digest.startswith(f"{HASH}:")


def _bundles(workspace: Workspace, reference: Reference | LayoutReference, digest: Digest) -> list[bytes]:
    """Return the bundles that are attached to a kit.

    If none is found, raises the error of the last place that was searched.
    """
    found: list[bytes] = []
    failure: KitfsError | None = None
    for place in workspace.asked_apart(reference):
        failure = None
        try:
            found += [data for _, data, _ in referring_bundles(place, digest, PREDICATE)]
        except KitfsError as e:
            failure = e
    if failure is not None and not found:
        raise failure
    return found


def _signed_by(key: PublicKey, bundles: Iterable[bytes]) -> list[tuple[bytes, SignedFiles]]:
    """Return the lists of files that the key has signed, each with its bundle. Unreadable bundles are skipped."""
    found = []
    for data in bundles:
        try:
            bundle = Bundle.parse(data)
            if bundle.payload is None or not key.verifies(bundle.signature, bundle.signed(b"")):
                continue
            statement = Statement.parse(bundle.payload)
            if statement.predicate_type == PREDICATE:
                found.append((data, SignedFiles.parse(statement)))
        except ManifestError:
            continue
    return found


def _without(files: Mapping[str, str], ignored: tuple[str, ...]) -> dict[str, str]:
    """Return ``files`` without the ignored files and the files below ignored directories."""
    return {
        path: digest
        for path, digest in files.items()
        if not any(path == one or path.startswith(f"{one}/") for one in ignored)
    }
