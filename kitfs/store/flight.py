"""Define a flight: a request for a run of chunks of a blob. The lock of the blob's sink guards a flight."""

from __future__ import annotations

import time
from typing import Final

from kitfs.errors import KitfsError
from kitfs.store.chunk_map import ChunkMap
from kitfs.store.readahead import Cursor
from kitfs.store.sink import Sink

SEGMENT: Final = 4 << 20  # bytes that a flight locks at a time; if its process is killed, they are fetched again
GAP: Final = 256 << 10  # bytes: a flight ends before a longer run of stored chunks; a shorter run is received again
PAUSE: Final = 0.0005  # seconds before the first check of the position of a reader that is a window behind
MAX_PAUSE: Final = 0.016  # seconds between two such checks at most; the pause is doubled after each check
HOLD: Final = 0.1  # seconds after which the chunks of a paused flight are unlocked for other processes
IDLE: Final = 5.0  # seconds after which a paused flight ends: registries close idle connections
HURRY: Final = 0.1  # the same while other fetches wait for the memory of this flight


class Flight:
    """A request for the chunks [first, stop). ``at`` is the offset of the next byte.

    ``cursor`` is the sequential reader that the flight runs ahead of; None if a reader waits for the whole flight.
    ``needed`` is the offset up to which readers wait for bytes. ``delay`` is the time in seconds from the request to
    its first byte. The chunks [``locked``, ``locked_to``) are locked against other processes. ``error`` is the error
    that ended the flight early. If ``keep`` is False, nothing is stored. ``held_back`` is True while the flight waits
    for its reader. ``contended`` is True after another process has locked the next chunk. ``on_trial`` is True for the
    first flight of a trial, which compares the speed of two flights with the speed of one (``lanes``).
    """

    __slots__ = (
        "_chunk",
        "at",
        "contended",
        "cursor",
        "delay",
        "done",
        "error",
        "first",
        "held_back",
        "keep",
        "locked",
        "locked_to",
        "needed",
        "on_trial",
        "stop",
    )

    def __init__(
        self, first: int, stop: int, chunk: int, *, locked_to: int, cursor: Cursor | None = None, keep: bool = True
    ) -> None:
        self.first = self.locked = first
        self.stop = stop
        self._chunk = chunk
        self.at = first * chunk
        self.needed = 0
        self.delay = 0.0
        self.locked_to = locked_to
        self.cursor = cursor
        self.keep = keep
        self.held_back = False
        self.contended = False
        self.done = False
        self.on_trial = False
        self.error: KitfsError | None = None

    def end(self, size: int | None) -> int:
        """Return the offset at which the flight ends in a blob of ``size`` bytes. The flight may be shortened later."""
        stop = self.stop * self._chunk
        return stop if size is None else min(stop, size)

    def is_ahead(self, most: int | None = None) -> bool:
        """Return whether the flight has received more than the window of its reader, up to the end of a chunk.

        ``most`` limits the window, in bytes.
        """
        cursor, limit = self.cursor, self.needed
        if cursor is not None:
            limit = max(limit, cursor.limit if most is None else min(cursor.limit, cursor.position + most))
        return self.at // self._chunk * self._chunk >= limit

    def lock_ahead(self, present: ChunkMap, to: int) -> bool:
        """Lock the next segment if the flight is close to it after it has stored the bytes up to the offset ``to``.

        The caller stores these bytes afterwards. If it stored them first, another process could lock the chunk after
        them. Returns False if the flight should end before the next segment, because another process is fetching the
        segment, or another flight has stored it.
        """
        chunk, self.contended = self._chunk, False
        if self.locked_to >= self.stop or to + SEGMENT // 2 < self.locked_to * chunk:
            return True
        stop = min(self.stop, max(self.locked_to, to // chunk) + max(1, SEGMENT // chunk))
        if present.first_missing(self.locked_to, stop - 1) is None:
            return to < self.locked_to * chunk
        if not present.try_lock(self.locked_to, stop - self.locked_to):
            self.contended = True
            return to < self.locked_to * chunk
        done = self.at // chunk
        if done > self.locked:
            present.unlock(self.locked, done - self.locked)
            self.locked = done
        self.locked_to = stop
        return True

    def unlock(self, present: ChunkMap) -> None:
        """Release the locks of the flight."""
        if self.locked_to > self.locked:
            present.unlock(self.locked, self.locked_to - self.locked)
        self.locked = self.locked_to

    def lock_again(self, present: ChunkMap) -> bool:
        """Lock the unfetched chunks of the flight again. Returns False if another process has locked them."""
        first = self.at // self._chunk
        stop = max(self.locked_to, first + 1)
        if not present.try_lock(first, stop - first):
            return False
        self.locked, self.locked_to = first, stop
        return True


def before_gap(present: ChunkMap, first: int, stop: int, chunk: int) -> int:
    """Return where a flight for [first, stop) should end: at the first long run of stored chunks, or at ``stop``."""
    gap = max(1, GAP // chunk)
    at = first
    while at < stop:
        there = present.first_present(at, stop - 1)
        if there is None:
            return stop
        missing = present.first_missing(there, stop - 1)
        if missing is None or missing - there >= gap:
            return there
        at = missing
    return stop


def let_reader_come_closer(flight: Flight, sink: Sink) -> bool:
    """Pause a flight while it is a window ahead of its reader. Returns False if the flight should end instead.

    A short pause keeps the locks of the flight. Otherwise another process that reads faster would request the next
    chunks, and the bytes of this flight that are already under way would be lost. Bytes that are not stored must fit
    into the overflow until the reader takes them.
    """
    cursor = flight.cursor
    if cursor is None or not flight.is_ahead(sink.ahead):
        return True
    cursor.link.lanes.paused()
    began, pause, locked = time.monotonic(), PAUSE, True
    flight.held_back = True
    while flight.is_ahead(sink.ahead):
        paused = time.monotonic() - began
        if sink.closed or paused > (HURRY if sink.buffers.short else IDLE):
            return False
        if locked and paused > HOLD:
            flight.unlock(sink.present)
            locked = False
        time.sleep(pause)
        pause = min(pause * 2, MAX_PAUSE)
    flight.held_back = False
    return locked or flight.lock_again(sink.present)
