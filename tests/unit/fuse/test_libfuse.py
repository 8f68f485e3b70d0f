"""Tests of errors of the libfuse transport before and during mounting. Its mounts are tested in tests/contract."""

from __future__ import annotations

import errno
import logging
import os
import sys
from pathlib import Path
from typing import cast

import pytest

from kitfs.errors import MountError
from kitfs.fuse.filesystem import FileSystem
from kitfs.fuse.libfuse import LibfuseTransport
from kitfs.fuse.mounting import MountOptions
from kitfs.metrics import Counters
from tests.conftest import needs
from tests.fakes.filesystem import MemoryFileSystem


def transport(path: Path) -> LibfuseTransport:
    options = MountOptions(mountpoint=str(path), source="registry.example/a:v1")
    return LibfuseTransport(
        cast(FileSystem, MemoryFileSystem({})), options, counters=Counters(), log=logging.getLogger("kitfs.test")
    )


def needs_device() -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("not here: /dev/fuse may not be opened")
    if os.geteuid() != 0:
        needs("fusermount3")


@pytest.mark.mount
def test_without_libfuse_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is one line. It names the package to install, and the other transport."""
    needs_device()
    monkeypatch.setenv("FUSE_LIBRARY_PATH", str(tmp_path / "libfuse.so"))
    monkeypatch.delitem(sys.modules, "fuse", raising=False)
    with pytest.raises(MountError, match=r"install libfuse2 .* or use --transport kernel") as told:
        transport(tmp_path).mount()
    assert told.value.errno == errno.ENOENT


@pytest.mark.mount
@pytest.mark.parametrize(("name", "number"), [("missing", errno.ENOENT), ("file", errno.ENOTDIR)])
def test_a_mount_point_that_is_none_is_refused(tmp_path: Path, name: str, number: int) -> None:
    """kitfs checks the mount point itself, because libfuse would only print the error to stderr."""
    needs_device()
    (tmp_path / "file").touch()
    with pytest.raises(MountError, match="is not a directory") as told:
        transport(tmp_path / name).mount()
    assert told.value.errno == number


@pytest.mark.mount
def test_a_mount_that_libfuse_refuses_is_an_error_of_serve(tmp_path: Path) -> None:
    """If the mount point is removed before ``serve`` mounts, ``serve`` raises MountError."""
    needs_device()
    needs("libfuse")
    (tmp_path / "m").mkdir()
    refused = transport(tmp_path / "m")
    refused.mount()
    (tmp_path / "m").rmdir()
    with pytest.raises(MountError, match="libfuse cannot mount at"):
        refused.serve(lambda: None)


def test_serving_before_mounting_is_refused(tmp_path: Path) -> None:
    """The errno of the error is EINVAL."""
    with pytest.raises(MountError, match="is not mounted"):
        transport(tmp_path).serve(lambda: None)
