"""Push kits of the store to registries, as KitOps' pkg/cmd/push does.

A blob that the registry has is not sent. If another repository of the registry may have the blob, the registry is asked
to mount it from that repository. Several blobs are sent at once, and the manifest last, so a kit never appears before
its blobs. Uploads are recorded in the store's catalog, so an interrupted push resumes. Threading: ``push`` starts
threads, and returns when they have ended.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from kitfs.content import Destination
from kitfs.errors import KitfsError, NotFound, StoreError, UnsupportedLayer
from kitfs.kit.origin import file_pieces
from kitfs.kit.workspace import Workspace
from kitfs.oci.chunk_tables import blob_digests, tables_of
from kitfs.oci.manifest import FILEPATH, IMAGE_MANIFEST, Descriptor, LayerType, Manifest
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import Moved, Report, Sent, Total
from kitfs.ops.transfer.tables import push_table_list, push_tables
from kitfs.parallel import each
from kitfs.store.store import Store

CONCURRENCY: Final = 5  # blobs that are sent at once, as in kit
NEIGHBOURS: Final = 3  # most repositories from which the registry is asked to mount a blob


def push(
    workspace: Workspace,
    source: Reference,
    destination: Reference,
    *,
    concurrency: int = CONCURRENCY,
    report: Report,
) -> Digest:
    """Push the kit ``source`` of the store to all tags of ``destination``, and return the digest of its manifest.

    Raises RegistryError, NotFound if the kit is not in the store, and StoreError if the store has lost a part of it.
    """
    target = workspace.push_to(destination)
    return push_to(target, workspace.store, source, destination, concurrency=concurrency, report=report)


def push_to(
    target: Destination,
    store: Store,
    source: Reference,
    destination: Reference,
    *,
    concurrency: int = CONCURRENCY,
    report: Report,
) -> Digest:
    """Push a kit to ``target``, the repository of ``destination``. See ``push``."""
    digest = stored_digest(source, store)
    data = store.get(digest)
    if data is None:
        raise NotFound(f"{source.display} is not in the store; pack or pull it first")
    manifest = Manifest.parse(data)
    with contextlib.ExitStack() as stack:
        files = {}
        for descriptor in manifest.blobs:
            file = store.open_sealed(descriptor.digest)
            if file is None:
                raise StoreError(
                    f"{source.display}: the store has lost its blob {descriptor.digest}; pack or pull it again"
                )
            files[descriptor.digest] = stack.enter_context(file)
        for descriptor in manifest.blobs:
            report(Total(str(descriptor.digest), descriptor.size, label(descriptor)))
        tables = {table.digest for table in tables_of(manifest.layers)}
        neighbours = _neighbours(destination, store, set(files) | tables)
        upload_all(manifest.blobs, files, store, target, neighbours, concurrency, report)
    has_tables = push_tables(manifest, store, target, neighbours)
    kit = Descriptor(manifest.media_type or IMAGE_MANIFEST, digest, len(data))
    put_manifest(target, destination, kit.media_type, data)
    report(Sent("manifest", digest, len(data), "uploaded"))
    if has_tables:
        others = next((neighbours[digest] for digest in tables if digest in neighbours), [])
        push_table_list(target, kit, manifest, mount_from=others, hints=store.catalog, report=report)
    return digest


def put_manifest(target: Destination, destination: Reference, media_type: str, data: bytes) -> None:
    """Push a manifest under every tag of a reference.

    If the reference has a digest, the manifest is pushed under its digest. If it has neither a digest nor a tag, the
    manifest is pushed under ``latest``.
    """
    tags = (destination.tag or "latest", *destination.extra_tags)
    for identifier in tags if destination.digest is None else (str(destination.digest),):
        target.put_manifest(identifier, media_type, data)


def stored_digest(reference: Reference, store: Store) -> Digest:
    """Return the digest of the manifest that a reference names in the store. Raises NotFound."""
    if reference.digest is not None:
        return reference.digest
    found = store.refs.get(reference.name, reference.tag or "latest")
    if found is None:
        raise NotFound(f"{reference.display} is not in the store; pack or pull it first")
    return Digest.parse(found["digest"])


def upload_all(
    blobs: Sequence[Descriptor],
    files: dict[Digest, io.FileIO],
    store: Store,
    target: Destination,
    neighbours: dict[Digest, list[str]],
    concurrency: int,
    report: Report,
) -> None:
    """Upload every blob, several at once.

    After an error no further upload begins, and the error is raised when the running uploads have ended.
    """
    stop = threading.Event()

    def send(descriptor: Descriptor) -> None:
        def read(offset: int) -> Iterator[bytes]:
            for piece in file_pieces(files[descriptor.digest], offset):
                if stop.is_set():
                    return
                yield piece

        if stop.is_set():
            return
        how = target.upload(
            descriptor,
            read,
            mount_from=neighbours.get(descriptor.digest, ()),
            hints=store.catalog,
            progress=lambda size: report(Moved(str(descriptor.digest), size)),
        )
        if how != "uploaded":
            report(Moved(str(descriptor.digest), descriptor.size))
        report(Sent("blob", descriptor.digest, descriptor.size, how))

    each(blobs, send, concurrency, stop)


def label(descriptor: Descriptor) -> str:
    """Return the name of a blob for display: its path, or its kind and the start of its digest if it has no path."""
    for name in FILEPATH:
        if name in descriptor.annotations:
            return descriptor.annotations[name]
    try:
        kind = LayerType.parse(descriptor).kind
    except UnsupportedLayer:
        kind = "config"
    return f"{kind} {descriptor.digest.hex[:12]}"


def _neighbours(destination: Reference, store: Store, wanted: set[Digest]) -> dict[Digest, list[str]]:
    """Map each blob to other repositories of the same registry that may have it.

    These are repositories of kits in the store that contain the blob. The repositories are only hints, so damaged
    entries are skipped.
    """
    found: dict[Digest, list[str]] = {}
    with contextlib.suppress(StoreError):
        for name, _, descriptor in store.refs.items():
            registry, _, repository = name.partition("/")
            if registry != destination.registry or repository == destination.repository:
                continue
            with contextlib.suppress(KitfsError, TypeError, KeyError):
                data = store.get(Digest.parse(descriptor["digest"])) or b""
                for digest in wanted & blob_digests(data):
                    others = found.setdefault(digest, [])
                    if repository not in others and len(others) < NEIGHBOURS:
                        others.append(repository)
    return found
