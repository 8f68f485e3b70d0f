"""Define the facts about the origin of a kit, and merge equal facts from several sources.

Every fact has a label. *signed*: a trusted key or identity has signed a statement of the fact. *stated*: the fact is in
the Kitfile, the manifest, or a statement that no trusted key has signed. *derived*: kitfs has compared digests. This
module does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

Label = Literal["signed", "stated", "derived"]
Question = Literal["data", "people", "base", "shared"]
STRENGTH: Final[dict[Label, int]] = {"signed": 0, "derived": 1, "stated": 2}
QUESTIONS: Final[dict[Question, str]] = {
    "data": "What data trained this model?",
    "people": "Who packed, signed and approved it, and when?",
    "base": "What is it based on?",
    "shared": "Which other kits of this store share its data?",
}


@dataclass(frozen=True, slots=True)
class FactSource:
    """Where a fact comes from. ``by``: the key or the document, for people."""

    label: Label
    by: str


@dataclass(frozen=True, slots=True)
class Fact:
    """An answer to a question about a kit.

    ``kind``: "dataset", "dvc-data", "dvc-input", "packed", "author", "signature", "approval", "statement", "source",
    "parent", "mlflow-run" or "shared-layer". Unknown fields are "". ``name``: the name of the dataset, builder, author
    or predicate. ``reference``: the name of another kit. ``digest``: an algorithm and a value, such as ``sha256:…`` or
    ``gitCommit:…``. ``time``: a time as its source wrote it. ``note``: the text of an approval, or a remark.
    """

    question: Question
    kind: str
    sources: tuple[FactSource, ...]
    name: str = ""
    reference: str = ""
    uri: str = ""
    digest: str = ""
    time: str = ""
    note: str = ""

    @property
    def label(self) -> Label:
        """The label of the strongest source."""
        return self.sources[0].label

    @property
    def by(self) -> tuple[str, ...]:
        """The sources with the strongest label."""
        return tuple(source.by for source in self.sources if source.label == self.label)


def merged(facts: Iterable[Fact]) -> tuple[Fact, ...]:
    """Merge facts that say the same, and keep the order in which they first occur.

    Facts about data, parents and sources are equal if their digests are equal, or without a digest, if their place is
    equal. The fields of the fact with the strongest source are kept. If a fact has no digest, its sources are added to
    a fact with a digest and the same place, except signed sources: a signature does not cover a digest that it does not
    name.
    """
    groups: dict[tuple[str, ...], list[Fact]] = {}
    for fact in facts:
        groups.setdefault(_identity(fact), []).append(fact)
    found = [_merge(group) for group in groups.values()]
    whole = {_place(fact) for fact in found if fact.digest}
    loose: dict[tuple[str, ...], list[Fact]] = {}
    kept = []
    for fact in found:
        if fact.digest or fact.label == "signed" or _place(fact) not in whole:
            kept.append(fact)
        else:
            loose.setdefault(_place(fact), []).append(fact)
    return tuple(_merge([fact, *loose.get(_place(fact), ())]) if fact.digest else fact for fact in kept)


def _identity(fact: Fact) -> tuple[str, ...]:
    """Return the key by which a fact is merged with equal facts."""
    if fact.kind in ("dataset", "parent", "source", "mlflow-run", "shared-layer"):
        where = fact.reference if fact.kind in ("parent", "shared-layer") else ""
        return (fact.question, fact.kind, where, fact.digest) if fact.digest else _place(fact)
    signers = tuple(source.by for source in fact.sources) if fact.kind in ("signature", "approval") else ()
    if fact.kind == "signature":  # a key that has signed in both shapes has signed once
        return (fact.kind, *signers)
    return (fact.question, fact.kind, fact.name, fact.digest, fact.time, fact.note, *signers)


def _place(fact: Fact) -> tuple[str, ...]:
    """Return the kind of a fact, and the place of the thing that it names."""
    return (fact.question, fact.kind, fact.reference or fact.uri or fact.name)


def _merge(group: list[Fact]) -> Fact:
    strongest = min(group, key=lambda fact: (STRENGTH[fact.label], not fact.digest))
    sources = {source: None for fact in group for source in fact.sources}
    return replace(strongest, sources=tuple(sorted(sources, key=lambda source: STRENGTH[source.label])))
