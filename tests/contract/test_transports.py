"""Both transports follow their contract on real mounts of a file system in memory.

Threads of this process serve the mount. A call that uses the mount must therefore release the GIL, as system calls do.
Page faults of a mapping keep the GIL, so a separate process reads mappings. Tests that kill a reader use a separate
process too.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, cast

import pytest

from kitfs.errors import IntegrityError, MountError
from kitfs.fuse import mount_table, mounting
from kitfs.fuse.filesystem import FileSystem
from kitfs.fuse.kernel import KernelTransport
from kitfs.fuse.libfuse import LibfuseTransport
from kitfs.fuse.mounting import MountOptions
from kitfs.metrics import Counters
from tests.conftest import needs
from tests.errnos import errno_of
from tests.fakes.filesystem import MTIME, Link, MemoryFileSystem
from tests.host import wait_until

pytestmark = pytest.mark.mount
PATIENCE = 60.0
LATIN = b"caf\xe9"
NAMES = ["ascii", "with space", "ünïcode", "漢字", "emoji 🦙", "new\nline", "back\\slash", "quo'te\"", "n" * 255]
BIG = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(3 << 15)) + b"tail"  # a little more than 3 MiB
FILES = {
    "file": b"0123456789", "big": BIG, "dir/inner": b"inner", "dir/sub/deep": b"deep", "empty": b"", "void": None,
    "cold": b"cold" * 1000,
    "cold-dir/x": b"x", "link": Link("dir/inner"), "long-link": Link("t/" * 2000), "dangling": Link("gone"),
    **{f"many/{n:05}": b"%d" % n for n in range(3000)}, **{f"names/{name}": name.encode() for name in NAMES},
    b"names/" + LATIN: b"latin",
}  # fmt: skip


HASH_OF_A_MAPPING = """
import hashlib, mmap, sys
with open(sys.argv[1], "rb") as f:
    print(hashlib.sha256(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)).hexdigest())
"""


class Transport(Protocol):
    """The interface of both transports."""

    name: str

    def mount(self) -> None: ...

    def serve(self, ready: Callable[[], None]) -> None: ...

    def stop(self) -> None: ...


class Served:
    """A mount, its file system, and the thread that serves it."""

    def __init__(self, kind: str, path: Path, source: str) -> None:
        self.fs = MemoryFileSystem(FILES)
        self.counters = Counters()
        self.path = path
        self.failure: BaseException | None = None
        made: Callable[..., Transport] = KernelTransport if kind == "kernel" else LibfuseTransport
        options = MountOptions(mountpoint=str(path), source=source, allow_other=False)
        self.transport = made(
            cast(FileSystem, self.fs), options, counters=self.counters, log=logging.getLogger("kitfs.test")
        )
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self._serve, name="serve")

    def _serve(self) -> None:
        try:
            self.transport.serve(self.ready.set)
        except BaseException as e:  # noqa: BLE001 - the test looks at it
            self.failure = e
            self.ready.set()

    def start(self) -> None:
        self.transport.mount()
        self.thread.start()
        assert self.ready.wait(PATIENCE)
        assert self.failure is None

    def end(self) -> None:
        """End the mount and the thread, in whatever state the test left them."""
        for gate in self.fs.cold.values():
            gate.set()
        while mount_table.is_mountpoint(str(self.path)):
            try:
                mounting.unmount(str(self.path), lazy=True)
            except MountError as e:
                if e.errno != errno.EINVAL:  # it ended by itself in the meantime
                    raise
        if self.thread.ident is not None:
            self.thread.join(PATIENCE)
            assert not self.thread.is_alive(), "serve did not return after the unmount"

    def __truediv__(self, name: str) -> Path:
        return self.path / name


@pytest.fixture
def mount(tmp_path: Path, transport: str) -> Iterator[Served]:
    """Yield a mount of FILES. A directory in the path of the mount point has a space in its name."""
    if os.geteuid() != 0:
        needs("fusermount3")
    path = tmp_path / "mount point"
    path.mkdir()
    served = Served(transport, path, "registry.example/a,b:v1")
    try:
        served.start()
        yield served
    finally:
        served.end()


def child(code: str, *args: object) -> subprocess.Popen[bytes]:
    """Start a separate Python process."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-S", "-c", code, *map(str, args)], stdin=pipe, stdout=pipe, stderr=pipe)


