"""One blob of the store, open: its bytes by position, fetched when they are missing, and its state.

The files are those of ``entry``, and what is fetched into them goes through ``filling``. A Blob can replace its opening
without its readers noticing: they begin their read again. It does so when the bytes that the first endpoint sent were
wrong and another endpoint has the blob, when the disk lost bytes, and when the store needs the room of a blob that
nobody reads at the moment.

A failed verification that no other endpoint can heal is final for this object: every later read raises the same
IntegrityError, and the entry is removed from the disk, so that the next opening starts empty. Threading: every method
from any thread; a warm ``pread`` takes no lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from kitfs.content import Source
from kitfs.errors import Closed, IntegrityError, ManifestError, StoreError, StoreFull, WouldBlock
from kitfs.oci.names import Digest
from kitfs.openfile import PIECE
from kitfs.store.durable import NO_SPACE, write_error
from kitfs.store.entry import OpenEntry
from kitfs.store.evict import remove_entry
from kitfs.store.fetch import CLOSE_PATIENCE
from kitfs.store.filling import Filling
from kitfs.store.home import Home
from kitfs.store.meta import MAX_SIZE
from kitfs.store.paths import origin_key, unproven_path
from kitfs.store.readahead import MAX_WINDOW

FILL: Final = 4 << 20  # bytes requested at once where a blob is read through


class Blob:
    """A blob of ``size`` bytes (None: not known yet), filled from ``source`` (None: only stored bytes can be read).

    ``of`` is the compressed blob when this is its decoded form. Raises StoreError when the store cannot be used,
    IntegrityError when a verified blob of this digest has another size, ManifestError for a size beyond the limit.
    """

    def __init__(
        self, home: Home, digest: Digest, *, size: int | None, source: Source | None, of: Blob | None = None
    ) -> None:
        self.digest: Final = digest
        self.failure: IntegrityError | None = None  # why its bytes are wrong
        self.when_sealed: Callable[[], object] = lambda: None  # called when this object has verified its bytes
        self.generation = 0  # how often wrong or lost bytes were dropped and fetched again
        self.used = time.monotonic()  # seconds; when it was last read
        self._home = home
        self._declared: Final = size
        self._source = source
        self._of = of
        sender = "" if source is None else source.sender
        self._origin: Final = origin_key(sender, size)  # who sends its bytes, unless it is decoded
        self._dropped = False  # whether its entry was removed although its source still has the bytes
        self._switching = threading.Lock()
        self._verifying = threading.Lock()
        self._stopped = False
        self._closed = False
        if size is not None and size > MAX_SIZE:
            raise ManifestError(f"{digest} declares {size} bytes; the limit for a blob is {MAX_SIZE}")
        self._filling: Filling | None = self._opened()

    def __repr__(self) -> str:
        return f"<Blob {self} {self.state} {self.fetched} of {self.size} bytes>"

    def __str__(self) -> str:
        return f"{'the decoded form of ' if self._of is not None else ''}blob {self.digest}"

    def _opened(self) -> Filling:
        """Open the entry, and have it verified if it is complete."""
        form, origin = "blobs", self._origin
        if self._of is not None:
            self._decoded_generation = self._of.generation
            self._decoded_from = self._of.instance
            form, origin = "decoded", origin_key(self._decoded_from, None)
        try:
            entry = OpenEntry(
                self._home.root, self.digest, form=form, origin=origin, size=self._declared, name=str(self)
            )
        except OSError as e:
            kind = StoreFull if e.errno in NO_SPACE else StoreError
            raise kind(f"cannot open the store's entry of {self}: {(e.strerror or str(e)).lower()}")
        filling = Filling(self._home, self, entry, self._source, decoded=self._of is not None)
        if not filling.sealed and filling.complete:
            self.filled(filling)
        return filling

    @property
    def instance(self) -> str:
        """The id of the blob's entry. Bytes that were decoded from one entry say nothing about another one."""
        return str(self._current().entry.meta.get("id", "verified"))

    def _current(self) -> Filling:
        """Return the opening; the blob opens its entry again if it has let go of it."""
        filling = self._filling
        if filling is not None and (self._of is None or self._of.generation == self._decoded_generation):
            return filling
        if filling is not None:
            self._drop(filling)  # what was decoded were wrong bytes
        with self._switching:
            if self._stopped:
                raise Closed(f"{self} is closed")
            if self._filling is None:
                self._filling = self._opened()
            return self._filling

    def _replace(self, old: Filling, *, save: bool = False) -> None:
        """Open the entry afresh, unless somebody has done so; readers of the old opening begin again."""
        with self._switching:
            if self._filling is not old or self._stopped:
                return
            self._filling = None
        old.close(0.0, save=save)

    @property
    def directory(self) -> str:
        """The directory of the blob's entry in the store."""
        return self._current().entry.directory

    @property
    def size(self) -> int | None:
        """Length in bytes; None while it is not known."""
        filling = self._filling
        return self._declared if filling is None else filling.size

    @property
    def sealed(self) -> bool:
        """Whether every byte is stored, verified and durable."""
        return self.failure is None and self._current().sealed

    @property
    def complete(self) -> bool:
        """Whether every byte is in the store."""
        return self._current().complete

    @property
    def fetched(self) -> int:
        """Bytes that are in the store."""
        return self._current().fetched

    @property
    def state(self) -> str:
        """ "absent", "partial", "present" (every byte is stored) or "verified" (the digest of what is stored is right,
        and all of it is fsynced).
        """
        if self.failure is not None:
            return "absent"
        filling = self._current()
        if filling.sealed:
            return "verified"
        if filling.complete:
            return "present"
        return "partial" if filling.fetched else "absent"

    def pread(self, offset: int, size: int, *, wait: bool = True) -> bytes:
        """Return ``size`` bytes at ``offset``; fewer at the end of the blob.

        Raises WouldBlock with ``wait=False`` when bytes are missing, IntegrityError when the blob has wrong bytes, and
        whatever the source raises.
        """
        self.used = time.monotonic()
        while True:
            if self.failure is not None or (self._of is not None and self._of.failure is not None):
                raise self.failure or IntegrityError(f"{self} was decoded from bytes with a wrong digest")
            filling = self._current()
            try:
                return self._read(filling, offset, size, wait)
            except Closed:
                if self._stopped or self._current() is filling:
                    raise

    def _read(self, filling: Filling, offset: int, size: int, wait: bool) -> bytes:
        known = filling.size
        if known is not None:
            size = min(size, known - offset)
        if size <= 0:
            return b""
        chunk = filling.entry.chunk
        first, last = offset // chunk, (offset + size - 1) // chunk
        if filling.has(first, last):
            filling.touch(offset, offset + size)
            return self._found(filling, filling.read(offset, size))
        if not wait:
            raise WouldBlock(partial(filling.park, first, last))
        self._check_source(filling)
        passed = filling.ensure(first, last)
        if self.failure is not None:
            raise self.failure
        if known is None and filling.size is not None:
            if not passed:
                return self._read(filling, offset, size, wait)
            size = min(size, filling.size - offset)
        return self._found(filling, filling.gather(offset, size, passed) if passed else filling.read(offset, size))

    def _check_source(self, filling: Filling) -> None:
        if not filling.has_source:
            raise IntegrityError(f"{self} is not complete in the store, and there is no source to fetch it from")

    def _found(self, filling: Filling, data: bytes | None) -> bytes:
        """Return bytes of an opening; without them the blob fails. Raises IntegrityError."""
        if data is None:
            self._fail(filling, IntegrityError(f"{self}: the store's file is shorter than its chunk map says"))
            raise self.failure or StoreError("closed")
        return data

    def stream(self, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to the end, in pieces.

        Raises Closed when wrong bytes were found meanwhile: bytes that are fetched again do not continue those before.
        """
        generation = self.generation
        while data := self.pread(start, PIECE):
            if self.generation != generation:
                raise Closed(f"{self} was fetched again while it was read")
            yield data
            start += len(data)

    def fetch(self, offset: int, size: int, *, alone: bool = False) -> bool:
        """Bring bytes into the store without returning them; returns whether the store has them. With ``alone``,
        exactly these bytes are fetched, and none ahead of them. Raises what ``pread`` raises.
        """
        while True:
            if self.failure is not None:
                raise self.failure
            filling = self._current()
            stop = offset + size if filling.size is None else min(offset + size, filling.size)
            if stop <= offset:
                return True
            first, last = offset // filling.entry.chunk, (stop - 1) // filling.entry.chunk
            if filling.has(first, last):
                if not alone:
                    filling.touch(offset, stop)
                return True
            self._check_source(filling)
            try:
                passed = filling.ensure(first, last, alone=alone)
            except Closed:
                if self._stopped or self._current() is filling:
                    raise
                continue
            if self.failure is not None:
                raise self.failure
            return not passed

    def will_read(self, start: int, most: int = MAX_WINDOW) -> None:
        """Announce that the blob will be read in order, from ``start`` to its end, so that one request fetches it, up
        to ``most`` bytes ahead of the reader.
        """
        self._current().will_read(start, most)

    @property
    def ranged(self) -> bool:
        """Whether several parts of the blob may be fetched at the same time."""
        return self._current().ranged

    def fill(self) -> None:
        """Fetch all missing bytes, as far as the store takes them."""
        at = 0
        while not self.complete:
            size = self.size
            if size is not None and at >= size:
                return  # read through: nothing more can be stored
            got = len(self.pread(at, FILL))
            if not got:
                return
            at += got

    def verify(self) -> None:
        """Compare the digest of what is stored, and seal the blob. A blob with wrong bytes is fetched again if another
        endpoint has it.

        Raises IntegrityError when the digest is wrong or bytes are missing, StoreFull or StoreError when the blob
        cannot be read back or sealed.
        """
        try:
            while not self._verify():
                self.fill()
        except OSError as e:
            raise write_error(self.directory, e)

    def _verify(self) -> bool:
        """Verify and seal; returns False when bytes were dropped since, and can be fetched again."""
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
                raise IntegrityError(f"{self} is not whole")
            if self._of is not None:
                if not self._of.sealed:
                    self._of.verify()
                if self._of.instance != self._decoded_from:
                    self._drop(filling)  # the entry that was verified is not the one that it was decoded from
                if self._current() is not filling:
                    return False
            found = filling.prove()
            if found is not None:
                error = IntegrityError(f"{self} does not have its digest: its bytes have sha256:{found}")
                if self._heal(filling, error):
                    return False
                self._fail(filling, error)
                raise self.failure or StoreError("closed")
            if not filling.seal():
                raise StoreError(f"{self} is not in the store any more")
        self.when_sealed()
        if self._of is not None:
            self._of.retire()
        return True

    def check(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Read a sealed blob back. Returns False when bytes have changed on the disk: they are fetched again. Raises
        IntegrityError when no source has them, StoreError when it cannot be read, Closed if ``stopped`` returned True.
        """
        filling = self._current()
        if not filling.sealed or (wrong := filling.read_back(lambda: self._stopped or stopped())) is None:
            return True
        error = IntegrityError(f"{self} has changed on the disk: {wrong}; run the same command again to fetch it")
        if self._source is None:
            self._fail(filling, error)
            raise error
        self._fetch_again(filling, error, "it is fetched again")
        return False

    def filled(self, filling: Filling) -> None:
        """Have a complete blob verified on the store's thread for digests. Implements ``filling.Owner``."""
        self._home.prove(self._verify_later)

    def _verify_later(self) -> None:
        try:
            if self._filling is not None:
                self._verify()
        except (IntegrityError, StoreError):
            pass  # already logged and counted; or closed, and the next opening verifies
        except OSError as e:
            self._home.log.warning("%s cannot be sealed: %s", self, e)

    def _heal(self, filling: Filling, error: IntegrityError) -> bool:
        """Drop wrong bytes whose endpoint is not the only one; returns whether the blob can be fetched again."""
        if self._source is None or not self._source.distrust():
            return False
        self._fetch_again(filling, error, "it is fetched again from another endpoint")
        return True

    def _fetch_again(self, filling: Filling, error: IntegrityError, then: str) -> None:
        """Drop wrong bytes; the next read fetches them again."""
        self._home.counters.add("integrity_failures")
        self._home.log.error("%s; %s", error, then)
        self._drop(filling)
        self._home.failed(self.digest)

    def _fail(self, filling: Filling, error: IntegrityError) -> None:
        """Remove the entry, with one line in the log and one count; this object never returns a byte again."""
        if self.failure is None:
            self.failure = error
            self._home.counters.add("integrity_failures")
            self._home.log.error("%s; dropped from the store", error)
            self._remove(filling)
            self._home.failed(self.digest)

    def _drop(self, filling: Filling) -> None:
        """Remove an entry whose bytes are wrong or lost; they are fetched again when they are read."""
        self.generation += 1
        self._start_over(filling)

    def _start_over(self, filling: Filling) -> None:
        self._dropped = True
        self._remove(filling)
        self._replace(filling)

    def _remove(self, filling: Filling) -> None:
        """Remove an entry from the disk, and what was decoded from it."""
        try:
            filling.entry.remove()
            if self._of is None and not filling.sealed:
                decoded = origin_key(str(filling.entry.meta.get("id")), None)
                remove_entry(self._home.root, unproven_path(self._home.root, self.digest, "decoded", decoded))
        except OSError as e:
            self._home.log.warning("%s cannot be removed from the store: %s", self, e)

    def lost(self, filling: Filling, error: OSError) -> None:
        """Drop bytes that the disk failed to sync; the next read fetches them again. Implements ``filling.Owner``."""
        self._home.log.warning("%s is dropped from the store, since its bytes may be lost: %s", self, error.strerror)
        self._drop(filling)

    def room_needed(self) -> None:
        """Ask the store for the room of blobs that nobody reads. Implements ``filling.Owner``."""
        self._home.make_way(self)

    def let_go(self) -> bool:
        """Close the entry, so that it can be evicted; the next read opens it again. Returns whether it was open."""
        filling = self._filling
        if filling is None or self._stopped or self.failure is not None or self._verifying.locked():
            return False
        self._replace(filling, save=True)
        return True

    def start_over(self) -> None:
        """Remove the entry of a blob that is larger than the store, unless it is sealed or another process uses it; it
        is fetched again as it is read.
        """
        filling = self._current()
        if not filling.sealed and not self._verifying.locked() and filling.entry.lease.alone():
            self._start_over(filling)

    def retire(self) -> None:
        """Remove the compressed bytes once their decoded form is sealed, unless they are pinned or another process uses
        them.
        """
        filling = self._current()
        if self.digest not in self._home.pins.digests() and filling.entry.lease.alone():
            filling.entry.remove()

    def drop(self) -> None:
        """Remove the entry from the store; this object can still read what it has open. An entry that has taken its
        place stays. Raises OSError.
        """
        self._current().entry.remove()

    def close(self, patience: float = CLOSE_PATIENCE) -> None:
        """End fetches, make fetched bytes survive a reboot, and release the lease. Running fetches and every later read
        raise Closed.

        Waits ``patience`` seconds for sources that do not answer; their threads find the files closed.
        """
        if self._closed:
            return
        self.stop()
        self._closed = True
        if self._filling is not None:
            self._filling.close(patience, save=self.failure is None)

    def stop(self) -> None:
        """Begin to close: start no fetch, and do not wait long for readers or for a running verification."""
        with self._switching:
            self._stopped = True
        if self._filling is not None:
            self._filling.stop()
