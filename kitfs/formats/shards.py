"""Read the index of a safetensors model that is split into several files (shards).

The format is defined by ``transformers`` and ``huggingface_hub``: ``NAME.safetensors.index.json`` is a JSON object
whose ``weight_map`` maps the name of each tensor to the name of a file in the same directory.
"""

from __future__ import annotations

import json
from typing import Final

from kitfs.errors import LayerError
from kitfs.formats.header import MAX_HEADER, Read, read_exactly

SUFFIX: Final = ".safetensors.index.json"


def is_shard_index(path: str) -> bool:
    """Return whether a file has the name of a shard index."""
    return path.endswith(SUFFIX)


def weight_map(size: int, read: Read) -> dict[str, str]:
    """Return the ``weight_map`` of an index of ``size`` bytes. It maps the name of each tensor to the name of a file.

    Raises LayerError if the index is damaged, or names a file outside its directory.
    """
    if size > MAX_HEADER:
        raise LayerError(f"the index of shards has {size} bytes; the limit is {MAX_HEADER}")
    try:
        index = json.loads(read_exactly(read, 0, size))
    except (ValueError, RecursionError) as e:
        raise LayerError(f"not an index of shards: it is not JSON: {e}")
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict):
        raise LayerError("not an index of shards: it has no weight_map")
    for name, file in found.items():
        if not isinstance(file, str) or "/" in file or file in ("", ".", ".."):
            raise LayerError(f"tensor {name[:80]!r}: the index of shards does not name a file in its directory")
    return found
