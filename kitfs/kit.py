"""A Kit: manifest, Kitfile and layers with their indexes. The one place where registry, store and layers meet.

``Resolver.open`` turns a reference into a ``Kit`` with the network it needs and no more: the manifest and the config. A ``Layer``
opens its blob and builds its index when something first asks, once per process, and keeps the index in the catalog, by layer digest,
for every later mount of the host. It is neither a tree (``fuse.tree`` merges layers) nor a verb.

Threading: a Kit is read by many threads at once. ``Layer.index`` builds under a lock of its own layer; nothing here holds a lock that
a warm read needs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from kitfs.errors import (
    IntegrityError,
    KitfsError,
    LayerError,
    ManifestError,
    NotFound,
    RateLimited,
    StoreError,
    Unauthorized,
    Unavailable,
    WouldBlock,
)
from kitfs.layers.access import Closed, closed_to_others
from kitfs.layers.codec import DecodedSource, decode
from kitfs.layers.index import LayerIndex, Member, Skipped, raw_index
from kitfs.layers.read import read_member
from kitfs.layers.tar import first_path, index_tar
from kitfs.metrics import Counters
from kitfs.oci.filters import Filter, for_parent, selects, selects_kitfile
from kitfs.oci.kitfile import Kitfile
from kitfs.oci.kitindex import KitIndex, is_kit_index, select
from kitfs.oci.manifest import Descriptor, Manifest, check_media_type
from kitfs.oci.match import FileMetadata, LayerEntry, has_kitfile, kit_layers, kitfile_of
from kitfs.oci.names import LOCAL, Digest, LayoutReference, Reference
from kitfs.registry.client import ClientOptions, RegistryClient
from kitfs.registry.credentials import Credentials
from kitfs.registry.kit_home import KitHome, Nearby
from kitfs.registry.layout import open_layout
from kitfs.store.blob import Blob
from kitfs.store.source import Source
from kitfs.store.store import Store

MAX_CONFIG: Final = 8 << 20  # bytes of a config: a thousand times what kit writes, and nothing that could hurt
MAX_CHAIN: Final = 10  # parents of parents, as kit (KITOPS §2.3)
MAX_ENTRIES: Final = 2_000_000
PATIENCE: Final = 10.0  # seconds that a registry has to say what a tag means whose last meaning is known
TAIL: Final = 1 << 20  # bytes that may follow a tar's last entry: GNU tar pads to records of up to a few hundred KiB
PEEK: Final = 16 << 10  # bytes of a compressed layer that are mostly enough to decode its first tar entry
BLOCK: Final = (128 << 10) + 64  # bytes that always are: a zstd block, which is decoded whole, and the headers before it (RFC 8878 §3.1.1)


class Origin(Protocol):
    """Where a kit comes from: a repository of a registry, or an OCI layout on disk."""

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]: ...

    def blob(self, descriptor: Descriptor) -> Source | None: ...

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes: ...


class Stored:
    """The Origin of a kit that was packed or pulled here: all of it is in the store, and nobody is asked."""

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]:
        """Raises NotFound: the store would have had it."""
        raise NotFound(f"manifest {identifier} is not in the store any more; ask its registry with --remote")

    def blob(self, descriptor: Descriptor) -> Source | None:
        """No source: what the store has is all there is."""
        return None

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes:
        """Raises NotFound: the store would have had it."""
        raise NotFound(f"blob {descriptor.digest} is not in the store any more; ask its registry with --remote")


class Layer:
    """One layer of a kit, opened when first asked.

    ``path`` is where the Kitfile says it goes: "" for the whole context, None when nothing says. Errors: KitfsError of whatever
    could not be had; WouldBlock with ``wait=False`` when the answer needs the network or a decoder.
    """

    def __init__(
        self, entry: LayerEntry, origin: Origin, store: Store, *, max_entries: int, kit: Reference | LayoutReference | None = None
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
            self._wire = self._store.blob(self.digest, size=self.descriptor.size, source=self._origin.blob(self.descriptor))
        return self._wire

    def index(self, *, wait: bool = True) -> LayerIndex:
        """What the layer holds. Built once per host: from the catalog when some mount has built it before."""
        if self._index is not None:
            return self._index
        if self.type.format == "raw" and (not self.compressed or (self._metadata is not None and self._metadata.size is not None)):
            self._index = self._raw_index(None)
            return self._index
        if not wait:
            raise WouldBlock
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
                    raise LayerError(f"layer {self.digest}: more than {self._max_entries} entries (--max-entries)")
                return index
        try:
            index = index_tar(content, max_entries=self._max_entries)
        except LayerError as e:
            raise LayerError(f"layer {self.digest}: {e}")
        if self.compressed:
            end = max((e.blob_offset + e.length for m in index.members.values() for e in m.extents), default=0)
            content.pread(end, TAIL)  # what follows the last entry, so that the decoder comes to its end
        self._keep_index(index)
        return index

    def _raw_index(self, decoded_size: int | None) -> LayerIndex:
        metadata = self._metadata
        if self.path is None:
            return LayerIndex({}, [Skipped("", "one file, and neither an org.cncf.model.filepath annotation nor the Kitfile names it")])
        size = self.descriptor.size
        if self.compressed:
            size = decoded_size if decoded_size is not None else (metadata.size if metadata is not None and metadata.size is not None else 0)
        mode = metadata.mode if metadata is not None and metadata.mode is not None else 0o644
        return raw_index(self.path, size, mode)

    def _keep_index(self, index: LayerIndex) -> None:
        self._store.catalog.set(self._index_key, index.to_json())
        self._store.catalog.set(self._closed_key, list(closed_to_others(index)))

    def closed(self, *, at_most: int = 20_000) -> Closed | None:
        """What other users may not use, by its mode; None where that needs the registry, or a look at more than ``at_most`` entries."""
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

    def trusted(self, *, wait: bool = True) -> bool:
        """Whether names outside ``path`` need not be looked for here: the index is known, or its first entry agrees with ``path``.

        kit packs nothing outside the declared path, so a layer whose first entry agrees is taken at its word and not read whole for
        a name that it should not have.
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
        return first is None or related(first, self.path)

    def pread(self, member: Member, offset: int, size: int, *, wait: bool = True) -> bytes:
        """Bytes of a member, short at its end; holes are zeros."""
        if not wait and self._decoded is None and self._wire is None:
            raise WouldBlock
        data = read_member(self.content(), member, offset, size, wait=wait)
        if len(data) < min(size, max(0, member.size - offset)):
            raise IntegrityError(f"layer {self.digest} ends before its file {member.path!r} does")
        if self.compressed and self.type.format == "raw" and offset + len(data) == member.size and self.content().pread(member.size, 1, wait=wait):
            raise IntegrityError(f"layer {self.digest} is longer than the {member.size} bytes that its metadata annotation says")
        return data

    def state(self) -> str:
        """absent, partial, present or verified; of a compressed layer, that of its decoded bytes."""
        if self.compressed:
            if self._decoded is not None and self._decoded.state != "absent":
                return self._decoded.state
            return "absent" if self._wire is None or self._wire.state == "absent" else "partial"
        return "absent" if self._wire is None else self._wire.state

    def fetched(self) -> int:
        """Bytes of the blob, as the registry has it, that are in the store."""
        if self.compressed and self._decoded is not None and self._decoded.complete:
            return self.descriptor.size
        return 0 if self._wire is None else self._wire.fetched

    def peek_store(self) -> None:
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


