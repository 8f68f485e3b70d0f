"""Tars of every shape, and tars that were damaged: an index, or one LayerError, and never anything else."""

from __future__ import annotations

import io
import tarfile

from hypothesis import given, settings
from hypothesis import strategies as st

from kitfs.errors import LayerError
from kitfs.layers.index import LayerIndex
from kitfs.layers.read import read_member
from kitfs.layers.tar import index_tar

NAMES = st.text(st.sampled_from("ab./é日 -\\"), min_size=1, max_size=12)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"V", b"Z"])
ENTRIES = st.lists(st.tuples(NAMES, KINDS, st.binary(max_size=1200), NAMES), max_size=12)
FORMATS = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size: int | None = len(data)

    def pread(self, offset: int, size: int, *, wait: bool = True) -> bytes:
        assert offset >= 0
        assert size >= 0
        return self.data[offset : offset + size]


def built(entries: list[tuple[str, bytes, bytes, str]], form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, kind, data, link in entries:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def consistent(index: LayerIndex, reader: Bytes) -> None:
    """No path leaves the root, every parent is a directory, every file can be read."""
    for path, member in index.members.items():
        parts = path.split("/")
        assert ".." not in parts
        assert "." not in parts
        assert "" not in parts
        for i in range(1, len(parts)):
            parent = index.get("/".join(parts[:i]))
            assert parent is not None
            assert parent.kind == "dir"
        assert parts[-1] in index.children("/".join(parts[:-1]))
        if member.kind == "file":
            assert len(read_member(reader, member, 0, member.size)) == member.size


@given(ENTRIES, FORMATS)
@settings(max_examples=150, deadline=None)
def test_what_tarfile_writes(entries: list[tuple[str, bytes, bytes, str]], form: int) -> None:
    """The last file of each safe name has the bytes that were written last under that name."""
    reader = Bytes(built(entries, form))
    index = index_tar(reader)
    consistent(index, reader)
    assert len(index.members) + len(index.skipped) <= len(entries)


@given(ENTRIES, FORMATS, st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=8), st.integers(0, 1 << 20))
@settings(max_examples=300, deadline=None)
def test_damaged_tars(entries: list[tuple[str, bytes, bytes, str]], form: int, flips: list[tuple[int, int]], cut: int) -> None:
    """Flipped bytes and cut ends give a consistent index or a LayerError."""
    data = bytearray(built(entries, form))
    for at, value in flips:
        data[at % len(data)] = value
    reader = Bytes(bytes(data[: len(data) - cut % 2048]))
    try:
        index = index_tar(reader, max_entries=1000)
    except LayerError:
        return
    consistent(index, reader)


@given(st.binary(max_size=3000))
@settings(max_examples=200, deadline=None)
def test_noise(data: bytes) -> None:
    """Bytes that never were a tar."""
    try:
        consistent(index_tar(Bytes(data)), Bytes(data))
    except LayerError:
        pass
