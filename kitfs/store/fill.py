"""Fill a blob by parallel ranges."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from kitfs.errors import StoreFull
from kitfs.parallel import each
from kitfs.store.blob import Blob

STRIPE: Final = 4 << 20  # bytes of one request of a pull
STREAMS: Final = 4  # requests at once for one blob


def fill(blob: Blob, size: int, moved: Callable[[int], None], stop: threading.Event) -> None:
    """Fetch all of a blob, by several requests at once where its registry has ranges. Raises StoreFull when the store
    cannot keep it.
    """
    places = iter(range(0, size, STRIPE))
    lock = threading.Lock()
    failed = (
        threading.Event()
    )  # ends this blob's other requests; ``stop`` belongs to the caller, for whom a full store may be no end

    def work() -> None:
        while not (stop.is_set() or failed.is_set()):
            with lock:
                at = next(places, None)
            if at is None:
                return
            if not blob.fetch(at, min(STRIPE, size - at)):
                raise StoreFull(f"{blob}: no space left in the store; make room, or choose another with --cache-dir")
            moved(min(STRIPE, size - at))

    if size <= STRIPE or not blob.ranged:
        work()
    else:
        each([None] * min(STREAMS, -(-size // STRIPE)), lambda _: work(), STREAMS, failed)
