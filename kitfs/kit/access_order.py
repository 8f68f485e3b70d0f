"""Record the order in which programs first read the bytes of a mounted kit, and count bytes that were fetched ahead.

The order is recorded in units of 256 KiB of a layer's blob, as at most ``MAX_RUNS`` runs (number of the layer, first
unit, number of units). The order is stored in the catalog under the digest of the manifest, so that the next mount of
the same kit can fetch the same bytes in the same order. The stored order is a hint and may be lost:

    {"version": 1, "layers": [digest, …], "runs": [[layer, first unit, units], …]}

Reads of compressed layers are not recorded, because every byte of such a layer is needed for its index. Threading: any
thread may call every method; a read of units that were read before takes no lock.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kitfs.content import Hints
from kitfs.kit.node import Node
from kitfs.layers.read import spans

VERSION: Final = 1
UNIT: Final = 256 << 10  # bytes
MAX_RUNS: Final = 4096  # runs of an order, which take 60 KiB of JSON
OPEN: Final = 16  # runs that may be extended, one for each program that reads at the same time
KITS: Final = 256  # kits whose order is stored
KIND: Final = "order"  # the kind of the hints in the catalog
RECENT: Final = ("orders", "recent")  # the hint that lists the digests of these kits, the latest first
SHORT: Final = 8  # an order does not replace an earlier order that has more than SHORT times as many units


class Run(NamedTuple):
    """Adjacent units of a layer, which programs have read in ascending order."""

    digest: str
    first: int
    units: int


class AccessOrder:
    """The units of a kit's layers that programs have read, in order.

    ``sizes`` maps the digest of each layer to the size of its blob in bytes.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.used = 0  # bytes that were fetched ahead and then read
        self._touched = {digest: bytearray(-(-size // UNIT)) for digest, size in sizes.items()}
        self._ahead: dict[tuple[str, int], int] = {}  # (layer, unit) → bytes that were fetched ahead
        self._runs: list[list[Any]] = []  # [digest, first unit, units]
        self._open: list[list[Any]] = []  # the runs that were last extended, the latest first
        self._lock = threading.Lock()

    def read(self, node: Node, offset: int, size: int) -> bool:
        """Record that a program has read bytes of a file.

        Returns whether one of the units that contain these bytes was read for the first time.
        """
        touched = None if node.layer is None else self._touched.get(node.layer.digest)
        if touched is None or node.layer is None:
            return False
        is_new = False
        for at, length in spans(node.member, offset, size):
            for unit in range(at // UNIT, min((at + length - 1) // UNIT + 1, len(touched))):
                if not touched[unit]:
                    self._touch(node.layer.digest, touched, unit)
                    is_new = True
        return is_new

    def _touch(self, digest: str, touched: bytearray, unit: int) -> None:
        with self._lock:
            if touched[unit]:
                return
            touched[unit] = 1
            self.used += self._ahead.pop((digest, unit), 0)
            run = next((one for one in self._open if one[0] == digest and one[1] + one[2] == unit), None)
            if run is not None:
                self._open.remove(run)
                run[2] += 1
            elif len(self._runs) < MAX_RUNS:
                run = [digest, unit, 1]
                self._runs.append(run)
            else:
                return
            self._open = [run, *self._open[: OPEN - 1]]

    def fetched_ahead(self, digest: str, at: int, size: int) -> None:
        """Record that bytes of a layer were fetched before a program has read them."""
        with self._lock:
            stop = at + size
            while at < stop:
                unit = at // UNIT
                end = min(stop, (unit + 1) * UNIT)
                if not self._touched[digest][unit]:
                    self._ahead[digest, unit] = self._ahead.get((digest, unit), 0) + end - at
                at = end

    @property
    def units(self) -> int:
        """Return how many units were recorded."""
        with self._lock:
            return sum(units for _, _, units in self._runs)

    def merged(self, before: Sequence[Run], unseen: Collection[str]) -> list[Run]:
        """Return the order to store, merged from this order and the stored order ``before``.

        A run of ``before`` stays if this mount does not show the layer of the run, or if the layer is in ``unseen``.
        (The kernel may have read such layers without a request to the mount.) If programs have read little of the kit,
        the first half of the other runs stays, too. So a short look at a kit does not erase the order of a complete
        load, but an order that programs no longer follow disappears.
        """
        with self._lock:
            runs = [Run(*run) for run in self._runs]
        seen = sum(run.units for run in runs)
        if not seen:
            return list(before)
        missing = [part for run in before for part in self._untouched(run)]
        half = len(missing) // 2 if seen * SHORT < sum(run.units for run in before) else 0
        hidden = {run.digest for run in before if run.digest not in self._touched} | set(unseen)
        kept = missing[:half] + [run for run in missing[half:] if run.digest in hidden]
        return [*runs, *kept][:MAX_RUNS]

    def _untouched(self, run: Run) -> Iterator[Run]:
        """Yield the parts of a run that no program has read."""
        touched = self._touched.get(run.digest)
        if touched is None:
            yield run
            return
        first = run.first
        stop = min(run.first + run.units, len(touched))
        while first < stop:
            end = touched.find(1, first, stop)
            end = stop if end < 0 else end
            if end > first:
                yield Run(run.digest, first, end - first)
            first = touched.find(0, end, stop)
            if first < 0:
                return


def save(hints: Hints, digest: str, runs: Sequence[Run]) -> None:
    """Store the order of a kit under the digest of its manifest. Only the ``KITS`` most recent orders are kept."""
    hints.set((KIND, digest), _to_json(runs))
    recent = hints.get(RECENT)
    known = [one for one in recent if isinstance(one, str) and one != digest] if isinstance(recent, list) else []
    hints.set(RECENT, [digest, *known[: KITS - 1]])
    for old in known[KITS - 1 :]:
        hints.delete((KIND, old))


def load(hints: Hints, digest: str) -> list[Run]:
    """Return the stored order of a kit; an empty list if it does not exist or is damaged."""
    value = hints.get((KIND, digest))
    try:
        if value["version"] != VERSION:
            return []
        layers = [str(digest) for digest in value["layers"]]
        runs = [Run(layers[layer], int(first), int(units)) for layer, first, units in value["runs"][:MAX_RUNS]]
    except (TypeError, KeyError, ValueError, IndexError):
        return []
    return [run for run in runs if run.first >= 0 and run.units > 0]


def _to_json(runs: Sequence[Run]) -> dict[str, Any]:
    digests = list(dict.fromkeys(run.digest for run in runs))
    numbers = {digest: number for number, digest in enumerate(digests)}
    return {"version": VERSION, "layers": digests, "runs": [[numbers[r.digest], r.first, r.units] for r in runs]}
