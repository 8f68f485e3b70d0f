"""A kit as an ordinary OCI image, for Kubernetes image volumes, containerd and other programs that do not know kits.

Follows image-spec v1.1 (config.md, layer.md): a new config and manifest over the very same layer blobs, mounted from
the kit's repository where that is at the same registry, so that nothing is sent; and one small layer with the
Kitfile, so that the image shows the tree of a mount. Only what is a tar can be a layer of an image. The same kit
gives the same image. No printing; threads of its own, which end with it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from kitfs.content import Destination, Source
from kitfs.errors import LayerError, NotFound, UnsupportedLayer, UsageError
from kitfs.gocompat.json import dumps
from kitfs.kit.kit import Kit
from kitfs.kit.layer import Layer
from kitfs.kit.layering import PlacedLayer, merge
from kitfs.layers.codec import decode
from kitfs.layers.names import clean
from kitfs.layers.tar_writer import TRAILER, header, padding
from kitfs.oci.manifest import CREATED, IMAGE_INDEX, IMAGE_MANIFEST, Descriptor, Manifest
from kitfs.oci.names import Digest, Reference
from kitfs.openfile import PIECE
from kitfs.ops.events import Moved, Noted, Report, Sent, Total
from kitfs.ops.transfer.push import AT_ONCE
from kitfs.parallel import each
from kitfs.store.store import Store

IMAGE_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
IMAGE_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
WHITEOUT: Final = ".wh."  # what a name begins with that takes another away (layer.md, "Whiteouts")
DEFAULT_PLATFORM: Final = ("linux", "amd64", "")

Platform = tuple[str, str, str]  # os, architecture, variant ("": none)


class Converted(NamedTuple):
    """The image: digest of its manifest, or of its index when it has several platforms; bytes of layers by how they
    came there.
    """

    digest: Digest
    uploaded: int
    mounted: int
    existed: int


class _Blob(NamedTuple):
    """A blob of the image; ``read`` gives its bytes from an offset on."""

    descriptor: Descriptor
    read: Callable[[int], Iterator[bytes]]
    mount_from: Sequence[str]
    label: str


def convert(
    kit: Kit,
    image: Reference,
    store: Store,
    target: Destination,
    *,
    platforms: Sequence[Platform] = (DEFAULT_PLATFORM,),
    concurrency: int = AT_ONCE,
    report: Report,
) -> Converted:
    """Make ``image`` of a kit. With several ``platforms`` it is an index, and they share everything but a config.

    Raises UsageError for a digest as the image's name, UnsupportedLayer for a layer that no image can have, what
    reading a layer or pushing it raises; nothing is tagged then.
    """
    if image.digest is not None:
        raise UsageError(f"{image.display}: an image gets its own digest when it is made; name it by a tag")
    descriptors = [_layer(layer) for layer in kit.layers]
    _check_names([layer for layer in kit.layers if not layer.compressed or store.has_decoded(layer.digest)])
    diff_ids = [_diff_id(layer, report) for layer in kit.layers]
    steps = [f"{layer.type.kind} {layer.path or '.'}" for layer in kit.layers]
    kitfile = None if kit.kitfile_bytes is None else _kitfile_layer(kit.kitfile_bytes)
    blobs = []
    with ExitStack() as stack:
        for layer, descriptor in zip(kit.layers, descriptors, strict=True):
            blobs.append(
                _Blob(
                    descriptor, _reader(layer, store, stack), _neighbours(layer, image), layer.path or layer.type.kind
                )
            )
        if kitfile is not None:
            descriptor = Descriptor(IMAGE_LAYER, Digest.of(kitfile), len(kitfile))
            blobs.append(_given(descriptor, kitfile, "Kitfile"))
            descriptors.append(descriptor)
            diff_ids.append(descriptor.digest)
            steps.append("Kitfile")
        manifests = []
        for platform in dict.fromkeys(platforms):
            config = _config(kit, platform, diff_ids, steps)
            blob = Descriptor(IMAGE_CONFIG, Digest.of(config), len(config))
            blobs.append(_given(blob, config, "config"))
            annotations = {CREATED: _created(kit)} if kit.created else {}
            manifests.append(
                (platform, Manifest(blob, tuple(descriptors), IMAGE_MANIFEST, annotations=annotations).to_json())
            )
        sent = _send(
            {blob.descriptor.digest: blob for blob in blobs},
            {layer.digest for layer in kit.layers},
            store,
            target,
            concurrency,
            report,
        )
    return Converted(_name(image, manifests, target, report), sent["uploaded"], sent["mounted"], sent["exists"])


def _layer(layer: Layer) -> Descriptor:
    """The descriptor of a layer in the image. Raises UnsupportedLayer."""
    if layer.type.format != "tar":
        told = (
            "is one file, not a tar, and an OCI image has tars only; --layer-format tar packs one, --only leaves it out"
        )
        raise UnsupportedLayer(f"layer {layer.digest} ({layer.type.kind} {layer.path or '?'}) {told}")
    suffix = "" if layer.type.compression == "none" else f"+{layer.type.compression}"
    return Descriptor(IMAGE_LAYER + suffix, layer.digest, layer.size)


def _check_names(layers: Sequence[Layer]) -> None:
    """Look for names that an image would show otherwise, in layers where that costs no whole layer. Raises
    UnsupportedLayer, LayerError.

    In an image the later entry of a name always wins, whatever it takes away (containerd, Docker).
    """
    for layer in layers:
        index = layer.index()
        for path in index.members:
            if any(name.startswith(WHITEOUT) for name in path.split("/")):
                raise UnsupportedLayer(
                    f"layer {layer.digest} holds {path!r}: in an OCI image {WHITEOUT} in front of a name takes a file away"
                )
        for skipped in index.skipped:
            path = clean(skipped.name)[0]
            if path and index.get(path) is not None:
                told = f"holds {path!r} more than once, and of those a mount leaves out {skipped.text}"
                raise UnsupportedLayer(f"layer {layer.digest} {told}; an OCI image would show that one")
    merged = merge([PlacedLayer(f"layer {layer.digest}", layer.index(), layer.path) for layer in layers])
    if merged.left_out:
        raise UnsupportedLayer(f"{merged.left_out[0]}; an OCI image would show it")


def _diff_id(layer: Layer, report: Report) -> Digest:
    """The digest of the tar: what the Kitfile says of a compressed one, else found out by reading it. Raises
    LayerError.
    """
    if not layer.compressed:
        return layer.digest
    if layer.entry is not None and layer.entry.diff_id is not None:
        return layer.entry.diff_id
    report(Noted(f"Reading layer {layer.digest}, whose diffId the kit does not say"))
    hasher = Digest.of(b"").hasher()
    try:
        for piece in decode(layer.wire().stream(), layer.type.compression):
            hasher.update(piece)
    except LayerError as e:
        raise LayerError(f"layer {layer.digest}: {e}")
    return Digest.parse(f"sha256:{hasher.hexdigest()}")


def _kitfile_layer(data: bytes) -> bytes:
    """A tar with the Kitfile, as kit writes files."""
    return header(b"Kitfile", directory=False, mode=0o644, size=len(data)) + data + padding(len(data)) + TRAILER


def _config(kit: Kit, platform: Platform, diff_ids: Sequence[Digest], steps: Sequence[str]) -> bytes:
    """The image's config, in Go's field order."""
    system, architecture, variant = platform
    created = {"created": _created(kit)} if kit.created else {}
    value: dict[str, Any] = dict(created)
    value |= {"architecture": architecture, "os": system} | ({"variant": variant} if variant else {})
    value |= {"config": {}, "rootfs": {"type": "layers", "diff_ids": [str(digest) for digest in diff_ids]}}
    if steps:
        value["history"] = [{**created, "created_by": step, "comment": f"kit {kit.digest}"} for step in steps]
    return dumps(value)


def _created(kit: Kit) -> str:
    return datetime.fromtimestamp(kit.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _neighbours(layer: Layer, image: Reference) -> Sequence[str]:
    """The repository that a layer can be mounted from."""
    home = layer.kit
    return (home.repository,) if isinstance(home, Reference) and home.registry == image.registry else ()


def _given(descriptor: Descriptor, data: bytes, label: str) -> _Blob:
    return _Blob(descriptor, lambda offset: iter((data[offset:],)), (), label)


def _reader(layer: Layer, store: Store, stack: ExitStack) -> Callable[[int], Iterator[bytes]]:
    """Reads a layer's blob: from the store where it is whole there, else from where the kit is, past the store."""
    file = store.open_sealed(layer.digest)
    if file is not None:
        fd = stack.enter_context(file).fileno()

        def read(offset: int) -> Iterator[bytes]:
            while data := os.pread(fd, PIECE, offset):
                yield data
                offset += len(data)

        return read

    def fetch(offset: int) -> Iterator[bytes]:
        source: Source | None = layer.source()
        if source is None:
            raise NotFound(f"blob {layer.digest} is not in the store any more; ask its registry with --remote")
        for at, view in source.read_range(offset, None):
            if at + len(view) > offset:
                yield bytes(view[max(0, offset - at) :])

    return fetch


