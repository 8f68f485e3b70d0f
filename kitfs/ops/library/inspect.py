"""Read the manifest and the Kitfile of a kit, as kit's ``inspect`` and ``info`` do. Layers and parents are not read.

The values can be written with ``gocompat.json`` and ``gocompat.yaml_writer``. Threading: each call uses one thread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final, NamedTuple

from kitfs.content import Origin
from kitfs.errors import NotFound, UsageError
from kitfs.gocompat import json as gojson
from kitfs.gocompat import structs as schema
from kitfs.kit.resolver import MAX_CONFIG
from kitfs.modelkit.kitfile import Kitfile
from kitfs.modelkit.layers import kitfile_of
from kitfs.modelkit.writer import CLI_VERSION
from kitfs.oci.manifest import Manifest
from kitfs.oci.names import Digest, Reference
from kitfs.ops.library.tags import blob_of, required
from kitfs.store.store import Store

NODE: Final = re.compile(r"\.?[a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)*")


class KitDocuments(NamedTuple):
    """A kit's manifest, its digest and its Kitfile."""

    digest: Digest
    manifest: Manifest
    kitfile: Kitfile


def stored(store: Store, reference: Reference) -> KitDocuments:
    """Read the documents of a kit of the store.

    Raises NotFound, ManifestError or KitfileError, and StoreError if the store has lost one of the documents.
    """
    return stored_digest(store, required(store, reference).digest)


def stored_digest(store: Store, digest: Digest) -> KitDocuments:
    """Read the documents of a kit of the store by its digest. Raises the errors of ``stored``."""
    manifest = Manifest.parse(blob_of(store, digest))
    return KitDocuments(digest, manifest, kitfile_of(manifest, blob_of(store, manifest.config.digest)))


def fetched(origin: Origin, identifier: str) -> KitDocuments:
    """Fetch the documents of a kit from a registry or a layout.

    Raises NotFound, RegistryError, ManifestError, KitfileError, IntegrityError.
    """
    descriptor, data = origin.manifest(identifier)
    manifest = Manifest.parse(data)
    manifest.require_kit()  # checked before the config is fetched, because other artifacts may have a large config
    return KitDocuments(
        descriptor.digest, manifest, kitfile_of(manifest, origin.blob_bytes(manifest.config, MAX_CONFIG))
    )


def inspection(documents: KitDocuments) -> dict[str, Any]:
    """Return the values that ``kit inspect`` prints, with the fields in the same order."""
    return {
        "digest": str(documents.digest),
        "cliVersion": documents.manifest.annotations.get(CLI_VERSION) or "unknown",
        "kitfile": schema.to_json(documents.kitfile),
        "manifest": gojson.loads(documents.manifest.to_json()),
    }


def node(kitfile: Kitfile, path: str) -> Any:
    """Return the part of a Kitfile at a path such as model.path, model.parameters.lr or code.0.path.

    Field names are compared without case (kit ignores only the case of the first letter). Raises NotFound, and
    UsageError for an invalid path.
    """
    if "[" in path:
        raise UsageError("invalid filter: array access using '[]' is not currently supported")
    if not NODE.fullmatch(path):
        raise UsageError(f"invalid filter: {path}")
    value: Any = kitfile
    for step in path.removeprefix(".").split("."):
        value = _below(value, step)
    return value


def _below(value: Any, step: str) -> Any:
    if is_dataclass(value):
        for f in fields(value):
            if str(f.metadata.get("key") or f.name).lower() == step.lower():
                return getattr(value, f.name)
    elif isinstance(value, Mapping) and step in value:
        return value[step]
    elif isinstance(value, (list, tuple)) and step.isdecimal() and int(step) < len(value):
        return value[int(step)]
    raise NotFound("error filtering output: cannot find required node")


def as_yaml(value: Any) -> Any:
    """Convert a part of a Kitfile to values that ``gocompat.yaml_writer.dump`` accepts."""
    if is_dataclass(value):
        return schema.to_yaml(value)
    return [as_yaml(v) for v in value] if isinstance(value, tuple) else value


def as_json(value: Any) -> Any:
    """Convert a part of a Kitfile to values that ``gocompat.json`` accepts."""
    if is_dataclass(value):
        return schema.to_json(value)
    return [as_json(v) for v in value] if isinstance(value, tuple) else value
