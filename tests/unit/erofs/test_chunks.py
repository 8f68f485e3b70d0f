"""The chunks of a file map each of its bytes to the place that the extents of the file state. Few bytes are copied."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.erofs.chunks import BLOCK, COPY, HOLE, Chunk, Extent, Run, chunk_bits, chunks_of, runs_of

DEVICE = bytes(i * 7 % 255 + 1 for i in range(40 * BLOCK))  # no byte is zero


@st.composite
def files(draw: st.DrawFn) -> tuple[int, list[Extent]]:
    """Generate the size and the extents of a file of a few blocks.

    The extents ascend, at aligned and unaligned offsets, and may have holes between them.
    """
    extents = []
    at = 0
    for _ in range(draw(st.integers(0, 4))):
        at += draw(st.sampled_from([0, 0, 1, 100, BLOCK, 3 * BLOCK, BLOCK + 1]))
        length = draw(st.sampled_from([1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 4 * BLOCK, 5000]))
        offset = draw(st.sampled_from([0, BLOCK, 7 * BLOCK, at % BLOCK, BLOCK + at % BLOCK, 77]))
        extents.append(Extent(at, 1, offset, length))
        at += length
    return at + draw(st.sampled_from([0, 0, 1, BLOCK, 2000])), extents


def expected(size: int, extents: Sequence[Extent]) -> bytes:
    """Return the bytes of a file that has these extents."""
    out = bytearray(size)
    for start, _, offset, length in extents:
        out[start : start + length] = DEVICE[offset : offset + length]
    return bytes(out)


def read(size: int, bits: int, chunks: Sequence[Chunk], extents: Sequence[Extent]) -> bytes:
    """Return the bytes that a kernel reads from the chunks of a file: bytes of the device, copied bytes or zeros."""
    out = bytearray()
    for i, chunk in enumerate(chunks):
        start = i * BLOCK << bits
        stop = min(size, start + (BLOCK << bits))
        if chunk.device == COPY:
            out += expected(size, extents)[start:stop]
        elif chunk.device == HOLE:
            out += bytes(stop - start)
        else:
            out += DEVICE[chunk.address * BLOCK : chunk.address * BLOCK + stop - start]
    return bytes(out)


@given(files(), st.booleans(), st.integers(0, 6))
def test_every_byte_is_where_its_extent_says(file: tuple[int, list[Extent]], whole_tail: bool, bits: int) -> None:
    """The test tries every chunk size."""
    size, extents = file
    chunks = list(chunks_of(runs_of(size, extents, whole_tail=whole_tail), bits))
    assert len(chunks) == -(-size // (BLOCK << bits))
    assert read(size, bits, chunks, extents) == expected(size, extents)


@given(files(), st.booleans())
def test_the_chosen_chunk_size_costs_least(file: tuple[int, list[Extent]], whole_tail: bool) -> None:
    """The cost of a chunk size is the number of bytes that its addresses and copies need."""
    size, extents = file
    runs = runs_of(size, extents, whole_tail=whole_tail)

    def cost(bits: int) -> int:
        chunks = list(chunks_of(runs, bits))
        blocks = -(-size // BLOCK)
        copied = sum(min(blocks, (i + 1) << bits) - (i << bits) for i, c in enumerate(chunks) if c.device == COPY)
        return 8 * len(chunks) + copied * BLOCK

    best, said = chunk_bits(runs)
    assert said == cost(best)
    assert said == min(map(cost, range(8)))


def test_a_member_of_a_tar_is_one_chunk() -> None:
    """A file needs one address and no copy if its offset is a multiple of 512 and its last block is whole."""
    runs = runs_of(10 << 30, [Extent(0, 3, 1536, 10 << 30)], whole_tail=True)
    assert runs == [Run(0, (10 << 30) // BLOCK, 3, 3)]
    assert chunk_bits(runs) == (25, 8)
    assert list(chunks_of(runs, 25)) == [Chunk(3, 3)]


def test_a_partial_last_block_is_copied_with_little_around_it() -> None:
    """For a raw layer of 1 GiB and 3 bytes, the image grows by less than 200 KiB."""
    size = (1 << 30) + 3
    bits, cost = chunk_bits(runs_of(size, [Extent(0, 1, 0, size)], whole_tail=False))
    assert cost < 200 << 10
    assert list(chunks_of(runs_of(size, [Extent(0, 1, 0, size)], whole_tail=False), bits))[-1].device == COPY


@pytest.mark.parametrize(
    "extents", [[Extent(0, 1, 0, 600), Extent(512, 1, 0, 10)], [Extent(0, 1, 0, 2000)], [Extent(0, 1, 0, -1)]]
)
def test_extents_that_overlap_or_leave_the_file_are_refused(extents: list[Extent]) -> None:
    """The error is a ValueError."""
    with pytest.raises(ValueError, match="extents overlap or extend beyond the file"):
        runs_of(1000, extents, whole_tail=False)
