"""Read the bytes for an unpack from the layers of a kit.

A layer that is verified in the store is read back and hashed first, because its bytes may have changed on the disk.
Then its files are copied out of the store. A large uncompressed layer that the store does not have is written while it
is fetched (``direct``). Any other layer is fetched into the store and decoded there before the first of its files is
written. If the store cannot keep a compressed layer, the layer is decoded twice: once for its index, once for its
files. Threading: a ContentSource belongs to one thread at a time. Setting ``stop`` from another thread ends its work.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from typing import Final, Protocol

from kitfs.content import Source
from kitfs.errors import Closed, IntegrityError, LayerError, LayerLimit, StoreFull
from kitfs.kit.layer import Layer
from kitfs.layers.index import SIZE_MAX, LayerIndex
from kitfs.layers.tar import index_tar
from kitfs.openfile import PIECE
from kitfs.ops.unpack.direct import Direct, Headers
from kitfs.ops.unpack.progress import Stopped
from kitfs.ops.unpack.safe_directory import copy_range, write_all
from kitfs.ops.unpack.streamed import ForwardReader, Streamed, check_room, check_size
from kitfs.store import fill as filling
from kitfs.store.blob import Blob
from kitfs.store.paths import origin_key, unproven_path
from kitfs.store.store import Store

DIRECT: Final = 1 << 20  # bytes: a smaller layer is cached first, and not written while it is fetched
MAX_DIRECT: Final = 100_000  # members of a layer that is written while it is fetched
MAX_HEADERS: Final = 16 << 20  # bytes outside the files of such a layer, which are kept in memory

CountBytes = Callable[[int], None]


class Content(Protocol):
    """The content of a layer, to which the extents of its index refer.

    ``verified``: whether the digest was already verified. If it is False, ``finish`` verifies the digest. If ``finish``
    returns False, the files must be written again from another content. ``resumable``: whether ``take`` can use the
    bytes of files that an earlier run has begun.
    """

    @property
    def verified(self) -> bool: ...

    @property
    def resumable(self) -> bool: ...

    def take(self, fd: int, offset: int, at: int, size: int) -> int: ...

    def copy(self, at: int, size: int, fd: int, offset: int) -> None: ...

    def finish(self) -> bool: ...

    def close(self) -> None: ...


class ContentSource(Protocol):
    """A layer to unpack, or a file that is stored elsewhere.

    ``fetches`` returns how many bytes must be fetched before anything is written. ``index`` reads the index; ``room``
    is the largest size of the decoded content in bytes. ``open`` returns the content; ``kept`` is how many of its files
    an earlier run has written or begun.
    """

    @property
    def kind(self) -> str: ...

    @property
    def path(self) -> str | None: ...

    @property
    def digest(self) -> str: ...

    def fetches(self) -> int: ...

    def index(self, count: CountBytes, stop: threading.Event, room: int) -> LayerIndex: ...

    def open(self, count: CountBytes, stop: threading.Event, *, kept: int = 0) -> Content: ...


class LayerContent:
    """The ContentSource of a layer of a kit.

    If more than ``max_headers`` bytes of an archive are outside its files, the layer goes through the store.
    """

    def __init__(self, layer: Layer, store: Store, *, max_entries: int, max_headers: int = MAX_HEADERS) -> None:
        self.layer: Final = layer
        self._store = store
        self._max_entries = max_entries
        self._max_headers = max_headers
        self._verified: Blob | None = None
        self._index: LayerIndex | None = None
        self._source: Source | None = None  # from which the layer is written without the store
        self._direct: Direct | None = None

    def __repr__(self) -> str:
        return f"<LayerContent {self.layer!r}>"

    @property
    def kind(self) -> str:
        """The kind of its Kitfile entry, or the kind of its media type if it has no entry."""
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
        """Return how many bytes must be fetched: 0 if the store has the layer, otherwise the size of the layer."""
        digest = self.layer.digest
        is_stored = self._store.has_sealed(digest) or (self.layer.compressed and self._store.has_decoded(digest))
        return 0 if is_stored else self.layer.size

    def index(self, count: CountBytes, stop: threading.Event, room: int) -> LayerIndex:
        """Read the index of the layer. If the store has verified bytes of the layer, the index is read from them.

        A compressed layer is first fetched into the store, if it fits. Raises IntegrityError, LayerError, and
        LayerLimit for a layer that decompresses to more than ``room`` bytes.
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
            return index_tar(ForwardReader(layer.decoded_once(), room, stop), max_entries=self._max_entries)
        except LayerError as e:
            raise e.prefixed(f"layer {self.digest}")

    def _verify(self, count: CountBytes, stop: threading.Event, room: int) -> Blob | None:
        """Fetch the content into the store, and verify it. Return None if it does not fit into the store.

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
        except StoreFull:  # the directory may be on another disk, which has space
            count(-counted)
            return None
        return content

    @staticmethod
    def _is_right(content: Blob, stop: threading.Event) -> bool:
        """Read a blob back from the disk, and compare its digest.

        Returns False if its bytes have changed and can be fetched again. Raises Stopped, and IntegrityError if changed
        bytes cannot be fetched again.
        """
        try:
            return content.check(stop.is_set)
        except Closed:
            if stop.is_set():
                raise Stopped
            raise

    def _decode(self, content: Blob, stop: threading.Event, room: int) -> None:
        """Decode a whole layer into the store.

        Raises LayerLimit if the layer grows beyond its limit or ``room``, and StoreFull if it does not fit into the
        store.
        """
        at = 0
        try:
            while data := content.pread(at, 4 * PIECE):
                at += len(data)
                check_room(at, room)
                if stop.is_set():
                    raise Stopped
        except (LayerError, StoreFull) as e:
            content.drop()  # otherwise the unusable bytes would take space in the store
            raise e.prefixed(f"layer {self.digest}")

    def open(self, count: CountBytes, stop: threading.Event, *, kept: int = 0) -> Content:
        """Open the content. Raises IntegrityError, Stopped, or the errors of the registry."""
        if self._verified is None and (source := self._passing_source()) is not None:
            self._direct = self._open_direct(source, count, stop, kept)
            if self._direct is not None:
                return self._direct
        if self._verified is None:
            self._verified = self._verify(count, stop, SIZE_MAX)
            if self._verified is not None and self._index is not None and self.layer.proven_index() != self._index:
                raise IntegrityError(f"layer {self.digest}: its index was made from different bytes (try again)")
        if self._verified is None:
            raw = self.layer.compressed and self.layer.type.format == "raw"
            return Streamed(self.layer, self._index if raw else None, count, stop)
        if self.layer.type.format == "raw" and self._index is not None:
            check_size(self._index, self._verified.size or 0)
        file = None if self.layer.compressed else self._store.open_sealed(self.layer.digest)
        return Verified(self._verified, file, count, stop)

    def _passing_source(self) -> Source | None:
        """Return the source from which the layer is written directly, or None if the layer goes through the store."""
        layer = self.layer
        if layer.compressed or layer.size < DIRECT or (self._direct is not None and self._direct.misindexed):
            return None
        self._source = self._source or layer.source()
        return self._source

    def _open_direct(self, source: Source, count: CountBytes, stop: threading.Event, kept: int) -> Direct | None:
        """Return the content of ``source``, or None if the layer must go through the store.

        A layer must go through the store if the store has most of it, or if it has so many small files that their
        headers would take much memory.
        """
        layer, headers, index = self.layer, None, self._index
        if index is None or not self.fetches():
            return None
        if layer.type.format == "raw":
            own = unproven_path(self._store.root, layer.digest, "blobs", origin_key(source.sender, layer.size))
            begun = os.path.exists(own)
        else:
            begun = True
            if index.counts.members > MAX_DIRECT:
                return None
            headers = Headers(index, layer.size)
            if headers.outside > self._max_headers:
                return None
        if begun and 2 * layer.wire().fetched > layer.size:
            return None

        def wrong(error: IntegrityError) -> None:
            self._store.counters.add("integrity_failures")
            self._store.log.error("%s", error)

        return Direct(
            layer, source, index, headers, kept=kept, max_entries=self._max_entries, count=count, stop=stop, wrong=wrong
        )


class Verified:
    """Content whose digest has been verified.

    ``file``: a file with the whole content, from which the kernel can copy, or None if no such file exists.
    """

    verified: Final = True
    resumable: Final = False

    def __init__(self, content: Blob, file: io.FileIO | None, count: CountBytes, stop: threading.Event) -> None:
        self._content = content
        self._file = file
        self._count = count
        self._stop = stop

    def copy(self, at: int, size: int, fd: int, offset: int) -> None:
        """Copy ``size`` bytes from position ``at`` of the content to position ``offset`` of the file ``fd``."""
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

    def take(self, fd: int, offset: int, at: int, size: int) -> int:
        """Use no bytes of an earlier run, and return 0: ``copy`` copies all bytes."""
        return 0

    def finish(self) -> bool:
        """Return True, because the content has already been verified."""
        return True

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