def related(a: str, b: str) -> bool:
    """Whether one path is the other, or an ancestor of it."""
    return not a or not b or a == b or a.startswith(b + "/") or b.startswith(a + "/")


@dataclass(frozen=True, slots=True)
class Kit:
    """An opened kit. ``layers`` are in the order in which they are laid over each other, parents' first.

    ``kitfile_bytes`` is the Kitfile as ``kit unpack`` would write it, None when a filter leaves it out or the kit has none (a ModelPack
    that KitOps did not pack); ``kitfile`` is then made from the layers' paths. ``pins`` are the digests that its reference and those of its
    parents meant.
    """

    reference: Reference | LayoutReference
    digest: Digest
    manifest: Manifest
    kitfile: Kitfile
    kitfile_bytes: bytes | None
    layers: tuple[Layer, ...]
    pins: Mapping[str, Digest] = field(default_factory=dict)

    @property
    def created(self) -> int:
        """The manifest's created time in seconds since the epoch, else 0."""
        return self.manifest.created

    def close(self) -> None:
        """Let go of every blob."""
        for layer in self.layers:
            layer.close()


class _Known(NamedTuple):
    """What a tag meant ``age`` seconds ago."""

    digest: Digest
    data: bytes
    age: int


class Resolver:
    """Opens kits: from the store when they were packed or pulled here, else from their registry or layout.

    ``origin_of`` gives the Origin of a reference. Tags are resolved at their registry; when it cannot be reached (never on 401, 403
    or 404), or has not answered after ``patience`` seconds, a tag means its last known digest, with one warning. A tag that is not known is
    waited for as long as the origin takes. ``stand_in`` is asked for the manifest of a tag after that, and where the registry has none.
    """

    def __init__(
        self,
        store: Store,
        origin_of: Callable[[Reference | LayoutReference], Origin],
        *,
        log: logging.Logger,
        max_entries: int = MAX_ENTRIES,
        clock: Callable[[], float] = time.time,
        stand_in: Callable[[Reference, KitfsError], tuple[Descriptor, bytes] | None] = lambda *_: None,
        patience: float = PATIENCE,
    ) -> None:
        self._store = store
        self._origin_of = origin_of
        self._log = log
        self._max_entries = max_entries
        self._clock = clock
        self._stand_in = stand_in
        self._patience = patience
        self.fell_back = False  # whether a tag was given its last known meaning, since its registry did not answer

    def open(
        self,
        reference: Reference | LayoutReference,
        *,
        filters: Sequence[Filter] = (),
        labels: Mapping[str, str] | None = None,
        remote: bool = False,
        pins: Mapping[str, Digest] | None = None,
    ) -> Kit:
        """The kit behind a reference, with its parents' layers; of an index the one that has the ``labels``.

        ``pins``, those of a kit that was opened before, say which digests references mean; what they name is not looked up again.

        Raises NotFound, RegistryError, IntegrityError, ManifestError, KitfileError, UnsupportedLayer, UsageError for labels that do not
        choose one kit, or LayerError for a chain of parents that is too long or a cycle.
        """
        return self._open(reference, tuple(filters), labels or {}, remote, pins or {}, ())

    def identify(self, reference: Reference | LayoutReference, *, labels: Mapping[str, str] | None = None, remote: bool = False) -> Digest:
        """The digest of the kit that ``open`` would open. Raises NotFound, RegistryError, IntegrityError, ManifestError, UsageError."""
        return self._found(reference, labels or {}, remote)[1]

    def _open(
        self,
        reference: Reference | LayoutReference,
        filters: tuple[Filter, ...],
        labels: Mapping[str, str],
        remote: bool,
        pins: Mapping[str, Digest],
        chain: tuple[str, ...],
    ) -> Kit:
        chain = (*chain, str(reference))
        if len(set(chain)) < len(chain):
            raise ManifestError(f"found cycle in modelkit references: [{'=>'.join(chain)}]")
        if len(chain) > MAX_CHAIN + 1:
            raise ManifestError(f"reached maximum number of model references: [{'=>'.join(chain)}]")
        known = pins.get(str(reference))
        origin, digest, data = self._found(reference, labels, remote) if known is None else self._known(reference, known, remote)
        manifest = self._parse(Manifest.parse, data, reference)
        self._parse(lambda _: manifest.flavor, data, reference)
        kitfile = kitfile_of(manifest, self._config(manifest.config, origin))
        matched = kit_layers(manifest, kitfile)
        own = tuple(
            Layer(entry, origin, self._store, max_entries=self._max_entries, kit=reference)
            for entry in matched
            if not filters or (entry.entry is not None and selects(filters, entry.entry))
        )
        inherited: tuple[Layer, ...] = ()
        meant: dict[str, Digest] = {str(reference): digest}
        parent_filters = for_parent(filters)
        if kitfile.parent is not None and parent_filters is not None:
            parent = self._open(kitfile.parent.or_latest().held_by(reference), tuple(parent_filters), {}, remote, pins, chain)
            inherited = parent.layers
            meant |= parent.pins
        shown = kitfile.to_yaml().encode() if selects_kitfile(filters) and has_kitfile(manifest) else None
        return Kit(reference, digest, manifest, kitfile, shown, inherited + own, meant)

    @staticmethod
    def _parse(parse: Callable[[bytes], Any], data: bytes, reference: Reference | LayoutReference) -> Any:
        try:
            return parse(data)
        except ManifestError as e:
            raise ManifestError(f"{reference}: {e}")

    def _found(self, reference: Reference | LayoutReference, labels: Mapping[str, str], remote: bool) -> tuple[Origin, Digest, bytes]:
        """(where the kit comes from, its digest, its manifest). As with kit, labels choose from an index, not from kits of the store."""
        pinned = None if remote else self._pinned(reference, of_index=bool(labels))
        if pinned is not None:
            origin: Origin = Stored()
            digest, data = pinned, self._stored_manifest(pinned, origin)
        else:
            origin = self._origin_of(reference)
            digest, data = self._manifest(reference, origin, remote)
        if not is_kit_index(data):
            if labels:
                name = reference.display if isinstance(reference, Reference) else reference
                self._log.warning("labels are ignored: %s is a ModelKit, not a ModelKit index", name)
            return origin, digest, data
        variant = select(KitIndex.parse(data), labels, reference)
        if pinned is not None and isinstance(reference, Reference) and reference.registry != LOCAL:
            origin = self._origin_of(reference)  # an index may be here without its kits
        data = self._stored_manifest(variant.digest, origin)
        check_media_type(data, variant.descriptor.media_type, f"{reference}: {variant.digest}")
        return origin, variant.digest, data

    def _known(self, reference: Reference | LayoutReference, digest: Digest, remote: bool) -> tuple[Origin, Digest, bytes]:
        """``_found`` for a reference whose digest is known."""
        here = isinstance(reference, Reference) and reference.registry == LOCAL
        if here or (not remote and self._pinned(reference, of_index=False) == digest):
            origin: Origin = Stored()
        else:
            origin = self._origin_of(reference)
        return origin, digest, self._stored_manifest(digest, origin)

    def _pinned(self, reference: Reference | LayoutReference, *, of_index: bool) -> Digest | None:
        """The digest of a kit or an index that is here; of one that is named by its digest only where no registry could have it.

        A tag that both have is the kit's, but with ``of_index``.
        """
        if isinstance(reference, LayoutReference):
            return None
        if reference.digest is not None:
            return reference.digest if reference.registry == LOCAL and self._store.has_sealed(reference.digest) else None
        tag = reference.tag or "latest"
        found = (None if of_index else self._store.refs.get(reference.name, tag)) or self._store.indexes.get(reference.name, tag)
        return None if found is None else Digest.parse(found["digest"])

    def _manifest(self, reference: Reference | LayoutReference, origin: Origin, remote: bool) -> tuple[Digest, bytes]:
        if reference.digest is not None:
            return reference.digest, self._stored_manifest(reference.digest, origin)
        if isinstance(reference, LayoutReference):
            descriptor, data = origin.manifest(reference.tag or "")
            return descriptor.digest, data
        tag = reference.tag or "latest"
        key = ("tag", f"{reference.name}:{tag}")
        known = self._last_known(key)
        try:
            descriptor, data = origin.manifest(tag) if known is None else self._in_time(lambda: origin.manifest(tag), reference)
        except (Unavailable, RateLimited, NotFound, Unauthorized) as e:
            found = None
            if known is not None and not isinstance(e, (NotFound, Unauthorized)):
                self.fell_back = True
                self._log.warning("%s: using %s, which the tag meant %s ago: %s", reference, known.digest, human_age(known.age), e)
                found = known.digest, known.data
            other = self._stand_in(reference.with_tag(tag), e) if found is None and not remote else None
            if other is not None:
                self._keep(other[0].digest, other[1])
                return other[0].digest, other[1]
            if found is None:
                raise
            return found
        self._keep(descriptor.digest, data)
        self._store.catalog.set(key, {"digest": descriptor.digest, "seen": int(self._clock())})
        return descriptor.digest, data

    def _stored_manifest(self, digest: Digest, origin: Origin) -> bytes:
        data = self._store.get(digest)
        if data is None:
            data = origin.manifest(digest)[1]
            self._keep(digest, data)
        return data

    def _last_known(self, key: tuple[str, str]) -> _Known | None:
        """What a tag meant when its registry was last asked, if the manifest is here."""
        known = self._store.catalog.get(key)
        try:
            digest = Digest.parse(known["digest"])
            age = max(0, int(self._clock()) - int(known["seen"]))
        except (TypeError, KeyError, ValueError, KitfsError):
            return None
        data = self._store.get(digest)
        return None if data is None else _Known(digest, data, age)

    def _in_time(self, ask: Callable[[], tuple[Descriptor, bytes]], reference: Reference) -> tuple[Descriptor, bytes]:
        """An answer that is not waited for longer than ``patience`` seconds. Raises Unavailable after that, and what ``ask`` raises.

        A registry that is silent keeps the thread that asks it for as long as a request may take; its answer is not used.
        """
        answer: Future[tuple[Descriptor, bytes]] = Future()

        def run() -> None:
            try:
                answer.set_result(ask())
            except BaseException as e:  # noqa: BLE001 - raised by the thread that waits
                answer.set_exception(e)

        threading.Thread(target=run, name="kitfs-tag", daemon=True).start()
        try:
            return answer.result(self._patience)
        except TimeoutError as e:
            if answer.done():
                raise
            raise Unavailable(f"{reference.registry} has not answered within {self._patience:g} s") from e

    def _config(self, descriptor: Descriptor, origin: Origin) -> bytes:
        data = self._store.get(descriptor.digest)
        if data is None:
            data = origin.blob_bytes(descriptor, MAX_CONFIG)
            self._keep(descriptor.digest, data)
        return data

    def _keep(self, digest: Digest, data: bytes) -> None:
        """Store a small blob; a cache may fail, a read may not."""
        try:
            self._store.put(digest, data)
        except StoreError as e:
            self._log.warning("cannot keep %s: %s", digest, e)


