"""The seam between a blob and its store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

from kitfs.metrics import Counters
from kitfs.oci.names import Digest
from kitfs.store.pins import Pins
from kitfs.store.room import Room


class Home(Protocol):
    """What a blob needs of its store."""

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
    def patience(self) -> float:
        """Seconds that a reader waits for a chunk that another process is fetching."""
        ...

    def prove(self, task: Callable[[], object], /) -> None:
        """Run a task on the thread that computes digests."""
        ...

    def later(self, task: Callable[[], object], /) -> None: ...

    def make_way(self, blob: Any, /) -> None:
        """Have blobs that nobody reads evicted for the sake of ``blob``, which found the store full."""
        ...

    def failed(self, digest: Digest, /) -> None: ...
