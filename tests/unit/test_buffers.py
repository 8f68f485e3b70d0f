"""The memory for bytes that are being received has a limit, which all fetches share."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from kitfs.buffers import SHARE, Buffers

KIB = 1 << 10


def test_a_buffer_has_its_full_size_while_memory_is_plenty() -> None:
    buffers = Buffers(16 * KIB)
    with buffers.reserved(2 * KIB, KIB) as size:
        assert (size, buffers.used) == (2 * KIB, 2 * KIB)
    assert (buffers.used, buffers.peak) == (0, 2 * KIB)


def test_buffers_become_smaller_as_memory_becomes_scarce() -> None:
    """The size of a buffer is at most an eighth of the free memory, but at least the given minimum."""
    buffers = Buffers(16 * KIB)
    assert buffers.try_reserve(12 * KIB)
    with buffers.reserved(2 * KIB, 100) as size:
        assert size == 4 * KIB // SHARE
    with buffers.reserved(2 * KIB, KIB) as size:
        assert size == KIB


def test_a_fetch_waits_for_memory() -> None:
    """A fetch waits until another fetch releases memory. ``short`` is true during the wait."""
    buffers = Buffers(2 * KIB)
    assert buffers.try_reserve(2 * KIB)
    assert not buffers.short
    done = threading.Event()

    def fetch() -> None:
        with buffers.reserved(KIB, KIB):
            done.set()

    thread = threading.Thread(target=fetch)
    thread.start()
    while not buffers.short:
        assert not done.wait(0.01)
    buffers.release(2 * KIB)
    thread.join()
    assert (done.is_set(), buffers.used, buffers.peak) == (True, 0, 2 * KIB)


def test_a_fetch_that_waited_too_long_exceeds_the_limit() -> None:
    """A fetch waits a limited time, so a read does not hang when other reads never release their memory."""
    buffers = Buffers(KIB, patience=0.01)
    assert buffers.try_reserve(KIB)
    with buffers.reserved(KIB, 10) as size:
        assert (size, buffers.used) == (10, KIB + 10)


def test_the_limit_holds_for_many_threads() -> None:
    buffers = Buffers(16 * KIB)

    def fetch(_: int) -> None:
        with buffers.reserved(4 * KIB, KIB) as size:
            assert KIB <= size <= 4 * KIB

    with ThreadPoolExecutor(64) as pool:
        list(pool.map(fetch, range(2000)))
    assert buffers.used == 0
    assert buffers.peak <= 16 * KIB
