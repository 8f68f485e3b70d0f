"""Compare the layers of two kits by their manifests, as KitOps' pkg/cmd/diff does.

Only ``without_equal_layers`` reads layers, and only their first entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

from kitfs.oci.manifest import FILEPATH, Descriptor, Manifest
from kitfs.oci.paths import paths_overlap
from kitfs.ops.diff.pairs import pair


class LayerChanges(NamedTuple):
    """The result of a comparison of two manifests.

    ``shared``: the layers that both manifests have. ``first`` and ``second``: the layers that only one manifest has.
    Each list is sorted by media type; layers with the same media type keep the order of their manifest.
    """

    same_config: bool
    same_annotations: bool
    shared: list[Descriptor]
    first: list[Descriptor]
    second: list[Descriptor]


def compare_layers(first: Manifest, second: Manifest) -> LayerChanges:
    """Pair layers by digest and path, and then the remaining layers by digest alone. A layer is paired at most once."""
    exact = pair(first.layers, second.layers, lambda layer: (layer.digest, _path(layer)))
    moved = pair(exact.first, exact.second, lambda layer: layer.digest)
    shared = {id(layer) for _, layer in (*exact.pairs, *moved.pairs)}
    return LayerChanges(
        first.config.digest == second.config.digest,
        dict(first.annotations) == dict(second.annotations),
        _by_media_type([layer for layer in second.layers if id(layer) in shared]),
        _by_media_type(moved.first),
        _by_media_type(moved.second),
    )


def _path(layer: Descriptor) -> str:
    return next((layer.annotations[name] for name in FILEPATH if name in layer.annotations), "")


def _by_media_type(layers: list[Descriptor]) -> list[Descriptor]:
    return sorted(layers, key=lambda layer: layer.media_type)


class DeclaredLayer(Protocol):
    """A layer with its declared path, as ``without_equal_layers`` needs it (for example ``kit.layer.Layer``)."""

    @property
    def digest(self) -> str: ...

    path: str | None

    def first_entry_agrees(self, *, wait: bool = True) -> bool: ...


L = TypeVar("L", bound=DeclaredLayer)


def without_equal_layers(first: Sequence[L], second: Sequence[L]) -> tuple[list[L], list[L]]:
    """Return the layers of two kits without the layers that are equal in both.

    If the kits have their common layers in different orders, all layers are returned. A common layer is also returned
    if its path overlaps the path of a layer that only one kit has. Omitting layers saves time, because the index of a
    compressed layer can only be made by reading the whole layer.
    """
    pairs, left, right = pair(first, second, lambda layer: (layer.digest, layer.path))
    if [id(a) for a, _ in pairs] != [id(a) for a in first if not any(a is other for other in left)]:
        return list(first), list(second)
    others = [layer.path for layer in (*left, *right)]
    equal: set[int] = set()
    for a, b in pairs:
        path = a.path
        if path and all(o is not None and not paths_overlap(o, path) for o in others) and a.first_entry_agrees():
            equal |= {id(a), id(b)}
    return [a for a in first if id(a) not in equal], [b for b in second if id(b) not in equal]
