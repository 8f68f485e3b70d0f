"""Run Python programs that use kitfs in child processes. Return their output and exit code."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[3]
PATIENCE = 120.0  # seconds; only a program that hangs runs so long


class Ended(NamedTuple):
    """The exit code and the output of a program. The code is None if the program was killed after a timeout."""

    code: int | None
    out: str
    err: str


def run(
    home: Path, code: str, *args: str, options: tuple[str, ...] = (), environ: dict[str, str] | None = None
) -> Ended:
    """Run a Python program. Its store is below ``home``.

    The program is written to a file, because multiprocessing can spawn processes only from a file.
    """
    script = home / "program.py"
    script.write_text(textwrap.dedent(code))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("KITFS_", "KITOPS_"))}
    clean |= {f"KITFS_{name}": str(home / name.lower()) for name in ("CACHE_DIR", "CONFIG", "RUN_DIR")} | {
        "PYTHONPATH": str(ROOT)
    }
    command = [sys.executable, *options, str(script), *args]
    with subprocess.Popen(
        command,
        cwd=home,
        env=clean | (environ or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            return Ended(None, out, err)
    return Ended(process.returncode, out, err)
