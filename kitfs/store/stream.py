"""Read a source without ranges by one stream for all readers.

Such a source is a decoder, or a registry that ignores Range. All readers wait until the stream has passed their chunks.
The stream of a decoder runs only as far as a reader needs, and then pauses. The stream of a registry runs to the end,
because the registry would close an idle connection. If a reader needs a chunk that the decoder has passed and that was
not stored, the decoder restarts from the beginning.

Threading: the sink's lock guards the state. The stream runs on a thread of its own.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Final, Protocol

from kitfs.content import Source
from kitfs.errors import IntegrityError, KitfsError, WrongChunk
from kitfs.store.sink import Cutter, Sink, Want

POLL: Final = 0.005  # seconds between two checks of the stream of another process
REST: Final = 1.0  # seconds that a paused stream sleeps at a time, unless a reader wakes it
MARKING: Final = 0.05  # seconds between two checks of the marks that another process may be writing

Piece = tuple[int, memoryview]
Pieces = Generator[Piece, None, None]
_everyone: Final = 1 << 62  # the number of a chunk beyond the end of every blob


class FetchOwner(Protocol):
    """The blob that is filled."""

    def finished(self, size: int, sha256: str) -> bool:
        """Record the size and digest of a source without ranges that has ended, before its last chunk is marked.

        Returns False if size and digest cannot be recorded; a short last chunk is not stored in that case.
        """
        ...

    def landed(self) -> None:
        """React when a flight or a stream has ended."""
        ...

    def learn_size(self) -> int | None:
        """Return the size in bytes that another process has found, or None."""
        ...


class Run:
    """A run of a stream. ``error`` is the error that ended the run early.

    The stream's thread sleeps until ``want`` is woken.
    """

    __slots__ = ("done", "error", "want")

    def __init__(self) -> None:
        self.done = False
        self.error: KitfsError | None = None
        self.want = Want(_everyone, -1)


class Stream:
    """The stream of ``source`` into ``sink``. ``fetch.Fetcher`` explains the other parameters.

    ``start`` is called with a function, while the lock is held, and runs that function on a new thread.
    """

    def __init__(
        self, source: Source, sink: Sink, owner: FetchOwner, *, name: str, rests: bool, patience: float,
        start: Callable[..., None],
    ) -> None:  # fmt: skip
        self._source = source
        self._sink = sink
        self._owner = owner
        self._name = name
        self._rests = rests
        self._patience = patience
        self._start = start
        self._run: Run | None = None

    def board(self, first: Piece, pieces: Pieces) -> bool:
        """Use a response as the stream for all readers, because its body is the whole blob instead of a range.

        Returns False if a stream runs already, or if the body does not begin at byte 0.
        """
        with self._sink.lock:
            if self._run is not None or first[0] != 0:
                return False
            self._begin(_rejoined(first, pieces))
        return True

    def wait(self, missing: int, want: Want) -> None:
        """Wait until the stream has passed a missing chunk or has ended. If no stream is running, start it.

        Raises the error that ended the stream.
        """
        sink = self._sink
        with sink.lock:
            sink.check_open(self._name)
            run = self._run or self._begin(None)
            want.missing = missing
            run.want.wake()
        while True:
            with sink.lock:
                if sink.has(missing, want) or run.done or not self._may_exist(missing) or sink.closed:
                    want.missing = None
                    sink.check_open(self._name)
                    if run.error is not None and not sink.has(missing, want):
                        raise run.error
                    return
            want.sleep(MARKING)

    def _begin(self, pieces: Pieces | None) -> Run:
        """Start a run. The caller must hold the lock."""
        self._run = run = Run()
        self._start(self._fly, run, pieces)
        return run

    def _may_exist(self, chunk: int) -> bool:
        """Return whether the blob may have a chunk of this number. If the size is unknown, the result is True."""
        return self._sink.size is None or chunk * self._sink.chunk < self._sink.size

    def _fly(self, run: Run, pieces: Pieces | None) -> None:
        """Run the stream from byte 0 to its end."""
        sink = self._sink
        sink.add(run.want)
        locked = False
        try:
            locked, keep = self._take_over(run, pieces)
            if not locked and pieces is not None:
                pieces.close()
                pieces = None
            if sink.size is None:
                sink.size = self._owner.learn_size()
            with sink.lock:
                needed = pieces is not None or sink.wanted()
            if needed and not sink.closed and (locked or not keep):
                locked = self._streamed(run, pieces, locked, keep)
        except Exception as e:
            run.error = sink.ended(self._name, e)
            if not isinstance(e, (KitfsError, OSError)) and not sink.closed:
                raise
        finally:
            if locked:
                sink.present.unlock_stream()
            sink.discard(run.want)
            with sink.lock:
                run.done = True
                self._run = None
                sink.wake()
            self._owner.landed()

    def _take_over(self, run: Run, pieces: Pieces | None) -> tuple[bool, bool]:
        """Lock the stream against other processes. Return whether it is locked, and whether it may store bytes.

        While another process has the lock, the chunks that it stores are used. If it stores nothing for ``patience``
        seconds, the stream runs without the lock and stores nothing. The result is (False, True) if no reader needs the
        stream any longer.
        """
        sink = self._sink
        seen, since = -1, time.monotonic()
        while not sink.present.try_lock_stream():
            if pieces is not None:
                pieces.close()
                pieces = None
            with sink.lock:
                needed = not sink.closed and sink.wanted()
            if not needed:
                return False, True
            there = sink.present.first_missing(0, max(0, sink.demand() - 1))
            if there != seen:
                seen, since = -1 if there is None else there, time.monotonic()
            elif time.monotonic() - since > self._patience:
                return False, False
            run.want.sleep(POLL)
        return True, True

    def _streamed(self, run: Run, pieces: Pieces | None, locked: bool, keep: bool) -> bool:
        """Do what ``_stream`` does. After a wrong chunk, begin again with another endpoint of the source."""
        while True:
            try:
                return self._stream(run, pieces, locked, keep)
            except WrongChunk:
                if not self._source.distrust():
                    raise
                pieces = None

    def _stream(self, run: Run, pieces: Pieces | None, locked: bool, keep: bool) -> bool:
        """Read the source and pass its bytes to the sink. Returns whether the stream is still locked."""
        sink = self._sink
        cutter = Cutter(sink, 0, keep=keep)
        hasher = hashlib.sha256()
        with closing(pieces or self._source.read_range(0, None)) as stream:
            for _, view in stream:
                hasher.update(view)
                cutter.take(view)
                if sink.closed:
                    return locked
                if self._rests and not self._needed(cutter.at):
                    if locked:
                        sink.present.unlock_stream()
                    locked = False
                    if not self._rest(run, cutter.at):
                        return False
                    if keep:
                        locked = sink.present.try_lock_stream()
        if sink.size is not None and cutter.at != sink.size:
            raise IntegrityError(f"{self._name} has {cutter.at} bytes, not {sink.size}")
        recorded = self._owner.finished(cutter.at, hasher.hexdigest())
        sink.size = cutter.at
        cutter.end(keep=recorded)
        return locked

    def _needed(self, at: int) -> bool:
        """Return whether a reader waits for bytes that the stream has not reached yet."""
        with self._sink.lock:
            return at < self._sink.demand() * self._sink.chunk

    def _rest(self, run: Run, at: int) -> bool:
        """Wait until a reader needs bytes that the stream has not reached yet.

        Returns False if the blob was closed, or if the stream must restart.
        """
        sink = self._sink
        while True:
            with sink.lock:
                if sink.closed or sink.left_behind(at // sink.chunk):
                    return False
                if at < sink.demand() * sink.chunk:
                    return True
            run.want.sleep(REST)


def _rejoined(first: Piece, pieces: Pieces) -> Pieces:
    """Yield ``first``, which was taken from ``pieces``, and then the other pieces."""
    with closing(pieces):
        yield first
        yield from pieces
