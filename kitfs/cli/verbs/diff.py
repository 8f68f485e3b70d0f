"""The verb that compares: diff. Its text about layers is kit's (KITOPS §8); about files and tensors it says more than
kit can.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click

from kitfs.cli.options import Command, takes
from kitfs.cli.output import human_size, put, put_json
from kitfs.cli.session import host_of
from kitfs.config import COMMON, NETWORK, Settings
from kitfs.errors import KitfsError, NotFound, UnsupportedLayer
from kitfs.escaping import shown

if TYPE_CHECKING:
    from kitfs.kit.host import Workspace
    from kitfs.kit.kit import Kit
    from kitfs.oci.manifest import Descriptor, Manifest
    from kitfs.oci.names import Digest, LayoutReference, Reference
    from kitfs.ops.diff.layers import Comparison, File, Files, Place, Tensors

RULE: Final = "-" * 39
LOCAL_PREFIX: Final = "local://"
REMOTE_PREFIX: Final = "remote://"


class Side(NamedTuple):
    """One of the two: ``remote`` when its registry was asked."""

    reference: Reference | LayoutReference
    remote: bool
    digest: Digest
    manifest: Manifest

    @property
    def name(self) -> str:
        """As people write it."""
        return getattr(self.reference, "display", str(self.reference))


@click.command("diff", cls=Command, short_help="Compare two kits: layers, files, tensors.")
@click.argument("first", metavar="REF")
@click.argument("second", metavar="REF")
@takes("files", "tensors", "content", "cache-size", "max-entries", "json", "concurrency", *COMMON, *NETWORK)
def diff(settings: Settings, first: str, second: str) -> None:
    """Compare two kits by their manifests. local://REF is in the store, remote://REF at its registry; without either
    the store comes first.

    --files tells what was added, removed and changed by reading indexes only. Files of one size in different layers
    may have changed: --content reads them, side by side. --tensors tells of tensors that were added, removed,
    reshaped, retyped or moved, by reading the heads of safetensors and GGUF files; their values are not compared.
    """
    from kitfs.ops.diff import layers as comparing

    with host_of(settings, waits=True, cache_size=settings["cache-size"], max_entries=settings["max-entries"]) as host:
        a, b = _side(host, first, 1), _side(host, second, 2)
        comparison = comparing.compare(a.manifest, b.manifest)
        files = tensors = None
        same = a.digest == b.digest
        if (settings["files"] or settings["content"] or settings["tensors"]) and not same:
            with _files(host, a, b) as (left, right):
                if settings["files"] or settings["content"]:
                    files = comparing.compare_files(left, right, content=settings["content"])
                if settings["tensors"]:
                    tensors = comparing.compare_tensors(left, right)
    if settings["json"]:
        put_json(_json(a, b, comparison, files, tensors))
    elif same:
        put("ModelKits are identical")
    else:
        _put_layers(a, b, comparison)
        if files is not None:
            _put_files(files)
        if tensors is not None:
            _put_tensors(tensors, content=settings["content"])


def _side(host: Workspace, text: str, number: int) -> Side:
    """Find a kit. Raises the error's own class, in kit's words."""
    try:
        return _found(host, text)
    except KitfsError as e:
        e.args = (f"Failed to get manifest for ModelKit{number}: {e}",)
        raise


def _found(host: Workspace, text: str) -> Side:
    from kitfs.oci.manifest import Manifest
    from kitfs.oci.names import LOCAL, LayoutReference, parse_any
    from kitfs.ops.library.tags import find, required

    bare = text.removeprefix(REMOTE_PREFIX).removeprefix(LOCAL_PREFIX)
    reference = parse_any(bare)
    if isinstance(reference, LayoutReference):
        kit = host.resolver.open(reference)
        kit.close()
        return Side(reference, True, kit.digest, kit.manifest)
    reference = reference.or_latest()
    local = None
    if not text.startswith(REMOTE_PREFIX):
        local = required(host.store, reference) if text.startswith(LOCAL_PREFIX) else find(host.store, reference)
    if local is not None:
        data = host.store.get(local.digest)
        if data is None:
            raise NotFound(f"{reference.display}: the store has lost its manifest; pull it again")
        return Side(reference, False, local.digest, Manifest.parse(data))
    if reference.registry == LOCAL:
        raise NotFound(f"{reference.display} is not in the store, and names no registry")
    descriptor, data = host.client.repository(reference).manifest(reference.identifier)
    return Side(reference, True, descriptor.digest, Manifest.parse(data))


@contextmanager
def _files(host: Workspace, a: Side, b: Side) -> Iterator[tuple[dict[str, File], dict[str, File]]]:
    """The files of both kits, parents included, less those of layers that cannot make a difference."""
    from dataclasses import replace

    from kitfs.ops.diff.layers import differing

    first, second = host.resolver.open(a.reference, remote=a.remote), host.resolver.open(b.reference, remote=b.remote)
    try:
        left, right = differing(first.layers, second.layers)
        yield _files_of(host, replace(first, layers=tuple(left))), _files_of(host, replace(second, layers=tuple(right)))
    finally:
        first.close()
        second.close()


def _files_of(host: Workspace, kit: Kit) -> dict[str, File]:
    from kitfs.kit.tree import tree_of
    from kitfs.oci.names import Digest
    from kitfs.ops.diff.layers import File

    tree = tree_of(kit, counters=host.client.counters, log=host.client.log)
    raw = {layer.digest for layer in kit.layers if layer.type.format == "raw" and not layer.compressed}
    found = {}
    for path, node in tree.walk(tree.root):
        if node.kind == "dir":
            continue

        def read(offset: int, size: int, node: Any = node) -> bytes:
            return tree.pread(node, offset, size)

        if node.layer is None:
            data = b"" if node.synthetic is None else node.synthetic.data
            found[path] = File(node.kind, node.mode, node.size, node.target, Digest.of(data), (), True, read)
        else:
            digest = node.layer.digest
            found[path] = File(
                node.kind, node.mode, node.size, node.target, digest, node.member.extents, digest in raw, read
            )
    return found


def _put_layers(a: Side, b: Side, comparison: Comparison) -> None:
    put("Comparing:")
    put(f"  ModelKit1: {a.name}")
    put(f"  ModelKit2: {b.name}")
    put("")
    put("Configurations:")
    put(RULE)
    if comparison.same_config:
        put(f"  Configs are identical (Digest: {a.manifest.config.digest[:17]})")
    else:
        put("Configs differ:")
        put(f"  ModelKit1 Config Digest: {a.manifest.config.digest[:17]}")
        put(f"  ModelKit2 Config Digest: {b.manifest.config.digest[:17]}")
    put("")
    put("Annotations:")
    put(RULE)
    put("  Annotations are identical " if comparison.same_annotations else "  Annotations does not match")
    put("")
    titles = ("Shared Layers", f"Unique Layers to ModelKit1 ({a.name})", f"Unique Layers to ModelKit2 ({b.name})")
    for title, layers in zip(titles, (comparison.shared, comparison.first, comparison.second), strict=True):
        put(title)
        put(RULE)
        put("Type    | Digest             | Size" if layers else "<none>")
        for layer in layers:
            put(f"{_kind(layer).capitalize():<7} | {layer.digest[:17]:<18} | {human_size(layer.size)}")
        put("")


def _kind(layer: Descriptor) -> str:
    from kitfs.oci.manifest import LayerType

    try:
        return LayerType.parse(layer).kind
    except UnsupportedLayer:
        return "unknown"


def _put_files(files: Files) -> None:
    counts = f"{len(files.added)} added, {len(files.removed)} removed, {len(files.changed)} changed"
    put(f"Files: {counts}" + (f", {len(files.maybe)} may have changed" if files.maybe else ""))
    put(RULE)
    for path, file in files.added:
        put(f"+ {shown(path)} ({human_size(file.size)})")
    for path, file in files.removed:
        put(f"- {shown(path)} ({human_size(file.size)})")
    for change in files.changed:
        before, after = change.before, change.after
        words = {
            "kind": f"{before.kind} -> {after.kind}",
            "size": f"{human_size(before.size)} -> {human_size(after.size)}",
            "mode": f"mode {before.mode:04o} -> {after.mode:04o}",
            "target": f"{shown(before.target)} -> {shown(after.target)}",
            "content": "other bytes",
            "maybe": "its bytes were not compared",
        }
        put(f"~ {shown(change.path)} ({'; '.join(words[word] for word in change.what)})")
    for change in files.maybe:
        put(f"? {shown(change.path)} ({human_size(change.after.size)}, in another layer; --content compares the bytes)")
    if not any(files):
        put("<none>")
    put("")


def _put_tensors(tensors: Tensors, *, content: bool) -> None:
    put(f"Tensors: {len(tensors.added)} added, {len(tensors.removed)} removed, {len(tensors.changed)} changed")
    put(RULE)
    for place in tensors.added:
        put(f"+ {_tensor(place)} in {shown(place.path)}")
    for place in tensors.removed:
        put(f"- {_tensor(place)} in {shown(place.path)}")
    for change in tensors.changed:
        where = (
            f"{shown(change.before.path)} -> {shown(change.after.path)}"
            if "moved" in change.what
            else shown(change.after.path)
        )
        after = "" if change.what == ("moved",) else f" -> {_type(change.after)}"
        put(f"~ {_tensor(change.before)}{after} in {where} ({', '.join(change.what)})")
    for number, path, why in tensors.unreadable:
        put(f"! ModelKit{number} {shown(path)}: {shown(why)}")
    if tensors.same:
        one, its = (
            ("1 tensor has", "its values were")
            if tensors.same == 1
            else (f"{tensors.same} tensors have", "their values were")
        )
        how = "" if content else "; --content compares the bytes of files"
        put(f"= {one} the same name, type and shape in both; {its} not compared{how}")
    if not any(tensors):
        put("<none>: no safetensors or GGUF file is in layers that differ")
    put("")


def _tensor(place: Place) -> str:
    return f"{shown(place.tensor.name)} {_type(place)}"


def _type(place: Place) -> str:
    return f"{shown(place.tensor.dtype)} [{', '.join(map(str, place.tensor.shape))}]"


def _json(a: Side, b: Side, comparison: Comparison, files: Files | None, tensors: Tensors | None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "identical": a.digest == b.digest,
        "kits": [
            {"reference": s.name, "remote": s.remote, "digest": s.digest, "config": s.manifest.config.digest}
            for s in (a, b)
        ],
        "same_config": comparison.same_config,
        "same_annotations": comparison.same_annotations,
        "layers": {name: [_layer_json(d) for d in getattr(comparison, name)] for name in ("shared", "first", "second")},
    }
    if files is not None:
        told["files"] = {
            "added": [{"path": _text(path), "size": file.size} for path, file in files.added],
            "removed": [{"path": _text(path), "size": file.size} for path, file in files.removed],
            "changed": [_change_json(c) for c in files.changed],
            "maybe": [_change_json(c) for c in files.maybe],
        }
    if tensors is not None:
        told["tensors"] = {
            "added": [_tensor_json(p) for p in tensors.added],
            "removed": [_tensor_json(p) for p in tensors.removed],
            "changed": [
                {"what": list(c.what), "before": _tensor_json(c.before), "after": _tensor_json(c.after)}
                for c in tensors.changed
            ],
            "same": tensors.same,
            "unreadable": [
                {"kit": number, "path": _text(path), "reason": why} for number, path, why in tensors.unreadable
            ],
        }
    return told


def _layer_json(layer: Descriptor) -> dict[str, Any]:
    return {"type": _kind(layer), "media_type": layer.media_type, "digest": layer.digest, "size": layer.size}


def _change_json(change: Any) -> dict[str, Any]:
    sides = {
        name: {"size": file.size, "mode": f"{file.mode:04o}"}
        for name, file in (("before", change.before), ("after", change.after))
    }
    return {"path": _text(change.path), "what": list(change.what), **sides}


def _tensor_json(place: Place) -> dict[str, Any]:
    return {
        "name": _text(place.tensor.name),
        "file": _text(place.path),
        "dtype": _text(place.tensor.dtype),
        "shape": list(place.tensor.shape),
    }


def _text(text: str) -> str:
    """A name of a kit as JSON can say it."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, out of JSON
        data = text.encode("utf-8", "surrogatepass")
    return data.decode("utf-8", "backslashreplace")


VERBS = (diff,)
