"""Fetch several blobs into the store at once.

Threading: ``fill_all`` starts threads, and returns when they have ended.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence

from kitfs.content import Origin
from kitfs.oci.manifest import Descriptor
from kitfs.ops.events import Moved, Report, Sent, Total
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
