"""Indexes of kits in the store and at registries: kit's ``index`` verbs (KITOPS §8; KitOps 1.17 pkg/cmd/index).

An index has tags of its own (``Store.indexes``), so that it may share a name with a kit, and as kit does it lists
kits of its own repository only. The kits are not held by it: they stay or go by their own names. No printing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple, Protocol

from kitfs.content import Destination, Manifests
from kitfs.errors import KitfsError, ManifestError, NotFound, StoreError, Unauthorized, UsageError
from kitfs.gocompat.json import dumps
from kitfs.modelkit.index import KIT_SIZE, ORIGINAL_TAG, Edits, KitIndex, Variant, is_kit_index
from kitfs.oci.manifest import IMAGE_INDEX, IMAGE_MANIFEST, Descriptor, Manifest
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import Report, Sent
from kitfs.ops.library.remove import free
from kitfs.ops.library.tags import find
from kitfs.ops.transfer import push as transfer
from kitfs.store.store import Store

NO_EDITS: Final = Edits({}, ())


class Target(Destination, Manifests, Protocol):
    """The repository that is pushed to: the registry's own answers, no mirror's."""


class Found(NamedTuple):
    """An index, its digest and its bytes."""

    digest: Digest
    value: KitIndex
    data: bytes


class Listed(NamedTuple):
    """An index of the store: its repository, digest and tags, and how many kits it lists (None: it cannot be read)."""

    name: str
    digest: Digest
    tags: tuple[str, ...]
    kits: int | None


class Deleted(NamedTuple):
    """What went: tags of ``name`` (registry/repository), and the index itself when ``whole`` is True."""

    name: str
    digest: Digest
    tags: tuple[str, ...]
    whole: bool


def create(store: Store, reference: Reference) -> Digest:
    """An empty index; its digest. Raises UsageError when the tag is one already, StoreError."""
    if _tagged(store, reference) is not None:
        raise UsageError(f"index {reference.display} already exists")
    return _write(store, reference, KitIndex())


def stored(store: Store, reference: Reference) -> Found:
    """An index of the store, by tag or digest. Raises NotFound, StoreError when its bytes are lost, ManifestError."""
    digest = reference.digest or _tagged(store, reference)
    if digest is None or not any(row.name == reference.name and row.digest == digest for row in listed(store)):
        raise NotFound(f"could not find index {reference.display} in local storage")
    data = store.get(digest)
    if data is None:
        raise StoreError(f"the store has lost its blob {digest}; pull or create the index again")
    return Found(digest, KitIndex.parse(data), data)


def fetched(origin: Manifests, reference: Reference) -> Found:
    """An index of a registry. Raises NotFound, RegistryError, ManifestError if the data is not an index of kits."""
    descriptor, data = origin.manifest(reference.identifier or "latest")
    return Found(descriptor.digest, KitIndex.parse(data), data)


def listed(store: Store) -> list[Listed]:
    """Every index of the store, by repository and digest. Raises StoreError for a damaged tag."""
    tags: dict[tuple[str, Digest], list[str]] = defaultdict(list)
    for name, tag, value in store.indexes.items():
        tags[name, Descriptor.from_json(value, f"the tag {name}:{tag}").digest].append(tag)
    return [
        Listed(name, digest, tuple(sorted(there)), _count(store, digest))
        for (name, digest), there in sorted(tags.items())
    ]


def _count(store: Store, digest: Digest) -> int | None:
    try:
        return len(KitIndex.parse(store.get(digest) or b"").variants)
    except ManifestError:
        return None


def add(
    store: Store,
    reference: Reference,
    kit: Reference,
    *,
    origin: Manifests | None = None,
    labels: Edits = NO_EDITS,
    annotations: Edits = NO_EDITS,
) -> Digest:
    """Let an index list a kit of its repository, or change what it says of it; the new digest of the index.

    The kit is the store's, or with ``origin`` its registry's. Raises UsageError for a kit of another repository,
    NotFound, ManifestError if the manifest is not a kit's.
    """
    if kit.name != reference.name:
        told = "an index may only reference ModelKits in its own repository"
        raise UsageError(f"ModelKit {kit.display} is not in the same repository as index {reference.display}; {told}")
    descriptor, manifest = _kit(store, kit, origin)
    found = _required(store, reference)
    known = found.value.get(descriptor.digest) or Variant(descriptor)
    recorded = dict(known.descriptor.annotations) | {KIT_SIZE: str(sum(layer.size for layer in manifest.layers))}
    if kit.digest is None and kit.tag is not None:
        recorded[ORIGINAL_TAG] = kit.tag
    entry = replace(descriptor, annotations=annotations.applied(recorded), extra=known.descriptor.extra)
    return _write(store, reference, found.value.added(Variant(entry, labels.applied(known.labels))))


def _kit(store: Store, kit: Reference, origin: Manifests | None) -> tuple[Descriptor, Manifest]:
    """(the descriptor that an index has of a kit, its manifest)."""
    if origin is not None:
        found, data = origin.manifest(kit.identifier)
        digest = found.digest
    else:
        local = find(store, kit)
        if local is None:
            raise NotFound(
                f"could not find ModelKit {kit.display} in local storage; use --remote to resolve it in its registry"
            )
        digest, there = local.digest, store.get(local.digest)
        if there is None:
            raise StoreError(f"the store has lost its blob {digest}; pull or pack the kit again")
        data = there
    try:
        manifest = Manifest.parse(data)
        manifest.require_kit()
    except ManifestError as e:
        raise ManifestError(f"{kit.display}: {e}")
    return Descriptor(
        manifest.media_type or IMAGE_MANIFEST, digest, len(data), artifact_type=manifest.artifact_type
    ), manifest


def remove(store: Store, reference: Reference, kit: Reference) -> tuple[Digest, Digest]:
    """Let an index no longer list a kit, by its digest or its tag in the store; (the kit's digest, the new one of the
    index).

    Raises NotFound.
    """
    found = _required(store, reference)
    digest = kit.digest
    if digest is None:
        local = find(store, kit)
        if local is None:
            raise NotFound(f"could not resolve {kit.display} in local storage; specify the entry by digest instead")
        digest = local.digest
    if found.value.get(digest) is None:
        raise NotFound(f"index {reference.display} does not contain {digest}")
    return digest, _write(store, reference, found.value.removed(digest))


def delete(store: Store, reference: Reference, *, force: bool = False) -> Deleted:
    """Delete a tag, and with the last one, ``force`` or a digest the index itself; its kits stay. Raises NotFound,
    UsageError for a kit.
    """
    digest = reference.digest or _tagged(store, reference)
    row = next((row for row in listed(store) if row.name == reference.name and row.digest == digest), None)
    if row is None:
        if find(store, reference) is not None:
            raise UsageError(f"{reference.display} is not a ModelKit index; use kitfs remove to remove a ModelKit")
        raise NotFound(f"could not find index {reference.display} in local storage")
    tag = reference.tag or "latest"
    if reference.digest is None and not force and len(row.tags) > 1:
        store.indexes.delete(row.name, tag)
        return Deleted(row.name, row.digest, (tag,), whole=False)
    return _delete(store, row)


def delete_all(store: Store) -> list[Deleted]:
    """Delete every index; their kits stay."""
    return [_delete(store, row) for row in listed(store)]


def _delete(store: Store, row: Listed) -> Deleted:
    for tag in row.tags:
        store.indexes.delete(row.name, tag)
    free(store, {str(row.digest)})
    return Deleted(row.name, row.digest, row.tags, whole=True)


def pull(store: Store, reference: Reference, origin: Manifests) -> Digest:
    """Bring an index into the store, byte for byte; its kits are left where they are. Raises NotFound, RegistryError,
    ManifestError.
    """
    found = fetched(origin, reference)
    return _save(store, reference, found.digest, found.data)


def push(
    source: Reference,
    destination: Reference,
    store: Store,
    target: Target,
    *,
    concurrency: int = transfer.AT_ONCE,
    report: Report,
) -> Digest:
    """Push an index of the store: first those of its kits that the registry does not have, with their blobs, then the
    index itself.

    Raises NotFound for an index that is not in the store, or when a kit is neither there nor here; what
    ``transfer.push`` raises.
    """
    found = stored(store, source)
    missing = [variant for variant in found.value.variants if not _has(target, variant.digest)]
    for variant in missing:
        data = store.get(variant.digest)
        if data is None or not _whole(store, data):
            where = f"{destination.name} does not contain every ModelKit the index references"
            raise NotFound(
                f"{where}: {variant.name(source) or variant.digest} is neither there nor, whole, in the store; push or pull it first"
            )
    for variant in missing:
        named = replace(source, tag=None, digest=variant.digest)
        transfer.push(
            named,
            replace(destination, tag=None, digest=variant.digest, extra_tags=()),
            store,
            target,
            concurrency=concurrency,
            report=report,
        )
    for tag in (
        (destination.tag or "latest", *destination.extra_tags)
        if destination.digest is None
        else (str(destination.digest),)
    ):
        target.put_manifest(tag, IMAGE_INDEX, found.data)
    report(Sent("index", found.digest, len(found.data), "uploaded"))
    return found.digest


def _has(target: Manifests, digest: Digest) -> bool:
    try:
        target.manifest(digest)
    except (NotFound, Unauthorized):
        return False  # some answer 401 or 403 for what is not there; a push tells whether it may be
    return True


def _whole(store: Store, manifest: bytes) -> bool:
    """Whether config and layers of a manifest are in the store, verified."""
    try:
        parsed = Manifest.parse(manifest)
    except ManifestError:
        return False
    return all(store.has_sealed(d.digest) for d in (parsed.config, *parsed.layers))


def size_of(variant: Variant, manifest: Callable[[Digest], bytes | None]) -> int | None:
    """Bytes of a kit's layers: as recorded, else by its manifest, where ``manifest`` can give it."""
    if variant.size is not None:
        return variant.size
    try:
        data = manifest(variant.digest)
        return None if data is None else sum(layer.size for layer in Manifest.parse(data).layers)
    except KitfsError:
        return None


