"""The content of layers that the store cannot keep. It is read twice: for the index, and for the files.

Threading: only one thread may use a content.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from kitfs.errors import IntegrityError, LayerError, LayerLimit
from kitfs.kit.layer import Layer
from kitfs.layers.codec import decode
from kitfs.layers.index import LayerIndex
from kitfs.ops.unpack.progress import Stopped
from kitfs.ops.unpack.safe_directory import write_all


def check_size(index: LayerIndex, size: int) -> None:
    """Raise IntegrityError, in kit's words, if the size of a layer's only file differs from its annotation."""
    for path in index.members:
        if size != index.total:
            raise IntegrityError(
                f"unpacked size of file {path} does not match metadata annotation: {size} bytes, not {index.total}"
            )


def check_room(size: int, room: int) -> None:
    """Raise LayerLimit if decoded content is larger than the room for it."""
    if size > room:
        raise LayerLimit(f"it decompresses to more than the {room} bytes that are free for the unpack")


class ForwardReader:
    """A forward reader of content that does not fit into the store.

    It keeps only the last ``KEPT`` bytes that were read.
    """

    KEPT: Final = 4096
    size: Final = None

    def __init__(self, pieces: Iterator[memoryview], room: int, stop: threading.Event) -> None:
        self._pieces = pieces
        self._room = room
        self._stop = stop
        self._start = 0  # offset of the bytes that are kept
        self._held = bytearray()

    def pread(self, offset: int, size: int) -> bytes:
        """Read bytes that begin at most ``KEPT`` bytes before the end of the previous read."""
        while self._start + len(self._held) < offset + size:
            if self._stop.is_set():
                raise Stopped
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._held += piece
            check_room(self._start + len(self._held), self._room)
            surplus = min(len(self._held) - self.KEPT, offset - self._start)
            if surplus > 0:
                del self._held[:surplus]
                self._start += surplus
        at = offset - self._start
        return bytes(self._held[at : at + size]) if at >= 0 else b""


class Streamed:
    """Content that the store cannot keep. It is read once, from its beginning to its end, and hashed meanwhile.

    ``index``: the index of a layer that is one file, or None for an archive. The size of the one file is checked at the
    end.
    """

    verified: Final = False
    resumable: Final = False

    def __init__(
        self, layer: Layer, index: LayerIndex | None, count: Callable[[int], None], stop: threading.Event
    ) -> None:
        self._layer = layer
        self._index = index
        self._count = count
        self._stop = stop
        self._hasher: Any = layer.digest.hasher()
        self._wire = self._hashed(layer.wire().stream())
        self._pieces: Iterator[bytes] = decode(self._wire, layer.type.compression) if layer.compressed else self._wire
        self._piece = memoryview(b"")
        self._at = 0  # offset of the piece in the content

    def _hashed(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self._stop.is_set():
                raise Stopped
            self._hasher.update(piece)
            self._count(len(piece))
            yield piece

    def take(self, fd: int, offset: int, at: int, size: int) -> int:
        """Use no bytes of an earlier run, and return 0: the digest can only be computed from the compressed bytes."""
        return 0

    def copy(self, at: int, size: int, fd: int, offset: int) -> None:
        """Copy ``size`` bytes from position ``at`` of the content.

        ``at`` must not be before the end of the last copy.
        """
        while size:
            while self._at + len(self._piece) <= at:
                self._next()
            piece = self._piece[at - self._at :][:size]
            write_all(fd, piece, offset)
            at, offset, size = at + len(piece), offset + len(piece), size - len(piece)

    def _next(self) -> None:
        self._at += len(self._piece)
        try:
            piece = next(self._pieces, None)
        except LayerError:
            self.finish()  # raises IntegrityError if damage is the reason
            raise
        if piece is None:
            raise IntegrityError(f"layer {self._layer.digest} ends before its files do")
        self._piece = memoryview(piece)

    def finish(self) -> bool:
        """Read the rest without decoding it, and return True.

        Raises IntegrityError if the digest or the size of the only file is wrong.
        """
        more = 0
        if self._index is not None:
            with suppress(LayerError):
                more = len(next(self._pieces, b""))
        for _ in self._wire:
            pass
        actual = self._hasher.hexdigest()
        if actual != self._layer.digest.hex:
            algorithm = self._layer.digest.algorithm
            raise IntegrityError(f"layer {self._layer.digest} does not match its digest: it has {algorithm}:{actual}")
        if self._index is not None:
            check_size(self._index, self._at + len(self._piece) + more)
        return True

    def close(self) -> None:
        """Do nothing, because no file is open."""
