"""Keep the chunk tables that this host has made of layers after it had verified them, as ``kept`` describes.

    <root>/tables/<algorithm>/ab/<hex>    for the layer with this digest: the sha256 of the rest of the file (32 bytes),
                                          the size of the table's head (u32, little-endian), and the table

A table stays when its layer is evicted, and is valid for the layer in every kit and from every registry. If the tables
exceed a limit, those that were not used for the longest time are removed.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from typing import Final

from kitfs.layers.chunk_table import MAX_HEAD, BuiltTable
from kitfs.oci.names import Digest
from kitfs.store.kept import Kept

KEPT: Final = Kept("tables", limit=2 << 30)
SUM: Final = 32  # bytes of the checksum
START: Final = struct.Struct("<32sI")


class TableFile:
    """The file of a table: ``data`` is the whole file. Raises ValueError if it is too short for a table."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._data = data
        _, self.head_size = START.unpack_from(data) if len(data) > START.size else (b"", 0)
        if not 0 < self.head_size <= min(MAX_HEAD, len(data) - START.size):
            raise ValueError("the file is not a chunk table")

    @property
    def size(self) -> int:
        """Return the size of the table in bytes."""
        return len(self._data) - START.size

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the table."""
        at = START.size + offset
        return bytes(self._data[at : at + length])

    def is_whole(self) -> bool:
        """Return whether the bytes on the disk are those that were written. All of them are read."""
        with memoryview(self._data) as view, view[SUM:] as rest:
            return hashlib.sha256(rest).digest() == bytes(view[:SUM])


def load(root: str, layer: Digest) -> TableFile | None:
    """Return the table that this host has made of a layer; None if there is no table, or if its file is damaged."""
    data = KEPT.load(root, layer, "", proven=True)
    try:
        return None if data is None else TableFile(data)
    except ValueError:
        discard(root, layer)
        return None


def keep(root: str, layer: Digest, table: BuiltTable) -> bool:
    """Write the table of a layer. Returns False if it cannot be written."""
    rest = table.head.to_bytes(START.size - SUM, "little") + table.data
    return KEPT.keep(root, layer, "", hashlib.sha256(rest).digest() + rest, proven=True)


def discard(root: str, layer: Digest) -> None:
    """Remove the table of a layer if it exists."""
    KEPT.discard(root, layer, "", proven=True)
