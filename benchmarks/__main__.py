"""Measure kitfs against its peers: see benchmarks/README.md.

python -m benchmarks [ROW…]            measure rows of the table, or all of them
python -m benchmarks profile ROW…      say where the time of kitfs' processes goes while a row is measured
python -m benchmarks list [ROW…]       say what each row measures exactly
"""

from __future__ import annotations

import argparse
import inspect
import json
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks import rows  # noqa: F401 - fills ROWS
from benchmarks.machine import Bench, describe, missing
from benchmarks.profile import Profile
from benchmarks.table import ROWS, Result, Row


def measure(row: Row, bench: Bench, runs: int) -> Result:
    """Measure a row ``runs`` times. A failure ends the row: what it measured before is kept."""
    result = Result(row)
    if absent := missing(row.needs):
        result.skip(f"{' and '.join(absent)} not on PATH")
        return result
    for number in range(runs):
        bench.run = number
        try:
            result.add(row.measure(bench))
        except (AssertionError, OSError, RuntimeError) as failure:
            result.skip(f"{type(failure).__name__}: {failure}")
            break
    return result


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="*", metavar="ROW", help="numbers of rows, after profile or list where wanted")
    parser.add_argument("--mib", type=int, default=1024, help="size of the model of most rows (default: 1024)")
    parser.add_argument("--runs", type=int, default=3, help="how often each row is measured (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every sample to a file, as JSON")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where to work (default: the temporary directory)")
    options = parser.parse_args()
    words: list[str] = options.words
    options.verb = words.pop(0) if words and not words[0].isdigit() else "measure"
    if options.verb not in ("measure", "profile", "list"):
        parser.error(f"{options.verb} is neither a row nor profile or list")
    try:
        options.rows = [ROWS[int(word)] for word in words] or list(ROWS.values())
    except (KeyError, ValueError):
        parser.error(f"the rows are {', '.join(map(str, ROWS))}")
    return options


def main() -> int:
    """Measure, profile or list rows; return 1 if a *must* is not met."""
    options = arguments()
    if options.verb == "list":
        for row in options.rows:
            print(f"{row.number:2}  {row.title}\n", *inspect.cleandoc(row.describes).splitlines(), "", sep="\n      ")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))  # so that mounts and the scratch directory are removed
    scratch = Path(tempfile.mkdtemp(prefix="kitfs-bench-", dir=options.scratch))
    about = describe()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"model of {options.mib} MiB, {options.runs} runs: median (least to most)\n", flush=True)
    results: list[Result] = []
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch)
        watch = Profile() if options.verb == "profile" else None
        bench = stack.enter_context(Bench(scratch, options.mib, watch=watch))
        for row in sorted(options.rows, key=lambda row: row.number):
            results.append(measure(row, bench, options.runs))
            print("\n".join(results[-1].lines()), flush=True)
            if watch:
                print("\n".join(watch.lines()), flush=True)
    if options.json:
        made = {"machine": about, "mib": options.mib, "runs": options.runs, "rows": [one.as_json() for one in results]}
        options.json.write_text(json.dumps(made, indent=1) + "\n")
    missed = [f"{one.row.number} ({target.name})" for one in results for target in one.missed()]
    print(f"\n{'Not met' if missed else 'Every must is met.'}{': ' if missed else ''}{', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
