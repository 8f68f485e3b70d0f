"""The kernel of this machine mounts and reads images. The bytes of the files are on separate devices."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from kitfs.erofs import mounting
from kitfs.erofs.chunks import Extent
from kitfs.erofs.image import Device, Inode, write_image
from kitfs.erofs.refusal import Reason, Refusal
from kitfs.store.mounted import is_open_elsewhere
from tests.conftest import CANNOT, needs_root

Names = Mapping[bytes, Inode]
RANDOM = os.urandom(70 << 10)


def file(key: int, size: int, *extents: Extent, nlink: int = 1, mode: int = 0o640) -> Inode:
    """Return an inode of a file whose bytes are on devices."""
    return Inode(key, "file", mode, nlink, 1000, 70_000, 1_700_000_001, size=size, extents=extents)


def directory(key: int, mode: int = 0o755) -> Inode:
    return Inode(key, "dir", mode, 2, 1000, 70_000, 1_700_000_001)


class Image:
    """A place where images are mounted. The devices are files below ``scratch``."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.at = scratch / "mnt"
        self.at.mkdir()
        self.mounted = False

    def show(self, tree: Mapping[int, Names], devices: Sequence[bytes], *, root: Inode | None = None) -> Path:
        """Mount an image. ``tree`` maps the key of each directory to its entries. The root has the key 1."""
        files = []
        for i, data in enumerate(devices):
            (self.scratch / str(i)).write_bytes(data)
            files.append(os.open(self.scratch / str(i), os.O_RDONLY))
        with (self.scratch / "image").open("w+b") as out:
            write_image(
                out,
                root or directory(1),
                lambda inode: tree[inode.key].items(),
                [Device(len(data), str(i)) for i, data in enumerate(devices)],
                lambda device, offset, length: devices[device - 1][offset : offset + length],
                uuid=bytes(16),
            )
            mount = mounting.mount_image(out.fileno(), files, "registry.example/a:v1", scratch=str(self.scratch))
        mounting.attach(mount, str(self.at))
        self.mounted = True
        for fd in (mount.fd, *files):
            os.close(fd)
        return self.at

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", self.at], check=True)


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    """Yield a place for images. Skip the test if the kernel cannot mount EROFS."""
    needs_root()
    try:
        mounting.check_system()
    except Refusal as e:
        pytest.skip(f"{CANNOT} {e}")
    made = Image(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1023, 4095, 4096, 4097, 8191, 65_537])
def test_files_of_every_size_read_back(image: Image, size: int) -> None:
    """The bytes, size and attributes of a file are right. The file is a whole device, or a part of a device."""
    whole = file(2, size, *([Extent(0, 1, 0, size)] if size else []))
    middle = file(3, size, *([Extent(0, 2, 1024, size)] if size else []))
    at = image.show({1: {b"whole": whole, b"middle": middle}}, [RANDOM[:size], RANDOM])
    assert (at / "whole").read_bytes() == RANDOM[:size]
    assert (at / "middle").read_bytes() == RANDOM[1024 : 1024 + size]
    about = (at / "whole").stat()
    assert (about.st_size, about.st_mode, about.st_uid, about.st_gid) == (size, 0o100640, 1000, 70_000)
    assert (about.st_mtime, about.st_nlink) == (1_700_000_001, 1)


def test_bytes_behind_the_end_of_a_file_are_zeros(image: Image) -> None:
    """A mapping of a file has zeros after the file's end.

    If other bytes follow on the device, the last block of the file is copied into the image.
    """
    at = image.show({1: {b"f": file(2, 700, Extent(0, 1, 512, 700))}}, [RANDOM])
    with (at / "f").open("rb") as f:
        mapped = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
        start = next(
            int(line.split("-")[0], 16) for line in Path("/proc/self/maps").read_text().splitlines() if "/mnt/f" in line
        )
        assert ctypes.string_at(start, 4096) == RANDOM[512:1212] + bytes(4096 - 700)
        mapped.close()


