"""Make the index of a raw layer, which is a single file without a tar around it."""

from __future__ import annotations

from kitfs.layers.builder import raw_index, unnamed_index
from kitfs.layers.index import LayerIndex
from kitfs.modelkit.layers import FileMetadata


def raw_layer_index(
    path: str | None, blob_size: int, known: FileMetadata | None, compressed: bool, decoded_size: int | None
) -> LayerIndex:
    """Return the index of a raw layer at ``path``; None for a layer without a path.

    ``known`` is the metadata that the layer declares for its file. ``decoded_size`` is the size of a compressed layer's
    content in bytes, if it was decoded.
    """
    if path is None:
        return unnamed_index()
    size: int | None = blob_size
    if compressed:
        size = decoded_size if decoded_size is not None or known is None else known.size
    return raw_index(path, size or 0, 0o644 if known is None or known.mode is None else known.mode)
