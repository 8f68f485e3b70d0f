"""Find restart points of a compressed layer before it is read, so that it need not be decoded from its beginning."""

from __future__ import annotations

import threading
from typing import Final

from kitfs.errors import WouldBlock
from kitfs.kit.layer_table import LayerTable
from kitfs.layers.growth import Expansion
from kitfs.layers.points import RestartPoints
from kitfs.layers.seekable import frames
from kitfs.store.blob import Blob

SMALL: Final = 1 << 20  # bytes: decoding a smaller layer from its beginning is as fast as fetching points


class RestartFinder:
    """Looks once for restart points: those of a gzip layer in its chunk ``table``, or the seek table of a zstd layer.

    Any thread may call ``find``.
    """

    def __init__(self, compression: str, expansion: Expansion, table: LayerTable | None) -> None:
        self.done = not (compression == "zstd" or (compression == "gzip" and table is not None))
        self._expansion = expansion
        self._table = table if compression == "gzip" else None
        self._lock = threading.Lock()

    def find(self, wire: Blob, content: Blob, *, wait: bool) -> None:
        """Look for the points of ``wire``, and let its decoded form ``content`` use them.

        Nothing is done if the layer is small, if it was decoded before, or if a decoder is running. Without ``wait``,
        raises WouldBlock if something must be read. Raises the errors of ``wire`` and of the table.
        """
        small = wire.size is not None and wire.size <= SMALL
        if not self.done and not (small or content.ranged or content.fetched):
            if not wait:
                raise WouldBlock
            with self._lock:
                self._find(wire, content)
        self.done = True

    def _find(self, wire: Blob, content: Blob) -> None:
        size = wire.size
        if not self.done and size is not None:
            points = self._points(wire, size)
            if points is not None and points.size <= self._expansion.limit(size) and points.blob_size == size:
                content.use(points)

    def _points(self, wire: Blob, size: int) -> RestartPoints | None:
        if self._table is not None:
            return self._table.points()
        return frames(lambda offset, length: wire.pread(offset, length, alone=True), size)
