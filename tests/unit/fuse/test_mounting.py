"""Tests of parsing recorded mount tables. Tests that need a real mount are in tests/contract."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kitfs.errors import MountError
from kitfs.fuse import mount_table, mounting
from kitfs.fuse.mount_table import MountInfo, parse_mountinfo
from kitfs.fuse.mounting import MountOptions
from tests.conftest import needs
from tests.disks import tmpfs
from tests.interpreters import fuse_device_for_everybody

MOUNTINFO = rb"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw
23 22 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 master:3 - proc proc rw
88 22 0:47 / /srv/with\040space\011tab\134slash\012line ro,nosuid,nodev - fuse.kitfs oci:/srv/a\040b:v1 ro,user_id=0
89 88 0:48 / /srv/over rw - tmpfs tmpfs rw
90 22 0:49 /sub /srv/over rw - fuse.kitfs r.example/a:v1 ro
this line is of no known shape
"""


def test_escapes_of_mountinfo_are_undone() -> None:
    """In mountinfo, spaces, tabs, backslashes and newlines are written as octal escapes."""
    mount = parse_mountinfo(MOUNTINFO)[2]
    assert mount == MountInfo("/srv/with space\ttab\\slash\nline", "oci:/srv/a b:v1", "fuse.kitfs", "0:47", 88, 0)


def test_optional_fields_of_any_number_are_skipped() -> None:
    """A line may have any number of tagged fields between the mount options and the dash."""
    assert [(m.mountpoint, m.fstype, m.source) for m in parse_mountinfo(MOUNTINFO)[:2]] == [
        ("/", "ext4", "/dev/root"),
        ("/proc", "proc", "proc"),
    ]


def test_lines_of_another_shape_are_left_out() -> None:
    """A line that cannot be parsed is skipped. Later lines are parsed."""
    assert [m.number for m in parse_mountinfo(MOUNTINFO)] == [22, 23, 88, 89, 90]


def test_a_mount_comes_after_the_one_that_it_covers() -> None:
    """The kernel lists mounts by age, but a newer mount may be below an older one.

    In the parsed table, the lower mount comes first. Other mounts keep the kernel's order.
    """
    lines = [
        b"1 1 0:1 / / rw - rootfs r rw",
        b"40 50 0:4 / /m rw - fuse a rw",
        b"45 1 0:6 / /n rw - tmpfs n rw",
        b"50 1 0:5 / /m rw - erofs b rw",
    ]
    assert [m.number for m in parse_mountinfo(b"\n".join(lines))] == [1, 45, 50, 40]


def test_names_that_are_not_utf8_come_back_as_the_same_bytes() -> None:
    """``os.fsencode`` of a parsed mount point returns the original bytes."""
    mount = parse_mountinfo(b"5 1 0:9 / /m/\xff\xfe rw - fuse.kitfs x ro\n")[0]
    assert os.fsencode(mount.mountpoint) == b"/m/\xff\xfe"


def test_the_root_is_a_mount_point_and_a_plain_directory_is_not(tmp_path: Path) -> None:
    """``is_mountpoint`` follows symbolic links and accepts relative paths."""
    link = tmp_path / "link"
    link.symlink_to("/")
    assert mount_table.is_mountpoint("/")
    assert mount_table.is_mountpoint(str(link))
    assert mount_table.is_mountpoint(os.path.relpath("/"))
    assert not mount_table.is_mountpoint(str(tmp_path))
    assert not mount_table.is_mountpoint(str(tmp_path / "missing"))


