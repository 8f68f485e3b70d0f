"""Pack a directory, and record the provenance of the kit.

Threading: as ``ops.pack.pack``.
"""

from __future__ import annotations

from collections.abc import Sequence

from kitfs.kit.workspace import Workspace
from kitfs.modelkit.kitfile import Kitfile
from kitfs.modelkit.writer import KitFormat, PackedKit
from kitfs.oci.names import Reference
from kitfs.ops.events import Report
from kitfs.ops.pack.pack import pack
from kitfs.ops.provenance.predicate import PACK_TYPE
from kitfs.ops.provenance.record import ProvenanceOptions, Recorder
from kitfs.ops.provenance.source import source_of


def pack_recorded(
    workspace: Workspace,
    directory: str,
    kitfile: Kitfile,
    references: Sequence[Reference],
    *,
    kit_format: KitFormat,
    provenance: ProvenanceOptions,
    push: bool = False,
    concurrency: int | None = None,
    report: Report,
) -> PackedKit:
    """Pack a directory as ``pack`` does, and record the kit's provenance if ``provenance`` asks for it.

    Raises the errors of ``pack`` and of ``Recorder.record``.
    """
    started = provenance.now()
    source = source_of(directory) if provenance.wanted else None  # before a long pack, in which files could change
    kit = pack(
        workspace,
        directory,
        kitfile,
        references,
        kit_format=kit_format,
        push=push,
        concurrency=concurrency,
        report=report,
    )
    if provenance.wanted:
        Recorder(workspace, provenance, PACK_TYPE, source, directory, started, push=push, report=report).record(
            kit, references
        )
    return kit
