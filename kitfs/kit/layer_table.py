"""Read the chunk table of a layer (``layers.chunk_table``), whose parts are fetched when they are first needed.

The manifest of the kit names the table and the digest of its head, and the head has the digests of the other parts. So
every part is verified by itself. Threading: any thread may call every method, and no lock is held during I/O.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Final

from kitfs.content import Origin, Source
from kitfs.errors import IntegrityError, LayerError, LayerLimit, NotFound
from kitfs.layers.chunk_table import DIGEST, ENTRIES, PAGE, POINTS, WINDOWS, Section, TableHead
from kitfs.layers.entries import decode
from kitfs.layers.index import SIZE_MAX, LayerIndex
from kitfs.layers.libz import INFLATE
from kitfs.layers.points import RestartPoints
from kitfs.oci.chunk_tables import NamedTable, table_of
from kitfs.oci.manifest import Descriptor
from kitfs.store.blob import Blob
from kitfs.store.store import Store

MAX_PAGES: Final = 64  # pages in memory: 2 MiB, for 2 GiB of the layer


class LayerTable:
    """The chunk table ``named`` of a layer. It is read from the store, or from ``origin``."""

    def __init__(self, named: NamedTable, layer: Descriptor, origin: Origin, store: Store) -> None:
        self._named = named
        self._layer = layer
        self._origin = origin
        self._store = store
        self._lock = threading.Lock()  # guards ``_blob`` and changes of ``_pages``
        self._blob: Blob | None = None
        self._source: Source | None = None
        self._head: TableHead | None = None
        self._is_missing = False
        self._pages: dict[int, bytes] = {}

    def __repr__(self) -> str:
        return f"<LayerTable {self._named.blob.digest[:19]} of layer {self._layer.digest[:19]}>"

    @property
    def key(self) -> str:
        """Return the digest of the head, which vouches for every digest in the table."""
        return str(self._named.head)

    def load(self) -> bool:
        """Fetch the head. Returns False if the table does not exist, or if it is not a table of this layer.

        Raises IntegrityError for wrong bytes, and the errors of the origin.
        """
        if self._head is not None or self._is_missing:
            return not self._is_missing
        size = self._named.head_size
        try:
            head = TableHead(self._part(Section(0, size, bytes.fromhex(self._named.head.hex))))
            if (head.size, head.layer) != (self._layer.size, self._layer.digest.hex):
                raise LayerError(f"the chunk table belongs to the layer {head.layer}")
        except (NotFound, LayerError) as e:
            self._is_missing = True
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
            return RestartPoints(self._part(place), partial(self._window, windows))
        except ValueError as e:
            self._store.log.warning("layer %s is decoded from its beginning: %s", self._layer.digest, e)
            return None

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


def table_for(layer: Descriptor, origin: Origin, store: Store) -> LayerTable | None:
    """Return the chunk table that the manifest names for a layer; None if it names none."""
    named = table_of(layer.annotations)
    return None if named is None else LayerTable(named, layer, origin, store)
