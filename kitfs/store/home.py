"""Define the interface through which blobs call their store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from kitfs.buffers import Buffers
from kitfs.metrics import Counters
from kitfs.oci.names import Digest
from kitfs.store.disk import Disk
from kitfs.store.pins import Pins
from kitfs.store.room import Room


class Home(Protocol):
    """The methods of a store that its blobs call."""

    @property
    def root(self) -> str: ...

    @property
    def log(self) -> logging.Logger: ...

    @property
    def counters(self) -> Counters: ...

    @property
    def pins(self) -> Pins: ...

    @property
    def room(self) -> Room: ...

    @property
    def disk(self) -> Disk: ...

    @property
    def buffers(self) -> Buffers: ...

    @property
    def patience(self) -> float:
        """Return how many seconds a reader waits for a chunk that another process is fetching."""
        ...

    def prove(self, task: Callable[[], object], /) -> None:
        """Run a task on the thread that computes digests."""
        ...

    def later(self, task: Callable[[], object], /) -> None: ...

    def make_way(self, blob: Any, /) -> None:
        """Ask the store to evict blobs that nobody reads, because it has no room for ``blob``."""
        ...

    def failed(self, digest: Digest, /) -> None: ...
