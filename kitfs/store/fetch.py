"""Fetch missing chunks from a source: each chunk is fetched once, among the threads of a process and the processes of a
machine.

A ranged source is asked for runs of missing chunks, longer ones for sequential readers (``readahead``); the part beyond
the reader's own chunks is fetched on another thread, so that the reader waits for its own chunks only. A source that is
not ranged has one stream for all readers, which wait until it has passed their chunks. The stream of a decoder goes
only as far as a reader needs it and then pauses; that of a registry, which would close an idle connection, runs to the
end.

Chunks are written before they are marked, and marked as they come, so that a killed process costs the others only the
bytes that it was receiving. When the store cannot take a chunk, its bytes are handed to every reader that wants it and
kept only for a moment (read through). If a reader needs a chunk the decoder has already passed and that was not stored,
the decoder restarts from the beginning.

Threading: ``_lock`` guards flights, streams and overflow, and is never held over I/O on the source. Waiting readers
sleep on a condition and wake at every mark; marks of other processes are polled.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import chain
from typing import Any, Final

from kitfs.content import Source
from kitfs.errors import Closed, IntegrityError, KitfsError, StoreError
from kitfs.store.chunk_map import ChunkMap
from kitfs.store.data_file import DataFile
from kitfs.store.durable import NO_SPACE
from kitfs.store.readahead import MAX_WINDOW, Streams

POLL: Final = 0.005  # seconds between two looks at the marks of another process
CLOSE_PATIENCE: Final = 1.0  # seconds that closing waits for sources that do not answer
OVERFLOW: Final = 8 << 20  # bytes that may wait in memory for their readers when the store is full
FULL: Final = NO_SPACE | {errno.EIO, errno.EROFS, errno.EFBIG}


Piece = tuple[int, memoryview]
Pieces = Generator[Piece, None, None]


class Flight:
    """The chunks ``first`` to ``stop`` (not included), which are being fetched; ``error`` is what ended the fetch
    early.
    """

    __slots__ = ("done", "error", "first", "stop")

    def __init__(self, first: int, stop: int) -> None:
        self.first = first
        self.stop = stop
        self.done = False
        self.error: Exception | None = None


class Want:
    """The chunks ``first`` to ``last`` that a reader waits for in ``ensure``; ``passed`` holds those that the store
    could not take.
    """

    __slots__ = ("first", "last", "missing", "passed")

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.last = last
        self.missing: int | None = None  # the chunk for which it waits on the stream
        self.passed: dict[int, bytes] = {}


class Fetcher:
    """Fills one blob.

    ``rests`` says that a stream of the source may pause while no reader needs more of it, as a decoder's may and a
    registry's may not. ``room`` tells whether the store takes more bytes (it may evict to make room), ``make_room``
    whether some were freed on a full disk. ``wrote`` is called with the number of bytes that were stored, ``passed``
    with the number that were not.

    ``finished`` is called with (size, digest of the stream) when a source without ranges has ended, before its last
    chunk is marked; it returns False when the size could not be recorded, and then a short last chunk is not stored
    either. ``landed`` is called after every flight. ``learn_size`` returns a size that another process has found.
    """

    def __init__(
        self,
        source: Source,
        body: DataFile,
        present: ChunkMap,
        *,
        chunk: int,
        size: int | None,
        rests: bool,
        name: str,
        room: Callable[[], bool],
        make_room: Callable[[], bool],
        wrote: Callable[[int], None],
        passed: Callable[[int], None],
        hasher: Callable[[], Any],
        finished: Callable[[int, str], bool],
        landed: Callable[[], None],
        learn_size: Callable[[], int | None],
    ) -> None:
        self._source = source
        self._body = body
        self._present = present
        self._chunk = chunk
        self.size = size
        self._rests = rests
        self._name = name
        self._room = room
        self._make_room = make_room
        self._wrote = wrote
        self._passed = passed
        self._hasher = hasher
        self._finished = finished
        self._landed = landed
        self._learn_size = learn_size
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self._streams = Streams()
        self._flights: dict[int, Flight] = {}
        self._stream: Flight | None = None
        self._wants: set[Want] = set()
        self._overflow: OrderedDict[int, bytes] = OrderedDict()
        self._threads: set[threading.Thread] = set()
        self._closed = False

    @property
    def ranged(self) -> bool:
        """Whether the source has ranges, as far as is known."""
        return self._source.ranged

    def ensure(self, first: int, last: int) -> dict[int, bytes]:
        """Return when the chunks ``first`` to ``last`` are stored, with those that the store could not take.

        Raises the KitfsError of the source when they cannot be fetched. ``last`` may lie beyond the end of a blob of
        unknown size: the call returns when the end is known then.
        """
        want = Want(first, last)
        with self._lock:
            self._wants.add(want)
        try:
            while (missing := self._next_missing(want)) is not None:
                if self._source.ranged:
                    self._ensure_ranged(missing, want)
                else:
                    self._ensure_streamed(missing, want)
        finally:
            with self._lock:
                self._wants.discard(want)
        return want.passed

    def stop(self) -> None:
        """Start no flight any more, and end the running ones and their readers."""
        with self._lock:
            self._closed = True
            self._arrived.notify_all()

    def close(self, patience: float = CLOSE_PATIENCE) -> bool:
        """End running flights. Returns False when a thread still waits for its source after ``patience`` seconds: it
        raises Closed in the end.
        """
        self.stop()
        with self._lock:
            threads = list(self._threads)
        deadline = time.monotonic() + patience
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _next_missing(self, want: Want) -> int | None:
        """Return the first wanted chunk that is neither stored nor handed over; takes chunks from the overflow."""
        first, last = want.first, want.last
        while True:
            if self.size is not None:
                last = min(last, (self.size - 1) // self._chunk)
            missing = self._present.first_missing(first, last) if first <= last else None
            if missing is None:
                return None
            if missing not in want.passed:
                with self._lock:
                    data = self._overflow.get(missing)
                    if data is not None:
                        want.passed[missing] = data
                if missing not in want.passed:
                    return missing
            first = missing + 1

    def _has(self, chunk: int, want: Want) -> bool:
        """Tell whether a reader can have a chunk. Call with the lock."""
        return self._present.has(chunk, chunk) or chunk in want.passed or chunk in self._overflow

    def _ensure_ranged(self, missing: int, want: Want) -> None:
        """Join the flight of the first missing chunk, or start one for it and the following chunks."""
        with self._lock:
            flight = self._flights.get(missing)
            if flight is not None:
                self._wait(flight, missing, want)
                return
            if self._closed:
                raise Closed(f"{self._name} is closed")
            flight = self._claim(missing, want.last)
        if flight is None:
            threading.Event().wait(POLL)  # another process is fetching it
            return
        if flight.stop - 1 <= want.last:
            self._fly(flight)
            if flight.error is not None:
                raise flight.error
        else:
            with self._lock:
                self._start(self._fly, flight)

    def _wait(self, flight: Flight, chunk: int, want: Want) -> None:
        """Wait for one chunk of a flight; call with the lock. Raises what ended the flight."""
        while not flight.done and not self._closed and not self._has(chunk, want):
            self._arrived.wait()
        if self._closed:
            raise Closed(f"{self._name} was closed")
        if flight.error is not None and not self._has(chunk, want):
            raise flight.error

    def _claim(self, missing: int, last: int) -> Flight | None:
        """Return a flight that begins at ``missing``, locked against other processes; None when another process has it.
        Call with the lock.
        """
        chunks = self._present.chunks or 0
        planned = self._streams.plan(missing * self._chunk, (last + 1) * self._chunk)
        stop = min(-(-planned // self._chunk), chunks, missing + max(1, MAX_WINDOW // self._chunk))
        taken = self._present.first_present(missing, stop - 1)
        stop = min([stop, *([] if taken is None else [taken]), *(c for c in self._flights if missing < c < stop)])
        while not self._present.try_lock(missing, stop - missing):
            if stop == missing + 1:
                return None
            stop = missing + max(1, (stop - missing) // 4)
        if self._present.has(missing, missing):  # it came while this thread took the lock
            self._present.unlock(missing, stop - missing)
            return None
        flight = Flight(missing, stop)
        self._flights.update(dict.fromkeys(range(missing, stop), flight))
        return flight

    def _fly(self, flight: Flight) -> None:
        """Fetch the chunks of a flight; an error is left in ``flight.error``."""
        try:
            start = flight.first * self._chunk
            stop = flight.stop * self._chunk if self.size is None else min(flight.stop * self._chunk, self.size)
            pieces = self._source.read_range(start, stop)
            try:
                first = next(pieces, None)
                if first is not None and not self._source.ranged and self._board(first, pieces):
                    return
                if self._source.ranged and not self._take(first, pieces, start, stop):
                    raise IntegrityError(f"{self._name} ended before byte {stop}")
            except BaseException:
                pieces.close()
                raise
            pieces.close()
        except Exception as e:
            flight.error = self._ended(e)
            if not isinstance(e, (KitfsError, OSError)) and not self._closed:
                raise
        finally:
            self._present.unlock(flight.first, flight.stop - flight.first)
            with self._lock:
                for chunk in range(flight.first, flight.stop):
                    del self._flights[chunk]
                flight.done = True
                self._arrived.notify_all()
            self._landed()

    def _ended(self, error: Exception) -> KitfsError:
        """Return the error for a flight's readers: Closed when the fetcher was closed, whatever the source raised."""
        if self._closed:
            return Closed(f"{self._name} was closed")
        return error if isinstance(error, KitfsError) else StoreError(f"{self._name}: {type(error).__name__}: {error}")

    def _take(self, first: Piece | None, pieces: Pieces, start: int, stop: int) -> bool:
        """Store the pieces of a range; returns whether they covered it."""
        sink = _Sink(self, start)
        for offset, view in chain([] if first is None else [first], pieces):
            if offset != sink.at:
                raise IntegrityError(
                    f"{self._name}: the source gave bytes at {offset}, but those at {sink.at} were expected"
                )
            sink.take(view[: stop - offset])
            if sink.at >= stop or self._closed:
                break
        sink.end()
        return sink.at >= stop or self._closed

    def _board(self, first: Piece, pieces: Pieces) -> bool:
        """Use a whole body that came in response to a range as the stream for all readers; False when there is a stream
        already.
        """
        with self._lock:
            if self._stream is not None or first[0] != 0:
                return False
            flight = self._stream = Flight(0, 0)
            self._start(self._fly_stream, flight, _rejoin(first, pieces))
        return True

    def _start(self, run: Callable[..., None], *args: object) -> None:
        """Run a function on a thread of its own, which ``close`` waits for. Call with the lock."""

        def body() -> None:
            try:
                run(*args)
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=body, name="kitfs-fetch", daemon=True)
        self._threads.add(thread)
        thread.start()

    def _ensure_streamed(self, missing: int, want: Want) -> None:
        """Wait until the stream has passed the missing chunk; start the stream when there is none."""
        with self._lock:
            if self._closed:
                raise Closed(f"{self._name} is closed")
            want.missing = missing
            flight = self._stream
            if flight is None:
                flight = self._stream = Flight(0, 0)
                self._start(self._fly_stream, flight, None)
            self._arrived.notify_all()
            while not flight.done and not self._closed and self.size_allows(missing) and not self._has(missing, want):
                self._arrived.wait(10 * POLL)  # another process may be marking
            want.missing = None
            if self._closed:
                raise Closed(f"{self._name} was closed")
            if flight.error is not None and not self._has(missing, want):
                raise flight.error

    def size_allows(self, chunk: int) -> bool:
        """Tell whether a chunk may exist, as far as the size is known."""
        return self.size is None or chunk * self._chunk < self.size

    def _fly_stream(self, flight: Flight, pieces: Pieces | None) -> None:
        """Run the stream of a source without ranges, from byte 0 to its end."""
        locked = False
        try:
            while not (locked := self._present.try_lock_stream()):
                if pieces is not None:
                    pieces.close()
                    pieces = None
                # Another process streams, and its marks count here too. It releases the lock when it pauses, ends or
                # dies.
                with self._lock:
                    self._arrived.wait(POLL)
                    if self._closed or not self._wanted():
                        return
            if self.size is None:
                self.size = self._learn_size()
            if pieces is None and not self._wanted():
                return
            sink = _Sink(self, 0)
            hasher = self._hasher()
            with closing(pieces or self._source.read_range(0, None)) as stream:
                for _, view in stream:
                    hasher.update(view)
                    sink.take(view)
                    if self._closed:
                        return
                    if self._rests and not self._goes_on(sink):
                        self._present.unlock_stream()
                        locked = False
                        if not self._rest(sink):
                            return
                        locked = self._present.try_lock_stream()
            if self.size is not None and sink.at != self.size:
                raise IntegrityError(f"{self._name} has {sink.at} bytes, not {self.size}")
            kept = self._finished(sink.at, hasher.hexdigest())
            self.size = sink.at
            sink.end(kept=kept)
        except Exception as e:
            flight.error = self._ended(e)
            if not isinstance(e, (KitfsError, OSError)) and not self._closed:
                raise
        finally:
            if locked:
                self._present.unlock_stream()
            with self._lock:
                flight.done = True
                self._stream = None
                self._arrived.notify_all()
            self._landed()

    def _goes_on(self, sink: _Sink) -> bool:
        """Tell whether a reader waits for bytes that the stream has not reached yet."""
        with self._lock:
            return sink.at < self._demand() * self._chunk

    def _rest(self, sink: _Sink) -> bool:
        """Wait until a reader needs more than the stream has given. Returns False when the blob was closed, or the
        stream must restart.
        """
        with self._lock:
            while not self._closed and not self._left_behind(sink.at // self._chunk):
                if sink.at < self._demand() * self._chunk:
                    return True
                self._arrived.wait()
            return False

    def _demand(self) -> int:
        """Return the number of chunks up to which readers want the blob now. Call with the lock."""
        return max((want.last + 1 for want in self._wants), default=0)

    def _left_behind(self, given: int) -> bool:
        """Tell whether a reader waits for a chunk that the stream has passed and that was not stored. Call with the
        lock.
        """
        return any(w.missing is not None and w.missing < given and not self._has(w.missing, w) for w in self._wants)

    def _wanted(self) -> bool:
        """Tell whether a chunk that a reader wants from the stream is still missing. Call with the lock."""
        demand = self._demand()
        wanted = demand if self.size is None else min(demand, -(-self.size // self._chunk))
        return wanted > 0 and self._present.first_missing(0, wanted - 1) is not None

    def store(self, first: int, data: bytes | bytearray | memoryview) -> None:
        """Write and mark whole chunks (the last of the blob may be short); hand them over when the store is full."""
        count = -(-len(data) // self._chunk)
        if self._room() and self._write(first, count, data):
            self._wrote(len(data))
            with self._lock:
                self._arrived.notify_all()
            return
        self.hand_over(first, data)

    def hand_over(self, first: int, data: bytes | bytearray | memoryview) -> None:
        """Give chunks to the readers that want them, and keep them only for a moment."""
        self._passed(len(data))
        view = memoryview(data)
        count = -(-len(data) // self._chunk)
        with self._lock:
            for i in range(count):
                chunk = bytes(view[i * self._chunk : (i + 1) * self._chunk])
                self._overflow[first + i] = chunk
                self._overflow.move_to_end(first + i)
                for want in self._wants:
                    if want.first <= first + i <= want.last:
                        want.passed[first + i] = chunk
            while len(self._overflow) * self._chunk > OVERFLOW:
                self._overflow.popitem(last=False)
            self._arrived.notify_all()

    def _write(self, first: int, count: int, data: bytes | bytearray | memoryview) -> bool:
        while True:
            try:
                self._body.pwrite(first * self._chunk, data)
                self._present.mark(first, count)
                return True
            except OSError as e:
                if e.errno not in FULL:
                    raise
                if e.errno not in NO_SPACE or not self._make_room():
                    return False

    def present(self, chunk: int) -> bool:
        """Tell whether a chunk is stored."""
        return self._present.has(chunk, chunk)

    @property
    def chunk(self) -> int:
        """Bytes of a chunk."""
        return self._chunk


class _Sink:
    """Cuts a stream of views into whole chunks; ``at`` is the offset of the next byte."""

    def __init__(self, fetcher: Fetcher, at: int) -> None:
        self._fetcher = fetcher
        self._pending = bytearray()
        self.at = at

    def take(self, view: memoryview) -> None:
        """Take the next bytes; whole chunks go straight from the view to the disk."""
        chunk = self._fetcher.chunk
        while len(view):
            first = self.at // chunk
            if self._pending or self.at % chunk or len(view) < chunk:
                part = view[: chunk - len(self._pending)]
                self._pending += part
                if len(self._pending) == chunk:
                    self._put(first, self._pending)
                    self._pending = bytearray()
            else:
                part = view[: len(view) // chunk * chunk]
                self._put(first, part)
            self.at += len(part)
            view = view[len(part) :]

    def end(self, *, kept: bool = True) -> None:
        """Store the blob's last chunk, when it is short and came whole; with ``kept`` False, only hand it over."""
        size = self._fetcher.size
        if self._pending and (size is None or self.at == size):
            put = self._put if kept else self._fetcher.hand_over
            put(self.at // self._fetcher.chunk, self._pending)
        self._pending = bytearray()

    def _put(self, first: int, data: bytes | bytearray | memoryview) -> None:
        chunk = self._fetcher.chunk
        if len(data) <= chunk:
            if not self._fetcher.present(first):
                self._fetcher.store(first, data)
            return
        for i in range(len(data) // chunk):
            if self._fetcher.present(first + i):
                for j in range(len(data) // chunk):
                    self._put(first + j, data[j * chunk : (j + 1) * chunk])
                return
        self._fetcher.store(first, data)


def _rejoin(first: Piece, pieces: Pieces) -> Pieces:
    """Yield the pieces of a generator whose first piece was taken, with that piece again."""
    with closing(pieces):
        yield first
        yield from pieces
