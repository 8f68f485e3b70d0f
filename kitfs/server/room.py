"""Room on the disk of a served store: what may be freed when a push finds the disk full, and in which order.

Threading: every method from any thread.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from kitfs.errors import StoreError, StoreFull
from kitfs.server.collect import SteadyClock, collect
from kitfs.store.store import Store

COLLECT_EVERY: Final = 60.0  # seconds between two collections for want of room, unless something was removed since

T = TypeVar("T")


class ServerRoom:
    """The room in a served store. Blobs of removed kits are freed when they are ``min_age`` seconds old."""

    def __init__(self, store: Store, *, log: logging.Logger, min_age: float, collect_every: float) -> None:
        self._store = store
        self._log = log
        self._min_age = min_age
        self._collect_every = collect_every
        self._clock = SteadyClock()
        self._collecting = threading.Lock()
        self._collect_next = 0.0  # of time.monotonic()
        self._removed = False  # whether something was removed since the last collection

    def note_removal(self) -> None:
        """Note that a blob or manifest was removed, so that the next collection may find something to free."""
        self._removed = True

    def make(self) -> bool:
        """Free what nothing needs, because the disk is full. Returns whether any space was freed.

        Blobs that no repository has are freed first, then those of removed kits, and last the parts of uploads that
        found no room before. Not to be called while a repository is locked.
        """
        return self._store.room.make() or self._collect() or self._store.ingests.drop_starved() > 0

    def expect(self, size: int) -> None:
        """Make room for a body of ``size`` bytes that ends its upload.

        Raises StoreFull when there cannot be that much room; then the parts of other uploads are not dropped in vain.
        """
        while size > _free_bytes(self._store.root) + self._store.ingests.starved_bytes():
            if not self._store.room.make() and not self._collect():
                raise StoreFull(f"no room for a body of {size} bytes on the disk of the store")

    def retry(self, do: Callable[[], T]) -> T:
        """Call ``do``, which writes, and return its result. It is called again each time that room could be made for
        it.

        Raises StoreFull, and what ``do`` raises.
        """
        while True:
            try:
                return do()
            except StoreFull:
                if not self.make():
                    raise

    def _collect(self) -> bool:
        """Collect garbage, unless that was done less than COLLECT_EVERY seconds ago. Returns whether any space was
        freed.
        """
        with self._collecting:
            if time.monotonic() < self._collect_next and not self._removed:
                return False
            self._removed = False
            try:
                found = collect(self._store, log=self._log, min_age=self._min_age, now=self._clock())
                self._store.ingests.sweep()
            except StoreError as e:
                self._log.warning("cannot free space for a push: %s", e)
                return False
            finally:
                self._collect_next = time.monotonic() + self._collect_every
            if found.blobs:
                self._log.info("the disk was full: freed %d blobs of removed kits, %d bytes", found.blobs, found.freed)
            return found.blobs > 0 or self._store.room.make()  # a blob that lost its last link may go at any age


def _free_bytes(root: str) -> int:
    """Return how many bytes of a disk are free, with those that are reserved for root.

    A body that does not fit into these bytes fits for no user.
    """
    found = os.statvfs(root)
    return found.f_bfree * found.f_frsize
