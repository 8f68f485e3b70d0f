"""Measure kitfs against its peers. benchmarks/README.md explains how.

python -m benchmarks [ROW…]            measure rows of the table, or all of them
python -m benchmarks profile ROW…      show where kitfs' processes spend their time while a row is measured
python -m benchmarks list [ROW…]       show what exactly each row measures
python -m benchmarks curve             measure the time until 1 % to 100 % of a model are read, by kitfs and by peers
python -m benchmarks plot FILE…        draw the results of --json into docs/, and print the table of the manual
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
from typing import Any

from benchmarks import curve, plot, rows  # noqa: F401 - rows fills ROWS
from benchmarks.machine import Bench, describe, missing
from benchmarks.profile import Profile
from benchmarks.table import ROWS, Result, Row

DOCS = Path(__file__).parents[1] / "docs"


def measure(row: Row, bench: Bench, runs: int) -> Result:
    """Measure a row ``runs`` times. If a run fails, no more runs follow, and the results of earlier runs are kept."""
    result = Result(row)
    if absent := missing(row.needs):
        result.skip(f"{' and '.join(absent)} not on PATH")
        return result
    for number in range(runs):
        bench.run = number
        try:
            result.add(row.measure(bench))
        except (AssertionError, OSError, RuntimeError, ValueError) as failure:
            result.skip(f"{type(failure).__name__}: {failure}")
            print(f"row {row.number} failed in run {number + 1}: {failure}", file=sys.stderr)
            break
    return result


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "words", nargs="*", metavar="WORD", help="a verb (see above), numbers of rows, or files for plot"
    )
    parser.add_argument("--mib", type=int, default=1024, help="size of the model of most rows (default: 1024)")
    parser.add_argument("--runs", type=int, default=3, help="number of times that each row is measured (default: 3)")
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="measure only targets whose name contains TEXT, for example --only 80",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every sample to a file, as JSON")
    parser.add_argument(
        "--scratch", type=Path, metavar="DIR", help="directory for temporary files (default: the system's)"
    )
    options = parser.parse_args()
    words: list[str] = options.words
    options.verb = words.pop(0) if words and not words[0].isdigit() else "measure"
    if options.verb not in ("measure", "profile", "list", "curve", "plot"):
        parser.error(f"{options.verb} is neither a row nor profile, list, curve or plot")
    if options.verb == "plot":
        options.files = [Path(word) for word in words]
        return options
    try:
        options.rows = [ROWS[number].only(options.only) for number in sorted(map(int, words) if words else ROWS)]
    except (KeyError, ValueError):
        parser.error(f"the rows are {', '.join(map(str, sorted(ROWS)))}")
    return options


def rows_measured(bench: Bench, options: argparse.Namespace, watch: Profile | None) -> tuple[dict[str, Any], int]:
    """Measure and print rows. Return the results for JSON, and the exit code: 1 if a *must* is not met."""
    results: list[Result] = []
    for row in options.rows:
        results.append(measure(row, bench, options.runs))
        print("\n".join(results[-1].lines()), flush=True)
        if watch:
            print("\n".join(watch.lines()), flush=True)
    missed = [f"{one.row.number} ({target.name})" for one in results for target in one.missed()]
    print(f"\nNot met: {', '.join(missed)}" if missed else "\nEvery must is met.")
    return {"rows": [one.as_json() for one in results]}, 1 if missed else 0


def curve_measured(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print the curve. Return the results for JSON."""
    return {"curve": curve.as_json(curve.measure(bench, options.runs, lambda text: print(text, flush=True)))}


def main() -> int:
    """Run the command line and return 1 if a *must* is not met."""
    options = arguments()
    if options.verb == "list":
        for row in options.rows:
            print(f"{row.number:2}  {row.title}\n", *inspect.cleandoc(row.describes).splitlines(), "", sep="\n      ")
        return 0
    if options.verb == "plot":
        print(*plot.draw(options.files, DOCS), sep="\n")
        for about in (json.loads(file.read_text()) for file in options.files):
            print(plot.markdown(about) if "rows" in about else "")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))  # so that mounts and the scratch directory are removed
    scratch = Path(tempfile.mkdtemp(prefix="kitfs-bench-", dir=options.scratch))
    about = describe()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(f"model of {options.mib} MiB, {options.runs} runs: median (minimum to maximum)\n", flush=True)
    watch = Profile() if options.verb == "profile" else None
    status = 0
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch)
        bench = stack.enter_context(Bench(scratch, options.mib, only=options.only, watch=watch))
        if options.verb == "curve":
            found = curve_measured(bench, options)
        else:
            found, status = rows_measured(bench, options, watch)
        if options.json:
            made = {"machine": about, "mib": options.mib, "runs": options.runs, **found}
            options.json.write_text(json.dumps(made, indent=1) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
