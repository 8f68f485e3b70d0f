"""Every metric of kitfs in one table, and the counters of one process.

Not an exporter: something that speaks Prometheus reads ``METRICS`` and ``Counters.snapshot()``. Threading: ``add``
and ``get`` take a lock; they are called per request or per fetched piece, never on the warm read path.
"""

from __future__ import annotations

import threading
from typing import Final, NamedTuple


class Metric(NamedTuple):
    """One row of the table: ``kind`` is "counter" or "gauge", ``labels`` are label names."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


METRICS: Final = {
    m.name: m
    for m in (
        Metric(
            "bytes_fetched", "counter", "Response-body bytes received from registries, manifests and configs included."
        ),
        Metric("requests", "counter", "HTTP requests sent to registries, retries and token requests included."),
        Metric("retries", "counter", "HTTP requests that were sent again after a failure."),
        Metric("errors", "counter", "FUSE requests that were answered with EIO."),
        Metric("integrity_failures", "counter", "Blobs dropped because their bytes did not have their digest."),
        Metric("read_through", "counter", "Bytes served without being stored, because the store could not take them."),
        Metric("evicted_blobs", "counter", "Blobs evicted from the store."),
        Metric("evicted_bytes", "counter", "Bytes freed by eviction."),
        Metric("skipped_entries", "counter", "Entries of layers that were left out of the tree."),
        Metric("fuse_requests", "counter", "FUSE requests taken, by operation.", ("operation",)),
        Metric("bugs", "counter", "Exceptions that no part of kitfs expected."),
    )
}


class Counters:
    """Thread-safe values for the rows of ``METRICS``; an unknown name is a KeyError at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, tuple[str, ...]], int] = {}

    def add(self, name: str, amount: int = 1, *labels: str) -> None:
        """Add ``amount`` to the metric ``name``; ``labels`` are values in the order of the table."""
        if len(labels) != len(METRICS[name].labels):
            raise ValueError(f"{name} takes labels {METRICS[name].labels}, not {labels}")
        with self._lock:
            self._values[name, labels] = self._values.get((name, labels), 0) + amount

    def get(self, name: str, *labels: str) -> int:
        """The value of one metric; 0 when nothing was counted yet."""
        METRICS[name]
        with self._lock:
            return self._values.get((name, labels), 0)

    def snapshot(self) -> dict[tuple[str, tuple[str, ...]], int]:
        """A copy of every value, keyed by (name, label values)."""
        with self._lock:
            return dict(self._values)