# -- content


def test_the_kernel_shows_source_and_type(mount: Served) -> None:
    """The mount table shows the reference, fuse.kitfs, read-only, no setuid and no devices.

    The mount point may contain a space.
    """
    found = mount_table.mount_at(str(mount.path))
    assert found is not None
    assert (found.mountpoint, found.source, found.fstype) == (str(mount.path), "registry.example/a,b:v1", "fuse.kitfs")
    lines = [
        line.split()
        for line in Path("/proc/mounts").read_text(errors="surrogateescape").splitlines()
        if "fuse.kitfs" in line
    ]
    options = next(line[3] for line in lines if line[1] == str(mount.path).replace(" ", r"\040")).split(",")
    assert {"ro", "nosuid", "nodev", "default_permissions"} <= set(options)
    assert "allow_other" not in options


def test_files_have_their_bytes(mount: Served) -> None:
    """Small files, empty files and files larger than a request have the right bytes."""
    assert (mount / "file").read_bytes() == b"0123456789"
    assert (mount / "empty").read_bytes() == b""
    assert (mount / "big").read_bytes() == BIG
    assert (mount / "dir/sub/deep").read_bytes() == b"deep"


def test_reads_at_every_place_are_right(mount: Served) -> None:
    """Reads across pages and requests, and at and after the end of a file, return the right bytes."""
    fd = os.open(mount / "big", os.O_RDONLY)
    try:
        for offset in (0, 1, 4095, 4096, 131071, 1 << 20, (1 << 20) - 1, len(BIG) - 5, len(BIG), len(BIG) + 1, 1 << 50):
            for size in (1, 5, 4096, 200_000):
                assert os.pread(fd, size, offset) == BIG[offset : offset + size]
    finally:
        os.close(fd)


