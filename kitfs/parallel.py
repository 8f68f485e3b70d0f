"""Call a function for many items in threads, until all calls have returned or a call fails."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")


def each(
    items: Sequence[T],
    do: Callable[[T], None],
    concurrency: int,
    stop: threading.Event,
    *,
    patient: bool = False,
) -> None:
    """Call ``do`` for every item on ``concurrency`` threads, and wait until all calls have returned.

    On the first error, ``stop`` is set and no further call begins. The error is raised when the running calls have
    returned, so ``do`` should check ``stop`` from time to time. KeyboardInterrupt is raised at once, because a call may
    wait long for a registry. With ``patient``, KeyboardInterrupt is raised only when the running calls have returned.
    """
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="kitfs-each")
    try:
        for future in as_completed([pool.submit(do, item) for item in items]):
            future.result()
    except BaseException as e:
        stop.set()
        pool.shutdown(wait=patient or isinstance(e, Exception), cancel_futures=True)
        raise
    pool.shutdown()
