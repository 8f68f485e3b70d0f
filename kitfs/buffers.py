"""Limit the memory for bytes that are on their way from registries to the store and to readers.

A fetch reserves a buffer before it receives a body. The less memory is left, the smaller the buffers are, so many
fetches can share the memory. When no memory is left, a fetch waits until another fetch ends. Threading: any thread may
call every method.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

DEFAULT_BUDGET: Final = 64 << 20  # bytes; the default of --memory-budget
MIN_BUDGET: Final = 4 << 20  # bytes
SHARE: Final = 8  # a buffer has at most this part of the memory that is left
PATIENCE: Final = 30.0  # seconds to wait for memory; after that, the smallest buffer is reserved even beyond the limit


class Buffers:
    """A pool of at most ``limit`` bytes. ``used`` bytes are reserved, and ``peak`` is the highest ``used`` so far.

    After a fetch has waited for ``patience`` seconds, it gets a buffer even if the limit is exceeded, because a read
    must not hang.
    """

    def __init__(self, limit: int = DEFAULT_BUDGET, *, patience: float = PATIENCE) -> None:
        self.limit: Final = limit
        self.used = 0
        self.peak = 0
        self._patience = patience
        self._waiting = 0
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        return f"<Buffers {self.used} of {self.limit} bytes>"

    @property
    def status(self) -> dict[str, Any]:
        """Return the limit, the used memory and the peak, in bytes, for the status of a mount."""
        return {"budget": self.limit, "used": self.used, "peak": self.peak}

    @property
    def short(self) -> bool:
        """Return whether a fetch waits for memory now."""
        return self._waiting > 0

    @contextmanager
    def reserved(self, most: int, least: int) -> Iterator[int]:
        """Reserve a buffer for a ``with`` block, and yield its size, which is between ``least`` and ``most`` bytes."""
        size = self._reserve(most, least)
        try:
            yield size
        finally:
            self.release(size)

    def _reserve(self, most: int, least: int) -> int:
        with self._changed:
            deadline = time.monotonic() + self._patience
            self._waiting += 1
            while (left := self.limit - self.used) < least and time.monotonic() < deadline:
                self._changed.wait(deadline - time.monotonic())
            self._waiting -= 1
            size = max(least, min(most, left // SHARE))
            self._add(size)
            return size

    def try_reserve(self, size: int) -> bool:
        """Reserve exactly ``size`` bytes if they are free. Returns whether they were reserved."""
        with self._changed:
            if self.limit - self.used < size:
                return False
            self._add(size)
            return True

    def _add(self, size: int) -> None:
        self.used += size
        self.peak = max(self.peak, self.used)

    def release(self, size: int) -> None:
        """Release ``size`` reserved bytes."""
        with self._changed:
            self.used -= size
            self._changed.notify_all()
