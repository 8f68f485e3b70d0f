"""Define all counters of kitfs in a table, and count their values in this process.

An exporter, such as one for Prometheus, reads ``METRICS`` and ``Counters.snapshot()``. Threading: any thread may count.
``add`` and ``get`` take a lock, so they are called for each request or fetched piece, but not for reads from the store.
"""

from __future__ import annotations

import threading
from typing import Final, NamedTuple


class Metric(NamedTuple):
    """A row of the table: a counter that only grows. ``labels`` are the names of its labels."""

    name: str
    help: str
    labels: tuple[str, ...] = ()


METRICS: Final = {
    m.name: m
    for m in (
        Metric("bytes_fetched", "Bytes of response bodies received from registries, including manifests and configs."),
        Metric("requests", "HTTP requests sent to registries, including retries and token requests."),
        Metric("retries", "HTTP requests that were retried after a failure."),
        Metric("errors", "FUSE requests that failed with EIO."),
        Metric("integrity_failures", "Blobs dropped because their bytes had the wrong digest."),
        Metric("read_through", "Bytes served without being stored because the store was full or its disk failed."),
        Metric("evicted_blobs", "Blobs evicted from the store."),
        Metric("evicted_bytes", "Bytes freed by eviction."),
        Metric("skipped_entries", "Entries of layers that were left out of the tree."),
        Metric("fuse_requests", "FUSE requests received, by operation.", ("operation",)),
        Metric("bugs", "Unexpected exceptions, which are bugs in kitfs."),
    )
}


class Counters:
    """The values of the counters in ``METRICS``. An unknown name raises KeyError."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, tuple[str, ...]], int] = {}

    def add(self, name: str, amount: int = 1, *labels: str) -> None:
        """Add ``amount`` to a metric. ``labels`` are the values of its labels, in the order of the table.

        Raises ValueError for a wrong number of labels.
        """
        if len(labels) != len(METRICS[name].labels):
            raise ValueError(f"{name} takes labels {METRICS[name].labels}, not {labels}")
        with self._lock:
            self._values[name, labels] = self._values.get((name, labels), 0) + amount

    def get(self, name: str, *labels: str) -> int:
        """Return the value of a metric, or 0 if it was never counted."""
        METRICS[name]
        with self._lock:
            return self._values.get((name, labels), 0)

    def snapshot(self) -> dict[tuple[str, tuple[str, ...]], int]:
        """Return a copy of every value, keyed by (name, label values)."""
        with self._lock:
            return dict(self._values)
