"""One layer of a kit: its blob, its index and its bytes."""

from __future__ import annotations

import io
import threading
from contextlib import ExitStack
from typing import Any, Final

from kitfs.content import Origin, Source
from kitfs.errors import IntegrityError, LayerError, LayerLimit, StoreError, WouldBlock
from kitfs.layers.access import Closed, closed_to_others
from kitfs.layers.codec import DecodedSource, decode
from kitfs.layers.index import LayerIndex, Member, raw_index
from kitfs.layers.names import Skipped, SkipReason
from kitfs.layers.read import read_member
from kitfs.layers.tar import first_path, index_tar
from kitfs.modelkit.layers import FileMetadata, LayerEntry
from kitfs.oci.names import Digest, LayoutReference, Reference
from kitfs.oci.paths import paths_overlap
from kitfs.store.blob import Blob
from kitfs.store.store import Store

TAIL: Final = 1 << 20  # bytes that may follow a tar's last entry: GNU tar pads to records of up to a few hundred KiB
PEEK: Final = 16 << 10  # bytes of a compressed layer that are mostly enough to decode its first tar entry
BLOCK: Final = (
    128 << 10
) + 64  # bytes that always are: a zstd block, which is decoded whole, and the headers before it (RFC 8878 §3.1.1)


class Layer:
    """One layer of a kit, opened when first asked.

    ``path`` is where the Kitfile says it goes: "" for the whole context, None when nothing says. Errors: KitfsError
    of whatever could not be had; WouldBlock with ``wait=False`` when the answer needs the network or a decoder.
    """

    def __init__(
        self,
        entry: LayerEntry,
        origin: Origin,
        store: Store,
        *,
        max_entries: int,
        kit: Reference | LayoutReference | None = None,
    ) -> None:
        self.kit: Final = kit  # whose layer it is: the kit's own, or that of a parent
        self.descriptor: Final = entry.descriptor
        self.type: Final = entry.type
        self.entry: Final = entry.entry
        self.path: str | None = entry.path
        self._metadata = FileMetadata.of(entry.descriptor)
        self._origin = origin
        self._store = store
        self._max_entries = max_entries
        self._lock = threading.Lock()  # guards what follows: taken by the first asker, never on a warm read
        self._wire: Blob | None = None
        self._decoded: Blob | None = None
        self._index: LayerIndex | None = None
        self._agrees: bool | None = None
        self._misfit: IntegrityError | None = None  # why a failed layer cannot heal in this mount

    def __repr__(self) -> str:
        return f"<Layer {self.digest[:19]} {self.path!r} {self.state()}>"

    @property
    def digest(self) -> Digest:
        """Digest of the layer's blob, as the manifest has it."""
        return self.descriptor.digest

    @property
    def media_type(self) -> str:
        """Media type of the layer, as the manifest has it."""
        return self.descriptor.media_type

    @property
    def size(self) -> int:
        """Bytes of the blob, as the manifest has it."""
        return self.descriptor.size

    @property
    def compressed(self) -> bool:
        """Whether the blob is a gzip or zstd stream."""
        return self.type.compression != "none"

    def wire(self) -> Blob:
        """The blob as the registry has it."""
        with self._lock:
            return self._open_wire()

    def source(self) -> Source | None:
        """The blob where the kit is, past the store; None of a kit of the store."""
        return self._origin.blob(self.descriptor)

    def content(self) -> Blob:
        """The blob that members' offsets speak of: decoded, when the layer is compressed."""
        found = self._decoded if self.compressed else self._wire
        if found is not None:
            return found
        with self._lock:
            wire = self._open_wire()
            if not self.compressed:
                return wire
            if self._decoded is None:
                source = DecodedSource(wire.stream, self.type.compression)
                self._decoded = self._store.blob(self.digest, size=None, source=source, of=wire)
            return self._decoded

    def _open_wire(self) -> Blob:
        if self._wire is None:
            self._wire = self._store.blob(
                self.digest, size=self.descriptor.size, source=self._origin.blob(self.descriptor)
            )
        return self._wire

    def index(self, *, wait: bool = True) -> LayerIndex:
        """What the layer holds. Built once per host: from the catalog when some mount has built it before."""
        if self._index is not None:
            return self._index
        if self.type.format == "raw" and (
            not self.compressed or (self._metadata is not None and self._metadata.size is not None)
        ):
            self._index = self._raw_index(None)
            return self._index
        if not wait:
            raise WouldBlock
        self.check()
        content = self.content()
        with self._lock:
            if self._index is None:
                self._index = self._build_index(content)
            return self._index

    def _build_index(self, content: Blob) -> LayerIndex:
        if self.type.format == "raw":
            content.fill()
            return self._raw_index(content.size)
        known = self._store.catalog.get(self._index_key)
        if known is not None:
            try:
                index = LayerIndex.from_json(known)
            except (ValueError, LayerError):
                pass  # a hint that can be rebuilt
            else:
                if len(index.members) + len(index.skipped) > self._max_entries:  # built by a mount that takes more
                    limit = f"more than {self._max_entries} entries; raise the limit with --max-entries"
                    raise LayerLimit(f"layer {self.digest}: {limit}")
                return index
        try:
            index = index_tar(content, max_entries=self._max_entries)
        except LayerError as e:
            raise e.prefixed(f"layer {self.digest}")
        if self.compressed:
            end = max((e.blob_offset + e.length for m in index.members.values() for e in m.extents), default=0)
            content.pread(end, TAIL)  # what follows the last entry, so that the decoder comes to its end
        self._keep_index(index)
        return index

    def _raw_index(self, decoded_size: int | None) -> LayerIndex:
        metadata = self._metadata
        if self.path is None:
            return LayerIndex({}, [Skipped("", SkipReason.UNNAMED_FILE)])
        size = self.descriptor.size
        if self.compressed:
            size = (
                decoded_size
                if decoded_size is not None
                else (metadata.size if metadata is not None and metadata.size is not None else 0)
            )
        mode = metadata.mode if metadata is not None and metadata.mode is not None else 0o644
        return raw_index(self.path, size, mode)

    def _keep_index(self, index: LayerIndex) -> None:
        self._store.catalog.set(self._index_key, index.to_json())
        self._store.catalog.set(self._closed_key, list(closed_to_others(index)))

    def closed(self, *, at_most: int = 20_000) -> Closed | None:
        """What other users may not use, by its mode; None where that needs the registry, or a look at more than
        ``at_most`` entries.
        """
        if self._index is None and self.type.format != "raw":
            known = Closed.of_json(self._store.catalog.get(self._closed_key))
            if known is not None:
                return known
            if not self._is_here or self._store.catalog.get(self._index_key) is not None:
                return None
            try:
                index = index_tar(self.content(), max_entries=min(at_most, self._max_entries))
            except (LayerError, StoreError):
                return None
            self._keep_index(index)
            self._index = index
        elif self._index is None and self.compressed and (self._metadata is None or self._metadata.size is None):
            return None
        return closed_to_others(self.index())

    @property
    def _is_here(self) -> bool:
        return self._store.has_decoded(self.digest) if self.compressed else self._store.has_sealed(self.digest)

    @property
    def listed(self) -> bool:
        """Whether its names can be had without the layer's registry."""
        if self._index is not None or self.type.format == "raw":
            return True
        return self._is_here or self._store.catalog.get(self._index_key) is not None

    @property
    def _index_key(self) -> tuple[str, str]:
        return "index", self.digest

    @property
    def _closed_key(self) -> tuple[str, str]:
        return "closed", self.digest

    def first_entry_agrees(self, *, wait: bool = True) -> bool:
        """Whether names outside ``path`` need not be looked for here: the index is known, or its first entry agrees
        with ``path``.

        kit packs nothing outside the declared path, so a layer whose first entry agrees is taken at its word and not
        read whole for a name that it should not have.
        """
        if self._index is not None or self.type.format == "raw":
            return True
        if self._agrees is None:
            if not wait:
                raise WouldBlock
            self._agrees = self._peek()
        return self._agrees

    def _peek(self) -> bool:
        if not self.path:
            return False
        reader: Any = self.wire()
        if self.compressed:
            heads = (_decode_head(reader.pread(0, size), self.type.compression) for size in (PEEK, BLOCK))
            head = next((head for head in heads if head), b"")
            if not head:
                return False  # damaged, or empty: the index tells
            reader = _Head(head)
        try:
            first = first_path(reader)
        except LayerError:
            return False
        return first is None or paths_overlap(first, self.path)

    def pread(self, member: Member, offset: int, size: int, *, wait: bool = True) -> bytes:
        """Bytes of a member, short at its end; holes are zeros."""
        if not wait and self._decoded is None and self._wire is None:
            raise WouldBlock
        data = read_member(self.content(), member, offset, size, wait=wait)
        if len(data) < min(size, max(0, member.size - offset)):
            raise IntegrityError(f"layer {self.digest} ends before its file {member.path!r} does")
        if (
            self.compressed
            and self.type.format == "raw"
            and offset + len(data) == member.size
            and self.content().pread(member.size, 1, wait=wait)
        ):
            raise IntegrityError(
                f"layer {self.digest} is longer than the {member.size} bytes that its metadata annotation says"
            )
        return data

    @property
    def failure(self) -> IntegrityError | None:
        """Why the layer's bytes are known to be wrong; None while nothing is known against them."""
        for blob in (self._wire, self._decoded):
            if blob is not None and blob.failure is not None:
                return blob.failure
        return None

    def check(self, *, wait: bool = True) -> None:
        """Raise IntegrityError while the layer's bytes are known to be wrong.

        The layer heals when any process has fetched its blob into the store and verified it: the blob is reopened here.
        Raises WouldBlock with ``wait=False`` when the layer seems to have healed.
        """
        failure = self.failure
        if failure is None:
            return
        proven = self._store.has_sealed(self.digest) or (self.compressed and self._store.has_decoded(self.digest))
        if self._misfit is not None or not proven:
            raise self._misfit or failure
        if not wait:
            raise WouldBlock
        with self._lock:
            if self.failure is failure:
                self._reopen(failure)

    def _reopen(self, failure: IntegrityError) -> None:
        """Open the proven blob in place of the wrong one. Call with the lock.

        A mounted tree shows the files where the wrong bytes had them, so the index of the proven bytes must be the same.
        """
        decoded, old = None, (self._wire, self._decoded)
        with ExitStack() as undo:
            wire = self._store.blob(self.digest, size=self.size, source=self._origin.blob(self.descriptor))
            undo.callback(wire.close)
            if self.compressed:
                if self._decoded is not None and not self._store.has_decoded(self.digest):
                    self._decoded.drop()  # it was decoded from the wrong bytes
                source = DecodedSource(wire.stream, self.type.compression)
                decoded = self._store.blob(self.digest, size=None, source=source, of=wire)
                undo.callback(decoded.close)
            if self._index is not None and self.type.format != "raw":
                index = index_tar(decoded or wire, max_entries=self._max_entries)
                if index.to_json() != self._index.to_json():
                    self._misfit = IntegrityError(f"{failure}; the proven layer has other files: mount the kit again")
                    raise self._misfit
                self._keep_index(index)
            undo.pop_all()
        self._wire, self._decoded = wire, decoded
        for blob in old:
            if blob is not None:
                blob.close()

    @property
    def whole_file(self) -> bool:
        """Whether the blob is a file as it is: raw and not compressed."""
        return self.type.format == "raw" and not self.compressed

    def open_whole(self) -> io.FileIO | None:
        """Open the store's file of an uncompressed layer; None unless the store has all of it, verified."""
        return None if self.compressed or self.state() != "verified" else self._store.open_sealed(self.digest)

    def state(self) -> str:
        """absent, partial, present, verified or wrong; of a compressed layer, that of its decoded bytes."""
        if self.failure is not None:
            return "wrong"
        if self.compressed:
            if self._decoded is not None and self._decoded.state != "absent":
                return self._decoded.state
            return "absent" if self._wire is None or self._wire.state == "absent" else "partial"
        return "absent" if self._wire is None else self._wire.state

    def fetched(self) -> int:
        """Bytes of the blob, as the registry has it, that are in the store."""
        if self.compressed and self._decoded is not None and self._decoded.complete:
            return self.descriptor.size
        return 0 if self._wire is None or self.failure is not None else self._wire.fetched

    def load_state(self) -> None:
        """Look up what the store already has of this layer, so that ``state`` tells it; no network."""
        self.content()

    def close(self) -> None:
        """Let go of the blobs."""
        with self._lock:
            for blob in (self._decoded, self._wire):
                if blob is not None:
                    blob.close()


class _Head:
    """The first decoded bytes of a layer, as a reader."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = None

    def pread(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


def _decode_head(head: bytes, compression: str) -> bytes:
    """What a decoder makes of the first bytes of a stream, as far as they go."""
    out = bytearray()
    try:
        for piece in decode([head], compression):
            out += piece
            if len(out) >= PEEK:
                break
    except LayerError:
        pass  # the head was cut off, of course
    return bytes(out)
