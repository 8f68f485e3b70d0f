"""Describe a layer and report its state. ``layer.Layer`` is the layer itself; its fields are declared here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from kitfs.errors import IntegrityError
from kitfs.kit.layer_table import LayerTable
from kitfs.layers.index import LayerIndex
from kitfs.oci.manifest import Descriptor, LayerType
from kitfs.oci.names import Digest
from kitfs.store.blob import Blob


class LayerState(ABC):
    """What a layer is, which bytes of it are in the store, and whether they are right."""

    descriptor: Descriptor
    type: LayerType
    index_is_proven: bool
    _wire: Blob | None
    _decoded: Blob | None
    _index: LayerIndex | None
    _table: LayerTable | None
    _misfit: IntegrityError | None

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest

    @property
    def media_type(self) -> str:
        return self.descriptor.media_type

    @property
    def size(self) -> int:
        """Return the size of the blob in bytes, from the manifest."""
        return self.descriptor.size

    @property
    def compressed(self) -> bool:
        """Return whether the blob is a gzip or zstd stream."""
        return self.type.compression != "none"

    @abstractmethod
    def _prove_soon(self) -> None:
        """Start the check of an index that was made from unverified bytes, if the bytes are verified now."""

    @property
    def proof(self) -> Literal["manifest", "host", "digest"]:
        """Return what vouches for a part of the layer: the chunk table of the manifest, or that of this host.

        The result is "digest" if the layer has no table that can be used, and can only be verified as a whole.
        """
        return "digest" if self._table is None or self._table.is_missing else self._table.proof

    def has_table(self) -> bool:
        """Return whether the layer has a chunk table that can be used. The head of the table is fetched.

        Raises IntegrityError for wrong bytes, and the errors of the origin.
        """
        return self._table is not None and self._table.load()

    @property
    def failure(self) -> IntegrityError | None:
        """Return the error about the layer's wrong bytes; None if the bytes are not known to be wrong."""
        if self._misfit is not None:
            return self._misfit
        for blob in (self._wire, self._decoded):
            if blob is not None and blob.failure is not None:
                return blob.failure
        return None

    def state(self) -> str:
        """Return the state of the content: "absent", "partial", "present", "verified" or "wrong".

        A layer is verified if its digest is right and the index in use has been compared with its bytes, or if its
        chunk table has verified every byte.
        """
        if self.failure is not None:
            return "wrong"
        content = self._decoded if self.compressed else self._wire
        state = "absent" if content is None else content.state
        if state == "absent" and self.compressed:
            state = "absent" if self._wire is None or self._wire.state == "absent" else "partial"
        if state == "present" and content is not None and content.has_verified_chunks:
            return "verified"
        return "present" if state == "verified" and not self.is_verified() else state

    def is_verified(self) -> bool:
        """Return whether the digest of the layer is verified, and the index in use belongs to it.

        The chunk map is not read.
        """
        content = self._decoded if self.compressed else self._wire
        if self.failure is not None or content is None or not content.sealed:
            return False
        if self._index is not None and not self.index_is_proven:
            self._prove_soon()
            return False
        return True

    def fetched(self) -> int:
        """Return how many bytes of the layer's blob (``wire``) are in the store."""
        if self.compressed and self._decoded is not None and self._decoded.complete:
            return self.descriptor.size
        return 0 if self._wire is None or self.failure is not None else self._wire.fetched
