"""Mount and unmount from a process that must not fork because it may have threads: run ``python -m kitfs.daemon``."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from kitfs.daemon.request import MountRequest
from kitfs.errors import MountError, error_from_json


def ask_mount(request: MountRequest, warn: Callable[[str], None]) -> tuple[str, bool]:
    """Mount a kit. Returns the mount point, and whether the mount was made by this call.

    ``warn`` is called with each warning. Raises the error that the other process reported.
    """
    answer = _ask("mount", asdict(request), warn)
    return answer["mountpoint"], answer["made"]


def ask_unmount(mountpoint: str, run_dir: str, warn: Callable[[str], None], *, lazy: bool) -> None:
    """End a mount, and wait until its daemon has exited. Raises the error that the other process reported."""
    _ask("umount", {"mountpoint": mountpoint, "run_dir": run_dir, "lazy": lazy}, warn)


def _ask(verb: str, request: dict[str, Any], warn: Callable[[str], None]) -> dict[str, Any]:
    command = [sys.executable, "-m", "kitfs.daemon", verb]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            out, errors = process.communicate(json.dumps(request))
        except BaseException:
            process.send_signal(signal.SIGINT)  # the process then ends a daemon that it has started
            process.wait()
            raise
    try:
        answer: dict[str, Any] = json.loads(out)
    except ValueError:
        raise MountError(f"kitfs.daemon {verb} failed with exit code {process.returncode}: {errors.strip()[-500:]}")
    for warning in errors.splitlines():
        warn(warning)
    if "error" in answer:
        raise error_from_json(answer)
    return answer
