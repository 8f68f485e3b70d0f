"""Read and write the file ``meta.json`` of a blob, and choose the chunk size of a blob.

    {"version": 1, "size": bytes or null, "chunk": bytes, "cuts": [], "id": 16 hexadecimal digits}

"size" is null for a decoded blob until the decoder has reached its end. The file is then rewritten with the size, and
with the digest of the decoded bytes as "sha256". "id" identifies the entry. The file is not fsynced. If a crash
damages the file of a verified blob, it is restored from ``sealed``. Any other blob is then fetched again.
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
MAX_SIZE: Final = 16 << 40  # bytes of a blob: the limit for a file on ext4 and for a chunk map in memory


def chunk_size(size: int | None) -> int:
    """Return the size of a chunk in bytes, for a blob of ``size`` bytes.

    It is 32 KiB for a blob of up to 16 GiB, and doubles whenever the size doubles; it is 128 KiB for an unknown size.
    """
    if size is None:
        return 128 << 10
    chunk = MIN_CHUNK
    while size > chunk * MAX_CHUNKS:
        chunk *= 2
    return chunk


def new_meta(size: int | None) -> dict[str, Any]:
    """Return the content of meta.json for a blob without bytes."""
    return {"version": META_VERSION, "size": size, "chunk": chunk_size(size), "cuts": [], "id": os.urandom(8).hex()}


def load_meta(directory: str) -> dict[str, Any]:
    """Read meta.json. If the file is missing or damaged and the blob is verified, restore it from ``sealed``.

    Raises OSError and ValueError.
    """
    try:
        return _load(directory, "meta.json")
    except (FileNotFoundError, ValueError):
        sealed = _load(directory, "sealed")
    size, digest = sealed.get("size"), sealed.get("digest")
    if not isinstance(size, int) or not isinstance(digest, str):
        raise ValueError(f"{directory}/sealed has no size or digest")
    meta = {"version": META_VERSION, "size": size, "chunk": chunk_size(size), "cuts": [], "sha256": digest}
    save_meta(directory, meta)
    return meta


def _load(directory: str, name: str) -> dict[str, Any]:
    with open(open_file(os.path.join(directory, name)), "rb") as f:
        loaded: Any = own_json(f.read())
    if not isinstance(loaded, dict):
        raise ValueError(f"{directory}/{name} is not an object")
    return loaded


def save_meta(directory: str, meta: dict[str, Any]) -> None:
    """Write meta.json by rename, without fsync. Raises OSError."""
    with whole_file(os.path.join(directory, "meta.json"), durable=False) as f:
        f.write(json.dumps(meta).encode())


def load_or_reset(directory: str, size: int | None, name: str) -> dict[str, Any]:
    """Return meta.json for a blob of ``size`` bytes (None if unknown). The caller must hold the directory's lock.

    If the file is missing or damaged, or states another size for an unverified blob, the marks of the stored chunks are
    removed and a new file is written. ``name`` names the blob in messages. Raises OSError, and IntegrityError if a
    verified blob has another size.
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
