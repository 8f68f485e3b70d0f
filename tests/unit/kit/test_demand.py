"""A Demand counts how many bytes programs read of each layer, and reports whether a read waits for bytes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from kitfs.errors import Closed, KitfsError, WouldBlock
from kitfs.kit.demand import Demand


def test_bytes_at_hand_are_counted_and_nobody_waits() -> None:
    demand = Demand()
    for _ in range(2):
        assert demand.read("sha256:a", lambda wait: b"abc", wait=False) == b"abc"
    assert demand.asked == {"sha256:a": 6}
    assert not demand.is_waiting(math.inf)


def test_a_reader_waits_while_its_bytes_are_fetched_and_has_waited_afterwards() -> None:
    demand = Demand()

    def pread(wait: bool) -> bytes:
        if not wait:
            raise WouldBlock
        assert demand.is_waiting(0.0)
        return b"abc"

    with pytest.raises(WouldBlock):
        demand.read("sha256:a", pread, wait=False)
    assert demand.asked == {}
    assert demand.read("sha256:a", pread, wait=True) == b"abc"
    assert demand.asked == {"sha256:a": 3}
    assert not demand.is_waiting(0.0)
    assert demand.is_waiting(3600.0)


def test_a_failed_read_waits_no_more_and_counts_nothing() -> None:
    demand = Demand()

    def pread(wait: bool) -> bytes:
        raise Closed("gone") if wait else WouldBlock

    with pytest.raises(Closed):
        demand.read("sha256:a", pread, wait=True)
    assert not demand.is_waiting(0.0)
    assert demand.asked == {}


def test_each_read_that_waits_is_listed_until_it_ends() -> None:
    """A read is listed with its layer while it waits, no matter in which order the reads end."""
    demand = Demand()
    ends: list[Callable[[KitfsError | None], None]] = []

    def when_ready(ready: Callable[[KitfsError | None], None]) -> bool:
        ends.append(ready)
        return len(ends) < 3

    def pread(wait: bool) -> bytes:
        raise WouldBlock(when_ready)

    for digest in ("sha256:a", "sha256:b", "sha256:c"):
        with pytest.raises(WouldBlock) as blocked:
            demand.read(digest, pread, wait=False)
        assert blocked.value.when_ready is not None
        assert blocked.value.when_ready(lambda _: None) == (digest != "sha256:c")
    assert [wait.digest for wait in demand.waits()] == ["sha256:a", "sha256:b"]
    assert demand.waits()[0].since <= demand.waits()[1].since
    ends[0](None)
    assert [wait.digest for wait in demand.waits()] == ["sha256:b"]
    ends[1](Closed("gone"))
    assert demand.waits() == []
