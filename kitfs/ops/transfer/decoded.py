"""Decode the compressed layers of a kit that is in the store, so that a mount of the kit can be sealed at once.

Threading: ``decode`` starts threads, and returns when they have ended.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from kitfs.errors import KitfsError, LayerError, StoreFull
from kitfs.kit.completing import STEP, complete
from kitfs.kit.kit import Kit
from kitfs.kit.layer import Layer
from kitfs.parallel import each
from kitfs.store.store import Store

GRANT: Final = 64 << 20  # bytes that are decoded between two checks of the free space
MARGIN: Final = 16 << 20  # bytes of free space that are left for other writers


def decode(store: Store, kit: Kit, *, concurrency: int, log: logging.Logger) -> None:
    """Decode every compressed layer of an opened kit, and verify the decoded bytes.

    A KitfsError is only logged, because the store has the compressed layer, and a mount can decode it later. Other
    errors are raised. A layer is skipped if other blobs would have to be evicted for its decoded bytes.
    """
    stop = threading.Event()
    compressed = {layer.digest: layer for layer in kit.layers if layer.compressed}
    waiting: Sequence[Layer] = [layer for digest, layer in compressed.items() if not store.has_decoded(digest)]

    def one(layer: Layer) -> None:
        try:
            _decode(store, layer, stop)
        except KitfsError as e:
            log.info("layer %s was pulled, but it was not decoded: %s", layer.digest, e)
            with suppress(KitfsError, OSError):
                layer.content().drop()

    each(waiting, one, concurrency, stop)


def _decode(store: Store, layer: Layer, stop: threading.Event) -> None:
    decoded = 0
    granted = _spare(store, layer)
    for fetched in complete(layer):
        if stop.is_set():
            return
        if fetched:
            continue  # the step has only found bytes of the compressed blob
        decoded += STEP
        if decoded + STEP > granted:
            granted = decoded + _spare(store, layer)
    layer.content().verify()
    with suppress(LayerError):
        layer.index()  # the index stays in the store when the decoded bytes are evicted


def _spare(store: Store, layer: Layer) -> int:
    """Return how many bytes can be decoded before the free space must be checked again (at least ``STEP``).

    Raises StoreFull if there is less space.
    """
    spare = min(GRANT, store.room.spare(layer.digest) - MARGIN)
    if spare < STEP:
        raise StoreFull("the store has no room for it beside its other blobs")
    return spare
