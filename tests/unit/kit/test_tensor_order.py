"""A TensorOrder recognizes that the tensors of a file are read in order, and predicts the next reads."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.formats.header import Tensor
from kitfs.kit.tensor_order import READERS, WINDOW, TensorOrder

MiB = 1 << 20


def tensors(count: int = 20, size: int = 16 * MiB, first: int = 4096, names: str = "{:03}") -> list[Tensor]:
    """Return ``count`` contiguous tensors of ``size`` bytes. The first tensor has the offset ``first``."""
    return [Tensor(names.format(n), "U8", (size,), first + n * size, size) for n in range(count)]


def read(order: TensorOrder, tensor: Tensor, *, step: int = MiB, share: float = 1.0) -> None:
    """Read the first part of a tensor in reads of ``step`` bytes. ``share`` is the fraction that is read."""
    stop = int(tensor.size * share)
    for at in range(0, stop, step):
        order.feed(tensor.offset + at, min(step, stop - at))


def ahead(order: TensorOrder) -> int:
    """Return the number of bytes that the TensorOrder wants to prefetch."""
    return sum(stop - start for start, stop in order.ahead())


def test_a_header_and_one_tensor_lead_to_nothing() -> None:
    """The kernel's readahead touches bytes of the next tensor, but this tensor does not count as read."""
    found = tensors()
    order = TensorOrder(found)
    order.feed(0, 4096)
    order.feed(found[8].offset - MiB, MiB)
    read(order, found[8])
    order.feed(found[9].offset, MiB)
    assert order.reader is None
    assert list(order.ahead()) == []
    assert order.beyond() is None


def test_the_second_tensor_in_order_leads_to_the_next_ones() -> None:
    """The number of prefetched bytes is at most half of the bytes that were read, and at most 64 MiB."""
    found = tensors()
    order = TensorOrder(found)
    read(order, found[3])
    read(order, found[4])
    assert list(order.ahead()) == [(found[5].offset, found[5].offset + 16 * MiB)]
    for number in range(5, 10):
        read(order, found[number])
    assert next(order.ahead()) == (found[10].offset, found[10].offset + 16 * MiB)
    assert ahead(order) == 56 * MiB
    read(order, found[10])
    read(order, found[11])
    assert ahead(order) == WINDOW


@pytest.mark.parametrize("step", [128 << 10, 512 << 10])
def test_page_faults_of_several_threads_with_gaps_are_readers(step: int) -> None:
    """Each of four threads reads a quarter of every tensor by page faults. The page faults skip some bytes."""
    found = tensors()
    order = TensorOrder(found)
    for tensor in found[:4]:
        quarter = tensor.size // 4
        for at in range(0, quarter, step):
            for thread in range(4):
                order.feed(tensor.offset + thread * quarter + at, step - (32 << 10))
    assert order.reader is not None
    assert order.reader.place == 3
    assert next(order.ahead())[0] == found[4].offset


def test_a_slice_of_each_tensor_is_enough() -> None:
    """In a parallel model, each process reads only an eighth of each tensor."""
    found = tensors()
    order = TensorOrder(found)
    read(order, found[0], share=1 / 8)
    read(order, found[1], share=1 / 8)
    assert next(order.ahead())[0] == found[2].offset


def test_small_tensors_lie_on_the_way() -> None:
    """Small tensors between large tensors are prefetched too, even if earlier small tensors were not read."""
    sizes = [16 * MiB, 8192, 16 * MiB, 8192, 8192, 16 * MiB]
    found = [Tensor(str(n), "U8", (size,), sum(sizes[:n]), size) for n, size in enumerate(sizes)]
    order = TensorOrder(found)
    read(order, found[0])
    read(order, found[2])
    assert list(order.ahead()) == [
        (found[3].offset, found[3].offset + 8192),
        (found[4].offset, found[4].offset + 8192),
        (found[5].offset, found[5].offset + 16 * MiB - 16384),
    ]


def test_the_order_of_names_is_followed_where_it_differs() -> None:
    """safetensors sorts names as strings, so the file contains layer 10 before layer 2."""
    found = tensors(names="layer.{}")
    order = TensorOrder(found)
    for number in (1, 10, 11):
        read(order, found[number])
    assert next(order.ahead())[0] == found[12].offset
    read(order, found[19])
    assert order.reader is not None
    for number in (0, 1, 10, 11, 12, 13, 14, 15, 16, 17, 18):
        read(order, found[number])
    read(order, found[2])
    assert next(order.ahead())[0] == found[3].offset


def test_random_reads_are_not_followed() -> None:
    found = tensors(200)
    order = TensorOrder(found)
    for number in random.Random(5).sample(range(0, 200, 6), 30):
        read(order, found[number])
        assert order.reader is None


def test_descending_reads_are_not_followed() -> None:
    found = tensors(names="{:03}")
    order = TensorOrder(found)
    for tensor in reversed(found):
        read(order, tensor)
    assert order.reader is None


def test_a_reader_that_leaves_the_order_is_forgotten() -> None:
    found = tensors(200)
    order = TensorOrder(found)
    read(order, found[0])
    read(order, found[1])
    for number in range(20, 180, 20):
        assert order.reader is not None
        read(order, found[number])
    assert order.reader is None
    assert ahead(order) == 0


def test_several_readers_are_followed_at_the_same_time() -> None:
    """Each reader has its own prefetch window. The number of readers is limited."""
    found = tensors(200)
    order = TensorOrder(found)
    for number in range(3):
        for first in range(0, READERS * 40, 40):
            read(order, found[first + number])
    starts = [start for start, _ in order.ahead()]
    assert {found[first + 3].offset for first in range(0, READERS * 40, 40)} <= set(starts)


def test_a_reader_goes_on_in_the_next_shard() -> None:
    """At the end of a file, the next file is prefetched. A read of its first tensor continues the order."""
    order, following = TensorOrder(tensors(4)), TensorOrder(tensors(4))
    for number, tensor in enumerate(tensors(4)):
        read(order, tensor)
        reader = order.beyond()
        assert (reader is not None) == (number >= 2)
    assert reader is not None
    following.resume(reader)
    assert next(following.ahead())[0] == tensors(4)[0].offset
    assert ahead(following) == 32 * MiB
    read(following, tensors(4)[0])
    assert next(following.ahead())[0] == tensors(4)[1].offset


def test_overlapping_tensors_of_a_hostile_file_cost_nothing() -> None:
    """A hundred thousand tensors with the same offset count as one tensor."""
    found = [Tensor(str(n), "U8", (MiB,), 0, 4 * MiB) for n in range(100_000)]
    order = TensorOrder(found)
    read(order, found[0])
    assert order.reader is None


@given(st.randoms(use_true_random=False), st.integers(1, 30))
def test_what_is_ahead_lies_in_tensors_and_is_bounded(source: random.Random, count: int) -> None:
    """The test uses random sizes, names and reads."""
    at, found = 100, []
    for n in range(count):
        size = source.choice([0, 10, 5000, 2 * MiB, 9 * MiB])
        found.append(Tensor(f"{source.randrange(1000)}-{n}", "U8", (size,), at, size))
        at += size + source.choice([0, 32])
    order = TensorOrder(found)
    for _ in range(60):
        order.feed(source.randrange(at), source.choice([4096, MiB, 4 * MiB]))
        spans = list(order.ahead())
        assert all(any(t.offset <= start < stop <= t.offset + t.size for t in found) for start, stop in spans)
        assert ahead(order) <= READERS * WINDOW
