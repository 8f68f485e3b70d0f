"""Decide whether the store accepts more bytes. The store has a size limit, and a share of the disk must stay free.

The limits are checked after every ``CHECK_EVERY`` stored bytes, and blobs are evicted if a limit is exceeded. If no
blob can be evicted, the store is full: bytes that are read are not stored (read-through), and the limits are checked
again every ``recheck`` seconds. Threading: any thread may call every method.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from kitfs.errors import StoreError
from kitfs.metrics import Counters
from kitfs.store import evict
from kitfs.store.evict import Entry
from kitfs.store.pins import Pins

CHECK_EVERY: Final = 64 << 20  # bytes stored between two checks of the limits
AT_LEAST: Final = 64 << 20  # bytes freed at a time when the disk is full
RECHECK: Final = 5.0  # seconds


class DiskUsage(Protocol):
    """The size and the free space of a disk in bytes, as ``shutil.disk_usage`` returns them."""

    @property
    def total(self) -> int: ...

    @property
    def free(self) -> int: ...


class Room:
    """The limits of the store in ``root``.

    Blobs that are not pinned may use ``size_limit`` bytes (None means no limit), and the share ``free_share`` of the
    disk must stay free. ``later`` runs a task on the store's housekeeping thread. ``entries`` lists the blobs, and
    ``disk_usage`` measures the disk of a directory.
    """

    def __init__(
        self,
        root: str,
        pins: Pins,
        *,
        size_limit: int | None,
        free_share: float,
        counters: Counters,
        log: logging.Logger,
        later: Callable[[Callable[[], object]], None],
        recheck: float = RECHECK,
        entries: Callable[[str], Iterator[Entry]] = evict.entries,
        disk_usage: Callable[[str], DiskUsage] = shutil.disk_usage,
    ) -> None:
        self._root = root
        self._pins = pins
        self._size_limit = size_limit
        self._free_share = free_share
        self._counters = counters
        self._log = log
        self._later = later
        self._recheck = recheck
        self._entries = entries
        self._disk_usage = disk_usage
        self._lock = threading.Lock()
        self._since_check = 0
        self._full = False
        self._said_full = False
        self._checked = 0.0

    @property
    def full(self) -> bool:
        """Return whether the store was full when its limits were last checked."""
        return self._full

    @property
    def size_limit(self) -> int | None:
        """Return how many bytes the blobs that are not pinned may use; None if there is no limit."""
        return self._size_limit

    def available(self) -> bool:
        """Return whether the store accepts more bytes. A full store is checked again every ``recheck`` seconds."""
        if self._full and time.monotonic() - self._checked > self._recheck:
            try:
                self.evict()
            except (OSError, StoreError):
                self._checked = (
                    time.monotonic()
                )  # the store is missing or damaged, but reads must not fail because of it
        return not self._full

    def headroom(self) -> int:
        """Return how many bytes can be stored before blobs must be evicted. Raises OSError and StoreError."""
        pinned = self._pins.digests()
        used = (
            0 if self._size_limit is None else sum(e.size for e in self._entries(self._root) if e.digest not in pinned)
        )
        disk = self._disk_usage(self._root)
        free = disk.free - int(disk.total * self._free_share)
        return max(0, free if self._size_limit is None else min(free, self._size_limit - used))

    def make(self) -> bool:
        """Evict blobs that are not pinned, because the disk is full. Returns whether any space was freed."""
        try:
            return self.evict(at_least=AT_LEAST) > 0
        except (OSError, StoreError):
            return False

    def wrote(self, size: int) -> None:
        """Count stored bytes. After every ``CHECK_EVERY`` bytes, the housekeeping thread checks the limits."""
        with self._lock:
            self._since_check += size
            step = CHECK_EVERY if self._size_limit is None else min(CHECK_EVERY, max(1 << 20, self._size_limit // 16))
            due = self._since_check >= step
            if due:
                self._since_check = 0
        if due:
            self._later(self.evict)

    def read_through(self, size: int) -> None:
        """Count bytes that were served without being stored; log a warning the first time."""
        self._counters.add("read_through", size)
        with self._lock:
            first, self._said_full = not self._said_full, True
            self._full, self._checked = True, time.monotonic()
        if first:
            self._log.warning(
                "the cache in %s is full and nothing can be evicted: reads are served without caching them", self._root
            )

    def evict(self, *, at_least: int = 0) -> int:
        """Evict blobs until the store is below its limits and ``at_least`` bytes are freed, and return the freed bytes.

        Less is freed if too many blobs are leased or pinned. Raises OSError and StoreError.
        """
        entries = list(self._entries(self._root))
        pinned = (
            self._pins.digests()
        )  # the pins are read after the walk: a blob that is pinned later is also leased later, which ``remove`` sees
        found = [e for e in entries if e.digest not in pinned]
        surplus = max(self._surplus(sum(e.size for e in found)), at_least)
        layers, small = evict.victims(found, pinned)
        freed = self._remove(layers, surplus)
        if surplus - freed <= sum(e.size for e in small):
            freed += self._remove(small, surplus - freed)
        with self._lock:
            self._full, self._checked = surplus > freed, time.monotonic()
        return freed

    def _remove(self, entries: Sequence[Entry], surplus: int) -> int:
        """Remove entries in order until ``surplus`` bytes are freed. Returns the number of freed bytes."""
        freed = 0
        for entry in entries:
            if freed >= surplus:
                break
            if evict.remove(self._root, entry):
                freed += entry.size
                self._counters.add("evicted_blobs")
                self._counters.add("evicted_bytes", entry.size)
                self._log.info("evicted %s (%d bytes)", entry.digest, entry.size)
        return freed

    def spare(self, digest: str) -> int:
        """Return how many more bytes of a blob the store can accept before it must evict another blob.

        The result is negative if the store exceeds its limits. Raises OSError and StoreError.
        """
        pinned = self._pins.digests()
        disk = self._disk_usage(self._root)
        free = disk.free - int(disk.total * self._free_share)
        if self._size_limit is None or digest in pinned:
            return free
        used = sum(e.size for e in self._entries(self._root) if e.digest not in pinned)
        return min(free, self._size_limit - used)

    def _surplus(self, used: int) -> int:
        """Return by how many bytes the limits are exceeded."""
        disk = self._disk_usage(self._root)
        over_share = int(disk.total * self._free_share) - disk.free
        over_limit = 0 if self._size_limit is None else used - self._size_limit
        return max(over_share, over_limit, 0)
