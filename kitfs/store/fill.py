"""Fill a blob from its beginning to its end. Threading: ``fill`` from any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from kitfs.errors import StoreFull
from kitfs.store.blob import Blob

STRIPE: Final = 4 << 20  # bytes between two reports of progress


def fill(blob: Blob, size: int, moved: Callable[[int], None], stop: threading.Event) -> None:
    """Fetch all of a blob of ``size`` bytes, by one long request where nothing is stored yet.

    ``moved`` is called with the bytes of each stripe; ``stop`` ends the transfer. Raises StoreFull when the store
    cannot keep the blob, and what the source raises.
    """
    blob.will_read(0)
    for at in range(0, size, STRIPE):
        if stop.is_set():
            return
        if not blob.fetch(at, min(STRIPE, size - at)):
            raise StoreFull(f"{blob}: no space left in the store; free some, or choose another with --cache-dir")
        moved(min(STRIPE, size - at))
