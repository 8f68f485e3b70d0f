"""A file in memory that counts the bytes that are read."""

from __future__ import annotations


class Reads:
    """A file in memory.

    ``moved`` is the number of bytes that were read. If ``size`` is larger than the data, zeros follow the data.
    """

    def __init__(self, data: bytes, size: int | None = None) -> None:
        self.data, self.size, self.moved = data, len(data) if size is None else size, 0

    def __call__(self, offset: int, size: int) -> bytes:
        assert 0 <= offset <= offset + size <= self.size
        self.moved += size
        return self.data[offset : offset + size].ljust(size, b"\0")
