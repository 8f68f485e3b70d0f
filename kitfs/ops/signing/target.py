"""Find the manifest that a reference names, for verbs that sign or verify it.

Threading: the functions have no state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kitfs.content import Manifests
from kitfs.modelkit.index import KitIndex, is_kit_index, select
from kitfs.oci.manifest import IMAGE_MANIFEST, Descriptor, Manifest
from kitfs.oci.names import LayoutReference, Reference


class Subject(NamedTuple):
    """The kit that a reference names: the descriptor and the bytes of its manifest."""

    descriptor: Descriptor
    manifest: bytes


def subject_of(source: Manifests, reference: Reference | LayoutReference, labels: Mapping[str, str]) -> Subject:
    """Return the kit that a reference names at ``source``. If it names an index, ``labels`` select one of its kits.

    Raises NotFound, ManifestError if the reference does not name a kit, UsageError unless the labels select exactly one
    kit, and the errors of ``source``.
    """
    found, data = source.manifest(reference.digest or reference.tag or ("" if _in_layout(reference) else "latest"))
    if is_kit_index(data):
        found, data = source.manifest(select(KitIndex.parse(data), labels, reference).digest)
    manifest = Manifest.parse(data)
    manifest.require_kit()
    media_type = manifest.media_type or found.media_type or IMAGE_MANIFEST
    return Subject(Descriptor(media_type, found.digest, len(data)), data)


def _in_layout(reference: Reference | LayoutReference) -> bool:
    return isinstance(reference, LayoutReference)
