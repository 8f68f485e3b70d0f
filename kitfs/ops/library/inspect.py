"""What a kit says of itself: manifest and Kitfile, without layers and without parents (kit's ``inspect`` and
``info``, KITOPS §8).

No printing; the values are ready for ``oci.gojson`` and ``oci.goemit``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final, NamedTuple

from kitfs.content import Origin
from kitfs.errors import NotFound, StoreError, UsageError
from kitfs.gocompat import json as gojson
from kitfs.gocompat import structs as schema
from kitfs.kit.resolver import MAX_CONFIG
from kitfs.modelkit.kitfile import Kitfile
from kitfs.modelkit.layers import kitfile_of
from kitfs.modelkit.writer import CLI_VERSION
from kitfs.oci.manifest import Manifest
from kitfs.oci.names import Digest, Reference
from kitfs.ops.library.tags import required
from kitfs.store.store import Store

NODE: Final = re.compile(r"\.?[a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)*")


class Look(NamedTuple):
    """A kit's manifest, its digest and its Kitfile."""

    digest: Digest
    manifest: Manifest
    kitfile: Kitfile


def stored(store: Store, reference: Reference) -> Look:
    """Look at a kit that was packed or pulled here. Raises NotFound, StoreError when a part is lost, ManifestError,
    KitfileError.
    """
    return stored_digest(store, required(store, reference).digest)


def stored_digest(store: Store, digest: Digest) -> Look:
    """Look at a kit of the store by its digest. Raises StoreError when a part is lost, ManifestError, KitfileError."""
    manifest = Manifest.parse(_kept(store, digest))
    return Look(digest, manifest, kitfile_of(manifest, _kept(store, manifest.config.digest)))


def _kept(store: Store, digest: Digest) -> bytes:
    data = store.get(digest)
    if data is None:
        raise StoreError(f"the store has lost its blob {digest}; pull or pack the kit again")
    return data


def fetched(origin: Origin, identifier: str) -> Look:
    """Look at a kit of a registry. Raises NotFound, RegistryError, ManifestError, KitfileError, IntegrityError."""
    descriptor, data = origin.manifest(identifier)
    manifest = Manifest.parse(data)
    manifest.require_kit()  # before any blob of another artifact is fetched
    return Look(descriptor.digest, manifest, kitfile_of(manifest, origin.blob_bytes(manifest.config, MAX_CONFIG)))


def inspection(look: Look) -> dict[str, Any]:
    """What ``kit inspect`` prints, in its order."""
    return {
        "digest": str(look.digest),
        "cliVersion": look.manifest.annotations.get(CLI_VERSION) or "unknown",
        "kitfile": schema.to_json(look.kitfile),
        "manifest": gojson.loads(look.manifest.to_json()),
    }


def node(kitfile: Kitfile, path: str) -> Any:
    """The part of a Kitfile that ``model.path``, ``package.authors``, ``model.parameters.lr`` or ``code.0.path`` names.

    Fields are found in any case (kit: with their first letter in either). Raises UsageError for a wrong path,
    NotFound.
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
    """A part of a Kitfile for ``goemit.dump``."""
    if is_dataclass(value):
        return schema.to_yaml(value)
    return [as_yaml(v) for v in value] if isinstance(value, tuple) else value


def as_json(value: Any) -> Any:
    """A part of a Kitfile for ``gojson``."""
    if is_dataclass(value):
        return schema.to_json(value)
    return [as_json(v) for v in value] if isinstance(value, tuple) else value
