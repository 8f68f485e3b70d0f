"""Run one function over many items in threads; the first error ends the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")


def each(items: Sequence[T], do: Callable[[T], None], concurrency: int, stop: threading.Event) -> None:
    """Do something for every item on threads; the first error ends the others, and is raised when they have.

    KeyboardInterrupt is raised at once: a request that waits for a registry may do so for long.
    """
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="kitfs-each")
    try:
        for future in as_completed([pool.submit(do, item) for item in items]):
            future.result()
    except BaseException as e:
        stop.set()
        pool.shutdown(wait=isinstance(e, Exception), cancel_futures=True)
        raise
    pool.shutdown()
