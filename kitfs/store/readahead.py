"""How far to fetch beyond what a reader asks for: pure decisions, no I/O.

A cursor is one sequential reader. Cursors are recognized per blob, not per handle, since the threads of a loader share
files and the kernel sends requests out of order. A read that begins near the position of a cursor continues it; any
other miss begins a new cursor without a window, so that a random read fetches only its own chunks.

The window is the number of bytes that may be fetched ahead of the reader: a quarter of what the cursor has read, at the
beginning half of it. A reader that stops after one tensor has fetched at most a quarter of it in vain (a third on a
link with a large bandwidth-delay product), and a reader of a whole layer soon has a window that covers the
bandwidth-delay product of any link.

From ``LONG`` bytes on, one request runs to the end of the blob and is held back at the window (flow control by the
receiver), as mountpoint-s3 does, because every request costs a registry milliseconds before its first byte. When its
reader stops, such a request has wasted the few MiB that the system has buffered. Where a response takes longer than
``FAR``, the windows would cost more than that, and the long request begins after ``EARLY`` bytes.

Threading: ``advance`` and the properties of a cursor from any thread without a lock; the rest under the caller's lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CURSORS: Final = 16  # readers remembered per blob
FIRST: Final = 1 << 20  # bytes read in order before more than a quarter of it is fetched ahead: it may be a header
MIN_WINDOW: Final = 2 << 20  # bytes
MEASURED: Final = 128 << 10  # bytes of a request from which it measures the link
MAX_WINDOW: Final = 64 << 20  # bytes
LONG: Final = 24 << 20  # bytes read by a cursor before one request runs to the end of the blob
EARLY: Final = 2 << 20  # the same on a link that is far: two or three windows
FAR: Final = 0.015  # seconds from a request to its first byte; on loopback a registry takes 5 to 6 ms, or 10 when busy
NEAR: Final = 128 << 10  # bytes by which a read may be out of order, at least


@dataclass(slots=True)
class Link:
    """The link to the source, as far as requests have measured it.

    ``delay``: the least number of seconds from a request to its first byte; 0 when no request was measured.
    ``product``: the bandwidth-delay product in bytes.
    """

    delay: float = 0.0
    product: int = 0

    @property
    def far(self) -> bool:
        """Whether a request costs more than the bytes that a long request wastes when it is given up."""
        return self.delay >= FAR

    def responded(self, delay: float) -> None:
        """Take note of a request whose first byte came after ``delay`` seconds."""
        self.delay = min(delay, self.delay or delay)

    def measured(self, delay: float, size: int, seconds: float) -> None:
        """Take note of a request whose first byte came after ``delay`` seconds, and further ``size`` bytes within
        ``seconds`` from then on.
        """
        if size >= MEASURED and seconds > 0:
            self.product = max(int(delay * size / seconds), self.product * 3 // 4)


@dataclass(slots=True, eq=False)
class Cursor:
    """One sequential reader, in bytes: how much it has read, where it is, and up to where requests were sent.

    Its window is at most ``most`` bytes, or the bandwidth-delay product of the link if that is more.
    """

    read: int
    position: int
    end: int
    link: Link
    most: int = MAX_WINDOW

    @property
    def window(self) -> int:
        """Bytes that may be fetched ahead of the reader."""
        if self.read < FIRST:
            return min(self.read, FIRST // 4)
        under_way = min(self.link.product, self.read if self.link.far else self.read // 3)
        window = max(self.read // 4, min(self.read // 2, MIN_WINDOW), under_way)
        return min(window, max(self.most, self.link.product), MAX_WINDOW)

    @property
    def limit(self) -> int:
        """The offset up to which a request may run now."""
        return self.position + self.window

    @property
    def long(self) -> bool:
        """Whether the reader has read so much that one request may run to the end of the blob."""
        return self.read >= (EARLY if self.link.far else LONG)

    @property
    def due(self) -> bool:
        """Whether less than half of the window has been requested, so that the next request should be sent."""
        return self.end - self.position < self.window // 2

    @property
    def slack(self) -> int:
        """Bytes by which a read of this reader may be out of order: little at first, since a reader who hops over the
        members of an archive is not sequential.
        """
        return min(max(self.read // 2, NEAR), MIN_WINDOW)

    def is_near(self, start: int, stop: int) -> bool:
        """Tell whether a read of [start, stop) continues this reader: the kernel sends the requests of one reader in
        any order, so that the next but one may come first.
        """
        size = stop - start if stop - start > NEAR else 0
        slack = max(self.slack, size)
        return self.position - slack - size <= start <= self.position + slack

    def move(self, start: int, stop: int) -> bool:
        """Take note of a read of [start, stop); returns whether it goes beyond what was read before."""
        if stop <= self.position:
            return False
        self.read += stop - max(start, self.position)
        self.position = stop
        return True


class Readahead:
    """The cursors of one blob, the latest first."""

    def __init__(self) -> None:
        self.link: Final = Link()
        self._cursors: tuple[Cursor, ...] = ()

    def __repr__(self) -> str:
        return f"<Readahead {', '.join(f'{c.position}+{c.end - c.position}' for c in self._cursors)}>"

    def __len__(self) -> int:
        return len(self._cursors)

    def announce(self, start: int, most: int = MAX_WINDOW) -> None:
        """Make a cursor for a reader that is known to read everything from ``start`` on.

        At most ``most`` bytes are fetched ahead of it, unless the link needs more to be used fully.
        """
        self._cursors = (Cursor(LONG, start, start, self.link, most), *self._cursors[: CURSORS - 1])

    def advance(self, start: int, stop: int) -> Cursor | None:
        """Return the cursor that a read of [start, stop) moves forward; None when it moves none."""
        for cursor in self._cursors:
            if cursor.is_near(start, stop):
                return cursor if cursor.move(start, stop) else None
        return None

    def miss(self, start: int, stop: int) -> Cursor | None:
        """Return the cursor that a miss of [start, stop) continues; None, and remember it, when it may be random."""
        for cursor in self._cursors:
            if cursor.is_near(start, stop):
                cursor.move(start, stop)
                return cursor
        self._cursors = (Cursor(stop - start, stop, stop, self.link), *self._cursors[: CURSORS - 1])
        return None

    def plan(self, cursor: Cursor, stop: int, size: int) -> int:
        """Return the offset at which the next request of a reader that needs the bytes up to ``stop`` should end, in a
        blob of ``size`` bytes.
        """
        return size if cursor.long else min(max(stop, cursor.limit), size)
