"""Lanes decides how many requests run at the same time for one reader. The tests simulate the link."""

from __future__ import annotations

import pytest

from kitfs.store.lanes import MAX_LANES, MAX_TRIALS, STRIPE, Lanes

MIB = 1 << 20
DELAY = 0.02
LEFT = 10 << 30


class Link:
    """A link that transfers ``each`` bytes a second for one connection, and at most ``total`` for all connections."""

    def __init__(self, each: float, total: float) -> None:
        self.each, self.total = each, total
        self.lanes = Lanes()
        self.now = 100.0
        self.trials = 0

    def run(self, seconds: float) -> None:
        """Simulate receiving over ``lanes.count`` connections for some seconds.

        In a trial, a second connection starts at a later offset. The trial ends when the first connection reaches this
        offset.
        """
        end = self.now + seconds
        distance = 0.0
        while self.now < end:
            self.now += 0.01
            connections = 2 if distance > 0 else self.lanes.count
            rate = min(self.each, self.total / connections)
            self.lanes.received(int(rate * connections * 0.01), DELAY, self.now)
            if distance > 0:
                distance -= rate * 0.01
                if distance <= 0:
                    self.lanes.met(self.now)
            elif started := self.lanes.try_second(LEFT, DELAY, self.now):
                self.trials += 1
                distance = started


@pytest.mark.parametrize("each", [2, 20, 80, 120])
def test_connections_that_are_limited_singly_get_lanes(each: int) -> None:
    """If each connection has its own limit, the number of lanes grows to the maximum."""
    link = Link(each * MIB, 1000 * MIB)
    link.run(20)
    assert (link.lanes.count, link.lanes.settled, link.trials) == (MAX_LANES, True, 1)
    assert link.lanes.reach >= MAX_LANES * STRIPE


@pytest.mark.parametrize("total", [2, 20, 80, 120])
def test_a_link_that_one_connection_fills_keeps_one_lane(total: int) -> None:
    """If two connections together are not faster than one, there are no more trials after MAX_TRIALS."""
    link = Link(1000 * MIB, total * MIB)
    link.run(60)
    assert (link.lanes.count, link.lanes.settled, link.trials) == (1, True, MAX_TRIALS)
    assert link.lanes.reach == 0


def test_two_lanes_are_enough_for_a_link_that_two_connections_fill() -> None:
    link = Link(50 * MIB, 100 * MIB)
    link.run(30)
    assert link.lanes.count == 2


def test_a_fast_link_is_never_tried() -> None:
    """If one connection is faster than 150 MiB/s, no trial is made, because the processor is the limit."""
    link = Link(400 * MIB, 800 * MIB)
    link.run(20)
    assert (link.lanes.count, link.trials) == (1, 0)


def test_a_request_that_its_reader_holds_back_is_not_measured() -> None:
    """If a slow reader pauses a request, the rate of the request says nothing about the link."""
    lanes, now = Lanes(), 100.0
    for _ in range(1000):
        now += 0.1
        lanes.received(MIB, DELAY, now)
        lanes.paused()
        assert lanes.try_second(LEFT, DELAY, now) == 0


def test_the_end_of_a_blob_is_not_worth_a_trial() -> None:
    link = Link(20 * MIB, 1000 * MIB)
    for _ in range(500):
        link.now += 0.01
        link.lanes.received(20 * MIB // 100, DELAY, link.now)
        assert link.lanes.try_second(40 * MIB, DELAY, link.now) == 0
