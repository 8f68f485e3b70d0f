"""Write a bill of materials of a kit, as a CycloneDX 1.7 ML-BOM.

Source: ``schema/bom-1.7.schema.json`` of CycloneDX/specification. The bill is made from the manifest and the Kitfile
alone, and the same kit always has the same bill: the serial number is derived from the kit's digest, and the caller
passes the time, or the kit's creation time is used. This module does no I/O.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from kitfs.gocompat.json import dumps
from kitfs.modelkit.kitfile import Dataset, Kitfile
from kitfs.modelkit.layers import LayerEntry, kit_layers
from kitfs.oci.names import LOCAL, LayoutReference, Reference
from kitfs.ops.library.values import values_of
from kitfs.ops.pack.licenses import MARKS
from kitfs.ops.provenance.objects import without_empty
from kitfs.ops.provenance.reading import Documents
from kitfs.redaction import public
from kitfs.version import __version__

TYPES: Final = {
    "model": "machine-learning-model",
    "modelpart": "machine-learning-model",
    "dataset": "data",
    "mcpserver": "application",
}  # other layers are files
HASHES: Final = {"sha256": "SHA-256", "sha512": "SHA-512"}
IDS: Final = {name.lower(): name for name in MARKS}


def sbom_of(documents: Documents, reference: Reference | LayoutReference, when: int | None) -> dict[str, Any]:
    """Return the bill of materials of a kit as JSON fields.

    ``when``: its time in seconds since the epoch; None means the kit's creation time. Raises UnsupportedLayer for a
    layer of an unknown type.
    """
    kitfile, manifest = documents.kitfile, documents.manifest
    layers = [_layer(at, layer, kitfile) for at, layer in enumerate(kit_layers(manifest, kitfile))]
    remote = [_remote(at, one) for at, one in enumerate(kitfile.datasets) if one.remote_path]
    parts = [*layers, *remote]
    root = str(documents.digest)
    metadata: dict[str, Any] = {
        "timestamp": _time(manifest.created if when is None else when),
        "tools": {"components": [{"type": "application", "name": "kitfs", "version": __version__}]},
        "component": _kit(documents, reference, [one["bom-ref"] for one in parts if one["type"] == "data"]),
    }
    dependencies = [{"ref": root, "dependsOn": [one["bom-ref"] for one in parts]}]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'urn:kitfs:sbom:{root}')}",
        "version": 1,
        "metadata": without_empty(metadata),
        "components": parts,
        "dependencies": [*dependencies, *({"ref": one["bom-ref"]} for one in parts)],
    }


def _kit(documents: Documents, reference: Reference | LayoutReference, datasets: Sequence[str]) -> dict[str, Any]:
    """Return the component of the kit itself."""
    kitfile = documents.kitfile
    package, model = kitfile.package, kitfile.model
    name = package.name or _name(reference)
    return without_empty(
        {
            "type": "data" if model is None else "machine-learning-model",
            "bom-ref": str(documents.digest),
            "authors": [{"name": author} for author in package.authors],
            "name": name,
            "version": package.version or (reference.tag or ""),
            "description": package.description,
            "hashes": _hashes(documents.digest),
            "licenses": _licenses(package.license),
            "purl": _purl(documents, reference),
            "pedigree": _pedigree(kitfile),
            "modelCard": {} if model is None else _model_card(kitfile, datasets),
        }
    )


def _layer(at: int, layer: LayerEntry, kitfile: Kitfile) -> dict[str, Any]:
    """Return the component of a layer."""
    kind, digest, path = layer.type.kind, layer.descriptor.digest, layer.path or ""
    section = _section(kitfile, str(digest))
    name = (layer.entry.name if layer.entry is not None else "") or path or kind
    properties = {"kitfs:kind": kind, "kitfs:path": path, "kitfs:size": str(layer.descriptor.size)}
    return without_empty(
        {
            "type": TYPES.get(kind, "file"),
            "bom-ref": f"layer-{at}@{digest}",
            "mime-type": layer.descriptor.media_type,
            "name": name,
            "version": getattr(section, "version", ""),
            "description": getattr(section, "description", ""),
            "hashes": _hashes(digest),
            "licenses": _licenses(getattr(section, "license", "")),
            "data": [{"type": "dataset", "name": name}] if kind == "dataset" else [],
            "properties": _properties(properties),
        }
    )


def _remote(at: int, dataset: Dataset) -> dict[str, Any]:
    """Return the component of a dataset that is not a layer of the kit."""
    name = dataset.name or dataset.path or "dataset"
    url = public(dataset.remote_path) if "://" in dataset.remote_path else f"oci://{dataset.remote_path}"
    return without_empty(
        {
            "type": "data",
            "bom-ref": f"dataset-{at}",
            "name": name,
            "description": dataset.description,
            "licenses": _licenses(dataset.license),
            "data": [{"type": "dataset", "name": name, "contents": {"url": quote(url, safe=":/@?=&%#+,;~!$'()*[]")}}],
            "properties": _properties({"kitfs:path": dataset.path, "kitfs:remoteHash": dataset.remote_hash}),
        }
    )


def _section(kitfile: Kitfile, digest: str) -> Any:
    """Return the section of a Kitfile whose layer has a digest, or None."""
    model = kitfile.model
    models: tuple[Any, ...] = () if model is None else (model, *model.parts)
    others: tuple[Any, ...] = (*kitfile.code, *kitfile.datasets, *kitfile.docs, *kitfile.prompts, *kitfile.mcp_servers)
    return next((one for one in (*models, *others) if one.digest == digest), None)


def _model_card(kitfile: Kitfile, datasets: Sequence[str]) -> dict[str, Any]:
    values = {path: value for path, value in values_of(kitfile).items() if path.startswith("model.")}
    texts = {
        f"kitfs:{path}": value if isinstance(value, str) else dumps(value).decode() for path, value in values.items()
    }
    return {
        "modelParameters": {"datasets": [{"ref": one} for one in datasets]},
        "properties": _properties(texts),
    }


def _pedigree(kitfile: Kitfile) -> dict[str, Any]:
    parent = kitfile.parent
    if parent is None:
        return {}
    ancestor: dict[str, Any] = {"type": "machine-learning-model", "name": parent.display, "version": parent.identifier}
    if parent.digest is not None:
        ancestor["hashes"] = _hashes(parent.digest)
    return {"ancestors": [without_empty(ancestor)]}


def _purl(documents: Documents, reference: Reference | LayoutReference) -> str:
    """Return the package URL of a kit of a registry (purl-spec, type oci)."""
    if isinstance(reference, LayoutReference) or reference.registry == LOCAL:
        return ""
    tag = f"&tag={quote(reference.tag, safe='')}" if reference.tag else ""
    name = _name(reference)
    where = quote(reference.name, safe="/")
    return f"pkg:oci/{quote(name)}@{quote(str(documents.digest), safe='')}?repository_url={where}{tag}"


def _name(reference: Reference | LayoutReference) -> str:
    if isinstance(reference, LayoutReference):
        return reference.path.rstrip("/").rpartition("/")[2] or "kit"
    return reference.repository.rpartition("/")[2]


def _hashes(digest: Any) -> list[dict[str, str]]:
    return [{"alg": HASHES[digest.algorithm], "content": digest.hex}] if digest.algorithm in HASHES else []


def _licenses(text: str) -> list[dict[str, Any]]:
    """Return a licence by its SPDX identifier if it is a usual one, otherwise by its name."""
    if not text:
        return []
    known = IDS.get(text.lower())
    return [{"license": {"name": text} if known is None else {"id": known}}]


def _properties(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items() if value]


def _time(when: int) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if when else ""
