"""Run the verb diff. Its output about layers is that of kit's ``diff``. kit does not compare files and tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from kitfs.cli.commands import Command
from kitfs.cli.options import UNUSED_CONCURRENCY, takes
from kitfs.cli.output import human_size, put, put_json
from kitfs.cli.session import workspace_of
from kitfs.config import NETWORK, STORE, Option, Settings, options_of
from kitfs.errors import UnsupportedLayer
from kitfs.escaping import shown
from kitfs.parsers import boolean

if TYPE_CHECKING:
    from kitfs.oci.manifest import Descriptor
    from kitfs.ops.diff.diff import Difference
    from kitfs.ops.diff.files import FileChange, FileChanges
    from kitfs.ops.diff.tensors import KitTensor, TensorChanges

DIFF: Final = options_of(
    "diff",
    Option("files", boolean, "Also compare the files, by reading only indexes.", default="false", flag=True),
    Option(
        "tensors",
        boolean,
        "Also compare the tensors of safetensors and GGUF files, by reading only their headers.",
        default="false",
        flag=True,
    ),
    Option(
        "content",
        boolean,
        "Also compare the bytes of files that may have changed: files of equal size in different layers.",
        default="false",
        flag=True,
    ),
)
RULE: Final = "-" * 39


@click.command("diff", cls=Command, short_help="Compare two kits: layers, files, tensors.")
@click.argument("first", metavar="REF")
@click.argument("second", metavar="REF")
@takes(*DIFF, "cache-size", "max-entries", "max-expansion", "json", UNUSED_CONCURRENCY, *STORE, *NETWORK)
def diff(settings: Settings, first: str, second: str) -> None:
    """Compare two kits by their manifests.

    local://REF is looked up in the store, and remote://REF at its registry. A plain REF is looked up in the store, and
    then at its registry.

    --files lists files that were added, removed or changed; it reads only indexes. Two files of equal size in different
    layers may still differ: --content compares their bytes. --tensors lists tensors that were added, removed, reshaped,
    retyped or moved; it reads only the headers of safetensors and GGUF files, and does not compare values.
    """
    from kitfs.ops.diff import diff as compare

    with workspace_of(settings, waits=True) as workspace:
        found = compare.diff(
            workspace,
            first,
            second,
            files=settings["files"],
            content=settings["content"],
            tensors=settings["tensors"],
        )
    if settings["json"]:
        put_json(_json(found))
    elif found.identical:
        put("ModelKits are identical")
    else:
        _put_layers(found)
        if found.files is not None:
            _put_files(found.files)
        if found.tensors is not None:
            _put_tensors(found.tensors, content=settings["content"])


def _put_layers(found: Difference) -> None:
    a, b, changes = found.first, found.second, found.layers
    put("Comparing:")
    put(f"  ModelKit1: {a.name}")
    put(f"  ModelKit2: {b.name}")
    put("")
    put("Configurations:")
    put(RULE)
    if changes.same_config:
        put(f"  Configs are identical (Digest: {a.manifest.config.digest[:17]})")
    else:
        put("Configs differ:")
        put(f"  ModelKit1 Config Digest: {a.manifest.config.digest[:17]}")
        put(f"  ModelKit2 Config Digest: {b.manifest.config.digest[:17]}")
    put("")
    put("Annotations:")
    put(RULE)
    put("  Annotations are identical " if changes.same_annotations else "  Annotations does not match")
    put("")
    titles = ("Shared Layers", f"Unique Layers to ModelKit1 ({a.name})", f"Unique Layers to ModelKit2 ({b.name})")
    for title, layers in zip(titles, (changes.shared, changes.first, changes.second), strict=True):
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


def _put_files(files: FileChanges) -> None:
    counts = f"{len(files.added)} added, {len(files.removed)} removed, {len(files.changed)} changed"
    put(f"Files: {counts}" + (f", {len(files.maybe)} may have changed" if files.maybe else ""))
    put(RULE)
    for line in file_lines(files):
        put(line)
    for change in files.maybe:
        put(f"? {shown(change.path)} ({human_size(change.after.size)}, in another layer; --content compares the bytes)")
    if not any(files):
        put("<none>")
    put("")


def file_lines(files: FileChanges) -> Iterator[str]:
    """Yield a line for each file that was added, removed or changed."""
    for path, file in files.added:
        yield f"+ {shown(path)} ({human_size(file.size)})"
    for path, file in files.removed:
        yield f"- {shown(path)} ({human_size(file.size)})"
    for change in files.changed:
        before, after = change.before, change.after
        words = {
            "kind": f"{before.kind} -> {after.kind}",
            "size": f"{human_size(before.size)} -> {human_size(after.size)}",
            "mode": f"mode {before.mode:04o} -> {after.mode:04o}",
            "target": f"{shown(before.target)} -> {shown(after.target)}",
            "content": "different bytes",
            "maybe": "its bytes were not compared",
        }
        yield f"~ {shown(change.path)} ({'; '.join(words[word] for word in change.what)})"


def _put_tensors(tensors: TensorChanges, *, content: bool) -> None:
    put(f"Tensors: {len(tensors.added)} added, {len(tensors.removed)} removed, {len(tensors.changed)} changed")
    put(RULE)
    for line in tensor_lines(tensors):
        put(line)
    for file in tensors.unreadable:
        put(f"! ModelKit{file.kit} {shown(file.path)}: {shown(file.reason)}")
    if tensors.same:
        one, its = (
            ("1 tensor has", "its values were")
            if tensors.same == 1
            else (f"{tensors.same} tensors have", "their values were")
        )
        how = "" if content else "; --content compares the bytes of files"
        put(f"= {one} the same name, type and shape in both; {its} not compared{how}")
    if not any(tensors):
        put("<none>: the layers that differ contain no safetensors or GGUF files")
    put("")


def tensor_lines(tensors: TensorChanges) -> Iterator[str]:
    """Yield a line for each tensor that was added, removed or changed."""
    for added in tensors.added:
        yield f"+ {_tensor(added)} in {shown(added.path)}"
    for removed in tensors.removed:
        yield f"- {_tensor(removed)} in {shown(removed.path)}"
    for change in tensors.changed:
        where = (
            f"{shown(change.before.path)} -> {shown(change.after.path)}"
            if "moved" in change.what
            else shown(change.after.path)
        )
        after = "" if change.what == ("moved",) else f" -> {_type(change.after)}"
        yield f"~ {_tensor(change.before)}{after} in {where} ({', '.join(change.what)})"


def _tensor(found: KitTensor) -> str:
    return f"{shown(found.tensor.name)} {_type(found)}"


def _type(found: KitTensor) -> str:
    return f"{shown(found.tensor.dtype)} [{', '.join(map(str, found.tensor.shape))}]"


def _json(found: Difference) -> dict[str, Any]:
    sides, changes, files, tensors = (found.first, found.second), found.layers, found.files, found.tensors
    fields: dict[str, Any] = {
        "identical": found.identical,
        "kits": [
            {"reference": s.name, "remote": s.remote, "digest": s.digest, "config": s.manifest.config.digest}
            for s in sides
        ],
        "same_config": changes.same_config,
        "same_annotations": changes.same_annotations,
        "layers": {name: [_layer_json(d) for d in getattr(changes, name)] for name in ("shared", "first", "second")},
    }
    if files is not None:
        fields["files"] = files_json(files)
    if tensors is not None:
        fields["tensors"] = tensors_json(tensors)
    return fields


def files_json(files: FileChanges) -> dict[str, Any]:
    """Return the differences between files as diff --json prints them."""
    return {
        "added": [{"path": _text(path), "size": file.size} for path, file in files.added],
        "removed": [{"path": _text(path), "size": file.size} for path, file in files.removed],
        "changed": [_change_json(c) for c in files.changed],
        "maybe": [_change_json(c) for c in files.maybe],
    }


def tensors_json(tensors: TensorChanges) -> dict[str, Any]:
    """Return the differences between tensors as diff --json prints them."""
    return {
        "added": [_tensor_json(p) for p in tensors.added],
        "removed": [_tensor_json(p) for p in tensors.removed],
        "changed": [
            {"what": list(c.what), "before": _tensor_json(c.before), "after": _tensor_json(c.after)}
            for c in tensors.changed
        ],
        "same": tensors.same,
        "unreadable": [
            {"kit": file.kit, "path": _text(file.path), "reason": file.reason} for file in tensors.unreadable
        ],
    }


def _layer_json(layer: Descriptor) -> dict[str, Any]:
    return {"type": _kind(layer), "media_type": layer.media_type, "digest": layer.digest, "size": layer.size}


def _change_json(change: FileChange) -> dict[str, Any]:
    sides = {
        name: {"size": file.size, "mode": f"{file.mode:04o}"}
        for name, file in (("before", change.before), ("after", change.after))
    }
    return {"path": _text(change.path), "what": list(change.what), **sides}


def _tensor_json(found: KitTensor) -> dict[str, Any]:
    return {
        "name": _text(found.tensor.name),
        "file": _text(found.path),
        "dtype": _text(found.tensor.dtype),
        "shape": list(found.tensor.shape),
    }


def _text(text: str) -> str:
    """Return a name from a kit as a string that JSON can represent. Bytes that are not UTF-8 become \\xNN."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, from the JSON of a header
        data = text.encode("utf-8", "surrogatepass")
    return data.decode("utf-8", "backslashreplace")


VERBS = (diff,)
