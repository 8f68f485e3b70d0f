"""Manage indexes of kits in the store and at registries, as KitOps 1.17 does (pkg/cmd/index).

Tags of indexes are separate from tags of kits (``Store.indexes``), so an index and a kit may have the same name. As in
kit, an index lists only kits of its own repository. An index does not pin the kits that it lists. A listed kit is
pinned only by a tag of its own. Threading: each call uses one thread, except that ``push`` starts threads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from kitfs.content import Manifests
from kitfs.errors import KitfsError, ManifestError, NotFound, StoreError, Unauthorized, UsageError
from kitfs.gocompat.json import dumps
from kitfs.kit.workspace import Workspace
from kitfs.modelkit.index import KIT_SIZE, ORIGINAL_TAG, Edits, KitIndex, Variant, is_kit_index
from kitfs.oci.manifest import IMAGE_INDEX, IMAGE_MANIFEST, Descriptor, Manifest
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import Report, Sent
from kitfs.ops.library.remove import free
from kitfs.ops.library.tags import blob_of, find
from kitfs.ops.transfer.push import CONCURRENCY, push_to, put_manifest
from kitfs.store.store import Store

NO_EDITS: Final = Edits({}, ())


class IndexDocument(NamedTuple):
    """An index: its digest, its parsed value and its bytes."""

    digest: Digest
    value: KitIndex
    data: bytes


class IndexRow(NamedTuple):
    """An index of the store.

    ``name``: its registry/repository. ``kits``: the number of kits that it lists, or None if it cannot be read.
    """

    name: str
    digest: Digest
    tags: tuple[str, ...]
    kits: int | None


class Deleted(NamedTuple):
    """The result of a deletion: the deleted tags of ``name`` (registry/repository).

    ``whole``: whether the index itself was deleted.
    """

    name: str
    digest: Digest
    tags: tuple[str, ...]
    whole: bool


def create(store: Store, reference: Reference) -> Digest:
    """Create an empty index, and return its digest.

    Raises StoreError, and UsageError if an index already has the tag.
    """
    if _tagged(store, reference) is not None:
        raise UsageError(f"index {reference.display} already exists")
    return _write(store, reference, KitIndex())


def stored(store: Store, reference: Reference) -> IndexDocument:
    """Read an index of the store by tag or digest.

    Raises NotFound or ManifestError, and StoreError if its bytes are lost.
    """
    digest = reference.digest or _tagged(store, reference)
    if digest is None or not any(row.name == reference.name and row.digest == digest for row in listed(store)):
        raise NotFound(f"could not find index {reference.display} in local storage")
    data = store.get(digest)
    if data is None:
        raise StoreError(f"the store has lost its blob {digest}; pull or create the index again")
    return IndexDocument(digest, KitIndex.parse(data), data)


def fetched(origin: Manifests, reference: Reference) -> IndexDocument:
    """Read an index of a registry.

    Raises NotFound or RegistryError, and ManifestError if it is not an index of kits.
    """
    descriptor, data = origin.manifest(reference.identifier or "latest")
    return IndexDocument(descriptor.digest, KitIndex.parse(data), data)


def listed(store: Store) -> list[IndexRow]:
    """List the indexes of the store, sorted by repository and digest. Raises StoreError for a damaged tag."""
    tags: dict[tuple[str, Digest], list[str]] = defaultdict(list)
    for name, tag, value in store.indexes.items():
        tags[name, Descriptor.from_json(value, f"the tag {name}:{tag}").digest].append(tag)
    return [
        IndexRow(name, digest, tuple(sorted(names)), _count(store, digest))
        for (name, digest), names in sorted(tags.items())
    ]


def _count(store: Store, digest: Digest) -> int | None:
    try:
        return len(KitIndex.parse(store.get(digest) or b"").variants)
    except ManifestError:
        return None


def add(
    workspace: Workspace,
    reference: Reference,
    kit: Reference,
    *,
    remote: bool = False,
    labels: Edits = NO_EDITS,
    annotations: Edits = NO_EDITS,
) -> Digest:
    """Add a kit to an index, or change its labels and annotations, and return the new digest of the index.

    The kit is looked up in the store, or with ``remote`` at its registry. Raises NotFound, UsageError for a kit of
    another repository, and ManifestError if ``kit`` does not name a kit.
    """
    if kit.name != reference.name:
        raise UsageError(
            f"ModelKit {kit.display} is not in the same repository as index {reference.display}; an index may only "
            "reference ModelKits in its own repository"
        )
    store = workspace.store
    descriptor, manifest = _kit(store, kit, workspace.client.repository(kit) if remote else None)
    found = _required(store, reference)
    known = found.value.get(descriptor.digest) or Variant(descriptor)
    recorded = dict(known.descriptor.annotations) | {KIT_SIZE: str(sum(layer.size for layer in manifest.layers))}
    if kit.digest is None and kit.tag is not None:
        recorded[ORIGINAL_TAG] = kit.tag
    entry = replace(descriptor, annotations=annotations.applied(recorded), extra=known.descriptor.extra)
    return _write(store, reference, found.value.added(Variant(entry, labels.applied(known.labels))))


def _kit(store: Store, kit: Reference, origin: Manifests | None) -> tuple[Descriptor, Manifest]:
    """Return a kit's descriptor for an index, and its manifest.

    The manifest is read from ``origin``, or from the store if ``origin`` is None.
    """
    if origin is not None:
        found, data = origin.manifest(kit.identifier)
        digest = found.digest
    else:
        local = find(store, kit)
        if local is None:
            raise NotFound(
                f"could not find ModelKit {kit.display} in local storage; use --remote to resolve it in its registry"
            )
        digest = local.digest
        data = blob_of(store, digest)
    try:
        manifest = Manifest.parse(data)
        manifest.require_kit()
    except ManifestError as e:
        raise ManifestError(f"{kit.display}: {e}")
    return Descriptor(
        manifest.media_type or IMAGE_MANIFEST, digest, len(data), artifact_type=manifest.artifact_type
    ), manifest


def remove(store: Store, reference: Reference, kit: Reference) -> tuple[Digest, Digest]:
    """Remove a kit from an index. The kit is named by its digest or by its tag in the store.

    Returns the digest of the kit and the new digest of the index. Raises NotFound.
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
    """Delete a tag of an index. With ``force`` or a digest, or for the last tag, the index itself is deleted.

    The kits that the index lists are not deleted. Raises NotFound, and UsageError if the reference names a kit.
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
    """Delete every index of the store. The kits that they list are not deleted."""
    return [_delete(store, row) for row in listed(store)]


def _delete(store: Store, row: IndexRow) -> Deleted:
    for tag in row.tags:
        store.indexes.delete(row.name, tag)
    free(store, {str(row.digest)})
    return Deleted(row.name, row.digest, row.tags, whole=True)


def pull(workspace: Workspace, reference: Reference) -> Digest:
    """Copy an index from its registry into the store, without its kits, and return its digest.

    Raises NotFound, RegistryError, ManifestError.
    """
    found = fetched(workspace.client.repository(reference), reference)
    return _save(workspace.store, reference, found.digest, found.data)


def push(
    workspace: Workspace,
    source: Reference,
    destination: Reference,
    *,
    concurrency: int = CONCURRENCY,
    report: Report,
) -> Digest:
    """Push the index ``source`` of the store to all tags of ``destination``, and return its digest.

    Kits of the index that the registry does not have are pushed first. Raises the errors of pushing a kit. Raises
    NotFound if the store does not have the index, or if a kit is neither at the registry nor in the store.
    """
    store, target = workspace.store, workspace.push_to(destination)
    found = stored(store, source)
    missing = [variant for variant in found.value.variants if not _has(target, variant.digest)]
    for variant in missing:
        data = store.get(variant.digest)
        if data is None or not _whole(store, data):
            where = f"{destination.name} does not contain every ModelKit the index references"
            raise NotFound(
                f"{where}: {variant.name(source) or variant.digest} is not there, and not complete in the store; "
                "push or pull it first"
            )
    for variant in missing:
        push_to(
            target,
            store,
            replace(source, tag=None, digest=variant.digest),
            replace(destination, tag=None, digest=variant.digest, extra_tags=()),
            concurrency=concurrency,
            report=report,
        )
    put_manifest(target, destination, IMAGE_INDEX, found.data)
    report(Sent("index", found.digest, len(found.data), "uploaded"))
    return found.digest


def _has(target: Manifests, digest: Digest) -> bool:
    try:
        target.manifest(digest)
    except (NotFound, Unauthorized):
        return False  # some registries return 401 or 403 for a missing manifest; a forbidden push fails later
    return True


def _whole(store: Store, manifest: bytes) -> bool:
    """Return whether the store has verified copies of the config and all layers of a manifest."""
    try:
        parsed = Manifest.parse(manifest)
    except ManifestError:
        return False
    return all(store.has_sealed(blob.digest) for blob in parsed.blobs)


def size_of(variant: Variant, manifest: Callable[[Digest], bytes | None]) -> int | None:
    """Return the size in bytes of all layers of a listed kit, from the index or from the kit's manifest.

    ``manifest`` returns the manifest that has a digest, or None if it is not available. Returns None if the size is
    unknown.
    """
    if variant.size is not None:
        return variant.size
    try:
        data = manifest(variant.digest)
        return None if data is None else sum(layer.size for layer in Manifest.parse(data).layers)
    except KitfsError:
        return None


def as_json(document: IndexDocument, reference: Reference, sizes: Sequence[int | None]) -> bytes:
    """Return the JSON that kit's ``index info --format json`` prints, without indentation."""
    kits = []
    for variant, size in zip(document.value.variants, sizes, strict=True):
        name = variant.name(reference)
        head = dumps(({"reference": name} if name else {}) | {"digest": str(variant.digest), "size": size}).decode()
        labels = ",".join(f"{dumps(key).decode()}:{variant.labels[key]}" for key in sorted(variant.labels))
        kits.append(f'{head[:-1]},"labels":{{{labels}}},"annotations":{dumps(variant.notes()).decode()}}}')
    head = dumps({"reference": reference.display, "digest": str(document.digest)}).decode()
    return f'{head[:-1]},"modelKits":[{",".join(kits)}]}}'.encode()


def _tagged(store: Store, reference: Reference) -> Digest | None:
    """Return the digest of the index that a reference names by its tag, or None if the store has no such index."""
    value = store.indexes.get(reference.name, reference.tag or "latest")
    return None if value is None else Digest.parse(value["digest"])


def _required(store: Store, reference: Reference) -> IndexDocument:
    """Read an index that a verb will change. Raises NotFound with the advice to create the index."""
    try:
        return stored(store, reference)
    except NotFound as e:
        raise NotFound(f"{e}; use kitfs index create to create it")


def _write(store: Store, reference: Reference, index: KitIndex) -> Digest:
    data = index.to_json()
    return _save(store, reference, Digest.of(data), data)


def _save(store: Store, reference: Reference, digest: Digest, data: bytes) -> Digest:
    """Store an index and set its tag. An index that loses its last tag is removed."""
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
