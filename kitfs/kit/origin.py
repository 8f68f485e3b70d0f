"""Where a kit comes from: a repository of a registry, an OCI layout, or the store alone."""

from __future__ import annotations

from kitfs.content import Source
from kitfs.errors import NotFound
from kitfs.oci.manifest import Descriptor


class Stored:
    """The Origin of a kit that was packed or pulled here: all of it is in the store, and nobody is asked."""

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]:
        """Raises NotFound: the store would have had it."""
        raise NotFound(f"manifest {identifier} is not in the store any more; ask its registry with --remote")

    def blob(self, descriptor: Descriptor) -> Source | None:
        """No source: what the store has is all there is."""
        return None

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes:
        """Raises NotFound: the store would have had it."""
        raise NotFound(f"blob {descriptor.digest} is not in the store any more; ask its registry with --remote")
