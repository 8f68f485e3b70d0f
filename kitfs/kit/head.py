"""Read the first entry of a layer from the first kilobytes of its blob."""

from __future__ import annotations

from typing import Any, Final

from kitfs.errors import LayerError
from kitfs.layers.codec import decode
from kitfs.layers.tar import first_path
from kitfs.oci.paths import paths_overlap
from kitfs.store.blob import Blob

PEEK: Final = 16 << 10  # bytes of a compressed layer: usually enough to decode its first tar entry
BLOCK: Final = (128 << 10) + 64  # bytes that are always enough: the headers and one zstd block


def agrees(wire: Blob, compression: str, path: str) -> bool:
    """Return whether the first entry of a layer lies within the layer's declared path.

    ``wire`` is the blob as the registry has it. The result is False if the first entry cannot be read.
    """
    reader: Any = wire
    if compression != "none":
        heads = (_decoded(wire.pread(0, size), compression) for size in (PEEK, BLOCK))
        head = next((head for head in heads if head), b"")
        if not head:
            return False  # the layer is damaged or empty; building its index will report which
        reader = _Head(head)
    try:
        first = first_path(reader)
    except LayerError:
        return False
    return first is None or paths_overlap(first, path)


class _Head:
    """A reader of the first decoded bytes of a layer."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = None

    def pread(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


def _decoded(head: bytes, compression: str) -> bytes:
    """Decode the first bytes of a stream, as far as possible."""
    out = bytearray()
    try:
        for piece in decode([head], compression):
            out += piece
            if len(out) >= PEEK:
                break
    except LayerError:
        pass  # only the head was given to the decoder, so the stream looks cut off
    return bytes(out)
