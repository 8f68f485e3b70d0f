"""Report the state of the bytes of an open blob, as its current filling knows it. ``blob.Blob`` is the blob itself."""

from __future__ import annotations

from abc import ABC, abstractmethod

from kitfs.errors import IntegrityError, StoreError, StoreFull
from kitfs.store.decoded import Choice
from kitfs.store.filling import Filling
from kitfs.store.home import Home
from kitfs.store.readahead import MAX_WINDOW


class BlobState(ABC):
    """The state of a blob. ``failure`` is the error of a blob that has failed."""

    failure: IntegrityError | None = None
    _home: Home
    _filling: Filling | None
    _plain: Choice

    @abstractmethod
    def _current(self) -> Filling:
        """Return the filling. If the entry was closed so that it could be evicted, open it again."""

    @property
    def size(self) -> int | None:
        """Return the length in bytes, or None while it is unknown."""
        filling = self._filling
        return self._plain.size if filling is None else filling.size

    @property
    def directory(self) -> str:
        """Return the directory of the blob's entry in the store."""
        return self._current().entry.directory

    @property
    def sealed(self) -> bool:
        """Return whether every byte is stored, verified and durable."""
        return self.failure is None and self._current().sealed

    @property
    def complete(self) -> bool:
        """Return whether every byte of the blob is in the store."""
        return self._current().complete

    @property
    def fetched(self) -> int:
        """Return how many bytes of the blob are in the store."""
        return self._current().fetched

    @property
    def state(self) -> str:
        """Return "absent", "partial", "present" (every byte is stored) or "verified" (it is sealed)."""
        if self.failure is not None:
            return "absent"
        filling = self._current()
        if filling.sealed or filling.complete:
            return "verified" if filling.sealed else "present"
        return "partial" if filling.fetched else "absent"

    @property
    def has_verified_chunks(self) -> bool:
        """Return whether every byte is stored, and a chunk table has verified it, even if the blob is not sealed."""
        filling = self._current()
        return self.failure is None and filling.has_table and filling.complete

    def not_stored(self) -> StoreError:
        """Return the error of a transfer that needs bytes in the store which ``Blob.fetch`` could not store."""
        if (reason := self._home.disk.failure) is not None:
            return StoreError(f"{self} cannot be stored: {reason} (choose another store with --cache-dir)")
        return StoreFull(f"{self}: no space left in the store (free space, or choose another store with --cache-dir)")

    def will_read(self, start: int, most: int = MAX_WINDOW) -> None:
        """Announce a reader that reads everything from ``start`` on; fetch at most ``most`` bytes ahead of it."""
        self._current().will_read(start, most)

    @property
    def streaming(self) -> bool:
        """Return whether a request is completing the blob ahead of a sequential reader (``Fetcher.streaming``)."""
        return self._current().streaming

    @property
    def ranged(self) -> bool:
        """Return whether several parts of the blob may be fetched at the same time."""
        return self._current().ranged
