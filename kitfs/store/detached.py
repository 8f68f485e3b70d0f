"""Open the entry of a blob, or an entry without files if the disk of the store fails or has no room.

An entry without files (``DetachedEntry``) stores nothing, so all bytes of the blob are fetched when they are read.
``Blob.look`` replaces it by an entry on the disk as soon as the disk may be tried again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kitfs.content import Source
from kitfs.errors import StoreError, StoreFull
from kitfs.oci.names import Digest
from kitfs.store.chunk_map import ChunkMap
from kitfs.store.data_file import DataFile
from kitfs.store.disk import FAULTS
from kitfs.store.durable import NO_SPACE
from kitfs.store.entry import OpenEntry
from kitfs.store.home import Home
from kitfs.store.lease import Lease
from kitfs.store.meta import new_meta
from kitfs.store.paths import entry_path


def open_entry(
    home: Home, digest: Digest, form: str, size: int | None, origin: str, name: str, source: Source | None
) -> OpenEntry:
    """Open or make the entry of a blob (``OpenEntry``). If the disk fails, return a DetachedEntry.

    Raises StoreError or StoreFull after other failures, and if there is no ``source`` from which the blob could be read
    without the disk. Raises IntegrityError if a verified blob of this digest has another size.
    """
    try:
        return OpenEntry(home.root, digest, form=form, origin=origin, size=size, name=name)
    except OSError as e:
        if source is not None and (e.errno in NO_SPACE or e.errno in FAULTS):
            if e.errno in NO_SPACE:
                home.room.read_through(0)
            else:
                home.disk.failed(e)
            return DetachedEntry(home, digest, form, size)
        kind = StoreFull if e.errno in NO_SPACE else StoreError
        raise kind(f"cannot open the store's entry of {name}: {(e.strerror or str(e)).lower()}") from e


class NoFile(DataFile):
    """A file without bytes that cannot be written."""

    def __init__(self) -> None:
        pass

    def pread(self, offset: int, size: int) -> bytes:
        return b""

    def read_into(self, view: memoryview, offset: int) -> int:
        return 0

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class NoChunks(ChunkMap):
    """A chunk map in which every chunk is absent. Locks always succeed, because no other process shares it."""

    def __init__(self, chunks: int | None) -> None:
        self.chunks = chunks

    def close(self) -> None:
        pass

    def first_missing(self, first: int, last: int) -> int | None:
        return first if first <= last else None

    def first_present(self, first: int, last: int) -> int | None:
        return None

    def first_known(self, first: int, last: int) -> int | None:
        return None

    def count(self) -> int:
        return 0

    def marks(self) -> bytes:
        return b""

    def _lock(self, kind: int, start: int, length: int) -> bool:
        return True

    def try_lock(self, first: int, count: int) -> bool:
        return True

    def unlock(self, first: int, count: int) -> None:
        pass


class NoLease(Lease):
    """A lease that locks nothing."""

    def __init__(self) -> None:
        pass

    @property
    def condemned(self) -> bool:
        return False

    def alone(self) -> bool:
        return False

    def close(self) -> None:
        pass


class DetachedEntry(OpenEntry):
    """An entry of a blob that is not on the disk and stores no bytes."""

    def __init__(self, home: Home, digest: Digest, form: str, size: int | None) -> None:
        self.directory = self.place = entry_path(home.root, digest, form)
        self.meta: dict[str, Any] = new_meta(size)
        self.chunk = self.meta["chunk"]
        self.sealed = False
        self.detached = True
        self.lease = NoLease()
        self.body = NoFile()
        self.present = NoChunks(None if size is None else -(-size // self.chunk))

    @contextmanager
    def in_place(self) -> Iterator[bool]:
        """Yield False, because the entry is not on the disk."""
        yield False

    def save_marks(self) -> None:
        """Do nothing, because no chunk is stored."""

    def seal(self, size: int, digest: str) -> bool:
        """Return False, because no byte is stored."""
        return False

    def remove(self) -> None:
        """Do nothing, because the entry is not on the disk."""

    def discard(self, *, with_decoded: bool) -> None:
        """Do nothing, because the entry is not on the disk."""
