"""The digest-keyed disk store that every mount and verb of a host shares.

    <root>/VERSION                           unknown version: refuse, never guess
           catalog/                          hints that can be rebuilt (``catalog``)
           refs/                             tags of packed and pulled kits (``refs``)
           indexes/                          tags of indexes of kits (``refs``): an index and a kit may have one name
           served/                           repositories of the embedded registry (``repositories``)
           blobs/<algorithm>/ab/<hex>/       a blob as registries have it (``blob``)
           decoded/<algorithm>/ab/<hex>/     the decoded form of that blob
           ingest/                           unfinished things (``ingest``), and dead ones on their way out

It knows bytes and digests; manifests only as far as pins need them. Threading: every method from any thread. One
housekeeping thread verifies, syncs and evicts; it is joined by ``close``. Several Stores may be open on one
directory, in this process and others.
"""

from __future__ import annotations

import io
import logging
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from kitfs.content import Source
from kitfs.errors import Closed, IntegrityError, InvalidReference, StoreError, StoreFull
from kitfs.gocompat.json import own_json
from kitfs.metrics import Counters
from kitfs.oci.names import Digest
from kitfs.openfile import OpenFile
from kitfs.ownership import Unsafe, check_below, check_directory, make_directory, open_file, own_directory
from kitfs.store import evict, ingest
from kitfs.store.blob import Blob
from kitfs.store.catalog import Catalog
from kitfs.store.durable import NO_SPACE, write_durably
from kitfs.store.evict import Entry
from kitfs.store.fetch import CLOSE_PATIENCE
from kitfs.store.ingest import Ingest, entry_path, hold
from kitfs.store.lease import check_descriptors
from kitfs.store.refs import Refs
from kitfs.store.repositories import Repositories

VERSION: Final = "1"
MAX_SMALL: Final = 64 << 20  # bytes of what ``get`` gives whole
CHECK_EVERY: Final = 64 << 20  # bytes stored between two looks at the limits
DIRECTORIES: Final = ("blobs", "decoded", "refs", "indexes", "ingest")
RECHECK: Final = 5.0  # seconds between two looks whether a full store has room again


