"""Define the file of a layer index: a header, and named sections of bytes that are used in place.

    8 bytes    MAGIC
    u32        VERSION, the version of this layout and of the rules that decide which entries are in the tree
    u32        ORDER, the byte order of all numbers, which is that of the host that uses the file
    u64        size of the file in bytes
    u32        CRC-32 of the file without this field
    u32        number of sections
    32 bytes   for each section: its name (16 bytes, padded with NUL), its offset (u64), its length in bytes (u64)
    then the sections, each at a multiple of 8, so that it can be read as an array of numbers

A reader ignores sections that it does not know, so sections may be added without a new version. The checksum detects a
file that was damaged by a power loss.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Mapping
from typing import Final

from kitfs.errors import LayerLimit

MAGIC: Final = b"kitfsidx"
VERSION: Final = 4
ORDER: Final = 0x01020304
HEADER: Final = struct.Struct("=8sIIQII")
SECTION: Final = struct.Struct("=16sQQ")
CHECKSUM: Final = 24  # offset of the CRC-32
MAX_SECTIONS: Final = 64
MAX_FILE: Final = 64 << 30  # bytes: far more than the index of any layer that can be indexed

Buffer = bytes | mmap.mmap


def pack(sections: Mapping[str, bytes | bytearray | memoryview]) -> bytes:
    """Return the bytes of a file with the given sections. Raises LayerLimit for more than ``MAX_FILE`` bytes."""
    table = bytearray()
    at = HEADER.size + SECTION.size * len(sections)
    for name, data in sections.items():
        size = memoryview(data).nbytes
        table += SECTION.pack(name.encode("ascii"), at, size)
        at += size + -size % 8
    if at > MAX_FILE:
        raise LayerLimit(f"its index would have {at} bytes; the limit is {MAX_FILE}")
    parts: list[bytes | bytearray | memoryview] = [b"", table]
    for data in sections.values():
        parts += [data, bytes(-memoryview(data).nbytes % 8)]
    head = HEADER.pack(MAGIC, VERSION, ORDER, at, 0, len(sections))
    checksum = zlib.crc32(table, zlib.crc32(head[CHECKSUM + 4 :], zlib.crc32(head[:CHECKSUM])))
    for part in parts[2:]:
        checksum = zlib.crc32(part, checksum)
    parts[0] = HEADER.pack(MAGIC, VERSION, ORDER, at, checksum, len(sections))
    return b"".join(parts)


def unpack(data: Buffer) -> dict[str, slice]:
    """Return the position of each section in a file, by the section's name.

    Raises ValueError for a damaged file, and for a file of another version or of a host with another byte order.
    """
    view = memoryview(data)
    if len(view) < HEADER.size:
        raise ValueError("the index file is truncated")
    magic, version, order, size, checksum, count = HEADER.unpack_from(view)
    if (magic, version, order) != (MAGIC, VERSION, ORDER):
        raise ValueError("the file is not an index, or is an index of another version or host")
    if size != len(view) or count > MAX_SECTIONS:
        raise ValueError("the index file is truncated")
    if checksum != zlib.crc32(view[CHECKSUM + 4 :], zlib.crc32(view[:CHECKSUM])):
        raise ValueError("the index file is damaged: its checksum is wrong")
    found: dict[str, slice] = {}
    for number in range(count):
        at = HEADER.size + SECTION.size * number
        if at + SECTION.size > size:
            raise ValueError("the index file is damaged: a section extends past its end")
        name, start, length = SECTION.unpack_from(view, at)
        if start % 8 or start > size or length > size - start:
            raise ValueError("the index file is damaged: a section extends past its end")
        found[name.rstrip(b"\0").decode("ascii")] = slice(start, start + length)
    return found
