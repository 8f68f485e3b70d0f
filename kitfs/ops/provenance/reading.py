"""Read the manifest, the Kitfile and the config of a kit. Threading: each call uses one thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kitfs.errors import NotFound
from kitfs.kit.resolver import MAX_CONFIG
from kitfs.kit.workspace import Workspace
from kitfs.modelkit.kitfile import Kitfile
from kitfs.modelkit.layers import kitfile_of
from kitfs.oci.manifest import Manifest
from kitfs.oci.names import LOCAL, Digest, LayoutReference, Reference
from kitfs.ops.library.tags import blob_of, find
from kitfs.ops.signing.target import subject_of


class Documents(NamedTuple):
    """The documents of a kit. ``config``: the bytes of its config."""

    digest: Digest
    manifest: Manifest
    kitfile: Kitfile
    config: bytes


def read_documents(
    workspace: Workspace, reference: Reference | LayoutReference, labels: Mapping[str, str], *, remote: bool
) -> Documents:
    """Read the documents of a kit from the store, or else from its registry or layout.

    ``remote``: read from the registry even if the store has the kit. If the reference names an index, ``labels`` select
    the kit. Raises NotFound, ManifestError, KitfileError, StoreError, RegistryError, and UsageError unless the labels
    select one kit.
    """
    store = workspace.store
    kept = find(store, reference) if isinstance(reference, Reference) and not remote else None
    if kept is not None:
        manifest = Manifest.parse(blob_of(store, kept.digest))
        config = blob_of(store, manifest.config.digest)
        return Documents(kept.digest, manifest, kitfile_of(manifest, config), config)
    if isinstance(reference, Reference) and reference.registry == LOCAL:
        raise NotFound(f"{reference.display} is not in the store and does not name a registry")
    origin = workspace.asked(reference)
    subject = subject_of(origin, reference, labels)
    manifest = Manifest.parse(subject.manifest)
    config = origin.blob_bytes(manifest.config, MAX_CONFIG)
    return Documents(subject.descriptor.digest, manifest, kitfile_of(manifest, config), config)
