"""Where each block of a file lies: on a device, in the image, or in a hole; and the best chunk size for the file.

EROFS divides a file into chunks of one size, and has one address for each chunk. An address counts blocks of 512 bytes,
so a part of a file can stay on its device if it begins at a multiple of 512 there. Everything else must be copied into
the image: parts at other offsets, and a last block that the device does not hold whole, or holds with bytes other than
zero behind the end of the file. A chunk that is partly one and partly the other is copied whole, so the chunk size is
chosen for which the addresses and copies take the fewest bytes.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

BLOCK_BITS: Final = 9
BLOCK: Final = 1 << BLOCK_BITS  # bytes; a tar member begins at a multiple of it
MAX_BITS: Final = 31  # of the blocks of a chunk (EROFS_CHUNK_FORMAT_BLKBITS_MASK)
ADDRESS: Final = 8  # bytes of the address of a chunk
MAX_BLOCKS: Final = (1 << 32) - 1  # of a device: the last address stands for a hole
IMAGE: Final = 0  # the number of the device that is the image itself
HOLE: Final = -1  # as the number of a device: the blocks are zeros
COPY: Final = -2  # as the number of a device: the blocks are to be copied into the image


class Extent(NamedTuple):
    """The ``length`` bytes of a file at ``file_offset`` lie at ``offset`` of a device (1 for the first one)."""

    file_offset: int
    device: int
    offset: int
    length: int


class Run(NamedTuple):
    """Blocks ``start`` to ``stop`` of a file: on a ``device`` from block ``address`` on, or ``HOLE``, or ``COPY``."""

    start: int
    stop: int
    device: int
    address: int


class Chunk(NamedTuple):
    """The address of one chunk: ``device`` is ``COPY`` for a chunk that the image must hold."""

    device: int
    address: int


def runs_of(size: int, extents: Sequence[Extent], *, whole_tail: bool) -> list[Run]:
    """Return the runs of a file of ``size`` bytes, without gaps.

    ``extents`` ascend and do not overlap. ``whole_tail`` says whether the block that holds the end of the file is whole
    on its device, with zeros after the end. Raises ValueError for other extents.
    """
    runs: list[Run] = []
    total = -(-size // BLOCK)
    at = 0  # bytes
    for extent in extents:
        if extent.file_offset < at or extent.length < 0 or extent.file_offset + extent.length > size:
            raise ValueError(f"extents overlap, or leave the file: {extent}")
        at = extent.file_offset + extent.length
        if not extent.length:
            continue
        first, last = extent.file_offset // BLOCK, -(-at // BLOCK)  # blocks that the extent touches
        start, stop = -(-extent.file_offset // BLOCK), at // BLOCK  # blocks that it fills
        if at == size and whole_tail:
            stop = last
        if (extent.offset - extent.file_offset) % BLOCK:
            start = stop = last
        start = min(start, last)
        stop = max(stop, start)
        _append(runs, Run(first, start, COPY, 0))
        _append(runs, Run(start, stop, extent.device, (extent.offset - extent.file_offset) // BLOCK + start))
        _append(runs, Run(stop, last, COPY, 0))
    _append(runs, Run(total, total, HOLE, 0))
    return runs


def _append(runs: list[Run], run: Run) -> None:
    """Append a run, after the hole before it. Two extents may touch the same block, which is copied then."""
    end = runs[-1].stop if runs else 0
    if run.start > end:
        runs.append(Run(end, run.start, HOLE, 0))
        end = run.start
    if run.stop <= end:
        return
    run = run._replace(start=end, address=run.address + end - run.start)
    if runs and _continues(runs[-1], run):
        run = run._replace(start=runs[-1].start, address=runs[-1].address)
        runs.pop()
    runs.append(run)


def _continues(before: Run, after: Run) -> bool:
    if before.device != after.device:
        return False
    return after.device < 0 or after.address - before.address == after.start - before.start


def chunk_bits(runs: Sequence[Run]) -> tuple[int, int]:
    """Return the best chunk size of a file, as the binary logarithm of its blocks, and the bytes that its addresses and
    copies take in the image.
    """
    total = runs[-1].stop if runs else 0
    best, best_cost = 0, -1
    for bits in range(min(MAX_BITS, max(0, (total - 1).bit_length())), -1, -1):
        count = -(-total >> bits)
        if best_cost >= 0 and count * ADDRESS >= best_cost:
            break
        cost = count * ADDRESS + _copied(runs, bits, total) * BLOCK
        if best_cost < 0 or cost < best_cost:
            best, best_cost = bits, cost
    return best, max(best_cost, 0)


def _copied(runs: Sequence[Run], bits: int, total: int) -> int:
    """Return how many blocks of a file are copied if its chunks have ``1 << bits`` blocks."""
    blocks = done = 0  # ``done`` chunks have been counted or passed
    for run in runs:
        first, last = run.start >> bits, -(-run.stop >> bits)
        if run.device != COPY:  # only its first and its last chunk can be shared with other runs
            shared = {first} if run.start & ((1 << bits) - 1) else set()
            if run.stop & ((1 << bits) - 1) and run.stop < total:
                shared.add(last - 1)
            for chunk in sorted(shared):
                if chunk >= done:
                    blocks += min(total, (chunk + 1) << bits) - (chunk << bits)
                    done = chunk + 1
        elif last > done:
            first = max(first, done)
            blocks += min(total, last << bits) - (first << bits)
            done = last
    return blocks


def chunks_of(runs: Sequence[Run], bits: int) -> Iterator[Chunk]:
    """Yield the chunks of a file in their order."""
    total = runs[-1].stop if runs else 0
    number = 0
    for start in range(0, total, 1 << bits):
        stop = min(total, start + (1 << bits))
        while runs[number].stop <= start:
            number += 1
        run = runs[number]
        if run.stop < stop or run.device == COPY:
            yield Chunk(COPY, 0)
        else:
            yield Chunk(run.device, run.address + start - run.start)
