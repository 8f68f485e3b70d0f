"""Read the bytes of a member from its extents, and fill the holes between them with zeros."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Protocol

from kitfs.layers.index import Member


class WaitingReader(Protocol):
    """A reader of a blob at any offset. With ``wait=False``, it raises WouldBlock instead of using the network."""

    def pread(self, offset: int, size: int, *, wait: bool = True) -> bytes: ...


def read_member(reader: WaitingReader, member: Member, offset: int, size: int, *, wait: bool = True) -> bytes:
    """Read ``size`` bytes of a member at ``offset``: fewer at its end, or if the blob ends before the member does."""
    size = min(size, member.size - offset)
    if size <= 0:
        return b""
    extents = member.extents
    if len(extents) == 1:
        start, at, length = extents[0]
        if start <= offset and offset + size <= start + length:
            return reader.pread(at + offset - start, size, wait=wait)
    out = bytearray(size)
    stop = offset + size
    first = max(0, bisect_right(extents, offset, key=lambda e: e.file_offset) - 1)
    for start, at, length in extents[first:]:
        if start >= stop:
            break
        low, high = max(start, offset), min(start + length, stop)
        if low >= high:
            continue
        data = reader.pread(at + low - start, high - low, wait=wait)
        out[low - offset : low - offset + len(data)] = data
        if len(data) < high - low:
            return bytes(out[: low - offset + len(data)])
    return bytes(out)


def spans(member: Member, offset: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset in the blob, length) for the pieces of ``size`` bytes of a member. Holes are left out."""
    stop = min(offset + size, member.size)
    first = max(0, bisect_right(member.extents, offset, key=lambda e: e.file_offset) - 1)
    for start, at, length in member.extents[first:]:
        if start >= stop:
            return
        low, high = max(start, offset), min(start + length, stop)
        if low < high:
            yield at + low - start, high - low
