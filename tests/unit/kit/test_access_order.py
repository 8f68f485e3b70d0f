"""An AccessOrder records the order in which parts of layers are first read, and counts used prefetched bytes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kitfs.content import Key
from kitfs.kit.access_order import KITS, MAX_RUNS, UNIT, AccessOrder, Run, load, save
from kitfs.kit.inode import Inode
from kitfs.kit.node import Node
from kitfs.layers.index import Extent, Member


class Layer:
    """A layer that has a digest and nothing else."""

    def __init__(self, digest: str) -> None:
        self.digest = digest


class File(Node):
    """A file in a layer. ``extents`` are its parts in the layer."""

    def __init__(self, digest: str, *extents: Extent) -> None:
        size = max(extent.file_offset + extent.length for extent in extents)
        super().__init__(Inode(2), "f", "file", 0o644, size, 1, layer=Layer(digest))  # type: ignore[arg-type]
        self._member = Member("f", "file", 0o644, size, extents=extents)


class Notes:
    """A store of hints in memory."""

    def __init__(self) -> None:
        self.values: dict[Key, Any] = {}

    def get(self, key: Key, /) -> Any:
        return self.values.get(key)

    def set(self, key: Key, value: Any, /) -> None:
        self.values[key] = value

    def delete(self, key: Key, /) -> None:
        self.values.pop(key, None)


def whole(digest: str, units: int) -> File:
    """Return a file that occupies a whole layer of ``units`` units."""
    return File(digest, Extent(0, 0, units * UNIT))


def test_first_reads_are_recorded_in_their_order_as_runs() -> None:
    order, a, b = AccessOrder({"a": 100 * UNIT, "b": 10 * UNIT}), whole("a", 100), whole("b", 10)
    assert order.read(a, 50 * UNIT, 2 * UNIT)
    assert order.read(b, 3 * UNIT, 1)
    assert order.read(a, 52 * UNIT, 10)
    assert not order.read(a, 50 * UNIT, UNIT)
    assert order.read(a, 0, UNIT + 1)
    assert order.units == 6
    assert order.merged([], ()) == [Run("a", 50, 3), Run("b", 3, 1), Run("a", 0, 2)]


def test_the_extents_of_a_file_decide_which_units_it_touches() -> None:
    """A read of a hole records no unit, because the layer does not contain the hole."""
    order = AccessOrder({"a": 100 * UNIT})
    file = File("a", Extent(0, 7 * UNIT, UNIT), Extent(5 * UNIT, 90 * UNIT, UNIT))
    order.read(file, 0, 6 * UNIT)
    assert order.merged([], ()) == [Run("a", 7, 1), Run("a", 90, 1)]


def test_threads_that_read_in_turns_make_one_run_each() -> None:
    order, a = AccessOrder({"a": 100 * UNIT}), whole("a", 100)
    for unit in range(20):
        for thread in range(4):
            order.read(a, (thread * 25 + unit) * UNIT, UNIT)
    assert order.merged([], ()) == [Run("a", thread * 25, 20) for thread in range(4)]


def test_files_that_are_not_recorded_are_ignored() -> None:
    """Files without a layer are ignored, because they are generated. Files in compressed layers are ignored too."""
    order = AccessOrder({"a": UNIT})
    assert not order.read(whole("other", 5), 0, UNIT)
    assert not order.read(Node(Inode(2), "Kitfile", "file", 0o644, 5, 1), 0, 5)
    assert order.merged([], ()) == []


def test_an_order_is_bounded() -> None:
    order, a = AccessOrder({"a": 3 * MAX_RUNS * UNIT}), whole("a", 3 * MAX_RUNS)
    for unit in range(0, 3 * MAX_RUNS, 2):
        order.read(a, unit * UNIT, 1)
    assert len(order.merged([Run("b", 0, 1)], ())) == MAX_RUNS


def test_bytes_that_were_fetched_ahead_are_used_when_they_are_read() -> None:
    """A prefetched byte counts as used when it is first read.

    A byte that was read before it was prefetched is not counted.
    """
    order, a = AccessOrder({"a": 10 * UNIT}), whole("a", 10)
    order.read(a, 0, 1)
    order.fetched_ahead("a", 0, 3 * UNIT + 100)
    assert order.used == 0
    order.read(a, UNIT, 10)
    assert order.used == UNIT
    order.read(a, 2 * UNIT, 2 * UNIT)
    order.read(a, 0, 10 * UNIT)
    assert order.used == 2 * UNIT + 100


def test_a_new_order_replaces_the_one_before() -> None:
    order = AccessOrder({"a": 100 * UNIT})
    order.read(whole("a", 100), 0, 10 * UNIT)
    assert order.merged([Run("a", 40, 60)], ()) == [Run("a", 0, 10)]


def test_a_mount_that_read_nothing_keeps_the_order() -> None:
    before = [Run("a", 40, 60), Run("b", 0, 3)]
    assert AccessOrder({"a": 100 * UNIT}).merged(before, ()) == before


def test_a_short_look_keeps_the_first_half_of_the_order() -> None:
    """In the new order, the units that were read in this mount come first. Each unit is listed once."""
    order = AccessOrder({"a": 100 * UNIT})
    order.read(whole("a", 100), 5 * UNIT, UNIT)
    before = [Run("a", 0, 20), Run("a", 60, 20), Run("a", 40, 20)]
    assert order.merged(before, ()) == [Run("a", 5, 1), Run("a", 0, 5), Run("a", 6, 14)]


def test_the_order_of_layers_whose_reads_were_not_seen_is_kept() -> None:
    """Reads are not seen if the kernel itself reads the layer, or if this mount does not show the layer."""
    order = AccessOrder({"a": 100 * UNIT, "b": 100 * UNIT})
    order.read(whole("a", 100), 0, 50 * UNIT)
    before = [Run("b", 0, 9), Run("a", 90, 9), Run("c", 1, 2)]
    assert order.merged(before, {"b"}) == [Run("a", 0, 50), Run("b", 0, 9), Run("c", 1, 2)]


def test_an_order_is_kept_by_the_digest_of_the_manifest() -> None:
    notes, runs = Notes(), [Run("sha256:a", 1, 2), Run("sha256:b", 0, 1), Run("sha256:a", 9, 1)]
    save(notes, "sha256:kit", runs)
    assert load(notes, "sha256:kit") == runs
    assert load(notes, "sha256:other") == []


def test_the_orders_of_the_latest_kits_are_kept() -> None:
    notes = Notes()
    for number in range(KITS + 5):
        save(notes, f"sha256:{number}", [Run("a", 0, 1)])
        save(notes, "sha256:0", [Run("a", 0, 1)])
    assert len([key for key in notes.values if key[0] == "order"]) == KITS
    assert load(notes, "sha256:0")
    assert not load(notes, "sha256:1")
    assert load(notes, f"sha256:{KITS + 4}")


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.fixed_dictionaries({"version": st.just(1), "layers": st.lists(inner), "runs": st.lists(inner)})
        ),
    )
)
def test_whatever_was_kept_is_an_order_or_nothing(value: Any) -> None:
    notes = Notes()
    notes.set(("order", "d"), value)
    notes.set(("orders", "recent"), value)
    assert all(run.first >= 0 and run.units > 0 for run in load(notes, "d"))
    save(notes, "d", [Run("a", 0, 1)])
    assert load(notes, "d") == [Run("a", 0, 1)]
