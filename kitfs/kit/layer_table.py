"""Read the chunk table of a layer (``layers.chunk_table``), whose parts are read when they are first needed.

The manifest of the kit names the table and the digest of its head (``NamedLayerTable``), or this host has made the
table after it had verified the layer (``HostTable``). The head has the digests of the other parts, so every part is
verified by itself. Threading: any thread may call every method, and no lock is held during I/O.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from functools import partial
from typing import Final, Literal

from kitfs.content import Origin, Source
from kitfs.errors import IntegrityError, LayerError, LayerLimit, NotFound
from kitfs.layers.chunk_table import DIGEST, ENTRIES, PAGE, POINTS, WINDOWS, Section, TableHead
from kitfs.layers.entries import decode
from kitfs.layers.index import SIZE_MAX, LayerIndex
from kitfs.layers.libz import INFLATE
from kitfs.layers.points import RestartPoints
from kitfs.oci.chunk_tables import NamedTable, table_of
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest
from kitfs.store import kept_tables
from kitfs.store.blob import Blob
from kitfs.store.kept_tables import TableFile
from kitfs.store.store import Store

MAX_PAGES: Final = 64  # pages in memory: 2 MiB, for 2 GiB of the layer


class LayerTable(ABC):
    """The chunk table of a layer. ``head`` and ``head_size``: the digest and the size (in bytes) of the table's head.

    ``proof`` says what vouches for the head: the kit's manifest, or this host, which has verified the layer.
    """

    proof: Literal["manifest", "host"]

    def __init__(self, layer: Descriptor, store: Store, head: Digest, head_size: int) -> None:
        self._layer = layer
        self._store = store
        self._digest = head
        self._head_size = head_size
        self._lock = threading.Lock()  # guards changes of ``_pages``, and ``_blob`` of a table that the manifest names
        self._head: TableHead | None = None
        self.is_missing = False  # whether ``load`` has found that the table cannot be used
        self._pages: dict[int, bytes] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with head {self.key[:19]} of layer {self._layer.digest[:19]}>"

    @property
    def key(self) -> str:
        """Return the digest of the head, which vouches for every digest in the table."""
        return str(self._digest)

    def load(self) -> bool:
        """Fetch the head. Returns False if the table does not exist, or if it is not a table of this layer.

        Raises IntegrityError for wrong bytes, and the errors of the origin.
        """
        if self._head is not None or self.is_missing:
            return not self.is_missing
        try:
            self._open()
            head = TableHead(self._part(Section(0, self._head_size, bytes.fromhex(self._digest.hex))))
            if (head.size, head.layer) != (self._layer.size, self._layer.digest.hex):
                raise LayerError(f"the chunk table belongs to the layer {head.layer}")
        except (NotFound, LayerError) as e:
            self.is_missing = True
            self._store.log.warning(
                "layer %s is verified as a whole, not chunk by chunk: its chunk table cannot be used: %s",
                self._layer.digest, e,
            )  # fmt: skip
            return False
        self._head = head
        return True

    def digests(self, first: int, count: int, /) -> bytes:
        """Return the digests of ``count`` chunks. The table must be loaded. Raises as ``load`` does."""
        found = bytearray()
        while count > 0:
            number, within = divmod(first, PAGE)
            part = self._page(number)[within * DIGEST : (within + count) * DIGEST]
            if not part:
                raise IntegrityError(f"the chunk table of layer {self._layer.digest} has too few digests")
            found += part
            first, count = first + len(part) // DIGEST, count - len(part) // DIGEST
        return bytes(found)

    def in_memory(self, first: int, count: int) -> bool:
        """Return whether the digests of ``count`` chunks are in memory, so that ``digests`` reads no file."""
        return all(number in self._pages for number in range(first // PAGE, (first + count - 1) // PAGE + 1))

    def _page(self, number: int) -> bytes:
        page = self._pages.get(number)
        if page is None:
            assert self._head is not None
            page = self._part(self._head.page(number))
            with self._lock:
                if len(self._pages) >= MAX_PAGES:
                    self._pages.pop(next(iter(self._pages)))
                self._pages[number] = page
        return page

    def index(self, max_entries: int, is_compressed: bool) -> LayerIndex | None:
        """Return the index of the layer's entries in the table; None if the table has no usable entries.

        Raises LayerLimit for more than ``max_entries`` entries, and as ``load`` does.
        """
        size = SIZE_MAX if is_compressed else self._layer.size
        if not self.load() or self._head is None or ENTRIES not in self._head.sections:
            return None
        try:
            return decode(self._part(self._head.sections[ENTRIES]), size=size, max_entries=max_entries)
        except LayerLimit:
            raise
        except LayerError as e:
            self._store.log.warning("layer %s is indexed from its own bytes: %s", self._layer.digest, e)
            return None

    def points(self) -> RestartPoints | None:
        """Return the restart points of a gzip layer; None if the table has none that can be used on this host.

        Their windows are read when they are needed, and are not verified. Raises as ``load`` does.
        """
        if not INFLATE or not self.load() or self._head is None:
            return None
        place, windows = self._head.sections.get(POINTS), self._head.sections.get(WINDOWS)
        if place is None or windows is None:
            return None
        try:
            points = RestartPoints(self._part(place), partial(self._window, windows))
            if points.compression != "gzip" or not points.sha256:
                raise ValueError("the restart points in its chunk table do not verify the bytes of a gzip layer")
            return points
        except ValueError as e:
            self._store.log.warning("layer %s is decoded from its beginning: %s", self._layer.digest, e)
            return None

    @abstractmethod
    def _window(self, place: Section, offset: int, length: int) -> bytes:
        """Read a part of a section. The part is not verified."""

    @abstractmethod
    def _part(self, place: Section) -> bytes:
        """Read a part of the table and verify it. Raises as ``load`` does."""

    def _open(self) -> None:  # noqa: B027 - only a table of this host needs it
        """Prepare the table for its first use. Raises LayerError if it cannot be used."""

    def close(self) -> None:  # noqa: B027 - only a table that the manifest names needs it
        """Close the table."""


class NamedLayerTable(LayerTable):
    """The chunk table that the kit's manifest names. It is read from the store, or from ``origin``."""

    proof = "manifest"

    def __init__(self, named: NamedTable, layer: Descriptor, origin: Origin, store: Store) -> None:
        super().__init__(layer, store, named.head, named.head_size)
        self._named = named
        self._origin = origin
        self._blob: Blob | None = None
        self._source: Source | None = None

    def _window(self, place: Section, offset: int, length: int) -> bytes:
        return self._opened().pread(place.offset + offset, length, alone=True)

    def _part(self, place: Section) -> bytes:
        """Read a part of the table and verify it. Wrong bytes are fetched again from another endpoint, if possible."""
        while True:
            blob = self._opened()
            generation = blob.generation
            try:
                data = blob.pread(place.offset, place.length)
            except IntegrityError as e:
                raise IntegrityError(f"the chunk table of layer {self._layer.digest}: {e}")
            try:
                return place.check(data)
            except IntegrityError as e:
                if blob.generation != generation:
                    continue  # another thread has dropped the wrong bytes
                error = IntegrityError(f"the chunk table {self._named.blob.digest}: {e}")
                has_other = self._source is not None and self._source.distrust()
                blob.drop_rotten(error, generation)
                if not has_other:
                    raise error

    def _opened(self) -> Blob:
        """Return the blob of the table. A blob with wrong bytes is opened again. Raises NotFound."""
        table = self._named.blob
        with self._lock:
            if self._blob is None or self._blob.failure is not None:
                source = self._source = self._origin.blob(table)
                if source is None and not self._store.has_sealed(table.digest):
                    raise NotFound(f"the chunk table {table.digest} is not in the store")
                if self._blob is not None:
                    self._blob.close()
                self._blob = self._store.blob(table.digest, size=table.size, source=source)
            return self._blob

    def close(self) -> None:
        """Close the blob of the table."""
        with self._lock:
            if self._blob is not None:
                self._blob.close()


class HostTable(LayerTable):
    """The chunk table ``file``, which this host has made after it had verified the layer. The store keeps the table."""

    proof = "host"

    def __init__(self, file: TableFile, layer: Descriptor, store: Store) -> None:
        super().__init__(layer, store, Digest.of(file.read(0, file.head_size)), file.head_size)
        self._file = file

    def _open(self) -> None:
        if not self._file.is_whole():
            kept_tables.discard(self._store.root, self._layer.digest)
            raise LayerError("its file in the store has changed on the disk (make it again with kitfs chunk-table)")

    def _part(self, place: Section) -> bytes:
        return place.check(self._file.read(place.offset, place.length))

    def _window(self, place: Section, offset: int, length: int) -> bytes:
        return self._file.read(place.offset + offset, length)


def table_for(layer: Descriptor, origin: Origin, store: Store) -> LayerTable | None:
    """Return the chunk table of a layer: the table that this host has made, or else the table that the manifest names.

    A registry may lack the table that the manifest names. Returns None if there is neither.
    """
    file = kept_tables.load(store.root, layer.digest)
    if file is not None:
        return HostTable(file, layer, store)
    named = table_of(layer.annotations)
    return None if named is None else NamedLayerTable(named, layer, origin, store)
