"""A Kit: manifest, Kitfile and layers with their indexes. The one place where registry, store and layers meet.

``Resolver.open`` turns a reference into a ``Kit`` with the network it needs and no more: the manifest and the config.
A ``Layer`` opens its blob and builds its index when something first asks, once per process, and keeps the index in
the catalog, by layer digest, for every later mount of the host. It is neither a tree (``fuse.tree`` merges layers)
nor a verb.

Threading: a Kit is read by many threads at once. ``Layer.index`` builds under a lock of its own layer; nothing here
holds a lock that a warm read needs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

from kitfs.content import Origin
from kitfs.errors import (
    KitfsError,
    ManifestError,
    NotFound,
    RateLimited,
    StoreError,
    Unauthorized,
    Unavailable,
)
from kitfs.kit.kit import Kit
from kitfs.kit.layer import Layer
from kitfs.kit.origin import Stored
from kitfs.layers.tar import MAX_ENTRIES
from kitfs.modelkit.filters import Filter, for_parent, selects, selects_kitfile
from kitfs.modelkit.index import KitIndex, is_kit_index, select
from kitfs.modelkit.layers import has_kitfile, kit_layers, kitfile_of
from kitfs.oci.manifest import Descriptor, Manifest, check_media_type
from kitfs.oci.names import LOCAL, Digest, LayoutReference, Reference
from kitfs.store.store import Store

MAX_CONFIG: Final = 8 << 20  # bytes of a config: a thousand times what kit writes, and nothing that could hurt
MAX_CHAIN: Final = 10  # parents of parents, as kit (KITOPS §2.3)


PATIENCE: Final = 10.0  # seconds that a registry has to say what a tag means whose last meaning is known


class _Known(NamedTuple):
    """What a tag meant ``age`` seconds ago."""

    digest: Digest
    data: bytes
    age: int


class Resolver:
    """Opens kits: from the store when they were packed or pulled here, else from their registry or layout.

    ``origin_of`` gives the Origin of a reference. Tags are resolved at their registry; when it cannot be reached
    (never on 401, 403 or 404), or has not answered after ``patience`` seconds, a tag means its last known digest,
    with one warning. A tag that is not known is waited for as long as the origin takes. ``fallback`` is asked for the
    manifest of a tag after that, and where the registry has none.
    """

    def __init__(
        self,
        store: Store,
        origin_of: Callable[[Reference | LayoutReference], Origin],
        *,
        log: logging.Logger,
        max_entries: int = MAX_ENTRIES,
        clock: Callable[[], float] = time.time,
        fallback: Callable[[Reference, KitfsError], tuple[Descriptor, bytes] | None] = lambda *_: None,
        patience: float = PATIENCE,
    ) -> None:
        self._store = store
        self._origin_of = origin_of
        self._log = log
        self._max_entries = max_entries
        self._clock = clock
        self._fallback = fallback
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

        ``pins``, those of a kit that was opened before, say which digests references mean; what they name is not
        looked up again.

        Raises NotFound, RegistryError, IntegrityError, ManifestError, KitfileError, UnsupportedLayer, UsageError for
        labels that do not choose one kit, or LayerError for a chain of parents that is too long or a cycle.
        """
        return self._open(reference, tuple(filters), labels or {}, remote, pins or {}, ())

    def identify(
        self, reference: Reference | LayoutReference, *, labels: Mapping[str, str] | None = None, remote: bool = False
    ) -> Digest:
        """The digest of the kit that ``open`` would open. Raises NotFound, RegistryError, IntegrityError,
        ManifestError, UsageError.
        """
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
        origin, digest, data = (
            self._found(reference, labels, remote) if known is None else self._known(reference, known, remote)
        )
        manifest = self._parse(Manifest.parse, data, reference)
        self._parse(lambda _: manifest.require_kit(), data, reference)
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
            parent = self._open(
                kitfile.parent.or_latest().held_by(reference), tuple(parent_filters), {}, remote, pins, chain
            )
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

    def _found(
        self, reference: Reference | LayoutReference, labels: Mapping[str, str], remote: bool
    ) -> tuple[Origin, Digest, bytes]:
        """(where the kit comes from, its digest, its manifest). As with kit, labels choose from an index, not from
        kits of the store.
        """
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

    def _known(
        self, reference: Reference | LayoutReference, digest: Digest, remote: bool
    ) -> tuple[Origin, Digest, bytes]:
        """``_found`` for a reference whose digest is known."""
        here = isinstance(reference, Reference) and reference.registry == LOCAL
        if here or (not remote and self._pinned(reference, of_index=False) == digest):
            origin: Origin = Stored()
        else:
            origin = self._origin_of(reference)
        return origin, digest, self._stored_manifest(digest, origin)

    def _pinned(self, reference: Reference | LayoutReference, *, of_index: bool) -> Digest | None:
        """The digest of a kit or an index that is here; of one that is named by its digest only where no registry
        could have it.

        A tag that both have is the kit's, but with ``of_index``.
        """
        if isinstance(reference, LayoutReference):
            return None
        if reference.digest is not None:
            return (
                reference.digest if reference.registry == LOCAL and self._store.has_sealed(reference.digest) else None
            )
        tag = reference.tag or "latest"
        found = (None if of_index else self._store.refs.get(reference.name, tag)) or self._store.indexes.get(
            reference.name, tag
        )
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
            descriptor, data = (
                origin.manifest(tag) if known is None else self._in_time(lambda: origin.manifest(tag), reference)
            )
        except (Unavailable, RateLimited, NotFound, Unauthorized) as e:
            found = None
            if known is not None and not isinstance(e, (NotFound, Unauthorized)):
                self.fell_back = True
                self._log.warning(
                    "%s: using %s, which the tag meant %s ago: %s", reference, known.digest, human_age(known.age), e
                )
                found = known.digest, known.data
            other = self._fallback(reference.with_tag(tag), e) if found is None and not remote else None
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
        """An answer that is not waited for longer than ``patience`` seconds. Raises Unavailable after that, and what
        ``ask`` raises.

        A registry that is silent keeps the thread that asks it for as long as a request may take; its answer is not
        used.
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
