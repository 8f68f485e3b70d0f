"""Rows 5 to 8 read a kit that is already in the store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.machine import PIECE, Bench, Home, drop_pages, read_mapped, read_random, read_whole, timed
from benchmarks.models import FILE
from benchmarks.table import Absent, Found, Sample, Target, row, speed

READS: dict[str, Callable[[Path], None]] = {
    "1 MiB reads": read_whole,
    "mmap": read_mapped,
    "random 4 KiB": read_random,
}
PATIENCE = 15.0  # seconds to wait for a mount to change its mode


def targets(goals: tuple[float, float, float], musts: tuple[float, ...] = ()) -> tuple[Target, ...]:
    """Return a target for each kind of read."""
    limits = zip(READS, goals, musts or (None, None, None), strict=True)
    return tuple(Target(name=name, goal=goal, must=must, at_least=True) for name, goal, must in limits)


def why_not_sealed(home: Home) -> str:
    """Wait until the mount is sealed. Return "", or the reason in ``kitfs status`` if it is not sealed."""
    deadline = time.monotonic() + PATIENCE
    while (report := home.status()).get("mode") != "sealed":
        if "mode" not in report or time.monotonic() > deadline:
            return f"not sealed: {report.get('not_sealed') or 'this kitfs does not seal'}"
        time.sleep(0.2)
    return ""


@contextmanager
def sealed(bench: Bench) -> Iterator[Path | Absent]:
    """Yield the model in a sealed mount, or the reason why the mount is not sealed."""
    with bench.home() as home:
        home.kitfs("pull", bench.model.reference)
        home.mount(bench.model.reference)
        reason = why_not_sealed(home)
        yield Absent(reason) if reason else home.mountpoint / FILE


def needs_daemon(home: Home, file: Path) -> bool:
    """Stop the daemon for up to two seconds. Return whether a read of an open file waits for the daemon."""
    daemon = home.status()["worker_pid"]
    read = threading.Event()
    with file.open("rb", buffering=0) as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.kill(daemon, signal.SIGSTOP)

        def work() -> None:
            opened.read(PIECE)
            read.set()

        reader = threading.Thread(target=work)
        reader.start()
        try:
            return not read.wait(2)
        finally:
            os.kill(daemon, signal.SIGCONT)
            reader.join()


def compare(bench: Bench, mounted: Path, local: Path, *, drop: bool) -> dict[str, Sample | Absent]:
    """Compare the three kinds of read while the mounted and the local file are in the page cache.

    With ``drop``, the pages of the mounted file are dropped before each read.
    """
    read_whole(local)
    read_whole(mounted)

    def ours(read: Callable[[Path], None]) -> float:
        if drop:
            drop_pages(mounted)
        return timed(lambda: read(mounted))

    found: dict[str, Sample | Absent] = {}
    for name, read in READS.items():
        sides = (lambda: ours(read), lambda: timed(lambda: read(local)))  # noqa: B023 - called at once
        found[name] = speed(*bench.repeated(*sides))
    return found


@row(
    5,
    "sealed mount, second read, against the local file",
    *targets((0.95, 0.95, 0.9), (0.9, 0.9, 0.8)),
)
def second_read(bench: Bench) -> Found:
    """Compare reading the model through a sealed mount with reading a local copy, both in the page cache.

    The kinds of read are reads of 1 MiB, copies of 1 MiB out of a mapping, and 20,000 reads of 4 KiB at random places.
    Each number is the median of five reads, which alternate with those of the local file.
    """
    with sealed(bench) as file:
        if isinstance(file, Absent):
            return dict.fromkeys(READS, file)
        return compare(bench, file, bench.model.file, drop=False)


@row(6, "sealed mount, its own pages dropped, against the local file", *targets((0.35, 0.75, 0.25)))
def sealed_dropped(bench: Bench) -> Found:
    """Measure row 5, but drop the pages of the mounted file before each read.

    The pages of the blob in the store and those of the local file are not dropped.
    """
    with sealed(bench) as file:
        if isinstance(file, Absent):
            return dict.fromkeys(READS, file)
        return compare(bench, file, bench.model.file, drop=True)


@row(7, "passthrough (a raw layer, EROFS refused), its pages dropped", *targets((0.95, 0.9, 0.9)))
def passthrough(bench: Bench) -> Found:
    """Measure row 6 for a layer that is the file itself, with a store on tmpfs, which EROFS refuses.

    The local file is the blob in the store, so both sides read the same pages. Before the measurement, the daemon is
    stopped for a moment to check that reads do not need it.
    """
    model = bench.models.raw(bench.mib)
    with bench.home(below=Path("/dev/shm")) as home:
        home.kitfs("pull", model.reference)
        file = home.mount(model.reference) / FILE
        if needs_daemon(home, file):
            return dict.fromkeys(READS, Absent("reads need the daemon"))
        size = file.stat().st_size
        blob = next(path for path in home.store.rglob("*") if path.is_file() and path.stat().st_size == size)
        return compare(bench, file, blob, drop=True)


@contextmanager
def minimal(bench: Bench, source: Path) -> Iterator[Path]:
    """Mount a directory of the local disk with benchmarks.minimal, the smallest file system that fusepy can make."""
    mountpoint = bench.name("minimal")
    mountpoint.mkdir()
    before = mountpoint.stat().st_dev
    with subprocess.Popen([sys.executable, "-m", "benchmarks.minimal", source, mountpoint]) as process:
        try:
            while mountpoint.stat().st_dev == before:
                if process.poll() is not None:
                    raise RuntimeError("the minimal file system did not start")
                time.sleep(0.02)
            yield mountpoint
        finally:
            subprocess.run(["umount", mountpoint], check=True)


@row(
    8,
    "copy mode (`--seal never`), its pages dropped",
    *(Target(name=f"{name}, local file", goal=goal, at_least=True)
      for name, goal in zip(READS, (0.4, 0.4, 0.1), strict=True)),
    Target(name="1 MiB reads, minimal fusepy", goal=2.5, at_least=True),
    Target(name="random 4 KiB, minimal fusepy", goal=1.0, at_least=True),
)  # fmt: skip
def copy_mode(bench: Bench) -> Found:
    """Measure row 6 through a mount that copies every byte (FUSE, neither sealed nor passthrough).

    The first peer is the local file. The second peer is the local file through benchmarks.minimal, which calls
    pread(2). Before each read through a mount, the pages of the mounted file are dropped.
    """
    with bench.home() as home, minimal(bench, bench.model.file.parent) as plain:
        local, simple = bench.model.file, plain / bench.model.file.name
        home.kitfs("pull", bench.model.reference)
        mounted = home.mount(bench.model.reference, *home.never_sealed()) / FILE
        found = {f"{name}, local file": sample for name, sample in compare(bench, mounted, local, drop=True).items()}

        def dropped(file: Path, read: Callable[[Path], None]) -> float:
            drop_pages(file)
            return timed(lambda: read(file))

        for name in ("1 MiB reads", "random 4 KiB"):
            sides = (lambda: dropped(mounted, READS[name]), lambda: dropped(simple, READS[name]))  # noqa: B023
            found[f"{name}, minimal fusepy"] = speed(*bench.repeated(*sides, times=3))
        return found
