"""Find the frames of a zstd layer before it is read, so that a read need not decode the layer from its beginning."""

from __future__ import annotations

import threading

from kitfs.errors import WouldBlock
from kitfs.layers.growth import Expansion
from kitfs.layers.seekable import frames
from kitfs.store.blob import Blob


class FrameFinder:
    """Looks for the seek table of one layer, once. Any thread may call ``find``."""

    def __init__(self, compression: str, expansion: Expansion) -> None:
        self.done = compression != "zstd"
        self._expansion = expansion
        self._lock = threading.Lock()

    def find(self, wire: Blob, content: Blob, *, wait: bool) -> None:
        """Read the seek table at the end of ``wire``, and let its decoded form ``content`` use the table.

        Nothing is done if the layer was decoded before, or if a decoder is running. Without ``wait``, raises WouldBlock
        if the table must be read. Raises the errors of ``wire``.
        """
        if not self.done and not (content.ranged or content.fetched):
            if not wait:
                raise WouldBlock
            with self._lock:
                self._find(wire, content)
        self.done = True

    def _find(self, wire: Blob, content: Blob) -> None:
        size = wire.size
        if not self.done and size is not None:
            points = frames(lambda offset, length: wire.pread(offset, length, alone=True), size)
            if points is not None and points.size <= self._expansion.limit(size):
                content.use(points)
