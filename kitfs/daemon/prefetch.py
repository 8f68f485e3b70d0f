"""Fetch the bytes that programs will probably read next, before they read them.

Two sources predict these bytes:

- The headers of safetensors and GGUF files (``kit.tensor_files``). After a program has read two tensors in order, the
  next tensors are fetched in the same order.
- The order in which programs read the kit when it was last mounted (``kit.access_order``). When the mount is ready,
  the first ``EAGER`` bytes in this order are fetched. More bytes are fetched only if programs read the fetched bytes.

Bytes are fetched in steps of at most 4 MiB. No step begins while a program waits for bytes, or if the store would have
to evict other blobs. With --fill none, nothing is fetched and no order is recorded.

Threading: each mount has a thread that fetches. Reads are recorded on the threads of the readers. Any thread may read
the status.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from kitfs.daemon.fill import NONE, PAUSE, RETRY, ROOM_EVERY, check_room
from kitfs.errors import KitfsError, StoreFull
from kitfs.formats.tensors import has_tensors
from kitfs.kit import access_order
from kitfs.kit.access_order import UNIT, AccessOrder, Run
from kitfs.kit.completing import STEP
from kitfs.kit.tensor_files import TensorFiles
from kitfs.layers.read import spans

if TYPE_CHECKING:
    from kitfs.kit.kit import Kit
    from kitfs.kit.layer import Layer
    from kitfs.kit.node import Node
    from kitfs.kit.tree import Tree
    from kitfs.store.store import Store

FOLLOWING: Final = 0.005  # seconds without a waiting program before bytes are fetched in the order of a header
REPLAYING: Final = 0.05  # seconds without a waiting program before bytes are fetched in the recorded order
SAVE_EVERY: Final = 30.0  # seconds after which the order of reads is saved again
EAGER: Final = 64 << 20  # bytes fetched in the recorded order before programs have read any of them
FACTOR: Final = 4  # further bytes fetched in the recorded order for each fetched byte that programs have read
READS: Final = 8192  # reads that wait for the thread; older reads are dropped
STEPS: Final = 4096  # completed steps that are remembered


class Step(NamedTuple):
    """Bytes [at, at + size) of a layer that should be fetched."""

    digest: str
    at: int
    size: int


class Prefetcher:
    """A prefetcher for the programs that read ``tree``, the tree of a mounted kit. ``mode`` is the value of --fill."""

    def __init__(self, kit: Kit, store: Store, tree: Tree, *, mode: str, log: logging.Logger) -> None:
        self._layers: Final = {str(layer.digest): layer for layer in kit.layers if not layer.compressed}
        self._digest = str(kit.digest)
        self._store = store
        self._demand = tree.demand
        self._is_on = mode != NONE and bool(self._layers)
        self._log = log
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._reads: deque[tuple[Node, int, int]] = deque(maxlen=READS)
        self._files = TensorFiles(tree, self._header)
        self._file: str | None = None  # the path of the file whose tensors are fetched in order
        self._accesses = AccessOrder({digest: layer.size for digest, layer in self._layers.items()})
        self._before: list[Run] = []
        self._replay = self._recorded()
        self._next_replayed: Step | None = None
        self._done: OrderedDict[Step, None] = OrderedDict()  # the last completed steps
        self._fetched = self._replayed = 0  # fetched bytes; ``_replayed`` counts those in the recorded order
        self._room = 0  # bytes that may be fetched before the free space in the store is checked again
        self._not_before = 0.0
        self._saved, self._saved_units = time.monotonic(), 0

    @property
    def status(self) -> dict[str, Any]:
        """Return the object ``prefetch`` of a status."""
        return prefetch_status(
            self._file, replays=self._next_replayed is not None, fetched=self._fetched, used=self._accesses.used
        )

    def start(self) -> None:
        """Begin to watch the reads of programs, unless --fill is ``none``."""
        if self._is_on:
            self._before = access_order.load(self._store.catalog, self._digest)
            self._next_replayed = next(self._replay, None)
            self._demand.watch(self._see)
            threading.Thread(target=self._run, name="kitfs-prefetch", daemon=True).start()

    def stop(self) -> None:
        """Prevent further steps, and save the order of reads. A running step ends when the store is closed."""
        self._stopped.set()
        self._wake.set()
        if self._is_on:
            self._save()

    def _see(self, node: Node, offset: int, size: int) -> None:
        """Record a read, on the thread of its reader."""
        is_new = self._accesses.read(node, offset, size)
        watched = has_tensors(node.path)
        if watched:
            self._reads.append((node, offset, size))
        if (watched or is_new) and not self._wake.is_set():
            self._wake.set()

    # -- the thread

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._wake.clear()
                try:
                    self._work()
                except (KitfsError, OSError) as e:
                    if not self._stopped.is_set():
                        self._log.info("nothing is fetched ahead for %d s: %s", RETRY, e)
                        self._not_before = time.monotonic() + RETRY
                if time.monotonic() - self._saved > SAVE_EVERY:
                    self._save()
        except Exception:  # noqa: BLE001 - the mount works without fetching ahead
            if not self._stopped.is_set():
                self._log.exception("fetching ahead failed because of a bug in kitfs")

    def _work(self) -> None:
        """Process the recorded reads, and then take a step or wait. Raises StoreFull, KitfsError and OSError."""
        while self._reads:
            self._files.read(*self._reads.popleft())
        step, quiet = self._next()
        if step is None:
            self._wake.wait(self._patience)
        elif self._demand.is_waiting(quiet) or self._layers[step.digest].content().streaming:
            self._stopped.wait(PAUSE)
        else:
            self._take(step)

    @property
    def _patience(self) -> float | None:
        """Return how many seconds the thread may sleep if no program reads; None means any length of time."""
        is_saved = self._accesses.units == self._saved_units
        return None if is_saved and time.monotonic() > self._not_before else SAVE_EVERY

    def _next(self) -> tuple[Step | None, float]:
        """Return the next step and a number of seconds.

        The step begins once no program has waited for that many seconds.
        """
        if time.monotonic() < self._not_before:
            return None, 0.0
        self._file = None
        for file in self._files.followed():
            layer = self._layers.get(str(file.layer.digest))
            if layer is None or not self._lacks(layer):
                continue
            self._file = self._file or file.node.path
            for span in file.spans():
                for step in _steps(span.digest, span.start, span.stop):
                    if step not in self._done:
                        return step, FOLLOWING
        if self._replayed < EAGER + FACTOR * self._accesses.used:
            return self._next_replayed, REPLAYING
        return None, 0.0

    def _recorded(self) -> Iterator[Step]:
        """Yield the steps in the recorded order."""
        for run in self._before:
            layer = self._layers.get(run.digest)
            if layer is not None:
                yield from _steps(run.digest, run.first * UNIT, min((run.first + run.units) * UNIT, layer.size))

    def _take(self, step: Step) -> None:
        """Take a step, and remember it as completed. Raises StoreFull and KitfsError."""
        new = self._fetch(*step)
        self._done[step] = None
        while len(self._done) > STEPS:
            self._done.popitem(last=False)
        if step == self._next_replayed:
            self._replayed += new
            self._next_replayed = next(self._replay, None)

    def _fetch(self, digest: str, at: int, size: int) -> int:
        """Fetch only these bytes of a layer, and return how many were missing. Raises StoreFull and KitfsError."""
        layer = self._layers[digest]
        if not self._lacks(layer):
            return 0
        if self._room <= 0:
            check_room(self._store, size)
            self._room = ROOM_EVERY
        before = layer.fetched()
        if not layer.content().fetch(at, size, alone=True):
            raise StoreFull("the store is full")
        new = max(0, min(layer.fetched() - before, size))
        self._fetched += new
        self._room -= new
        if new:
            self._accesses.fetched_ahead(digest, at, new)
        return new

    def _header(self, node: Node, offset: int, size: int) -> bytes:
        """Fetch and return bytes of the header of a shard that no program has opened yet."""
        assert node.layer is not None
        for at, length in spans(node.member, offset, size):
            self._fetch(str(node.layer.digest), at, length)
        return node.layer.pread(node.member, offset, size)

    def _lacks(self, layer: Layer) -> bool:
        """Return whether bytes of a layer are missing and can be fetched by ranges."""
        content = layer.content()
        return layer.failure is None and not content.complete and content.ranged

    def _save(self) -> None:
        """Save the order of reads, if programs have read further bytes since the order was last saved."""
        self._saved, units = time.monotonic(), self._accesses.units
        if units > self._saved_units:
            self._saved_units = units
            unseen = [digest for digest, layer in self._layers.items() if layer.state() == "verified"]
            access_order.save(self._store.catalog, self._digest, self._accesses.merged(self._before, unseen))


def _steps(digest: str, start: int, stop: int) -> Iterator[Step]:
    """Yield the steps that fetch the bytes [start, stop) of a layer."""
    while start < stop:
        end = min(stop, (start // STEP + 1) * STEP)
        yield Step(digest, start, end - start)
        start = end


def prefetch_status(file: str | None, *, replays: bool, fetched: int, used: int) -> dict[str, Any]:
    """Return the object ``prefetch`` of a status.

    It has the path of the file whose tensors are fetched in order (None if there is none), whether bytes are being
    fetched in the recorded order, how many bytes were fetched ahead, and how many of these bytes programs have read.
    """
    return {"file": file, "replays": replays, "fetched": fetched, "used": used}