def test_canonical_paths_are_those_of_realpath(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases are paths with absolute and relative links, chains of links, dots, loops and missing parts."""
    (tmp_path / "a/b").mkdir(parents=True)
    for name, target in {
        "abs": str(tmp_path / "a"),
        "rel": "a/b",
        "chain": "rel",
        "up": "a/b/../../a",
        "a/b/back": "../..",
        "gone": "x/y",
    }.items():
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path / "a")
    for text in (
        ".",
        "..",
        "b",
        "../abs/b",
        "../chain/",
        "../up//b/./back/a",
        "../gone/z",
        "missing/../b",
        str(tmp_path / "rel/.."),
        "/",
        "//tmp",
    ):
        expected = os.path.realpath(text)
        assert mount_table.canonical(text) == ("/tmp" if text == "//tmp" else expected)
    (tmp_path / "loop").symlink_to("loop")
    assert mount_table.canonical(str(tmp_path / "loop")) == str(tmp_path / "loop")


def test_unmounting_what_is_not_mounted_is_einval(tmp_path: Path) -> None:
    """The error names the directory."""
    with pytest.raises(MountError) as told:
        mounting.unmount(str(tmp_path), lazy=False)
    assert (told.value.errno, str(told.value)) == (errno.EINVAL, f"nothing is mounted at {tmp_path}")


def test_nobody_holds_what_is_not_mounted(tmp_path: Path) -> None:
    """``holders`` returns an empty result for a directory that is not mounted."""
    assert mount_table.holders(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("value", "expected"), [("r/a:v1", "r/a:v1"), ("oci:/a,b:v1", r"oci:/a\,b:v1"), ("oci:/a\\b", r"oci:/a\\b")]
)
def test_option_values_are_escaped(value: str, expected: str) -> None:
    """Without an escape, a comma or a backslash would end the value."""
    assert mounting.escaped(value) == expected


@pytest.mark.parametrize(
    ("number", "part"),
    [
        (errno.ENOENT, "/dev/fuse does not exist: load the module"),
        (errno.ENODEV, "modprobe fuse"),
        (errno.EACCES, "chmod 666 /dev/fuse"),
        (errno.EMFILE, "Too many"),
    ],
)
def test_a_device_that_cannot_be_opened_says_what_to_do(number: int, part: str) -> None:
    """The error is one line. It has the errno of the system call."""
    error = mounting.device_error(OSError(number, os.strerror(number)))
    assert error.errno == number
    assert part in str(error)


def as_nobody(action: Callable[[], object]) -> tuple[int, str]:
    """Run ``action`` as an ordinary user in a child process.

    Return the errno and the message of the MountError that the action raises.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            action()
        except MountError as e:
            os.write(write, f"{e.errno} {e}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as f:
        number, _, text = f.read().decode().partition(" ")
    os.waitpid(child, 0)
    return int(number or 0), text


@pytest.fixture
def shared() -> Iterator[Path]:
    """Yield a directory that every user can read. Until the end of the test, every user may open /dev/fuse."""
    with tempfile.TemporaryDirectory() as name, fuse_device_for_everybody():
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.geteuid() != 0, reason="not here: only root can become another user")
@pytest.mark.mount
def test_refusals_of_fusermount3_have_an_errno(shared: Path) -> None:
    """fusermount3 exits with 1 for every reason. The errno of the error depends on the reason.

    The error contains the message that fusermount3 printed.
    """
    needs("fusermount3")
    (shared / "closed").mkdir(0o755)
    (shared / "sticky").mkdir()
    (shared / "sticky").chmod(0o1777)
    (shared / "file").write_bytes(b"")

    def refusal(name: str) -> tuple[int, str]:
        return as_nobody(lambda: mounting.mount_fuse(MountOptions(mountpoint=str(shared / name), source="x")))

    found = {name: refusal(name) for name in ("missing", "closed", "sticky", "file")}
    assert {name: number for name, (number, _) in found.items()} == {
        "missing": errno.ENOENT, "closed": errno.EACCES, "sticky": errno.EACCES, "file": errno.ENOTDIR,
    }  # fmt: skip
    assert all(str(shared / name) in text and "fusermount3: " in text for name, (_, text) in found.items())


@pytest.mark.skipif(os.geteuid() != 0, reason="not here: only root can become another user")
@pytest.mark.mount
def test_mount_of_another_user_cannot_be_unmounted(shared: Path) -> None:
    """Unmounting another user's mount raises EPERM.

    While a user's own mount is in use, unmounting it raises EBUSY.
    """
    needs("fusermount3")
    (shared / "m").mkdir()
    (shared / "m").chmod(0o777)
    fd = mounting.mount_fuse(MountOptions(mountpoint=str(shared / "m"), source="x"))
    try:
        number, text = as_nobody(lambda: mounting.unmount(str(shared / "m"), lazy=False))
        assert (number, str(shared / "m") in text) == (errno.EPERM, True)
    finally:
        mounting.unmount(str(shared / "m"), lazy=True)
        os.close(fd)
    with mounted_by_nobody(shared / "m"):
        held = os.open(shared / "m", os.O_PATH)
        try:
            number, _ = as_nobody(lambda: mounting.unmount(str(shared / "m"), lazy=False))
            assert number == errno.EBUSY
        finally:
            os.close(held)
        assert as_nobody(lambda: mounting.unmount(str(shared / "m"), lazy=False)) == (0, "")


@contextmanager
def mounted_by_nobody(path: Path) -> Iterator[None]:
    """Yield a mount that belongs to an ordinary user and that no process serves."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)

    def mount() -> None:
        socket.send_fds(theirs, [b"x"], [mounting.mount_fuse(MountOptions(mountpoint=str(path), source="x"))])

    with ours, theirs:
        assert as_nobody(mount) == (0, "")
        fd = socket.recv_fds(ours, 1, 1)[1][0]
    try:
        yield
    finally:
        os.close(fd)
        if mount_table.is_mountpoint(str(path)):
            mounting.unmount(str(path), lazy=True)


def test_devices_of_maps_are_written_as_in_mountinfo() -> None:
    """Device numbers in /proc/PID/maps are hexadecimal. For a line without a device, the result is empty."""
    line = b"7f00-7f10 r--s 00000000 00:2f 4711                       /m/a b\n"
    assert mount_table._device_of(line) == "0:47"
    assert mount_table._device_of(b"broken\n") == ""


def test_a_missing_fusermount3_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error is ENOENT. It names the package to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MountError, match="install fuse3") as told:
        mounting.fusermount()
    assert told.value.errno == errno.ENOENT


@pytest.mark.skipif(os.geteuid() != 0, reason="not here: only root can call mount(2)")
@pytest.mark.mount
def test_a_mount_point_that_is_missing_keeps_its_errno(tmp_path: Path) -> None:
    """mount(2) fails with ENOENT. The error names the directory, and all descriptors are closed."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(MountError, match="missing: No such file") as told:
        mounting.mount_fuse(MountOptions(mountpoint=str(tmp_path / "missing"), source="x"))
    assert told.value.errno == errno.ENOENT
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_unmount_waits_for_a_user_that_is_not_seen_and_soon_ends(tmp_path: Path) -> None:
    """A descriptor that was sent to a socket and not yet received keeps the mount busy.

    No process has the file open.
    """
    with tmpfs(tmp_path / "m", "size=1m") as directory:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            with (directory / "file").open("wb") as file:
                socket.send_fds(ours, [b"x"], [file.fileno()])

            def receive() -> None:
                os.close(socket.recv_fds(theirs, 1, 1)[1][0])

            timer = threading.Timer(0.2, receive)
            timer.start()
            mounting.unmount(str(directory), lazy=False)
            timer.join()
        assert not mount_table.is_mountpoint(str(directory))
        subprocess.run(["mount", "-t", "tmpfs", "kitfs-test", str(directory)], check=True)  # the block unmounts it


def test_unmount_waits_until_the_daemon_of_the_mount_does_not_use_it(tmp_path: Path) -> None:
    """A daemon that is sealing its mount has files of the mount open for a moment."""
    with tmpfs(tmp_path / "m", "size=1m") as directory:
        file = (directory / "file").open("wb")
        timer = threading.Timer(0.2, file.close)
        timer.start()
        mounting.unmount(str(directory), lazy=False, daemon=[os.getpid()])
        timer.join()
        assert not mount_table.is_mountpoint(str(directory))
        subprocess.run(["mount", "-t", "tmpfs", "kitfs-test", str(directory)], check=True)  # the block unmounts it
