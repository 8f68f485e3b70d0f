"""Readahead decides how far the store fetches ahead of a reader."""

from __future__ import annotations

import pytest

from kitfs.store.readahead import CURSORS, EARLY, FIRST, LONG, MAX_WINDOW, MIN_WINDOW, WHOLE, Readahead

MIB = 1 << 20
SIZE = 4 << 30
MIDDLE = 1 << 30  # the start of a reader that does not read the whole blob


def read(readahead: Readahead, start: int, stop: int) -> int:
    """Record a read of missing bytes [start, stop). Return the end of the request that fetches them."""
    cursor = readahead.miss(start, stop)
    return stop if cursor is None else readahead.plan(cursor, stop, SIZE)


def test_a_random_read_fetches_only_its_own_bytes() -> None:
    """Reads that are far from each other are not treated as sequential."""
    readahead = Readahead()
    for start in range(5 << 20, 1 << 30, 64 << 20):
        assert read(readahead, start, start + 4096) == start + 4096
    assert len(readahead) == CURSORS


@pytest.mark.parametrize("step", [4096, 128 << 10, MIB])
def test_the_window_is_a_quarter_of_what_was_read(step: int) -> None:
    """The window is a quarter of the bytes that a reader has read. During the first 8 MiB, the fraction is larger."""
    readahead = Readahead()
    for start in range(0, LONG - step, step):
        end = read(readahead, MIDDLE + start, MIDDLE + start + step) - MIDDLE
        done = start + step
        if start and done < FIRST:
            assert end == done + min(done, FIRST // 4)
        elif start:
            assert end == done + max(done // 4, min(done // 2, MIN_WINDOW))


def test_a_long_reader_gets_one_request_to_the_end() -> None:
    """After LONG bytes, a request extends to the end of the blob. It is throttled."""
    readahead = Readahead()
    for start in range(MIDDLE, MIDDLE + LONG, MIB):
        end = read(readahead, start, start + MIB)
        assert end < SIZE or start + MIB == MIDDLE + LONG
    assert end == SIZE
    cursor = readahead.advance(MIDDLE + LONG, 2 * MIDDLE)
    assert cursor is not None
    assert cursor.limit == 2 * MIDDLE + MAX_WINDOW


def test_a_reader_from_the_start_of_the_blob_gets_that_request_earlier() -> None:
    """A reader that has read the first WHOLE bytes of a blob in order most likely reads the whole blob."""
    readahead = Readahead()
    for start in range(0, WHOLE, MIB):
        end = read(readahead, start, start + MIB)
        assert end < SIZE or start + MIB == WHOLE
    assert end == SIZE


def test_several_readers_of_one_blob_have_windows_of_their_own() -> None:
    """If two sequential readers alternate, each has the same window as without the other."""
    readahead = Readahead()
    for i in range(20):
        ends = [read(readahead, base + i * MIB, base + (i + 1) * MIB) - base for base in (MIDDLE, 2 * MIDDLE)]
        assert ends[0] == ends[1]
    assert len(readahead) == 2


def test_requests_that_come_out_of_order_are_one_reader() -> None:
    """The kernel may send the requests of one readahead in any order. They are treated as one reader."""
    readahead = Readahead()
    for group in range(0, 64, 4):
        for i in (1, 0, 3, 2) if group else (0, 1, 2, 3):
            start = (group + i) * (128 << 10)
            read(readahead, start, start + (128 << 10))
    assert len(readahead) == 1


def test_the_next_request_is_due_before_the_window_is_used_up() -> None:
    """When a reader has used half of a stored window, the next request is sent."""
    readahead = Readahead()
    readahead.miss(0, MIB)
    cursor = readahead.advance(MIB, 2 * MIB)
    assert cursor is not None
    cursor.end = cursor.limit
    assert not cursor.due
    assert readahead.advance(2 * MIB, 2 * MIB + 3 * cursor.window // 4) is cursor
    assert cursor.due


def on_a_far_link(readahead: Readahead) -> None:
    """Record measurements of a link with 1 Gbit/s and a round trip of 80 ms."""
    readahead.link.responded(0.08)
    readahead.link.measured(0.08, 8 * MIB, 8 * MIB / 125e6)


def test_the_window_grows_with_the_link() -> None:
    """The window soon covers the 10 MB that are in flight.

    It is never more than a third of the bytes that were read.
    """
    readahead = Readahead()
    readahead.link.responded(0.006)
    readahead.link.measured(0.006, 10 * MIB, 6 * MIB / 1e9)
    product = readahead.link.product
    assert product > 9_000_000
    for start in range(0, LONG - MIB, MIB):
        end = read(readahead, MIDDLE + start, MIDDLE + start + MIB) - MIDDLE
        if start >= 8 * MIB:
            done = start + MIB
            assert end == done + min(product, done // 3)


def test_one_request_begins_early_on_a_far_link() -> None:
    """If round trips are long, the request to the end of the blob is sent after EARLY bytes."""
    readahead = Readahead()
    on_a_far_link(readahead)
    assert readahead.link.product == 10_000_000
    assert read(readahead, 0, MIB) == MIB
    assert read(readahead, MIB, EARLY) == SIZE
    cursor = readahead.advance(EARLY, 8 * MIB)
    assert cursor is not None
    assert cursor.limit == 16 * MIB


def test_one_slow_response_does_not_make_a_link_far() -> None:
    readahead = Readahead()
    for delay in (0.2, 0.005, 0.3):
        readahead.link.responded(delay)
    assert not readahead.link.far


def test_the_next_but_one_request_of_the_kernel_continues_a_reader() -> None:
    """The kernel may send two requests of 512 KiB of the same reader in reverse order."""
    readahead = Readahead()
    half = 512 << 10
    for start in (0, 2 * half, half, 4 * half, 3 * half):
        read(readahead, start, start + half)
    assert len(readahead) == 1


def test_a_short_request_does_not_measure_the_link() -> None:
    readahead = Readahead()
    readahead.link.measured(0.08, 4096, 0.000001)
    assert readahead.link.product == 0


def test_hops_over_the_members_of_an_archive_are_not_a_stream() -> None:
    """If a reader skips from header to header over members of 200 KiB, only the headers are fetched."""
    readahead = Readahead()
    for start in range(0, 64 * MIB, 200 << 10):
        assert read(readahead, start, start + (32 << 10)) == start + (32 << 10)


def test_an_announced_reader_may_limit_its_window() -> None:
    """The window is larger than the limit only if more bytes are in flight on the link."""
    readahead = Readahead()
    readahead.announce(0, 4 * MIB)
    cursor = readahead.miss(0, 100 * MIB)
    assert cursor is not None
    assert cursor.long
    assert cursor.window == 4 * MIB
    readahead.link.measured(0.08, 8 * MIB, 8 * MIB / 125e6)
    assert cursor.window == readahead.link.product == 10_000_000


def test_a_request_is_not_held_back_when_another_cursor_is_at_the_same_place() -> None:
    """If a reader and the background filler are at the same place, both cursors move."""
    readahead = Readahead()
    for start in range(0, LONG, MIB):
        read(readahead, start, start + MIB)
    reader = readahead.miss(LONG, LONG + MIB)
    readahead.announce(0, 8 * MIB)
    filler = readahead.advance(0, LONG + MIB)
    assert reader is not None
    assert filler is not None
    assert reader is not filler
    for start in range(LONG + MIB, LONG + 100 * MIB, MIB):
        readahead.advance(start, start + MIB)
        assert reader.position == filler.position == start + MIB
