"""Read a blob of the store at any offset, and fetch its missing bytes.

``entry`` opens the files of a blob, and ``filling`` fetches bytes into them. A Blob has one ``Filling`` at a time, and
replaces it in three cases: an endpoint has sent wrong bytes and another endpoint has the blob; the disk has lost bytes;
or the store has evicted the entry while nobody read the blob. Reads of the old filling are repeated.

If the digest is wrong and no other endpoint has the blob, all later reads raise the same IntegrityError. The entry is
removed from the disk, so the next Blob starts without bytes. Threading: any thread may call every method; a ``pread``
of stored bytes takes no lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from kitfs.content import Source
from kitfs.errors import Closed, IntegrityError, ManifestError, StoreError, WouldBlock
from kitfs.layers.points import RestartPoints
from kitfs.layers.spans import WrongPointsError
from kitfs.oci.names import Digest
from kitfs.openfile import PIECE
from kitfs.store.blob_state import BlobState
from kitfs.store.chunk_digests import ChunkDigests
from kitfs.store.decoded import Choice, Decoded
from kitfs.store.detached import DetachedEntry, open_entry
from kitfs.store.disk import fault_of
from kitfs.store.durable import write_error
from kitfs.store.fetch import CLOSE_PATIENCE
from kitfs.store.filling import Filling
from kitfs.store.home import Home
from kitfs.store.meta import MAX_SIZE
from kitfs.store.paths import origin_key
from kitfs.store.readback import Hasher

FILL: Final = 4 << 20  # bytes that ``fill`` reads at a time


class Blob(BlobState):
    """An open blob of ``size`` bytes (None if unknown). Without a ``source``, only stored bytes can be read.

    For the decoded form of a blob, ``of`` is the compressed blob. With ``table``, each chunk is verified before it is
    stored, if the table exists. Raises StoreError if the store cannot be used, IntegrityError if a verified blob of
    this digest has another size, and ManifestError if ``size`` is too large.
    """

    def __init__(
        self, home: Home, digest: Digest, *, size: int | None, source: Source | None, of: Blob | None = None,
        table: ChunkDigests | None = None,
    ) -> None:  # fmt: skip
        self.digest: Final = digest
        self.when_sealed: Callable[[], object] = lambda: None  # called when this object has verified its bytes
        self.generation = 0  # how often wrong or lost bytes were dropped and fetched again
        self.used = time.monotonic()  # the time of the last read, in seconds
        self._home = home
        self._plain = Choice(origin_key("" if source is None else source.sender, size), size, "", source)
        self._table = table
        self._of = of
        self._form: Final = None if of is None else Decoded(home.root, digest, of, source)
        self._dropped = False  # whether the entry was removed although the source still has the bytes
        self._switching = threading.Lock()
        self._verifying = threading.Lock()
        self._stopped = False
        self.closed = False
        if size is not None and size > MAX_SIZE:
            raise ManifestError(f"{digest} declares {size} bytes; the limit for a blob is {MAX_SIZE}")
        self._filling: Filling | None = None
        self._open()

    def __repr__(self) -> str:
        return f"<Blob {self} {self.state} {self.fetched} of {self.size} bytes>"

    def __str__(self) -> str:
        return f"{'the decoded form of ' if self._of is not None else ''}blob {self.digest}"

    def _open(self) -> Filling:
        """Open the entry. If every byte is stored, begin to verify them."""
        self._filling = filling = self._opened()
        if not filling.sealed and filling.complete:
            self.filled(filling)
        return filling

    def _opened(self, *, detached: bool = False) -> Filling:
        choice = self._plain if self._form is None else self._form.choose()
        if self._table is not None:
            choice = choice._replace(origin=origin_key(f"chunk table {self._table.key}", choice.size))
        what = (self._home, self.digest, "blobs" if self._form is None else "decoded", choice.size)
        entry = DetachedEntry(*what) if detached else open_entry(*what, choice.origin, str(self), choice.source)
        if self._form is not None:
            self._form.opened(entry, choice)
        return Filling(self._home, self, entry, choice.source, decoded=self._form is not None, table=self._table)

    @property
    def instance(self) -> str:
        """Return the id of the blob's entry. A decoded form is valid only for the entry that it was decoded from."""
        return str(self._current().entry.meta.get("id", "verified"))

    def _current(self) -> Filling:
        """Return the filling. If the entry was closed so that it could be evicted, open it again."""
        filling = self._filling
        if filling is not None and (self._form is None or not self._form.outdated):
            return filling
        if filling is not None:
            self._drop(filling)  # it was decoded from wrong bytes
        with self._switching:
            if self._stopped:
                raise Closed(f"{self} is closed")
            return self._filling or self._open()

    def _replace(self, old: Filling, *, save: bool = False, detached: bool = False) -> None:
        """Close the filling ``old``, unless another thread has done so. ``detached``: continue without the disk."""
        with self._switching:
            if self._filling is not old or self._stopped:
                return
            self._filling = self._opened(detached=True) if detached else None
        old.close(0.0, save=save)

    def pread(self, offset: int, size: int, *, wait: bool = True, alone: bool = False) -> bytes:
        """Return ``size`` bytes at ``offset``; fewer at the end of the blob. With ``alone``, nothing is read ahead.

        Raises WouldBlock if bytes are missing and ``wait`` is False, IntegrityError if the blob has wrong bytes, and
        errors of the source.
        """
        self.used = time.monotonic()
        while True:
            if self.failure is not None or (self._form is not None and self._form.failure is not None):
                raise self.failure or IntegrityError(f"{self} was decoded from bytes with a wrong digest")
            filling = self._current()
            try:
                return self._read(filling, offset, size, wait, alone)
            except (Closed, WrongPointsError) as e:
                self._go_on(filling, e)
            except (OSError, StoreError) as e:
                self._detach(filling, e)

    def _go_on(self, filling: Filling, error: Closed | WrongPointsError) -> None:
        """Raise ``error``, which ended a read of ``filling``, or return if the read should be repeated."""
        if isinstance(error, WrongPointsError) and self._form is not None and self._form.forget():
            self._home.log.warning("%s is decoded from its beginning: %s", self, error)
            self._replace(filling)
        elif self._stopped or self._current() is filling:
            raise error

    def _load_table(self, filling: Filling) -> None:
        """Fetch the head of the chunk table. If there is no table, raise Closed; the read is repeated without it."""
        if self._table is not None and not filling.sealed and not self._table.load():
            self._table = None
            self.generation += 1
            self._replace(filling)
            raise Closed(f"{self} is fetched without a chunk table")

    def _detach(self, filling: Filling, error: OSError | StoreError) -> None:
        """Continue without the disk after it has failed. Raises ``error`` if the disk is not its cause."""
        cause = fault_of(error)
        if cause is None or filling.entry.detached or filling.source is None:
            raise error
        self._home.disk.failed(cause)
        if error is cause:
            self._drop(filling, detached=True)  # stored bytes cannot be read
        self._replace(filling, detached=True)

    def _read(self, filling: Filling, offset: int, size: int, wait: bool, alone: bool) -> bytes:
        known = filling.size
        size = size if known is None else min(size, known - offset)
        if size <= 0:
            return b""
        chunk = filling.entry.chunk
        first, last = offset // chunk, (offset + size - 1) // chunk
        if filling.has(first, last):
            if not alone:
                filling.touch(offset, offset + size)
            return self._found(filling, filling.read(offset, size))
        if not wait:
            raise WouldBlock(partial(filling.park, first, last))
        self._load_table(filling)
        passed = filling.ensure(first, last, alone=alone)
        if self.failure is not None:
            raise self.failure
        if known is None and filling.size is not None:
            if not passed:
                return self._read(filling, offset, size, wait, alone)
            size = min(size, filling.size - offset)
        return self._found(filling, filling.gather(offset, size, passed) if passed else filling.read(offset, size))

    def _found(self, filling: Filling, data: bytes | None) -> bytes:
        """Return ``data``. If it is None, bytes are lost: mark the blob as failed, and raise IntegrityError."""
        if data is None:
            self._fail(filling, IntegrityError(f"{self}: the store's file is shorter than its chunk map says"))
            raise self.failure or StoreError("closed")
        return data

    def use(self, points: RestartPoints) -> None:
        """Decode from given restart points from now on, unless the store has verified ones (``Decoded.given``)."""
        if self._form is not None and (filling := self._current()).source is not None:
            self._form.given = points
            self._replace(filling)

    def stream(self, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to the end, in pieces.

        Raises Closed if the blob's bytes were dropped meanwhile, because bytes that are fetched again may differ.
        """
        generation = self.generation
        while data := self.pread(start, PIECE):
            if self.generation != generation:
                raise Closed(f"{self} was fetched again while it was read")
            yield data
            start += len(data)

    def fetch(self, offset: int, size: int, *, alone: bool = False) -> bool:
        """Fetch bytes into the store without returning them; return whether the store has them now.

        With ``alone``, no later bytes are fetched ahead. Raises the errors of ``pread``.
        """
        while True:
            if self.failure is not None:
                raise self.failure
            filling = self._current()
            try:
                self._load_table(filling)
                is_stored = filling.fetch(offset, size, alone=alone)
            except (Closed, WrongPointsError) as e:
                self._go_on(filling, e)
            except (OSError, StoreError) as e:
                self._detach(filling, e)
            else:
                if self.failure is None:
                    return is_stored

    def fill(self) -> None:
        """Fetch all missing bytes, as far as the store has room for them."""
        at = 0
        while not self.complete and (self.size is None or at < self.size):  # at the end, the store is full
            got = len(self.pread(at, FILL))
            if not got:
                return
            at += got

    def verify(self) -> None:
        """Check the digest of the stored bytes, and seal the blob. Wrong bytes are fetched again from another endpoint.

        Raises IntegrityError if the digest is wrong or bytes are missing, and StoreError (such as StoreFull) if the
        blob cannot be read back or sealed.
        """
        try:
            while not self._verify():
                self.fill()
        except OSError as e:
            raise write_error(self.directory, e)

    def _verify(self) -> bool:
        """Verify and seal the blob. Returns False if bytes were dropped and can be fetched again."""
        with self._verifying:
            if self.failure is not None:
                raise self.failure
            filling = self._current()
            if filling.sealed:
                return True
            if self._stopped:
                raise Closed(f"{self} is closed")
            if not filling.complete:
                if self._dropped:
                    self._dropped = False
                    return False
                raise IntegrityError(f"{self} is not complete")
            if self._form is not None:
                if not self._form.verify():
                    self._drop(filling)  # the compressed blob has another entry now than when it was decoded
                if self._current() is not filling:
                    return False
            found = filling.prove()
            if found is not None:
                error = IntegrityError(f"{self} does not match its digest: its bytes have sha256:{found}")
                if self._heal(filling, error):
                    return False
                self._fail(filling, error)
                raise self.failure or StoreError("closed")
            if not filling.seal():
                raise StoreError(f"{self} is not in the store any more")
            if self._form is not None:
                self._form.sealed(filling.entry)
        self.when_sealed()
        if self._of is not None:
            self._of.retire()
        return True

    def check(self, stopped: Callable[[], bool] = lambda: False, *, hashers: Sequence[Hasher] = ()) -> bool:
        """Read a sealed blob back, also into ``hashers``. If bytes have changed, drop the blob and return False.

        Raises StoreError if the blob cannot be read, Closed if ``stopped`` returns True, and IntegrityError if the
        bytes have changed and the blob has no source.
        """
        filling = self._current()
        if not filling.sealed or (wrong := filling.read_back(lambda: self._stopped or stopped(), hashers)) is None:
            return True
        error = IntegrityError(f"{self} has changed on the disk: {wrong}; run the same command again to fetch it")
        self._drop_wrong(filling, error)
        if self.failure is not None:
            raise error
        return False

    def look(self) -> None:
        """Drop the bytes if another process has marked them as wrong or lost; try a disk that failed. Raises Closed."""
        filling = self._filling
        if filling is None or self.failure is not None or self.closed:
            return
        if filling.entry.detached and self._home.disk.may_try():
            self._replace(filling)  # the next read opens the entry on the disk
        elif filling.entry.lease.condemned:
            error = IntegrityError(f"{self}: another process has found that its bytes are wrong or lost")
            self._drop_wrong(filling, error)

    def drop_rotten(self, error: IntegrityError, generation: int) -> None:
        """Drop all bytes, because some are wrong, unless the bytes of ``generation`` were dropped already.

        A later read fetches them again.
        """
        if self.generation == generation:
            self._drop_wrong(self._current(), error)

    def _drop_wrong(self, filling: Filling, error: IntegrityError) -> None:
        """Drop wrong bytes. If the blob has no source, all later reads fail."""
        if filling.source is None:
            self._fail(filling, error)
        else:
            self._fetch_again(filling, error, "it is fetched again")

    def filled(self, filling: Filling) -> None:
        """Verify the complete blob on the store's thread for digests. Implements ``filling.FilledBlob``."""
        self._home.prove(self._verify_later)

    def decoded(self, filling: Filling, sha256: str) -> None:
        """Keep the restart points of a blob that was decoded from its beginning. Implements ``filling.FilledBlob``."""
        if self._form is not None:
            self._form.decoded(filling.entry, sha256)

    def _verify_later(self) -> None:
        try:
            if self._filling is not None:
                self._verify()
        except (IntegrityError, StoreError):
            pass  # the error is logged already; or the blob is closed, and its next opening verifies it
        except OSError as e:
            self._home.log.warning("%s cannot be sealed: %s", self, e)

    def _heal(self, filling: Filling, error: IntegrityError) -> bool:
        """Drop wrong bytes if another endpoint has the blob; return whether the blob can be fetched again."""
        if filling.source is None or not filling.source.distrust():
            return False
        self._fetch_again(filling, error, "it is fetched again from another endpoint")
        return True

    def refuse(self, error: IntegrityError) -> bool:
        """Drop unverified bytes that are wrong. Returns whether they can be fetched again from another endpoint."""
        if not (filling := self._current()).sealed and not self._heal(filling, error):
            self._fail(filling, error)
        return self.failure is None

    def _fetch_again(self, filling: Filling, error: IntegrityError, then: str) -> None:
        """Drop wrong bytes, so that the next read fetches them again. ``then`` is the end of the log line."""
        self._home.counters.add("integrity_failures")
        self._home.log.error("%s; %s", error, then)
        self._drop(filling)
        self._home.failed(self.digest)

    def _fail(self, filling: Filling, error: IntegrityError) -> None:
        """Remove the entry, log the error and count it. After that, all reads of this object fail."""
        if self.failure is None:
            self.failure = error
            self._home.counters.add("integrity_failures")
            self._home.log.error("%s; dropped from the store", error)
            self._remove(filling)
            self._home.failed(self.digest)

    def _drop(self, filling: Filling, *, detached: bool = False) -> None:
        """Remove an entry whose bytes are wrong or lost. The next read fetches them again."""
        self.generation += 1
        self._start_over(filling, detached=detached)

    def _start_over(self, filling: Filling, *, detached: bool = False) -> None:
        self._dropped = True
        self._remove(filling)
        self._replace(filling, detached=detached)

    def _remove(self, filling: Filling) -> None:
        """Remove an entry and its decoded form from the disk."""
        try:
            filling.entry.discard(with_decoded=self._of is None)
        except OSError as e:
            self._home.log.warning("%s cannot be removed from the store: %s", self, e)

    def lost(self, filling: Filling, error: OSError) -> None:
        """Drop bytes that the disk failed to sync; they are fetched again. Implements ``filling.FilledBlob``."""
        self._home.log.warning("%s is dropped from the store, because its bytes may be lost: %s", self, error.strerror)
        self._drop(filling)

    def room_needed(self) -> None:
        """Ask the store to evict blobs that nobody reads. Implements ``filling.FilledBlob``."""
        self._home.make_way(self)

    def let_go(self) -> bool:
        """Close the entry until the next read, so that it can be evicted. Returns whether the entry was open."""
        filling = self._filling
        if filling is None or self._stopped or self.failure is not None or self._verifying.locked():
            return False
        self._replace(filling, save=True)
        return True

    def start_over(self) -> None:
        """Remove the entry of a blob that is too large for the store; further reads fetch the blob again.

        The entry stays if it is sealed or if another process uses it.
        """
        filling = self._current()
        if not filling.sealed and not self._verifying.locked() and filling.entry.lease.alone():
            self._start_over(filling)

    def retire(self) -> None:
        """Remove a compressed blob whose decoded form is sealed, unless it is pinned or another process uses it."""
        filling = self._current()
        if self.digest not in self._home.pins.digests() and filling.entry.lease.alone():
            filling.entry.remove()

    def drop(self) -> None:
        """Remove the entry from the store (``OpenEntry.remove``). Raises OSError."""
        self._current().entry.remove()

    def close(self, patience: float = CLOSE_PATIENCE) -> None:
        """End the fetches, make fetched bytes survive a reboot, and release the lease.

        Running fetches and all later reads raise Closed. The method waits at most ``patience`` seconds for fetches.
        """
        if self.closed:
            return
        self.stop()
        self.closed = True
        if self._filling is not None:
            self._filling.close(patience, save=self.failure is None)

    def stop(self) -> None:
        """Begin to close: end running fetches and a running verification, and prevent further fetches."""
        with self._switching:
            self._stopped = True
        if self._filling is not None:
            self._filling.stop()
