"""The index of a tar is compared with the tree that GNU tar, bsdtar or Python's tarfile has packed."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from kitfs.errors import LayerError
from kitfs.layers.index import Member
from kitfs.layers.names import SkipReason
from kitfs.layers.read import read_member
from kitfs.layers.tar import first_path, index_tar


class Bytes:
    """A file in memory. It counts its reads."""

    def __init__(self, data: bytes, *, sized: bool = True) -> None:
        self._data = data
        self.size = len(data) if sized else None
        self.reads: list[tuple[int, int]] = []

    def pread(self, offset: int, size: int, *, wait: bool = True) -> bytes:
        self.reads.append((offset, size))
        return self._data[offset : offset + size]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def shown(data: bytes) -> dict[str, tuple[object, ...]]:
    """Return path → (kind, mode, size, sha256 or target) for each entry in the index of a tar."""
    index = index_tar(Bytes(data))
    assert list(index.skipped) == []
    return {p: _shown(data, m) for p, m in index.members.items()}


def _shown(data: bytes, m: Member) -> tuple[object, ...]:
    if m.kind == "file":
        return "file", m.mode, m.size, sha(read_member(Bytes(data), m, 0, m.size))
    return (m.kind, m.target) if m.kind == "symlink" else (m.kind, m.mode)


def on_disk(root: Path) -> dict[str, tuple[object, ...]]:
    """Return path → (kind, mode, size, sha256 or target) for each entry of a directory on disk."""
    found: dict[str, tuple[object, ...]] = {}
    for path in root.rglob("*"):
        info = path.lstat()
        name = str(path.relative_to(root))
        if stat.S_ISLNK(info.st_mode):
            found[name] = ("symlink", os.readlink(path))
        elif stat.S_ISDIR(info.st_mode):
            found[name] = ("dir", info.st_mode & 0o777)
        else:
            found[name] = ("file", info.st_mode & 0o777, info.st_size, sha(path.read_bytes()))
    return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory that contains files, links, long and unusual names, different modes, and sparse files."""
    root = tmp_path_factory.mktemp("tree")
    (root / "m/sub/empty").mkdir(parents=True)
    (root / "m/a").write_bytes(b"hello")
    os.link(root / "m/a", root / "m/hard")
    (root / "m/soft").symlink_to("a")
    (root / "m/dangling").symlink_to("../" + "x" * 150)
    (root / "m" / ("n" * 150)).write_bytes(b"long" * 1000)
    (root / "m" / ("d" * 90) / ("e" * 90)).mkdir(parents=True)
    (root / "m" / ("d" * 90) / ("e" * 90) / "deep").write_bytes(b"deep")
    (root / "m/été 日本語 🧪").write_bytes("é".encode())
    (root / "m/run").write_bytes(b"#!/bin/sh\n")
    (root / "m/run").chmod(0o750)
    (root / "m/sub").chmod(0o700)
    with (root / "m/holes").open("wb") as f:
        for i in range(60):
            f.seek(i * 100_000)
            f.write(b"%d" % i * 500)
        f.truncate(9_000_000)
    with (root / "m/all-hole").open("wb") as f:
        f.truncate(1 << 20)
    return root


GNU = [
    ["--format=gnu"], ["--format=oldgnu"], ["--format=posix"], ["--format=gnu", "-S"], ["--format=oldgnu", "-S"],
    ["--format=posix", "-S", "--sparse-version=0.0"], ["--format=posix", "-S", "--sparse-version=0.1"],
    ["--format=posix", "-S", "--sparse-version=1.0"], ["--format=posix", "-b", "1"], ["--format=posix", "-b", "512"],
]  # fmt: skip


@pytest.mark.parametrize("options", GNU, ids=" ".join)
def test_gnu_tar(tree: Path, options: list[str]) -> None:
    """For each format and each sparse version of GNU tar, the index shows the tree that was packed."""
    data = subprocess.run(["tar", *options, "-cf", "-", "m"], cwd=tree, check=True, capture_output=True).stdout
    assert shown(data) == on_disk(tree)


