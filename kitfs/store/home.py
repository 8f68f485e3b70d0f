"""The seam between a blob and its store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

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

    def later(self, task: Callable[[], object], /) -> None: ...

    def forget_index(self, digest: str, /) -> None: ...

    def failed(self, digest: Digest, /) -> None: ...
