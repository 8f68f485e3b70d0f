"""Run one function over many items in threads; the first error ends the others."""

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
    """Call ``do`` for every item on ``concurrency`` threads, and return when all calls have.

    On the first error ``stop`` is set, no further call begins, and the error is raised when the running calls have
    returned; ``do`` should look at ``stop`` now and then. KeyboardInterrupt waits for them only if ``patient``:
    otherwise it is raised at once, since a call that waits for a registry may wait long.
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
