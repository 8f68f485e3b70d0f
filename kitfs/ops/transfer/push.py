"""Kits between the store and registries: push and pull.

Follows KITOPS §7: blobs that the registry has are not sent, others are mounted from a neighbouring repository where
that can be, several at once, the manifest last, so that a kit is never there in part. What broke off goes on when it
is done again: sessions are noted in the store's catalog. Threading: ``push`` runs threads of its own and returns when
they have ended.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Final

from kitfs.content import Destination
from kitfs.errors import KitfsError, NotFound, StoreError, UnsupportedLayer
from kitfs.gocompat.json import own_json
from kitfs.oci.manifest import FILEPATH, IMAGE_MANIFEST, Descriptor, LayerType, Manifest
from kitfs.oci.names import Digest, Reference
from kitfs.openfile import PIECE
from kitfs.ops.events import Moved, Report, Sent, Total
from kitfs.parallel import each
from kitfs.store.store import Store

AT_ONCE: Final = 5  # blobs, as kit
NEIGHBOURS: Final = 3  # repositories that a blob is asked to be mounted from


def push(
    source: Reference,
    destination: Reference,
    store: Store,
    target: Destination,
    *,
    concurrency: int = AT_ONCE,
    report: Report,
) -> Digest:
    """Push a kit that was packed or pulled here; the digest of its manifest.

    Raises NotFound when it is not in the store, StoreError when the store has lost a part of it, what the registry
    raises.
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
                raise StoreError(
                    f"{source.display}: the store has lost its blob {descriptor.digest}; pack or pull it again"
                )
            files[descriptor.digest] = stack.enter_context(file)
        for descriptor in wanted.values():
            report(Total(str(descriptor.digest), descriptor.size, label(descriptor)))
        neighbours = _neighbours(destination, store, set(wanted))
        _upload_all(list(wanted.values()), files, store, target, neighbours, concurrency, report)
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
    target: Destination,
    neighbours: dict[Digest, list[str]],
    concurrency: int,
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
            hints=store.catalog,
            progress=lambda size: report(Moved(str(descriptor.digest), size)),
        )
        if how != "uploaded":
            report(Moved(str(descriptor.digest), descriptor.size))
        report(Sent("blob", descriptor.digest, descriptor.size, how))

    each(blobs, send, concurrency, stop)


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
    """Blob → other repositories of the same registry that may have it, since kits of theirs in the store have. A
    hint: what is damaged is none.
    """
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
