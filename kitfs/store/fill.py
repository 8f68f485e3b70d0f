"""Fill a blob by several parallel ranges. Threading: ``fill`` from any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from kitfs.errors import StoreFull
from kitfs.parallel import each
from kitfs.store.blob import Blob

STRIPE: Final = 4 << 20  # bytes of one request of a pull
STREAMS: Final = 4  # concurrent requests for one blob


def fill(blob: Blob, size: int, moved: Callable[[int], None], stop: threading.Event) -> None:
    """Fetch all of a blob of ``size`` bytes, by several requests at once when its source has ranges.

    ``moved`` is called with the bytes of each stripe; ``stop`` ends the transfer. Raises StoreFull when the store
    cannot keep the blob, and what the source raises.
    """
    places = iter(range(0, size, STRIPE))
    lock = threading.Lock()
    # Ends the other requests of this blob. ``stop`` belongs to the caller, which may continue with a full store.
    failed = threading.Event()

    def work() -> None:
        while not (stop.is_set() or failed.is_set()):
            with lock:
                at = next(places, None)
            if at is None:
                return
            if not blob.fetch(at, min(STRIPE, size - at)):
                raise StoreFull(f"{blob}: no space left in the store; free some, or choose another with --cache-dir")
            moved(min(STRIPE, size - at))

    if size <= STRIPE or not blob.ranged:
        work()
    else:
        each([None] * min(STREAMS, -(-size // STRIPE)), lambda _: work(), STREAMS, failed)
