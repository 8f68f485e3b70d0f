"""Fetch missing chunks from a source, so that all threads and processes of a machine fetch each chunk only once.

A *flight* is a request for a run of chunks. A reader that misses a chunk joins the flight that is about to fetch the
chunk, or starts a flight. For a sequential reader (``readahead``), flights run ahead on threads of their own. Later, a
single flight to the end of the blob replaces those flights. It pauses while it is a whole window ahead of its reader. A
source without ranges has a stream for all readers instead (``stream``).

A flight locks its chunks against other processes a few MiB at a time. A reader waits for a chunk that another process
has locked, but not forever, because that process may be stopped: after ``patience`` seconds the reader fetches the
chunk itself. These bytes are not stored, because the other process may still write the same chunk.

Threading: the sink's lock guards the flights and is never held over I/O on the source.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import chain
from typing import Final

from kitfs.content import Source
from kitfs.errors import IntegrityError, KitfsError
from kitfs.store.chunk_digests import Endpoints
from kitfs.store.flight import SEGMENT, Flight, before_gap, let_reader_come_closer
from kitfs.store.lanes import STRIPE
from kitfs.store.readahead import MEASURED, Cursor, Readahead
from kitfs.store.sink import Cutter, Parked, Sink, Want
from kitfs.store.stream import FetchOwner, Piece, Pieces, Stream

POLL: Final = 0.005  # seconds between two checks of the marks of another process
CLOSE_PATIENCE: Final = 1.0  # seconds that closing waits for sources that do not answer
SHARED: Final = 10.0  # seconds: requests are short (a segment) for so long after another process has locked a chunk
FOLLOW: Final = 1.0  # seconds without requests ahead of readers, after a reader has waited for another process
JOIN: Final = 8 << 20  # bytes: a reader joins a flight that is at most this far before the missing chunk


class Fetcher:
    """A fetcher fills the blob ``owner`` from ``source`` through ``sink``. ``name`` names the blob in messages.

    ``rests`` is True if a stream of the source can be paused while no reader needs more bytes. A decoder can be paused,
    and a response of a registry cannot. A reader waits ``patience`` seconds for a chunk that another process is
    fetching.
    """

    def __init__(
        self, source: Source, sink: Sink, owner: FetchOwner, *, name: str, rests: bool, patience: float
    ) -> None:
        self._source = source
        self._sink = sink
        self._owner = owner
        self._name = name
        self._patience = patience
        self._readahead = Readahead()
        self._flights: list[Flight] = []
        self._short_until = 0.0  # the monotonic time until which requests are short, for the sake of other processes
        self._follows_until = 0.0  # the monotonic time until which another process fetches ahead of readers
        self._threads: set[threading.Thread] = set()
        self._endpoints = Endpoints(source)
        self._stream = Stream(source, sink, owner, name=name, rests=rests, patience=patience, start=self._start)

    @property
    def ranged(self) -> bool:
        """Return whether the source has ranges, as far as is known."""
        return self._source.ranged

    def ensure(
        self, first: int, last: int, *, alone: bool = False, around: tuple[int, int] | None = None
    ) -> dict[int, bytes]:
        """Wait until the chunks ``first`` to ``last`` are fetched. Return the chunks that could not be stored.

        ``around`` has chunks around them that are fetched too, because the source produces them anyway. With ``alone``,
        the call is not treated as part of a sequential read, so nothing else is fetched. If ``last`` is beyond the end
        of a blob of unknown size, the call waits until the end is known. Raises the KitfsError of the source if the
        chunks cannot be fetched.
        """
        want = Want(*(around or (first, last)))
        chunk = self._sink.chunk
        cursor = None if alone else self._readahead.miss(first * chunk, (last + 1) * chunk)
        self._sink.add(want)
        waited: tuple[int | None, float] = (None, 0.0)
        try:
            while (missing := self._sink.next_missing(want)) is not None:
                if not self._source.ranged:
                    self._stream.wait(missing, want)
                elif self._fetch(missing, want, cursor):
                    waited = (None, 0.0)
                else:
                    waited = self._wait_elsewhere(missing, want, *waited)
        finally:
            self._sink.discard(want)
        return want.passed

    def park(self, first: int, last: int, ready: Callable[[KitfsError | None], None]) -> bool:
        """Call ``ready`` when a running flight has fetched the chunks ``first`` to ``last``, or has ended.

        Returns False if no flight is about to fetch the first missing chunk. ``WouldBlock.when_ready`` uses this.
        """
        sink = self._sink
        last = sink.last_chunk(last)
        with sink.lock:
            missing = sink.first_absent(first, last)
            if missing is not None:
                flight = self._carrier(missing)
                if flight is None or sink.closed:
                    return False
                flight.needed = max(flight.needed, (min(last, flight.stop - 1) + 1) * sink.chunk)
                sink.park(Parked(first, last, missing, ready))
        if missing is None:
            ready(None)
            return True
        cursor = self._readahead.miss(first * sink.chunk, (last + 1) * sink.chunk)
        if cursor is not None:
            self._continue(cursor)
        return True

    @property
    def streaming(self) -> bool:
        """Return whether a request to the end of the blob runs ahead of a sequential reader and is not paused now."""
        cursors = [flight.cursor for flight in list(self._flights) if not flight.held_back]
        return any(cursor is not None and cursor.long and not cursor.announced for cursor in cursors)

    def will_read(self, start: int, most: int) -> None:
        """Announce a reader that reads everything from ``start`` on, as ``Readahead.announce`` does."""
        self._readahead.announce(start, most)

    def touch(self, start: int, stop: int) -> None:
        """Record that stored bytes [start, stop) were read, and send the next request for the reader if it is due."""
        cursor = self._readahead.advance(start, stop)
        if cursor is not None:
            self._continue(cursor)

    def stop(self) -> None:
        """End the running flights, let waiting readers raise Closed, and prevent further flights."""
        self._sink.close()

    def close(self, patience: float = CLOSE_PATIENCE) -> bool:
        """End the running flights. Returns False if a thread still waits for its source after ``patience`` seconds.

        Such a thread raises Closed when it receives its next bytes.
        """
        self.stop()
        with self._sink.lock:
            threads = list(self._threads)
        deadline = time.monotonic() + patience
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _fetch(self, missing: int, want: Want, cursor: Cursor | None) -> bool:
        """Join the flight that fetches the first missing chunk, or start a flight that begins with that chunk.

        Returns False if another process is fetching the chunk. Raises the error that ended the flight.
        """
        with self._sink.lock:
            self._sink.check_open(self._name)
            flight = self._carrier(missing) or self._predecessor(cursor, missing)
            mine = flight is None
            if flight is None:
                flight = self._depart(self._beginning(missing, cursor), want.last + 1, cursor)
                if flight is None:
                    return False
                if flight.cursor is not None:
                    self._start(self._fly, flight)
                    mine = False
        if mine:
            self._fly(flight)
            if flight.error is not None:
                raise flight.error
        else:
            if cursor is not None:
                self._continue(cursor)
            self._wait(flight, missing, want)
        return True

    def _wait(self, flight: Flight, chunk: int, want: Want) -> None:
        """Wait until a chunk of a flight is available, or the flight ends. Raises the error that ended the flight."""
        while True:
            with self._sink.lock:
                want.missing = None
                if self._sink.has(chunk, want):
                    return
                self._sink.check_open(self._name)
                if flight.done:
                    if flight.error is not None:
                        raise flight.error
                    return
                want.missing = chunk
                flight.needed = max(flight.needed, (min(want.last, flight.stop - 1) + 1) * self._sink.chunk)
            want.sleep(1.0)

    def _wait_elsewhere(self, missing: int, want: Want, chunk: int | None, since: float) -> tuple[int, float]:
        """Wait a moment for another process that is fetching the chunk ``missing``. Return (chunk, since).

        The reader has been waiting for ``chunk`` since the time ``since``. After ``patience`` seconds, the chunks are
        fetched for this reader alone.
        """
        now = time.monotonic()
        self._follows_until = now + FOLLOW
        if chunk != missing:
            chunk, since = missing, now
        if now - since > self._patience:
            flight = Flight(missing, self._sink.last_chunk(want.last) + 1, self._sink.chunk, locked_to=0, keep=False)
            self._fly(flight)
            if flight.error is not None:
                raise flight.error
        else:
            threading.Event().wait(POLL)
        return missing, since

    def _carrier(self, chunk: int) -> Flight | None:
        """Return the flight that will soon fetch a chunk, or None. The caller must hold the lock."""
        size = self._sink.chunk
        for flight in self._flights:
            if flight.at // size <= chunk < flight.stop and chunk * size < max(flight.at + JOIN, flight.needed):
                return flight
        return None

    def _predecessor(self, cursor: Cursor | None, missing: int) -> Flight | None:
        """Return the flight whose connection should be used next for ``missing``; None to request it at once.

        On a link with a long delay, a new connection needs several round trips to reach its full speed. So on such a
        link, the requests of a reader follow each other on one connection. The caller must hold the lock.
        """
        if cursor is None or not cursor.link.far or cursor.link.lanes.several:
            return None
        last = -(-cursor.end // self._sink.chunk)
        return next((f for f in self._flights if f.cursor is cursor and f.stop <= missing and f.stop == last), None)

    def _beginning(self, missing: int, cursor: Cursor | None) -> int:
        """Return the chunk at which a flight for ``missing`` should begin. The caller must hold the lock.

        The kernel may send the requests of a reader out of order. In that case, the flight begins at an earlier chunk,
        so that the requests for earlier chunks need no flights of their own.
        """
        if cursor is None:
            return missing
        at, present = cursor.end // self._sink.chunk, self._sink.present
        if not 0 < missing - at <= cursor.slack // self._sink.chunk:
            return missing
        gap = present.first_missing(at, missing - 1)
        return missing if gap is None or self._carrier(gap) is not None else gap

    def _depart(self, missing: int, wanted: int, cursor: Cursor | None) -> Flight | None:
        """Return a new flight that begins at ``missing``, for a reader that wants the chunks up to ``wanted``.

        Returns None if another process is fetching the chunk. The caller must hold the lock.
        """
        sink, present = self._sink, self._sink.present
        size = sink.size or 0
        wanted = sink.last_chunk(wanted - 1) + 1
        stop = wanted
        if cursor is not None:
            planned = self._readahead.plan(cursor, wanted * sink.chunk, size)
            stop = max(wanted, -(-planned // sink.chunk))
        stop = min([stop, *(f.at // sink.chunk for f in self._flights if missing < f.at // sink.chunk)])
        stop = before_gap(present, missing, stop, sink.chunk)
        segment = missing + max(1, SEGMENT // sink.chunk)
        if time.monotonic() < self._short_until:
            stop = min(stop, segment)
        locked_to = min(stop, segment)
        while not present.try_lock(missing, locked_to - missing):
            self._short_until = time.monotonic() + SHARED
            if locked_to == missing + 1:
                return None
            stop = locked_to = missing + max(1, (locked_to - missing) // 4)
        if present.has(missing, missing):  # the chunk was stored while this thread took the lock
            present.unlock(missing, locked_to - missing)
            return None
        stop = before_gap(present, missing, stop, sink.chunk)  # the same may be true of later chunks
        if stop < locked_to:
            present.unlock(stop, locked_to - stop)
            locked_to = stop
        ahead = cursor if stop > wanted else None
        flight = Flight(missing, stop, sink.chunk, locked_to=locked_to, cursor=ahead)
        if cursor is not None:
            cursor.end = max(cursor.end, min(stop * sink.chunk, size))
        self._flights.append(flight)
        return flight

    def _continue(self, cursor: Cursor) -> None:
        """Send the next request of a sequential reader if it is due."""
        if self._source.ranged and time.monotonic() > self._follows_until:
            self._make_room(cursor)
            if cursor.due:
                self._read_ahead(cursor)

    def _make_room(self, cursor: Cursor) -> None:
        """Shorten the last flight of a reader that may have more flights (``lanes``), so that another can follow."""
        if cursor.link.lanes.count == 1:
            return
        chunk = self._sink.chunk
        with self._sink.lock:
            own = [flight for flight in self._flights if flight.cursor is cursor]
            if own and len(own) < cursor.link.lanes.count:
                last = max(own, key=lambda flight: flight.stop)
                if last.stop * chunk - last.at > 2 * STRIPE:
                    last.stop = (last.at + STRIPE) // chunk
                    cursor.end = last.stop * chunk

    def _try_second(self, flight: Flight, now: float) -> None:
        """Begin a second request for a reader that has one request, if a trial of two requests is due (``lanes``)."""
        cursor, chunk = flight.cursor, self._sink.chunk
        if cursor is None or len(self._flights) > 2:
            return
        left, lanes = flight.end(self._sink.size) - flight.at, cursor.link.lanes
        if not (distance := lanes.try_second(left, cursor.link.delay, now)):
            return
        with self._sink.lock:
            flight.on_trial = True
            flight.stop = (flight.at + distance) // chunk
            cursor.end = flight.stop * chunk
            second = self._depart(flight.stop, flight.stop + 1, cursor)
            if second is not None:
                second.cursor = cursor
                self._start(self._fly, second)

    def _read_ahead(self, cursor: Cursor) -> None:
        """Send the next request of a sequential reader, unless this or another process has sent it already."""
        sink = self._sink
        size = sink.size or 0
        with sink.lock:
            limit = min(size if cursor.long else cursor.limit, size)
            if sink.closed or not cursor.due or cursor.end >= limit:
                return
            first, last = cursor.end // sink.chunk, (limit - 1) // sink.chunk
            own = sum(flight.cursor is cursor for flight in self._flights)
            if self._predecessor(cursor, first) is not None or 1 < cursor.link.lanes.count <= own:
                return
            missing = sink.present.first_missing(first, last)
            if missing is None:
                cursor.end = limit
                return
            if self._carrier(missing) is not None:
                cursor.end = max(cursor.end, (missing + 1) * sink.chunk)
                return
            flight = self._depart(missing, missing + 1, cursor)
            if flight is None:
                cursor.end = min((missing + 1) * sink.chunk, size)
                return
            flight.cursor = cursor
            self._start(self._fly, flight)

    def _fly(self, flight: Flight) -> None:
        """Fetch the chunks of a flight. An error is stored in ``flight.error``."""
        sink = self._sink
        try:
            self._endpoints.receive(self._receive, flight)
        except Exception as e:
            flight.error = sink.ended(self._name, e)
            if not isinstance(e, (KitfsError, OSError)) and not sink.closed:
                raise
        finally:
            if flight.on_trial:
                self._readahead.link.lanes.met(time.monotonic())
            flight.unlock(sink.present)
            with sink.lock:
                if flight in self._flights:
                    self._flights.remove(flight)
                if flight.cursor is not None and flight.at < flight.stop * sink.chunk:
                    flight.cursor.end = min(flight.cursor.end, flight.at)
                flight.done = True
                sink.wake()
            if flight.cursor is not None and flight.error is None:
                self._continue(flight.cursor)
            self._owner.landed()
            sink.unpark(flight.first, flight.stop, flight.error)

    def _receive(self, flight: Flight) -> None:
        """Receive the bytes of a flight. Raises errors of the source, and IntegrityError if the source ends early."""
        asked, flight.at = time.monotonic(), flight.at - flight.at % self._sink.chunk  # a retry needs whole chunks
        pieces = self._source.read_range(flight.at, flight.end(self._sink.size))
        try:
            first = next(pieces, None)
            flight.delay = time.monotonic() - asked
            self._readahead.link.responded(flight.delay)
            if first is not None and not self._source.ranged and self._stream.board(first, pieces):
                return  # the stream uses the pieces now, and will close them
            if self._source.ranged and not self._take(flight, first, pieces):
                raise IntegrityError(f"{self._name} ended before byte {flight.end(self._sink.size)}")
        except BaseException:
            pieces.close()
            raise
        pieces.close()

    def _take(self, flight: Flight, first: Piece | None, pieces: Pieces) -> bool:
        """Store the pieces of a range. Returns False if the pieces end before the end of the flight."""
        cutter = Cutter(self._sink, flight.at, keep=flight.keep)
        begun, measured = time.monotonic(), flight.at + (0 if first is None else len(first[1])) + MEASURED
        for offset, view in chain([] if first is None else [first], pieces):
            if offset != cutter.at:
                raise IntegrityError(
                    f"{self._name}: the source sent bytes at {offset}, but those at {cutter.at} were expected"
                )
            stop = flight.end(self._sink.size)
            view = view[: stop - offset]
            goes_on = not flight.keep or self._lock_ahead(flight, offset + len(view))
            if not goes_on:
                view = view[: max(0, flight.locked_to * self._sink.chunk - offset)]
            cutter.take(view, locked=flight.keep and offset + len(view) <= flight.locked_to * self._sink.chunk)
            flight.at = cutter.at
            now = time.monotonic()
            if cutter.at >= measured:
                self._readahead.link.measured(flight.delay, cutter.at - measured + MEASURED, now - begun)
                measured = 1 << 62  # measured once for each flight, because a long flight pauses later
            if cutter.at >= stop or self._sink.closed:
                break
            if not goes_on or (flight.keep and not let_reader_come_closer(flight, self._sink)):
                return True
            if flight.cursor is not None and flight.keep and flight.cursor.long:
                flight.cursor.link.lanes.received(len(view), flight.cursor.link.delay, now)
                self._try_second(flight, now)
        cutter.end()
        return cutter.at >= flight.end(self._sink.size) or self._sink.closed

    def _lock_ahead(self, flight: Flight, to: int) -> bool:
        """Lock the next segment before the bytes up to the offset ``to`` are stored, as ``Flight.lock_ahead`` does."""
        going = flight.lock_ahead(self._sink.present, to)
        if flight.contended:
            self._short_until = time.monotonic() + SHARED
        return going

    def _start(self, run: Callable[..., None], *args: object) -> None:
        """Run a function on a thread of its own, for which ``close`` waits. The caller must hold the lock."""

        def body() -> None:
            try:
                run(*args)
            finally:
                with self._sink.lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=body, name="kitfs-fetch", daemon=True)
        self._threads.add(thread)
        thread.start()
