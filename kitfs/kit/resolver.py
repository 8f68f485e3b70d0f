"""Open kits: turn a reference into a ``Kit``, with its manifest, its Kitfile and its layers.

``Resolver.open`` reads only the manifests and configs of the kit and of its parents. It reads no layer: a ``Layer``
opens its blob and builds its index when the index is first needed. ``kit.tree`` merges the layers.

Threading: any number of threads may open kits with one resolver.
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
from kitfs.kit.chain import extended
from kitfs.kit.kit import Kit
from kitfs.kit.layer import Layer
from kitfs.kit.origin import StoreOrigin
from kitfs.layers.growth import DEFAULT_EXPANSION, Expansion
from kitfs.layers.tar import MAX_ENTRIES
from kitfs.modelkit.filters import Filter, for_parent, selects, selects_kitfile
from kitfs.modelkit.index import KitIndex, is_kit_index, select
from kitfs.modelkit.layers import has_kitfile, kit_layers, kitfile_of
from kitfs.oci.manifest import Descriptor, Manifest, check_media_type
from kitfs.oci.names import LOCAL, Digest, LayoutReference, Reference
from kitfs.registry.options import MAX_TAG_AGE
from kitfs.store.store import Store

MAX_CONFIG: Final = 8 << 20  # bytes of a config: a thousand times what kit writes, and small enough to hold in memory
PATIENCE: Final = 10.0  # seconds to wait for a registry before the last known digest of a tag is used


class _KnownTag(NamedTuple):
    """The digest and the bytes of the manifest to which a tag pointed ``age`` seconds ago."""

    digest: Digest
    data: bytes
    age: int


class Resolver:
    """A resolver opens kits from the store, from a registry or from a layout.

    A kit that was packed or pulled on this machine is opened from the store. ``origin_of`` returns the origin of any
    other reference: its registry or its layout. A tag is resolved at its registry. If the registry is unreachable, or
    does not answer within ``patience`` seconds, the last known digest of the tag is used, with a warning, unless it is
    older than ``max_tag_age`` seconds. (An attacker who blocks the registry could otherwise keep a host on an old kit
    for ever.) An answer of 401, 403 or 404 is always an error. If no digest is known, the resolver waits for the origin
    without a limit. ``admit`` is called for each kit and each parent, after its manifest is read and before anything
    else of it is read. ``admit`` raises SignatureError for a kit that may not be used. ``fallback`` supplies the
    manifest of a tag if neither the registry nor the last known digest does. With ``strict``, every byte of a layer is
    verified whenever it is read.
    """

    def __init__(
        self,
        store: Store,
        origin_of: Callable[[Reference | LayoutReference], Origin],
        *,
        log: logging.Logger,
        max_entries: int = MAX_ENTRIES,
        expansion: Expansion = DEFAULT_EXPANSION,
        clock: Callable[[], float] = time.time,
        fallback: Callable[[Reference, KitfsError], tuple[Descriptor, bytes] | None] = lambda *_: None,
        patience: float = PATIENCE,
        max_tag_age: float = MAX_TAG_AGE,
        admit: Callable[[Reference | LayoutReference, Digest], None] = lambda *_: None,
        strict: bool = False,
    ) -> None:
        self._store = store
        self._origin_of = origin_of
        self._log = log
        self._max_entries = max_entries
        self._expansion = expansion
        self._clock = clock
        self._fallback = fallback
        self._patience = patience
        self._max_tag_age = max_tag_age
        self._admit = admit
        self._strict = strict
        self.fell_back = False  # True once the last known digest of a tag was used because its registry did not answer

    def open(
        self,
        reference: Reference | LayoutReference,
        *,
        filters: Sequence[Filter] = (),
        labels: Mapping[str, str] | None = None,
        remote: bool = False,
        pins: Mapping[str, Digest] | None = None,
    ) -> Kit:
        """Open the kit that a reference names, with the layers of its parents. ``labels`` choose a kit of an index.

        ``pins`` is the ``Kit.pins`` of a kit that was opened before. A reference in ``pins`` is opened by its digest in
        ``pins``, and is not resolved again. With ``remote``, the registry is asked even if the store has the kit.

        Raises NotFound, RegistryError, IntegrityError, KitfileError, UnsupportedLayer or ManifestError. Also raises
        ManifestError if the chain of parents is too long or has a cycle, UsageError if the labels do not choose exactly
        one kit, and SignatureError if a kit may not be used.
        """
        return self._open(reference, tuple(filters), labels or {}, remote, pins or {}, ())

    def identify(
        self, reference: Reference | LayoutReference, *, labels: Mapping[str, str] | None = None, remote: bool = False
    ) -> Digest:
        """Return the digest of the kit that ``open`` would open.

        Raises NotFound, RegistryError, IntegrityError, ManifestError, UsageError and SignatureError.
        """
        digest = self._resolve(reference, labels or {}, remote)[1]
        self._admit(reference, digest)
        return digest

    def _open(
        self,
        reference: Reference | LayoutReference,
        filters: tuple[Filter, ...],
        labels: Mapping[str, str],
        remote: bool,
        pins: Mapping[str, Digest],
        chain: tuple[str, ...],
    ) -> Kit:
        chain = extended(chain, reference)
        known = pins.get(str(reference))
        origin, digest, data = (
            self._resolve(reference, labels, remote) if known is None else self._pinned(reference, known, remote)
        )
        self._admit(reference, digest)
        manifest = self._parse(Manifest.parse, data, reference)
        self._parse(lambda _: manifest.require_kit(), data, reference)
        kitfile = kitfile_of(manifest, self._config(manifest.config, origin))
        matched = kit_layers(manifest, kitfile)
        own = tuple(
            Layer(
                entry,
                origin,
                self._store,
                max_entries=self._max_entries,
                expansion=self._expansion,
                kit=reference,
                strict=self._strict,
            )
            for entry in matched
            if not filters or (entry.entry is not None and selects(filters, entry.entry))
        )
        inherited: tuple[Layer, ...] = ()
        digests: dict[str, Digest] = {str(reference): digest}
        parent_filters = for_parent(filters)
        if kitfile.parent is not None and parent_filters is not None:
            parent = self._open(
                kitfile.parent.or_latest().held_by(reference), tuple(parent_filters), {}, remote, pins, chain
            )
            inherited = parent.layers
            digests |= parent.pins
        kitfile_bytes = kitfile.to_yaml().encode() if selects_kitfile(filters) and has_kitfile(manifest) else None
        return Kit(reference, digest, manifest, kitfile, kitfile_bytes, inherited + own, digests)

    @staticmethod
    def _parse(parse: Callable[[bytes], Any], data: bytes, reference: Reference | LayoutReference) -> Any:
        try:
            return parse(data)
        except ManifestError as e:
            raise ManifestError(f"{reference}: {e}")

    def _resolve(
        self, reference: Reference | LayoutReference, labels: Mapping[str, str], remote: bool
    ) -> tuple[Origin, Digest, bytes]:
        """Return the origin of the kit, its digest and its manifest.

        With labels, an index in the store takes precedence over a kit of the same name, as in kit.
        """
        stored = None if remote else self._stored_digest(reference, of_index=bool(labels))
        if stored is not None:
            origin: Origin = StoreOrigin()
            digest, data = stored, self._manifest_by_digest(stored, origin)
            if self._lacks_blobs(data):
                origin = self._origin_of(reference)
        else:
            origin = self._origin_of(reference)
            digest, data = self._manifest(reference, origin, remote)
        if not is_kit_index(data):
            if labels:
                name = reference.display if isinstance(reference, Reference) else reference
                self._log.warning("labels are ignored: %s is a ModelKit, not a ModelKit index", name)
            return origin, digest, data
        variant = select(KitIndex.parse(data), labels, reference)
        if stored is not None and isinstance(reference, Reference) and reference.registry != LOCAL:
            origin = self._origin_of(reference)  # the store may lack the kits of an index that it has
        data = self._manifest_by_digest(variant.digest, origin)
        check_media_type(data, variant.descriptor.media_type, f"{reference}: {variant.digest}")
        return origin, variant.digest, data

    def _pinned(
        self, reference: Reference | LayoutReference, digest: Digest, remote: bool
    ) -> tuple[Origin, Digest, bytes]:
        """Return the origin, the digest and the manifest for a reference whose digest is known from ``pins``."""
        is_local = isinstance(reference, Reference) and reference.registry == LOCAL
        if is_local or (not remote and self._stored_digest(reference, of_index=False) == digest):
            origin: Origin = StoreOrigin()
            data = self._manifest_by_digest(digest, origin)
            if self._lacks_blobs(data):
                origin = self._origin_of(reference)
        else:
            origin = self._origin_of(reference)
            data = self._manifest_by_digest(digest, origin)
        return origin, digest, data

    def _lacks_blobs(self, manifest: bytes) -> bool:
        """Return whether the store lacks a layer of a kit. The store may have only the manifest of a kit."""
        try:
            layers = [] if is_kit_index(manifest) else Manifest.parse(manifest).layers
        except ManifestError:
            return False  # the error is reported when the manifest is used
        return not all(self._store.has_sealed(d.digest) or self._store.has_decoded(d.digest) for d in layers)

    def _stored_digest(self, reference: Reference | LayoutReference, *, of_index: bool) -> Digest | None:
        """Return the digest that a reference has in the store; None if its registry or its layout must be asked.

        A digest is looked up in the store only if the reference names no registry. If a kit and an index have the same
        tag, the digest of the kit is returned, or with ``of_index`` the digest of the index.
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
            return reference.digest, self._manifest_by_digest(reference.digest, origin)
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
            expired = known is not None and known.age > self._max_tag_age
            if known is not None and not expired and not isinstance(e, (NotFound, Unauthorized)):
                self.fell_back = True
                self._log.warning(
                    "%s: using %s, the digest of the tag %s ago: %s", reference, known.digest, human_age(known.age), e
                )
                found = known.digest, known.data
            other = self._fallback(reference.with_tag(tag), e) if found is None and not remote else None
            if other is not None:
                self._keep(other[0].digest, other[1])
                return other[0].digest, other[1]
            if found is None and known is not None and expired and not isinstance(e, (NotFound, Unauthorized)):
                age = human_age(known.age)
                raise Unavailable(f"{e}; the last known digest of the tag is {age} old, which --max-tag-age forbids")
            if found is None:
                raise
            return found
        self._keep(descriptor.digest, data)
        self._store.catalog.set(key, {"digest": descriptor.digest, "seen": int(self._clock())})
        return descriptor.digest, data

    def _manifest_by_digest(self, digest: Digest, origin: Origin) -> bytes:
        data = self._store.get(digest)
        if data is None:
            data = origin.manifest(digest)[1]
            self._keep(digest, data)
        return data

    def _last_known(self, key: tuple[str, str]) -> _KnownTag | None:
        """Return the manifest that a tag named when its registry last responded; None if the store does not have it."""
        known = self._store.catalog.get(key)
        try:
            digest = Digest.parse(known["digest"])
            age = max(0, int(self._clock()) - int(known["seen"]))
        except (TypeError, KeyError, ValueError, KitfsError):
            return None
        data = self._store.get(digest)
        return None if data is None else _KnownTag(digest, data, age)

    def _in_time(self, ask: Callable[[], tuple[Descriptor, bytes]], reference: Reference) -> tuple[Descriptor, bytes]:
        """Call ``ask``, and raise Unavailable if it takes more than ``patience`` seconds. Raises the errors of ``ask``.

        The thread that waits for a silent registry ends when its request times out. A late response is not used.
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
        """Store a small blob. If the store fails, only a warning is logged."""
        try:
            self._store.put(digest, data)
        except StoreError as e:
            self._log.warning("cannot store %s: %s", digest, e)


def human_age(seconds: int) -> str:
    """Format an age for people: "42 s", "3 min", "5 h", "2 d"."""
    for unit, width in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * width or (seconds >= width and unit != "d"):
            return f"{seconds // width} {unit}"
    return f"{seconds} s"
