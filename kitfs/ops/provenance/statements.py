"""Derive facts from the signatures and statements about a kit.

A fact is *signed* if a trusted key or identity has signed its statement. A signature by another key proves nothing, so
such a fact is *stated*, by "an unknown key". Every statement is foreign: its values are checked for their types, and
their number and length are limited. This module does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from kitfs.ops.provenance.documents import text
from kitfs.ops.provenance.facts import Fact, FactSource
from kitfs.ops.provenance.objects import mapping
from kitfs.trust.attestations import APPROVAL, PROVENANCE, Attestation
from kitfs.trust.keyless import Keyless
from kitfs.trust.keys import PublicKey
from kitfs.trust.signatures import Signature

MAX_DEPENDENCIES: Final = 1000  # dependencies of one statement that are read
DATA_ROLES: Final = ("dataset", "dvc-data", "dvc-input")
BASE_ROLES: Final = ("parent", "mlflow-run")


class Trusted(NamedTuple):
    """A signer whose statements count. ``name``: the signer's name for people."""

    name: str
    signer: PublicKey | Keyless


def source_of(signature: Signature | None, trusted: Sequence[Trusted], what: str) -> FactSource:
    """Return the source of the facts in a statement with this signature, or without a signature.

    ``what``: the name of an unsigned statement for people.
    """
    if signature is None:
        return FactSource("stated", what)
    name = next((one.name for one in trusted if signature.is_by(one.signer)), None)
    if name is not None:
        return FactSource("signed", name)
    return FactSource("stated", f"signed by an unknown key; it names {signature.signer}")


def facts_about(
    signatures: Sequence[Signature], attestations: Sequence[Attestation], trusted: Sequence[Trusted]
) -> Iterator[Fact]:
    """Yield the facts in the signatures of a kit and in the statements about it."""
    for signature in signatures:
        note = "the time is not signed" if signature.created else ""
        yield Fact("people", "signature", (source_of(signature, trusted, ""),), time=signature.created, note=note)
    for one in attestations:
        kind, predicate = one.statement.predicate_type, one.statement.predicate
        fields = predicate if isinstance(predicate, dict) else {}
        if kind == APPROVAL:
            source = source_of(one.signature, trusted, "an approval without a signature")
            time, note = text(fields.get("approvedOn")), text(fields.get("note"))
            yield Fact("people", "approval", (source,), time=time, note=note)
        elif kind == PROVENANCE:
            yield from _in_provenance(fields, source_of(one.signature, trusted, "provenance without a signature"))
        else:
            source = source_of(one.signature, trusted, "a statement without a signature")
            yield Fact("people", "statement", (source,), text(kind))


def _in_provenance(fields: dict[str, Any], source: FactSource) -> Iterator[Fact]:
    definition, run = mapping(fields.get("buildDefinition")), mapping(fields.get("runDetails"))
    builder, metadata = mapping(run.get("builder")), mapping(run.get("metadata"))
    versions = [f"{text(name)} {text(value)}" for name, value in mapping(builder.get("version")).items()][:10]
    yield Fact(
        "people",
        "packed",
        (source,),
        versions[0] if versions else text(builder.get("id")),
        time=text(metadata.get("finishedOn")) or text(metadata.get("startedOn")),
    )
    external, internal = mapping(definition.get("externalParameters")), mapping(definition.get("internalParameters"))
    start = mapping(external.get("source"))
    if start:
        clean = mapping(internal.get("source")).get("clean")
        note = {True: "the working tree was clean", False: "the working tree had changes"}
        remark = note[clean] if isinstance(clean, bool) else ""
        yield Fact("base", "source", (source,), uri=text(start.get("uri")), digest=_digest(start), note=remark)
    listed = definition.get("resolvedDependencies")
    for one in listed[:MAX_DEPENDENCIES] if isinstance(listed, list) else ():
        yield from _dependency(mapping(one), source)


def _dependency(fields: dict[str, Any], source: FactSource) -> Iterator[Fact]:
    """Yield the fact in a resource descriptor. A descriptor without a role that kitfs knows is skipped."""
    annotations = mapping(fields.get("annotations"))
    role = text(annotations.get("role"))
    if role not in (*DATA_ROLES, *BASE_ROLES):
        return
    yield Fact(
        "data" if role in DATA_ROLES else "base",
        role,
        (source,),
        "" if role == "parent" else text(fields.get("name")) or text(annotations.get("path")),
        reference=text(annotations.get("reference")),
        uri="" if annotations.get("reference") else text(fields.get("uri")),
        digest=_digest(fields),
    )


def _digest(fields: dict[str, Any]) -> str:
    """Return a digest of a resource descriptor as ``algorithm:value``: the SHA-256, or else the first digest."""
    digests = {text(name): text(value) for name, value in list(mapping(fields.get("digest")).items())[:10]}
    name = "sha256" if "sha256" in digests else next(iter(digests), "")
    return f"{name}:{digests[name]}" if name else ""
