"""Kits between the store and registries: push and pull.

Follows KITOPS §7: blobs that the registry has are not sent, others are mounted from a neighbouring repository where that can be, several at
once, the manifest last, so that a kit is never there in part. What broke off goes on when it is done again: sessions are noted in the
store's catalog. Threading: ``push`` runs threads of its own and returns when they have ended.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar

from kitfs.errors import KitfsError, ManifestError, NotFound, StoreError, StoreFull, UnsupportedLayer
from kitfs.kit import MAX_CHAIN, MAX_CONFIG
from kitfs.oci.gojson import own_json
from kitfs.oci.kitindex import KitIndex, is_kit_index, select
from kitfs.oci.manifest import FILEPATH, IMAGE_MANIFEST, Descriptor, LayerType, Manifest, check_media_type
from kitfs.oci.match import kitfile_of
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import Moved, Noted, Report, Sent, Total, Warned
from kitfs.ops.local import assign, check_whole
from kitfs.store.blob import Blob
from kitfs.store.source import Source
from kitfs.store.store import Store

AT_ONCE: Final = 5  # blobs, as kit
PIECE: Final = 1 << 20
NEIGHBOURS: Final = 3  # repositories that a blob is asked to be mounted from
STRIPE: Final = 4 << 20  # bytes of one request of a pull
STREAMS: Final = 4  # requests at once for one blob
T = TypeVar("T")


class Target(Protocol):
    """The repository that is pushed to; ``registry.client.Repository`` is one."""

    def upload(
        self,
        descriptor: Descriptor,
        read: Callable[[int], Iterator[bytes]],
        *,
        mount_from: Sequence[str] = (),
        journal: Any = None,
        progress: Callable[[int], None] | None = None,
    ) -> str: ...

    def put_manifest(self, identifier: str, media_type: str, data: bytes) -> Digest: ...


def push(source: Reference, destination: Reference, store: Store, target: Target, *, at_once: int = AT_ONCE, report: Report) -> Digest:
    """Push a kit that was packed or pulled here; the digest of its manifest.

    Raises NotFound when it is not in the store, StoreError when the store has lost a part of it, what the registry raises.
    """
    digest = stored_digest(source, store)
    data = store.get(digest)
    if data is None:
        raise NotFound(f"{source.display} is not in the store; pack or pull it first")
    manifest = Manifest.parse(data)
    wanted = {d.digest: d for d in (manifest.config, *manifest.layers)}
    with contextlib.ExitStack() as stack:
        files = {}
        for descriptor in wanted.values():
            file = store.open_sealed(descriptor.digest)
            if file is None:
                raise StoreError(f"{source.display}: the store has lost its blob {descriptor.digest}; pack or pull it again")
            files[descriptor.digest] = stack.enter_context(file)
        for descriptor in wanted.values():
            report(Total(str(descriptor.digest), descriptor.size, label(descriptor)))
        neighbours = _neighbours(destination, store, set(wanted))
        _upload_all(list(wanted.values()), files, store, target, neighbours, at_once, report)
    media_type = manifest.media_type or IMAGE_MANIFEST
    for tag in (destination.tag, *destination.extra_tags) if destination.digest is None else (str(destination.digest),):
        target.put_manifest(tag or "latest", media_type, data)
    report(Sent("manifest", digest, len(data), "uploaded"))
    return digest


def stored_digest(reference: Reference, store: Store) -> Digest:
    """The manifest that a reference means in the store. Raises NotFound."""
    if reference.digest is not None:
        return reference.digest
    found = store.refs.get(reference.name, reference.tag or "latest")
    if found is None:
        raise NotFound(f"{reference.display} is not in the store; pack or pull it first")
    return Digest.parse(found["digest"])


def _upload_all(
    blobs: Sequence[Descriptor],
    files: dict[Digest, io.FileIO],
    store: Store,
    target: Target,
    neighbours: dict[Digest, list[str]],
    at_once: int,
    report: Report,
) -> None:
    """Every blob, several at once; the first error ends them all, once their running requests have."""
    stop = threading.Event()

    def send(descriptor: Descriptor) -> None:
        fd = files[descriptor.digest].fileno()

        def read(offset: int) -> Iterator[bytes]:
            while (data := os.pread(fd, PIECE, offset)) and not stop.is_set():
                yield data
                offset += len(data)

        if stop.is_set():
            return
        how = target.upload(
            descriptor,
            read,
            mount_from=neighbours.get(descriptor.digest, ()),
            journal=store.catalog,
            progress=lambda size: report(Moved(str(descriptor.digest), size)),
        )
        if how != "uploaded":
            report(Moved(str(descriptor.digest), descriptor.size))
        report(Sent("blob", descriptor.digest, descriptor.size, how))

    each(blobs, send, at_once, stop)


def label(descriptor: Descriptor) -> str:
    """What people call a blob: its path where it has one, its kind, its digest."""
    for name in FILEPATH:
        if name in descriptor.annotations:
            return descriptor.annotations[name]
    try:
        kind = LayerType.parse(descriptor).kind
    except UnsupportedLayer:
        kind = "config"
    return f"{kind} {descriptor.digest.hex[:12]}"


def _neighbours(destination: Reference, store: Store, wanted: set[Digest]) -> dict[Digest, list[str]]:
    """Blob → other repositories of the same registry that may have it, since kits of theirs in the store have. A hint: what is damaged is none."""
    found: dict[Digest, list[str]] = {}
    with contextlib.suppress(StoreError):
        for name, _, descriptor in store.refs.items():
            registry, _, repository = name.partition("/")
            if registry != destination.registry or repository == destination.repository:
                continue
            with contextlib.suppress(KitfsError, ValueError, TypeError, AttributeError):
                manifest = own_json(store.get(Digest.parse(descriptor["digest"])) or b"{}")
                for layer in (manifest.get("config") or {}, *(manifest.get("layers") or ())):
                    digest = Digest.parse(layer.get("digest"))
                    others = found.setdefault(digest, []) if digest in wanted else []
                    if repository not in others and len(others) < NEIGHBOURS:
                        others.append(repository)
    return found


class Origin(Protocol):
    """The repository that is pulled from; ``registry.client.Repository`` is one."""

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]: ...

    def blob(self, descriptor: Descriptor) -> Source: ...


def pull(
    reference: Reference,
    store: Store,
    repository_of: Callable[[Reference], Origin],
    *,
    labels: Mapping[str, str] | None = None,
    at_once: int = AT_ONCE,
    report: Report,
) -> Digest:
    """Bring a kit and the kits that its ``model.path`` leads to into the store, verified and pinned; the digest of its manifest.

    Of an index the kit that has the ``labels``: here it takes the tag, as with kit. What a mount has fetched is not fetched again, and what
    broke off goes on. Raises NotFound, IntegrityError, ManifestError for what is no kit, UsageError for labels that do not choose one,
    StoreFull, what the registry raises; nothing is tagged then.
    """
    return _pull(reference, store, repository_of, labels or {}, at_once, report, ())


def _pull(
    reference: Reference,
    store: Store,
    repository_of: Callable[[Reference], Origin],
    labels: Mapping[str, str],
    at_once: int,
    report: Report,
    chain: tuple[str, ...],
) -> Digest:
    chain = (*chain, str(reference))
    if len(set(chain)) < len(chain):
        raise ManifestError(f"found cycle in modelkit references: [{'=>'.join(chain)}]")
    if len(chain) > MAX_CHAIN + 1:
        raise ManifestError(f"reached maximum number of model references: [{'=>'.join(chain)}]")
    origin = repository_of(reference)
    found, data = _chosen(reference, origin, labels, report)
    descriptor = replace(found, media_type=found.media_type or IMAGE_MANIFEST)
    try:
        manifest = Manifest.parse(data)
        _ = manifest.flavor
    except ManifestError as e:
        raise ManifestError(f"reference {reference.display} does not refer to a model: {e}")
    if manifest.config.size > MAX_CONFIG:
        raise ManifestError(f"{reference.display}: a config of {manifest.config.size} bytes: more than {MAX_CONFIG} is too much")
    wanted = {d.digest: d for d in (manifest.config, *manifest.layers)}
    with store.kept([found.digest, *wanted]):
        store.put(found.digest, data)
        _fill_all(list(wanted.values()), origin, store, at_once, report)
        config = store.get(manifest.config.digest)
        parent = kitfile_of(manifest, config or b"").parent
        if parent is not None:
            report(Noted(f"Pulling referenced image {parent}"))
            _pull(parent.or_latest().held_by(reference), store, repository_of, {}, at_once, report, chain)
        everything = [found.digest, *wanted]
        check_whole(store, everything, reference.display)
        assign(store, reference, descriptor)
        check_whole(store, everything, reference.display)
    return found.digest


def _chosen(reference: Reference, origin: Origin, labels: Mapping[str, str], report: Report) -> tuple[Descriptor, bytes]:
    """What a reference means, of an index the kit that the labels choose."""
    found, data = origin.manifest(reference.digest or reference.tag or "latest")
    if not is_kit_index(data):
        if labels:
            report(Warned(f"labels are ignored: {reference.display} is a ModelKit, not a ModelKit index"))
        return found, data
    variant = select(KitIndex.parse(data), labels, reference)
    report(Noted(f"Index {reference.display} refers to ModelKit {variant.name(reference) or variant.digest}"))
    found, data = origin.manifest(variant.digest)
    check_media_type(data, variant.descriptor.media_type, f"{reference.display}: {variant.digest}")
    return found, data


def _fill_all(blobs: Sequence[Descriptor], origin: Origin, store: Store, at_once: int, report: Report) -> None:
    """Fill and verify every blob, several at once."""
    stop = threading.Event()

    def fetch(descriptor: Descriptor) -> None:
        if stop.is_set():
            return
        name = str(descriptor.digest)
        if store.has_sealed(descriptor.digest):
            report(Moved(name, descriptor.size))
            return
        with contextlib.closing(store.blob(descriptor.digest, size=descriptor.size, source=origin.blob(descriptor))) as blob:
            fill(blob, descriptor.size, lambda size: report(Moved(name, size)), stop)
            if not stop.is_set():
                blob.verify()
                report(Sent("blob", descriptor.digest, descriptor.size, "pulled"))

    for descriptor in blobs:
        report(Total(str(descriptor.digest), descriptor.size, label(descriptor)))
    each(blobs, fetch, at_once, stop)


def fill(blob: Blob, size: int, moved: Callable[[int], None], stop: threading.Event) -> None:
    """Fetch all of a blob, by several requests at once where its registry has ranges. Raises StoreFull when the store cannot keep it."""
    places = iter(range(0, size, STRIPE))
    lock = threading.Lock()
    failed = threading.Event()  # ends this blob's other requests; ``stop`` belongs to the caller, for whom a full store may be no end

    def work() -> None:
        while not (stop.is_set() or failed.is_set()):
            with lock:
                at = next(places, None)
            if at is None:
                return
            if not blob.fetch(at, min(STRIPE, size - at)):
                raise StoreFull(f"{blob}: no space left in the store; make room, or choose another with --cache-dir")
            moved(min(STRIPE, size - at))

    if size <= STRIPE or not blob.ranged:
        work()
    else:
        each([None] * min(STREAMS, -(-size // STRIPE)), lambda _: work(), STREAMS, failed)


def each(items: Sequence[T], do: Callable[[T], None], at_once: int, stop: threading.Event) -> None:
    """Do something for every item on threads; the first error ends the others, and is raised when they have.

    KeyboardInterrupt is raised at once: a request that waits for a registry may do so for long.
    """
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="kitfs-transfer")
    try:
        for future in as_completed([pool.submit(do, item) for item in items]):
            future.result()
    except BaseException as e:
        stop.set()
        pool.shutdown(wait=isinstance(e, Exception), cancel_futures=True)
        raise
    pool.shutdown()
