"""A mount whose cache disk fails continues to return the right bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.disks import abort, ext4
from tests.host import Host
from tests.kits import build, kit_tar, part, write_layout

pytestmark = pytest.mark.mount
MiB = 1 << 20


def uncached(path: Path) -> bytes:
    """Return the bytes of a file, which the daemon and not the kernel's cache sends."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        with open(fd, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(fd)


def test_a_cache_disk_that_becomes_read_only(host: Host) -> None:
    """Partly cached, uncached and compressed layers can be read after the cache disk has stopped.

    The status and one line of the log say so, and no read fails.
    """
    first, second, packed = (os.urandom(6 * MiB) for _ in range(3))
    kit = build(
        [
            part("model", "w.bin", first, format="raw"),
            part("dataset", "d", kit_tar({"d/d.bin": second})),
            part("code", "c", kit_tar({"c/c.bin": packed}), compression="gzip"),
        ]
    )
    reference = f"oci:{write_layout(kit, host.root / 'layout', 'v1')}:v1"
    with ext4(host.root / "disk", host.root / "image", 64) as disk:
        mount = host.mount(reference, "--cache-dir", disk / "cache", "--fill", "none", "--seal", "never")
        with (mount / "w.bin").open("rb") as file:
            assert file.read(MiB) == first[:MiB]
        abort(disk)
        assert uncached(mount / "w.bin") == first
        assert uncached(mount / "d/d.bin") == second
        assert uncached(mount / "c/c.bin") == packed
        status = host.status(mount)
        assert (status["errors"], status["cache_failure"]) == (0, "read-only file system")
        assert status["read_through"] > 10 * MiB
        log = Path(status["log"]).read_text()
        assert log.count("the disk of the cache") == 1, log
        host.kitfs("umount", mount.path, "--cache-dir", disk / "cache")
