"""The first entry of a layer, read from its first kilobytes. Threading: no state."""

from __future__ import annotations

from typing import Any, Final

from kitfs.errors import LayerError
from kitfs.layers.codec import decode
from kitfs.layers.tar import first_path
from kitfs.oci.paths import paths_overlap
from kitfs.store.blob import Blob

PEEK: Final = 16 << 10  # bytes of a compressed layer that are mostly enough to decode its first tar entry
BLOCK: Final = (
    128 << 10
) + 64  # bytes that always are: a zstd block, which is decoded whole, and the headers before it


def agrees(wire: Blob, compression: str, path: str) -> bool:
    """Return whether the first entry of a layer lies within its declared path; False if that cannot be told.

    ``wire`` is the blob as the registry has it.
    """
    reader: Any = wire
    if compression != "none":
        heads = (_decoded(wire.pread(0, size), compression) for size in (PEEK, BLOCK))
        head = next((head for head in heads if head), b"")
        if not head:
            return False  # damaged, or empty: the index tells
        reader = _Head(head)
    try:
        first = first_path(reader)
    except LayerError:
        return False
    return first is None or paths_overlap(first, path)


class _Head:
    """The first decoded bytes of a layer, as a reader."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = None

    def pread(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


def _decoded(head: bytes, compression: str) -> bytes:
    """Decode the first bytes of a stream, as far as they go."""
    out = bytearray()
    try:
        for piece in decode([head], compression):
            out += piece
            if len(out) >= PEEK:
                break
    except LayerError:
        pass  # the stream goes on after its head
    return bytes(out)