def test_many_threads_read_at_once(mount: Served) -> None:
    """Eight threads that read in different orders all get the right bytes."""
    wrong: list[int] = []

    def read(step: int) -> None:
        fd = os.open(mount / "big", os.O_RDONLY)
        try:
            for n in range(48):
                offset = n * step * 65521 % len(BIG)
                if os.pread(fd, 70_000, offset) != BIG[offset : offset + 70_000]:
                    wrong.append(offset)
        finally:
            os.close(fd)

    threads = [threading.Thread(target=read, args=(step,)) for step in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_mapping_has_the_bytes(mount: Served) -> None:
    """mmap in a separate process shows the right bytes."""
    out, err = child(HASH_OF_A_MAPPING, mount / "big").communicate(timeout=PATIENCE)
    assert (out.decode().strip(), err) == (hashlib.sha256(BIG).hexdigest(), b"")


def test_names_of_every_alphabet_are_listed_and_opened(mount: Served) -> None:
    """Names in every alphabet, and names that are not UTF-8, can be listed and opened."""
    listed = os.listdir(os.fsencode(mount / "names"))
    assert sorted(listed) == sorted([*(name.encode() for name in NAMES), LATIN])
    for name in NAMES:
        assert (mount / "names" / name).read_bytes() == name.encode()
    with open(os.fsencode(mount / "names") + b"/" + LATIN, "rb") as f:
        assert f.read() == b"latin"


def test_a_long_directory_is_listed_whole_and_twice_the_same(mount: Served) -> None:
    """Two listings of a long directory are equal, and contain each name once, with its type and its st_ino."""
    for _ in range(2):
        with os.scandir(mount / "many") as scan:
            entries = [(e.name, e.inode(), e.is_file(follow_symlinks=False)) for e in scan]
        assert [name for name, _, _ in entries] == [f"{n:05}" for n in range(3000)]
        assert all(is_file for _, _, is_file in entries)
    for name, inode, _ in entries[::500]:
        assert (
            os.lstat(mount / "many" / name).st_ino
            == inode
            == mount.fs.root.children[b"many"].children[name.encode()].number
        )


def test_stat_says_what_the_file_system_says(mount: Served) -> None:
    """stat returns the type, mode, size, blocks, times, owner and 63-bit inode of the file system."""
    about = os.lstat(mount / "file")
    assert (stat.S_ISREG(about.st_mode), stat.S_IMODE(about.st_mode), about.st_size, about.st_blocks) == (
        True,
        0o644,
        10,
        1,
    )
    assert (about.st_atime, about.st_mtime, about.st_ctime) == (MTIME, MTIME, MTIME)
    assert (about.st_uid, about.st_gid) == (os.geteuid(), os.getegid())
    assert about.st_ino > 1 << 62
    assert stat.S_ISDIR(os.lstat(mount.path).st_mode)


def test_symlinks_are_links(mount: Served) -> None:
    """Short, long and dangling symlinks keep their targets."""
    assert os.readlink(mount / "link") == "dir/inner"
    assert os.readlink(mount / "long-link") == "t/" * 2000
    assert (mount / "link").read_bytes() == b"inner"
    assert errno_of(lambda: os.stat(mount / "dangling")) == "ENOENT"


def test_posix_errors(mount: Served) -> None:
    """Bad names, wrong types and writes fail with the errors of POSIX."""
    actions: dict[str, tuple[str, Callable[[], object]]] = {
        "missing": ("ENOENT", lambda: os.stat(mount / "missing")),
        "below a file": ("ENOTDIR", lambda: os.stat(mount / "file/x")),
        "256 bytes": ("ENAMETOOLONG", lambda: os.stat(mount / ("n" * 256))),
        "list a file": ("ENOTDIR", lambda: os.listdir(mount / "file")),
        "readlink a file": ("EINVAL", lambda: os.readlink(mount / "file")),
        "no attribute": ("ENODATA", lambda: os.getxattr(mount / "file", "user.nothing")),
        "write": ("EROFS", lambda: os.open(mount / "file", os.O_WRONLY)),
        "create": ("EROFS", lambda: os.open(mount / "new", os.O_CREAT | os.O_WRONLY)),
        "unlink": ("EROFS", lambda: os.unlink(mount / "file")),
        "rename": ("EROFS", lambda: os.rename(mount / "file", mount / "new")),
        "mkdir": ("EROFS", lambda: os.mkdir(mount / "new")),
        "chmod": ("EROFS", lambda: os.chmod(mount / "file", 0)),
        "truncate": ("EROFS", lambda: os.truncate(mount / "file", 0)),
        "utime": ("EROFS", lambda: os.utime(mount / "file")),
        "setxattr": ("EROFS", lambda: os.setxattr(mount / "file", "user.x", b"")),
    }
    assert {name: errno_of(action) for name, (_, action) in actions.items()} == {
        name: expected for name, (expected, _) in actions.items()
    }


def test_extended_attributes(mount: Served) -> None:
    assert os.listxattr(mount / "dir/inner") == ["user.kitfs.path"]
    assert os.getxattr(mount / "dir/inner", "user.kitfs.path") == b"dir/inner"


def test_statfs(mount: Served) -> None:
    """statfs reports that nothing is free and that names may have 255 bytes."""
    about = os.statvfs(mount.path)
    assert (about.f_frsize, about.f_blocks, about.f_bfree, about.f_files, about.f_ffree, about.f_namemax) == (
        4096, 12345, 0, len(mount.fs.nodes), 0, 255,
    )  # fmt: skip


def test_what_was_read_stays_in_the_kernels_cache(mount: Served) -> None:
    """A second open of a file that was read sends no read to the transport."""
    for _ in range(2):
        assert (mount / "file").read_bytes() == b"0123456789"
    assert [path for operation, path, _ in mount.fs.calls if operation == "read"] == ["file"]


def test_a_missing_name_is_not_cached_while_it_may_still_appear(mount: Served) -> None:
    """The kernel does not cache ENOENT for a name in a layer without an index."""
    mount.fs.passing.add("later")
    assert errno_of(lambda: os.stat(mount / "later")) == "ENOENT"
    mount.fs.add("later", b"here")
    assert (mount / "later").read_bytes() == b"here"


def test_every_open_is_released(mount: Served) -> None:
    """Every opened file and directory is released after the mount has ended."""
    for _ in range(20):
        (mount / "file").read_bytes()
        os.listdir(mount / "dir")
    wait_until(lambda: mount.fs.open_handles == {}, "a handle was not released", seconds=PATIENCE)


# -- failing and stalled reads


def test_a_read_that_fails_is_eio_and_the_next_one_asks_again(mount: Served) -> None:
    """A read that fails returns EIO, and the error is counted with its cause.

    The kernel does not cache the failure.
    """
    fd = os.open(mount / "file", os.O_RDONLY)
    try:
        mount.fs.fails["read", "file"] = IntegrityError("sha256:1 is not what it says")
        assert errno_of(lambda: os.pread(fd, 1, 0)) == "EIO"
        del mount.fs.fails["read", "file"]
        assert os.pread(fd, 10, 0) == b"0123456789"
    finally:
        os.close(fd)
    assert mount.counters.get("errors") > 0


def test_a_read_that_waits_keeps_nothing_else_waiting(mount: Served) -> None:
    """During twenty stalled reads, stat, listings and other reads succeed."""
    fds = [os.open(mount / "cold", os.O_RDONLY) for _ in range(20)]
    gate = mount.fs.cold["read", "cold"] = threading.Event()
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda fd=fd: found.append(os.pread(fd, 8, 0))) for fd in fds]
    for thread in threads:
        thread.start()
    assert os.stat(mount / "dir/sub/deep").st_size == 4
    assert len(os.listdir(mount / "many")) == 3000
    assert (mount / "big").read_bytes() == BIG
    assert found == []
    gate.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert found == [b"coldcold"] * 20
    for fd in fds:
        os.close(fd)


