"""Write a blob whose bytes arrive in order, when a kit is packed, pulled or pushed.

A blob that is being written is an *ingest*, a directory in the store:

    <store>/ingest/new-<uuid>/        an ingest that is lost if its process ends
    <store>/ingest/upload-<uuid>/     an ingest that another process may resume
                   rest, lease        the bytes so far; the lease of the process that writes them (``lease``)
                   note               JSON for the process that resumes the ingest

``commit`` turns the directory into the entry of a blob: it adds the other files of an entry, fsyncs everything, and
renames the directory to its place. Bytes are hashed as they are written; bytes that another process has written are
read back once. Threading: only one thread at a time may use an ingest.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

from kitfs.errors import IntegrityError, NotFound, StoreBusy, StoreError, StoreFull
from kitfs.oci.names import Digest
from kitfs.openfile import PIECE, WRITE, OpenFile, OwnFile
from kitfs.ownership import check_below, make_directories, make_directory, open_file
from kitfs.store.durable import NO_SPACE, fsync_directory
from kitfs.store.evict import remove_entry
from kitfs.store.lease import exclusive, hold_sealed, release
from kitfs.store.meta import new_meta
from kitfs.store.paths import entry_path, ingest_path
from kitfs.system import begin_writeback

WRITEBACK: Final = 8 << 20  # bytes that the kernel is asked to write to the disk at once, so that the sync is short
NEW: Final = "new-"
UPLOAD: Final = re.compile(r"upload-[0-9a-f]{32}")
STARVED: Final = 0.0  # the modification time, in seconds since the epoch, that marks an upload that found no room


class Ingest:
    """An open ingest, which ``new`` or ``resume`` returns. ``size`` is the number of bytes so far.

    ``make_room`` is called if the disk is full, and returns whether the write should be tried again. ``hold`` leases
    the verified blob in a directory.
    """

    def __init__(
        self,
        root: str,
        name: str,
        *,
        make_room: Callable[[], bool],
        create: bool,
        hold: Callable[[str], OpenFile | None] = hold_sealed,
    ) -> None:
        self._root = root
        self._make_room = make_room
        self._hold = hold
        self.name: Final = name
        self._directory = ingest_path(root, name)
        self._fd = -1
        with _store_errors(f"the ingest {self._directory}"):
            if create:
                make_directory(self._directory)
            try:
                self._open(create)
            except FileNotFoundError:
                raise NotFound(f"the upload {name} does not exist")  # or it was just committed or discarded
            except BaseException:
                if create:  # no other process knows the name yet
                    shutil.rmtree(self._directory, ignore_errors=True)
                raise
        self.size = os.fstat(self._fd).st_size
        self._hasher = hashlib.sha256()
        self._hashed = 0
        self._writing = self.size  # bytes that are on the disk or on their way to it

    def _open(self, create: bool) -> None:
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        self._lease: OpenFile | None = OwnFile(os.path.join(self._directory, "lease"), flags)
        try:
            if not exclusive(self._lease):
                raise StoreBusy(f"another process is writing {self.name}")
            self._fd = open_file(os.path.join(self._directory, "rest"), flags)
        except BaseException:
            release(self._lease)
            raise

    def __repr__(self) -> str:
        return f"<Ingest {self.name} {self.size} bytes>"

    @classmethod
    def new(
        cls,
        root: str,
        *,
        make_room: Callable[[], bool],
        resumable: bool = False,
        note: Any = None,
        hold: Callable[[str], OpenFile | None] = hold_sealed,
    ) -> Self:
        """Begin an ingest. Raises StoreError and StoreFull."""
        name = f"{'upload-' if resumable else NEW}{uuid.uuid4().hex}"
        made = cls(root, name, make_room=make_room, create=True, hold=hold)
        if resumable:
            try:
                with _store_errors(f"the ingest {made.name}"):
                    made._write("note", note)
                    fsync_directory(made._directory)
                    fsync_directory(ingest_path(root))
            except BaseException:
                made.discard()  # no other process knows the name yet
                raise
        return made

    @classmethod
    def resume(cls, root: str, name: str, *, make_room: Callable[[], bool]) -> Self:
        """Open an upload again.

        Raises NotFound, StoreError, and StoreBusy if another process or thread has the upload open.
        """
        if not UPLOAD.fullmatch(name):
            raise NotFound(f"the upload {name[:80]!r} does not exist")
        return cls(root, name, make_room=make_room, create=False)

    @property
    def ended(self) -> bool:
        """Return whether the ingest is committed, discarded or closed."""
        return self._fd < 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes. Raises StoreFull if the disk is full and no space can be freed; earlier bytes stay valid."""
        view = memoryview(data)
        with _store_errors(f"the ingest {self.name}"):
            while len(view):
                try:
                    done = os.pwrite(self._fd, view[:WRITE], self.size)
                except OSError as e:
                    if e.errno in NO_SPACE and self._make_room():
                        continue
                    raise
                if self._hashed == self.size:
                    self._hasher.update(view[:done])
                    self._hashed += done
                self.size += done
                view = view[done:]
            if self.size - self._writing >= WRITEBACK:
                begin_writeback(self._fd, self._writing, self.size - self._writing)
                self._writing = self.size

    def _sync(self) -> None:
        """Sync the written bytes to the disk. If that fails, discard the ingest.

        After a failed fdatasync, a later fdatasync may report success although bytes are lost.
        """
        try:
            os.fdatasync(self._fd)
        except OSError:
            self._remove()
            raise

    def truncate(self) -> None:
        """Drop all bytes, so that the next write is at offset 0."""
        with _store_errors(f"the ingest {self.name}"):
            os.ftruncate(self._fd, 0)
        self.size = self._hashed = self._writing = 0
        self._hasher = hashlib.sha256()

    def digest(self, algorithm: str = "sha256") -> Digest:
        """Return the digest of the bytes so far. Bytes that were not hashed when they were written are read back."""
        own = algorithm == "sha256"
        hasher, at = (self._hasher, self._hashed) if own else (hashlib.new(algorithm), 0)
        with _store_errors(f"the ingest {self.name}"):
            while at < self.size:
                data = os.pread(self._fd, min(PIECE, self.size - at), at)
                if not data:
                    raise StoreError(f"the ingest {self.name} has lost bytes: its file is shorter than it was")
                hasher.update(data)
                at += len(data)
        if own:
            self._hashed = at
        return Digest.parse(f"{algorithm}:{hasher.hexdigest()}")

    def commit(
        self, expected: Digest | None = None, *, verified: Callable[[], object] | None = None
    ) -> tuple[Digest, bool]:
        """Make the bytes a verified, durable blob of the store, leased until ``close``.

        Returns (digest, is_new); ``is_new`` is False if the store had the blob already. ``verified`` is called after
        the digest is checked, and before the ingest ends, so that a caller can record the blob before a crash could
        lose the ingest. Raises StoreFull, StoreError, and IntegrityError if the bytes do not have the digest
        ``expected``; the ingest is unchanged in these cases.
        """
        found = self.digest(expected.algorithm if expected is not None else "sha256")
        if expected is not None and found != expected:
            raise IntegrityError(f"the bytes have the digest {found}, not {expected}")
        if verified is not None:
            verified()
        target = entry_path(self._root, found)
        with _store_errors(f"blob {found}"):
            if self._replaced_by(target):
                return found, False
            self._sync()
            self._write("meta.json", new_meta(self.size))
            self._write("sealed", {"size": self.size, "digest": found.hex})
            fsync_directory(self._directory)
            if self._lease is not None:
                self._lease.flock(fcntl.LOCK_SH)  # before the rename, so that the blob is not evicted after the rename
            if not self._move(target):
                return found, False
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(target, "note"))
        os.close(self._fd)
        self._fd = -1
        return found, True

    def _write(self, name: str, value: Any) -> None:
        """Write and fsync a JSON file in the directory.

        No rename is needed, because the file is not read before its directory has been fsynced and renamed.
        """
        fd = open_file(os.path.join(self._directory, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with open(fd, "wb") as f:
            f.write(json.dumps(value).encode())
            f.flush()
            os.fsync(f.fileno())

    def _replaced_by(self, target: str) -> bool:
        """If the store has the verified blob already, lease it and drop the ingest. Returns whether the store has it.

        If the file of the store's blob has become too short, the blob is removed, and the ingest replaces it.
        """
        held = self._hold(target)
        if held is None:
            return False
        try:
            whole = os.stat(os.path.join(target, "rest")).st_size == self.size
        except OSError:
            whole = False
        if not whole:
            release(held)
            remove_entry(self._root, target)
            return False
        fsync_directory(os.path.dirname(target))  # the process that stored the blob may not have done this yet
        self._remove()
        if self._lease is not None:
            release(self._lease)
        self._lease = held
        return True

    def _move(self, target: str) -> bool:
        """Rename the directory to the blob's place, durably. Returns False if a verified blob is there already.

        An unverified entry in that place is removed; its readers can still use the files that they have open.
        """
        prefix = os.path.dirname(target)
        check_below(self._root, prefix)
        make_directories(prefix)
        while True:
            try:
                os.rename(self._directory, target)
                break
            except OSError as e:
                if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            if not remove_entry(self._root, target, spare_sealed=True) and self._replaced_by(target):
                return False
        fsync_directory(prefix)
        fsync_directory(os.path.dirname(prefix))  # the process that made ``prefix`` may not have done this yet
        return True

    def _remove(self) -> None:
        remove_entry(self._root, self._directory)
        os.close(self._fd)
        self._fd = -1

    def give_way(self) -> None:
        """Close an upload for which the store had no room, and mark it as starved.

        ``Ingests.drop_starved`` may remove a starved upload; until then, it can be resumed. The mark is the
        modification time of the file with the bytes, because setting it needs no disk space. The next write clears the
        mark. ``Ingests.sweep`` treats a starved upload as abandoned.
        """
        if self._fd >= 0:
            try:
                os.utime(self._fd, (STARVED, STARVED))
            except OSError:
                self._remove()
        self.close()

    def discard(self) -> None:
        """Drop the bytes unless they are committed, and close the ingest."""
        if self._fd >= 0:
            self._remove()
        self.close()

    def close(self) -> None:
        """Release the lease.

        An uncommitted upload stays and can be resumed; any other uncommitted ingest is dropped.
        """
        if self._fd >= 0 and not UPLOAD.fullmatch(self.name):
            self._remove()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._lease is not None:
            with contextlib.suppress(OSError):
                self._lease.touch()
            release(self._lease)
            self._lease = None


@contextlib.contextmanager
def _store_errors(what: str) -> Iterator[None]:
    """Turn an OSError of the ``with`` block into StoreError, or into StoreFull if the disk is full."""
    try:
        yield
    except OSError as e:
        if e.errno in NO_SPACE:
            raise StoreFull(f"cannot write {what}: no space left on the disk of the store")
        raise StoreError(f"cannot write {what}: {e.strerror}")
