"""A tar of any shape is read as the tree that was packed. A damaged tar has a consistent index or raises LayerError."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import shutil
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kitfs.errors import LayerError
from kitfs.layers.index import LayerIndex
from kitfs.layers.read import read_member
from kitfs.layers.tar import first_path, index_tar
from tests.corpus.tars import CASES, signed

NAMES = st.text(st.sampled_from("ab./é日 -\\"), min_size=1, max_size=12)
KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"V", b"Z"]
)
ENTRIES = st.lists(st.tuples(NAMES, KINDS, st.binary(max_size=1200), NAMES), max_size=12)
FORMATS = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
Entry = tuple[str, bytes, bytes, str]


class Bytes:
    """A reader of bytes in memory that counts what it returns and fails on ranges that must not be requested."""

    def __init__(self, data: bytes, *, sized: bool = True) -> None:
        self.data = data
        self.size: int | None = len(data) if sized else None
        self.given = 0

    def pread(self, offset: int, size: int, *, wait: bool = True) -> bytes:
        assert 0 <= offset < 1 << 64
        assert 0 <= size <= 9 << 20
        piece = self.data[offset : offset + size]
        self.given += len(piece)
        return piece


def built(entries: list[Entry], form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, kind, data, link in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def consistent(index: LayerIndex, reader: Bytes) -> None:
    """Assert that an index is consistent.

    No path leads out of the root, every parent is a directory, every file can be read, and the ``link`` of a
    member is the first name of the same file. The index is the same after it is loaded from its bytes.
    """
    for path, member in index.members.items():
        parts = path.split("/")
        assert not {"..", ".", ""} & set(parts)
        for i in range(1, len(parts)):
            parent = index.get("/".join(parts[:i]))
            assert parent is not None
            assert parent.kind == "dir"
        above = index.find("/".join(parts[:-1]))
        assert parts[-1] in [index.name(row) for row in index.children(above)]
        assert 0 <= member.size < 1 << 63
        if member.kind == "file":
            assert len(read_member(reader, member, 0, min(member.size, 1 << 20))) == min(member.size, 1 << 20)
        if member.link:
            first = index.members[member.link]
            assert (first.link, first[1:6]) == ("", member[1:6])
    again = LayerIndex(bytes(index.data))
    assert list(again.members.items()) == list(index.members.items())
    assert list(again.skipped) == list(index.skipped)


def merged(entries: list[Entry]) -> dict[str, Any]:
    """Return the tree that the rules of the manual make of entries, computed without code of kitfs.

    The result consists of nested dictionaries, in which a file is [content] and a symlink is its target.
    """
    root: dict[str, Any] = {}

    def find(name: str, *, make: bool = False) -> tuple[dict[str, Any] | None, str]:
        parts = [p for p in name.split("/") if p not in ("", ".")]
        if name.startswith("/") or ".." in parts or not parts:
            return None, ""
        at: Any = root
        for part in parts[:-1]:
            if make and part not in at:
                probe, blocked = root, False
                for p in parts[:-1]:
                    probe = probe.get(p, {}) if isinstance(probe, dict) else probe
                    blocked = blocked or not isinstance(probe, dict)
                if blocked:
                    return None, ""
                at[part] = {}
            at = at.get(part)
            if not isinstance(at, dict):
                return None, ""
        return at, parts[-1]

    for name, kind, data, link in entries:
        if kind not in (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
            continue
        thing: Any = [data]
        if kind == tarfile.DIRTYPE or (kind == tarfile.REGTYPE and name.endswith("/")):
            thing = {}
        elif kind == tarfile.SYMTYPE:
            thing = link
        elif kind == tarfile.LNKTYPE:
            folder, last = find(link)
            thing = None if folder is None else folder.get(last)
            if thing is None or isinstance(thing, dict):
                continue
        folder, last = find(name, make=True)
        there = None if folder is None else folder.get(last)
        if folder is None or (isinstance(there, dict) and (there or isinstance(thing, dict))):
            continue
        folder[last] = thing
    return root


def nested(index: LayerIndex, reader: Bytes, path: str = "") -> dict[str, Any]:
    """Return the tree of an index in the form of ``merged``."""
    found: dict[str, Any] = {}
    for row in index.children(index.find(path)):
        name = index.name(row)
        below = f"{path}/{name}" if path else name
        member = index.get(below)
        assert member is not None
        if member.kind == "dir":
            found[name] = nested(index, reader, below)
        else:
            found[name] = member.target if member.kind == "symlink" else [read_member(reader, member, 0, member.size)]
    return found


@given(ENTRIES, FORMATS)
@settings(max_examples=200, deadline=None)
def test_what_tarfile_writes(entries: list[Entry], form: int) -> None:
    """An index of entries with names of all kinds, in any order and number, has the tree that the rules describe."""
    reader = Bytes(built(entries, form))
    index = index_tar(reader)
    consistent(index, reader)
    assert nested(index, reader) == merged(entries)


def plant(root: str, seed: int) -> None:
    """Write a random tree to disk, with names of any bytes, both kinds of links, holes and modes."""
    pick = random.Random(seed)
    folders, files = [os.fsencode(root)], list[bytes]()
    for _ in range(pick.randint(1, 12)):
        letters = [b"a", b".", b" ", b"\xc3\xa9", b"\xff", b"\\", b"\n", b"=", b"%"]
        name = b"".join(pick.choices(letters, k=pick.choice([1, 3, 40, 99, 100, 120])))[:255]
        path = pick.choice(folders) + b"/" + (b"dots" if not name.strip(b".") else name)
        what = pick.random()
        if os.path.lexists(path) or len(path) > 1500:
            continue
        if what < 0.25:
            os.mkdir(path, pick.choice([0o755, 0o700, 0o1775]))
            folders.append(path)
        elif what < 0.4 and files:
            os.link(pick.choice(files), path)
        elif what < 0.5:
            os.symlink(pick.choice([b"x", b"../" + name[:200], b"/" + name * 2]), path)
        else:
            with open(path, "wb") as f:
                for _ in range(pick.choice([0, 1, 5, 26, 60])):
                    f.seek(pick.randrange(300) * 4096)
                    f.write(pick.randbytes(pick.randint(1, 5000)))
                f.truncate(pick.choice([0, f.tell(), 1_300_000]))
            os.chmod(path, pick.choice([0o644, 0o600, 0o4755]))
            files.append(path)


def on_disk(root: str) -> tuple[dict[str, Any], set[frozenset[str]]]:
    """Return the content of a directory, and the names that share an inode."""
    found: dict[str, Any] = {}
    inodes: dict[int, set[str]] = {}
    for where, below, files in os.walk(root):
        for name in below + files:
            path = os.path.join(where, name)
            info = os.lstat(path)
            relative = os.path.relpath(path, root)
            if stat.S_ISDIR(info.st_mode):
                found[relative] = ("dir", info.st_mode & 0o777)
                continue
            inodes.setdefault(info.st_ino, set()).add(relative)
            if stat.S_ISLNK(info.st_mode):
                found[relative] = ("symlink", os.readlink(path))
            else:
                found[relative] = ("file", info.st_mode & 0o777, hashlib.sha256(Path(path).read_bytes()).hexdigest())
    return found, {frozenset(names) for names in inodes.values()}


def shown(index: LayerIndex, reader: Bytes) -> tuple[dict[str, Any], set[frozenset[str]]]:
    """Return the content of an index, in the form of ``on_disk``."""
    found: dict[str, Any] = {}
    files: dict[str, set[str]] = {}
    for path, m in index.members.items():
        if m.kind == "dir":
            found[path] = ("dir", m.mode)
            continue
        files.setdefault(m.link or path, set()).add(path)
        if m.kind == "symlink":
            found[path] = ("symlink", m.target)
        else:
            found[path] = ("file", m.mode, hashlib.sha256(read_member(reader, m, 0, m.size)).hexdigest())
    return found, {frozenset(names) for names in files.values()}


WRITERS = st.sampled_from([
    ["tar", "--format=gnu"], ["tar", "--format=gnu", "-S"], ["tar", "--format=oldgnu", "-S"], ["tar", "--format=posix"],
    ["tar", "--format=posix", "-S", "--sparse-version=0.0"], ["tar", "--format=posix", "-S", "--sparse-version=0.1"],
    ["tar", "--format=posix", "-S", "--sparse-version=1.0"], ["tar", "--format=posix", "--pax-option=comment=global"],
    ["tar", "--format=gnu", "--label=NAME"], ["bsdtar", "--format=gnutar"], ["bsdtar", "--format=pax"],
])  # fmt: skip


@given(st.integers(0, 1 << 32), WRITERS)
@settings(max_examples=40, deadline=None)
def test_what_tools_write(seed: int, writer: list[str]) -> None:
    """The index of a tar has the members, modes, links and bytes that GNU tar or bsdtar extracts.

    The tar is written and extracted by the same tool.
    """
    if shutil.which(writer[0]) is None:
        return  # the unit tests of this tool report that it is missing
    with tempfile.TemporaryDirectory() as folder:
        source, target = os.path.join(folder, "source"), os.path.join(folder, "target")
        os.mkdir(source)
        os.mkdir(target)
        plant(source, seed)
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}  # bsdtar warns of names that are not UTF-8 and continues
        data = subprocess.run([*writer, "-cf", "-", "."], cwd=source, env=environment, capture_output=True).stdout
        subprocess.run([writer[0], "-xpf", "-"], cwd=target, env=environment, input=data, capture_output=True)
        index = index_tar(Bytes(data))
        consistent(index, Bytes(data))
        assert shown(index, Bytes(data)) == on_disk(target)


@given(
    ENTRIES,
    FORMATS,
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, 1 << 20),
)
@settings(max_examples=200, deadline=None)
def test_damaged_tars(entries: list[Entry], form: int, flips: list[tuple[int, int]], cut: int) -> None:
    """A tar with flipped bits or a missing end has a consistent index or raises LayerError."""
    data = bytearray(built(entries, form))
    for at, value in flips:
        data[at % len(data)] = value
    survives(bytes(data[: len(data) - cut % 2048]))


FIELD = st.one_of(
    st.binary(min_size=12, max_size=12),
    st.integers(-(1 << 95), (1 << 95) - 1).map(lambda n: (n & ((1 << 96) - 1) | 1 << 95).to_bytes(12, "big")),
    st.integers(0, 8**11 - 1).map(lambda n: b"%011o\0" % n),
    st.sampled_from(
        [b"\xff" * 12, b"\x80" + bytes(11), b"\x80\0\0\0\x7f" + b"\xff" * 7, b"\x80\0\0\0\x80" + bytes(7), bytes(12)]
    ),
)
PLACES = st.sampled_from([100, 124, 136, 156, 157, 257, 345, 355, 356, 386, 398, 410, 452, 482, 483, 504])
EDITS = st.lists(st.tuples(st.integers(0, 1 << 16), PLACES, FIELD, st.integers(1, 12)), min_size=1, max_size=4)
SMALL = sorted(name for name, case in CASES.items() if len(case.archive) < 1 << 20)


@given(st.sampled_from(SMALL), EDITS, st.booleans())
@settings(max_examples=1000, deadline=None)
def test_wrong_fields_with_right_checksums(name: str, edits: list[tuple[int, int, bytes, int]], sized: bool) -> None:
    """A hostile header with wrong fields and a correct checksum is read as a consistent index or raises LayerError."""
    data = bytearray(CASES[name].archive)
    for number, place, value, length in edits:
        at = number % max(1, len(data) // 512) * 512
        block = data[at : at + 512]
        if len(block) == 512:
            block[place : place + length] = value[:length]
            data[at : at + 512] = signed(bytes(block[:512]))
    survives(bytes(data), sized=sized)


@given(st.binary(max_size=3000), st.booleans())
@settings(max_examples=200, deadline=None)
def test_noise(data: bytes, sized: bool) -> None:
    """Random bytes are read as a consistent index or raise LayerError."""
    survives(data, sized=sized)


def survives(data: bytes, *, sized: bool = True) -> None:
    """Assert that bytes are read as a consistent index or raise LayerError.

    The parser must not read more than a few times the size of the blob.
    """
    reader = Bytes(data, sized=sized)
    try:
        index = index_tar(reader, max_entries=1000)
    except LayerError:
        index = None
    assert reader.given <= 4 * len(data) + (64 << 10)
    if index is not None:
        consistent(index, Bytes(data))
    with contextlib.suppress(LayerError):
        first_path(Bytes(data, sized=sized))


SPANS = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), max_size=30)


@given(SPANS, st.lists(st.tuples(st.integers(0, 2600), st.integers(0, 3000)), max_size=20))
@settings(max_examples=200, deadline=None)
def test_reads_of_a_sparse_file(spans: list[tuple[int, int]], reads: list[tuple[int, int]]) -> None:
    """Any read of a sparse file returns that slice of the file, whatever the spans of its data are."""
    content, packed, pairs = bytearray(), bytearray(), []
    for length, hole in spans:
        content += bytes(hole)
        pairs.append((len(content), length))
        piece = bytes([len(pairs) % 255 + 1]) * length
        content += piece
        packed += piece
    size = len(content) + 9
    numbers = b",".join(b"%d,%d" % pair for pair in pairs) or b"0,0"
    info = tarfile.TarInfo("s")
    info.size = len(packed)
    info.pax_headers = {"GNU.sparse.size": str(size), "GNU.sparse.map": numbers.decode()}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(bytes(packed)))
    reader = Bytes(out.getvalue())
    member = index_tar(reader).members["s"]
    whole = bytes(content) + bytes(9)
    assert member.size == size
    for offset, length in [(0, size), *reads]:
        assert read_member(reader, member, offset, length) == whole[offset : offset + length]
