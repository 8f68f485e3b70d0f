"""Small file systems in memory, for tests that need a full disk."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CANNOT, needs, needs_root


@contextlib.contextmanager
def tmpfs(directory: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs at ``directory`` and unmount it at the end of the block.

    The directory is created if it is missing. ``options`` are those of mount(8), for example ``size=8m``. The test is
    skipped if mounting is not permitted.
    """
    needs_root()
    needs("mount")
    directory.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "kitfs-test", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{CANNOT} mount cannot mount a tmpfs: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)
