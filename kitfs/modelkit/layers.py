"""Match layers with the entries of the Kitfile, and find the path of each layer in the tree.

Since KitOps 0.5, the config of a ModelKit has the digest of each entry's layer. In older ModelKits, entries and layers
are matched by their order within a type. The layers of a ModelPack have their path in an annotation. A layer of another
tool's model has a path in an annotation, or the name that its media type suggests. This module does no I/O.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from kitfs.errors import KitfileError, ManifestError
from kitfs.gocompat.json import Ambiguous, check_keys, loads
from kitfs.modelkit.kitfile import Code, Dataset, Docs, Entry, Kitfile, Model, ModelPart, Package, Prompt, clean_path
from kitfs.oci.foreign import default_names
from kitfs.oci.manifest import FILEPATH, Descriptor, LayerType, Manifest

METADATA: Final = ("org.cncf.model.file.metadata+json", "org.cnai.model.file.metadata+json")
KITFILE_ANNOTATION: Final = "ml.kitops.modelkit.kitfile"


class FileMetadata(NamedTuple):
    """The fields of a raw layer's annotation org.cncf.model.file.metadata+json. A missing or invalid field is None."""

    name: str
    mode: int | None
    size: int | None

    @classmethod
    def of(cls, descriptor: Descriptor) -> FileMetadata | None:
        """Parse the annotation of a layer. Return None if it is missing or is not valid JSON.

        Raises ManifestError if two keys in the annotation differ only in case.
        """
        text = _annotation(descriptor.annotations, METADATA)
        try:
            value = loads(text.encode()) if text else None
            if not isinstance(value, dict):
                return None
            check_keys(value, ("name", "mode", "size", "typeflag"), "its file metadata")
        except Ambiguous as e:
            raise ManifestError(f"layer {descriptor.digest} is ambiguous: {e}")
        except ValueError:
            return None
        name, mode, size = value.get("name"), value.get("mode"), value.get("size")
        return cls(
            name if isinstance(name, str) else "",
            mode & 0o777 if isinstance(mode, int) and not isinstance(mode, bool) and mode >= 0 else None,
            size if isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 1 << 62 else None,
        )


class LayerEntry(NamedTuple):
    """A layer with its entry. The entry is None if no entry of the Kitfile matches.

    ``path`` is the normalized relative path of the layer. "" is the whole context, and None means that neither an entry
    nor an annotation has the path.
    """

    descriptor: Descriptor
    type: LayerType
    entry: Entry | None
    path: str | None


def kit_layers(manifest: Manifest, kitfile: Kitfile) -> tuple[LayerEntry, ...]:
    """Match every layer of a manifest with an entry, in order. Raises UnsupportedLayer for an unknown media type."""
    types = [LayerType.parse(d) for d in manifest.layers]
    entries = kitfile.entries()
    by_digest: dict[str, list[Entry]] = defaultdict(list)
    by_kind: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_kind[entry.kind].append(entry)
        if entry.digest is not None:
            by_digest[entry.digest].append(entry)
    by_path = {clean_path(e.path): e for e in reversed(entries)}
    has_digests = any(e.digest is not None for e in entries)
    found = []
    for descriptor, kind in zip(manifest.layers, types, strict=True):
        annotated = _annotation(descriptor.annotations, FILEPATH)
        same: list[Entry] = []
        if has_digests:
            same = by_digest[descriptor.digest]
        elif kind.family == "modelkit":
            same = by_kind[kind.kind]
        elif annotated and clean_path(annotated) in by_path:
            same = [by_path[clean_path(annotated)]]
        owner = _take(same, annotated, keep_last=has_digests)
        path = owner.path if owner is not None else annotated
        if annotated and kind.format == "raw":
            path = annotated
        found.append(LayerEntry(descriptor, kind, owner, None if path is None else _relative(path)))
    return tuple(found)


def _take(candidates: list[Entry], annotated: str | None, *, keep_last: bool) -> Entry | None:
    """Remove and return the entry of a layer: the candidate with its annotated path, or else the first candidate.

    With ``keep_last``, the last candidate is returned but not removed, because a manifest can have more layers with one
    digest (those of equal files) than the Kitfile has entries with it.
    """
    if not candidates:
        return None
    at = next((i for i, e in enumerate(candidates) if annotated and clean_path(e.path) == clean_path(annotated)), 0)
    return candidates[at] if keep_last and len(candidates) == 1 else candidates.pop(at)


