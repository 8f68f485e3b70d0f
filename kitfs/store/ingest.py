"""A blob on its way in: packed, pulled or pushed bytes that come in order and have their digest at the end.

    <store>/ingest/new-<uuid>/        of one process; rubbish once nobody has its lease
    <store>/ingest/upload-<uuid>/     resumable: goes on where it stands, also in another process
                   rest, lease        the bytes so far, in order; who works on it (``lease``)
                   note               what its maker wants to know again, JSON

The directory *is* the blob's entry: ``commit`` adds what an entry has besides its bytes and renames it to its place,
with everything fsynced before. Each byte is hashed as it is written; what another process wrote is read back once.
Threading: one thread at a time.
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
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, Self

from kitfs.errors import IntegrityError, NotFound, StoreBusy, StoreError, StoreFull
from kitfs.gocompat.json import own_json
from kitfs.oci.names import Digest
from kitfs.openfile import PIECE, OpenFile, OwnFile
from kitfs.ownership import check_below, make_directories, make_directory, open_file
from kitfs.store.durable import NO_SPACE, fsync_directory
from kitfs.store.evict import remove_entry
from kitfs.store.lease import check_descriptors, exclusive, release
from kitfs.store.meta import new_meta

SYNC_EVERY: Final = 64 << 20  # bytes after which they are brought to the disk, so that the last fsync is short
UPLOAD: Final = re.compile(r"upload-[0-9a-f]{32}")
ABANDONED: Final = 7 * 86_400.0  # seconds after which an upload that nobody goes on with is rubbish
STARVED: Final = 0.0  # the time of the bytes of an upload that gave way, in seconds since the epoch


class Ingest:
    """An open ingest; made by ``new`` and ``resume``. ``size`` is the number of bytes so far."""

    def __init__(self, root: str, name: str, *, make_room: Callable[[], bool], create: bool) -> None:
        self._root = root
        self._make_room = make_room
        self.name: Final = name
        self._directory = os.path.join(root, "ingest", name)
        self._fd = -1
        with _told(f"the ingest {self._directory}"):
            if create:
                make_directory(self._directory)
            try:
                self._lease: OpenFile | None = OwnFile(
                    os.path.join(self._directory, "lease"), os.O_RDWR | (os.O_CREAT if create else 0)
                )
            except FileNotFoundError:
                raise NotFound(f"there is no upload {name}")
            except OSError:
                if create:
                    shutil.rmtree(
                        self._directory, ignore_errors=True
                    )  # no room, or no descriptor: nobody knows its name yet
                raise
            try:
                if not exclusive(self._lease):
                    raise StoreBusy(f"somebody else works on {name}")
                self._fd = open_file(os.path.join(self._directory, "rest"), os.O_RDWR | (os.O_CREAT if create else 0))
            except FileNotFoundError:
                release(self._lease)
                raise NotFound(f"there is no upload {name}")  # committed or discarded a moment ago
            except BaseException:
                release(self._lease)
                if create:
                    shutil.rmtree(self._directory, ignore_errors=True)
                raise
        self.size = os.fstat(self._fd).st_size
        self._hasher = hashlib.sha256()
        self._hashed = 0
        self._synced = self.size

    def __repr__(self) -> str:
        return f"<Ingest {self.name} {self.size} bytes>"

    @classmethod
    def new(cls, root: str, *, make_room: Callable[[], bool], resumable: bool = False, note: Any = None) -> Self:
        """Begin. Raises StoreError, StoreFull."""
        made = cls(root, f"{'upload' if resumable else 'new'}-{uuid.uuid4().hex}", make_room=make_room, create=True)
        if resumable:
            try:
                with _told(f"the ingest {made.name}"):
                    made._write("note", note)
                    fsync_directory(made._directory)
                    fsync_directory(os.path.join(root, "ingest"))
            except BaseException:
                made.discard()  # nobody will ever know its name
                raise
        return made

    @classmethod
    def resume(cls, root: str, name: str, *, make_room: Callable[[], bool]) -> Self:
        """Go on with an upload. Raises NotFound, StoreBusy when somebody works on it, StoreError."""
        if not UPLOAD.fullmatch(name):
            raise NotFound(f"there is no upload {name[:80]!r}")
        return cls(root, name, make_room=make_room, create=False)

    @property
    def ended(self) -> bool:
        """Whether it is committed, discarded or closed."""
        return self._fd < 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append. Raises StoreFull when there is no room, and none can be made; what was written before stays."""
        view = memoryview(data)
        with _told(f"the ingest {self.name}"):
            while len(view):
                try:
                    done = os.pwrite(self._fd, view, self.size)
                except OSError as e:
                    if e.errno in NO_SPACE and self._make_room():
                        continue
                    raise
                if self._hashed == self.size:
                    self._hasher.update(view[:done])
                    self._hashed += done
                self.size += done
                view = view[done:]
            if self.size - self._synced >= SYNC_EVERY:
                self._synced = self.size
                self._sync()

    def _sync(self) -> None:
        """Bring what was written to the disk. One that failed may say later that all is well when nothing is: then
        all is dropped.
        """
        try:
            os.fdatasync(self._fd)
        except OSError:
            self._bury()
            raise

    def truncate(self) -> None:
        """Begin again from nothing."""
        with _told(f"the ingest {self.name}"):
            os.ftruncate(self._fd, 0)
        self.size = self._hashed = self._synced = 0
        self._hasher = hashlib.sha256()

    def digest(self, algorithm: str = "sha256") -> Digest:
        """The digest of the bytes so far; those that were not hashed on the way are read back."""
        own = algorithm == "sha256"
        hasher, at = (self._hasher, self._hashed) if own else (hashlib.new(algorithm), 0)
        with _told(f"the ingest {self.name}"):
            while at < self.size:
                data = os.pread(self._fd, min(PIECE, self.size - at), at)
                if not data:
                    raise StoreError(f"{self.name}: the file is shorter than it was")
                hasher.update(data)
                at += len(data)
        if own:
            self._hashed = at
        return Digest.parse(f"{algorithm}:{hasher.hexdigest()}")

    def commit(
        self, expected: Digest | None = None, *, verified: Callable[[], object] | None = None
    ) -> tuple[Digest, bool]:
        """(digest, whether the store did not have it yet): verified, durable, and leased until ``close``.

        ``verified`` is called when the bytes are right, and before the ingest is gone: a crash leaves one or the
        other to go on with. Raises IntegrityError when the bytes are not ``expected``, StoreFull, StoreError; the
        ingest is as before then.
        """
        found = self.digest(expected.algorithm if expected is not None else "sha256")
        if expected is not None and found != expected:
            raise IntegrityError(f"the bytes have another digest than {expected}: {found}")
        if verified is not None:
            verified()
        target = entry_path(self._root, found)
        with _told(f"blob {found}"):
            if self._is_there(target):
                return found, False
            self._sync()
            self._write("meta.json", new_meta(self.size))
            self._write("sealed", {"size": self.size, "digest": found.hex})
            fsync_directory(self._directory)
            if self._lease is not None:
                self._lease.flock(fcntl.LOCK_SH)  # here, where no evictor comes between the two locks
            if not self._move(target):
                return found, False
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(target, "note"))
        os.close(self._fd)
        self._fd = -1
        return found, True

    def _write(self, name: str, value: Any) -> None:
        """A file of the directory, fsynced. Nobody reads it before the directory, fsynced after it, is told of or
        moved: no rename is needed.
        """
        fd = open_file(os.path.join(self._directory, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with open(fd, "wb") as f:
            f.write(json.dumps(value).encode())
            f.flush()
            os.fsync(f.fileno())

    def _is_there(self, target: str) -> bool:
        """Whether the store has the blob, whole and verified: then that one is leased instead, and the ingest dropped.

        One that has lost bytes since gives way, so that it is mended by bringing it again.
        """
        held = hold(target)
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
        fsync_directory(os.path.dirname(target))  # whoever brought it may not have come to it yet
        self._bury()
        if self._lease is not None:
            release(self._lease)
        self._lease = held
        return True

    def _move(self, target: str) -> bool:
        """Rename the entry to its place, durably; False when a verified one came there before it.

        An unverified one gives way: its readers have its files open.
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
            if not remove_entry(self._root, target, spare_sealed=True) and self._is_there(target):
                return False
        fsync_directory(prefix)
        fsync_directory(os.path.dirname(prefix))  # whoever made the prefix may not have come to it yet
        return True

    def _bury(self) -> None:
        remove_entry(self._root, self._directory)
        os.close(self._fd)
        self._fd = -1

    def give_way(self) -> None:
        """Let go of an upload that found no room: its bytes stay to be continued until somebody needs their room
        (``drop_starved``).

        The mark is the time of the bytes, which needs no room: their next write takes it away, and ``sweep`` sees
        them as abandoned.
        """
        if self._fd >= 0:
            try:
                os.utime(self._fd, (STARVED, STARVED))
            except OSError:
                self._bury()
        self.close()

    def discard(self) -> None:
        """Drop the bytes, unless they are committed."""
        if self._fd >= 0:
            self._bury()
        self.close()

    def close(self) -> None:
        """Let go: of the lease on what was committed, of an upload that may go on later; anything else is dropped."""
        if self._fd >= 0 and not UPLOAD.fullmatch(self.name):
            self._bury()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._lease is not None:
            with contextlib.suppress(OSError):
                self._lease.touch()
            release(self._lease)
            self._lease = None


def entry_path(root: str, digest: Digest, form: str = "blobs") -> str:
    """The directory of a blob."""
    return os.path.join(root, form, digest.algorithm, digest.hex[:2], digest.hex)


def hold(directory: str) -> OpenFile | None:
    """A shared lease on a blob that is whole and verified, to be released; None when there is no such blob."""
    try:
        lease = OwnFile(os.path.join(directory, "lease"), os.O_RDWR)
    except OSError as e:
        check_descriptors(e)
        return None
    try:
        lease.flock(fcntl.LOCK_SH | fcntl.LOCK_NB)
        there, ours = os.stat(os.path.join(directory, "lease")), lease.stat()
        if (there.st_ino, there.st_dev) == (ours.st_ino, ours.st_dev) and os.path.exists(
            os.path.join(directory, "sealed")
        ):
            lease.touch()  # an evictor that has already chosen it sees that it was used since
            return lease
    except OSError:
        pass  # it is being evicted
    release(lease)
    return None


def note_of(root: str, name: str) -> Any:
    """What the maker of an upload wants to know again; None when there is no such upload, or it is damaged."""
    if not UPLOAD.fullmatch(name):
        return None
    try:
        with open(open_file(os.path.join(root, "ingest", name, "note")), "rb") as f:
            return own_json(f.read())
    except ValueError:
        return None
    except OSError as e:
        check_descriptors(e)
        return None


def size_of(root: str, name: str) -> int | None:
    """Bytes of an upload so far, whoever works on it; None when there is none."""
    try:
        return os.lstat(os.path.join(root, "ingest", name, "rest")).st_size if UPLOAD.fullmatch(name) else None
    except OSError:
        return None


def _written(directory: str) -> float:
    """When bytes of an upload last came, in seconds since the epoch; a crash may have left it without a file for
    them.
    """
    try:
        return os.stat(os.path.join(directory, "rest")).st_mtime
    except FileNotFoundError:
        return os.stat(directory).st_mtime


class Upload(NamedTuple):
    """An upload that may go on: its note, when it began and when its last bytes came, in seconds since the epoch."""

    note: Any
    began: float
    written: float


def uploads(root: str) -> Iterator[Upload]:
    """Every upload that may go on."""
    for name in _names(os.path.join(root, "ingest")):
        note = note_of(root, name)
        directory = os.path.join(root, "ingest", name)
        with contextlib.suppress(OSError):
            if note is not None:
                yield Upload(note, os.stat(os.path.join(directory, "note")).st_mtime, _written(directory))


def starved_bytes(root: str) -> int:
    """Bytes of the uploads that gave way: what ``drop_starved`` frees if nobody goes on with one of them meanwhile."""
    total = 0
    for name in _names(os.path.join(root, "ingest")):
        with contextlib.suppress(OSError):
            if (
                UPLOAD.fullmatch(name)
                and (found := os.stat(os.path.join(root, "ingest", name, "rest"))).st_mtime == STARVED
            ):
                total += found.st_blocks * 512
    return total


def drop_starved(root: str) -> int:
    """Unlink the uploads that gave way (``Ingest.give_way``) and that nobody goes on with since; how many."""
    dropped = 0
    for name in _names(os.path.join(root, "ingest")):
        directory = os.path.join(root, "ingest", name)
        try:
            if not UPLOAD.fullmatch(name) or os.stat(os.path.join(directory, "rest")).st_mtime != STARVED:
                continue
            lease = OwnFile(os.path.join(directory, "lease"), os.O_RDWR)
        except OSError:
            continue
        try:
            dropped += exclusive(lease) and remove_entry(root, directory)
        finally:
            release(lease)
    return dropped


def sweep(root: str, now: float | None = None) -> None:
    """Unlink what nobody goes on with: ``new`` ingests whose process is gone, uploads that were abandoned a week
    ago.
    """
    now = time.time() if now is None else now
    ingest = os.path.join(root, "ingest")
    for name in _names(ingest):
        directory = os.path.join(ingest, name)
        try:
            if UPLOAD.fullmatch(name) and now - _written(directory) < ABANDONED:
                continue
            if not name.startswith(("new-", "upload-")) or now - os.stat(directory).st_mtime < 1.0:
                continue  # not ours; or just being made, and not leased yet
            lease = OwnFile(os.path.join(directory, "lease"), os.O_RDWR | os.O_CREAT)
        except OSError:
            continue
        try:
            if exclusive(lease):
                remove_entry(root, directory)
        finally:
            release(lease)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """An OSError as the store's error."""
    try:
        yield
    except OSError as e:
        if e.errno in NO_SPACE:
            raise StoreFull(f"{what} cannot be kept: no space left on the disk of the store")
        raise StoreError(f"{what} cannot be kept: {e.strerror}")
