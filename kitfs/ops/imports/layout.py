"""Importing a kit from an OCI layout on disk (a directory or an archive): a pull whose source is the layout.

Only the requested manifest and its blobs are copied, and each blob is verified. A parent kit, from which this kit
takes its model, is pulled from its registry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kitfs.content import Origin, Source
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest, LayoutReference, Reference
from kitfs.ops.events import Report
from kitfs.ops.library.tags import assign, required
from kitfs.ops.transfer import pull as pulling
from kitfs.ops.transfer import push as transfer
from kitfs.registry.layout import Layout, open_layout
from kitfs.store.store import Store


class _SingleManifest:
    """An Origin that returns one manifest of a layout for every tag or digest."""

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
    source: LayoutReference,
    references: Sequence[Reference],
    store: Store,
    repository_of: Callable[[Reference], Origin],
    *,
    concurrency: int = transfer.AT_ONCE,
    report: Report,
) -> Digest:
    """Copy a kit of a layout into the store and tag it with ``references``. Returns the digest of its manifest.

    ``repository_of`` returns the repository of a parent kit. Raises NotFound if there is no layout, and what
    ``pulling.pull`` raises.
    """
    layout = open_layout(source)
    try:
        single = _SingleManifest(layout, source.digest or source.tag or "")
        first = references[0]
        digest = pulling.pull(
            first, store, lambda r: single if r is first else repository_of(r), concurrency=concurrency, report=report
        )
        for reference in references[1:]:
            assign(store, reference, required(store, first).descriptor)
        return digest
    finally:
        layout.close()