class Store:
    """The store in ``root``; see ``open``."""

    def __init__(
        self, root: str, *, size_limit: int | None, free_share: float, counters: Counters, log: logging.Logger
    ) -> None:
        self.root = root
        self.counters = counters
        self.log = log
        self.catalog: Final = Catalog(os.path.join(root, "catalog"), log)
        self.refs: Final = Refs(os.path.join(root, "refs"))
        self.indexes: Final = Refs(os.path.join(root, "indexes"))
        self.repositories: Final = Repositories(os.path.join(root, "served"))
        self._size_limit = size_limit
        self._free_share = free_share
        self._lock = threading.Lock()
        self._since_check = 0
        self._full = False
        self._said_full = False
        self._checked = 0.0
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._blobs: set[Blob] = set()
        self._kept: list[frozenset[str]] = []
        self._stopped = False
        self._thread = threading.Thread(target=self._keep_house, name="kitfs-store", daemon=True)
        self._thread.start()

    @classmethod
    def open(
        cls,
        root: str,
        *,
        counters: Counters,
        log: logging.Logger,
        size_limit: int | None = None,
        free_share: float = 0.05,
        option: str = "--cache-dir",
        despite: Collection[int] = (),
    ) -> Store:
        """The store in ``root``, made 0700 when missing. ``size_limit`` in bytes for what is not pinned;
        ``free_share`` of the disk.

        ``option`` is what messages tell to choose another directory with. ``despite`` holds the errno values of
        failed writes that do not matter to a caller who reads: with one of these a store that exists is opened all
        the same, and the log says so once. The store's own ``root`` is a directory in it where an empty one is shared
        with other users (``ownership.own_directory``).

        Raises StoreError, or StoreFull, when it cannot be made, read or written, was written by another version of
        kitfs, or when another user owns it or may write it.
        """
        given = root
        try:
            root = own_directory(root, sticky=True)  # each of its parts is checked below
            for name in (*DIRECTORIES, "catalog", "served"):
                with suppress(FileNotFoundError):
                    check_directory(os.path.join(root, name))
            _check_version(root, option)
            for name in DIRECTORIES:
                with suppress(FileExistsError):
                    make_directory(os.path.join(root, name))
            evict.sweep(root)
            ingest.sweep(root)
            _probe(root)
        except OSError as e:
            reason = e.strerror if isinstance(e, Unsafe) else (e.strerror or str(e)).lower()
            told = f"cache directory {given} cannot be used: {reason}; choose another with {option}"
            usable = e.errno in despite and not isinstance(e, Unsafe) and os.path.exists(os.path.join(root, "VERSION"))
            if e.errno not in NO_SPACE and not usable:
                raise StoreError(told)
            failure: OSError | None = e
        else:
            failure = None
        store = cls(root, size_limit=size_limit, free_share=free_share, counters=counters, log=log)
        if failure is not None:
            try:
                store.evict()  # what earlier mounts left behind may be all that is in the way
                _probe(root)
            except (OSError, StoreError):
                if not usable:
                    store.close()
                    raise StoreFull(told)
                why = (failure.strerror or str(failure)).lower()
                log.warning(
                    "%s cannot be written now (%s): what it holds can be read, and nothing is taken until that changes",
                    root,
                    why,
                )
        return store

    def close(self) -> None:
        """Close every blob and end the housekeeping thread."""
        self.stop()
        deadline = time.monotonic() + CLOSE_PATIENCE
        for blob in list(self._blobs):
            blob.close(max(0.0, deadline - time.monotonic()))
        self._tasks.put(None)
        self._thread.join()
        self.catalog.close()

    def stop(self) -> None:
        """Begin to close: nothing starts to be fetched any more, and what is under way is told to end."""
        self._stopped = True
        for blob in list(self._blobs):
            blob.stop()

    def path(self, digest: Digest, form: str = "blobs") -> str:
        """The directory of a blob. Raises StoreError when a part of the way to it is a link, or another user's."""
        path = entry_path(self.root, digest, form)
        try:
            check_below(os.path.join(self.root, form), path)
        except OSError as e:
            raise StoreError(f"the store's entry {path} cannot be used: {e.strerror}")
        return path

    def blob(self, digest: Digest, *, size: int | None, source: Source | None, of: Blob | None = None) -> Blob:
        """Open a blob. With ``of``, the decoded form of that blob: its size and digest are known when its source has
        ended.
        """
        blob = Blob(
            self, self.path(digest, "blobs" if of is None else "decoded"), digest, size=size, source=source, of=of
        )
        self._blobs.add(blob)
        if self._stopped:  # it was closed meanwhile, and has not seen this one
            blob.close()
            raise Closed(f"the store in {self.root} was closed")
        return blob

    def ingest(
        self, *, resumable: bool = False, note: Any = None, make_room: Callable[[], bool] | None = None
    ) -> Ingest:
        """A blob on its way in; ``resumable`` keeps it beyond this process, with ``note``. Raises StoreError,
        StoreFull.

        ``make_room`` is called when the disk is full, and returns whether a write is worth another try; the default
        is ``make_room``.
        """
        return Ingest.new(self.root, make_room=make_room or self.make_room, resumable=resumable, note=note)

    def resume(self, name: str, *, make_room: Callable[[], bool] | None = None) -> Ingest:
        """Go on with a resumable ingest. Raises NotFound, StoreBusy, StoreError."""
        return Ingest.resume(self.root, name, make_room=make_room or self.make_room)

    def make_room(self) -> bool:
        """Evict what may go, since the disk is full; whether anything went."""
        try:
            return self.evict(at_least=MAX_SMALL) > 0
        except (OSError, StoreError):
            return False

    def hold(self, digest: Digest) -> OpenFile | None:
        """A lease on a blob that is whole and verified, to be released; None when it is not here."""
        return hold(self.path(digest))

    def open_sealed(self, digest: Digest) -> io.FileIO | None:
        """The file of a blob that is whole and verified, right to its end even when the blob is evicted meanwhile;
        None when it is not here.

        Raises StoreError when no descriptor is left to look with.
        """
        try:
            directory = os.open(self.path(digest), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
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
        """Whether a blob is here, whole and verified."""
        return os.path.exists(os.path.join(self.path(digest), "sealed"))

    def has_decoded(self, digest: Digest) -> bool:
        """Whether a verified decoded form of a blob is here, so that the compressed bytes are not needed."""
        return os.path.exists(os.path.join(self.path(digest, "decoded"), "sealed"))

    def put(self, digest: Digest, data: bytes) -> None:
        """Store a small blob: a manifest, a config. Raises IntegrityError unless it has its digest, StoreError when
        it cannot be kept.
        """
        if not digest.matches(data):
            raise IntegrityError(f"the bytes to store do not have the digest {digest}")
        directory = self.path(digest)
        if os.path.exists(os.path.join(directory, "sealed")):
            return
        blob = Blob(self, directory, digest, size=len(data), source=_Given(data))
        try:
            blob.fill()
            if not blob.complete:
                raise StoreFull(f"no room for {digest}")
            blob.verify()
        except OSError as e:
            raise StoreError(f"{digest} cannot be kept: {e.strerror}")
        finally:
            blob.close()

    def get(self, digest: Digest) -> bytes | None:
        """A whole small blob whose digest was checked just now; None when it is not here, or not right.

        Raises StoreError when no descriptor is left to look with.
        """
        directory = self.path(digest)
        try:
            with open(open_file(os.path.join(directory, "rest")), "rb") as f:
                data = f.read(MAX_SMALL)
        except OSError as e:
            check_descriptors(e)
            return None
        with suppress(OSError):  # a disk that is read-only keeps no time of use, and needs none
            os.utime(os.path.join(directory, "lease"))
        return data if digest.matches(data) else None

    def room(self) -> bool:
        """Whether the store takes more bytes. Looks at the limits every now and then, and evicts to keep them."""
        if self._full and time.monotonic() - self._checked > RECHECK:
            try:
                self.evict()
            except (OSError, StoreError):
                self._checked = time.monotonic()  # gone, or damaged: no read fails for that
        return not self._full

    def wrote(self, size: int) -> None:
        """Count bytes that were stored; looks at the limits on the housekeeping thread every ``CHECK_EVERY`` bytes."""
        with self._lock:
            self._since_check += size
            step = CHECK_EVERY if self._size_limit is None else min(CHECK_EVERY, max(1 << 20, self._size_limit // 16))
            due = self._since_check >= step
            if due:
                self._since_check = 0
        if due:
            self.later(self.evict)

    def passed(self, size: int) -> None:
        """Count bytes that could not be stored, and say so once."""
        self.counters.add("read_through", size)
        with self._lock:
            first, self._said_full = not self._said_full, True
            self._full, self._checked = True, time.monotonic()
        if first:
            self.log.warning(
                "the store in %s is full and nothing can be evicted: what is fetched now is not kept", self.root
            )

    def later(self, task: Callable[[], object]) -> None:
        """Run something on the housekeeping thread."""
        self._tasks.put(task)

    def _keep_house(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except Closed:
                pass  # the blob, meanwhile; what was to be done is done by the next opening
            except (OSError, StoreError) as e:
                self.log.warning("the store in %s cannot be kept in order: %s", self.root, e)
            except Exception:
                self.counters.add("bugs")
                self.log.exception("the store's housekeeping met a bug")

    def usage(self) -> int:
        """Bytes that blobs which are not pinned take on the disk."""
        pinned = self.pinned()
        return sum(e.size for e in evict.entries(self.root) if e.digest not in pinned)

    def evict(self, *, at_least: int = 0) -> int:
        """Bring the store below its limits, and free ``at_least`` bytes, as far as leases and pins allow; bytes
        freed.
        """
        there = list(evict.entries(self.root))
        pinned = self.pinned()  # after the look: what is pinned later was leased later, which ``remove`` sees
        found = [e for e in there if e.digest not in pinned]
        surplus = max(self._surplus(sum(e.size for e in found)), at_least)
        layers, small = evict.victims(found, pinned)
        freed = self._removed(layers, surplus)
        if surplus - freed <= sum(e.size for e in small):
            freed += self._removed(small, surplus - freed)
        with self._lock:
            self._full, self._checked = surplus > freed, time.monotonic()
        return freed

    def _removed(self, entries: Sequence[Entry], surplus: int) -> int:
        """Remove entries in order until ``surplus`` bytes are free; bytes freed."""
        freed = 0
        for entry in entries:
            if freed >= surplus:
                break
            if evict.remove(self.root, entry):
                freed += entry.size
                self.counters.add("evicted_blobs")
                self.counters.add("evicted_bytes", entry.size)
                self.log.info("evicted %s (%d bytes)", entry.digest, entry.size)
        return freed

    def _surplus(self, used: int) -> int:
        """Bytes that are too many, by the size limit and by what the disk must keep free."""
        disk = shutil.disk_usage(self.root)
        over_share = int(disk.total * self._free_share) - disk.free
        over_limit = 0 if self._size_limit is None else used - self._size_limit
        return max(over_share, over_limit, 0)

    @contextmanager
    def kept(self, digests: Collection[str]) -> Iterator[None]:
        """Blobs that are pinned for the time of the block, since they are about to be: no limit counts them, nothing
        evicts them.
        """
        held = frozenset(digests)
        self._kept.append(held)
        try:
            if self._full:
                self.evict()  # what made it full may be what no limit counts now
            yield
        finally:
            self._kept.remove(held)

    def pinned(self) -> set[str]:
        """Digests of all that repositories link and refs name: manifests, configs, layers, and manifests that an
        index lists.

        What an index of ``indexes`` lists is not: its kits have names of their own, or were only looked at.
        """
        found: set[str] = set()
        linked = set(self.repositories.linked())
        pending = [descriptor["digest"] for _, _, descriptor in self.refs.items()]
        while pending:
            text = pending.pop()
            if text in found:
                continue
            found.add(text)
            try:
                data = self.get(Digest.parse(text))
                manifest: Any = own_json(data) if data else {}
            except (ValueError, InvalidReference):
                continue
            if isinstance(manifest, dict):
                below = [manifest.get("config"), *(manifest.get("layers") or ())]
                found.update(d["digest"] for d in below if isinstance(d, dict) and "digest" in d)
                pending += [
                    d["digest"] for d in manifest.get("manifests") or () if isinstance(d, dict) and "digest" in d
                ]
        found.update(descriptor["digest"] for _, _, descriptor in self.indexes.items())
        return found.union(linked, *self._kept)

    def is_kept(self, digest: str) -> bool:
        """Whether somebody is pinning a blob right now (``kept``): it may take what is left of the disk."""
        return any(digest in held for held in list(self._kept))

    def is_pinned(self, digest: str) -> bool:
        """Whether a blob belongs to a kit that was packed or pulled here."""
        return digest in self.pinned()

    def forget_index(self, digest: str) -> None:
        """Forget what was derived from bytes that turned out to be wrong."""
        for kind in ("index", "closed"):
            self.catalog.delete((kind, digest))


class _Given:
    """Bytes at hand, as a Source."""

    ranged = True

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size: int | None = len(data)

    def read_range(self, start: int, stop: int | None, /) -> Any:
        yield start, memoryview(self._data)[start:stop]


def _probe(root: str) -> None:
    """Raises OSError when the store cannot be written."""
    probe = os.path.join(root, "ingest", f"probe-{os.getpid()}-{threading.get_ident()}")
    try:
        with open(open_file(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as f:
            f.write(bytes(64 << 10))
            f.flush()
            os.fsync(f.fileno())
    finally:
        with suppress(FileNotFoundError):
            os.unlink(probe)


def _check_version(root: str, option: str) -> None:
    path = os.path.join(root, "VERSION")
    try:
        with open(open_file(path), encoding="ascii", errors="replace") as f:
            found = f.read(64).strip()
    except FileNotFoundError:
        write_durably(path, f"{VERSION}\n".encode())
        return
    if found != VERSION:
        told = f"cache directory {root} has format {found[:20]!r}, this kitfs knows {VERSION}"
        raise StoreError(f"{told}: update kitfs, or choose another with {option}")
