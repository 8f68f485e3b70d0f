"""Read a layer of a kit: its blob, its index and its bytes."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Final

from kitfs.content import Origin, Source
from kitfs.errors import IntegrityError, KitfsError, LayerError, LayerLimit, StoreError, StoreFull, WouldBlock
from kitfs.kit import head
from kitfs.kit.layer_index import same_entries
from kitfs.kit.layer_state import LayerState
from kitfs.kit.layer_table import table_for
from kitfs.kit.raw import raw_layer_index
from kitfs.kit.restart import RestartFinder
from kitfs.kit.strict import StrictReader
from kitfs.layers.access import Closed, closed_to_others
from kitfs.layers.codec import DecodedSource
from kitfs.layers.growth import DEFAULT_EXPANSION, Expansion, Growth
from kitfs.layers.index import SIZE_MAX, LayerIndex, Member
from kitfs.layers.read import read_member
from kitfs.layers.tar import index_tar
from kitfs.modelkit.layers import FileMetadata, LayerEntry
from kitfs.oci.names import LayoutReference, Reference
from kitfs.store import members
from kitfs.store.blob import Blob
from kitfs.store.store import Store

TAIL: Final = 1 << 20  # bytes read after a tar's last entry: GNU tar pads to records of up to a few hundred KiB


class Layer(LayerState):
    """A layer of a kit. Its blob and its index are opened when they are first needed.

    ``path`` is the path that the Kitfile declares for the layer: "" for the whole context, None if no path is declared.
    Methods raise the KitfsError of the store or the origin. With ``wait=False`` they raise WouldBlock when the result
    needs the network or a decoder.
    """

    def __init__(
        self,
        entry: LayerEntry,
        origin: Origin,
        store: Store,
        *,
        max_entries: int,
        expansion: Expansion = DEFAULT_EXPANSION,
        kit: Reference | LayoutReference | None = None,
        strict: bool = False,
    ) -> None:
        self.kit: Final = kit  # the reference of the kit or parent kit that the layer belongs to
        self.descriptor = entry.descriptor
        self.type = entry.type
        self.entry: Final = entry.entry
        self.path: str | None = entry.path
        self._metadata = FileMetadata.of(entry.descriptor)
        self._origin = origin
        self._store = store
        self._table = table_for(entry.descriptor, origin, store)
        self._strict = strict  # whether every byte is verified when it is read, also if it is in the store
        self._strict_reader: tuple[Blob, StrictReader] | None = None
        self._max_entries = max_entries
        self._expansion = expansion
        self._restart: Final = RestartFinder(entry.type.compression, expansion, self._table)
        self._lock = threading.Lock()  # guards the fields below; a read whose index and blobs are open does not take it
        self._wire: Blob | None = None
        self._decoded: Blob | None = None
        self._index: LayerIndex | None = None
        self._agrees: bool | None = None
        self._misfit: IntegrityError | None = None  # why the index in use is wrong: this mount cannot use the layer
        self.index_is_proven = entry.type.format == "raw"  # whether the index in use was made from verified bytes
        self._proof = threading.Lock()  # held while the index is made again from verified bytes
        self._is_proving = False
        self._refusal: LayerLimit | None = None  # why the layer cannot be indexed with these limits

    def __repr__(self) -> str:
        return f"<Layer {self.digest[:19]} {self.path!r} {self.state()}>"

    def wire(self) -> Blob:
        """Return the blob as the registry has it, which may be compressed."""
        with self._lock:
            return self._open_wire()

    def source(self) -> Source | None:
        """Return the source that fetches the blob from the kit's origin; None if the kit is only in the store."""
        return self._origin.blob(self.descriptor)

    def content(self) -> Blob:
        """Return the blob that the offsets of members refer to: the decoded blob if the layer is compressed."""
        found = self._decoded if self.compressed else self._wire
        if found is not None:
            return found
        with self._lock:
            return self._open_content()

    def _reader(self, content: Blob) -> Blob | StrictReader:
        """Return the object that reads the content."""
        if not self._strict:
            return content
        known = self._strict_reader
        if known is None or known[0] is not content:
            known = self._strict_reader = (
                content,
                StrictReader(content, None if self.compressed else self._table, self._wire),
            )
        return known[1]

    def _open_content(self) -> Blob:
        """Open the content without using the network. The caller must hold the lock."""
        wire = self._open_wire()
        if not self.compressed:
            return wire
        if self._decoded is None:
            self._decoded = self._store.blob(self.digest, size=None, source=self._decoder(wire), of=wire)
        return self._decoded

    def _decoder(self, wire: Blob, spare: Callable[[], int] | None = None, *, record: bool = True) -> DecodedSource:
        declared = self._metadata.size if self._metadata is not None and self.type.format == "raw" else None
        spare = spare or partial(self._store.room.spare, self.digest)
        growth = Growth(self.size, expansion=self._expansion, declared=declared, spare=spare)
        return DecodedSource(wire.stream, self.type.compression, growth.allow, record=record)

    def decoded_once(self) -> Iterator[memoryview]:
        """Decode a compressed layer, and yield its content from the beginning. Nothing is stored. Raises LayerError."""
        for _, piece in self._decoder(self.wire(), spare=lambda: SIZE_MAX, record=False).read_range(0, None):
            yield piece

    def _open_wire(self) -> Blob:
        if self._wire is None:
            self._wire = self._store.blob(self.digest, size=self.size, source=self.source(), table=self._table)
        return self._wire

    def index(self, *, wait: bool = True) -> LayerIndex:
        """Return the index of the layer's members. The store keeps the index for other mounts on this host.

        An index of unverified bytes is made again from verified bytes. Raises IntegrityError if the two indexes differ.
        """
        if self._misfit is not None:
            raise self._misfit
        if self._index is not None:
            self._prove_soon()
            return self._index
        if self.type.format == "raw" and (
            not self.compressed or (self._metadata is not None and self._metadata.size is not None)
        ):
            self._index = raw_layer_index(self.path, self.descriptor.size, self._metadata, self.compressed, None)
            return self._index
        self.check(wait=wait)
        if not self._lock.acquire(blocking=wait):
            raise WouldBlock
        try:
            if self._index is None:
                self._index = self._kept_index() or self._made_index(wait)
                self._prove_soon()  # the bytes may have been verified meanwhile
            return self._index
        finally:
            self._lock.release()

    def proven_index(self) -> LayerIndex:
        """Return the index of the layer's content, which must be verified already.

        Raises IntegrityError if the index in use was made before the verification and is different.
        """
        self.index()
        self._prove()
        return self.index()

    def _made_index(self, wait: bool) -> LayerIndex:
        """Make the index. The caller must hold the lock."""
        if self._refusal is not None:
            raise self._refusal
        content = self._open_content()
        proven = content.sealed
        if not wait and not proven:  # the index of verified content is read from the disk at once
            raise WouldBlock
        try:
            listed = self._listed(proven)
            if listed is None:
                self._restart.find(self._open_wire(), content, wait=wait)
            if self.type.format == "raw":
                content.fill()
                if self._strict:
                    content.verify()
                return raw_layer_index(self.path, self.descriptor.size, self._metadata, True, content.size)
            if listed is None:
                listed = self._index_of(content, self._max_entries)
                if self.compressed and not content.ranged:
                    content.pread(listed.counts.end, TAIL)  # past the last entry, so that the decoder reaches its end
        except (LayerLimit, StoreFull) as e:
            if isinstance(e, LayerLimit):
                self._refusal = e  # remembered, because a second attempt would meet the same limit
            self._drop_decoded()
            raise
        content.when_sealed = self._prove_soon
        return self._keep(listed, content, proven=proven)

    def _listed(self, proven: bool) -> LayerIndex | None:
        """Return the index in the layer's chunk table; None if it has no table, or if ``proven``."""
        if proven or self._table is None or self.type.format == "raw":
            return None
        return self._table.index(self._max_entries, self.compressed)

    def _drop_decoded(self) -> None:
        """Remove unusable decoded content, to free its space. The caller must hold the lock."""
        if self._decoded is not None:
            with suppress(OSError):
                self._decoded.drop()
            self._decoded.close()
            self._decoded = None

    def _index_of(self, content: Blob, max_entries: int) -> LayerIndex:
        try:
            return index_tar(self._reader(content), max_entries=max_entries)
        except LayerError as e:
            raise e.prefixed(f"layer {self.digest}")

    def _kept_index(self) -> LayerIndex | None:
        """Return the stored index, preferably that of verified bytes. The caller must hold the lock."""
        if self.type.format == "raw":
            return None
        content = self._open_content()
        for proven in (True, False):
            if not proven and (content.sealed or (self._strict and self._table is None)):
                continue  # the content is verified now, or must be verified before it is read
            index = members.load(self._store.root, self.digest, content.directory, proven=proven)
            if index is None:
                continue
            if len(index.members) + len(index.skipped) > self._max_entries:  # a mount with a higher limit made it
                limit = f"more than {self._max_entries} entries; raise the limit with --max-entries"
                raise LayerLimit(f"layer {self.digest}: {limit}")
            self.index_is_proven = proven
            content.when_sealed = self._prove_soon
            return index
        return None

    def _keep(self, index: LayerIndex, content: Blob, *, proven: bool) -> LayerIndex:
        """Store an index, and return a mapping of the stored index, whose pages the kernel can reclaim."""
        self.index_is_proven = proven
        entry = content.directory
        if not members.keep(self._store.root, self.digest, entry, index, proven=proven):
            return index
        return members.load(self._store.root, self.digest, entry, proven=proven) or index

    def _prove_soon(self) -> None:
        """Start the check of an index that was made from unverified bytes, if the bytes are verified now."""
        content = self._decoded if self.compressed else self._wire
        if not self.index_is_proven and not self._is_proving and content is not None and content.sealed:
            self._is_proving = True
            self._store.prove(self._prove)

    def _prove(self) -> None:
        """Make the index again from verified bytes. If it differs from the index in use, reads of the layer fail."""
        with self._proof:
            self._is_proving = False
            made = self._index
            if self.index_is_proven or made is None or self.failure is not None:
                return
            content = self.content()
            if content.state != "verified":
                return
            try:
                index: LayerIndex | None = self._index_of(content, self._max_entries)
            except LayerError:
                index = None
            if index is not None:
                members.keep(self._store.root, self.digest, content.directory, index, proven=True)
            members.discard(self._store.root, self.digest, content.directory, proven=False)
            self.index_is_proven = True
            if same_entries(made, index, max_entries=self._max_entries):
                return
            self._misfit = IntegrityError(
                f"layer {self.digest}: its verified bytes contain other files than the bytes that were read before: "
                "a registry or mirror has sent wrong bytes (mount or open the kit again)"
            )
        self._store.counters.add("integrity_failures")
        self._store.log.error("%s", self._misfit)
        self._store.failed(self.digest)

    def closed(self, *, at_most: int = 20_000) -> Closed | None:
        """Return how many files and directories other users cannot open, with an example of each; None if not known.

        No request is sent to a registry. If the layer has no index, at most ``at_most`` entries are read.
        """
        with suppress(WouldBlock, LayerError):
            return closed_to_others(self.index(wait=False))
        if self.type.format == "raw" or not self._is_here:
            return None
        try:
            content = self.content()
            proven = content.sealed
            index = self._index_of(content, min(at_most, self._max_entries))
        except (LayerError, StoreError):
            return None
        with self._lock:
            if self._index is None:
                self._index = self._keep(index, content, proven=proven)
        return closed_to_others(index)

    @property
    def _is_here(self) -> bool:
        return self._store.has_decoded(self.digest) if self.compressed else self._store.has_sealed(self.digest)

    @property
    def listed(self) -> bool:
        """Return whether the names in the layer can be listed without a request to its registry."""
        if self.type.format == "raw" or self._is_here:
            return True
        try:
            self.index(wait=False)
        except (WouldBlock, KitfsError):
            return False
        return True

    def first_entry_agrees(self, *, wait: bool = True) -> bool:
        """Return whether a lookup of a name outside ``path`` may skip this layer without fetching it.

        The result is True if the index is known, or if the first entry lies within ``path``, because kit packs only
        files within ``path``.
        """
        if self._index is not None or self.type.format == "raw":
            return True
        if self._agrees is None:
            if not wait:
                raise WouldBlock
            if self._strict or (self._table is not None and self._table.load()):
                self.index()
                return True
            self._agrees = bool(self.path) and head.agrees(self.wire(), self.type.compression, self.path or "")
        return self._agrees

    def pread(self, member: Member, offset: int, size: int, *, wait: bool = True) -> bytes:
        """Read bytes of a member, fewer at its end. Holes are read as zeros."""
        if self._misfit is not None:
            raise self._misfit
        self._prove_soon()
        if not wait and self._decoded is None and self._wire is None:
            raise WouldBlock
        content = self.content()
        if not self._restart.done:
            self._restart.find(self.wire(), content, wait=wait)
        reader = self._reader(content)
        data = read_member(reader, member, offset, size, wait=wait)
        if len(data) < min(size, max(0, member.size - offset)):
            raise IntegrityError(f"layer {self.digest} ends before its file {member.path!r} does")
        if (
            self.compressed
            and self.type.format == "raw"
            and offset + len(data) == member.size
            and reader.pread(member.size, 1, wait=wait)
        ):
            raise IntegrityError(
                f"layer {self.digest} is longer than the {member.size} bytes that its metadata annotation declares"
            )
        return data

    def check(self, *, wait: bool = True) -> None:
        """Raise IntegrityError if the layer's bytes are known to be wrong.

        If a process has fetched the layer's blob again and verified it, this method reopens the blob and raises no
        error. With ``wait=False``, it does not reopen the blob, but raises WouldBlock.
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
        """Replace a blob with wrong bytes by the verified blob. The caller must hold the lock.

        The mounted tree cannot change, so IntegrityError is raised if the verified bytes have another index.
        """
        decoded, old = None, (self._wire, self._decoded)
        with ExitStack() as undo:
            source = self._origin.blob(self.descriptor)
            wire = self._store.blob(self.digest, size=self.size, source=source, table=self._table)
            undo.callback(wire.close)
            if self.compressed:
                if self._decoded is not None and not self._store.has_decoded(self.digest):
                    self._decoded.drop()  # it was decoded from the wrong bytes
                decoded = self._store.blob(self.digest, size=None, source=self._decoder(wire), of=wire)
                undo.callback(decoded.close)
            if self._index is not None and self.type.format != "raw":
                content = decoded or wire
                index = self._index_of(content, self._max_entries)
                members.keep(self._store.root, self.digest, content.directory, index, proven=True)
                if not same_entries(self._index, index, max_entries=self._max_entries):
                    self._misfit = IntegrityError(
                        f"{failure}; the verified layer has other files (mount the kit again)"
                    )
                    raise self._misfit
                self.index_is_proven = True
            undo.pop_all()
        self._wire, self._decoded = wire, decoded
        for blob in old:
            if blob is not None:
                blob.close()

    @property
    def whole_file(self) -> bool:
        """Return whether others may read the blob as a file: the layer is raw, not compressed and not strict.

        The file of a strict layer is only read by this object, because it could change after it was verified.
        """
        return self.type.format == "raw" and not self.compressed and not self._strict

    def open_whole(self) -> io.FileIO | None:
        """Open the store's file of an uncompressed layer. Returns None unless the layer is complete and verified.

        Also returns None for a strict layer.
        """
        is_usable = not self.compressed and not self._strict and self.is_verified()
        return self._store.open_sealed(self.digest) if is_usable else None

    def load_state(self) -> None:
        """Look up which bytes of this layer the store has, for ``state``. No request is sent to a registry."""
        self.content()

    def close(self) -> None:
        """Close the blobs."""
        with self._lock:
            for part in (self._decoded, self._wire, self._table):
                if part is not None:
                    part.close()
