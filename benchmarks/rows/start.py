"""Rows 9 and 10 measure the time until the first byte."""

from __future__ import annotations

import sys

from benchmarks.machine import Bench, Home, read_span, run, timed
from benchmarks.models import FILE
from benchmarks.rows.sealed import why_not_sealed
from benchmarks.table import Absent, Found, Sample, Target, row
from tests.host import processes_of

SIZES = {"100 MiB": 100, "100 GiB": 100 << 10}


def first_byte(home: Home, reference: str) -> None:
    """Mount a kit and read the first byte of its model."""
    read_span(home.mount(reference) / FILE, 0, 1)


@row(
    9,
    "mount of a kit that is in the store, to the first byte, beyond `python -c pass`",
    Target(name="beyond bare python", goal=0.2, must=0.3, unit="s"),
    Target(name="processes left running", goal=0, must=0, unit="processes"),
)
def warm_start(bench: Bench) -> Found:
    """Measure ``kitfs mount`` of a pulled kit and the first byte of its model.

    The time of ``python -c pass`` with the same interpreter is subtracted. Each time is the median of five
    measurements, and the two alternate. The second number is the number of kitfs processes that run after the read. A
    mount that is not sealed has at least its daemon.
    """
    with bench.home() as home:
        home.kitfs("pull", bench.model.reference)

        def ours() -> float:
            seconds = timed(lambda: first_byte(home, bench.model.reference))
            home.umount()
            return seconds

        mounted, bare = bench.repeated(ours, lambda: timed(lambda: run(sys.executable, "-c", "pass")))
        first_byte(home, bench.model.reference)
        reason = why_not_sealed(home)
        left = Absent(reason) if reason else Sample(len(processes_of(home.run_dir)))
    return {"beyond bare python": Sample(mounted - bare, mounted, bare), "processes left running": left}


@row(
    10,
    "cold mount to the first byte, loopback",
    *(Target(name=name, goal=0.35, unit="s") for name in SIZES),
)
def cold_start(bench: Bench) -> Found:
    """Measure ``kitfs mount`` with an empty store and the first byte of the model, for kits of two sizes.

    Each number is the median of five measurements, and the two sizes alternate. The tensors are zeros, which occupy no
    space on the registry's disk.
    """
    models = {name: bench.models.sparse(mib) for name, mib in SIZES.items()}

    def cold(reference: str) -> float:
        with bench.home() as home:
            return timed(lambda: first_byte(home, reference))

    works = [lambda model=model: cold(model.reference) for model in models.values()]
    return dict(zip(models, map(Sample, bench.repeated(*works)), strict=True))