def human_age(seconds: int) -> str:
    """An age as people say it: "42 s", "3 min", "5 h", "2 d"."""
    for unit, width in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * width or (seconds >= width and unit != "d"):
            return f"{seconds // width} {unit}"
    return f"{seconds} s"


class Host(NamedTuple):
    """What verbs work with: the store, the registries, what resolves references with both, and what whole kits are pulled from."""

    store: Store
    client: RegistryClient
    resolver: Resolver
    pull_from: Callable[[Reference], Nearby]


def host_on(
    stack: ExitStack,
    cache_dir: str,
    *,
    client_options: ClientOptions,
    kit_home: str,
    counters: Counters,
    log: logging.Logger,
    cache_size: int | None = None,
    max_entries: int = MAX_ENTRIES,
) -> Host:
    """The store in ``cache_dir`` and the registries that ``client_options`` reach, closed with ``stack``.

    ``kit_home`` is kit's home, where credentials.json is, and what kit has pulled: that is read there, not asked of registries, when it
    has its digest. ``cache_size`` in bytes. Raises StoreError when the store cannot be used.
    """
    store = Store.open(cache_dir, size_limit=cache_size, counters=counters, log=log)
    stack.callback(store.close)
    client = RegistryClient(client_options, Credentials.load(kit_home), counters=counters, log=log)
    stack.callback(client.close)
    home = KitHome(kit_home, store.catalog, log)
    stack.callback(home.close)
    layouts: dict[str, Origin] = {}

    def origin_of(reference: Reference | LayoutReference) -> Origin:
        if isinstance(reference, Reference):
            return home.origin(reference, client.repository)
        if reference.path not in layouts:
            layouts[reference.path] = stack.enter_context(closing(open_layout(reference)))
        return layouts[reference.path]

    resolver = Resolver(store, origin_of, log=log, max_entries=max_entries, stand_in=home.stand_in)
    return Host(store, client, resolver, lambda reference: home.origin(reference, client.repository, whole=True))


@contextmanager
def open_host(cache_dir: str, **options: Any) -> Iterator[Host]:
    """``host_on`` for the time of a block; its options and errors."""
    with ExitStack() as stack:
        yield host_on(stack, cache_dir, **options)
