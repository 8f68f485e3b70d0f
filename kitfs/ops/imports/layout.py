"""Import a kit from an OCI layout on disk, which is a directory or an archive.

An import is a pull that reads from the layout instead of a registry. Only the requested manifest and its blobs are
copied, and each blob is verified. A parent kit, which contains the model of this kit, is pulled from its registry.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from kitfs.content import Source
from kitfs.kit.workspace import Workspace
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest, LayoutReference, Reference
from kitfs.ops.events import Report
from kitfs.ops.library.tags import assign, required
from kitfs.ops.transfer.pull import pull_from
from kitfs.ops.transfer.push import CONCURRENCY
from kitfs.registry.layout import Layout, open_layout


class _SingleManifest:
    """An Origin that returns the same manifest of a layout for every tag or digest."""

    def __init__(self, layout: Layout, identifier: str) -> None:
        self._layout = layout
        self._identifier = identifier

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]:
        return self._layout.manifest(self._identifier)

    def blob(self, descriptor: Descriptor) -> Source:
        return self._layout.blob(descriptor)

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes:
        return self._layout.blob_bytes(descriptor, limit)


def import_layout(
    workspace: Workspace,
    source: LayoutReference,
    references: Sequence[Reference],
    *,
    concurrency: int = CONCURRENCY,
    report: Report,
) -> Digest:
    """Copy a kit from a layout into the store, tag it with ``references``, and return the digest of its manifest.

    Raises NotFound if the layout does not exist, and the errors of ``pull``.
    """
    with closing(open_layout(source)) as layout:
        single = _SingleManifest(layout, source.digest or source.tag or "")
        first = references[0]
        digest = pull_from(
            lambda reference: single if reference is first else workspace.client.repository(reference),
            workspace.store,
            first,
            concurrency=concurrency,
            report=report,
        )
        for reference in references[1:]:
            assign(workspace.store, reference, required(workspace.store, first).descriptor)
        return digest
