"""Where the bytes of an unpack come from: the layers of a kit.

A layer is fetched into the store and compared with its digest before the first of its files is written. A layer that
the store has verified before is read back first, since its bytes may have changed on the disk. Only a layer that the
store cannot keep is written while it is fetched: it is hashed on the way, and its files get their names when the digest
is right. The index of such a layer was read before, from the same source, by requests of its own.
Threading: a ContentSource belongs to one thread at a time; setting ``stop`` from another thread ends its work.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, Protocol

from kitfs.errors import Closed, IntegrityError, LayerError, LayerLimit, StoreFull
from kitfs.kit.layer import Layer
from kitfs.layers.codec import decode
from kitfs.layers.index import SIZE_MAX, LayerIndex
from kitfs.layers.tar import index_tar
from kitfs.openfile import PIECE
from kitfs.ops.unpack.progress import Stopped
from kitfs.ops.unpack.safe_directory import copy_range, write_all
from kitfs.store import fill as filling
from kitfs.store.blob import Blob
from kitfs.store.store import Store

CountBytes = Callable[[int], None]


class Content(Protocol):
    """The content of a layer, to which the extents of its index refer.

    ``verified`` is True if the digest is known to be right; otherwise it is known when ``finish`` has returned.
    """

    @property
    def verified(self) -> bool: ...

    def copy(self, at: int, size: int, fd: int, offset: int) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


class ContentSource(Protocol):
    """What an unpack needs of a layer, or of a file that is stored elsewhere.

    ``fetches`` returns how many bytes must be fetched before anything is written. ``index`` reads the index; ``room``
    is how many bytes there are for decoded content. ``open`` returns the content itself.
    """

    @property
    def kind(self) -> str: ...

    @property
    def path(self) -> str | None: ...

    @property
    def digest(self) -> str: ...

    def fetches(self) -> int: ...

    def index(self, count: CountBytes, stop: threading.Event, room: int) -> LayerIndex: ...

    def open(self, count: CountBytes, stop: threading.Event) -> Content: ...


class LayerContent:
    """The ContentSource of a layer of a kit."""

    def __init__(self, layer: Layer, store: Store, *, max_entries: int) -> None:
        self.layer: Final = layer
        self._store = store
        self._max_entries = max_entries
        self._verified: Blob | None = None
        self._index: LayerIndex | None = None

    def __repr__(self) -> str:
        return f"<LayerContent {self.layer!r}>"

    @property
    def kind(self) -> str:
        """The kind of its Kitfile entry; the kind of its media type if it has no entry."""
        return self.layer.entry.kind if self.layer.entry is not None else self.layer.type.kind

    @property
    def path(self) -> str | None:
        """The path that the layer declares."""
        return self.layer.path

    @property
    def digest(self) -> str:
        """The digest of its blob."""
        return str(self.layer.digest)

    def fetches(self) -> int:
        """Return how many bytes must be fetched from its registry: 0 if the store has the layer, else all of them."""
        digest = self.layer.digest
        is_stored = self._store.has_sealed(digest) or (self.layer.compressed and self._store.has_decoded(digest))
        return 0 if is_stored else self.layer.size

    def index(self, count: CountBytes, stop: threading.Event, room: int) -> LayerIndex:
        """Read the index, from verified bytes if the store has them. A compressed layer is brought into the store
        first, if the store can keep it.

        Raises IntegrityError, LayerError, and LayerLimit for a layer that decodes to more than ``room`` bytes.
        """
        layer = self.layer
        if layer.compressed or not self.fetches():
            self._verified = self._verify(count, stop, room)
        try:
            self._index = self._read_index(stop, room)
        except LayerLimit:
            raise
        except LayerError:
            if self._verified is None and self._verify(count, stop, room) is None:
                Streamed(layer, None, count, stop).finish()  # raises IntegrityError if damage is the reason
            raise
        return self._index

    def _read_index(self, stop: threading.Event, room: int) -> LayerIndex:
        layer = self.layer
        if self._verified is not None:
            return layer.proven_index()
        if layer.compressed and layer.type.format == "raw":
            self._decode(layer.content(), stop, room)
        if layer.type.format == "raw" or not layer.compressed:
            return layer.index()
        try:
            return index_tar(_ForwardReader(layer.decoded_once(), room, stop), max_entries=self._max_entries)
        except LayerError as e:
            raise e.prefixed(f"layer {self.digest}")

    def _verify(self, count: CountBytes, stop: threading.Event, room: int) -> Blob | None:
        """Bring the content into the store and verify it. Returns None if the store cannot keep it.

        Raises IntegrityError, Stopped.
        """
        layer = self.layer
        if layer.compressed and self._store.has_decoded(layer.digest):
            content = layer.content()
            if self._is_right(content, stop) and content.sealed:
                return content
        counted = 0

        def add(size: int) -> None:
            nonlocal counted
            counted += size
            count(size)

        wire = layer.wire()
        try:
            if not (self._is_right(wire, stop) and wire.sealed):
                filling.fill(wire, layer.size, add, stop)
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
        except StoreFull:  # the directory may have room although the store has none
            count(-counted)
            return None
        return content

    @staticmethod
    def _is_right(content: Blob, stop: threading.Event) -> bool:
        """Read a blob that the store has verified before back from the disk. Returns False when its bytes have changed,
        and can be fetched again. Raises IntegrityError when they cannot, Stopped.
        """
        try:
            return content.check(stop.is_set)
        except Closed:
            if stop.is_set():
                raise Stopped
            raise

    def _decode(self, content: Blob, stop: threading.Event, room: int) -> None:
        """Decode a whole layer. Raises LayerLimit if it grows beyond its limit or ``room``, StoreFull if the store has
        no room for it.
        """
        at = 0
        try:
            while data := content.pread(at, 4 * PIECE):
                at += len(data)
                _check_room(at, room)
                if stop.is_set():
                    raise Stopped
        except (LayerError, StoreFull) as e:
            content.drop()  # otherwise bytes that nothing can use would take room in the store
            raise e.prefixed(f"layer {self.digest}")

    def open(self, count: CountBytes, stop: threading.Event) -> Content:
        """Open the content, verified if the store can keep it.

        Raises IntegrityError if the bytes are not those that the index was made of.
        """
        if self._verified is None:
            self._verified = self._verify(count, stop, SIZE_MAX)
            if self._verified is not None and self._index is not None and self.layer.proven_index() != self._index:
                raise IntegrityError(f"layer {self.digest}: its index was made of other bytes; try again")
        if self._verified is None:
            raw = self.layer.compressed and self.layer.type.format == "raw"
            return Streamed(self.layer, self._index if raw else None, count, stop)
        if self.layer.type.format == "raw" and self._index is not None:
            check_size(self._index, self._verified.size or 0)
        file = None if self.layer.compressed else self._store.open_sealed(self.layer.digest)
        return Verified(self._verified, file, count, stop)


def check_size(index: LayerIndex, size: int) -> None:
    """Raises IntegrityError, in kit's words, unless the only file of a layer is as long as its annotation says."""
    for path in index.members:
        if size != index.total:
            raise IntegrityError(
                f"unpacked size of file {path} does not match metadata annotation: {size} bytes, not {index.total}"
            )


