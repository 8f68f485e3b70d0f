"""FUSE passthrough on a real mount: the kernel reads from backing files without the daemon.

The bytes of the file system in memory differ from those of the backing file, so the result of a read shows its source.
"""

from __future__ import annotations

import errno
import logging
import os
import platform
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from kitfs.fuse import mount_table
from kitfs.fuse.filesystem import FileSystem
from kitfs.fuse.kernel import KernelTransport
from kitfs.fuse.mounting import MountOptions
from kitfs.fuse.passthrough import SOON
from kitfs.fuse.replies import Backing
from kitfs.metrics import Counters
from tests.fakes.filesystem import MemoryFileSystem
from tests.host import wait_until

KERNEL = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0 or KERNEL < (6, 9), reason="not here: passthrough needs root and Linux 6.9"),
]
COPIED, BACKED = b"copied" * 1000, b"backed" * 1000
PATIENCE = 60.0


class Passing:
    """A mount of ``file`` and ``other``, and a backing file that ``file`` can have."""

    def __init__(self, folder: Path) -> None:
        self.fs = MemoryFileSystem({"file": COPIED, "other": COPIED})
        self.path = folder / "mount"
        self.path.mkdir()
        self.file = self.path / "file"
        self.backing = folder / "backing"
        self.backing.write_bytes(BACKED)
        options = MountOptions(mountpoint=str(self.path), source="passthrough")
        self.transport = KernelTransport(
            cast(FileSystem, self.fs), options, counters=Counters(), log=logging.getLogger("kitfs.test")
        )
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self.transport.serve, args=(self._ready.set,))

    def start(self) -> None:
        """Mount, and wait until the mount is ready."""
        self.transport.mount()
        self._thread.start()
        assert self._ready.wait(PATIENCE)

    def end(self) -> None:
        """Unmount, and wait until the transport has ended."""
        self.transport.stop()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def back(self) -> None:
        """Give ``file`` its backing file, and wait until the kernel looks up the name again."""
        self.fs.backings["file"] = self.backing
        wait_until(
            lambda: self.file.read_bytes() == BACKED, f"the kernel did not look the name up again after {SOON} s"
        )

    def reads(self) -> int:
        """Return the number of read requests from the kernel."""
        return sum(operation == "read" for operation, _, _ in self.fs.calls)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Passing]:
    passing = Passing(tmp_path)
    passing.start()
    try:
        yield passing
    finally:
        passing.end()


@pytest.fixture
def opened() -> Iterator[Callable[[Path], int]]:
    """Return a function that opens files, which are closed after the test."""
    fds: list[int] = []

    def open_one(path: Path) -> int:
        fds.append(os.open(path, os.O_RDONLY))
        return fds[-1]

    yield open_one
    for fd in fds:
        os.close(fd)


def test_kernel_reads_a_backed_file_by_itself(mount: Passing, opened: Callable[[Path], int]) -> None:
    """The kernel sends no read requests for a file with a backing file.

    ``native_files`` is the number of open backing files.
    """
    mount.fs.backings["file"] = mount.backing
    first, second = opened(mount.file), opened(mount.file)
    assert [os.pread(fd, 1 << 20, 0) for fd in (first, second)] == [BACKED] * 2
    assert (mount.path / "other").read_bytes() == COPIED
    assert mount.transport.native_files == 1
    assert [path for operation, path, _ in mount.fs.calls if operation == "read"] == ["other"]


def test_backing_file_is_closed_with_the_last_handle(mount: Passing) -> None:
    """A file that is closed and opened again uses passthrough each time."""
    mount.fs.backings["file"] = mount.backing
    for _ in range(50):
        assert mount.file.read_bytes() == BACKED
    wait_until(lambda: mount.transport.native_files == 0, "the backing file is still open")
    wait_until(lambda: mount.fs.open_handles == {}, "a handle was not released")


def test_file_that_is_verified_while_it_is_open_is_mixed(mount: Passing, opened: Callable[[Path], int]) -> None:
    """The daemon still serves old handles, and new handles use passthrough. Both have the same st_ino."""
    mount.fs.backings["file"] = Backing.LATER
    old = opened(mount.file)
    assert os.pread(old, 6, 0) == b"copied"
    mount.back()
    new, again = opened(mount.file), opened(mount.file)
    assert [os.pread(fd, 6, 3000) for fd in (old, new, again)] == [b"copied", b"backed", b"backed"]
    assert os.fstat(old).st_ino == os.fstat(new).st_ino == os.stat(mount.file).st_ino
    # This opens the old node. The kernel does not permit both kinds of handles for one node.
    reopened = opened(Path(f"/proc/self/fd/{old}"))
    assert os.pread(reopened, 6, 0) == b"copied"


def test_file_that_loses_its_backing_is_copied_again(mount: Passing, opened: Callable[[Path], int]) -> None:
    """If a file loses its backing file while it is open, open handles can still be read.

    The daemon serves handles that are opened later.
    """
    mount.fs.backings["file"] = mount.backing
    held = opened(mount.file)
    mount.backing.unlink()
    assert os.pread(held, 6, 0) == b"backed"
    other = opened(mount.file)  # a second handle for the open backing file
    assert os.pread(other, 6, 0) == b"backed"
    mount.fs.backings["file"] = Backing.NEVER
    assert mount.transport.native_files == 1


def test_evicted_file_is_found_under_its_first_node(mount: Passing) -> None:
    """If a file loses its backing file while it is closed, the next open looks the name up again and succeeds."""
    mount.fs.backings["file"] = mount.backing
    assert mount.file.read_bytes() == BACKED
    wait_until(lambda: mount.transport.native_files == 0, "the backing file is still open")
    mount.backing.unlink()
    mount.fs.backings["file"] = Backing.LATER
    assert mount.file.read_bytes() == COPIED
    mount.backing.write_bytes(BACKED)
    mount.back()


def test_backing_file_that_the_kernel_refuses_is_copied(mount: Passing) -> None:
    """The kernel refuses a backing file of /proc, so the daemon serves the file."""
    mount.fs.backings["file"] = Path("/proc/version")
    assert mount.file.read_bytes() == COPIED
    assert mount.transport.native_files == 0


def test_open_of_a_second_node_without_a_name_fails_as_stale(mount: Passing) -> None:
    """If a file has lost its backing file, open by an O_PATH descriptor fails with ESTALE.

    The kernel cannot look the file up again, because the descriptor has no name.
    """
    mount.fs.backings["file"] = mount.backing
    held = os.open(mount.file, os.O_PATH)
    try:
        mount.fs.backings["file"] = Backing.LATER
        with pytest.raises(OSError, match=r".") as e:
            os.open(f"/proc/self/fd/{held}", os.O_RDONLY)
        assert e.value.errno == errno.ESTALE
    finally:
        os.close(held)


def test_listing_gives_the_same_nodes_as_a_lookup(mount: Passing) -> None:
    """READDIRPLUS returns the same nodes as LOOKUP."""
    mount.fs.backings["file"] = mount.backing
    with os.scandir(mount.path) as found:
        inodes = {entry.name: entry.inode() for entry in found}
    assert inodes["file"] == os.stat(mount.file).st_ino
    assert mount.file.read_bytes() == BACKED


def test_kernel_reads_ahead_a_whole_request(mount: Passing) -> None:
    """The mount's readahead is raised from 128 KiB to 1 MiB."""
    there = mount_table.mount_at(str(mount.path))
    assert there is not None
    assert Path(f"/sys/class/bdi/{there.dev}/read_ahead_kb").read_text() == "512\n"
