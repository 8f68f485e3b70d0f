"""The file ``meta.json`` of a blob, and the chunk size of a blob.

    {"version": 1, "size": bytes or null, "chunk": bytes, "cuts": [], "id": 16 hexadecimal digits}

"size" is null for a decoded form until its end was seen. Then the file is rewritten with the size and with "sha256",
the digest of what the decoder gave. Threading: no state.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any, Final

from kitfs.errors import IntegrityError
from kitfs.gocompat.json import own_json
from kitfs.ownership import open_file
from kitfs.store.durable import whole_file

MIN_CHUNK: Final = 32 << 10
META_VERSION: Final = 1
MAX_CHUNKS: Final = 1 << 19
MAX_SIZE: Final = 16 << 40  # bytes of a blob: what ext4 takes as one file, and what a chunk map in memory can describe


def chunk_size(size: int | None) -> int:
    """Return the bytes of a chunk for a blob of ``size`` bytes: 32 KiB up to 16 GiB, then doubling; 128 KiB when the
    size is not known.
    """
    if size is None:
        return 128 << 10
    chunk = MIN_CHUNK
    while size > chunk * MAX_CHUNKS:
        chunk *= 2
    return chunk


def new_meta(size: int | None) -> dict[str, Any]:
    """Return the content of meta.json for a blob that has no bytes yet."""
    return {"version": META_VERSION, "size": size, "chunk": chunk_size(size), "cuts": [], "id": os.urandom(8).hex()}


def load_meta(directory: str) -> dict[str, Any]:
    """Read meta.json. Raises OSError, ValueError."""
    with open(open_file(os.path.join(directory, "meta.json")), "rb") as f:
        loaded: dict[str, Any] = own_json(f.read())
    return loaded


def save_meta(directory: str, meta: dict[str, Any]) -> None:
    """Write meta.json by rename. It is not fsynced: an entry whose meta.json a crash has damaged begins afresh.

    Raises OSError.
    """
    with whole_file(os.path.join(directory, "meta.json"), durable=False) as f:
        f.write(json.dumps(meta).encode())


def load_or_reset(directory: str, size: int | None, name: str) -> dict[str, Any]:
    """Return meta.json, for a blob of ``size`` bytes (None: not known). Call under the directory's lock.

    When the file is missing or damaged, or gives an unverified blob another size, the entry's marks are removed and a
    new file is written. Raises IntegrityError when a verified blob has another size, OSError. ``name`` is the blob's
    name for messages.
    """
    try:
        meta = load_meta(directory)
        if meta["version"] == META_VERSION and isinstance(meta["chunk"], int) and meta["chunk"] > 0:
            sealed = os.path.exists(os.path.join(directory, "sealed"))
            if (size is None or meta["size"] == size) and (sealed or isinstance(meta["id"], str)):
                return meta
            if sealed:
                raise IntegrityError(f"{name} has {meta['size']} bytes, but its descriptor says {size}")
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    for mark in ("present", "synced", "sealed"):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, mark))
    meta = new_meta(size)
    save_meta(directory, meta)
    return meta
