"""A blob with a chunk table never stores or returns a byte that does not match the table."""

from __future__ import annotations

import hashlib
import random

import pytest

from kitfs.errors import WrongChunk
from kitfs.layers.chunk_table import CHUNK, DIGEST, ChunkHasher
from kitfs.oci.names import Digest
from kitfs.store.blob import Blob
from kitfs.store.store import Store
from tests.fakes.sources import BytesSource
from tests.stores import unverified

DATA = random.Random(12).randbytes(40 * CHUNK + 1234)
DIGEST_OF_DATA = Digest.parse(f"sha256:{hashlib.sha256(DATA).hexdigest()}")


class Digests:
    """The digests of ``DATA``. If ``exists`` is False, the table turns out not to exist."""

    def __init__(self, *, key: str = "table", exists: bool = True) -> None:
        hasher = ChunkHasher()
        hasher.update(DATA)
        self._digests = hasher.digests()
        self.key = key
        self._exists = exists

    def load(self) -> bool:
        return self._exists

    def digests(self, first: int, count: int, /) -> bytes:
        return self._digests[first * DIGEST : (first + count) * DIGEST]


def blob_of(store: Store, source: BytesSource, table: Digests | None = None) -> Blob:
    return store.blob(DIGEST_OF_DATA, size=len(DATA), source=source, table=table or Digests())


@pytest.mark.parametrize("ranged", [True, False], ids=["ranges", "stream"])
def test_a_wrong_chunk_is_neither_returned_nor_stored(store: Store, ranged: bool) -> None:
    """A read of a wrong chunk fails, and other chunks can be read. Later, the right chunk is stored and returned."""
    source = BytesSource(DATA, ranged=ranged)
    source.lie_at = 30 * CHUNK + 5
    blob = blob_of(store, source)
    with pytest.raises(WrongChunk, match="do not match their digest in the chunk table"):
        blob.pread(30 * CHUNK, 10)
    assert blob.pread(3 * CHUNK, 10) == DATA[3 * CHUNK :][:10]
    assert store.counters.get("integrity_failures") > 0
    source.lie_at = None
    assert blob.pread(30 * CHUNK, 10) == DATA[30 * CHUNK :][:10]
    assert blob.pread(0, len(DATA)) == DATA


@pytest.mark.parametrize("ranged", [True, False], ids=["ranges", "stream"])
def test_a_wrong_chunk_is_fetched_from_another_endpoint(store: Store, ranged: bool) -> None:
    """If the source has another endpoint, the reader notices nothing."""
    source = BytesSource(DATA, ranged=ranged)
    source.lie_at, source.others = 30 * CHUNK + 5, 1
    blob = blob_of(store, source)
    assert blob.pread(0, len(DATA)) == DATA
    assert source.others == 0
    blob.verify()
    assert blob.state == "verified"


def test_verified_chunks_are_shared_by_tables_not_by_endpoints(store: Store) -> None:
    """Another origin with the same table uses the stored chunks. Without the table, they are not used."""
    with unverified(store):
        blob_of(store, BytesSource(DATA)).pread(0, CHUNK)
        other = BytesSource(DATA)
        other.sender = "another registry"
        assert blob_of(store, other).pread(0, CHUNK) == DATA[:CHUNK]
        assert other.asked == []
        assert blob_of(store, other, Digests(key="another table")).pread(0, CHUNK) == DATA[:CHUNK]
        assert len(other.asked) == 1


def test_chunks_that_a_table_has_verified_stand_for_the_blob(store: Store) -> None:
    """Before the digest of the whole blob is computed, it is known that all of its bytes are right."""
    with unverified(store):
        blob = blob_of(store, BytesSource(DATA))
        blob.pread(0, CHUNK)
        assert not blob.has_verified_chunks
        blob.fill()
        assert (blob.has_verified_chunks, blob.sealed) == (True, False)


def test_without_its_table_a_blob_is_fetched_as_any_other(store: Store) -> None:
    """If the table does not exist, the bytes are stored for the endpoint that sends them."""
    with unverified(store):
        first = BytesSource(DATA)
        assert store.blob(DIGEST_OF_DATA, size=len(DATA), source=first).pread(0, 10) == DATA[:10]
        second = BytesSource(DATA)
        assert blob_of(store, second, Digests(exists=False)).pread(0, 10) == DATA[:10]
        assert second.asked == []


@pytest.mark.parametrize("ranged", [True, False], ids=["ranges", "stream"])
def test_no_read_returns_a_flipped_byte(store: Store, ranged: bool) -> None:
    """Whatever byte is flipped in flight, a read returns the right bytes or fails."""
    for seed in range(15):
        chance = random.Random(seed)
        source = BytesSource(DATA, ranged=ranged)
        source.lie_at = chance.randrange(len(DATA))
        offset, size = chance.randrange(len(DATA)), chance.randrange(1, 9 * CHUNK)
        blob = blob_of(store, source, Digests(key=f"{seed}"))
        try:
            assert blob.pread(offset, size) == DATA[offset : offset + size]
        except WrongChunk:
            assert not blob.complete
        blob.close()
