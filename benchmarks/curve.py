"""Measure the time in which kitfs and its peers read a part of a model that is new to the machine.

The curve is not a row of the table, because it has no target. benchmarks.plot draws it.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.link import LINKS, Link, slow
from benchmarks.machine import Bench, missing, read_span, run, timed
from benchmarks.models import FILE, Model

PERCENT = (1, 10, 50, 100)


@dataclass(frozen=True, slots=True)
class Point:
    """The seconds of each run for one part of the model, one way to read it, and one link.

    ``way`` is the name of a way to read, and ``percent`` is the size of the part. ``link`` is ``""`` for loopback.
    """

    link: str
    way: str
    percent: int
    seconds: list[float]

    def __str__(self) -> str:
        every = ", ".join(f"{value:.2f}" for value in self.seconds)
        median = statistics.median(self.seconds)
        return f"{self.link or 'loopback':16} {self.percent:3} %  {self.way:24} {median:7.2f} s  ({every})"


def by_mount(bench: Bench, model: Model, port: int, span: tuple[int, int]) -> float:
    """Return the seconds to mount the kit and read the part."""
    with bench.home() as home:
        return timed(lambda: read_span(home.mount(model.behind(port)) / FILE, *span))


def by_second_mount(bench: Bench, model: Model, port: int, span: tuple[int, int]) -> float:
    """Return the seconds to mount a kit that was pulled before, and read the part."""
    with bench.home() as home:
        home.kitfs("pull", model.behind(port))
        return timed(lambda: read_span(home.mount(model.behind(port)) / FILE, *span))


def by_unpack(bench: Bench, model: Model, port: int, span: tuple[int, int]) -> float:
    """Return the seconds to run ``kit unpack`` from the registry and read the part."""
    with bench.kit_home() as kit:
        out = kit.root / "out"

        def work() -> None:
            kit.kit("unpack", model.behind(port), "-d", out, "--plain-http")
            read_span(out / FILE, *span)

        return timed(work)


def by_pull_and_unpack(bench: Bench, model: Model, port: int, span: tuple[int, int]) -> float:
    """Return the seconds to run ``kit pull`` and ``kit unpack`` and read the part."""
    with bench.kit_home() as kit:
        out = kit.root / "out"

        def work() -> None:
            kit.kit("pull", model.behind(port), "--plain-http")
            kit.kit("unpack", model.behind(port), "-d", out, "--plain-http")
            read_span(out / FILE, *span)

        return timed(work)


def by_curl(bench: Bench, model: Model, port: int, span: tuple[int, int]) -> float:
    """Return the seconds to download the layer with ``curl`` and read a part of the same size."""
    out = bench.name("curl")

    def work() -> None:
        run("curl", "-sSf", "-o", out, model.path(port))
        read_span(out, *span)

    try:
        return timed(work)
    finally:
        out.unlink(missing_ok=True)


Way = Callable[[Bench, Model, int, tuple[int, int]], float]
WAYS: dict[str, tuple[Way, tuple[str, ...]]] = {  # name → (function, the programs that it needs)
    "kitfs mount": (by_mount, ()),
    "kitfs mount, pulled before": (by_second_mount, ()),
    "curl -o": (by_curl, ("curl",)),
    "kit unpack": (by_unpack, ("kit",)),
    "kit pull, kit unpack": (by_pull_and_unpack, ("kit",)),
}


def measure(bench: Bench, runs: int, show: Callable[[str], None]) -> list[Point]:
    """Measure every way for every part, on loopback and over the first of the links.

    ``show`` is called with each point.
    """
    found = []
    size = bench.model.file.stat().st_size
    for link in (Link("", 0, 0), LINKS[0]):
        with slow(bench.registry.port, link) as relayed:
            port = relayed if link.name else bench.registry.port
            for percent in PERCENT:
                length = size * percent // 100
                start = (size - length) // 2
                works = {name: work for name, (work, needs) in WAYS.items() if not missing(needs)}
                seconds: dict[str, list[float]] = {name: [] for name in works}
                for number in range(runs):
                    for name in sorted(works, reverse=number % 2 == 1):
                        seconds[name].append(works[name](bench, bench.model, port, (start, start + length)))
                points = [Point(link.name, name, percent, values) for name, values in seconds.items()]
                show("\n".join(map(str, points)))
                found += points
    return found


def as_json(points: list[Point]) -> list[dict[str, Any]]:
    """Return the points for JSON."""
    return [asdict(point) for point in points]
