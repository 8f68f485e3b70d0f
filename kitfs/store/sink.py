"""Write the fetched bytes of a blob into its file, and wake the readers that wait for them.

A chunk is written before it is marked, so that another process never sees a mark without its bytes. If the store has no
room for a chunk, its bytes stay in memory only until they are handed to the readers that wait for them (read-through).
These bytes in memory are called the overflow.

Threading: ``lock`` guards the wants and the overflow, and is never held during I/O. A *want* is the range of chunks
that a reader waits for. A reader sleeps until a chunk of its own want arrives.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

from kitfs.buffers import Buffers
from kitfs.errors import Closed, KitfsError, StoreError
from kitfs.store.chunk_map import ChunkMap
from kitfs.store.data_file import DataFile
from kitfs.store.disk import FAULTS
from kitfs.store.durable import NO_SPACE

OVERFLOW: Final = 8 << 20  # bytes of the overflow at most
FULL: Final = NO_SPACE | FAULTS | {errno.EFBIG}

Data = bytes | bytearray | memoryview


class Keeper(Protocol):
    """The owner of a blob. It decides whether bytes are stored, and counts the stored bytes."""

    def may_store(self) -> bool:
        """Return whether the store accepts more bytes. It may evict blobs to make room."""
        ...

    def disk_failed(self, error: OSError) -> None:
        """React to a failure of the disk."""
        ...

    def make_room(self) -> bool:
        """Try to free space on a full disk; return whether the write should be tried again."""
        ...

    def stored(self, size: int) -> None:
        """Count bytes that were stored."""
        ...

    def read_through(self, size: int, *, full: bool) -> None:
        """Count bytes that were not stored. ``full`` is True if the store had no room for them."""
        ...


class Want:
    """The chunks ``first`` to ``last`` that a reader waits for.

    ``passed`` has those chunks that were fetched but not stored. ``missing`` is the chunk for which the reader sleeps,
    or None while the reader does not sleep. The caller must hold the sink's lock, except for ``sleep``.
    """

    __slots__ = ("_gate", "first", "last", "missing", "passed")

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.last = last
        self.missing: int | None = None
        self.passed: dict[int, bytes] = {}
        self._gate = threading.Lock()
        self._gate.acquire()

    def wake(self) -> None:
        """Wake the reader; if the reader is not asleep, its next ``sleep`` returns at once."""
        if self._gate.locked():
            self._gate.release()

    def sleep(self, seconds: float) -> None:
        """Sleep until the reader is woken, but at most for ``seconds``."""
        self._gate.acquire(timeout=seconds)


class Parked(Want):
    """A want without a waiting thread.

    When all chunks are stored or a fetch has ended, ``ready`` is called once, without the lock. Its argument is the
    error of the fetch of these chunks, or None.
    """

    __slots__ = ("ready",)

    def __init__(self, first: int, last: int, missing: int, ready: Callable[[KitfsError | None], None]) -> None:
        super().__init__(first, last)
        self.missing = missing
        self.ready: Final = ready


class Sink:
    """The destination of the fetched bytes of a blob.

    ``body`` is the blob's file, and ``present`` has the marks of its stored chunks of ``chunk`` bytes. ``size`` is the
    size of the blob in bytes, or None while it is unknown. ``buffers`` limits the memory of the overflow. ``check`` is
    called with (offset, bytes) of whole chunks before they are stored or handed to a reader, and raises WrongChunk.
    """

    def __init__(
        self, keeper: Keeper, body: DataFile, present: ChunkMap, *, chunk: int, size: int | None, buffers: Buffers,
        check: Callable[[int, Data], None] | None = None,
    ) -> None:  # fmt: skip
        self.lock = threading.Lock()
        self.present: Final = present
        self.chunk: Final = chunk
        self.size = size
        self.closed = False
        self.awaited = float("-inf")  # the time in seconds at which chunks were last stored while a reader waited
        self.buffers: Final = buffers
        self._keeper = keeper
        self._body = body
        self._check = check
        self._wants: set[Want] = set()
        self._overflow: OrderedDict[int, bytes] = OrderedDict()
        self._stores = True  # whether the last bytes were stored

    @property
    def ahead(self) -> int | None:
        """Return how many bytes may be received before a reader needs them; None if they are stored."""
        return None if self._stores else OVERFLOW // 2

    def add(self, want: Want) -> None:
        """Add the want of a reader."""
        with self.lock:
            self._wants.add(want)

    def discard(self, want: Want) -> None:
        """Remove the want of a reader."""
        with self.lock:
            self._wants.discard(want)

    def park(self, want: Parked) -> None:
        """Add a parked want. ``unpark`` removes it. The caller must hold the lock."""
        self._wants.add(want)

    def unpark(self, first: int = 0, stop: int = 0, error: KitfsError | None = None) -> None:
        """Call ``ready`` of every parked want after a fetch of the chunks [first, stop) has ended.

        Readers that wait for one of these chunks get ``error``.
        """
        with self.lock:
            parked = [want for want in self._wants if isinstance(want, Parked)]
            self._wants.difference_update(parked)
        for want in parked:
            want.ready(error if want.missing is not None and first <= want.missing < stop else None)

    def close(self) -> None:
        """Wake all readers. Readers that still lack chunks raise Closed."""
        with self.lock:
            self.closed = True
            while self._overflow:
                self._drop_oldest()
            self.wake()
        self.unpark()

    def wake(self) -> None:
        """Wake all readers. The caller must hold the lock."""
        for want in self._wants:
            want.wake()

    def check_open(self, name: str) -> None:
        """Raise Closed if the sink is closed. ``name`` names the blob in the message."""
        if self.closed:
            raise Closed(f"{name} was closed")

    def last_chunk(self, last: int) -> int:
        """Return ``last``, or the number of the blob's last chunk if that is smaller."""
        return last if self.size is None else min(last, (self.size - 1) // self.chunk)

    def ended(self, name: str, error: Exception) -> KitfsError:
        """Return the error for the readers of a fetch that failed with ``error``.

        It is Closed if the sink was closed. ``name`` names the blob in the message.
        """
        if self.closed:
            return Closed(f"{name} was closed")
        if isinstance(error, KitfsError):
            return error
        failed = StoreError(f"{name}: {type(error).__name__}: {error}")
        failed.__cause__ = error
        return failed

    def next_missing(self, want: Want) -> int | None:
        """Hand the chunks in the overflow to a want, and return the first chunk of the want that is still missing."""
        first, last = want.first, self.last_chunk(want.last)
        while first <= last:
            missing = self.present.first_missing(first, last)
            if missing is None:
                return None
            if missing not in want.passed:
                with self.lock:
                    data = self._overflow.get(missing)
                if data is None:
                    return missing
                want.passed[missing] = data
            first = missing + 1
        return None

    def has(self, chunk: int, want: Want) -> bool:
        """Return whether a chunk is available to a reader. The caller must hold the lock."""
        return chunk in want.passed or chunk in self._overflow or self.present.has(chunk, chunk)

    def first_absent(self, first: int, last: int) -> int | None:
        """Return the first of the chunks ``first`` to ``last`` that is neither stored nor in the overflow.

        The caller must hold the lock.
        """
        missing = self.present.first_missing(first, last)
        while missing is not None and missing in self._overflow:
            missing = self.present.first_missing(missing + 1, last) if missing < last else None
        return missing

    def demand(self) -> int:
        """Return the number after the last chunk that readers want now. The caller must hold the lock."""
        return max((want.last + 1 for want in self._wants), default=0)

    def left_behind(self, given: int) -> bool:
        """Return whether a reader waits for a missing chunk before chunk ``given``. The caller must hold the lock."""
        return any(w.missing is not None and w.missing < given and not self.has(w.missing, w) for w in self._wants)

    def wanted(self) -> bool:
        """Return whether a chunk that a reader wants is still missing. The caller must hold the lock."""
        wanted = self.last_chunk(self.demand() - 1) + 1
        return wanted > 0 and self.present.first_missing(0, wanted - 1) is not None

    def put(self, first: int, data: Data, *, keep: bool = True, locked: bool = False) -> None:
        """Write and mark whole chunks from ``first`` on, and wake their readers. The blob's last chunk may be short.

        Chunks that are stored already are not written again. If the store has no room for a chunk, or if ``keep`` is
        False, the chunk is only handed to the readers. ``locked`` is True if the chunks are locked against other
        processes. Raises OSError and Closed, WrongChunk for wrong bytes, and errors of the table with the digests.
        """
        if self._check is not None:
            self._check(first * self.chunk, data)
        self._put(first, data, keep, locked)

    def _put(self, first: int, data: Data, keep: bool, locked: bool) -> None:
        """Put chunks as ``put`` does. Chunks that another process has locked are stored by that process."""
        count = -(-len(data) // self.chunk)
        lock = keep and not locked
        if lock and not self.present.try_lock(first, count):
            if count > 1:
                self._put_singly(first, count, memoryview(data), keep)
            else:
                self._keeper.read_through(len(data), full=False)
                self._hand_over(first, count, memoryview(data), later=False)
            return
        try:
            if (self.present.first_known if keep else self.present.first_present)(first, first + count - 1) is not None:
                self._put_singly(first, count, memoryview(data), keep)
            elif keep and self._keeper.may_store() and self._write(first, count, data):
                self._stores = True
                self._keeper.stored(len(data))
                self._wake(first, first + count)
            else:
                self._stores = False
                self._keeper.read_through(len(data), full=keep)
                self._hand_over(first, count, memoryview(data), later=True)
        finally:
            if lock:
                self.present.unlock(first, count)

    def _put_singly(self, first: int, count: int, view: memoryview, keep: bool) -> None:
        for i in range(count):
            if not self.present.has(first + i, first + i):
                self._put(first + i, view[i * self.chunk : (i + 1) * self.chunk], keep, False)

    def _wake(self, first: int, stop: int) -> None:
        """Wake the readers that wait for one of the chunks [first, stop)."""
        ready: list[Parked] = []
        with self.lock:
            for want in self._wants:
                if want.missing is None:
                    continue
                self.awaited = time.monotonic()
                if not first <= want.missing < stop:
                    continue
                if isinstance(want, Parked):
                    want.missing = self.present.first_missing(want.missing, want.last)
                    if want.missing is None:
                        ready.append(want)
                else:
                    want.wake()
            self._wants.difference_update(ready)
        for want in ready:
            want.ready(None)

    def _hand_over(self, first: int, count: int, view: memoryview, *, later: bool) -> None:
        """Hand chunks to the readers that want them. With ``later``, add them to the overflow for other readers.

        A parked read is made ready when its last chunk has been fetched. It takes its chunks from the overflow, or
        without ``later`` waits for the process that stores them.
        """
        with self.lock:
            for i in range(count):
                data = bytes(view[i * self.chunk : (i + 1) * self.chunk])
                if later:
                    self._keep(first + i, data)
                for want in self._wants:
                    if want.first <= first + i <= want.last and not isinstance(want, Parked):
                        want.passed[first + i] = data
                        want.wake()
            ready = [
                want
                for want in self._wants
                if isinstance(want, Parked) and want.first < first + count and (not later or want.last < first + count)
            ]
            self._wants.difference_update(ready)
        for want in ready:
            want.ready(None)

    def _keep(self, chunk: int, data: bytes) -> None:
        """Add a chunk to the overflow, for readers that need it soon. Without free memory, the chunk is not added."""
        old = self._overflow.pop(chunk, None)
        if old is not None:
            self.buffers.release(len(old))
        if self.closed:
            return
        while len(self._overflow) * self.chunk >= OVERFLOW:
            self._drop_oldest()
        while not self.buffers.try_reserve(len(data)):
            if not self._overflow:
                return
            self._drop_oldest()
        self._overflow[chunk] = data

    def _drop_oldest(self) -> None:
        """Remove the oldest chunk of the overflow. The caller must hold the lock."""
        self.buffers.release(len(self._overflow.popitem(last=False)[1]))

    def _write(self, first: int, count: int, data: Data) -> bool:
        while True:
            try:
                self._body.pwrite(first * self.chunk, data)
                self.present.mark(first, count)
                return True
            except OSError as e:
                if e.errno not in FULL:
                    raise
                if e.errno in FAULTS:
                    self._keeper.disk_failed(e)
                if e.errno not in NO_SPACE or not self._keeper.make_room():
                    return False


class Cutter:
    """A cutter cuts pieces of any size into the chunks of a blob. ``at`` is the offset of the next byte.

    Whole chunks of a piece are written to the disk without a copy in memory. If ``keep`` is False, nothing is stored.
    """

    def __init__(self, sink: Sink, at: int, *, keep: bool = True) -> None:
        self._sink = sink
        self._keep = keep
        self._pending = bytearray()
        self.at = at

    def take(self, view: memoryview, *, locked: bool = False) -> None:
        """Process the next bytes. Raises OSError and Closed.

        ``locked`` is True if the chunks of these bytes are locked against other processes.
        """
        chunk = self._sink.chunk
        while len(view):
            first = self.at // chunk
            if self._pending or self.at % chunk or len(view) < chunk:
                part = view[: chunk - len(self._pending)]
                self._pending += part
                if len(self._pending) == chunk:
                    self._sink.put(first, self._pending, keep=self._keep, locked=locked)
                    self._pending = bytearray()
            else:
                part = view[: len(view) // chunk * chunk]
                self._sink.put(first, part, keep=self._keep, locked=locked)
            self.at += len(part)
            view = view[len(part) :]

    def end(self, *, keep: bool = True) -> None:
        """Store the blob's last chunk if it is short. If ``keep`` is False, only hand it to the readers."""
        size = self._sink.size
        if self._pending and (size is None or self.at == size):
            self._sink.put(self.at // self._sink.chunk, self._pending, keep=self._keep and keep)
        self._pending = bytearray()
