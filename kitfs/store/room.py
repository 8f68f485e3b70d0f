"""Decide whether the store accepts more bytes. The store has a size limit, and a share of the disk must stay free.

The limits are checked in the background after every ``CHECK_EVERY`` stored bytes, or after a sixteenth of the free room
if that is less: other processes use the same room, and each of them sees what the others have stored at its next check.
When a process has used the room that it knew of, it checks the limits before it stores more. So the limits are exceeded
by at most one write per stream. If no blob can be evicted, the store is full: bytes that are read are not stored
(read-through), and the limits are checked again every ``recheck`` seconds. Threading: any thread may call every method.
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
CHECK_OFTEN: Final = 128 << 10  # bytes stored between two checks if there is little room
SHARE: Final = 16  # a process stores this share of the free room before it looks what other processes have stored
EXTRA: Final = 4 << 20  # bytes of room that are made when a limit is reached; at most 1/16 of the size limit
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
        self._checking = threading.Lock()
        self._written = 0  # bytes that this process has stored
        self._measured = 0  # the part of ``_written`` that the last check has seen
        self._free: int | None = None  # the room at the last check in bytes; None before the first check
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
        """Return whether the store accepts more bytes. A full store is checked again every ``recheck`` seconds.

        If the room that was free at the last check is used up, the limits are checked first.
        """
        if self._full and time.monotonic() - self._checked > self._recheck:
            self._check()
        elif self._is_used_up():
            with self._checking:  # only one thread checks
                if self._is_used_up():
                    self._check(room=EXTRA if self._size_limit is None else min(EXTRA, self._size_limit // 16))
        return not self._full

    def _is_used_up(self) -> bool:
        return not self._full and self._free is not None and self._written - self._measured >= self._free

    def _check(self, *, room: int = 0) -> None:
        try:
            self.evict(room=room)
        except (OSError, StoreError):  # the store is missing or damaged, but reads must not fail because of it
            with self._lock:
                self._checked, self._free = time.monotonic(), None

    def headroom(self) -> int:
        """Return how many bytes can be stored before blobs must be evicted. Raises OSError and StoreError."""
        used = 0 if self._size_limit is None else self._used()
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
        """Count stored bytes. From time to time, the housekeeping thread checks the limits."""
        with self._lock:
            before, self._written = self._written, self._written + size
            step = max(CHECK_OFTEN, min(CHECK_EVERY, (self._free or 0) // SHARE))
            due = before // step != self._written // step
        if due:
            self._later(self.evict)

    def settle(self) -> None:
        """Evict blobs if the size limit is exceeded. A process calls this at its end, when it uses no blob any more."""
        if self._size_limit is None or not (self._written or self._full):
            return
        try:
            if self._used() > self._size_limit:
                self.evict()
        except (OSError, StoreError):
            pass  # the store is missing or damaged

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

    def evict(self, *, at_least: int = 0, room: int = 0) -> int:
        """Evict blobs until the store is ``room`` bytes below its limits and ``at_least`` bytes are freed.

        Returns the freed bytes. Less is freed if too many blobs are leased or pinned. Raises OSError and StoreError.
        """
        stored = self._written
        entries = list(self._entries(self._root))
        pinned = (
            self._pins.digests()
        )  # the pins are read after the walk: a blob that is pinned later is also leased later, which ``remove`` sees
        found = [e for e in entries if e.digest not in pinned]
        over = self._over(sum(e.size for e in found))
        surplus = max(over + room, at_least, 0)
        layers, small = evict.victims(found, pinned)
        freed = self._remove(layers, surplus)
        if surplus - freed <= sum(e.size for e in small):
            freed += self._remove(small, surplus - freed)
        with self._lock:
            self._free = max(0, freed - over)
            self._full = max(over, at_least) > freed or (room > 0 and self._free < min(room, CHECK_OFTEN))
            self._checked = time.monotonic()
            self._measured = max(self._measured, stored)
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
        disk = self._disk_usage(self._root)
        free = disk.free - int(disk.total * self._free_share)
        if self._size_limit is None or digest in self._pins.digests():
            return free
        return min(free, self._size_limit - self._used())

    def _used(self) -> int:
        """Return how many bytes on disk are taken by the blobs that are not pinned."""
        pinned = self._pins.digests()
        return sum(e.size for e in self._entries(self._root) if e.digest not in pinned)

    def _over(self, used: int) -> int:
        """Return by how many bytes the limits are exceeded. If there is room, the number is negative."""
        disk = self._disk_usage(self._root)
        over_share = int(disk.total * self._free_share) - disk.free
        return over_share if self._size_limit is None else max(over_share, used - self._size_limit)
