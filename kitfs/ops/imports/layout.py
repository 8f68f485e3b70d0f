"""A kit of an OCI layout on disk, a directory or an archive, brought into the store: a pull from there.

Only the manifest that is asked for, with its blobs, each verified; a kit that this one takes its model from comes
from its registry.
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


class _One:
    """An Origin of one manifest of a layout, whatever it is asked by."""

    def __init__(self, layout: Layout, identifier: str) -> None:
        self._layout = layout
        self._identifier = identifier

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]:
        return self._layout.manifest(self._identifier)

    def blob(self, descriptor: Descriptor) -> Source:
        return self._layout.blob(descriptor)

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes:
        return self._layout.blob_bytes(descriptor, limit)


def bring(
    source: LayoutReference,
    references: Sequence[Reference],
    store: Store,
    repository_of: Callable[[Reference], Origin],
    *,
    concurrency: int = transfer.AT_ONCE,
    report: Report,
) -> Digest:
    """Bring a kit of a layout into the store and tag it with ``references``; the digest of its manifest.

    ``repository_of`` gives the repositories of parents. Raises NotFound for what is no layout, and as
    ``pulling.pull`` does.
    """
    layout = open_layout(source)
    try:
        one = _One(layout, source.digest or source.tag or "")
        first = references[0]
        digest = pulling.pull(
            first, store, lambda r: one if r is first else repository_of(r), concurrency=concurrency, report=report
        )
        for reference in references[1:]:
            assign(store, reference, required(store, first).descriptor)
        return digest
    finally:
        layout.close()
