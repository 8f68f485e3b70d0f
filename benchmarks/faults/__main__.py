"""Run trials with faults: of the network, of the disk, of kitfs's own processes, and of the bytes that it reads.

python -m benchmarks.faults [TRIAL…]   run trials, or all of them
python -m benchmarks.faults list       show what each trial checks
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import pkgutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults import trials
from benchmarks.faults.figures import Figures
from benchmarks.machine import describe


@dataclass(frozen=True)
class Trial:
    """A trial, its full number of repetitions and what it checks."""

    name: str
    run: Callable[[int, int], Figures]
    count: int
    text: str


def trial_names() -> list[str]:
    """Return the names of all trials, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(trials.__path__))


def trial_of(name: str) -> Trial:
    """Import a trial."""
    module = importlib.import_module(f"{trials.__name__}.{name}")
    return Trial(name, module.trial, module.COUNT, inspect.getdoc(module) or "")


def tried(one: Trial, count: int, seed: int) -> dict[str, Any]:
    """Run a trial, print its figures, and return them for JSON. An exception makes the trial fail."""
    print(f"{one.name}: {one.text.splitlines()[0]} ({count} times, --seed {seed})", flush=True)
    begin = time.monotonic()
    try:
        figures = one.run(count, seed)
    except Exception as e:  # noqa: BLE001 - the other trials still run
        traceback.print_exc()
        figures = Figures()
        figures.fail(f"{type(e).__name__}: {e}")
    seconds = time.monotonic() - begin
    print(*(f"    {line}" for line in figures.lines()), f"    {seconds:.0f} s\n", sep="\n", flush=True)
    return {"trial": one.name, "count": count, "seed": seed, "seconds": round(seconds, 1), **figures.as_json()}


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="TRIAL", help="names of trials, or list")
    parser.add_argument(
        "--count", type=int, metavar="N", help="number of repetitions of each trial (default: that of the full trial)"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="seed of the random choices (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file, as JSON")
    options = parser.parse_args(words)
    known = trial_names()
    options.listed = options.words == ["list"]
    if not options.listed and (unknown := [word for word in options.words if word not in known]):
        parser.error(f"{' and '.join(unknown)}: no such trial (the trials are {', '.join(known)})")
    options.trials = [trial_of(name) for name in (known if options.listed else options.words or known)]
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line, and return 1 if a trial failed."""
    options = arguments(words)
    if options.listed:
        for one in options.trials:
            print(f"{one.name} ({one.count} times)", *one.text.splitlines(), "", sep="\n    ")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))  # so that a trial that is ended removes its mounts
    found = [tried(one, options.count or one.count, options.seed) for one in options.trials]
    if options.json:
        options.json.write_text(json.dumps({"machine": describe(), "trials": found}, indent=1) + "\n")
    failed = [one["trial"] for one in found if one["failed"]]
    print(f"Failed: {', '.join(failed)}" if failed else "No trial failed.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
