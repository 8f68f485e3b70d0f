"""Tests of the entries in a chunk table: they result in the index of the archive, or in LayerError."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitfs.errors import LayerError
from kitfs.layers.entries import decode, encode
from kitfs.layers.index import LayerIndex
from kitfs.layers.tar import index_tar
from tests.corpus.tars import CASES
from tests.property.test_tar import ENTRIES, FORMATS, Bytes, Entry, built


def packed(*lines: Any) -> bytes:
    return zlib.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def same(one: LayerIndex, other: LayerIndex) -> bool:
    members = list(one.members.items()) == list(other.members.items())
    return members and list(one.skipped) == list(other.skipped)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.error])
def test_the_entries_of_an_unusual_tar_result_in_its_index(name: str) -> None:
    """An index that is made from entries has the members and the skipped entries of the archive's index."""
    archive = CASES[name].archive
    index = index_tar(Bytes(archive))
    again = decode(encode(index), size=len(archive), max_entries=1000)
    assert same(again, index)
    assert decode(encode(again), max_entries=1000) == again


@settings(max_examples=30)
@given(ENTRIES, FORMATS)
def test_the_entries_of_any_tar_result_in_its_index(entries: list[Entry], form: int) -> None:
    """An index that is made from entries has the members and the skipped entries of the archive's index."""
    archive = built(entries, form)
    index = index_tar(Bytes(archive))
    assert same(decode(encode(index), size=len(archive), max_entries=1000), index)


VALUES = st.one_of(
    st.sampled_from(["d", "f", "x", "l", "h", "s", "a", "a/b", "../a", "fifo", -1, 0, 1, 1 << 70, None]), st.integers()
)


@settings(max_examples=30)
@given(st.lists(st.lists(VALUES, max_size=7), max_size=8))
def test_hostile_entries_are_refused_or_result_in_an_index(lines: list[list[Any]]) -> None:
    """Entries of any form result in LayerError, or in an index whose files lie within the layer."""
    try:
        index = decode(packed(*lines), size=1000, max_entries=100)
    except LayerError:
        return
    assert all(e.blob_offset + e.length <= 1000 for m in index.members.values() for e in m.extents)
    assert not any(".." in path.split("/") for path in index.members)


@settings(max_examples=30)
@given(st.binary(max_size=200))
def test_bytes_that_are_not_entries_are_refused(data: bytes) -> None:
    """Bytes that are not a section raise LayerError."""
    with pytest.raises(LayerError):
        decode(data, max_entries=100)


@pytest.mark.parametrize(
    "section",
    [
        packed(["d", "a", 0o755])[:-3],
        zlib.compress(b'["d","a",493]'),
        zlib.compress(b" " * (1 << 20)),
        packed(*(["d", str(n), 0o755] for n in range(101))),
        packed(["x", *range(303)]),
        packed(["x"]),
        packed(["f", "a", 0o644, 2000, 0]),
        packed(["x", 0, 0, 10, 5, 20, 10], ["f", "a", 0o644, 20, -1]),
    ],
    ids=["cut", "no newline", "long line", "many entries", "many extents", "no extents", "outside", "overlapping"],
)
def test_entries_beyond_the_limits_are_refused(section: bytes) -> None:
    """A section that is cut off, too large, or contradicts the layer raises LayerError."""
    with pytest.raises(LayerError):
        decode(section, size=1000, max_entries=100)


def test_long_lines_are_not_read_to_their_end() -> None:
    """A small section may decompress to many GiB, so the bytes of all lines together are limited."""
    packer = zlib.compressobj()
    head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
    line = packer.compress(b'["d", "a", 493' + b" " * 120_000 + b"]\n") + packer.flush(zlib.Z_FULL_FLUSH)
    with pytest.raises(LayerError, match="too long"):
        decode(head + line * 10_000, max_entries=10_000)
