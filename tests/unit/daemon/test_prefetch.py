"""A mount prefetches only while no program waits, and only as far as the store has room."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from kitfs.content import Origin, Source
from kitfs.daemon.prefetch import Prefetcher
from kitfs.errors import Unavailable
from kitfs.kit import access_order
from kitfs.kit.access_order import UNIT, Run
from kitfs.kit.kit import Kit
from kitfs.kit.resolver import Resolver
from kitfs.kit.tree import Tree, tree_of
from kitfs.metrics import Counters
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import LayoutReference, Reference
from kitfs.registry.layout import open_layout
from kitfs.store.store import Store
from tests import kits
from tests.host import wait_until

LOG = logging.getLogger("kitfs.test")
SIZE = 12 * UNIT


class Gate:
    """A source that sends nothing until ``open`` is set. If ``failure`` is set, it raises that error."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.open = threading.Event()
        self.failure: Exception | None = None
        self.asked = 0

    @property
    def size(self) -> int | None:
        return self._source.size

    @property
    def ranged(self) -> bool:
        return True

    @property
    def sender(self) -> str:
        return "gate"

    def distrust(self) -> bool:
        return False

    def read_range(self, start: int, stop: int | None, /) -> Generator[tuple[int, memoryview], None, None]:
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        assert self.open.wait(60)
        yield from self._source.read_range(start, stop)


class Gates:
    """A fake origin whose blobs are read through gates, one for each digest."""

    def __init__(self, layout: Origin) -> None:
        self._layout = layout
        self.gates: dict[str, Gate] = {}
        self.manifest = layout.manifest
        self.blob_bytes = layout.blob_bytes

    def blob(self, descriptor: Descriptor) -> Source | None:
        source = self._layout.blob(descriptor)
        assert source is not None
        return self.gates.setdefault(str(descriptor.digest), Gate(source))


Opened = tuple[Kit, Tree, list[Gate]]


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[Store], Opened]:
    """Return a function that opens a kit of the files a and b, each in a layer of 3 MiB.

    The store has an access order for the kit. This order contains only the layer of b.
    """

    def make(store: Store) -> Opened:
        parts = [kits.part("model", name, name.encode() * SIZE, format="raw") for name in ("a", "b")]
        kits.write_layout(kits.build(parts), tmp_path / "kit", "v1")
        origin = Gates(open_layout(LayoutReference("oci", str(tmp_path / "kit"))))
        kit = Resolver(store, lambda reference: origin, log=LOG).open(Reference.parse("r.io/kit:v1"))
        tree = tree_of(kit, counters=Counters(), log=LOG)
        access_order.save(store.catalog, str(kit.digest), [Run(str(kit.layers[1].digest), 0, SIZE // UNIT)])
        for layer in kit.layers:
            layer.load_state()
        return kit, tree, [origin.gates[str(layer.digest)] for layer in kit.layers]

    return make


def test_no_step_begins_while_a_program_waits(store: Store, opened: Callable[[Store], Opened]) -> None:
    kit, tree, (a, b) = opened(store)
    b.open.set()
    reader = threading.Thread(target=lambda: tree.pread(tree.resolve("a"), 0, 4096))
    reader.start()
    wait_until(lambda: tree.demand.is_waiting(0), "the reader does not wait")
    prefetcher = Prefetcher(kit, store, tree, mode="touched", log=LOG)
    prefetcher.start()
    time.sleep(0.5)
    assert (b.asked, prefetcher.status) == (0, {"file": None, "replays": True, "fetched": 0, "used": 0})
    a.open.set()
    reader.join()
    wait_until(lambda: not prefetcher.status["replays"], f"{prefetcher.status}")
    assert prefetcher.status["fetched"] == SIZE
    tree.pread(tree.resolve("b"), 0, SIZE)
    assert prefetcher.status["used"] == SIZE
    prefetcher.stop()
    kit.close()


def test_nothing_is_fetched_that_would_evict_blobs(
    open_store: Callable[..., Store], opened: Callable[[Store], Opened], caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(size_limit=64 << 20)
    kit, tree, (_, b) = opened(store)
    caplog.set_level(logging.INFO, "kitfs.test")
    prefetcher = Prefetcher(kit, store, tree, mode="touched", log=LOG)
    prefetcher.start()
    wait_until(lambda: "unless other blobs are evicted" in caplog.text, "nothing was logged")
    prefetcher.stop()
    assert (b.asked, prefetcher.status["fetched"]) == (0, 0)
    kit.close()


def test_a_registry_that_fails_ends_nothing(
    store: Store, opened: Callable[[Store], Opened], caplog: pytest.LogCaptureFixture
) -> None:
    """The failed prefetch is logged once. Programs can still read, and the order of their reads is saved at the end."""
    kit, tree, (a, b) = opened(store)
    caplog.set_level(logging.INFO, "kitfs.test")
    b.failure = Unavailable("the registry is away")
    a.open.set()
    prefetcher = Prefetcher(kit, store, tree, mode="touched", log=LOG)
    prefetcher.start()
    wait_until(lambda: "nothing is fetched ahead for 60 s: the registry is away" in caplog.text, "nothing was logged")
    assert tree.pread(tree.resolve("a"), 0, 10) == b"a" * 10
    prefetcher.stop()
    assert caplog.text.count("nothing is fetched ahead") == 1
    assert access_order.load(store.catalog, str(kit.digest))[0] == Run(str(kit.layers[0].digest), 0, 1)
    kit.close()


def test_a_mount_without_fill_looks_at_nothing(store: Store, opened: Callable[[Store], Opened]) -> None:
    """With the mode "none", nothing is prefetched and no reads are recorded."""
    kit, tree, (a, b) = opened(store)
    a.open.set()
    prefetcher = Prefetcher(kit, store, tree, mode="none", log=LOG)
    prefetcher.start()
    assert tree.pread(tree.resolve("a"), 0, 10) == b"a" * 10
    prefetcher.stop()
    assert (b.asked, prefetcher.status) == (0, {"file": None, "replays": False, "fetched": 0, "used": 0})
    assert access_order.load(store.catalog, str(kit.digest)) == [Run(str(kit.layers[1].digest), 0, SIZE // UNIT)]
    kit.close()
