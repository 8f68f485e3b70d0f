"""Fill a blob from its beginning to its end, for transfers. Any thread may call ``fill``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from kitfs.store.blob import Blob

STRIPE: Final = 4 << 20  # bytes between two reports of progress


def fill(blob: Blob, size: int, moved: Callable[[int], None], stop: threading.Event) -> None:
    """Fetch all missing bytes of a blob of ``size`` bytes, if possible by one long request.

    After each stripe of ``STRIPE`` bytes, ``moved`` is called with the size of the stripe. Setting ``stop`` ends the
    transfer. Raises the errors of the source, StoreFull if the store has no room for the blob, and StoreError if its
    disk fails.
    """
    blob.will_read(0)
    for at in range(0, size, STRIPE):
        if stop.is_set():
            return
        if not blob.fetch(at, min(STRIPE, size - at)):
            raise blob.not_stored()
        moved(min(STRIPE, size - at))
