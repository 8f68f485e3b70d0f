"""Convert a kit to an ordinary OCI image, for example for Kubernetes image volumes and containerd.

The image follows image-spec v1.1 (config.md, layer.md). Its config and its manifest are new; its layers are the blobs
of the kit. If the kit is at the same registry, the layers are mounted from the kit's repository and not sent. One small
layer with the Kitfile is added, so that the image shows the same tree as a mount. Every layer of an image must be a
tar. The conversion is reproducible. Threading: ``convert`` starts threads, and returns when they have ended.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from kitfs.content import Destination, ReadFrom
from kitfs.errors import LayerError, UnsupportedLayer, UsageError
from kitfs.gocompat.json import dumps
from kitfs.kit.kit import Kit
from kitfs.kit.layer import Layer
from kitfs.kit.layering import PlacedLayer, merge
from kitfs.kit.origin import blob_reader
from kitfs.kit.workspace import Workspace
from kitfs.layers.names import clean
from kitfs.layers.tar_writer import TRAILER, header, padding
from kitfs.oci.manifest import CREATED, IMAGE_INDEX, IMAGE_MANIFEST, Descriptor, Manifest
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import Moved, Noted, Report, Sent, Total
from kitfs.ops.transfer.push import CONCURRENCY, put_manifest
from kitfs.parallel import each
from kitfs.store.store import Store

IMAGE_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
IMAGE_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
WHITEOUT: Final = ".wh."  # the start of a file name that removes another name of an image (layer.md, "Whiteouts")
DEFAULT_PLATFORM: Final = ("linux", "amd64", "")

Platform = tuple[str, str, str]  # os, architecture, variant ("": none)


class Converted(NamedTuple):
    """The image that was made.

    ``digest``: the digest of its manifest, or of its index if it has several platforms. The other fields are the bytes
    of the layers that were sent, that were mounted from another repository, and that the repository already had.
    """

    digest: Digest
    uploaded: int
    mounted: int
    existed: int


class _Blob(NamedTuple):
    """A blob of the image, with the repositories from which it can be mounted, and its name for display."""

    descriptor: Descriptor
    read: ReadFrom
    mount_from: Sequence[str]
    label: str


def convert(
    workspace: Workspace,
    kit: Kit,
    image: Reference,
    *,
    platforms: Sequence[Platform] = (DEFAULT_PLATFORM,),
    concurrency: int = CONCURRENCY,
    report: Report,
) -> Converted:
    """Push the image of a kit to all tags of ``image``.

    With several ``platforms``, an index of images is pushed. The images share all layers and differ only in their
    configs. Raises UsageError if ``image`` is a digest, UnsupportedLayer for a layer that is not possible in an image,
    and the errors of reading or pushing a layer. After an error, nothing is tagged.
    """
    if image.digest is not None:
        raise UsageError(f"{image.display}: name the image by a tag, not a digest")
    store, target = workspace.store, workspace.push_to(image)
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
                    descriptor,
                    stack.enter_context(blob_reader(store, layer.digest, layer.source)),
                    _neighbours(layer, image),
                    layer.path or layer.type.kind,
                )
            )
        if kitfile is not None:
            descriptor = Descriptor(IMAGE_LAYER, Digest.of(kitfile), len(kitfile))
            blobs.append(_small_blob(descriptor, kitfile, "Kitfile"))
            descriptors.append(descriptor)
            diff_ids.append(descriptor.digest)
            steps.append("Kitfile")
        manifests = []
        for platform in dict.fromkeys(platforms):
            config = _config(kit, platform, diff_ids, steps)
            blob = Descriptor(IMAGE_CONFIG, Digest.of(config), len(config))
            blobs.append(_small_blob(blob, config, "config"))
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
    return Converted(_tag(image, manifests, target, report), sent["uploaded"], sent["mounted"], sent["exists"])


def _layer(layer: Layer) -> Descriptor:
    """Return the descriptor of a layer in the image. Raises UnsupportedLayer."""
    if layer.type.format != "tar":
        raise UnsupportedLayer(
            f"layer {layer.digest} ({layer.type.kind} {layer.path or '?'}) is a raw file, but layers of an OCI image "
            "must be tars (pack the kit with --layer-format tar, or omit the layer with --only)"
        )
    suffix = "" if layer.type.compression == "none" else f"+{layer.type.compression}"
    return Descriptor(IMAGE_LAYER + suffix, layer.digest, layer.size)


def _check_names(layers: Sequence[Layer]) -> None:
    """Refuse names that an image would show differently from a mount.

    ``layers``: the layers that can be indexed without reading a whole compressed layer. In an image, the later entry
    with a name always wins, even if it replaces a directory (containerd, Docker). Raises UnsupportedLayer, LayerError.
    """
    for layer in layers:
        index = layer.index()
        for path in index.members:
            if any(name.startswith(WHITEOUT) for name in path.split("/")):
                raise UnsupportedLayer(
                    f"layer {layer.digest} holds {path!r}: in an OCI image, a name that begins with {WHITEOUT} removes "
                    "a file (rename the file, or omit the layer with --only)"
                )
        for skipped in index.skipped:
            path = clean(skipped.name)[0]
            if path and index.get(path) is not None:
                raise UnsupportedLayer(
                    f"layer {layer.digest} holds {path!r} more than once; a mount leaves out {skipped.text}, which an "
                    "OCI image would show"
                )
    merged = merge([PlacedLayer(f"layer {layer.digest}", layer.index(), layer.path) for layer in layers])
    if merged.left_out:
        raise UnsupportedLayer(f"{merged.left_out[0]}; an OCI image would show it")


def _diff_id(layer: Layer, report: Report) -> Digest:
    """Return the digest of the uncompressed tar, from the Kitfile, or by reading the layer if the Kitfile lacks it.

    Raises LayerError.
    """
    if not layer.compressed:
        return layer.digest
    if layer.entry is not None and layer.entry.diff_id is not None:
        return layer.entry.diff_id
    report(Noted(f"Reading layer {layer.digest}: the kit does not have its diffId"))
    hasher = Digest.of(b"").hasher()
    try:
        for piece in layer.decoded_once():
            hasher.update(piece)
    except LayerError as e:
        raise LayerError(f"layer {layer.digest}: {e}")
    return Digest.parse(f"sha256:{hasher.hexdigest()}")


def _kitfile_layer(data: bytes) -> bytes:
    """Return a tar that contains the Kitfile, in the format in which kit writes tars."""
    return header(b"Kitfile", directory=False, mode=0o644, size=len(data)) + data + padding(len(data)) + TRAILER


def _config(kit: Kit, platform: Platform, diff_ids: Sequence[Digest], steps: Sequence[str]) -> bytes:
    """Return the image's config, with its fields in Go's order."""
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
    """Return the repository from which the registry can mount the layer, in a list. Return [] if it is not known."""
    kit = layer.kit
    return (kit.repository,) if isinstance(kit, Reference) and kit.registry == image.registry else ()


def _small_blob(descriptor: Descriptor, data: bytes, label: str) -> _Blob:
    return _Blob(descriptor, lambda offset: iter((data[offset:],)), (), label)


def _send(
    blobs: dict[Digest, _Blob], layers: set[Digest], store: Store, target: Destination, concurrency: int, report: Report
) -> dict[str, int]:
    """Upload every blob, several at once.

    Returns how many bytes of ``layers`` were uploaded, how many were mounted, and how many existed already.
    """
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


def _tag(image: Reference, manifests: Sequence[tuple[Platform, bytes]], target: Destination, report: Report) -> Digest:
    """Push the manifest, or an index of several manifests, under every tag of the image, and return its digest."""
    media_type, data = IMAGE_MANIFEST, manifests[0][1]
    if len(manifests) > 1:
        rows = []
        for (system, architecture, variant), manifest in manifests:
            digest = target.put_manifest(str(Digest.of(manifest)), IMAGE_MANIFEST, manifest)
            platform = {"architecture": architecture, "os": system} | ({"variant": variant} if variant else {})
            rows.append(Descriptor(IMAGE_MANIFEST, digest, len(manifest), platform=platform).to_json())
        media_type, data = IMAGE_INDEX, dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": rows})
    put_manifest(target, image, media_type, data)
    digest = Digest.of(data)
    report(Sent("manifest", digest, len(data), "uploaded"))
    return digest