def test_parts_at_odd_offsets_and_holes(image: Image) -> None:
    """The parts of a sparse file may have any offset on their device. Holes read as zeros."""
    parts = (Extent(4096, 1, 512, 8192), Extent(20_000, 1, 77, 3000), Extent(30_000, 1, 9216 + 30_000 % 512, 100))
    size = 50_000
    at = image.show({1: {b"sparse": file(2, size, *parts), b"holes": file(3, 12_345)}}, [RANDOM])
    expected = bytearray(size)
    for part in parts:
        expected[part.file_offset : part.file_offset + part.length] = RANDOM[part.offset : part.offset + part.length]
    assert (at / "sparse").read_bytes() == expected
    assert (at / "holes").read_bytes() == bytes(12_345)


def test_hard_links_share_an_inode(image: Image) -> None:
    """Names of one file in several directories have the same inode number and link count."""
    linked = file(3, 5, Extent(0, 1, 0, 5), nlink=2)
    at = image.show({1: {b"a": linked, b"sub": directory(2)}, 2: {b"b": linked}}, [RANDOM])
    assert (at / "a").stat().st_ino == (at / "sub/b").stat().st_ino
    assert (at / "a").stat().st_nlink == 2


def test_names_and_targets_up_to_their_limits(image: Image) -> None:
    """Names may have 255 bytes, sort before ".", or contain bytes that are not UTF-8.

    Targets of symbolic links may have 4095 bytes.
    """
    names = {bytes([n]) * 255: file(n, 0) for n in range(ord("a"), ord("z"))}
    names |= {b"!": file(500, 0), b"-x": file(501, 0), b"\xff\xfe": file(502, 0), b".a": file(503, 0)}
    target = b"t/" * 2047 + b"t"
    link = Inode(600, "symlink", 0o777, 1, 0, 0, 0, size=len(target), target=target)
    at = image.show({1: {**names, b"link": link}}, [RANDOM])
    assert sorted(os.listdir(os.fsencode(at))) == sorted([*names, b"link"])
    assert all(os.path.exists(os.path.join(os.fsencode(at), name)) for name in names)
    assert os.readlink(os.fsencode(at / "link")) == target


def test_names_of_nested_directories_are_found(image: Image) -> None:
    """Every name in a nested directory is found by lookup too, not only by listing."""
    leaf = {b"eval": file(10, 0), b"train.csv": file(11, 5, Extent(0, 1, 0, 5))}
    tree = {1: {b"a": directory(2), b"b": directory(3)}, 2: leaf, 3: {b"c": directory(4)}, 4: leaf}
    at = image.show(tree, [RANDOM])
    found = sorted(str(path.relative_to(at)) for path in at.rglob("*") if path.lstat())
    assert found == ["a", "a/eval", "a/train.csv", "b", "b/c", "b/c/eval", "b/c/train.csv"]


def test_contents_and_attributes_that_are_in_the_image(image: Image) -> None:
    """An image may contain the bytes of a file. Extended attributes may be longer than a block."""
    attributes = ((b"kitfs.digest", b"sha256:" + b"a" * 64), (b"kitfs.reference", b"r" * 700))
    root = directory(1)._replace(attributes=attributes)
    kitfile = file(2, 5)._replace(data=b"hello", attributes=attributes[:1])
    at = image.show({1: {b"Kitfile": kitfile, b"other": kitfile._replace(key=3)}}, [], root=root)
    assert (at / "Kitfile").read_bytes() == b"hello"
    assert {name: os.getxattr(at, name) for name in os.listxattr(at)} == {
        "user.kitfs.digest": b"sha256:" + b"a" * 64,
        "user.kitfs.reference": b"r" * 700,
    }
    assert os.getxattr(at / "other", "user.kitfs.digest") == b"sha256:" + b"a" * 64