def _check_room(size: int, room: int) -> None:
    if size > room:
        raise LayerLimit(f"it decompresses to more than {room} bytes, which is more than is free where it is unpacked")


class _ForwardReader:
    """Content that the store cannot keep, for a reader that goes forwards: earlier bytes are forgotten, but for the
    last ``KEPT`` ones.
    """

    KEPT: Final = 4096
    size: Final = None

    def __init__(self, pieces: Iterator[memoryview], room: int, stop: threading.Event) -> None:
        self._pieces = pieces
        self._room = room
        self._stop = stop
        self._start = 0  # offset of the bytes that are held
        self._held = bytearray()

    def pread(self, offset: int, size: int) -> bytes:
        """Read bytes that begin at most ``KEPT`` bytes before the end of those that were read before."""
        while self._start + len(self._held) < offset + size:
            if self._stop.is_set():
                raise Stopped
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._held += piece
            _check_room(self._start + len(self._held), self._room)
            surplus = min(len(self._held) - self.KEPT, offset - self._start)
            if surplus > 0:
                del self._held[:surplus]
                self._start += surplus
        at = offset - self._start
        return bytes(self._held[at : at + size]) if at >= 0 else b""


class Verified:
    """Content whose digest is right. ``file`` is the file that holds all of it, from which the kernel can copy; None
    if there is no such file.
    """

    verified: Final = True

    def __init__(self, content: Blob, file: io.FileIO | None, count: CountBytes, stop: threading.Event) -> None:
        self._content = content
        self._file = file
        self._count = count
        self._stop = stop

    def copy(self, at: int, size: int, fd: int, offset: int) -> None:
        """Copy ``size`` bytes of the content from ``at`` to ``offset`` of the file ``fd``."""
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
                write_all(fd, data, offset)
                done = len(data)
            at, offset, size = at + done, offset + done, size - done
            self._count(done)

    def finish(self) -> None:
        """Do nothing: the content was verified before."""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class Streamed:
    """Content that the store cannot keep: read once, from beginning to end, and hashed on the way.

    ``index`` is given if the layer is one file, whose size is checked at the end.
    """

    verified: Final = False

    def __init__(self, layer: Layer, index: LayerIndex | None, count: CountBytes, stop: threading.Event) -> None:
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

    def copy(self, at: int, size: int, fd: int, offset: int) -> None:
        """Copy ``size`` bytes of the content from ``at``, which must not lie before the end of the last copy."""
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

    def finish(self) -> None:
        """Read the rest without decoding it. Raises IntegrityError if the digest, or the size of the only file, is
        wrong.
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

    def close(self) -> None:
        """Do nothing: no file is open."""
