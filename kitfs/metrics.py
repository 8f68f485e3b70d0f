"""Every counter of kitfs in one table, and the values of one process.

An exporter, for Prometheus for example, reads ``METRICS`` and ``Counters.snapshot()``. Threading: ``add`` and ``get``
take a lock; they are called per request or per fetched piece, never on the warm read path.
"""

from __future__ import annotations

import threading
from typing import Final, NamedTuple


class Metric(NamedTuple):
    """One row of the table: a value that only grows; ``labels`` are label names."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


METRICS: Final = {
    m.name: m
    for m in (
        Metric("bytes_fetched", "Bytes of response bodies received from registries, manifests and configs included."),
        Metric("requests", "HTTP requests sent to registries, retries and token requests included."),
        Metric("retries", "HTTP requests that were retried after a failure."),
        Metric("errors", "FUSE requests that failed with EIO."),
        Metric("integrity_failures", "Blobs dropped because their bytes did not have their digest."),
        Metric("read_through", "Bytes served without being stored because the store was full."),
        Metric("evicted_blobs", "Blobs evicted from the store."),
        Metric("evicted_bytes", "Bytes freed by eviction."),
        Metric("skipped_entries", "Entries of layers that were left out of the tree."),
        Metric("fuse_requests", "FUSE requests received, by operation.", ("operation",)),
        Metric("bugs", "Exceptions that no part of kitfs expected."),
    )
}


class Counters:
    """Thread-safe values for the rows of ``METRICS``. An unknown name raises KeyError."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, tuple[str, ...]], int] = {}

    def add(self, name: str, amount: int = 1, *labels: str) -> None:
        """Add ``amount`` to a metric; ``labels`` are values in the order of the table. Raises ValueError for a wrong
        number of labels.
        """
        if len(labels) != len(METRICS[name].labels):
            raise ValueError(f"{name} takes labels {METRICS[name].labels}, not {labels}")
        with self._lock:
            self._values[name, labels] = self._values.get((name, labels), 0) + amount

    def get(self, name: str, *labels: str) -> int:
        """Return the value of a metric; 0 when it was never counted."""
        METRICS[name]
        with self._lock:
            return self._values.get((name, labels), 0)

    def snapshot(self) -> dict[tuple[str, tuple[str, ...]], int]:
        """Return a copy of every value, keyed by (name, label values)."""
        with self._lock:
            return dict(self._values)
