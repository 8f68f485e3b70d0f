"""One blob of the store, open: its bytes by position, fetched when they are missing, and its state.

    <directory>/meta.json   size and chunk size (``meta``)
                present     which chunks are stored (``chunk_map``)
                sealed      exists when every byte was read back and the digest was right, and all of it is fsynced;
                            written by rename
                lease       held by every process that has the blob open (``lease``)
                rest        the bytes (``data_file``)

A failed verification is final for this object: every later read raises the same IntegrityError, and the entry is
removed from the disk, so that the next opening begins afresh. Threading: every method from any thread; a warm ``pread``
takes no lock.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Final

from kitfs.content import Source
from kitfs.errors import Closed, IntegrityError, ManifestError, StoreError, StoreFull, WouldBlock
from kitfs.oci.names import Digest
from kitfs.openfile import PIECE
from kitfs.store.chunk_map import ChunkMap
from kitfs.store.data_file import DataFile
from kitfs.store.durable import NO_SPACE, write_durably, write_error
from kitfs.store.evict import remove_entry
from kitfs.store.fetch import CLOSE_PATIENCE, Fetcher
from kitfs.store.home import Home
from kitfs.store.lease import Lease
from kitfs.store.meta import MAX_SIZE, load_meta, load_or_reset, save_meta
from kitfs.store.readahead import MAX_WINDOW

SYNC_EVERY: Final = (
    256 << 20
)  # bytes fetched between two copies of ``present`` that survive a reboot (``ChunkMap.save``)


class Blob:
    """A blob of ``size`` bytes (None: not known yet) in ``directory``, filled from ``source`` (None: only stored bytes
    can be read).

    ``of`` is the compressed blob when this is its decoded form. Raises StoreError when the store cannot be used,
    IntegrityError when a verified blob of this digest has another size, ManifestError for a size beyond the limit.
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
        self.failure: IntegrityError | None = None  # why its bytes are wrong
        self._closed = False
        self._stopped = False
        self._said_unkept = False
        self._verifying = threading.Lock()
        if size is not None and size > MAX_SIZE:
            raise ManifestError(f"{digest} declares {size} bytes; the limit for a blob is {MAX_SIZE}")
        try:
            while not self._open(size):
                pass  # a failed verification removed the entry between the lease and the files
        except OSError as e:
            kind = StoreFull if e.errno in NO_SPACE else StoreError
            raise kind(f"cannot open the store's entry {directory}: {(e.strerror or str(e)).lower()}")
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
        """Take the lease and open the files, all of one entry; False when that entry was removed meanwhile."""
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
        """Length in bytes; None while it is not known."""
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
        """ "absent", "partial", "present" (every byte is stored) or "verified" (and every byte was read back, with the
        right digest).
        """
        if self.failure is not None:
            return "absent"
        if self.sealed:
            return "verified"
        if self.complete:
            return "present"
        return "partial" if self._present.count() else "absent"

    def pread(self, offset: int, size: int, *, wait: bool = True) -> bytes:
        """Return ``size`` bytes at ``offset``; fewer at the end of the blob.

        Raises WouldBlock with ``wait=False`` when bytes are missing, IntegrityError when the blob has wrong bytes, and
        whatever the source raises.
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
            raise IntegrityError(f"{self} is not complete in the store, and there is no source to fetch it from")
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
        return IntegrityError(f"{self} was decoded from bytes with a wrong digest")

    def _stored(self, offset: int, size: int) -> bytes:
        data = self._body.pread(offset, size)
        if len(data) < size:
            # The read crosses the end of the blob. Its size was unknown when the read began; it is recorded before the
            # last chunk is marked, so it is known now.
            if self._size is None:
                self._size = self._learn_size()
            if self._size is not None:
                size = min(size, self._size - offset)
        if len(data) < size:
            self._fail(IntegrityError(f"{self}: the store's file is shorter than its chunk map says"))
            raise self.failure or StoreError("closed")
        return data

    def _gathered(self, offset: int, size: int, passed: dict[int, bytes]) -> bytes:
        """Return bytes of which some chunks were never stored; ``passed`` holds those."""
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
        """Yield the bytes from ``start`` to the end, in pieces."""
        while data := self.pread(start, PIECE):
            yield data
            start += len(data)

    def fetch(self, offset: int, size: int) -> bool:
        """Bring bytes into the store without returning them; returns whether the store has them. Raises what ``pread``
        raises.
        """
        if self.failure is not None:
            raise self.failure
        stop = offset + size if self._size is None else min(offset + size, self._size)
        if stop <= offset:
            return True
        first, last = offset // self._chunk, (stop - 1) // self._chunk
        if self.sealed or self._present.has(first, last):
            return True
        if self._fetcher is None:
            raise IntegrityError(f"{self} is not complete in the store, and there is no source to fetch it from")
        passed = self._fetcher.ensure(first, last)
        if self.failure is not None:
            raise self.failure
        return not passed

    @property
    def ranged(self) -> bool:
        """Whether several parts of the blob may be fetched at the same time."""
        return self._fetcher is not None and self._fetcher.ranged

    def fill(self) -> None:
        """Fetch all missing bytes, as far as the store takes them."""
        at = 0
        while not self.complete:
            if self._size is not None and at >= self._size:
                return  # read through: nothing more can be stored
            got = len(self.pread(at, MAX_WINDOW))
            if not got:
                return
            at += got

    def verify(self) -> None:
        """Read everything back, compare the digest, and seal the blob.

        Raises IntegrityError when the digest is wrong or bytes are missing, StoreFull or StoreError when the blob
        cannot be read back or sealed.
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
                self._fail(
                    IntegrityError(f"{self} does not have its digest: its bytes have sha256:{hasher.hexdigest()}")
                )
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
        """Verify on the store's thread, after the last chunk has come."""
        try:
            self._verify()
        except (IntegrityError, StoreError):
            pass  # already logged and counted; or closed, and the next opening verifies
        except OSError as e:
            self._home.log.warning("%s cannot be sealed: %s", self, e)

    def _fail(self, error: IntegrityError) -> None:
        """Remove the entry, with one line in the log and one count; this object never returns a byte again."""
        if self.failure is None:
            self.failure = error
            self._home.counters.add("integrity_failures")
            self._home.log.error("%s; dropped from the store", error)
            self._home.forget_index(str(self.digest))
            try:
                self.drop()
            except OSError as e:
                self._home.log.warning("%s cannot be dropped: %s", self, e)
            self._home.failed(self.digest)

    def retire(self) -> None:
        """Remove the compressed bytes once their decoded form is sealed, unless they are pinned or another process uses
        them.
        """
        if self.digest not in self._home.pins.digests() and self._lease.alone():
            self.drop()

    def drop(self) -> None:
        """Remove the entry from the store; this object can still read what it has open. An entry that has taken its
        place stays.
        """
        remove_entry(self._home.root, self._directory, lease=self._lease.file)

    def _wrote(self, size: int) -> None:
        self._unsynced += size
        self._home.room.wrote(size)

    def _after_fetch(self) -> None:
        """After every fetch, make new bytes survive a reboot and verify a blob that is complete."""
        if self._stopped:
            return
        if self._unsynced > SYNC_EVERY:
            self._unsynced = 0
            self._home.later(self._save)
        with suppress(Closed):  # closed a moment ago
            if not self.sealed and self.complete:
                self._home.later(self._verify_later)

    def _finished(self, size: int, sha256: str) -> bool:
        """Record the size after a source without ranges has ended. Returns False when the size cannot be recorded for
        other processes.
        """
        self._size = size
        if self._of is None:
            return True
        self._meta = {**self._meta, "size": size, "sha256": sha256}
        try:
            with self._lease.entry() as live:
                if not live:
                    return False  # processes that opened it before find the end of the stream themselves
                save_meta(self._directory, self._meta)
        except OSError as e:
            if not self._said_unkept:
                self._said_unkept = True
                self._home.log.warning("%s: its size cannot be kept: %s", self, e.strerror)
            return False
        return True

    def _learn_size(self) -> int | None:
        """Return the size that another process has recorded since the blob was opened here; None when it is unknown."""
        try:
            self._meta = load_meta(self._directory)
        except (OSError, ValueError):
            return None
        size = self._meta.get("size")
        return size if isinstance(size, int) else None

    def _save(self) -> None:
        """Make fetched bytes survive a reboot."""
        with self._verifying:
            if self._closed or self.failure is not None:
                return
            try:
                self._body.sync()
                with self._lease.entry() as live:
                    if live:
                        self._present.save()
            except OSError as e:
                full = e.errno in NO_SPACE  # which the store logs itself
                self._home.log.log(
                    logging.INFO if full else logging.WARNING,
                    "%s: bytes fetched lately would not survive a reboot: %s",
                    self,
                    e.strerror,
                )

    def close(self, patience: float = CLOSE_PATIENCE) -> None:
        """End fetches, make fetched bytes survive a reboot, and release the lease. Running fetches and every later read
        raise Closed.

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
        """Begin to close: start no fetch, and do not wait long for readers or for a running verification."""
        self._stopped = True
        if self._fetcher is not None:
            self._fetcher.stop()
