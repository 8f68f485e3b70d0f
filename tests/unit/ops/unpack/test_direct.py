"""When a layer is written directly to files, its index is checked against the bytes between the files."""

from __future__ import annotations

import random

import pytest

from kitfs.errors import LayerError
from kitfs.layers.index import LayerIndex
from kitfs.layers.tar import index_tar
from kitfs.ops.unpack.direct import Headers
from tests.corpus.tars import CASES
from tests.kits import kit_tar

CHANCE = random.Random(7)
FILES = {"m/a": b"a" * 5000, "m/b/empty": b"", "m/b/c": CHANCE.randbytes(300_000), "m/d" * 60: b"d" * 512}


class Whole:
    """An archive in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def pread(self, offset: int, size: int) -> bytes:
        """Return the bytes at an offset, or fewer at the end of the archive."""
        return self.data[offset : offset + size]


def again(index: LayerIndex, data: bytes, piece: int) -> LayerIndex | None:
    """Pass an archive to ``Headers`` in pieces of `piece` bytes. Return an index that is built from these headers."""
    headers = Headers(index, len(data))
    for at in range(0, len(data), piece):
        headers.add(at, memoryview(data)[at : at + piece])
    try:
        return index_tar(headers)
    except LayerError:
        return None


@pytest.mark.parametrize("piece", [1, 511, 512, 4096, 1 << 20])
def test_the_index_of_the_right_bytes_is_the_same(piece: int) -> None:
    """The index that is built from the headers equals the original index, whatever the size of the pieces."""
    data = kit_tar(FILES, modes={"m/a": 0o755})
    index = index_tar(Whole(data))
    assert again(index, data, piece) == index


def test_only_bytes_outside_the_files_are_kept() -> None:
    """Bytes that belong to a file are replaced by zeros."""
    data = kit_tar(FILES)
    headers = Headers(index_tar(Whole(data)), len(data))
    headers.add(0, memoryview(data))
    assert headers.outside == len(data) - sum(map(len, FILES.values()))
    assert sum(map(len, headers._kept)) == headers.outside
    assert headers.pread(0, len(data)).count(b"a" * 100) == 0
    assert len(headers.pread(len(data) - 10, 100)) == 10


@pytest.mark.parametrize("name", CASES)
def test_every_nasty_archive(name: str) -> None:
    """The index is the same for archives with duplicates, sparse files, links or damage."""
    data = CASES[name].archive
    try:
        index = index_tar(Whole(data))
    except LayerError:
        return
    assert again(index, data, 512) == index


def test_the_index_of_other_bytes_is_not() -> None:
    """If a header in the archive was changed, the two indexes differ."""
    data = kit_tar(FILES)
    index = index_tar(Whole(data))
    for changed in ({"m/a": b"a" * 5001}, {"m/x": b""}, {"m/b/c": b"short"}):
        other = kit_tar(FILES | changed)
        assert again(index, other, 4096) != index
