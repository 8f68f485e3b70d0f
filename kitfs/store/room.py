"""Whether the store takes more bytes, by its size limit and by the free space that the disk must keep.

The limits are checked after every ``CHECK_EVERY`` stored bytes, and blobs are evicted to keep them. When nothing can be
evicted the store is full: then reads are served without being stored, and the limits are checked again every
``recheck`` seconds. Threading: every method from any thread.
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
AT_LEAST: Final = 64 << 20  # bytes that are freed at once when the disk is full
RECHECK: Final = 5.0  # seconds


class DiskUsage(Protocol):
    """What ``shutil.disk_usage`` returns, in bytes."""

    @property
    def total(self) -> int: ...

    @property
    def free(self) -> int: ...


class Room:
    """The room in the store at ``root``.

    ``size_limit`` bytes may be used by blobs that are not pinned (None: no limit), and ``free_share`` of the disk is
    to stay free. ``later`` runs a task on the store's housekeeping thread. ``entries`` lists the blobs and
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
        """Whether the store was full when its limits were last checked."""
        return self._full

    @property
    def size_limit(self) -> int | None:
        """Bytes that blobs which are not pinned may use; None without a limit."""
        return self._size_limit

    def available(self) -> bool:
        """Tell whether the store takes more bytes; a full store is checked again every ``recheck`` seconds."""
        if self._full and time.monotonic() - self._checked > self._recheck:
            try:
                self.evict()
            except (OSError, StoreError):
                self._checked = time.monotonic()  # the store is gone or damaged, and no read fails because of that
        return not self._full

    def headroom(self) -> int:
        """Return the bytes that can be stored before a limit is reached and blobs are evicted. Raises OSError,
        StoreError.
        """
        pinned = self._pins.digests()
        used = (
            0 if self._size_limit is None else sum(e.size for e in self._entries(self._root) if e.digest not in pinned)
        )
        disk = self._disk_usage(self._root)
        free = disk.free - int(disk.total * self._free_share)
        return max(0, free if self._size_limit is None else min(free, self._size_limit - used))

    def make(self) -> bool:
        """Evict unpinned blobs because the disk is full. Returns whether any space was freed."""
        try:
            return self.evict(at_least=AT_LEAST) > 0
        except (OSError, StoreError):
            return False

    def wrote(self, size: int) -> None:
        """Count stored bytes; the limits are checked on the housekeeping thread every ``CHECK_EVERY`` bytes."""
        with self._lock:
            self._since_check += size
            step = CHECK_EVERY if self._size_limit is None else min(CHECK_EVERY, max(1 << 20, self._size_limit // 16))
            due = self._since_check >= step
            if due:
                self._since_check = 0
        if due:
            self._later(self.evict)

    def read_through(self, size: int) -> None:
        """Count bytes that were served without being stored, and log it the first time."""
        self._counters.add("read_through", size)
        with self._lock:
            first, self._said_full = not self._said_full, True
            self._full, self._checked = True, time.monotonic()
        if first:
            self._log.warning(
                "the cache in %s is full and nothing can be evicted: reads are served without caching them", self._root
            )

    def evict(self, *, at_least: int = 0) -> int:
        """Bring the store below its limits and free ``at_least`` bytes, as far as leases and pins allow.

        Returns the bytes that were freed. Raises OSError, StoreError.
        """
        entries = list(self._entries(self._root))
        pinned = (
            self._pins.digests()
        )  # after the walk: a blob that is pinned later is leased later, and ``remove`` sees it
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
        """Remove entries in order until ``surplus`` bytes are free. Returns the bytes that were freed."""
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
        """Return how many bytes of the blob ``digest`` the store takes before it must evict another blob; less than 0
        when it is over its limits. Raises OSError, StoreError.
        """
        pinned = self._pins.digests()
        disk = self._disk_usage(self._root)
        free = disk.free - int(disk.total * self._free_share)
        if self._size_limit is None or digest in pinned:
            return free
        used = sum(e.size for e in self._entries(self._root) if e.digest not in pinned)
        return min(free, self._size_limit - used)

    def _surplus(self, used: int) -> int:
        """Return the bytes by which the limits are exceeded."""
        disk = self._disk_usage(self._root)
        over_share = int(disk.total * self._free_share) - disk.free
        over_limit = 0 if self._size_limit is None else used - self._size_limit
        return max(over_share, over_limit, 0)
