"""Compare the indexes of a layer that were made in different ways."""

from __future__ import annotations

from kitfs.layers.entries import decode, encode
from kitfs.layers.index import LayerIndex


def same_entries(made: LayerIndex, index: LayerIndex | None, *, max_entries: int) -> bool:
    """Return whether ``made``, perhaps from a chunk table, has the same entries as ``index``, made from the layer.

    The bytes of the two differ if the archive has entries that later entries replace.
    """
    return index is not None and (index == made or decode(encode(index), max_entries=max_entries) == made)
