"""Tests of chunk tables: what was built is read back, and every changed byte is found."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kitfs.errors import IntegrityError, LayerError
from kitfs.layers.chunk_table import CHUNK, DIGEST, PAGE, BuiltTable, ChunkHasher, TableHead, build

LAYER = hashlib.sha256(b"layer").hexdigest()


def table_of(data: bytes, sections: dict[str, bytes] | None = None) -> BuiltTable:
    hasher = ChunkHasher()
    hasher.update(data)
    return build(hashlib.sha256(data).hexdigest(), len(data), hasher.digests(), sections or {})


@settings(max_examples=30)
@given(st.integers(0, 3 * CHUNK + 5), st.lists(st.integers(1, 2 * CHUNK), max_size=5), st.integers())
def test_the_pieces_in_which_a_layer_is_hashed_do_not_matter(size: int, cuts: list[int], seed: int) -> None:
    """A hasher computes the sha256 of each chunk, whatever the sizes of the pieces that it is given."""
    data = random.Random(seed).randbytes(size)
    hasher, at = ChunkHasher(), 0
    for cut in (*cuts, size):
        hasher.update(data[at : at + cut])
        at += cut
    expected = b"".join(hashlib.sha256(data[at : at + CHUNK]).digest() for at in range(0, size, CHUNK))
    assert (hasher.size, hasher.digests()) == (size, expected)


@settings(max_examples=30)
@given(st.integers(0, 2 * PAGE + 3), st.dictionaries(st.sampled_from(["entries", "points"]), st.binary(max_size=99)))
def test_a_table_is_read_as_it_was_built(chunks: int, sections: dict[str, bytes]) -> None:
    """The head of a table leads to every page of digests and to every section."""
    digests = bytes(DIGEST) * chunks
    built = build(LAYER, chunks * CHUNK, digests, sections)
    head = TableHead(built.data[: built.head])
    assert (head.layer, head.size, head.chunks) == (LAYER, chunks * CHUNK, chunks)
    pages = [head.page(number) for number in range(-(-chunks // PAGE))]
    read = [page.check(built.data[page.offset : page.offset + page.length]) for page in pages]
    assert b"".join(read) == digests
    found = {name: s.check(built.data[s.offset : s.offset + s.length]) for name, s in head.sections.items()}
    assert found == sections


@settings(max_examples=30)
@given(st.data())
def test_a_changed_byte_is_found(data: st.DataObject) -> None:
    """After the head is verified by its digest, no changed byte of the digests or the sections is accepted."""
    built = table_of(bytes(40 * CHUNK), {"entries": b"abc", "points": b"defg"})
    at = data.draw(st.integers(built.head, len(built.data) - 1))
    changed = bytearray(built.data)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    head = TableHead(built.data[: built.head])
    places = (head.page(0), *head.sections.values())
    (place,) = (p for p in places if p.offset <= at < p.offset + p.length)
    with pytest.raises(IntegrityError):
        place.check(bytes(changed[place.offset : place.offset + place.length]))


@settings(max_examples=30)
@given(st.binary(max_size=400), st.integers(0, 300), st.binary(max_size=8))
def test_a_hostile_head_is_refused(noise: bytes, at: int, overwrite: bytes) -> None:
    """Bytes that are not the head of a table raise LayerError, and a changed head raises it or stays consistent."""
    built = table_of(bytes(3 * CHUNK), {"entries": b"abc"})
    with pytest.raises(LayerError):
        TableHead(noise)
    changed = bytearray(built.data[: built.head])
    changed[at : at + len(overwrite)] = overwrite[: max(0, len(changed) - at)]
    try:
        head = TableHead(bytes(changed))
    except LayerError:
        return
    assert head.length == len(changed)
    assert all(section.offset >= head.length for section in head.sections.values())


def test_a_section_that_is_too_large_is_refused() -> None:
    """No table is built with a section that a reader would refuse."""
    with pytest.raises(LayerError, match="too large"):
        build(LAYER, 1, b"", {"points": _Huge()})  # type: ignore[dict-item]


class _Huge:
    """A section that claims to have more bytes than a section may have."""

    def __len__(self) -> int:
        return 1 << 31