@pytest.mark.skipif(shutil.which("bsdtar") is None, reason="bsdtar is missing: install the package libarchive-tools")
@pytest.mark.parametrize("form", ["pax", "gnutar"])
def test_bsdtar(tree: Path, form: str) -> None:
    """For bsdtar's pax format (also with sparse files) and its GNU format, the index shows the tree that was packed."""
    data = subprocess.run(
        ["bsdtar", "--format", form, "-cf", "-", "m"], cwd=tree, check=True, capture_output=True
    ).stdout
    assert shown(data) == on_disk(tree)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tarfile(tree: Path, form: int) -> None:
    """For a tar with a pax global header by Python's tarfile, the index shows the tree that was packed."""
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=form, pax_headers={"comment": "global"} if form == tarfile.PAX_FORMAT else None
    ) as archive:
        archive.add(tree / "m", "m")
    assert shown(out.getvalue()) == on_disk(tree)


@pytest.mark.parametrize("tool", ["v7", "ustar"])
def test_old_formats(tmp_path: Path, tool: str) -> None:
    """In the formats v7 and ustar, a slash at the end of a name marks a directory. A long name may be in two fields."""
    (tmp_path / "m/d").mkdir(parents=True)
    (tmp_path / "m/d/f").write_bytes(b"x" * 513)
    data = subprocess.run(
        ["tar", f"--format={tool}", "-cf", "-", "m"], cwd=tmp_path, check=True, capture_output=True
    ).stdout
    assert shown(data) == on_disk(tmp_path)


@pytest.mark.parametrize("form", ["gnu", "posix"])
def test_labels_and_incremental_archives(tree: Path, tmp_path: Path, form: str) -> None:
    """A volume label is not shown. A directory in an incremental archive is shown as a directory."""
    options = [f"--format={form}", "--label=NAME", f"--listed-incremental={tmp_path / 'snapshot'}"]
    data = subprocess.run(["tar", *options, "-cf", "-", "m"], cwd=tree, check=True, capture_output=True).stdout
    assert shown(data) == on_disk(tree)
    assert first_path(Bytes(data)) == "m"


def test_volumes(tmp_path: Path) -> None:
    """The first volume ends inside a file, so it is refused as truncated.

    The second volume begins with the rest of that file. This rest is left out.
    """
    (tmp_path / "big").write_bytes(bytes(30_000))
    (tmp_path / "small").write_bytes(b"small")
    volumes = ["--tape-length=20", "--file=1.tar", "--file=2.tar"]
    subprocess.run(
        ["tar", "--format=gnu", "--multi-volume", *volumes, "-c", "big", "small"],
        cwd=tmp_path,
        check=True,
        stdin=subprocess.DEVNULL,
    )
    with pytest.raises(LayerError, match="truncated"):
        index_tar(Bytes((tmp_path / "1.tar").read_bytes()))
    second = (tmp_path / "2.tar").read_bytes()
    index = index_tar(Bytes(second))
    assert list(index.members) == ["small"]
    assert [s.reason for s in index.skipped] == [SkipReason.OTHER_VOLUME]


def test_extended_attributes_of_every_kind(tmp_path: Path) -> None:
    """SCHILY and LIBARCHIVE records are ignored, for any bytes in them. Modes, names and content are right."""
    (tmp_path / "f").write_bytes(b"x")
    try:
        os.setxattr(tmp_path / "f", b"user.k=\n", bytes(range(256)))
    except OSError as e:
        pytest.skip(f"not here: the file system of {tmp_path} does not store extended attributes: {e}")
    for command in (["tar", "--xattrs", "--format=posix"], ["bsdtar", "--format=pax"]):
        data = subprocess.run([*command, "-cf", "-", "f"], cwd=tmp_path, check=True, capture_output=True).stdout
        assert b".xattr.user.k" in data
        assert shown(data) == on_disk(tmp_path)


def test_many_extents(tmp_path: Path) -> None:
    """A sparse file with a thousand extents is read correctly, for each form of GNU tar's sparse map."""
    with (tmp_path / "s").open("wb") as f:
        for i in range(1000):
            f.seek(i * 8192)
            f.write(b"%04d" % i * 128)
        f.truncate(9 << 20)
    want = on_disk(tmp_path)
    for options in GNU:
        if "-S" in options:
            command = ["tar", *options, "--hole-detection=raw", "-cf", "-", "s"]
            data = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout
            assert len(index_tar(Bytes(data)).members["s"].extents) == 1000
            assert shown(data) == want


