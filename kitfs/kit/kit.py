"""An opened kit, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kitfs.kit.layer import Layer
from kitfs.modelkit.kitfile import Kitfile
from kitfs.oci.manifest import Manifest
from kitfs.oci.names import Digest, LayoutReference, Reference


@dataclass(frozen=True, slots=True)
class Kit:
    """An opened kit. ``layers`` are in the order in which they are laid over each other, parents' first.

    ``kitfile_bytes`` is the Kitfile as ``kit unpack`` would write it, None when a filter leaves it out or the kit has
    none (a ModelPack that KitOps did not pack); ``kitfile`` is then made from the layers' paths. ``pins`` are the
    digests that its reference and those of its parents meant.
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
        """The manifest's created time in seconds since the epoch, else 0."""
        return self.manifest.created

    def close(self) -> None:
        """Let go of every blob."""
        for layer in self.layers:
            layer.close()