def as_json(found: Found, reference: Reference, sizes: Sequence[int | None]) -> bytes:
    """What kit's ``index info --format json`` prints, before it is indented."""
    kits = []
    for variant, size in zip(found.value.variants, sizes, strict=True):
        name = variant.name(reference)
        head = dumps(({"reference": name} if name else {}) | {"digest": str(variant.digest), "size": size}).decode()
        labels = ",".join(f"{dumps(key).decode()}:{variant.labels[key]}" for key in sorted(variant.labels))
        kits.append(f'{head[:-1]},"labels":{{{labels}}},"annotations":{dumps(variant.notes()).decode()}}}')
    head = dumps({"reference": reference.display, "digest": str(found.digest)}).decode()
    return f'{head[:-1]},"modelKits":[{",".join(kits)}]}}'.encode()


def _tagged(store: Store, reference: Reference) -> Digest | None:
    """What a tag means among the indexes."""
    value = store.indexes.get(reference.name, reference.tag or "latest")
    return None if value is None else Digest.parse(value["digest"])


def _required(store: Store, reference: Reference) -> Found:
    """An index that is to be changed. Raises NotFound."""
    try:
        return stored(store, reference)
    except NotFound as e:
        raise NotFound(f"{e}; use kitfs index create to create it")


def _write(store: Store, reference: Reference, index: KitIndex) -> Digest:
    data = index.to_json()
    return _save(store, reference, Digest.of(data), data)


def _save(store: Store, reference: Reference, digest: Digest, data: bytes) -> Digest:
    """Keep an index and let the tag mean it; the one that it meant before goes when nothing else means it."""
    assert is_kit_index(data)
    before = _tagged(store, reference)
    with store.pin([digest]):
        store.put(digest, data)
        store.indexes.set(
            reference.name, reference.tag or "latest", Descriptor(IMAGE_INDEX, digest, len(data)).to_json()
        )
    if before is not None and before != digest:
        free(store, {str(before)})
    return digest
