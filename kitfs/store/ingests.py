"""List the ingests of a store, and sweep abandoned ingests. An ingest is a blob that is being written.

    <store>/ingest/new-<uuid>/        an ingest or a scratch directory of one process; swept when its lease is free
    <store>/ingest/upload-<uuid>/     a resumable ingest (``ingest``); swept a week after its last byte

Threading: any thread may call every method.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from kitfs.errors import StoreError
from kitfs.gocompat.json import own_json
from kitfs.openfile import OwnFile
from kitfs.ownership import make_directories, open_file
from kitfs.store.evict import remove_entry
from kitfs.store.ingest import NEW, STARVED, UPLOAD
from kitfs.store.lease import check_descriptors, exclusive, release
from kitfs.store.paths import ingest_path, names_in

ABANDONED: Final = 7 * 86_400.0  # seconds without a byte after which an upload is swept


class Upload(NamedTuple):
    """A resumable ingest, its note, and the times of its start and of its last bytes in seconds since the epoch."""

    note: Any
    began: float
    written: float


class Ingests:
    """The ingests in the store at ``root``."""

    def __init__(self, root: str) -> None:
        self._root = root

    def note(self, name: str) -> Any:
        """Return the note of an upload; None if the upload does not exist or its note is damaged."""
        if not UPLOAD.fullmatch(name):
            return None
        try:
            with open(open_file(os.path.join(self._path(name), "note")), "rb") as f:
                return own_json(f.read())
        except ValueError:
            return None
        except OSError as e:
            check_descriptors(e)
            return None

    def size(self, name: str) -> int | None:
        """Return how many bytes an upload has; None if it does not exist. The number may grow meanwhile."""
        try:
            return os.lstat(os.path.join(self._path(name), "rest")).st_size if UPLOAD.fullmatch(name) else None
        except OSError:
            return None

    def uploads(self) -> Iterator[Upload]:
        """Yield every upload that can be resumed."""
        for name in self._names():
            note = self.note(name)
            directory = self._path(name)
            with contextlib.suppress(OSError):
                if note is not None:
                    began = os.stat(os.path.join(directory, "note")).st_mtime
                    yield Upload(note, began, _last_written(directory))

    def starved_bytes(self) -> int:
        """Return how many bytes on disk the starved uploads take (``Ingest.give_way``).

        ``drop_starved`` frees at most this many bytes.
        """
        total = 0
        for name in self._names():
            with contextlib.suppress(OSError):
                if UPLOAD.fullmatch(name):
                    found = os.stat(os.path.join(self._path(name), "rest"))
                    total += found.st_blocks * 512 if found.st_mtime == STARVED else 0
        return total

    def drop_starved(self) -> int:
        """Unlink the starved uploads (``Ingest.give_way``) that were not resumed, and return their number."""
        dropped = 0
        for name in self._names():
            directory = self._path(name)
            try:
                if not UPLOAD.fullmatch(name) or os.stat(os.path.join(directory, "rest")).st_mtime != STARVED:
                    continue
                lease = OwnFile(os.path.join(directory, "lease"), os.O_RDWR)
            except OSError:
                continue
            try:
                dropped += exclusive(lease) and remove_entry(self._root, directory)
            finally:
                release(lease)
        return dropped

    def sweep(self, now: float | None = None) -> None:
        """Unlink ``new`` ingests whose process has ended, and uploads without a write in the week before ``now``.

        ``now`` is in seconds since the epoch; None means the current time.
        """
        now = time.time() if now is None else now
        for name in self._names():
            directory = self._path(name)
            try:
                if UPLOAD.fullmatch(name) and now - _last_written(directory) < ABANDONED:
                    continue
                if not name.startswith((NEW, "upload-")) or now - os.stat(directory).st_mtime < 1.0:
                    continue  # the directory is not an ingest, or was just made and is not leased yet
                lease = OwnFile(os.path.join(directory, "lease"), os.O_RDWR | os.O_CREAT)
            except OSError:
                continue
            try:
                if exclusive(lease):
                    remove_entry(self._root, directory)
            finally:
                release(lease)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[str]:
        """Yield an empty directory on the store's disk, which is removed at the end of the ``with`` block.

        It is leased like an ingest, so that another process sweeps it if this process is killed. Raises StoreError if
        it cannot be made.
        """
        whole = self._path(f"{NEW}{uuid.uuid4().hex}")
        try:
            make_directories(os.path.join(whole, "tree"))
            lease = OwnFile(os.path.join(whole, "lease"), os.O_RDWR | os.O_CREAT)
        except OSError as e:
            raise StoreError(f"cannot make the directory {whole}: {e.strerror}")
        try:
            exclusive(lease)
            yield os.path.join(whole, "tree")
        finally:
            shutil.rmtree(whole, ignore_errors=True)
            release(lease)

    def _path(self, name: str) -> str:
        return ingest_path(self._root, name)

    def _names(self) -> list[str]:
        return list(names_in(ingest_path(self._root)))


def _last_written(directory: str) -> float:
    """Return when the last bytes of an ingest were written, in seconds since the epoch.

    After a crash, the file of the bytes may be missing; then the time of the directory is returned.
    """
    try:
        return os.stat(os.path.join(directory, "rest")).st_mtime
    except FileNotFoundError:
        return os.stat(directory).st_mtime
