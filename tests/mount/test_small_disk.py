"""A mount whose cache is on a small disk stays usable, and every byte that it returns is right."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disks import tmpfs
from tests.host import Host, Mounted
from tests.kits import build, part, write_layout

pytestmark = pytest.mark.mount
MiB = 1 << 20
READ_UNCACHED = """
import hashlib, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
print(hashlib.sha256(os.pread(fd, int(sys.argv[3]), int(sys.argv[2]))).hexdigest())
"""


@pytest.fixture
def small(host: Host) -> Iterator[Path]:
    """Return a tmpfs of 12 MiB, which is used as the cache directory."""
    with tmpfs(host.root / "disk", "size=12m") as directory:
        yield directory
        for path in host.mount_points():
            if path != directory:
                host.kitfs("umount", path, "--cache-dir", directory)


def fill(directory: Path) -> Path:
    """Write a file that uses all the remaining space."""
    filler = directory / "filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
    try:
        with pytest.raises(OSError) as caught:  # noqa: PT012 - until it fails
            while True:
                os.write(fd, bytes(4096))
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
    assert caught.value.errno == errno.ENOSPC
    return filler


def read(mount: Mounted, name: str, at: int, size: int = 4096) -> str:
    """Return the digest of some bytes of a file.

    A process with a time limit reads the bytes, bypassing the kernel's cache.
    """
    command = [sys.executable, "-c", READ_UNCACHED, str(mount / name), str(at), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_a_disk_that_fills_while_a_sparse_layer_is_read(host: Host, small: Path) -> None:
    """If the disk is full, a mount returns the right bytes without storing them."""
    blob = host.root / "blob"
    with blob.open("wb") as file:
        file.truncate(1 << 30)
        file.seek(900 * MiB)
        file.write(b"far away")
    kit = build([part("model", "w.bin", blob, format="raw")])
    mount = host.mount(f"oci:{write_layout(kit, host.root / 'layout', 'v1')}:v1", "--cache-dir", small)
    fill(small)
    assert read(mount, "w.bin", 900 * MiB, 8) == hashlib.sha256(b"far away").hexdigest()
    assert read(mount, "w.bin", 0) == hashlib.sha256(bytes(4096)).hexdigest()
    assert host.status(mount)["read_through"] > 0
    assert host.status(mount)["errors"] == 0


def test_a_compressed_layer_that_is_larger_than_the_disk(host: Host, small: Path) -> None:
    """A file is read forward, backward and forward again.

    The bytes are right, although the store cannot keep them all.
    """
    data = random.Random(4).randbytes(40 * MiB)
    kit = build([part("model", "w.bin", data, format="raw", compression="gzip")])
    mount = host.mount(f"oci:{write_layout(kit, host.root / 'layout', 'v1')}:v1", "--cache-dir", small)
    for at in (25 * MiB, 12 * MiB, 30 * MiB, 20 * MiB, 39 * MiB, 15 * MiB):
        assert read(mount, "w.bin", at, 100_000) == hashlib.sha256(data[at : at + 100_000]).hexdigest(), (
            f"the bytes at {at} are wrong"
        )


def test_a_disk_that_an_earlier_mount_has_filled(host: Host, small: Path) -> None:
    """The blobs of an earlier mount are evicted to make space for the next mount."""
    refs = []
    for n in range(2):
        data = random.Random(n).randbytes(20 * MiB)
        kit = build([part("model", "w.bin", data, format="raw")])
        refs.append((f"oci:{write_layout(kit, host.root / f'layout{n}', 'v1')}:v1", data))
    for n, (ref, data) in enumerate([*refs, *refs]):
        mount = host.mount(ref, "--cache-dir", small, at=str(n))
        assert hashlib.sha256((mount / "w.bin").read_bytes()).digest() == hashlib.sha256(data).digest()
        host.kitfs("umount", mount.path, "--cache-dir", small)
        fill(small)  # uses the last bytes too


def test_a_bomb_that_is_larger_than_the_disk_and_says_no_size(host: Host, small: Path) -> None:
    """A raw gzip file does not declare its decoded size, and its decoded bytes do not fit into the store.

    stat(2) of the file fails, and the mount stays usable.
    """
    blob = gzip.compress(bytes(700 * MiB), 1)
    kit = build([part("model", "w.bin", b"", format="raw", blob=blob, compression="gzip")], vintage="1.7")
    mount = host.mount(f"oci:{write_layout(kit, host.root / 'layout', 'v1')}:v1", "--cache-dir", small)
    done = subprocess.run(["stat", mount / "w.bin"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert host.status(mount)["state"] == "alive"
