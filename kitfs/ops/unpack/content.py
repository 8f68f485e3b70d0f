"""Where the bytes of an unpack come from: a layer of a kit, brought into the store, verified, and then copied into
files.

A blob is read back and compared with its digest before the first file of it is written; only a layer that the store
cannot keep is written as it passes, hashed on its way, and its files get their names when the digest is right. Of a
layer that is written so the index was read before, from the same source, by reads of their own. Threading: a Supply
belongs to one thread at a time; ``stop`` ends it from any other.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, Protocol

from kitfs.errors import IntegrityError, LayerError, StoreFull
from kitfs.kit.layer import Layer
from kitfs.layers.codec import decode
from kitfs.layers.index import SIZE_MAX, LayerIndex
from kitfs.layers.tar import index_tar
from kitfs.openfile import PIECE
from kitfs.ops.unpack.safe_directory import copy_range, put
from kitfs.store import fill as filling
from kitfs.store.blob import Blob
from kitfs.store.store import Store

GROWTH: Final = 200  # times its size that a layer may decode to: what is mostly zeros does more, and is small
SMALL: Final = 16 << 30  # bytes that any layer may decode to, if they are free

Moved = Callable[[int], None]


class Stopped(Exception):  # noqa: N818 - no error: somebody else's error ended this
    """The unpack ends for another reason."""


class Body(Protocol):
    """The content that extents speak of. ``verified``: its digest is known to be right; else only when ``finish`` has
    returned.
    """

    @property
    def verified(self) -> bool: ...

    def copy(self, at: int, size: int, fd: int, offset: int) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


class ContentSource(Protocol):
    """What an unpack needs of a layer, or of a file that is somewhere else. ``fetches`` is how many bytes it has to
    get first.
    """

    @property
    def kind(self) -> str: ...

    @property
    def path(self) -> str | None: ...

    @property
    def digest(self) -> str: ...

    def fetches(self) -> int: ...

    def index(self, moved: Moved, stop: threading.Event, room: int) -> LayerIndex: ...

    def body(self, moved: Moved, stop: threading.Event) -> Body: ...


class LayerContent:
    """A layer of a kit."""

    def __init__(self, layer: Layer, store: Store, *, max_entries: int) -> None:
        self.layer: Final = layer
        self._store = store
        self._max_entries = max_entries
        self._verified: Blob | None = None
        self._index: LayerIndex | None = None

    def __repr__(self) -> str:
        return f"<LayerSupply {self.layer!r}>"

    @property
    def kind(self) -> str:
        """The kind of its entry; that of its media type when it has none."""
        return self.layer.entry.kind if self.layer.entry is not None else self.layer.type.kind

    @property
    def path(self) -> str | None:
        """The path that it declares."""
        return self.layer.path

    @property
    def digest(self) -> str:
        """The digest of its blob."""
        return str(self.layer.digest)

    def fetches(self) -> int:
        """Bytes that have to come from its registry, as far as is known."""
        digest = self.layer.digest
        return (
            0
            if self._store.has_sealed(digest) or (self.layer.compressed and self._store.has_decoded(digest))
            else self.layer.size
        )

    def index(self, moved: Moved, stop: threading.Event, room: int) -> LayerIndex:
        """What the layer holds: of verified bytes where they are here, and of a compressed layer in any case where
        the store can keep it.

        ``room`` is how many bytes a compressed layer may decode to, beside its own limit. Raises IntegrityError,
        LayerError.
        """
        layer = self.layer
        if layer.compressed or not self.fetches():
            self._verified = self._verify(moved, stop, room)
        try:
            self._index = self._read_index(stop, room)
        except LayerError as e:
            if "--max-entries" not in str(e) and self._verified is None and self._verify(moved, stop, room) is None:
                Streamed(layer, None, moved, stop).finish()  # bytes that are damaged are told as that
            raise
        return self._index

    def _read_index(self, stop: threading.Event, room: int) -> LayerIndex:
        layer = self.layer
        if self._verified is None and layer.compressed and layer.type.format == "raw":
            self._decode(layer.content(), stop, room)
        if layer.type.format == "raw" or (self._verified is None and not layer.compressed):
            return layer.index()
        content = self._verified or _Limited(layer.content(), self._limit(room))
        try:
            return index_tar(content, max_entries=self._max_entries)
        except LayerError as e:
            raise LayerError(f"layer {self.digest}: {e}")

    def _limit(self, room: int) -> int:
        """Bytes that the layer may decode to."""
        return min(room, max(SMALL, GROWTH * self.layer.size))

    def _verify(self, moved: Moved, stop: threading.Event, room: int) -> Blob | None:
        """The content, in the store and verified; None when the store cannot keep it. Raises IntegrityError,
        Stopped.
        """
        layer = self.layer
        if layer.compressed and self._store.has_decoded(layer.digest):
            content = layer.content()
            if content.sealed:
                return content
        told = 0

        def count(size: int) -> None:
            nonlocal told
            told += size
            moved(size)

        wire = layer.wire()
        try:
            if not wire.sealed:
                filling.fill(wire, layer.size, count, stop)
                if stop.is_set():
                    raise Stopped
                wire.verify()
            if not layer.compressed:
                return wire
            content = layer.content()
            self._decode(content, stop, room)
            if not content.complete:
                raise StoreFull(f"{content}: no space left in the store")
            content.verify()
        except StoreFull:  # the target may have room all the same
            moved(-told)
            return None
        return content

    def _decode(self, content: Blob, stop: threading.Event, room: int) -> None:
        """Decode all of a layer. Raises LayerError for one that grows beyond measure."""
        limited = _Limited(content, self._limit(room))
        at = 0
        try:
            while data := limited.pread(at, 4 * PIECE):
                at += len(data)
                if stop.is_set():
                    raise Stopped
        except LayerError as e:
            content.drop()  # else what is no use to anybody would lie in the store
            if self.digest in str(e):
                raise
            raise LayerError(f"layer {self.digest}: {e}")

    def body(self, moved: Moved, stop: threading.Event) -> Body:
        """The content, verified where the store can keep it. Raises IntegrityError when it is not what the index was
        made of.
        """
        if self._verified is None:
            self._verified = self._verify(moved, stop, SIZE_MAX)
            if self._verified is not None and self._index is not None and not self._agrees(stop, self._index):
                self._store.forget_index(self.digest)
                raise IntegrityError(f"layer {self.digest}: its index was made of other bytes than these; try again")
        if self._verified is None:
            raw = self.layer.compressed and self.layer.type.format == "raw"
            return Streamed(self.layer, self._index if raw else None, moved, stop)
        if self.layer.type.format == "raw" and self._index is not None:
            check_size(self._index, self._verified.size or 0)
        return Verified(
            self._verified, None if self.layer.compressed else self._store.open_sealed(self.layer.digest), moved, stop
        )

    def _agrees(self, stop: threading.Event, index: LayerIndex) -> bool:
        """Whether verified bytes have the index that was made before they were."""
        return self.layer.type.format == "raw" or self._read_index(stop, SIZE_MAX).to_json() == index.to_json()


def check_size(index: LayerIndex, size: int) -> None:
    """Raises IntegrityError unless a file of one layer is as long as its annotation says."""
    for path in index.members:
        if size != index.total:
            raise IntegrityError(
                f"unpacked size of file {path} does not match metadata annotation: {size} bytes, not {index.total}"
            )


class _Limited:
    """Content that may not grow beyond ``limit`` bytes, as a Reader."""

    def __init__(self, content: Blob, limit: int) -> None:
        self._content = content
        self._limit = limit

    @property
    def size(self) -> int | None:
        """That of the content, once it is known."""
        return self._content.size

    def pread(self, offset: int, size: int) -> bytes:
        """Bytes of the content. Raises LayerError behind the limit."""
        if offset > self._limit:
            raise LayerError(
                f"{self._content} grows to more than {self._limit} bytes, which are more than it should, or more than are free"
            )
        return self._content.pread(offset, size)


class Verified:
    """Content whose digest is right: copied by the kernel where there is one file of it."""

    verified: Final = True

    def __init__(self, content: Blob, file: io.FileIO | None, moved: Moved, stop: threading.Event) -> None:
        self._content = content
        self._file = file
        self._moved = moved
        self._stop = stop

    def copy(self, at: int, size: int, fd: int, offset: int) -> None:
        """Copy ``size`` bytes from ``at`` into a file."""
        while size:
            if self._stop.is_set():
                raise Stopped
            done = 0
            if self._file is not None:
                done = copy_range(self._file.fileno(), at, size, fd, offset)
                if not done:
                    self._file.close()
                    self._file = None
            if not done:
                data = self._content.pread(at, min(size, PIECE))
                if not data:
                    raise IntegrityError(f"{self._content} ends before its files do")
                put(fd, data, offset)
                done = len(data)
            at, offset, size = at + done, offset + done, size - done
            self._moved(done)

    def finish(self) -> None:
        """Nothing is left to be found out."""

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()


class Streamed:
    """Content that the store cannot keep, once, from its beginning to its end, hashed as it passes. ``whole`` is the
    index of one file.
    """

    verified: Final = False

    def __init__(self, layer: Layer, whole: LayerIndex | None, moved: Moved, stop: threading.Event) -> None:
        self._layer = layer
        self._whole = whole
        self._moved = moved
        self._stop = stop
        self._hasher: Any = layer.digest.hasher()
        self._wire = self._hashed(layer.wire().stream())
        self._pieces: Iterator[bytes] = decode(self._wire, layer.type.compression) if layer.compressed else self._wire
        self._piece = memoryview(b"")
        self._at = 0  # of the piece's first byte

    def _hashed(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            if self._stop.is_set():
                raise Stopped
            self._hasher.update(piece)
            self._moved(len(piece))
            yield piece

    def copy(self, at: int, size: int, fd: int, offset: int) -> None:
        """Copy ``size`` bytes from ``at``, which must not lie before what was copied last."""
        while size:
            while self._at + len(self._piece) <= at:
                self._next()
            piece = self._piece[at - self._at :][:size]
            put(fd, piece, offset)
            at, offset, size = at + len(piece), offset + len(piece), size - len(piece)

    def _next(self) -> None:
        self._at += len(self._piece)
        try:
            piece = next(self._pieces, None)
        except LayerError:
            self.finish()  # bytes that are damaged are told as that
            raise
        if piece is None:
            raise IntegrityError(f"layer {self._layer.digest} ends before its files do")
        self._piece = memoryview(piece)

    def finish(self) -> None:
        """Take in the rest, undecoded. Raises IntegrityError when the digest, or the length of one file, is not
        right.
        """
        more = 0
        if self._whole is not None:
            with suppress(LayerError):
                more = len(next(self._pieces, b""))
        for _ in self._wire:
            pass
        found = self._hasher.hexdigest()
        if found != self._layer.digest.hex:
            raise IntegrityError(
                f"layer {self._layer.digest} does not have its digest: it is {self._layer.digest.algorithm}:{found}"
            )
        if self._whole is not None:
            check_size(self._whole, self._at + len(self._piece) + more)

    def close(self) -> None:
        """Nothing to let go."""


def free_bytes(fd: int) -> int:
    """Bytes that the file system of an open file has for whoever asks."""
    found = os.fstatvfs(fd)
    return found.f_bavail * found.f_frsize
