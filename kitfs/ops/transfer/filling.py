"""Fetch several blobs into the store at once, and fetch chunk tables (``oci.chunk_tables``).

Threading: each function starts threads, and returns when they have ended.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from kitfs.content import Origin
from kitfs.errors import NotFound
from kitfs.oci.chunk_tables import tables_of
from kitfs.oci.manifest import Descriptor, Manifest
from kitfs.ops.events import Moved, Report, Sent, Total, quiet
from kitfs.ops.transfer.push import label
from kitfs.parallel import each
from kitfs.store.fill import fill
from kitfs.store.store import Store


def fill_all(blobs: Sequence[Descriptor], origin: Origin, store: Store, concurrency: int, report: Report) -> None:
    """Fetch and verify every blob. Raises IntegrityError, StoreFull, or the errors of the origin."""
    stop = threading.Event()

    def fetch(descriptor: Descriptor) -> None:
        if stop.is_set():
            return
        name = str(descriptor.digest)
        if store.has_sealed(descriptor.digest):
            report(Moved(name, descriptor.size))
            report(Sent("blob", descriptor.digest, descriptor.size, "exists"))
            return
        with contextlib.closing(
            store.blob(descriptor.digest, size=descriptor.size, source=origin.blob(descriptor))
        ) as blob:
            fill(blob, descriptor.size, lambda size: report(Moved(name, size)), stop)
            if not stop.is_set():
                blob.verify()
                report(Sent("blob", descriptor.digest, descriptor.size, "pulled"))

    for descriptor in blobs:
        report(Total(str(descriptor.digest), descriptor.size, label(descriptor)))
    each(blobs, fetch, concurrency, stop)


def fetch_tables(manifest: Manifest, origin: Origin, store: Store) -> list[Descriptor]:
    """Fetch the chunk tables of a kit into the store, and return their descriptors.

    A kit can be read without its tables, so tables that the origin does not have are left out. Raises IntegrityError,
    StoreFull, or the errors of the origin.
    """
    found = []
    for table in tables_of(manifest.layers):
        with contextlib.suppress(NotFound):
            if store.has_sealed(table.digest) or origin.blob(table) is not None:
                fill_all([table], origin, store, 1, quiet)
                found.append(table)
    return found
