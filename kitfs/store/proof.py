"""Compute the digest of a blob while its bytes arrive, so that the blob is verified soon after its last byte.

The bytes are read back from the blob's file, in order, up to the first gap. So the digest is that of the stored bytes,
which could differ from the received bytes. Reading them costs a copy but no disk access, because they were just written
and are in the page cache. Threading: the caller must hold a lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from kitfs.store.chunk_map import ChunkMap
from kitfs.store.data_file import DataFile

BUFFER: Final = 512 << 10  # bytes read at a time
SPEED: Final = 400 << 20  # bytes hashed per second, until the speed is measured
MEASURED: Final = 16 << 20  # bytes that must be hashed before the speed counts as measured


class Proof:
    """The hash of the first ``at`` bytes of a blob."""

    def __init__(self, hasher: Callable[[], Any], body: DataFile, present: ChunkMap, *, chunk: int) -> None:
        self._hasher = hasher()
        self._body = body
        self._present = present
        self._chunk = chunk
        self._seconds = 0.0  # the processor time of the hash so far
        self.at = 0

    @property
    def speed(self) -> float:
        """Return how many bytes one core reads back and hashes per second."""
        return self.at / self._seconds if self.at >= MEASURED and self._seconds > 0 else SPEED

    def advance(self, size: int, stopped: Callable[[], bool]) -> None:
        """Hash the stored bytes from ``at`` up to the first gap, or up to ``size``.

        The method returns early if ``stopped`` returns True. Raises OSError and Closed.
        """
        buffer = memoryview(bytearray(min(BUFFER, max(1, size - self.at))))
        last = (size - 1) // self._chunk
        while self.at < size and not stopped():
            began = time.thread_time()
            first = self.at // self._chunk
            missing = self._present.first_missing(first, min(last, first + len(buffer) // self._chunk + 1))
            stop = size if missing is None else missing * self._chunk
            count = self._body.read_into(buffer[: max(0, min(stop - self.at, len(buffer)))], self.at)
            if not count:
                return
            self._hasher.update(buffer[:count])
            self.at += count
            self._seconds += time.thread_time() - began

    def hexdigest(self) -> str:
        """Return the digest of the bytes up to ``at``, in hexadecimal."""
        return str(self._hasher.hexdigest())