def _send(
    blobs: dict[Digest, _Blob], layers: set[Digest], store: Store, target: Destination, concurrency: int, report: Report
) -> dict[str, int]:
    """Bring every blob there, several at once; bytes of ``layers`` by how they came there."""
    stop = threading.Event()
    lock = threading.Lock()
    sent = {"uploaded": 0, "mounted": 0, "exists": 0}

    def send(blob: _Blob) -> None:
        if stop.is_set():
            return
        descriptor = blob.descriptor
        name = str(descriptor.digest)

        def read(offset: int) -> Iterator[bytes]:
            for piece in blob.read(offset):
                if stop.is_set():
                    return
                yield piece

        how = target.upload(
            descriptor,
            read,
            mount_from=blob.mount_from,
            hints=store.catalog,
            progress=lambda size: report(Moved(name, size)),
        )
        if how != "uploaded":
            report(Moved(name, descriptor.size))
        report(Sent("blob", descriptor.digest, descriptor.size, how))
        with lock:
            sent[how] += descriptor.size if descriptor.digest in layers else 0

    for blob in blobs.values():
        report(Total(str(blob.descriptor.digest), blob.descriptor.size, blob.label))
    each(list(blobs.values()), send, concurrency, stop)
    return sent


def _name(image: Reference, manifests: Sequence[tuple[Platform, bytes]], target: Destination, report: Report) -> Digest:
    """Push what names the image; its digest."""
    media_type, data = IMAGE_MANIFEST, manifests[0][1]
    if len(manifests) > 1:
        rows = []
        for (system, architecture, variant), manifest in manifests:
            digest = target.put_manifest(str(Digest.of(manifest)), IMAGE_MANIFEST, manifest)
            platform = {"architecture": architecture, "os": system} | ({"variant": variant} if variant else {})
            rows.append(Descriptor(IMAGE_MANIFEST, digest, len(manifest), platform=platform).to_json())
        media_type, data = IMAGE_INDEX, dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": rows})
    for tag in (image.tag or "latest", *image.extra_tags):
        target.put_manifest(tag, media_type, data)
    digest = Digest.of(data)
    report(Sent("manifest", digest, len(data), "uploaded"))
    return digest
