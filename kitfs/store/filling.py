"""Fill the open entry of a blob: fetch bytes into its files, hash them, and seal the blob.

A Blob has one ``Filling`` at a time. The Blob makes a new filling after an entry with wrong or lost bytes was removed,
and after an entry was closed so that the store could evict it. Threading: any thread may call every method.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

from kitfs.content import Source
from kitfs.errors import Closed, IntegrityError, KitfsError, StoreError, StoreFull, WrongChunk
from kitfs.layers.spans import SpanSource
from kitfs.oci.names import Digest
from kitfs.store.chunk_digests import ChunkDigests, Data, check_chunks
from kitfs.store.data_file import SyncFailedError
from kitfs.store.durable import NO_SPACE
from kitfs.store.entry import OpenEntry
from kitfs.store.fetch import CLOSE_PATIENCE, Fetcher
from kitfs.store.home import Home
from kitfs.store.proof import Proof
from kitfs.store.readback import Hasher, Hashers, wrong_bytes
from kitfs.store.sink import Sink

SYNC_EVERY: Final = 256 << 20  # bytes stored between two durable copies of the marks
PROVE_EVERY: Final = 8 << 20  # bytes stored between two tasks that hash them
LAG: Final = 0.7  # seconds of hashing that may be left to do while a program reads
QUIET: Final = 0.1  # seconds without a read after which all stored bytes are hashed


class FilledBlob(Protocol):
    """The blob that is filled. Its ``str`` names it in messages."""

    @property
    def digest(self) -> Digest: ...

    def filled(self, filling: Filling, /) -> None:
        """React when every byte is stored."""
        ...

    def decoded(self, filling: Filling, sha256: str, /) -> None:
        """React when the source, a decoder, has decoded the whole blob. ``sha256`` is the digest of the result."""
        ...

    def lost(self, filling: Filling, error: OSError, /) -> None:
        """React when the disk has failed to sync bytes, which may be lost."""
        ...

    def room_needed(self) -> None:
        """React when the store is full."""
        ...


class Filling:
    """The open entry of the blob ``owner``.

    If ``source`` is None, only stored bytes can be read. ``decoded`` is True if the source is a decoder. ``proven`` is
    True after this process has hashed every byte and found the right digest, even if the bytes are not fsynced yet.
    With ``table``, each chunk is verified before it is stored.
    """

    def __init__(
        self, home: Home, owner: FilledBlob, entry: OpenEntry, source: Source | None, *, decoded: bool,
        table: ChunkDigests | None = None,
    ) -> None:  # fmt: skip
        self.entry: Final = entry
        self.size: int | None = entry.meta["size"]
        self.proven = entry.sealed
        self.source: Final = source
        self._home = home
        self._owner = owner
        self._decoded = decoded
        self.has_table: Final = table is not None
        self._hashing = threading.Lock()
        self._syncing = threading.Lock()
        self._stopped = False
        self._closed = False
        self._said_unrecorded = False
        self._unsynced = 0
        self._stored = 0  # bytes stored by this object
        self._read = float("-inf")  # seconds; when a program last read stored bytes
        self._behind = 0  # bytes stored since the last task that hashes bytes
        self._fetcher: Fetcher | None = None
        if entry.present is None:
            return
        hasher: Callable[[], object] = hashlib.sha256 if decoded else owner.digest.hasher
        self._proof = Proof(hasher, entry.body, entry.present, chunk=entry.chunk)
        check = None if table is None else partial(self._check_chunks, table)
        self._sink = Sink(
            self, entry.body, entry.present, chunk=entry.chunk, size=self.size, buffers=home.buffers, check=check
        )
        if source is not None:
            self._fetcher = Fetcher(source, self._sink, self, name=str(owner), rests=decoded, patience=home.patience)

    def _check_chunks(self, table: ChunkDigests, offset: int, data: Data) -> None:
        try:
            check_chunks(table, offset, data, str(self._owner))
        except WrongChunk as e:
            self._home.counters.add("integrity_failures")
            self._home.log.error("%s; they are not stored", e)
            raise

    @property
    def sealed(self) -> bool:
        """Return whether the bytes are verified and durable."""
        return self.entry.sealed

    @property
    def complete(self) -> bool:
        """Return whether every byte is stored."""
        if self.entry.present is None or self.entry.sealed:
            return True
        return self.size is not None and (
            self.size == 0 or self.entry.present.has(0, (self.size - 1) // self.entry.chunk)
        )

    @property
    def fetched(self) -> int:
        """Return how many bytes are stored."""
        if self.entry.present is None or self.entry.sealed:
            return self.size or 0
        there = self.entry.present.count() * self.entry.chunk
        return there if self.size is None else min(there, self.size)

    @property
    def ranged(self) -> bool:
        """Return whether several parts may be fetched at the same time."""
        return self._fetcher is not None and self._fetcher.ranged

    def has(self, first: int, last: int) -> bool:
        """Return whether all chunks from ``first`` to ``last``, inclusive, are stored."""
        present = self.entry.present
        return present is None or self.entry.sealed or present.has(first, last)

    def will_read(self, start: int, most: int) -> None:
        """Announce a reader that reads everything from ``start`` on, as ``Readahead.announce`` does."""
        if self._fetcher is not None and not self.entry.sealed:
            self._fetcher.will_read(start, most)

    @property
    def streaming(self) -> bool:
        """Return whether a request is completing the blob ahead of a sequential reader (``Fetcher.streaming``)."""
        return self._fetcher is not None and not self.entry.sealed and self._fetcher.streaming

    def touch(self, start: int, stop: int) -> None:
        """Record that a program reads stored bytes."""
        self._read = time.monotonic()
        self._advance(start, stop)

    def _advance(self, start: int, stop: int) -> None:
        if self._fetcher is not None and not self.entry.sealed:
            self._fetcher.touch(start, stop)

    def ensure(self, first: int, last: int, *, alone: bool = False) -> dict[int, bytes]:
        """Fetch chunks, and return those that could not be stored, as ``Fetcher.ensure`` does.

        Raises IntegrityError if there is no source.
        """
        if self._fetcher is None:
            raise IntegrityError(f"{self._owner} is not complete in the store, and there is no source to fetch it from")
        passed = self._fetcher.ensure(first, last, alone=alone, around=self._around(first, last))
        if self.size is None and self._sink.size is not None:
            self.size = self._sink.size
        return passed

    def _around(self, first: int, last: int) -> tuple[int, int]:
        """Return the chunks that a decoder yields together with the chunks from ``first`` to ``last``, inclusive."""
        if not isinstance(self.source, SpanSource) or self.size is None:
            return first, last
        chunk = self.entry.chunk
        start, stop = self.source.points.piece(first * chunk, min((last + 1) * chunk, self.size))
        end = -(-stop // chunk) if stop == self.size else stop // chunk
        return min(first, -(-start // chunk)), max(last, end - 1)

    def fetch(self, offset: int, size: int, *, alone: bool) -> bool:
        """Fetch the chunks of bytes that are not stored; return whether all of them are stored now.

        With ``alone``, no later bytes are fetched ahead. Raises the errors of ``ensure``.
        """
        stop = offset + size if self.size is None else min(offset + size, self.size)
        if stop <= offset:
            return True
        first, last = offset // self.entry.chunk, (stop - 1) // self.entry.chunk
        if not self.has(first, last):
            return not self.ensure(first, last, alone=alone)
        if not alone:
            self._advance(offset, stop)
        return True

    def read(self, offset: int, size: int) -> bytes | None:
        """Return stored bytes, fewer at the end of the blob; None if the file is shorter than the marks say.

        Raises Closed and OSError.
        """
        data = self.entry.body.pread(offset, size)
        if len(data) < size:
            # The read crosses the end of the blob, whose size was unknown when the read began. The size is known now,
            # because it is recorded before the last chunk is marked.
            known = self.learn_size()
            if known is not None:
                size = min(size, known - offset)
        return data if len(data) >= size else None

    def gather(self, offset: int, size: int, passed: dict[int, bytes]) -> bytes | None:
        """Return bytes as ``read`` does. ``passed`` has the chunks that were fetched but not stored."""
        out = bytearray()
        at, stop = offset, offset + size
        while at < stop:
            chunk, within = divmod(at, self.entry.chunk)
            end = min(stop, (chunk + 1) * self.entry.chunk)
            data = passed[chunk][within : within + end - at] if chunk in passed else self.read(at, end - at)
            if data is None:
                return None
            out += data
            at = end
        return bytes(out)

    def park(self, first: int, last: int, ready: Callable[[KitfsError | None], None]) -> bool:
        """Call ``ready`` when a running fetch has fetched the chunks, as ``Fetcher.park`` does."""
        return self._fetcher is not None and self._fetcher.park(first, last, ready)

    def hash_stored(self) -> None:
        """Hash the bytes that were stored since the last call. Raises OSError and Closed."""
        self._hash(lambda: self._stopped)

    def _hash(self, stopped: Callable[[], bool]) -> None:
        with self._hashing:
            if self.size is not None and not self.entry.sealed:
                self._proof.advance(self.size, stopped)

    def _hash_behind(self) -> None:
        """Hash stored bytes, unless a program is reading and needs the processor. Raises OSError and Closed."""
        self._hash(lambda: self._stopped or self._may_lag())

    def _may_lag(self) -> bool:
        read = max(self._read, self._sink.awaited)
        few = self.has_table or self._stored - self._proof.at < LAG * self._proof.speed
        return few and time.monotonic() - read < QUIET  # chunks that are verified need not be hashed soon

    def prove(self) -> str | None:
        """Hash all stored bytes. Return None if the digest is right, otherwise the digest that was found.

        Raises OSError, and Closed if the filling is stopped meanwhile.
        """
        if self.proven:
            return None
        self.hash_stored()
        if self._stopped:
            raise Closed(f"{self._owner} was closed while it was verified")
        with self._hashing:
            found = self._proof.hexdigest()
            if self._decoded and self.entry.meta.get("sha256") is None and self._proof.at == self.size:
                self.entry.save_size(self.size, found)  # the decoder has checked each frame, but not the digest
            self.proven = self._proof.at == self.size and found == self._expected
        return None if self.proven else found

    @property
    def _expected(self) -> str:
        return str(self.entry.meta.get("sha256")) if self._decoded else self._owner.digest.hex

    def seal(self) -> bool:
        """Make proven bytes durable, and move the entry to the place of verified blobs.

        Returns False if the entry was removed meanwhile. Raises OSError. If the disk fails to sync, calls
        ``FilledBlob.lost``.
        """
        try:
            with self._syncing:
                return self.entry.sealed or self.entry.seal(self.size or 0, self._expected)
        except SyncFailedError as e:
            self._owner.lost(self, e)
            raise

    def read_back(self, stopped: Callable[[], bool], hashers: Sequence[Hasher] = ()) -> str | None:
        """Hash the file of a sealed blob, also with ``hashers``. Return None if the digest is right, or the fault.

        Raises Closed if ``stopped`` returns True meanwhile, and StoreError if the file cannot be read.
        """

        def go_on(_: int) -> None:
            if stopped():
                raise Closed(f"{self._owner} was closed while it was read back")

        hasher = hashlib.sha256() if self._decoded else self._owner.digest.hasher()
        try:
            every = Hashers(hasher, *hashers)
            return wrong_bytes(self.entry.body.read_into, self.size, every, self._expected, moved=go_on)
        except OSError as e:
            raise StoreError(f"{self._owner} cannot be read back: {(e.strerror or str(e)).lower()}")

    def save(self) -> None:
        """Make stored bytes survive a reboot. If the disk fails to sync them, call ``FilledBlob.lost``."""
        with self._syncing:
            if self._closed or self.entry.sealed:
                return
            try:
                self.entry.save_marks()
                return
            except OSError as e:
                error = e
        full = error.errno in NO_SPACE  # the store itself logs that the disk is full
        self._home.log.log(
            logging.INFO if full else logging.WARNING,
            "%s: cannot flush fetched bytes to the disk, so a power failure may lose them: %s",
            self._owner,
            error.strerror,
        )
        if isinstance(error, SyncFailedError):
            self._owner.lost(self, error)

    # -- methods that the sink calls (``sink.Keeper``)

    def may_store(self) -> bool:
        """Return whether the store accepts more bytes of this blob."""
        if self.entry.detached or not self._home.disk.may_try():
            return False
        if self._home.pins.is_held(self._owner.digest) or self._home.room.available():
            return True
        self._owner.room_needed()
        return False

    def disk_failed(self, error: OSError) -> None:
        """React to a failure of the disk."""
        self._home.disk.failed(error)

    def make_room(self) -> bool:
        """Try to free space for this blob on a full disk; return whether any space was freed."""
        return self._home.pins.is_held(self._owner.digest) and self._home.room.make()

    def read_through(self, size: int, *, full: bool) -> None:
        """Count bytes that were not stored. ``full`` is True if the store had no room for them."""
        if full and not self.entry.detached and self._home.disk.failure is None:
            self._home.room.read_through(size)
        else:
            self._home.counters.add("read_through", size)

    def stored(self, size: int) -> None:
        """Count bytes that were stored; from time to time, start tasks that hash and sync them."""
        self._unsynced += size
        self._stored += size
        self._behind += size
        self._home.room.wrote(size)
        self._home.disk.worked()
        if self._stopped:
            return
        if self._behind >= PROVE_EVERY:
            self._behind = 0
            self._home.prove(self._hash_behind)
        if self._unsynced > SYNC_EVERY:
            self._unsynced = 0
            self._home.later(self.save)

    # -- methods that the fetcher calls (``stream.FetchOwner``)

    def landed(self) -> None:
        """Call ``FilledBlob.filled`` after a flight, if the blob is complete."""
        if not self._stopped and not self.entry.sealed and self.complete:
            self._owner.filled(self)

    def finished(self, size: int, sha256: str) -> bool:
        """Record the size after a source without ranges has ended.

        Returns False if the size cannot be recorded for other processes.
        """
        self.size = size
        if not self._decoded:
            return True
        try:
            is_saved = self.entry.save_size(size, sha256)
            if is_saved:
                self._owner.decoded(self, sha256)
            return is_saved
        except OSError as e:
            if not self._said_unrecorded:
                self._said_unrecorded = True
                self._home.log.warning("%s: its size cannot be recorded: %s", self._owner, e.strerror)
            return False

    def learn_size(self) -> int | None:
        """Return the size that another process has recorded since the entry was opened; None if it is unknown."""
        if self.size is None:
            self.size = self.entry.load_size()
        return self.size

    # -- the end

    def stop(self) -> None:
        """Begin to close: end running fetches and a running verification, and prevent further fetches."""
        self._stopped = True
        if self._fetcher is not None:
            self._fetcher.stop()

    def close(self, patience: float = CLOSE_PATIENCE, *, save: bool = True) -> None:
        """End the fetches and release the lease. With ``save``, make stored bytes survive a reboot.

        Running fetches and all later reads raise Closed. The method waits at most ``patience`` seconds for fetches.
        """
        if self._closed:
            return
        self.stop()
        if self._fetcher is not None:
            self._fetcher.close(patience)
        if save and self._unsynced and not self.entry.sealed:
            try:
                if not (self.proven and self.seal()):
                    self.save()
            except (OSError, StoreFull):
                pass  # the bytes will be fetched again
        self._closed = True
        with self._syncing, self._hashing:
            self.entry.close()