def _relative(path: str) -> str:
    """Normalize a path. The context itself is "". A path that leads out of the context is not refused here."""
    cleaned = clean_path(path)
    return "" if cleaned == "." else cleaned


def _annotation(annotations: Mapping[str, str], names: Iterable[str]) -> str | None:
    return next((annotations[n] for n in names if annotations.get(n)), None)


def has_kitfile(manifest: Manifest) -> bool:
    """Return whether a kit contains a Kitfile, in the config of a ModelKit or in KitOps' annotation of a ModelPack."""
    return manifest.flavor == "modelkit" or bool(manifest.annotations.get(KITFILE_ANNOTATION))


def kitfile_of(manifest: Manifest, config: bytes) -> Kitfile:
    """Return the Kitfile in a kit's config or annotation, or generate one from the paths of the layers.

    Raises KitfileError for an invalid config or annotation. Raises ManifestError if a layer has no path, or if the
    number of diffIds differs from the number of layers.
    """
    if manifest.flavor == "modelkit":
        return Kitfile.from_json(config)
    if has_kitfile(manifest):
        return Kitfile.from_json(manifest.annotations[KITFILE_ANNOTATION].encode())
    return _generated(manifest, config)


def _generated(manifest: Manifest, config: bytes) -> Kitfile:
    """Make the Kitfile that kit makes for a ModelPack without a Kitfile, or one for the model of another tool.

    The first layer with weights is the model, and the other layers with weights are its parts.
    """
    try:
        whole = loads(config)
        if not isinstance(whole, dict):
            raise ValueError("an object was expected")
        check_keys(whole, ("descriptor", "config", "modelfs"), "config")
        about, config_fields = _section(whole, "descriptor"), _section(whole, "config")
        check_keys(about, ("name", "version", "description", "licenses", "authors"), "descriptor")
        check_keys(_section(whole, "modelfs"), ("diffIds",), "modelfs")
    except ValueError as e:
        raise KitfileError(f"the config is not a valid ModelPack config: {e}")
    found = _paths(manifest, _texts(_section(whole, "modelfs"), "diffIds"))
    weights, configs = found["model"], found["modelpart"]
    model = None
    if weights or configs:
        parts = tuple(ModelPart(path=p, digest=d, diff_id=i) for p, d, i in (*weights[1:], *configs))
        path, digest, diff_id = weights[0] if weights else ("", "", "")
        model = Model(
            _str(about, "name"),
            path,
            format=_str(config_fields, "format") or _str(whole, "model_format"),
            version=_str(about, "version"),
            parts=parts,
            digest=digest,
            diff_id=diff_id,
        )
    return Kitfile(
        manifest_version="1.0.0",
        package=Package(
            _str(about, "name"),
            _str(about, "version"),
            _str(about, "description"),
            next(iter(_texts(about, "licenses")), ""),
            tuple(_texts(about, "authors")),
        ),
        model=model,
        code=tuple(Code(p, digest=d, diff_id=i) for p, d, i in found["code"]),
        datasets=tuple(Dataset(path=p, digest=d, diff_id=i) for p, d, i in found["dataset"]),
        docs=tuple(Docs(p, digest=d, diff_id=i) for p, d, i in found["docs"]),
        prompts=tuple(Prompt(path=p, digest=d, diff_id=i) for p, d, i in found["prompt"]),
    )


def _paths(manifest: Manifest, diff_ids: list[str]) -> Mapping[str, list[tuple[str, str, str]]]:
    """Return (path, digest, diffId) of the layers of each kind, in order."""
    if diff_ids and len(diff_ids) != len(manifest.layers):
        raise ManifestError(f"the config has {len(diff_ids)} diffIds for {len(manifest.layers)} layers")
    found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    names = default_names([layer.media_type for layer in manifest.layers])
    for i, descriptor in enumerate(manifest.layers):
        kind = LayerType.parse(descriptor)
        path = _annotation(descriptor.annotations, FILEPATH) or names[i]
        if not path and kind.family == "foreign" and kind.format == "tar":
            path = "."
        if not path:
            raise ManifestError(f"unknown file path for layer: no {FILEPATH[0]} annotation (layer {descriptor.digest})")
        found[kind.kind].append((path, str(descriptor.digest), diff_ids[i] if diff_ids else ""))
    return found


def _section(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}


def _texts(value: Mapping[str, Any], key: str) -> list[str]:
    found = value.get(key)
    return [x for x in found if isinstance(x, str)] if isinstance(found, list) else []


def _str(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    return found if isinstance(found, str) else ""