def test_a_signal_does_not_fail_a_read(mount: Served) -> None:
    """A process that handles many signals during a read gets all of its bytes."""
    gate = mount.fs.cold["read", "cold"] = threading.Event()
    code = """
import os, signal, sys
got = []
signal.signal(signal.SIGUSR1, lambda *_: got.append(1))
fd = int(sys.argv[1])
print("ready", flush=True)
data = os.pread(fd, 4000, 0)
print(len(data), len(got) > 0, flush=True)
"""
    fd = os.open(mount / "cold", os.O_RDONLY)
    try:
        process = subprocess.Popen([sys.executable, "-S", "-c", code, str(fd)], stdout=subprocess.PIPE, pass_fds=[fd])
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        _wait_for_call(mount, "read", "cold")
        for _ in range(20):
            process.send_signal(signal.SIGUSR1)
        gate.set()
        assert process.stdout.read() == b"4000 True\n"
        assert process.wait(PATIENCE) == 0
        process.stdout.close()
    finally:
        os.close(fd)


def _wait_for_call(mount: Served, operation: str, path: str) -> None:
    beat = threading.Event()
    for _ in range(6000):
        if any((o, p) == (operation, path) for o, p, _ in mount.fs.calls):
            return
        beat.wait(0.01)
    raise AssertionError(f"the kernel sent no {operation} of {path}")


def test_a_killed_reader_dies_at_once(mount: Served) -> None:
    """A process with a stalled read ends after SIGKILL, although the read gets no reply."""
    gate = mount.fs.cold["read", "cold"] = threading.Event()
    process = child("import os,sys; os.pread(os.open(sys.argv[1], os.O_RDONLY), 10, 0)", mount / "cold")
    _wait_for_call(mount, "read", "cold")
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL
    assert not gate.is_set()


def test_a_killed_lookup_ends_at_once(mount: Served) -> None:
    """A lookup ends when its process is killed.

    This does not hold for libfuse, which does not report which request was interrupted.
    """
    if mount.transport.name == "libfuse":
        pytest.skip("not here: libfuse2 does not report which request was interrupted")
    gate = mount.fs.cold["lookup", "cold-dir"] = threading.Event()
    process = child("import os,sys; os.stat(sys.argv[1])", mount / "cold-dir")
    _wait_for_call(mount, "lookup", "cold-dir")
    process.terminate()  # any fatal signal ends it
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGTERM
    assert not gate.is_set()


# -- the end


def test_serve_returns_after_an_unmount_from_outside(mount: Served) -> None:
    """``serve`` returns after an unmount by umount2 or fusermount3."""
    mounting.unmount(str(mount.path), lazy=False)
    mount.thread.join(PATIENCE)
    assert not mount.thread.is_alive()
    assert mount.failure is None
    assert not mount_table.is_mountpoint(str(mount.path))
    assert os.listdir(mount.path) == []


def test_stop_unmounts_an_idle_mount(mount: Served) -> None:
    """``stop`` from another thread unmounts a mount that nothing uses."""
    mount.transport.stop()
    mount.thread.join(PATIENCE)
    assert not mount.thread.is_alive()
    assert not mount_table.is_mountpoint(str(mount.path))