def test_hard_links_share_an_identity(tree: Path) -> None:
    """A hard link has the content of its target. The index records the first name of the file."""
    data = subprocess.run(["tar", "-cf", "-", "m/a", "m/hard"], cwd=tree, check=True, capture_output=True).stdout
    index = index_tar(Bytes(data))
    assert index.members["m/hard"].link == "m/a"
    assert index.members["m/hard"].extents == index.members["m/a"].extents


def entry(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_what_leaves_the_root_is_left_out() -> None:
    """An entry is skipped if its name is absolute or has "..", or if a component of the name is too long.

    Devices, fifos and bad hard links are skipped too. Each skipped entry has a reason.
    """
    data = tar(
        entry("good", b"1"),
        entry("/abs", b"2"),
        entry("a/../../up", b"3"),
        entry("hard-out", type=tarfile.LNKTYPE, linkname="../x"),
        entry("hard-abs", type=tarfile.LNKTYPE, linkname="/etc/passwd"),
        entry("hard-none", type=tarfile.LNKTYPE, linkname="nothing"),
        entry("null", type=tarfile.CHRTYPE),
        entry("disk", type=tarfile.BLKTYPE),
        entry("pipe", type=tarfile.FIFOTYPE),
        entry("c" * 256, b"4"),
        entry("soft", type=tarfile.SYMTYPE, linkname="/anywhere"),
        entry("last", b"5"),
    )
    index = index_tar(Bytes(data))
    assert list(index.members) == ["good", "soft", "last"]
    assert [(s.name, s.reason, s.link or s.detail) for s in index.skipped] == [
        ("/abs", SkipReason.ABSOLUTE_PATH, ""),
        ("a/../../up", SkipReason.LEAVES_ROOT, ""),
        ("hard-out", SkipReason.LEAVES_ROOT, "../x"),
        ("hard-abs", SkipReason.ABSOLUTE_PATH, "/etc/passwd"),
        ("hard-none", SkipReason.MISSING_TARGET, "nothing"),
        ("null", SkipReason.CHARACTER_DEVICE, ""),
        ("disk", SkipReason.BLOCK_DEVICE, ""),
        ("pipe", SkipReason.FIFO, ""),
        ("c" * 256, SkipReason.LONG_NAME, ""),
    ]


def test_names_that_come_twice() -> None:
    """As with GNU tar, a file replaces an earlier file and an empty directory, and a directory replaces a file.

    A directory keeps the mode of its first entry.
    """
    data = tar(
        entry("f", b"old"),
        entry("f", b"new", mode=0o600),
        entry("d", type=tarfile.DIRTYPE, mode=0o700),
        entry("d", type=tarfile.DIRTYPE, mode=0o755),
        entry("f/below", b"x"),
        entry("d", b"file"),
        entry("f", type=tarfile.DIRTYPE),
        entry("s", type=tarfile.SYMTYPE, linkname="d"),
        entry("s/below", b"x"),
        entry("implied/later/file", b"y"),
        entry("implied", type=tarfile.DIRTYPE, mode=0o711),
        entry("implied", b"file"),
        entry("g", b"old"),
        entry("g", b"new", mode=0o600),
        entry("e", type=tarfile.DIRTYPE, mode=0o700),
        entry("e", type=tarfile.DIRTYPE, mode=0o755),
    )
    index = index_tar(Bytes(data))
    assert {p: (m.kind, m.mode) for p, m in index.members.items()} == {
        "d": ("file", 0o644), "f": ("dir", 0o644), "s": ("symlink", 0o777), "implied/later/file": ("file", 0o644),
        "implied": ("dir", 0o711),
        "g": ("file", 0o600), "e": ("dir", 0o700),
    }  # fmt: skip
    assert read_member(Bytes(data), index.members["g"], 0, 9) == b"new"
    assert [(s.name, s.reason) for s in index.skipped] == [
        ("f/below", SkipReason.BELOW_FILE),
        ("s/below", SkipReason.BELOW_SYMLINK),
        ("implied", SkipReason.FILLED_DIRECTORY),
    ]
    later = index.get("implied/later")
    assert later is not None
    assert (later.kind, later.mode, index.explicit(index.find("implied/later"))) == ("dir", 0o755, False)
    assert [index.name(row) for row in index.children(0)] == ["d", "e", "f", "g", "implied", "s"]


def test_setuid_is_masked_and_dots_are_cleaned() -> None:
    """The setuid, setgid and sticky bits are removed from modes. "./", "//" and "." are removed from names."""
    index = index_tar(Bytes(tar(entry("./", type=tarfile.DIRTYPE), entry("./a//b/./c", b"", mode=0o6755))))
    assert {p: m.mode for p, m in index.members.items()} == {"a/b/c": 0o755}


class Stripes:
    """A tar of equal members. Its bytes are generated when they are read, and its reads are counted."""

    def __init__(self, count: int, size: int) -> None:
        self._count, self._content = count, size
        self._stride = 512 + -(-size // 512) * 512
        self.size = count * self._stride + 1024
        self.reads: list[tuple[int, int]] = []

    def pread(self, offset: int, size: int, *, wait: bool = True) -> bytes:
        self.reads.append((offset, size))
        size = max(0, min(size, self.size - offset))
        out = bytearray(size)
        for i in range(offset // self._stride, min(self._count, (offset + size) // self._stride + 1)):
            at = i * self._stride - offset
            head = entry(f"m/{i:05}")[0]
            head.size = self._content
            block = head.tobuf(tarfile.GNU_FORMAT)
            low, high = max(0, at), min(size, at + 512)
            if low < high:
                out[low:high] = block[low - at : high - at]
        return bytes(out)


def test_files_that_sit_together_take_few_reads() -> None:
    """20,000 files of 1 KiB, or 2,000 files of 20 KiB, are indexed with less than a hundred reads."""
    many = Stripes(20_000, 1024)
    assert len(index_tar(many).members) == 20_000
    assert len(many.reads) < 100
    some = Stripes(2000, 20 << 10)
    assert len(index_tar(some).members) == 2000
    assert len(some.reads) < 100


def test_big_files_are_hopped_over() -> None:
    """Eight members of 1.25 GiB are indexed with nine reads of 4 KiB. The ninth read finds the end of the archive."""
    few = Stripes(8, 5 << 28)
    index = index_tar(few)
    assert index.total == 10 << 30
    assert [size for _, size in few.reads] == [4096] * 9


def test_the_window_falls_back_behind_small_files() -> None:
    """A big file after many small files is not read ahead."""
    small = [entry(f"m/{i}", bytes(1000)) for i in range(2000)]
    reader = Bytes(tar(*small, *(entry(f"b/{i}", bytes(4 << 20)) for i in range(4))))
    index_tar(reader)
    assert sum(size for _, size in reader.reads) < 6 << 20


@pytest.mark.parametrize("sized", [True, False])
def test_truncated(sized: bool) -> None:
    """An archive that ends inside an entry is refused. An archive without end blocks is accepted."""
    data = tar(entry("a", b"x" * 700), entry("b", b"y" * 100))
    for cut in (1, 100, 600, 512 + 699, 1536 + 300, 1536 + 512 + 99):
        with pytest.raises(LayerError):
            index_tar(Bytes(data[:cut], sized=sized))
    assert list(index_tar(Bytes(data[: 1536 + 512 + 100], sized=sized)).members) == ["a", "b"]
    assert list(index_tar(Bytes(b"")).members) == []


def test_max_entries() -> None:
    """If an archive has one entry more than the limit, it is refused. Left-out entries are counted too."""
    data = tar(*(entry(f"/{i}" if i % 2 else str(i)) for i in range(10)))
    assert len(index_tar(Bytes(data), max_entries=10).members) == 5
    with pytest.raises(LayerError, match="more than 9 entries"):
        index_tar(Bytes(data), max_entries=9)


def test_first_path() -> None:
    """``first_path`` skips global headers. It returns None for an empty archive.

    It raises LayerError if the bytes are not a tar.
    """
    assert first_path(Bytes(tar(entry("./m/x")))) == "m/x"
    assert first_path(Bytes(bytes(1024))) is None
    assert (
        first_path(
            Bytes(
                tar(entry("LABEL", type=b"V"), entry("./", type=tarfile.DIRTYPE), entry("/abs", b"x" * 600), entry("m"))
            )
        )
        == "m"
    )
    with pytest.raises(LayerError):
        first_path(Bytes(b"PK\x03\x04" + b"x" * 600))


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\x7f" * 11, b"\xff" * 12, b"notoctal000\0"])
def test_lying_sizes(size: bytes) -> None:
    """A size that is negative, not a number, or larger than the layer raises LayerError immediately."""
    data = bytearray(tar(entry("a", b"x")))
    data[124:136] = size
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data[:512])
    with pytest.raises(LayerError):
        index_tar(Bytes(bytes(data)))
