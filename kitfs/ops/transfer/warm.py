"""Warm the store: fetch, decode and verify the layers of a kit before it is mounted.

Threading: ``warm`` starts threads, and returns when they have ended.
"""

from __future__ import annotations

import threading
from contextlib import suppress

from kitfs.errors import LayerError, StoreFull
from kitfs.kit.completing import complete
from kitfs.kit.kit import Kit
from kitfs.kit.layer import Layer
from kitfs.ops.events import Moved, Report, Sent, Total
from kitfs.ops.transfer.push import CONCURRENCY
from kitfs.parallel import each
from kitfs.store.store import Store


def warm(store: Store, kit: Kit, *, concurrency: int = CONCURRENCY, report: Report) -> None:
    """Fetch and verify the layers of an opened kit, so that a mount of the same layers fetches nothing.

    The kit is neither tagged nor pinned, so its layers may be evicted like layers that a mount has fetched. An
    interrupted call can resume. Raises IntegrityError or RegistryError, and StoreFull if the layers do not all fit into
    the store.
    """
    stop = threading.Event()
    layers = list({layer.digest: layer for layer in kit.layers}.values())

    def bring(layer: Layer) -> None:
        if stop.is_set():
            return
        name = str(layer.digest)
        if is_here(store, layer):
            report(Moved(name, layer.size))
            report(Sent("blob", layer.digest, layer.size, "exists"))
            return
        for size in complete(layer):
            report(Moved(name, size))
            if stop.is_set():
                return
        layer.content().verify()
        with suppress(LayerError):
            layer.index()  # the index stays in the store when the layer is evicted
        report(Sent("blob", layer.digest, layer.size, "fetched"))

    for layer in layers:
        report(Total(str(layer.digest), layer.size, layer.path or ""))
    each(layers, bring, concurrency, stop)
    lost = [layer for layer in layers if not is_here(store, layer)]
    if lost:
        raise StoreFull(
            f"the store has evicted {len(lost)} of {len(layers)} layers while the others were fetched (raise "
            "--cache-size)"
        )


def is_here(store: Store, layer: Layer) -> bool:
    """Return whether the store has the whole content of a layer, verified and decoded."""
    return store.has_decoded(layer.digest) if layer.compressed else store.has_sealed(layer.digest)
