"""Sources for tests of the store, with and without faults. Their bytes are in memory.

They have the interface of ``kitfs.content.Source``. Each source records its requests: ``asked`` lists (start, stop) for
each request, and ``given`` is the number of bytes that were yielded.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

from kitfs.errors import Unavailable


class BytesSource:
    """A source that yields bytes in pieces of ``piece`` bytes.

    All pieces share one buffer, as the pieces from a socket do. The first piece of a request comes after ``delay``
    seconds. If ``ranged`` is False, a request yields everything from byte 0.

    Faults: After ``cut_after`` bytes, a request fails with Unavailable. Before each piece after the first, the source
    waits for ``stall``. The byte at ``lie_at`` is wrong, and the last ``short`` bytes are missing.
    """

    def __init__(
        self,
        data: bytes,
        *,
        piece: int = 10_000,
        ranged: bool = True,
        known: bool = True,
        turns: bool = False,
    ) -> None:
        self.data = data
        self.piece = piece
        self.ranged = ranged
        self.size: int | None = len(data) if known else None
        self.turns = turns
        self.sender = "fake"
        self.others = 0  # number of other endpoints, which have the right bytes
        self.delay = 0.0
        self.cut_after: int | None = None
        self.stall: threading.Event | None = None
        self.lie_at: int | None = None
        self.short = 0
        self.asked: list[tuple[int, int | None]] = []
        self.given = 0
        self._lock = threading.Lock()

    def distrust(self) -> bool:
        if not self.others:
            return False
        self.others -= 1
        self.lie_at = None
        return True

    def read_range(self, start: int, stop: int | None, /) -> Generator[tuple[int, memoryview], None, None]:
        with self._lock:
            self.asked.append((start, stop))
        if self.turns and (start, stop) != (0, len(self.data)):
            self.ranged = False
        end = len(self.data) - self.short
        if not self.ranged:
            start, stop = 0, None
        stop = end if stop is None else min(stop, end)
        buffer = bytearray(self.piece)
        begin = start
        time.sleep(self.delay)
        while start < stop:
            if self.stall is not None and start > begin:
                self.stall.wait(30)
            if self.cut_after is not None and start - begin >= self.cut_after:
                raise Unavailable("the source was cut")
            size = min(self.piece, stop - start)
            buffer[:size] = self.data[start : start + size]
            if self.lie_at is not None and start <= self.lie_at < start + size:
                buffer[self.lie_at - start] ^= 1
            with self._lock:
                self.given += size
            yield start, memoryview(buffer)[:size]
            buffer[:size] = bytes(size)
            start += size
        if self.size is None and stop == end:
            self.size = end
