"""Attach the provenance of a packed or imported kit to the kit, in the store or at its registry.

Threading: each call uses one thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from kitfs.errors import InvalidReference, KitfsError, UsageError
from kitfs.kit.workspace import Workspace
from kitfs.modelkit.kitfile import Kitfile
from kitfs.modelkit.writer import PackedKit
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import Report, Warned
from kitfs.ops.provenance.predicate import Build, NamedKit, predicate_of
from kitfs.ops.provenance.records import dvc_records, mlflow_run
from kitfs.ops.provenance.source import BuildSource
from kitfs.ops.transfer.referrers import attach
from kitfs.trust.attestations import PROVENANCE
from kitfs.trust.bundle import bundle_of
from kitfs.trust.keys import PrivateKey
from kitfs.trust.publish import Document, push_document, signed_document, stated_document
from kitfs.trust.statement import PAYLOAD_TYPE, signed_bytes, statement_about

MODES: Final = ("none", "unsigned", "sign")


@dataclass(frozen=True, slots=True)
class ProvenanceOptions:
    """What to do with the provenance of a kit.

    ``mode``: "none", "unsigned" or "sign"; with "none", nothing is attached to the kit. ``key``: the key that signs.
    ``output`` receives the predicate as JSON. ``now`` returns the time.
    """

    mode: str = "none"
    key: PrivateKey | None = None
    output: Callable[[str], None] | None = None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"provenance {self.mode!r} is not one of {', '.join(MODES)}")
        if (self.mode == "sign") != (self.key is not None):
            raise UsageError("signed provenance needs a private key (write --provenance=sign --signing-key cosign.key)")

    @property
    def wanted(self) -> bool:
        """Return whether anything needs the provenance."""
        return self.mode != "none" or self.output is not None


@dataclass(frozen=True, slots=True)
class Recorder:
    """A recorder of the provenance of one pack or import.

    ``build_type`` and ``source``: as in ``Build``. ``directory``: the packed directory, whose records of DVC are read,
    or "" for an import. ``push``: the kit is at the registry of the first reference instead of in the store.
    """

    workspace: Workspace
    options: ProvenanceOptions
    build_type: str
    source: BuildSource | None
    directory: str
    started: datetime
    push: bool
    report: Report

    def record(self, kit: PackedKit, references: Sequence[Reference]) -> None:
        """Attach the provenance to the kit, and pass it to ``options.output``.

        Raises StoreError, or RegistryError if the kit was pushed.
        """
        build = Build(
            self.build_type,
            self.source,
            self._kits(kit.kitfile),
            self._records(kit.kitfile),
            self.started,
            self.options.now(),
        )
        predicate = predicate_of(kit, build)
        if self.options.mode != "none":
            document = document_about(kit.descriptor, PROVENANCE, predicate, self.options.key, build.finished)
            if self.push:
                push_document(self.workspace.push_to(references[0]), document)
            else:
                for name in {reference.name for reference in references}:
                    attach(self.workspace.store, name, kit.descriptor.digest, document)
        if self.options.output is not None:
            self.options.output(json.dumps(predicate, indent=2, ensure_ascii=False) + "\n")

    def _records(self, kitfile: Kitfile) -> list[dict[str, Any]]:
        run = mlflow_run(kitfile)
        found = dvc_records(self.directory, self.report) if self.directory else []
        return [*found, *([] if run is None else [run])]

    def _kits(self, kitfile: Kitfile) -> list[NamedKit]:
        """Return the other kits that a Kitfile names: the parent, and datasets that are kits."""
        found = []
        if kitfile.parent is not None and kitfile.model is not None:
            found.append(("parent", kitfile.model.name, kitfile.parent))
        for dataset in kitfile.datasets:
            try:
                if dataset.remote_path and not dataset.remote_path.startswith("s3://"):
                    found.append(("dataset", dataset.name, Reference.parse(dataset.remote_path)))
            except InvalidReference as e:
                self.report(Warned(f"the dataset {dataset.name} is left out of the provenance: {e}"))
        return [NamedKit(role, name, one.or_latest(), self._digest(one.or_latest())) for role, name, one in found]

    def _digest(self, reference: Reference) -> Digest | None:
        """Return the digest of a kit, or None with a warning if it cannot be found."""
        try:
            return self.workspace.resolver.identify(reference)
        except KitfsError as e:
            self.report(Warned(f"the provenance names {reference.display} without a digest: {e}"))
            return None


def document_about(
    subject: Descriptor, predicate_type: str, predicate: Any, key: PrivateKey | None, now: datetime
) -> Document:
    """Return the referrer of a kit with a statement. ``key`` signs the statement, unless it is None."""
    statement = statement_about(subject.digest, predicate_type, predicate)
    if key is None:
        return stated_document(subject, statement, predicate_type, now)
    bundle = bundle_of(statement, key.sign(signed_bytes(PAYLOAD_TYPE, statement)), key.public.hint)
    return signed_document(subject, bundle, predicate_type, now)
