"""Small file systems, for tests that need a full disk or a disk that fails."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CANNOT, needs, needs_root


@contextlib.contextmanager
def _mounted(directory: Path, what: str, *options: str) -> Iterator[None]:
    """Run mount(8) with ``options`` for ``directory``, and unmount it at the end of the block.

    The directory is created if it is missing. The test is skipped if mounting ``what`` is not permitted.
    """
    needs_root()
    needs("mount")
    directory.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(directory)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{CANNOT} mount cannot mount {what}: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@contextlib.contextmanager
def tmpfs(directory: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs at ``directory`` and unmount it at the end of the block.

    The directory is created if it is missing. ``options`` are those of mount(8), for example ``size=8m``. The test is
    skipped if mounting is not permitted.
    """
    with _mounted(directory, "a tmpfs", "-t", "tmpfs", "-o", options, "kitfs-test"):
        yield directory


@contextlib.contextmanager
def ext4(directory: Path, image: Path, mib: int) -> Iterator[Path]:
    """Mount a new ext4 file system of ``mib`` MiB in the file ``image`` at ``directory``, until the end of the block.

    The test is skipped if loop mounts are not permitted. ``abort`` makes the file system fail.
    """
    needs_root()
    needs("mkfs.ext4")
    with image.open("wb") as file:
        file.truncate(mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    with _mounted(directory, "a loop device", "-o", "loop", str(image)):
        yield directory


def abort(directory: Path) -> None:
    """Make an ext4 file system stop as after an I/O error: it becomes read-only under its open files."""
    subprocess.run(["mount", "-o", "remount,abort", str(directory)], capture_output=True, check=True)