def test_stop_detaches_what_is_in_use(mount: Served) -> None:
    """``stop`` makes the mount point free at once. ``serve`` continues until the last file is closed."""
    fd = os.open(mount / "big", os.O_RDONLY)
    mount.transport.stop()
    assert not mount_table.is_mountpoint(str(mount.path))
    assert os.pread(fd, 10, 1 << 20) == BIG[1 << 20 : (1 << 20) + 10]
    assert mount.thread.is_alive()
    os.close(fd)
    mount.thread.join(PATIENCE)
    assert not mount.thread.is_alive()


HOLDS = {
    "cwd": "os.chdir(p)",
    "fd": "f = open(p + '/file')",
    "directory": "f = os.open(p, os.O_RDONLY)",
    "mapping": "fd = os.open(p + '/big', os.O_RDONLY); m = mmap.mmap(fd, 0, prot=mmap.PROT_READ); os.close(fd)",
}


@pytest.mark.parametrize("how", HOLDS)
def test_a_busy_mount_names_the_process_that_uses_it(mount: Served, how: str) -> None:
    """If a process uses a mount in any way, unmount fails with EBUSY, and the error names the pid.

    A lazy unmount succeeds.
    """
    held = child(
        f"import mmap, os, sys; p = sys.argv[1]; {HOLDS[how]}; print('holding', flush=True); sys.stdin.read(1)",
        mount.path,
    )
    try:
        assert held.stdout is not None
        assert held.stdout.readline() == b"holding\n"
        assert mount_table.holders(str(mount.path)) == [held.pid]
        with pytest.raises(MountError, match=f"is busy: in use by process {held.pid} ") as busy:
            mounting.unmount(str(mount.path), lazy=False)
        assert busy.value.errno == errno.EBUSY
        mounting.unmount(str(mount.path), lazy=True)
        assert not mount_table.is_mountpoint(str(mount.path))
    finally:
        held.communicate(b"x", timeout=PATIENCE)


def test_relative_and_symlinked_paths_are_unmounted(
    mount: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unmount finds the kernel's path for a relative path and for a path through a symlink."""
    (tmp_path / "alias").symlink_to(mount.path)
    monkeypatch.chdir(tmp_path)
    assert mount_table.is_mountpoint("alias")
    assert mount_table.is_mountpoint("mount point/")
    mounting.unmount("./alias", lazy=False)
    assert not mount_table.is_mountpoint("alias")


def test_a_mount_that_does_not_answer_can_be_ended(tmp_path: Path) -> None:
    """A mount that nothing serves can be found and ended, because kitfs sends no requests to the mount."""
    (tmp_path / "m").mkdir()
    (tmp_path / "alias").symlink_to("m")
    options = MountOptions(mountpoint=str(tmp_path / "m"), source="stalled")
    transport = KernelTransport(
        cast(FileSystem, MemoryFileSystem({})), options, counters=Counters(), log=logging.getLogger("kitfs.test")
    )
    if os.geteuid() != 0:
        needs("fusermount3")
    transport.mount()
    try:
        assert mount_table.is_mountpoint(str(tmp_path / "alias"))
        assert mount_table.holders(str(tmp_path / "m")) == []
    finally:
        transport.stop()
    assert not mount_table.is_mountpoint(str(tmp_path / "m"))


def test_a_dead_mount_is_still_a_mount(mount: Served) -> None:
    """A mount whose connection was aborted returns ENOTCONN, but is recognized as a mount and can be ended."""
    found = mount_table.mount_at(str(mount.path))
    assert found is not None
    abort = Path(f"/sys/fs/fuse/connections/{found.dev.partition(':')[2]}/abort")
    if not abort.exists():
        pytest.skip("not here: fusectl is not mounted")
    abort.write_text("1")
    mount.thread.join(PATIENCE)
    assert not mount.thread.is_alive()
    if mount_table.is_mountpoint(str(mount.path)):  # libfuse unmounts its mount when its loop ends
        assert errno_of(lambda: os.listdir(mount.path)) == "ENOTCONN"
        mounting.unmount(str(mount.path), lazy=False)
    assert not mount_table.is_mountpoint(str(mount.path))
