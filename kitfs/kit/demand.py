"""Count how many bytes programs read of each layer of a tree, and whether a read waits for bytes.

Threading: any thread may call every method. The counts may be slightly wrong, because a read takes no lock; no decision
needs exact numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from kitfs.errors import KitfsError, WhenReady, WouldBlock
from kitfs.kit.node import Node

Watcher = Callable[[Node, int, int], None]  # called with a file, an offset, and the number of bytes read there


class Wait(NamedTuple):
    """A read that waits for bytes of the layer ``digest`` since the monotonic time ``since``."""

    digest: str
    since: float


class Demand:
    """The demand of the readers of one tree.

    ``asked`` maps the digest of a layer to the number of bytes that were read of the layer. Bytes that are read twice
    are counted twice.
    """

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}
        self._waiting: dict[object, Wait] = {}  # the reads that wait for bytes
        self._watchers: tuple[Watcher, ...] = ()
        self._waited = float("-inf")  # the monotonic time at which a read last stopped waiting

    def watch(self, watcher: Watcher) -> None:
        """Register a function that is called for each successful read, on the thread of its reader."""
        self._watchers = (*self._watchers, watcher)

    def done(self, node: Node, offset: int, size: int) -> None:
        """Record that a program has read ``size`` bytes of a file at ``offset``."""
        for watcher in self._watchers:
            watcher(node, offset, size)

    def read(self, digest: str, pread: Callable[[bool], bytes], *, wait: bool) -> bytes:
        """Read bytes of a layer: call ``pread(False)``, and if that raises WouldBlock, call ``pread(True)``.

        If ``wait`` is False, ``pread(True)`` is not called, and WouldBlock is raised.
        """
        try:
            data = pread(False)
        except WouldBlock as e:
            if not wait:
                raise e if e.when_ready is None else WouldBlock(partial(self._parked, digest, e.when_ready))
            key = self._begin(digest)
            try:
                data = pread(True)
            finally:
                self._end(key)
        self.asked[digest] = self.asked.get(digest, 0) + len(data)
        return data

    def _parked(self, digest: str, when_ready: WhenReady, ready: Callable[[KitfsError | None], None]) -> bool:
        """Call ``when_ready`` of a WouldBlock, and count the reader as waiting until ``ready`` is called."""

        key = self._begin(digest)

        def counted(error: KitfsError | None) -> None:
            self._end(key)
            ready(error)

        if when_ready(counted):
            return True
        self._waiting.pop(key)
        return False

    def _begin(self, digest: str) -> object:
        key = object()
        self._waiting[key] = Wait(digest, time.monotonic())
        return key

    def _end(self, key: object) -> None:
        del self._waiting[key]
        self._waited = time.monotonic()

    def waits(self) -> list[Wait]:
        """Return the reads that wait for bytes now."""
        return list(self._waiting.values())

    def is_waiting(self, quiet: float) -> bool:
        """Return whether a read waits for bytes now, or has waited for bytes in the last ``quiet`` seconds."""
        return bool(self._waiting) or time.monotonic() - self._waited < quiet
