"""Define the value that ``Resolver.open`` returns: an opened kit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kitfs.kit.layer import Layer
from kitfs.modelkit.kitfile import Kitfile
from kitfs.oci.manifest import Manifest
from kitfs.oci.names import Digest, LayoutReference, Reference


@dataclass(frozen=True, slots=True)
class Kit:
    """An opened kit. ``layers`` begins with the layers of its parents; later layers take precedence.

    ``kitfile_bytes`` is the Kitfile as ``kit unpack`` would write it. It is None if a filter leaves the Kitfile out, or
    if the kit has no Kitfile (a ModelPack that KitOps did not pack). For a kit without a Kitfile, ``kitfile`` is made
    from the paths of the layers. ``pins`` maps the reference of the kit, and the references of its parents, to the
    digests that they had when the kit was opened.
    """

    reference: Reference | LayoutReference
    digest: Digest
    manifest: Manifest
    kitfile: Kitfile
    kitfile_bytes: bytes | None
    layers: tuple[Layer, ...]
    pins: Mapping[str, Digest] = field(default_factory=dict)

    @property
    def created(self) -> int:
        """Return the created time of the manifest in seconds since the epoch; 0 if the manifest has none."""
        return self.manifest.created

    def close(self) -> None:
        """Close the blobs of every layer."""
        for layer in self.layers:
            layer.close()
