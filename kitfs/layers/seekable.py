"""Write zstd streams that can be read in any order, and find the frames of such streams.

The stream consists of independent frames of at most 4 MiB of content. A skippable frame at the end, the *seek table*,
has the sizes of all frames. Any zstd decoder reads the stream and skips the table. All numbers are little-endian:

    u32        0x184D2A5E, the magic number of a skippable frame
    u32        the size of the rest in bytes
    u32, u32   for each frame: its compressed size and the size of its content; with checksums, also a checksum (u32)
    u32        number of frames
    u8         bit 7: there are checksums; bits 2 to 6 must be 0
    u32        0x8F92EAB1

Source: the Zstandard seekable format 0.1.0 (facebook/zstd, contrib/seekable_format).
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from kitfs.layers.points import MAX_SPAN, SPAN, Point, RestartPoints, restart_points

SKIPPABLE: Final = struct.Struct("<II")
FOOTER: Final = struct.Struct("<IBI")
FRAME: Final = struct.Struct("<II")
TABLE_MAGIC: Final = 0x184D2A5E
FOOTER_MAGIC: Final = 0x8F92EAB1
CHECKSUMS: Final = 0x80
RESERVED: Final = 0x7C
LEVEL: Final = 3
MAX_FRAMES: Final = 1 << 18  # a larger table is not read; this one takes 3 MiB
PEEK: Final = 32 << 10  # bytes at the end of the stream that are read first: the table of a layer of 16 GiB


def compress(pieces: Iterable[bytes], cuts: Iterable[int]) -> Iterator[bytes]:
    """Compress pieces into frames. A frame ends at every multiple of ``SPAN`` in the content, and at every cut.

    ``cuts`` are offsets in the content, in ascending order. The same content and cuts result in the same bytes.
    """
    import zstandard

    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    borders = _borders(cuts)
    start, stop = 0, next(borders)
    content = bytearray()
    table = bytearray()
    for piece in pieces:
        view = memoryview(piece)
        while len(view):
            part = view[: stop - start - len(content)]
            content += part
            view = view[len(part) :]
            if len(content) == stop - start:
                frame = compressor.compress(content)
                table += FRAME.pack(len(frame), len(content))
                yield frame
                start, stop, content = stop, next(borders), bytearray()
    if content or not table:
        frame = compressor.compress(content)
        table += FRAME.pack(len(frame), len(content))
        yield frame
    size = len(table) + FOOTER.size
    yield SKIPPABLE.pack(TABLE_MAGIC, size) + table + FOOTER.pack(len(table) // FRAME.size, 0, FOOTER_MAGIC)


def _borders(cuts: Iterable[int]) -> Iterator[int]:
    """Yield the offsets in the content at which frames end. The iterator never ends."""
    at = 0
    for cut in cuts:
        while at + SPAN - at % SPAN < cut:
            at += SPAN - at % SPAN
            yield at
        if cut > at:
            at = cut
            yield at
    while True:
        at += SPAN - at % SPAN
        yield at


def frames(read: Callable[[int, int], bytes], size: int) -> RestartPoints | None:
    """Find the frames of a zstd stream of ``size`` bytes by its seek table. Returns None if it has no valid table.

    ``read`` returns bytes of the stream at an offset. The table is not verified: a frame may have another size.
    """
    tail = read(max(0, size - PEEK), min(size, PEEK))
    if len(tail) < SKIPPABLE.size + FOOTER.size:
        return None
    count, descriptor, magic = FOOTER.unpack(tail[-FOOTER.size :])
    if magic != FOOTER_MAGIC or descriptor & RESERVED or not 0 < count <= MAX_FRAMES:
        return None
    width = FRAME.size + (4 if descriptor & CHECKSUMS else 0)
    length = SKIPPABLE.size + count * width + FOOTER.size
    if length > size:
        return None
    if length > len(tail):
        tail = read(size - length, length)
    table = tail[-length:]
    if SKIPPABLE.unpack_from(table) != (TABLE_MAGIC, length - SKIPPABLE.size):
        return None
    sizes = [FRAME.unpack_from(table, SKIPPABLE.size + i * width) for i in range(count)]
    if sum(packed for packed, _ in sizes) + length != size or any(content > MAX_SPAN for _, content in sizes):
        return None
    at = itertools.accumulate((packed for packed, _ in sizes), initial=0)
    out = itertools.accumulate((content for _, content in sizes), initial=0)
    points = [Point(o, a) for o, a, (_, content) in zip(out, at, sizes, strict=False) if content]
    try:
        return restart_points("zstd", points or [Point(0, 0)], size=sum(c for _, c in sizes), blob_size=size)
    except ValueError:
        return None
