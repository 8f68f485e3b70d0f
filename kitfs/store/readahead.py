"""Decide how many bytes to fetch ahead of a reader. This module does no I/O.

A *cursor* is the position of a sequential reader. Cursors belong to a blob and not to a file handle, because the
threads of a loader share files and the kernel sends requests out of order. A read that begins near the position of a
cursor continues the cursor. Any other read of missing bytes (a *miss*) begins a new cursor without a window, so that a
random read fetches only its own chunks.

The window is the number of bytes that may be fetched ahead of the reader: a quarter of the bytes that the cursor has
read, or half of them at the beginning. So a reader that stops after one tensor has wasted at most a quarter of the
tensor's size (a third on a link with a large bandwidth-delay product). The window of a reader of a whole layer soon
covers the bandwidth-delay product of any link.

When a cursor has read ``LONG`` bytes, a single request to the end of the blob replaces the windows. For a cursor that
began at the start of the blob, ``WHOLE`` bytes are enough, because its reader most likely reads the whole blob. The
request pauses at the end of the window (flow control by the receiver), as in mountpoint-s3. The reason is that a
registry needs milliseconds for the first byte of every request. If the reader stops, such a request has wasted the few
MiB that the system has buffered. If the first byte of a response takes longer than ``FAR``, separate requests would
cost even more, so the long request begins after ``EARLY`` bytes.

Threading: any thread may call ``advance`` and read the properties of a cursor without a lock; for everything else, the
caller must hold a lock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from kitfs.store.lanes import STRIPE, Lanes

CURSORS: Final = 16  # cursors remembered for a blob
FIRST: Final = 1 << 20  # bytes read in order before the window exceeds a quarter of them, since they may be a header
MIN_WINDOW: Final = 2 << 20  # bytes
MEASURED: Final = 128 << 10  # bytes that a request must receive before it measures the link
MAX_WINDOW: Final = 64 << 20  # bytes
LONG: Final = 24 << 20  # bytes read by a cursor before a single request runs to the end of the blob
WHOLE: Final = 8 << 20  # the same number of bytes for a cursor that began within the first ``HEAD`` bytes of the blob
HEAD: Final = 1 << 20  # bytes; a reader of the header alone stops there, and then reads single tensors elsewhere
EARLY: Final = 2 << 20  # the same number of bytes for a link that is far; this is two or three windows
FAR: Final = 0.015  # seconds to the first byte; a registry on loopback needs 5 to 6 ms, or 10 ms if it is busy
NEAR: Final = 128 << 10  # bytes by which any read may be out of order


@dataclass(slots=True)
class Link:
    """The link to the source, as far as requests have measured it.

    ``delay`` is the shortest time in seconds from a request to its first byte, or 0 if no request was measured.
    ``product`` is the bandwidth-delay product in bytes. ``lanes`` decides how many requests run at the same time.
    """

    delay: float = 0.0
    product: int = 0
    lanes: Lanes = field(default_factory=Lanes)

    @property
    def far(self) -> bool:
        """Return whether a new request costs more time than the bytes that an abandoned long request has wasted."""
        return self.delay >= FAR

    def responded(self, delay: float) -> None:
        """Record a request whose first byte arrived after ``delay`` seconds."""
        self.delay = min(delay, self.delay or delay)

    def measured(self, delay: float, size: int, seconds: float) -> None:
        """Record a request whose first byte arrived after ``delay`` seconds.

        The next ``size`` bytes arrived within another ``seconds`` seconds.
        """
        if size >= MEASURED and seconds > 0:
            self.product = max(int(delay * size / seconds), self.product * 3 // 4)


@dataclass(slots=True, eq=False)
class Cursor:
    """The state of a sequential reader, in bytes: its start, how much it has read, its position, and its requests' end.

    The window is at most ``most`` bytes, or the bandwidth-delay product of the link if that is more. ``announced`` is
    True if the reader was announced, and False if it was recognized by its reads.
    """

    start: int
    read: int
    position: int
    end: int
    link: Link
    most: int = MAX_WINDOW
    announced: bool = False

    @property
    def window(self) -> int:
        """Return how many bytes may be fetched ahead of the reader."""
        if self.read < FIRST:
            return min(self.read, FIRST // 4)
        under_way = min(self.link.product, self.read if self.link.far else self.read // 3)
        window = max(self.read // 4, min(self.read // 2, MIN_WINDOW), under_way)
        return max(min(window, max(self.most, self.link.product), MAX_WINDOW), self.link.lanes.reach)

    @property
    def limit(self) -> int:
        """Return the offset up to which a request may run now."""
        return self.position + self.window

    @property
    def long(self) -> bool:
        """Return whether the reader has read so much that a single request may run to the end of the blob."""
        if self.link.far:
            return self.read >= EARLY
        return self.read >= (WHOLE if self.start < HEAD else LONG)

    @property
    def due(self) -> bool:
        """Return whether less than half of the window is requested, so the next request should be sent."""
        return self.end - self.position < (self.link.lanes.reach or self.window // 2)

    @property
    def slack(self) -> int:
        """Return by how many bytes a read may be out of order and still continue this reader.

        The number is small at first, because a reader that skips the members of an archive is not sequential.
        """
        return min(max(self.read // 2, NEAR), MIN_WINDOW)

    def is_near(self, start: int, stop: int) -> bool:
        """Return whether a read of [start, stop) continues this reader.

        The kernel may send the requests of a reader out of order, so a later request may arrive first.
        """
        size = stop - start if stop - start > NEAR else 0
        slack = max(self.slack, size)
        return self.position - slack - size <= start <= self.position + slack

    def move(self, start: int, stop: int) -> bool:
        """Record a read of [start, stop); return whether it extends beyond the bytes that were read before."""
        if stop <= self.position:
            return False
        self.read += stop - max(start, self.position)
        self.position = stop
        return True


class Readahead:
    """The cursors of a blob, the most recent first."""

    def __init__(self) -> None:
        self.link: Final = Link()
        self._cursors: tuple[Cursor, ...] = ()

    def __repr__(self) -> str:
        return f"<Readahead {', '.join(f'{c.position}+{c.end - c.position}' for c in self._cursors)}>"

    def __len__(self) -> int:
        return len(self._cursors)

    def announce(self, start: int, most: int = MAX_WINDOW) -> None:
        """Make a cursor for a reader that is known to read everything from ``start`` on.

        At most ``most`` bytes are fetched ahead of the reader, or the bandwidth-delay product of the link if that is
        more.
        """
        self._cursors = (Cursor(start, LONG, start, start, self.link, most, True), *self._cursors[: CURSORS - 1])

    def advance(self, start: int, stop: int) -> Cursor | None:
        """Return the cursor that a read of [start, stop) moves forward; None if the read moves no cursor."""
        return self._move(start, stop)[0]

    def miss(self, start: int, stop: int) -> Cursor | None:
        """Return the cursor that a miss of [start, stop) continues.

        If there is no such cursor, begin a new cursor at the miss, and return None.
        """
        moved, near = self._move(start, stop)
        if near is not None:
            return moved or near
        self._cursors = (Cursor(start, stop - start, stop, stop, self.link), *self._cursors[: CURSORS - 1])
        return None

    def _move(self, start: int, stop: int) -> tuple[Cursor | None, Cursor | None]:
        """Move every cursor that a read of [start, stop) continues, because each may have a request ahead of it.

        Returns (a cursor that was moved forward, a cursor that the read continues); each is None if there is none. If
        there are several, the cursor with the latest request is returned.
        """
        moved = near = None
        for cursor in self._cursors:
            if cursor.is_near(start, stop):
                if near is None or cursor.end > near.end:
                    near = cursor
                if cursor.move(start, stop) and (moved is None or cursor.end > moved.end):
                    moved = cursor
        return moved, near

    def plan(self, cursor: Cursor, stop: int, size: int) -> int:
        """Return the offset at which the next request of a reader should end.

        The reader needs the bytes up to ``stop``, and the blob has ``size`` bytes.
        """
        if self.link.lanes.count > 1:
            return min(stop + STRIPE, size)
        return size if cursor.long else min(max(stop, cursor.limit), size)
