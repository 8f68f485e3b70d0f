"""Small file systems, for tests that need a full disk or a disk that fails."""

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


@contextlib.contextmanager
def ext4(directory: Path, image: Path, mib: int) -> Iterator[Path]:
    """Mount a new ext4 file system of ``mib`` MiB in the file ``image`` at ``directory``, until the end of the block.

    The test is skipped if loop mounts are not permitted. ``abort`` makes the file system fail.
    """
    needs_root()
    needs("mount", "mkfs.ext4")
    directory.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    command = ["mount", "-o", "loop", str(image), str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{CANNOT} mount cannot mount a loop device: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def abort(directory: Path) -> None:
    """Make an ext4 file system stop as after an I/O error: it becomes read-only under its open files."""
    subprocess.run(["mount", "-o", "remount,abort", str(directory)], capture_output=True, check=True)
