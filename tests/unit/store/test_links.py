"""Sequential reads from a registry with a long round trip."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

from kitfs.oci.names import Digest
from kitfs.store.readahead import EARLY, FAR
from kitfs.store.store import Store
from tests.fakes.sources import BytesSource
from tests.host import wait_until

DATA = random.Random(5).randbytes(24 << 20)
STEP = 512 << 10  # bytes that the kernel requests at once


def far_source() -> BytesSource:
    """Return a source with slow responses, so the store regards the link as one with a long round trip."""
    source = BytesSource(DATA, piece=64 << 10)
    source.delay = 2 * FAR
    return source


def test_a_far_reader_soon_gets_one_request_to_the_end(store: Store) -> None:
    """After a few MiB, one request to the end of the blob is sent. Requests do not overlap."""
    source = far_source()
    blob = store.blob(Digest.of(DATA), size=len(DATA), source=source)
    for at in range(0, len(DATA), STEP):
        assert blob.pread(at, STEP) == DATA[at : at + STEP]
    starts, stops = zip(*sorted(source.asked), strict=True)
    assert starts == (0, *stops[:-1])
    assert stops[-1] == len(DATA)
    assert starts[-1] <= 3 * EARLY


def test_reads_in_the_wrong_order_fetch_nothing_twice(store: Store) -> None:
    """The kernel may send the reads of one reader from several threads. No bytes are requested twice."""
    source = far_source()
    blob = store.blob(Digest.of(DATA), size=len(DATA), source=source)
    with ThreadPoolExecutor(2) as pool:
        for at in range(0, len(DATA), 2 * STEP):
            second, first = pool.map(lambda start: blob.pread(start, STEP), (at + STEP, at))
            assert (first, second) == (DATA[at : at + STEP], DATA[at + STEP : at + 2 * STEP])
    assert source.given == len(DATA)
    assert max(start for start, _ in source.asked) <= 4 * EARLY


def test_a_reader_that_stops_is_not_fetched_for(store: Store) -> None:
    """While the reader does not continue, its long request is throttled. When the blob is closed, the request ends."""
    source = far_source()
    source.piece = 32 << 10
    blob = store.blob(Digest.of(DATA), size=len(DATA), source=source)
    for at in range(0, 3 * EARLY, STEP):
        blob.pread(at, STEP)
    wait_until(lambda: source.asked[-1][1] == len(DATA), "no request runs to the end of the blob")
    time.sleep(0.3)  # an unthrottled request would fetch more in this time
    assert blob.fetched <= 6 * EARLY + (1 << 20)
    blob.close()
