"""Row 16 measures the peak memory of the daemon."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.machine import Bench, read_span
from benchmarks.models import FILE
from benchmarks.rows.tree import find
from benchmarks.table import Found, Sample, Target, row

HANDLES = 64


def read_at_once(file: Path) -> None:
    """Read a file by 64 threads. Each thread opens the file and reads its own part."""
    size = file.stat().st_size
    share = -(-size // HANDLES)
    with ThreadPoolExecutor(HANDLES) as pool:
        list(pool.map(lambda n: read_span(file, n * share, min(size, (n + 1) * share)), range(HANDLES)))


@row(
    16,
    "peak memory of the daemon",
    Target(name="cold, 64 open handles", goal=160, must=160, unit="MiB"),
    Target(name="100,000 files", goal=100, must=100, unit="MiB"),
)
def peak(bench: Bench) -> Found:
    """Measure the sum of the peak memory (VmHWM) of the mount's processes, in two cases.

    In the first case, 64 threads read the model through a cold mount at full speed. Each thread has its own handle and
    its own part. In the second case, ``find -type f`` walks a cold mount of a kit of 100,000 files.
    """
    with bench.home() as home:
        read_at_once(home.mount(bench.model.reference) / FILE)
        reading = home.peak()
    with bench.home() as home:
        find(home.mount(bench.models.many.reference, *home.never_sealed()))
        listing = home.peak()
    return {"cold, 64 open handles": Sample(reading), "100,000 files": Sample(listing)}
