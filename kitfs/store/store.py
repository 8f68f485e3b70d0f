"""Open the store, which contains blobs by their digest. All mounts and verbs of a machine share the store.

``paths`` defines its layout on disk. The store reads manifests only to find pinned blobs. Threading: any thread may
call every method. A housekeeping thread syncs and evicts, and another thread computes digests; ``close`` waits for
both. Several Stores may be open on one directory, in this process and in others.
"""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final

from kitfs.buffers import Buffers
from kitfs.content import Source
from kitfs.errors import Closed, IntegrityError, StoreError, StoreFull
from kitfs.metrics import Counters
from kitfs.oci.names import Digest
from kitfs.openfile import OpenFile
from kitfs.ownership import Unsafe, check_below, open_file, own_directory
from kitfs.store import evict
from kitfs.store.blob import Blob
from kitfs.store.catalog import Catalog
from kitfs.store.chunk_digests import ChunkDigests
from kitfs.store.disk import RETRY, Disk
from kitfs.store.durable import NO_SPACE
from kitfs.store.evict import Entry
from kitfs.store.fetch import CLOSE_PATIENCE
from kitfs.store.ingest import Ingest
from kitfs.store.ingests import Ingests
from kitfs.store.lease import check_descriptors, hold_sealed
from kitfs.store.opening import is_store, prepare, try_write
from kitfs.store.paths import entry_path, trash_path
from kitfs.store.pins import Pins
from kitfs.store.readback import SealedBlob, check_entry, ignored, sealed_blobs
from kitfs.store.refs import Refs
from kitfs.store.repositories import Repositories
from kitfs.store.room import RECHECK, Room
from kitfs.store.tasks import TaskThread

PATIENCE: Final = 60.0  # seconds to wait for a chunk of another process; the same as the default of --read-timeout
IDLE: Final = 2.0  # seconds after its last read until a blob of a mount may be evicted
LOOK: Final = 2.0  # seconds
MAX_SMALL: Final = 64 << 20  # bytes of a blob that ``get`` returns


