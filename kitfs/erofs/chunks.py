"""Compute which blocks of a file are on a device, in the image or in a hole, and the best chunk size of the file.

A device is a file of the store that contains the bytes of a layer. EROFS divides a file into chunks of equal size, and
stores an address for each chunk. An address is the number of a block of 512 bytes. So a part of a file can be read from
a device only if its offset there is a multiple of 512. All other parts are copied into the image. The last block of a
file is also copied if the device ends inside that block, or if bytes other than zero follow the end of the file there.
If a part of a chunk must be copied, the whole chunk is copied. The best chunk size is the size for which the addresses
and the copies together take the fewest bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

BLOCK_BITS: Final = 9
BLOCK: Final = 1 << BLOCK_BITS  # bytes; the data of a tar member begins at a multiple of them
MAX_BITS: Final = 31  # the binary logarithm of the blocks of a chunk is at most this (EROFS_CHUNK_FORMAT_BLKBITS_MASK)
ADDRESS: Final = 8  # bytes of the address of a chunk
MAX_BLOCKS: Final = (1 << 32) - 1  # blocks of a device, because the last address means a hole
IMAGE: Final = 0  # the device number of the image itself
HOLE: Final = -1  # a device number that means: the blocks are zeros
COPY: Final = -2  # a device number that means: the blocks must be copied into the image


class Extent(NamedTuple):
    """A piece of a file: ``length`` bytes at ``file_offset`` of the file are at ``offset`` of a device.

    Devices are numbered from 1.
    """

    file_offset: int
    device: int
    offset: int
    length: int


class Run(NamedTuple):
    """The blocks [``start``, ``stop``) of a file, which are on ``device`` from the block ``address`` on.

    ``device`` may also be ``HOLE`` or ``COPY``.
    """

    start: int
    stop: int
    device: int
    address: int


class Chunk(NamedTuple):
    """The address of a chunk. ``device`` is ``COPY`` if the chunk must be copied into the image."""

    device: int
    address: int


def runs_of(size: int, extents: Sequence[Extent], *, whole_tail: bool) -> list[Run]:
    """Return the runs of a file of ``size`` bytes, without gaps.

    ``whole_tail`` is True if the device has the whole last block of the file, with zeros after the end of the file.
    Raises ValueError if ``extents`` overlap or are not in ascending order.
    """
    runs: list[Run] = []
    total = -(-size // BLOCK)
    at = 0  # bytes
    for extent in extents:
        if extent.file_offset < at or extent.length < 0 or extent.file_offset + extent.length > size:
            raise ValueError(f"extents overlap or extend beyond the file: {extent}")
        at = extent.file_offset + extent.length
        if not extent.length:
            continue
        first, last = extent.file_offset // BLOCK, -(-at // BLOCK)  # the blocks that the extent touches
        start, stop = -(-extent.file_offset // BLOCK), at // BLOCK  # the blocks that the extent fills
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
    """Append a run.

    If there is a gap before the run, append a hole first. A block that belongs to two extents is copied.
    """
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
    """Return (bits, cost). The best chunk size of a file is ``1 << bits`` blocks.

    The cost is the number of bytes that the addresses and the copies take in the image.
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
    blocks = done = 0  # the chunks before number ``done`` have been counted, or need no copy
    for run in runs:
        first, last = run.start >> bits, -(-run.stop >> bits)
        if run.device != COPY:  # only the first and the last chunk of such a run can contain parts of other runs
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
