"""Free disk space in a served store when a push finds the disk full.

Threading: any thread may call every method.
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

COLLECT_EVERY: Final = 60.0  # seconds between two collections on a full disk, unless something was removed since

T = TypeVar("T")


class ServerRoom:
    """A manager of the free space of a served store. Blobs of removed kits stay for ``min_age`` seconds."""

    def __init__(self, store: Store, *, log: logging.Logger, min_age: float, collect_every: float) -> None:
        self._store = store
        self._log = log
        self._min_age = min_age
        self._collect_every = collect_every
        self._clock = SteadyClock()
        self._collecting = threading.Lock()
        self._collect_next = 0.0  # the earliest time of the next collection (time.monotonic())
        self._removed = False  # whether something was removed since the last collection

    def note_removal(self) -> None:
        """Record that a blob or manifest was removed, so that a collection may find unused blobs."""
        self._removed = True

    def make(self) -> bool:
        """Delete unused bytes because the disk is full. Returns whether any space was freed.

        Blobs that no repository contains are deleted first, then blobs of removed kits, and last the parts of uploads
        that failed for lack of space. The caller must not hold the lock of a repository.
        """
        return self._store.room.make() or self._collect() or self._store.ingests.drop_starved() > 0

    def expect(self, size: int) -> None:
        """Free space for the last request body of an upload. The body has ``size`` bytes.

        The parts of uploads that failed for lack of space count as free space, because ``make`` can delete them later.
        This method does not delete them. Raises StoreFull if there is not enough space.
        """
        while size > _free_bytes(self._store.root) + self._store.ingests.starved_bytes():
            if not self._store.room.make() and not self._collect():
                raise StoreFull(f"the disk of the store has no space for a body of {size} bytes")

    def retry(self, do: Callable[[], T]) -> T:
        """Call ``do``, which writes to the disk, and return its result.

        If the disk is full, space is freed and ``do`` is called again. Raises StoreFull if no more space can be freed,
        and the errors of ``do``.
        """
        while True:
            try:
                return do()
            except StoreFull:
                if not self.make():
                    raise

    def _collect(self) -> bool:
        """Collect garbage.

        Does nothing if the last collection was less than COLLECT_EVERY seconds ago and nothing was removed since.
        Returns whether any space was freed.
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
            return found.blobs > 0 or self._store.room.make()  # a blob without links may be deleted at any age


def _free_bytes(root: str) -> int:
    """Return how many bytes of a disk are free, including the bytes that are reserved for root.

    No user can write a body with more bytes.
    """
    found = os.statvfs(root)
    return found.f_bfree * found.f_frsize
