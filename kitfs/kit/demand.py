"""What the readers of a tree ask for: how much of each layer, and whether one of them waits for bytes.

Threading: any thread. The counts are for decisions that need no exact numbers, so that a read takes no lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from kitfs.errors import WouldBlock


class Demand:
    """``asked`` has the bytes that were read of each layer, by its digest; bytes that are read again count again."""

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}
        self._waiting: list[str] = []  # the digest of a layer for each reader that waits for bytes
        self._waited = float("-inf")  # seconds; when a reader has last waited

    def read(self, digest: str, pread: Callable[[bool], bytes], *, wait: bool) -> bytes:
        """Call ``pread`` to read bytes of a layer, first with False, and then with True if that raises WouldBlock.

        Without ``wait``, WouldBlock is raised instead.
        """
        try:
            data = pread(False)
        except WouldBlock:
            if not wait:
                raise
            self._waiting.append(digest)
            try:
                data = pread(True)
            finally:
                self._waiting.pop()
                self._waited = time.monotonic()
        self.asked[digest] = self.asked.get(digest, 0) + len(data)
        return data

    def is_waiting(self, quiet: float) -> bool:
        """Tell whether a reader waits for bytes, or has waited for some in the last ``quiet`` seconds."""
        return bool(self._waiting) or time.monotonic() - self._waited < quiet
