"""POSIX rules for a read-only file system hold on real mounts with both transports."""

from __future__ import annotations

import io
import mmap
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import kits
from tests.errnos import errno_of
from tests.host import Host, Mounted
from tests.kits import build, kit_tar, part

pytestmark = pytest.mark.mount
SIZES = (0, 1, 511, 4095, 4096, 4097, 32767, 32768, 32769, 131071, 131072, 131073, 1048577)


def content(size: int) -> bytes:
    return bytes(n * 31 % 251 for n in range(256)) * (size // 256 + 1)


@pytest.fixture
def mount(host: Host, transport: str) -> Mounted:
    """Return a mount of a kit with files of many sizes, a directory, symlinks and loops of symlinks."""
    files = {f"m/size-{size}": content(size)[:size] for size in SIZES}
    tar = kit_tar({**files, "m/d/inner": b"inner", "m/run.sh": b"#!/bin/sh\necho ran\n"}, modes={"m/run.sh": 0o755})[
        :-1024
    ]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as links:
        for name, target in {
            "m/loop": "loop",
            "m/a": "b",
            "m/b": "a",
            "m/link": "d/inner",
            "m/to-dir": "d",
            "m/dangling": "gone",
        }.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            links.addfile(info)
    layout = kits.write_layout(
        build([part("model", "m", tar + buffer.getvalue())], vintage="1.17"), host.root / "layout", "v1"
    )
    return host.mount(f"oci:{layout}:v1", "--transport", transport)


def opened(path: Path, flags: int, *, mode: int = 0o600) -> None:
    os.close(os.open(path, flags, mode))


def test_everything_that_writes_is_erofs(mount: Mounted) -> None:
    """Write, create, rename, link, chmod, chown, utimes, truncate and setxattr all fail with EROFS."""
    f, d, new = mount / "m/size-4096", mount / "m/d", mount / "m/new"
    actions: dict[str, Callable[[], object]] = {
        "open for writing": lambda: opened(f, os.O_WRONLY),
        "open for both": lambda: opened(f, os.O_RDWR),
        "open to append": lambda: opened(f, os.O_WRONLY | os.O_APPEND),
        "open and truncate": lambda: opened(f, os.O_RDONLY | os.O_TRUNC),
        "create": lambda: opened(new, os.O_CREAT | os.O_WRONLY),
        "create in the root": lambda: opened(mount / "new", os.O_CREAT | os.O_WRONLY | os.O_EXCL),
        "temporary file": lambda: opened(d, os.O_TMPFILE | os.O_RDWR),
        "truncate": lambda: os.truncate(f, 0),
        "mkdir": lambda: os.mkdir(new),
        "rmdir": lambda: os.rmdir(d),
        "unlink": lambda: os.unlink(f),
        "rename": lambda: os.rename(f, new),
        "rename a directory": lambda: os.rename(d, new),
        "link": lambda: os.link(f, new),
        "symlink": lambda: os.symlink("x", new),
        "mkfifo": lambda: os.mkfifo(new),
        "mknod": lambda: os.mknod(new),
        "chmod": lambda: os.chmod(f, 0o777),
        "chown": lambda: os.chown(f, os.geteuid(), os.getegid()),
        "utimes": lambda: os.utime(f, (1, 1)),
        "utimes of a link": lambda: os.utime(mount / "m/link", (1, 1), follow_symlinks=False),
        "setxattr": lambda: os.setxattr(f, "user.mine", b"x"),
        "removexattr": lambda: os.removexattr(f, "user.kitfs.state"),
    }
    assert {name: errno_of(action) for name, action in actions.items()} == dict.fromkeys(actions, "EROFS")
    assert not os.access(f, os.W_OK)


def test_errors_of_path_lookup(mount: Mounted) -> None:
    """A lookup fails with ENOENT, ENOTDIR, EISDIR, ENAMETOOLONG above 255 bytes, ELOOP or EINVAL, as POSIX says."""
    m = mount / "m"
    actions: dict[str, tuple[str, Callable[[], object]]] = {
        "missing": ("ENOENT", lambda: os.stat(m / "missing")),
        "missing in the root": ("ENOENT", lambda: os.stat(mount / "missing")),
        "open a missing file": ("ENOENT", lambda: opened(m / "missing", os.O_RDONLY)),
        "below a missing directory": ("ENOENT", lambda: os.stat(m / "missing/x")),
        "dangling link": ("ENOENT", lambda: os.stat(m / "dangling")),
        "255 bytes": ("ENOENT", lambda: os.stat(m / ("n" * 255))),
        "256 bytes": ("ENAMETOOLONG", lambda: os.stat(m / ("n" * 256))),
        "256 bytes of UTF-8": ("ENAMETOOLONG", lambda: os.stat(m / ("é" * 128))),
        "below a file": ("ENOTDIR", lambda: os.stat(m / "size-1/x")),
        "list a file": ("ENOTDIR", lambda: os.listdir(m / "size-1")),
        "file as directory": ("ENOTDIR", lambda: opened(m / "size-1", os.O_RDONLY | os.O_DIRECTORY)),
        "write a directory": ("EISDIR", lambda: opened(m / "d", os.O_WRONLY)),
        "loop": ("ELOOP", lambda: os.stat(m / "loop")),
        "loop of two": ("ELOOP", lambda: os.stat(m / "a")),
        "link not followed": ("ELOOP", lambda: opened(m / "link", os.O_RDONLY | os.O_NOFOLLOW)),
        "readlink of a file": ("EINVAL", lambda: os.readlink(m / "size-1")),
        "no such attribute": ("ENODATA", lambda: os.getxattr(m / "size-1", "user.nothing")),
    }
    assert {name: errno_of(action) for name, (_, action) in actions.items()} == {
        name: expected for name, (expected, _) in actions.items()
    }


def test_reading_a_directory_is_eisdir(mount: Mounted) -> None:
    fd = os.open(mount / "m/d", os.O_RDONLY)
    try:
        assert errno_of(lambda: os.read(fd, 10)) == "EISDIR"
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", SIZES)
def test_reads_at_and_across_the_end_are_short(mount: Mounted, size: int) -> None:
    """pread before, across, at and after the end of a file returns those requested bytes that exist."""
    data = content(size)[:size]
    fd = os.open(mount / f"m/size-{size}", os.O_RDONLY)
    try:
        for offset in {0, max(0, size - 10), max(0, size - 1), size, size + 1, size + 4096, 1 << 40}:
            assert os.pread(fd, 100, offset) == data[offset : offset + 100]
        assert os.pread(fd, 4 << 20, 0) == data
        assert os.lseek(fd, 0, os.SEEK_END) == size
        assert os.read(fd, 1) == b""
    finally:
        os.close(fd)


def test_a_mapping_reads_the_same_bytes(mount: Mounted) -> None:
    """mmap of a file shows the bytes of the file, and zeros from the end of the file to the end of the page."""
    with (mount / "m/size-4097").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        assert view[:] == content(4097)[:4097]


def test_symlinks_are_followed_by_the_kernel(mount: Mounted) -> None:
    """The kernel follows a symlink to a file and a symlink to a directory."""
    assert (mount / "m/link").read_bytes() == b"inner"
    assert (mount / "m/to-dir/inner").read_bytes() == b"inner"
    assert stat.S_ISLNK(os.lstat(mount / "m/link").st_mode)


def test_directories_list_dots_and_stable_inodes(mount: Mounted) -> None:
    """In listings, d_ino equals st_ino, and no two files share an inode.

    If the kernel's caches are dropped, the next listing has the same inodes.
    """
    numbers = {entry.name: entry.inode() for entry in os.scandir(mount / "m")}
    assert numbers == {name: os.lstat(mount / "m" / name).st_ino for name in numbers}
    assert len(set(numbers.values())) == len(numbers)
    assert {entry.name: entry.inode() for entry in os.scandir(mount / "m")} == numbers


def test_statfs_says_that_nothing_is_free(mount: Mounted) -> None:
    """statfs reports no free block, no free inode, and a limit of 255 bytes for names.

    The number of blocks is the size of the files in units of 4 KiB. The number of inodes is the number of entries.
    """
    about = os.statvfs(mount.path)
    total = sum(os.lstat(os.path.join(top, name)).st_size for top, _, files in os.walk(mount.path) for name in files
                if not os.path.islink(os.path.join(top, name)))  # fmt: skip
    assert (about.f_frsize, about.f_bfree, about.f_ffree, about.f_namemax) == (4096, 0, 0, 255)
    assert about.f_bavail == about.f_blocks  # so that df does not report a full disk
    assert -(-total // 4096) <= about.f_blocks <= -(-total // 4096) + len(SIZES) + 10
    assert about.f_files >= len(SIZES) + 3
    assert about.f_flag & os.ST_RDONLY


def test_programs_run_from_the_mount(mount: Mounted) -> None:
    """A script that has an executable mode in the layer can be executed."""
    assert subprocess.run([mount / "m/run.sh"], capture_output=True, check=True).stdout == b"ran\n"


def test_extended_attributes_tell_where_bytes_come_from(host: Host, mount: Mounted) -> None:
    """Files and directories have user.kitfs.digest, media_type and state.

    The root has user.kitfs.reference and user.kitfs.manifest.
    """
    layer = host.status(mount)["layers"][0]
    for path in (mount / "m/size-1", mount / "m/d"):
        assert set(os.listxattr(path)) >= {"user.kitfs.digest", "user.kitfs.media_type", "user.kitfs.state"}
        assert os.getxattr(path, "user.kitfs.digest").decode() == layer["digest"]
        assert os.getxattr(path, "user.kitfs.media_type").decode() == "application/vnd.kitops.modelkit.model.v1.tar"
        assert os.getxattr(path, "user.kitfs.state") in (b"absent", b"partial", b"present", b"verified")
    assert os.getxattr(mount.path, "user.kitfs.manifest").decode() == mount.digest
    assert os.getxattr(mount.path, "user.kitfs.reference").decode() == host.status(mount)["reference"]


def test_every_entry_has_the_time_of_the_manifest(mount: Mounted) -> None:
    """The mtime of every entry is the created time in the manifest."""
    times = {
        os.lstat(os.path.join(top, name)).st_mtime
        for top, folders, files in os.walk(mount.path)
        for name in folders + files
    }
    assert times == {float(kits.CREATED_EPOCH)}


def test_owner_and_umask_are_options(host: Host, transport: str) -> None:
    """``--uid``, ``--gid`` and ``--umask`` change what lstat returns."""
    layout = kits.write_layout(
        build([part("model", "m", kit_tar({"m/w": b"w"}, modes={"m/w": 0o666}))]), host.root / "layout", "v1"
    )
    mount = host.mount(f"oci:{layout}:v1", "--transport", transport, "--uid", "1234", "--gid", "4321", "--umask", "027")
    for path, mode in {mount / "m/w": 0o640, mount / "m": 0o750, mount / "Kitfile": 0o640}.items():
        about = os.lstat(path)
        assert (about.st_uid, about.st_gid, stat.S_IMODE(about.st_mode)) == (1234, 4321, mode)


def test_modes_are_options(host: Host, transport: str) -> None:
    """With ``--file-mode`` and ``--dir-mode``, other users can read files that were packed for their owner only.

    Both options apply to the Kitfile and the root too.
    """
    packed = kit_tar({"m/w": b"w"}, modes={"m": 0o700, "m/w": 0o600})
    layout = kits.write_layout(build([part("model", "m", packed)]), host.root / "layout", "v1")
    mount = host.mount(f"oci:{layout}:v1", "--transport", transport, "--file-mode", "444", "--dir-mode", "0755")
    found = {
        path: stat.S_IMODE(os.lstat(path).st_mode)
        for path in (mount / "m/w", mount / "Kitfile", mount / "m", mount.path)
    }
    assert found == {mount / "m/w": 0o444, mount / "Kitfile": 0o444, mount / "m": 0o755, mount.path: 0o755}
