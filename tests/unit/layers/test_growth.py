"""A declared size, a factor of the input, and the free room in the store limit the output of a decoder."""

from __future__ import annotations

import gzip

import pytest

from kitfs.errors import LayerLimit, StoreFull
from kitfs.layers.codec import DecodedSource
from kitfs.layers.growth import CACHED, CACHED_SMALL, DEFAULT_EXPANSION, SLACK, STEP, Expansion, Growth

MiB = 1 << 20


def growth(
    size: int, *, declared: int | None = None, spare: int = 1 << 60, expansion: Expansion = DEFAULT_EXPANSION
) -> Growth:
    return Growth(size, expansion=expansion, declared=declared, spare=lambda: spare)


@pytest.mark.parametrize(
    ("size", "limit"), [(1, 16 << 30), (1 << 20, 16 << 30), (1 << 30, 200 << 30)], ids=["tiny", "small", "large"]
)
def test_the_limit_is_a_factor_but_never_small(size: int, limit: int) -> None:
    """The limit is 200 times the compressed size, and at least 16 GiB."""
    assert DEFAULT_EXPANSION.limit(size) == limit
    growth(size).allow(limit)
    with pytest.raises(LayerLimit, match=rf"more than {limit} bytes.*--max-expansion"):
        growth(size).allow(limit + 1)


def test_a_declared_size_is_a_limit() -> None:
    """The limit is the declared size plus SLACK, so that the reader can still report a wrong size."""
    growth(1000, declared=3).allow(3 + SLACK)
    with pytest.raises(LayerLimit, match=r"more than the 3 bytes that it declares$"):
        growth(1000, declared=3).allow(4 + SLACK)


def test_a_layer_that_grows_little_is_cached_like_any_other() -> None:
    """If a layer expands little, it is stored even if the store has no room to spare.

    If a layer expands more, the free room of the store is a limit.
    """
    for size, cached in ((MiB, CACHED * MiB), (1000, CACHED_SMALL)):
        growth(size, spare=0).allow(cached)
        with pytest.raises(StoreFull, match=r"50 times its compressed size.*--cache-size"):
            growth(size, spare=0).allow(cached + 1)


def test_the_room_is_looked_at_as_it_shrinks() -> None:
    """The decoder stops before its own output fills the store."""
    stored = 0
    bounded = Growth(1000, expansion=DEFAULT_EXPANSION, declared=None, spare=lambda: 200 * MiB - stored)
    for _ in range(4096):
        try:
            bounded.allow(stored + MiB)
        except StoreFull:
            break
        stored += MiB
    assert 200 * MiB - STEP < stored < 200 * MiB


def test_a_decoder_stops_where_it_may_not_grow() -> None:
    """The decoder yields its output up to the limit, and then raises LayerLimit."""
    data = gzip.compress(bytes(64 * MiB))
    bounded = growth(len(data), expansion=Expansion(10, 8 * MiB))
    source = DecodedSource(lambda: [data], "gzip", bounded.allow)
    got = 0
    pieces = source.read_range(0, None)
    while got < 7 * MiB:
        got += len(next(pieces)[1])
    with pytest.raises(LayerLimit):
        list(pieces)
