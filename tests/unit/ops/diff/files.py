"""Files in memory, in the form in which a diff compares them."""

from __future__ import annotations

from kitfs.ops.diff.files import ComparedFile


class ReadFile(ComparedFile):
    """A file that records its reads in ``reads``."""

    reads: list[tuple[int, int]]


def file_of(data: bytes, *, layer: str = "layer", is_whole_layer: bool = False) -> ReadFile:
    """Return a regular file with the given bytes. Two files of one layer with the same bytes are the same file."""
    reads: list[tuple[int, int]] = []

    def read(offset: int, size: int) -> bytes:
        reads.append((offset, size))
        return data[offset : offset + size]

    file = ReadFile("file", 0o644, len(data), "", layer, data, is_whole_layer, read)
    file.reads = reads
    return file
