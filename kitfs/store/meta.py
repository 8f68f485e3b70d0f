"""The format of meta.json, and the chunk size of a blob."""

from __future__ import annotations

from typing import Any, Final

MIN_CHUNK: Final = 32 << 10
META_VERSION: Final = 1  # of meta.json
MAX_CHUNKS: Final = 1 << 19
MAX_SIZE: Final = 16 << 40  # bytes of a blob: what ext4 takes as one file, and chunks that memory holds


def chunk_size(size: int | None) -> int:
    """Bytes of a chunk for a blob of ``size`` bytes: 32 KiB up to 16 GiB, then doubling; 128 KiB when nobody knows
    the size.
    """
    if size is None:
        return 128 << 10
    chunk = MIN_CHUNK
    while size > chunk * MAX_CHUNKS:
        chunk *= 2
    return chunk


def new_meta(size: int | None) -> dict[str, Any]:
    """What meta.json says of a blob that begins."""
    return {"version": META_VERSION, "size": size, "chunk": chunk_size(size), "cuts": []}