def test_many_devices(image: Image) -> None:
    """An image may have 300 devices. In this test, each device has the bytes of one file."""
    names = {str(i).encode(): file(10 + i, 3, Extent(0, i + 1, 512, 3)) for i in range(300)}
    at = image.show({1: names}, [bytes(512) + b"%03d" % i + bytes(509) for i in range(300)])
    assert [(at / str(i)).read_bytes() for i in range(300)] == [b"%03d" % i for i in range(300)]


def test_a_hundred_thousand_files(image: Image) -> None:
    names = {b"n%06d" % i: file(10 + i, 9, Extent(0, 1, 512 * (i % 100), 9)) for i in range(100_000)}
    at = image.show({1: names}, [RANDOM])
    assert len(os.listdir(at)) == 100_000
    for i in range(0, 100_000, 9973):
        start = 512 * (i % 100)
        assert (at / f"n{i:06d}").read_bytes() == RANDOM[start : start + 9]


def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    """The writer needs less than 1 MiB for 10,000 files in 100 directories."""

    def children(inode: Inode) -> Iterator[tuple[bytes, Inode]]:
        if inode.key == 1:
            yield from ((b"d%03d" % i, directory(2 + i)) for i in range(100))
        else:
            yield from ((b"f%03d" % i, file(inode.key * 1000 + i, 9, Extent(0, 1, 0, 9))) for i in range(100))

    with (tmp_path / "image").open("w+b") as out:
        tracemalloc.start()
        write_image(out, directory(1), children, [Device(512, "")], lambda *_: bytes(503), uuid=bytes(16))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20


def test_the_mount_table_shows_the_source_and_the_restrictions(image: Image) -> None:
    """The mount table shows the given source, and the options ro, nosuid and nodev."""
    at = image.show({1: {}}, [])
    line = next(
        line for line in Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines() if str(at) in line
    )
    source, _, fstype, options, *_ = line.split()
    assert (source, fstype) == ("registry.example/a:v1", "erofs")
    assert {"ro", "nosuid", "nodev"} <= set(options.split(","))


def test_a_file_of_a_mount_is_seen_to_be_open(image: Image) -> None:
    """``is_open_elsewhere`` returns True for a device of a mount until the unmount."""
    image.show({1: {b"f": file(2, 512, Extent(0, 1, 0, 512))}}, [RANDOM])
    fd = os.open(image.scratch / "0", os.O_RDONLY)
    try:
        assert is_open_elsewhere(fd)
        subprocess.run(["umount", image.at], check=True)
        image.mounted = False
        assert not is_open_elsewhere(fd)
    finally:
        os.close(fd)


def test_a_device_on_tmpfs_is_refused(image: Image) -> None:
    """The error names tmpfs."""
    subprocess.run(["mount", "-t", "tmpfs", "none", image.at], check=True)
    image.mounted = True
    with (image.at / "image").open("w+b") as out:
        write_image(out, directory(1), lambda _: (), [], lambda *_: b"", uuid=bytes(16))
        with pytest.raises(Refusal, match="tmpfs") as caught:
            mounting.mount_image(out.fileno(), [], "a", scratch=str(image.scratch))
    assert caught.value.reason is Reason.FILE_SYSTEM


@pytest.mark.parametrize("source", ["a/../b", "/absolute", "x" * 256, "a//b", "\0"])
def test_a_source_that_cannot_be_a_name_is_replaced(image: Image, source: str) -> None:
    """If a source is not a valid name, the mount table shows "kitfs" as the source."""
    with (image.scratch / "image").open("w+b") as out:
        write_image(out, directory(1), lambda _: (), [], lambda *_: b"", uuid=bytes(16))
        mount = mounting.mount_image(out.fileno(), [], source, scratch=str(image.scratch))
    mounting.attach(mount, str(image.at))
    os.close(mount.fd)
    image.mounted = True
    assert f"kitfs {image.at} erofs" in Path("/proc/self/mounts").read_text(errors="surrogateescape")
