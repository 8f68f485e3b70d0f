"""Files in memory for the tests of diffs."""

from __future__ import annotations

from kitfs.ops.diff.files import ComparedFile


class ReadFile(ComparedFile):
    """A file that records the offset and the size of each read in ``reads``."""

    reads: list[tuple[int, int]]


def file_of(data: bytes, *, layer: str = "layer", is_whole_layer: bool = False) -> ReadFile:
    """Return a regular file with the content `data`.

    Two files with equal content in one layer count as the same file.
    """
    reads: list[tuple[int, int]] = []

    def read(offset: int, size: int) -> bytes:
        reads.append((offset, size))
        return data[offset : offset + size]

    file = ReadFile("file", 0o644, len(data), "", layer, data, is_whole_layer, read)
    file.reads = reads
    return file
