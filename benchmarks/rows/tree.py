"""Row 17 measures a walk over a kit of many files."""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks.machine import Bench, timed
from benchmarks.models import SMALL_FILES
from benchmarks.rows.sealed import why_not_sealed
from benchmarks.table import Absent, Found, Sample, Target, row, times


def find(directory: Path) -> None:
    """Walk a directory by ``find -type f``."""
    done = subprocess.run(["find", directory, "-type", "f", "-path", "*/data/*"], capture_output=True, check=True)
    if (found := done.stdout.count(b"\n")) != SMALL_FILES:
        raise AssertionError(f"find saw {found} files below {directory}")


@row(
    17,
    "`find -type f` over 100,000 files, against the local disk",
    Target(name="first time", goal=30),
    Target(name="again", goal=5),
    Target(name="sealed", goal=3),
    needs=("find",),
)
def walk(bench: Bench) -> Found:
    """Compare ``find -type f`` over mounts of a kit of 100,000 files with the same tree on the local disk.

    The mounts are a fresh mount with an empty store, the same mount again, and the sealed mount of the pulled kit. The
    local tree was walked before. The last two numbers are medians of five walks, which alternate with walks of the
    local tree.
    """
    many = bench.models.many
    find(many.file)

    def local() -> float:
        return timed(lambda: find(many.file))

    with bench.home() as home:
        home.mount(many.reference, *home.never_sealed())
        first, base = bench.both(lambda: timed(lambda: find(home.mountpoint)), local)
        again, base_again = bench.repeated(lambda: timed(lambda: find(home.mountpoint)), local)
    found: dict[str, Sample | Absent] = {"first time": times(first, base), "again": times(again, base_again)}
    with bench.home() as home:
        home.kitfs("pull", many.reference)
        home.mount(many.reference)
        if reason := why_not_sealed(home):
            return found | {"sealed": Absent(reason)}
        find(home.mountpoint)
        sealed, base = bench.repeated(lambda: timed(lambda: find(home.mountpoint)), local)
        return found | {"sealed": times(sealed, base)}
