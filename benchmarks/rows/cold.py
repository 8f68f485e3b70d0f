"""Rows 1 to 4 read a whole model that is new to the machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.link import LINKS, slow
from benchmarks.machine import Bench, Home, read_to_end, read_whole, run, timed
from benchmarks.models import FILE, Model
from benchmarks.table import Absent, Found, Sample, Target, row, times

PATIENCE = 60.0  # seconds to wait for the state "verified"


def cold_read(bench: Bench, reference: str, *, mounted: bool = False) -> float:
    """Return the seconds from the first read of the model to its last byte, through a new mount with an empty store.

    With ``mounted``, the seconds include the time of ``kitfs mount``.
    """
    with bench.home() as home:
        if mounted:
            return timed(lambda: read_whole(home.mount(reference) / FILE))
        return read_seconds(home.mount(reference) / FILE)


def read_seconds(path: Path) -> float:
    """Return the seconds from the first read of a file to its last byte."""
    with path.open("rb", buffering=0) as file:
        return timed(lambda: read_to_end(file))


def curl(bench: Bench, url: str) -> float:
    """Return the seconds in which ``curl -o`` writes the layer to a new file."""
    out = bench.name("curl")
    try:
        return timed(lambda: run("curl", "-sSf", "-o", out, url))
    finally:
        out.unlink(missing_ok=True)


def until_verified(file: Path) -> float:
    """Return the seconds until the layer of a file is reported as verified."""
    begin = time.perf_counter()
    while os.getxattr(file, "user.kitfs.state") != b"verified":
        if time.perf_counter() - begin > PATIENCE:
            raise TimeoutError(f"the layer of {file} is not verified after {PATIENCE:.0f} s")
        time.sleep(0.01)
    return time.perf_counter() - begin


def read_and_verify(bench: Bench, model: Model, home: Home) -> tuple[float, float]:
    """Return the seconds of a cold read, and the seconds from the end of the read until the layer is verified."""
    file = home.mount(model.reference) / FILE
    return read_seconds(file), until_verified(file)


@row(
    1,
    "cold full read through the mount, loopback, against `curl -o`",
    Target(name="time", goal=1.5, must=2.0),
    Target(name="verified after the read", goal=1.0, must=1.0, unit="s"),
    needs=("curl",),
)
def against_curl(bench: Bench) -> Found:
    """Compare reading the whole model through a new mount with downloading its layer by ``curl -o``.

    The store is empty, and each read has a size of 1 MiB. The time of kitfs starts with the first read, after the
    mount. The second number is the time from the last byte until the layer's state is "verified". Neither side syncs.
    """
    model = bench.model
    verified = []

    def ours() -> float:
        with bench.home() as home:
            seconds, after = read_and_verify(bench, model, home)
        verified.append(after)
        return seconds

    found = bench.both(ours, lambda: curl(bench, model.path(bench.registry.port)))
    return {"time": times(*found), "verified after the read": Sample(verified[0])}


@row(
    2,
    "cold full read through the mount, loopback, against `kit unpack` from the remote and `cat`",
    Target(name="time", goal=1.0, must=1.3),
    needs=("kit",),
)
def against_remote_unpack(bench: Bench) -> Found:
    """Compare reading the whole model through a new mount with ``kit unpack`` from the registry and then reading.

    The time of kitfs starts with the first read, and its store is empty. ``kit`` has not downloaded the kit
    before, and it verifies nothing.
    """
    reference = bench.model.reference

    def theirs() -> float:
        with bench.kit_home() as home:
            out = home.root / "out"

            def unpack_and_read() -> None:
                home.kit("unpack", reference, "-d", out, "--plain-http")
                read_whole(out / FILE)

            return timed(unpack_and_read)

    return {"time": times(*bench.both(lambda: cold_read(bench, reference), theirs))}


@row(
    3,
    "cold mount and full read, loopback, against `kit pull` and `kit unpack`",
    Target(name="time", goal=0.6, must=0.8),
    needs=("kit",),
)
def against_pull_and_unpack(bench: Bench) -> Found:
    """Compare mounting and reading the whole model with ``kit pull`` and ``kit unpack``.

    The store is empty, and ``kit`` has not downloaded the kit before. The time of kitfs includes ``kitfs mount``. The
    time of ``kit`` does not include reading the model.
    """
    reference = bench.model.reference

    def theirs() -> float:
        with bench.kit_home() as home:

            def pull_and_unpack() -> None:
                home.kit("pull", reference, "--plain-http")
                home.kit("unpack", reference, "-d", home.root / "out", "--plain-http")

            return timed(pull_and_unpack)

    return {"time": times(*bench.both(lambda: cold_read(bench, reference, mounted=True), theirs))}


@row(
    4,
    "cold full read through the mount over slow links, against `curl -o`",
    Target(name=LINKS[0].name, goal=1.10, must=1.15),
    Target(name=LINKS[1].name, goal=1.3, must=1.6),
    Target(name=LINKS[2].name, goal=1.05, must=1.10),
    needs=("curl",),
)
def over_links(bench: Bench) -> Found:
    """Measure row 1 with a link between both clients and the registry.

    The link is benchmarks.link, a relay in a process of its own. It delays bytes by half a round trip, shares the rate
    between connections and emulates TCP's slow start. It uses CPU that both clients need.
    """
    model = bench.model
    found: dict[str, Sample | Absent] = {}
    for link in LINKS:
        if bench.only not in link.name:
            continue
        with slow(bench.registry.port, link) as port:
            found[link.name] = times(
                *bench.both(lambda: cold_read(bench, model.behind(port)), lambda: curl(bench, model.path(port)))
            )
    return found
