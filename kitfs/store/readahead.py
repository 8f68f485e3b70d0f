"""How much to fetch for a read that misses: pure decisions, no I/O.

Streams are recognized per blob, not per handle, since the threads of a loader share files. A miss that begins where an
earlier fetch ended, or skips no more than that fetch's window, continues its stream, and the window doubles. Any other
miss begins a new stream without a window, so that a random read fetches only its own chunks. Threading: the caller's
lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CURSORS: Final = 16  # streams remembered per blob
MAX_WINDOW: Final = 4 << 20  # bytes of one request: also what other processes fetch again after one is killed


@dataclass(slots=True)
class Cursor:
    """One stream: where its last fetch ended, and its window in bytes."""

    end: int
    window: int


class Streams:
    """The streams of one blob, the latest first."""

    def __init__(self) -> None:
        self._cursors: list[Cursor] = []

    def __repr__(self) -> str:
        return f"<Streams {', '.join(f'{c.end}+{c.window}' for c in self._cursors)}>"

    def plan(self, start: int, stop: int) -> int:
        """Return where a fetch for the miss [start, stop) should end: at ``stop``, or later when the miss continues a
        stream.
        """
        for i, cursor in enumerate(self._cursors):
            if 0 <= start - cursor.end <= cursor.window:
                cursor.window = min(max(2 * cursor.window, stop - start), MAX_WINDOW)
                cursor.end = max(stop, start + cursor.window)
                self._cursors.insert(0, self._cursors.pop(i))
                return cursor.end
        self._cursors.insert(0, Cursor(stop, min(stop - start, MAX_WINDOW)))
        del self._cursors[CURSORS:]
        return stop
