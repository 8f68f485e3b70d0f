"""One blob of the store, open: its bytes by position, fetched when they are missing, and what may be said of them.

    <directory>/meta.json   {"version", "size", "chunk", "cuts": []}; "size" null for a decoded form until its end was
    seen, then
                            rewritten by rename with "sha256", the digest of what the decoder gave
                present     which chunks are there (``present``)
                sealed      all here, read back, digest right, fsynced; written by rename
                lease       who uses it (``lease``)
                rest        the bytes (``body``)

A failed verification is final for this object: every later read raises the same IntegrityError, and the entry is gone
from the disk, so that the next opening begins afresh. Threading: every method from any thread; a warm ``pread`` takes
no lock.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Final, Protocol

from kitfs.content import Source
from kitfs.errors import Closed, IntegrityError, ManifestError, StoreError, WouldBlock
from kitfs.metrics import Counters
from kitfs.oci.names import Digest
from kitfs.openfile import PIECE
from kitfs.store.chunk_map import ChunkMap
from kitfs.store.data_file import DataFile
from kitfs.store.durable import NO_SPACE, write_durably, write_error
from kitfs.store.evict import remove_entry
from kitfs.store.fetch import CLOSE_PATIENCE, Fetcher
from kitfs.store.lease import Lease
from kitfs.store.meta import MAX_SIZE, load_meta, load_or_reset, save_meta
from kitfs.store.pins import Pins
from kitfs.store.readahead import MAX_WINDOW
from kitfs.store.room import Room

SYNC_EVERY: Final = 256 << 20  # bytes fetched between two copies of ``present`` that survive a reboot


class Home(Protocol):
    """What a blob needs of its store."""

    @property
    def root(self) -> str: ...

    @property
    def log(self) -> logging.Logger: ...

    @property
    def counters(self) -> Counters: ...

    @property
    def pins(self) -> Pins: ...

    @property
    def room(self) -> Room: ...

    def later(self, task: Callable[[], None], /) -> None: ...

    def forget_index(self, digest: str, /) -> None: ...


class Blob:
    """A blob of ``size`` bytes (None: not known yet) in ``directory``, filled from ``source`` (None: what is there is
    all there is).

    ``of`` is the compressed blob when this is its decoded form. Raises StoreError when the store cannot be used,
    IntegrityError when a verified blob of this digest has another size, ManifestError for a size that no blob has.
    """

    def __init__(
        self,
        home: Home,
        directory: str,
        digest: Digest,
        *,
        size: int | None,
        source: Source | None,
        of: Blob | None = None,
    ) -> None:
        self.digest: Final = digest
        self._home = home
        self._directory = directory
        self._of = of
        self.failure: IntegrityError | None = None  # what was found to be wrong with it
        self._closed = False
        self._stopped = False
        self._said_unkept = False
        self._verifying = threading.Lock()
        if size is not None and size > MAX_SIZE:
            raise ManifestError(f"{digest} is said to have {size} bytes: more than {MAX_SIZE} is no blob")
        try:
            while not self._open(size):
                pass  # the entry was found to be wrong, and dropped, between the lease and the files
        except OSError as e:
            raise StoreError(f"the store's entry {directory} cannot be opened: {e.strerror}")
        self._chunk: Final[int] = self._meta["chunk"]
        self._size: int | None = self._meta["size"]
        self._unsynced = 0
        self._fetcher: Fetcher | None = None
        if source is not None:
            self._fetcher = Fetcher(
                source,
                self._body,
                self._present,
                chunk=self._chunk,
                size=self._size,
                rests=of is not None,
                name=str(self),
                room=lambda: home.pins.is_held(digest) or home.room.available(),
                make_room=lambda: home.pins.is_held(digest) and home.room.make(),
                wrote=self._wrote,
                passed=home.room.read_through,
                hasher=hashlib.sha256,
                finished=self._finished,
                landed=self._after_fetch,
                learn_size=self._learn_size,
            )
        if not self.sealed and self.complete:
            self._home.later(self._verify_later)

    def __repr__(self) -> str:
        return f"<Blob {self} {self.state} {self.fetched} of {self._size} bytes>"

    def __str__(self) -> str:
        return f"{'the decoded form of ' if self._of is not None else ''}blob {self.digest}"

    def _open(self, size: int | None) -> bool:
        """Take the lease and open the files, all of one entry; False when that went away meanwhile."""
        self._lease = Lease(self._directory)
        with ExitStack() as undo:
            undo.callback(self._lease.close)
            with self._lease.entry() as live:
                if not live:
                    return False
                self._meta = load_or_reset(self._directory, size, f"blob {self.digest}")
                self.sealed = os.path.exists(os.path.join(self._directory, "sealed"))
                self._body = DataFile(self._directory)
                undo.callback(self._body.close)
                self._present = ChunkMap(self._directory, None if size is None else -(-size // self._meta["chunk"]))
            undo.pop_all()
        return True

    @property
    def size(self) -> int | None:
        """Length in bytes; None while nobody knows it."""
        return self._size

    @property
    def complete(self) -> bool:
        """Whether every byte is in the store."""
        if self.sealed:
            return True
        return self._size is not None and (self._size == 0 or self._present.has(0, (self._size - 1) // self._chunk))

    @property
    def fetched(self) -> int:
        """Bytes that are in the store."""
        if self.sealed:
            return self._size or 0
        there = self._present.count() * self._chunk
        return there if self._size is None else min(there, self._size)

    @property
    def state(self) -> str:
        """absent, partial, present (all here) or verified (all here, read back, and their digest is right)."""
        if self.failure is not None:
            return "absent"
        if self.sealed:
            return "verified"
        if self.complete:
            return "present"
        return "partial" if self._present.count() else "absent"

    def pread(self, offset: int, size: int, *, wait: bool = True) -> bytes:
        """``size`` bytes at ``offset``, short at the end of the blob.

        Raises WouldBlock with ``wait=False`` when not all are there, IntegrityError when the blob was found to be
        wrong, else what the source raises.
        """
        if self.failure is not None or (self._of is not None and self._of.failure is not None):
            raise self.failure or self._wrong_origin()
        known = self._size
        if known is not None:
            size = min(size, known - offset)
        if size <= 0:
            return b""
        first, last = offset // self._chunk, (offset + size - 1) // self._chunk
        if self.sealed or self._present.has(first, last):
            return self._stored(offset, size)
        if not wait:
            raise WouldBlock
        if self._fetcher is None:
            raise IntegrityError(f"{self} is not whole in the store, and has no source")
        passed = self._fetcher.ensure(first, last)
        if self.failure is not None:
            raise self.failure
        if known is None and self._fetcher.size is not None:
            self._size = self._fetcher.size
            return (
                self.pread(offset, size, wait=wait)
                if not passed
                else self._gathered(offset, min(size, self._size - offset), passed)
            )
        return self._gathered(offset, size, passed) if passed else self._stored(offset, size)

    def _wrong_origin(self) -> IntegrityError:
        return IntegrityError(f"{self} comes from bytes with a wrong digest")

    def _stored(self, offset: int, size: int) -> bytes:
        data = self._body.pread(offset, size)
        if (
            len(data) < size
        ):  # across the end, which nobody knew when the reader came: it is written before the last chunk is marked
            if self._size is None:
                self._size = self._learn_size()
            if self._size is not None:
                size = min(size, self._size - offset)
        if len(data) < size:
            self._fail(IntegrityError(f"{self}: the store's file is shorter than what it was marked to hold"))
            raise self.failure or StoreError("closed")
        return data

    def _gathered(self, offset: int, size: int, passed: dict[int, bytes]) -> bytes:
        """Bytes of which some chunks were never stored."""
        out = bytearray()
        at, stop = offset, offset + size
        while at < stop:
            chunk = at // self._chunk
            end = min(stop, (chunk + 1) * self._chunk)
            if chunk in passed:
                base = chunk * self._chunk
                out += passed[chunk][at - base : end - base]
            else:
                out += self._stored(at, end - at)
            at = end
        return bytes(out)

    def stream(self, start: int = 0) -> Iterator[bytes]:
        """The bytes from ``start`` to the end, in pieces."""
        while data := self.pread(start, PIECE):
            yield data
            start += len(data)

    def fetch(self, offset: int, size: int) -> bool:
        """Bring bytes into the store without giving them; whether they are there now. Raises what ``pread`` raises."""
        if self.failure is not None:
            raise self.failure
        stop = offset + size if self._size is None else min(offset + size, self._size)
        if stop <= offset:
            return True
        first, last = offset // self._chunk, (stop - 1) // self._chunk
        if self.sealed or self._present.has(first, last):
            return True
        if self._fetcher is None:
            raise IntegrityError(f"{self} is not whole in the store, and has no source")
        passed = self._fetcher.ensure(first, last)
        if self.failure is not None:
            raise self.failure
        return not passed

    @property
    def ranged(self) -> bool:
        """Whether several parts of it may be fetched at the same time."""
        return self._fetcher is not None and self._fetcher.ranged

    def fill(self) -> None:
        """Fetch what is missing."""
        at = 0
        while not self.complete:
            if self._size is not None and at >= self._size:
                return  # read through: nothing more can be stored
            got = len(self.pread(at, MAX_WINDOW))
            if not got:
                return
            at += got

    def verify(self) -> None:
        """Read everything back, compare the digest, and seal.

        Raises IntegrityError when it is wrong or not all here, StoreFull or StoreError when it cannot be read back or
        sealed.
        """
        try:
            self._verify()
        except OSError as e:
            raise write_error(self._directory, e)

    def _verify(self) -> None:
        with self._verifying:
            if self.failure is not None:
                raise self.failure
            if self.sealed:
                return
            if self._stopped:
                raise Closed(f"{self} is closed")
            if not self.complete:
                raise IntegrityError(f"{self} is not whole")
            if self._of is not None and not self._of.sealed:
                self._of._verify()  # noqa: SLF001 - of its own kind
            want = self._meta.get("sha256") if self._of is not None else self.digest.hex
            hasher = hashlib.sha256() if self._of is not None else self.digest.hasher()
            at = 0
            while at < (self._size or 0):
                if self._stopped:
                    raise Closed(f"{self} was closed while it was verified")
                data = self._body.pread(at, PIECE)
                if not data:
                    break
                hasher.update(data)
                at += len(data)
            if at != self._size or hasher.hexdigest() != want:
                self._fail(IntegrityError(f"{self} does not have its digest: read back as sha256:{hasher.hexdigest()}"))
                raise self.failure or StoreError("closed")
            self._body.sync()
            with self._lease.entry() as live:
                sealed = os.path.join(self._directory, "sealed")
                if live:
                    write_durably(sealed, json.dumps({"size": self._size, "digest": want}).encode())
                elif not os.path.exists(sealed):
                    raise StoreError(f"{self} is not in the store any more")
            self.sealed = True
        if self._of is not None:
            self._of.retire()

    def _verify_later(self) -> None:
        """What the store's thread does when the last chunk has come."""
        try:
            self._verify()
        except (IntegrityError, StoreError):
            pass  # told and counted where it was found, or closed: the next opening verifies
        except OSError as e:
            self._home.log.warning("%s cannot be sealed: %s", self, e)

    def _fail(self, error: IntegrityError) -> None:
        """Drop the entry: one log line, one count, and this object never gives a byte again."""
        if self.failure is None:
            self.failure = error
            self._home.counters.add("integrity_failures")
            self._home.log.error("%s; dropped from the store", error)
            self._home.forget_index(str(self.digest))
            try:
                self.drop()
            except OSError as e:
                self._home.log.warning("%s cannot be dropped: %s", self, e)

    def retire(self) -> None:
        """Drop the compressed bytes once their decoded form is sealed, unless they are pinned or somebody else uses
        them.
        """
        if self.digest not in self._home.pins.digests() and self._lease.alone():
            self.drop()

    def drop(self) -> None:
        """Remove the entry from the store; this object goes on reading what it has open. One that came in its place
        stays.
        """
        remove_entry(self._home.root, self._directory, lease=self._lease.file)

    def _wrote(self, size: int) -> None:
        self._unsynced += size
        self._home.room.wrote(size)

    def _after_fetch(self) -> None:
        """After every flight: what was fetched is to survive a reboot, and what is complete is to be verified."""
        if self._stopped:
            return
        if self._unsynced > SYNC_EVERY:
            self._unsynced = 0
            self._home.later(self._save)
        with suppress(Closed):  # a moment ago
            if not self.sealed and self.complete:
                self._home.later(self._verify_later)

    def _finished(self, size: int, sha256: str) -> bool:
        """A source without ranges has come to its end. False when others cannot be told its size."""
        self._size = size
        if self._of is None:
            return True
        self._meta = {**self._meta, "size": size, "sha256": sha256}
        try:
            with self._lease.entry() as live:
                if not live:
                    return False  # whoever opened it before reads on, and finds the end for himself
                save_meta(self._directory, self._meta)
        except OSError as e:
            if not self._said_unkept:
                self._said_unkept = True
                self._home.log.warning("%s: its size cannot be kept: %s", self, e.strerror)
            return False
        return True

    def _learn_size(self) -> int | None:
        """The size that another process has found since this one opened the blob."""
        try:
            self._meta = load_meta(self._directory)
        except (OSError, ValueError):
            return None
        size = self._meta.get("size")
        return size if isinstance(size, int) else None

    def _save(self) -> None:
        """Make what was fetched survive a reboot."""
        with self._verifying:
            if self._closed or self.failure is not None:
                return
            try:
                self._body.sync()
                with self._lease.entry() as live:
                    if live:
                        self._present.save()
            except OSError as e:
                full = e.errno in NO_SPACE  # of which the store has its own word
                self._home.log.log(
                    logging.INFO if full else logging.WARNING,
                    "%s: what was fetched would not survive a reboot: %s",
                    self,
                    e.strerror,
                )

    def close(self, patience: float = CLOSE_PATIENCE) -> None:
        """End flights, save what was fetched, give the lease back. What is still under way, and every later read,
        raises Closed.

        Waits ``patience`` seconds for sources that do not answer; their threads find the files closed.
        """
        if self._closed:
            return
        self.stop()
        if self._fetcher is not None:
            self._fetcher.close(patience)
        if self._unsynced and not self.sealed and self.failure is None:
            self._save()
        self._closed = True
        with self._verifying:
            self._present.close()
            self._body.close()
            self._lease.close()

    def stop(self) -> None:
        """Begin to close: no flight starts any more, and neither readers nor a verification under way are waited for
        long.
        """
        self._stopped = True
        if self._fetcher is not None:
            self._fetcher.stop()