class Store:
    """The store in ``root``, which ``Store.open`` returns."""

    def __init__(
        self,
        root: str,
        *,
        size_limit: int | None,
        free_share: float,
        counters: Counters,
        log: logging.Logger,
        recheck: float = RECHECK,
        patience: float = PATIENCE,
        buffers: Buffers | None = None,
        retry: float = RETRY,
    ) -> None:
        self.root = root
        self.buffers: Final = Buffers() if buffers is None else buffers
        self.counters = counters
        self.log = log
        self.catalog: Final = Catalog(os.path.join(root, "catalog"), log, trash=lambda: trash_path(root))
        self.refs: Final = Refs(os.path.join(root, "refs"))
        self.indexes: Final = Refs(os.path.join(root, "indexes"))
        self.kept: Final = Refs(os.path.join(root, "pins"), optional=True)
        self.repositories: Final = Repositories(os.path.join(root, "served"))
        self.ingests: Final = Ingests(root)
        self.pins: Final = Pins(self.refs, self.indexes, self.kept, self.repositories, self.get)
        self.room: Final = Room(
            root,
            self.pins,
            size_limit=size_limit,
            free_share=free_share,
            counters=counters,
            log=log,
            later=self.later,
            recheck=recheck,
        )
        self.disk: Final = Disk(root, log=log, retry=retry)
        self.patience: Final = patience
        self._house: Final = TaskThread(
            "kitfs-store",
            f"housekeeping of the store in {root}",
            counters=counters,
            log=log,
            regular=(LOOK, self.look),
        )
        self._digests: Final = TaskThread(
            "kitfs-digest", f"verification in the store in {root}", counters=counters, log=log
        )
        self._blobs: set[Blob] = set()
        self._on_failure: list[Callable[[Digest], object]] = []
        self._stopped = False
        self._recheck = recheck
        self._made_way = 0.0

    def __repr__(self) -> str:
        return f"<Store {self.root}>"

    @classmethod
    def open(
        cls,
        root: str,
        *,
        log: logging.Logger,
        counters: Counters | None = None,
        size_limit: int | None = None,
        free_share: float = 0.05,
        option: str = "--cache-dir",
        despite: Collection[int] = (),
        recheck: float = RECHECK,
        patience: float = PATIENCE,
        buffers: Buffers | None = None,
        retry: float = RETRY,
    ) -> Store:
        """Open the store in ``root``. A missing directory is made with mode 0700.

        Blobs that are not pinned may use ``size_limit`` bytes, and the share ``free_share`` of the disk stays free.
        Messages name ``option``, the command-line option that sets another directory. A caller that only reads passes
        errno values as ``despite``: if the trial write fails with one of them, an existing store is opened
        nevertheless, and a warning is logged. In an empty directory that users share, the store is a subdirectory
        (``ownership.own_directory``). A reader waits ``patience`` seconds for a chunk that another process is fetching.
        ``buffers`` is the memory for fetched bytes; the store may share it with a client of registries. A disk that
        fails later is tried again every ``retry`` seconds.

        Raises StoreError if the store cannot be made, read or written, if it has the format of another version of
        kitfs, or if another user owns it or can write to it. If an OSError was the reason, it is the ``__cause__``.
        Raises StoreFull if the disk is full and nothing can be evicted.
        """
        given, failure = root, None
        try:
            root = own_directory(root, sticky=True)  # ``prepare`` checks each part of the store
            prepare(root, option)
        except OSError as e:
            failure = e
        usable = failure is not None and failure.errno in despite and not isinstance(failure, Unsafe) and is_store(root)
        if failure is not None and failure.errno not in NO_SPACE and not usable:
            raise StoreError(_unusable(given, failure, option)) from failure
        limits = {"size_limit": size_limit, "free_share": free_share, "recheck": recheck, "patience": patience}
        limits["retry"] = retry
        store = cls(root, counters=counters or Counters(), log=log, buffers=buffers, **limits)  # type: ignore[arg-type]
        if failure is not None:
            try:
                store.evict()  # the disk may be full only because of blobs that earlier mounts have left
                try_write(root)
            except (OSError, StoreError):
                if not usable:
                    store.close()
                    raise StoreFull(_unusable(given, failure, option)) from failure
                log.warning(
                    "cannot write into the cache %s (%s): stored blobs can be read, and nothing is added until it can "
                    "be written again",
                    root,
                    (failure.strerror or str(failure)).lower(),
                )
        return store

    def close(self) -> None:
        """Close every blob, and end the threads of the store."""
        self.stop()
        deadline = time.monotonic() + CLOSE_PATIENCE
        for blob in list(self._blobs):
            blob.close(max(0.0, deadline - time.monotonic()))
        self._digests.close()
        self._house.close()
        self.room.settle()
        self.catalog.close()

    def stop(self) -> None:
        """Begin to close: end the running fetches, and prevent further fetches."""
        self._stopped = True
        for blob in list(self._blobs):
            blob.stop()

    def path(self, digest: Digest, form: str = "blobs") -> str:
        """Return the directory of a blob.

        Raises StoreError if a part of its path is a symbolic link or belongs to another user.
        """
        path = entry_path(self.root, digest, form)
        try:
            check_below(os.path.join(self.root, form), path)
        except OSError as e:
            raise StoreError(f"cannot use the store's entry {path}: {e.strerror}")
        return path

    def blob(
        self, digest: Digest, *, size: int | None, source: Source | None, of: Blob | None = None,
        table: ChunkDigests | None = None,
    ) -> Blob:  # fmt: skip
        """Open a blob, or the decoded form of the blob ``of``. With ``table``, chunks are verified when they arrive.

        The size and the digest of a decoded form are unknown until its source has been read to the end.
        """
        blob = Blob(self, digest, size=size, source=source, of=of, table=table)
        self._blobs.add(blob)
        if self._stopped:  # ``stop`` was called meanwhile and did not see this blob
            blob.close()
            raise Closed(f"the store in {self.root} was closed")
        return blob

    def ingest(
        self, *, resumable: bool = False, note: Any = None, make_room: Callable[[], bool] | None = None
    ) -> Ingest:
        """Begin to write a blob. Raises StoreError and StoreFull.

        A ``resumable`` ingest and its ``note`` stay after this process has ended. ``make_room`` is called if the disk
        is full, and returns whether the write should be tried again. By default, blobs that are not pinned are evicted.
        """
        return Ingest.new(self.root, make_room=make_room or self.room.make, resumable=resumable, note=note)

    def resume(self, name: str, *, make_room: Callable[[], bool] | None = None) -> Ingest:
        """Open a resumable ingest again. Raises NotFound, StoreBusy and StoreError."""
        return Ingest.resume(self.root, name, make_room=make_room or self.room.make)

    def hold(self, digest: Digest) -> OpenFile | None:
        """Take a lease on a verified blob, and return it. Returns None if the store does not have the blob.

        The caller must release the lease.
        """
        return hold_sealed(self.path(digest))

    def open_sealed(self, digest: Digest, form: str = "blobs") -> io.FileIO | None:
        """Open the file of a verified blob, or of its decoded form. Returns None if the store does not have it.

        The file can be read to its end even if the blob is evicted meanwhile. Raises StoreError if the process has no
        descriptor left.
        """
        try:
            directory = os.open(self.path(digest, form), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as e:
            check_descriptors(e)
            return None
        try:
            os.stat("sealed", dir_fd=directory)
            return io.FileIO(open_file("rest", dir_fd=directory))
        except OSError as e:
            check_descriptors(e)
            return None
        finally:
            os.close(directory)

    def has_sealed(self, digest: Digest) -> bool:
        """Return whether the store has a verified blob."""
        return os.path.exists(os.path.join(self.path(digest), "sealed"))

    def has_decoded(self, digest: Digest) -> bool:
        """Return whether the store has the verified decoded form of a blob, which replaces the compressed blob."""
        return os.path.exists(os.path.join(self.path(digest, "decoded"), "sealed"))

    def put(self, digest: Digest, data: bytes) -> None:
        """Store a small blob, such as a manifest or a config.

        Raises IntegrityError if the bytes do not have the digest, and StoreError if they cannot be stored.
        """
        if not digest.matches(data):
            raise IntegrityError(f"the bytes to store do not have the digest {digest}")
        directory = self.path(digest)
        if os.path.exists(os.path.join(directory, "sealed")):
            return
        blob = Blob(self, digest, size=len(data), source=_Given(data))
        try:
            blob.fill()
            if not blob.complete:
                raise StoreFull(f"cannot store blob {digest}: no space left in the store")
            blob.verify()
        except OSError as e:
            raise StoreError(f"cannot store blob {digest}: {e.strerror}")
        finally:
            blob.close()

    def get(self, digest: Digest) -> bytes | None:
        """Return the bytes of a small blob; None if the store does not have the blob, or if the bytes are wrong.

        Raises StoreError if the process has no descriptor left.
        """
        directory = self.path(digest)
        try:
            with open(open_file(os.path.join(directory, "rest")), "rb") as f:
                data = f.read(MAX_SMALL)
        except OSError as e:
            check_descriptors(e)
            return None
        with suppress(OSError):  # a read-only disk cannot record the last use, but no blob is evicted from it, either
            os.utime(os.path.join(directory, "lease"))
        return data if digest.matches(data) else None

    def sealed(self) -> Iterator[SealedBlob]:
        """Yield every verified blob and every verified decoded form.

        Blobs that are added or removed meanwhile may be left out.
        """
        return sealed_blobs(self.root)

    def check(self, digest: Digest, form: str = "blobs", *, moved: Callable[[int], object] = ignored) -> str | None:
        """Read a verified blob back, and remove it if its bytes have changed on the disk.

        Returns None if the blob is unchanged or is not in the store; otherwise describes the fault. ``moved`` is called
        with the size of each piece. A process that has the blob open continues to use the open file. Raises StoreError
        if the blob cannot be read or removed.
        """
        wrong = check_entry(self.root, digest, form, moved)
        if wrong is not None:
            self.counters.add("integrity_failures")
        return wrong

    def look(self) -> None:
        """Drop the bytes of open blobs if another process has marked them as wrong or lost.

        The store calls this method every ``LOOK`` seconds.
        """
        for blob in list(self._blobs):
            with suppress(Closed, OSError):  # the disk may fail
                blob.look()
            if blob.closed:
                self._blobs.discard(blob)

    def later(self, task: Callable[[], object]) -> None:
        """Run a task on the housekeeping thread."""
        self._house.put(task)

    def prove(self, task: Callable[[], object]) -> None:
        """Run a task on the thread that computes digests."""
        self._digests.put(task)

    def on_failure(self, callback: Callable[[Digest], object]) -> None:
        """Register a callback that is called with the digest of every blob whose bytes turn out to be wrong.

        The callback runs on the housekeeping thread while no lock is held, and must not wait.
        """
        self._on_failure.append(callback)

    def make_way(self, blob: Blob) -> None:
        """Make room for ``blob`` on the housekeeping thread, because the store is full.

        Blobs that were not read lately are closed, so that they can be evicted. This happens at most once in
        ``recheck`` seconds.
        """
        now = time.monotonic()
        if now - self._made_way > self._recheck:
            self._made_way = now
            self.later(partial(self._make_way, blob))

    def _make_way(self, blob: Blob) -> None:
        """Evict idle blobs, the least recently used first, to make room for ``blob``.

        If that is not enough and ``blob`` alone takes more than half of the limit, remove the entry of ``blob`` itself.
        """
        idle = sorted((b for b in list(self._blobs) if b is not blob), key=lambda b: b.used)
        for other in idle:
            if not self.room.full or time.monotonic() - other.used < IDLE:
                break
            if other.let_go():
                self.room.evict()
        limit = self.room.size_limit
        if self.room.full and limit is not None and blob.fetched > limit // 2:
            blob.start_over()
            self.room.evict()

    def failed(self, digest: Digest) -> None:
        """Call the callbacks of ``on_failure`` for a blob with wrong bytes. The caller may hold any lock."""
        for callback in tuple(self._on_failure):
            self.later(partial(callback, digest))

    def entries(self) -> Iterator[Entry]:
        """Yield every blob on disk. Blobs that are added or removed meanwhile may be left out."""
        return evict.entries(self.root)

    def remove(self, entry: Entry) -> bool:
        """Remove a blob, unless it is in use or was used since ``entry`` was read; return whether it was removed."""
        return evict.remove(self.root, entry)

    def sweep(self) -> tuple[int, int]:
        """Remove temporary files that crashes have left behind. Returns (number of files, bytes on disk)."""
        return evict.sweep_temporary(self.root)

    def usage(self) -> int:
        """Return how many bytes on disk are taken by the blobs that are not pinned."""
        pinned = self.pinned()
        return sum(e.size for e in self.entries() if e.digest not in pinned)

    def evict(self, *, at_least: int = 0) -> int:
        """Evict blobs until the store is below its limits and ``at_least`` bytes are freed, and return the freed bytes.

        Less is freed if too many blobs are leased or pinned. Raises OSError and StoreError.
        """
        return self.room.evict(at_least=at_least)

    @contextmanager
    def pin(self, digests: Collection[str]) -> Iterator[None]:
        """Pin blobs for a ``with`` block that is going to tag them, so that they are not evicted meanwhile."""
        with self.pins.hold(digests):
            if self.room.full:
                self.evict()  # the blobs that filled the store may be pinned now and not count for its limit any more
            yield

    def pinned(self) -> set[str]:
        """Return the digests of all pinned blobs (``Pins.digests``)."""
        return self.pins.digests()


def _unusable(path: str, error: OSError, option: str) -> str:
    reason = error.strerror if isinstance(error, Unsafe) else (error.strerror or str(error)).lower()
    return f"cache directory {path} cannot be used: {reason}; choose another with {option}"


class _Given:
    """A source whose bytes are in memory."""

    ranged = True

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size: int | None = len(data)

    @property
    def sender(self) -> str:
        """Return "", because the bytes do not come from a server."""
        return ""

    def distrust(self) -> bool:
        """Return False, because no other endpoint has the bytes."""
        return False

    def read_range(self, start: int, stop: int | None, /) -> Generator[tuple[int, memoryview], None, None]:
        yield start, memoryview(self._data)[start:stop]
