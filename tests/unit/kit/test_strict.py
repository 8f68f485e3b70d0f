"""A strict reader verifies every chunk that it reads, and does not wait if it must not."""

from __future__ import annotations

import pytest

from kitfs.content import Source
from kitfs.errors import WouldBlock
from kitfs.kit.layer_table import NamedLayerTable
from kitfs.kit.strict import StrictReader
from kitfs.layers.chunk_table import CHUNK, PAGE, ChunkHasher, build
from kitfs.oci.chunk_tables import named
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest
from kitfs.store.store import Store
from tests.fakes.sources import BytesSource

DATA = bytes(PAGE * CHUNK + 1000)


class TableOrigin:
    """An origin that has only a chunk table."""

    def __init__(self, table: bytes) -> None:
        self._table = table

    def blob(self, descriptor: Descriptor) -> Source:
        return BytesSource(self._table)

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]:
        raise NotImplementedError


def test_a_reader_that_must_not_wait_does_not_read_the_chunk_table(store: Store) -> None:
    """The bytes are in the store, but their digests may be at the registry only."""
    hasher = ChunkHasher()
    hasher.update(DATA)
    digest = Digest.of(DATA)
    table = build(digest.hex, len(DATA), hasher.digests(), {})
    store.put(digest, DATA)
    layer = Descriptor("application/octet-stream", digest, len(DATA))
    digests = NamedLayerTable(named(table), layer, TableOrigin(table.data), store)
    reader = StrictReader(store.blob(digest, size=len(DATA), source=None), digests)
    assert reader.pread(0, 10) == bytes(10)
    assert reader.pread(CHUNK, 10, wait=False) == bytes(10)
    with pytest.raises(WouldBlock):
        reader.pread(PAGE * CHUNK, 10, wait=False)
    assert reader.pread(PAGE * CHUNK, 10) == bytes(10)
    assert reader.pread(PAGE * CHUNK, 10, wait=False) == bytes(10)
    digests.close()
