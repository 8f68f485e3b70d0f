"""Ask where kits come from, approve kits, and make their bills of materials."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Unpack

from kitfs.errors import UsageError
from kitfs.sdk.names import kit_reference
from kitfs.sdk.options import Options, StrPath, settings_of
from kitfs.sdk.session import workspace_of
from kitfs.sdk.signing import KitSignature, private_key_of

if TYPE_CHECKING:
    from kitfs.ops.provenance.facts import Fact


@dataclass(frozen=True, slots=True)
class KitFact:
    """An answer to a question about the origin of a kit. A field that is not known is "".

    ``question``: "data" (what trained the model), "people" (who packed, signed and approved the kit), "base" (what the
    kit is based on) or "shared" (which other kits of the store share its data). ``label``: "signed" by a trusted key,
    "stated" by a document or an unknown signer, or "derived" from digests. ``by``: the keys or documents that the fact
    comes from. ``kind``, ``name``, ``reference``, ``uri``, ``digest``, ``time`` and ``note``: as ``kitfs lineage
    --json`` prints them.
    """

    question: Literal["data", "people", "base", "shared"]
    label: Literal["signed", "stated", "derived"]
    by: tuple[str, ...]
    kind: str
    name: str
    reference: str
    uri: str
    digest: str
    time: str
    note: str


@dataclass(frozen=True, slots=True)
class KitLineage:
    """The result of ``lineage``. ``missing``: why signatures or statements may be missing."""

    digest: str
    facts: tuple[KitFact, ...]
    missing: tuple[str, ...]


def lineage(
    reference: str,
    *,
    public_keys: StrPath | Sequence[StrPath] = (),
    trust_policy: StrPath | None = None,
    certificate_identity: str | None = None,
    certificate_oidc_issuer: str | None = None,
    trusted_root: StrPath | None = None,
    labels: Mapping[str, str] | None = None,
    remote: bool = False,
    **options: Unpack[Options],
) -> KitLineage:
    """Return what is known about the origin of a kit, without reading a layer.

    ``public_keys``: the files of keys that are trusted. ``trust_policy``: a policy.json or a ClusterImagePolicy; the
    keys that it demands for the kit are trusted. ``certificate_identity``, ``certificate_oidc_issuer`` and
    ``trusted_root``: as in ``verify``. ``labels``: select one kit of an index. ``remote``: read the kit from its
    registry even if the store has it. Raises NotFound, RegistryError or ManifestError, and UsageError for a key or a
    policy that cannot be used.
    """
    from kitfs.ops.provenance.lineage import lineage as run
    from kitfs.ops.provenance.trusted import trusted_of

    settings, source = settings_of(options, Options), kit_reference(reference)
    keys = [public_keys] if isinstance(public_keys, (str, os.PathLike)) else public_keys
    trusted = trusted_of(
        source,
        keys=[os.fspath(key) for key in keys],
        policy=None if trust_policy is None else os.fspath(trust_policy),
        identity=certificate_identity,
        issuer=certificate_oidc_issuer,
        root=None if trusted_root is None else os.fspath(trusted_root),
    )
    with workspace_of(settings) as workspace:
        found = run(workspace, source, trusted, labels=labels or {}, remote=remote)
    return KitLineage(str(found.digest), tuple(map(_fact, found.facts)), found.missing)


def approve(
    reference: str,
    *,
    private_key: StrPath,
    note: str = "",
    password: str | None = None,
    labels: Mapping[str, str] | None = None,
    **options: Unpack[Options],
) -> KitSignature:
    """Sign a statement that a kit is approved, and attach it to the kit at its registry, or without a registry in the
    store.

    ``note``: why the kit is approved. ``private_key`` and ``password``: as in ``sign``. ``labels``: select one kit of
    an index. Raises NotFound, RegistryError or ManifestError, and UsageError for a key that cannot be used.
    """
    from datetime import UTC, datetime

    from kitfs.oci.names import Reference
    from kitfs.ops.provenance.approve import approve as run

    settings, target = settings_of(options, Options), kit_reference(reference)
    if not isinstance(target, Reference):
        raise UsageError(f"cannot approve {reference}: a kit in a layout must be pushed first")
    key = private_key_of(private_key, password)
    with workspace_of(settings) as workspace:
        done = run(workspace, target, key, note=note, labels=labels or {}, now=datetime.now(UTC))
    return KitSignature(str(done.digest), done.signer, "bundle", str(done.approval))


def sbom(
    reference: str,
    *,
    labels: Mapping[str, str] | None = None,
    remote: bool = False,
    created: int | None = None,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """Return a bill of materials of a kit, as the JSON of a CycloneDX 1.7 ML-BOM. No layer is read.

    ``labels``: select one kit of an index. ``remote``: read the kit from its registry even if the store has it.
    ``created``: the time of the bill in seconds since the epoch; the default is the creation time of the kit. Raises
    NotFound, RegistryError, ManifestError, UnsupportedLayer or KitfileError.
    """
    from kitfs.ops.provenance.reading import read_documents
    from kitfs.ops.provenance.sbom import sbom_of

    settings, source = settings_of(options, Options), kit_reference(reference)
    with workspace_of(settings) as workspace:
        documents = read_documents(workspace, source, labels or {}, remote=remote)
    return sbom_of(documents, source, created)


def _fact(fact: Fact) -> KitFact:
    return KitFact(
        fact.question,
        fact.label,
        fact.by,
        fact.kind,
        fact.name,
        fact.reference,
        fact.uri,
        fact.digest,
        fact.time,
        fact.note,
    )
