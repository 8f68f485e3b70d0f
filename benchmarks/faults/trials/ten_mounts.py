"""Read at random from ten mounts of overlapping kits whose cache limit is a third of their size.

One repetition is one second of reading. Ten kits of ``LAYERS`` layers each are mounted; each layer belongs to several
of the kits. Threads read random pieces of random files of all mounts:

- no read fails, and no read returns a wrong byte;
- the evictable blobs never take more than the limit and one write per mount;
- the blobs that a mount has open are not evicted, which a read would notice.
"""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path
from typing import Final

from benchmarks.faults.figures import Figures
from tests import kits
from tests.host import Host, Mounted, boxed

COUNT: Final = 600
MOUNTS: Final = 10
BLOBS: Final = 20
LAYERS: Final = 4
MiB: Final = 1 << 20
SIZE: Final = 3 * MiB  # bytes of a layer
LIMIT: Final = BLOBS * SIZE // 3
WRITE: Final = MiB  # bytes of one write to a layer's file
THREADS: Final = 6


def used(cache: Path) -> int:
    """Return the bytes on disk of all blobs."""
    total = 0
    for base in ("blobs", "decoded", "unproven"):
        for directory, _, names in os.walk(cache / base):
            for name in names:
                try:
                    total += os.lstat(os.path.join(directory, name)).st_blocks * 512
                except FileNotFoundError:
                    pass  # it was evicted meanwhile
    return total


def mounted(host: Host, contents: list[bytes], choose: random.Random) -> list[tuple[Mounted, list[int]]]:
    """Mount the kits, and return each mount with the numbers of its layers."""
    found = []
    for number in range(MOUNTS):
        layers = choose.sample(range(BLOBS), LAYERS)
        parts = [kits.part("dataset", f"{n}.bin", contents[n], format="raw") for n in layers]
        layout = kits.write_layout(kits.build(parts), host.root / f"layout{number}", "v1")
        options = ("--cache-size", str(LIMIT), "--seal", "never")
        found.append((host.mount(f"oci:{layout}:v1", *options, at=str(number)), layers))
    return found


class Reader(threading.Thread):
    """A thread that reads random pieces until ``until``."""

    def __init__(
        self, mounts: list[tuple[Mounted, list[int]]], contents: list[bytes], until: float, seed: int, figures: Figures
    ) -> None:
        super().__init__()
        self._mounts = mounts
        self._contents = contents
        self._until = until
        self._choose = random.Random(seed)
        self._figures = figures

    def run(self) -> None:
        """Read."""
        while time.monotonic() < self._until:
            mount, layers = self._choose.choice(self._mounts)
            number = self._choose.choice(layers)
            at, size = self._choose.randrange(SIZE), self._choose.randrange(1, 300_000)
            begin = time.monotonic()
            try:
                fd = os.open(mount / f"{number}.bin", os.O_RDONLY)
                try:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                    data = os.pread(fd, size, at)
                finally:
                    os.close(fd)
            except OSError as e:
                self._figures.add(errors=1)
                self._figures.fail(f"a read of {mount / f'{number}.bin'} failed: {e}")
                continue
            wrong = 0 if data == self._contents[number][at : at + size] else len(data) or 1
            self._figures.add(wrong_bytes=wrong, longest=time.monotonic() - begin)


def trial(count: int, seed: int) -> Figures:
    """Read for ``count`` seconds."""
    figures = Figures()
    choose = random.Random(seed)
    contents = [choose.randbytes(SIZE) for _ in range(BLOBS)]
    most = 0
    with boxed() as host:
        mounts = mounted(host, contents, choose)
        until = time.monotonic() + count
        readers = [Reader(mounts, contents, until, seed + n, figures) for n in range(THREADS)]
        for reader in readers:
            reader.start()
        while any(reader.is_alive() for reader in readers):
            most = max(most, used(host.cache))
            time.sleep(0.05)
        for reader in readers:
            reader.join()
        figures.add(trials=count)
        figures.require(most <= LIMIT + MOUNTS * WRITE, f"the blobs took {most} bytes; the limit is {LIMIT}")
        uncached = sum(host.status(mount)["read_through"] for mount, _ in mounts)
        for mount, _ in mounts:
            host.umount(mount)
        figures.require(used(host.cache) <= LIMIT, "the blobs took more than the limit after the last umount")
    figures.more.update(limit=LIMIT, most_used=most, bytes_read_through=uncached)
    return figures
