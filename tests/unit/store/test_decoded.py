"""After a blob was decoded once, any span of it is decoded alone, from the nearest restart point."""

from __future__ import annotations

import functools
import gzip
import hashlib
import random
from contextlib import suppress
from pathlib import Path

import pytest
import zstandard

from kitfs.errors import IntegrityError
from kitfs.layers.codec import DecodedSource
from kitfs.layers.points import SPAN, RestartPoints
from kitfs.oci.names import Digest
from kitfs.store.store import Store
from tests.fakes.sources import BytesSource
from tests.host import wait_until
from tests.stores import Opener

KINDS = ("gzip", "members", "zstd")
CONTENT = (
    b"".join(
        random.Random(i).randbytes(3 << 20) + random.Random(-i).randbytes(1 << 19).hex().encode() for i in range(1, 4)
    )
    + b"the end"
)


@functools.cache
def stream_of(kind: str) -> bytes:
    """Return the compressed content: a gzip stream, or several gzip members or zstd frames."""
    if kind == "gzip":
        return gzip.compress(CONTENT, 1, mtime=0)
    frames = [CONTENT[at : at + SPAN] for at in range(0, len(CONTENT), SPAN)]
    return b"".join(zstandard.compress(f, 1) if kind == "zstd" else gzip.compress(f, 1, mtime=0) for f in frames)


class Opened:
    """A compressed blob of a store and its decoded form."""

    def __init__(self, store: Store, kind: str) -> None:
        self.stream = stream_of(kind)
        self.source = BytesSource(self.stream, piece=100_000)
        digest = Digest.of(self.stream)
        self.wire = store.blob(digest, size=len(self.stream), source=self.source)
        source = DecodedSource(self.wire.stream, "zstd" if kind == "zstd" else "gzip")
        self.decoded = store.blob(digest, size=None, source=source, of=self.wire)

    def close(self) -> None:
        self.decoded.close()
        self.wire.close()

    def sealed(self) -> None:
        """Decode and verify everything."""
        self.decoded.fill()
        self.decoded.verify()


def evict(store: Store, *forms: str) -> None:
    """Remove the entries of these forms, as eviction does."""
    for entry in list(store.entries()):
        if entry.form in forms:
            assert store.remove(entry)


@pytest.mark.parametrize("kind", KINDS)
def test_an_evicted_span_moves_only_its_compressed_bytes(open_store: Opener, kind: str) -> None:
    """When both forms are evicted, a read of 4 KiB fetches the compressed bytes of a span, and no others."""
    store = open_store()
    first = Opened(store, kind)
    first.sealed()
    first.close()
    evict(store, "blobs", "decoded")
    second = Opened(open_store(), kind)
    at = len(CONTENT) // 2
    assert second.decoded.pread(at, 4096) == CONTENT[at : at + 4096]
    assert 0 < second.source.given <= 1.5 * SPAN
    before = second.source.given
    near = at // SPAN * SPAN
    assert second.decoded.pread(near, SPAN, alone=True) == CONTENT[near : near + SPAN]
    assert second.source.given == before
    second.close()


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoded_form_is_evicted_alone(open_store: Opener, kind: str) -> None:
    """When only the decoded form is evicted, it is decoded again from the stored compressed bytes."""
    store = open_store()
    first = Opened(store, kind)
    with store.pin([str(first.wire.digest)]):
        first.sealed()
        first.close()
        evict(store, "decoded")
        second = Opened(open_store(), kind)
        assert second.decoded.pread(0, len(CONTENT)) == CONTENT
        assert second.source.given == 0
        wait_until(lambda: second.decoded.sealed, "the decoded form was not verified")
        second.close()


def test_a_decoded_form_that_was_evicted_while_open_is_decoded_from_points(store: Store) -> None:
    """A mount reads on after the store has evicted the decoded form that the mount had open."""
    opened = Opened(store, "gzip")
    opened.sealed()
    assert opened.decoded.let_go()
    assert opened.wire.let_go()
    evict(store, "blobs", "decoded")
    opened.source.given = 0
    at = len(CONTENT) // 2
    assert opened.decoded.pread(at, 4096) == CONTENT[at : at + 4096]
    assert 0 < opened.source.given <= 1.5 * SPAN
    opened.close()


@pytest.mark.parametrize("others", [0, 1])
def test_wrong_compressed_bytes_are_not_served(open_store: Opener, others: int) -> None:
    """A span that was decoded from wrong bytes raises an error, or is fetched from another endpoint.

    A read also fails if the wrong compressed blob is being dropped at that moment. The next read then succeeds.
    """
    store = open_store()
    first = Opened(store, "gzip")
    first.sealed()
    first.close()
    evict(store, "blobs", "decoded")
    second = Opened(open_store(), "gzip")
    second.source.lie_at = len(second.stream) // 2
    second.source.others = others
    data = b""
    for at in range(0, len(CONTENT), 1 << 20):
        for _ in range(2):
            with suppress(IntegrityError):
                read = second.decoded.pread(at, 1 << 20)
                assert read == CONTENT[at : at + (1 << 20)]
                data += read
                break
    assert (data == CONTENT) == bool(others)
    second.close()


def test_points_of_another_blob_are_forgotten(open_store: Opener) -> None:
    """Restart points that do not belong to a verified blob are removed, and the blob is decoded from its beginning."""
    store = open_store()
    first = Opened(store, "gzip")
    first.sealed()
    first.close()
    evict(store, "blobs", "decoded")
    points = damage_points(store, first.wire.digest)
    second = Opened(open_store(), "gzip")
    with store.pin([str(second.wire.digest)]):
        second.wire.fill()
        second.wire.verify()
        assert second.decoded.pread(5 << 20, 4096) == CONTENT[5 << 20 :][:4096]
        assert not points.exists()
        second.close()


def damage_points(store: Store, digest: Digest) -> Path:
    """Replace the restart points of a blob by those of other content with the same size."""
    other = gzip.compress(CONTENT[::-1], 1)
    source = DecodedSource(lambda: [other], "gzip")
    for _ in source.read_range(0, None):
        pass
    made = source.points("00" * 32, len(stream_of("gzip")))
    assert made is not None
    path = Path(store.root, "points", "sha256", digest.hex[:2], digest.hex)
    assert path.exists()
    path.write_bytes(made.data)
    return path


def points_for(content: bytes, stream: bytes) -> RestartPoints:
    """Return the restart points of a gzip stream, as a chunk table has them."""
    source, hasher = DecodedSource(lambda: [stream], "gzip"), hashlib.sha256()
    for _, piece in source.read_range(0, None):
        hasher.update(piece)
    assert hasher.digest() == hashlib.sha256(content).digest()
    made = source.points(hasher.hexdigest(), len(stream_of("gzip")))
    assert made is not None
    return made


def test_given_points_make_a_cold_read_short(open_store: Opener) -> None:
    """With given points, a gzip layer need not be decoded from its beginning. When it is complete, it is verified."""
    opened = Opened(open_store(), "gzip")
    opened.decoded.use(points_for(CONTENT, stream_of("gzip")))
    at = len(CONTENT) // 2
    assert opened.decoded.pread(at, 4096) == CONTENT[at : at + 4096]
    assert 0 < opened.source.given <= 1.5 * SPAN
    assert opened.decoded.pread(0, len(CONTENT)) == CONTENT
    opened.wire.fill()
    wait_until(lambda: opened.decoded.sealed, "the decoded form was not verified")
    opened.close()


def test_wrong_given_points_are_not_shared(open_store: Opener) -> None:
    """A kit whose table has wrong points for a layer gets no other bytes into the store's decoded form of the layer."""
    other = CONTENT[::-1]
    points = points_for(other, gzip.compress(other, 1, mtime=0))
    opened = Opened(open_store(), "gzip")
    opened.decoded.use(points)
    assert opened.decoded.pread(5 << 20, 4096) == CONTENT[5 << 20 :][:4096]
    opened.sealed()
    opened.close()
    second = Opened(open_store(), "gzip")
    assert second.decoded.pread(0, len(CONTENT)) == CONTENT
    second.close()


def test_reads_in_any_order_see_the_content(open_store: Opener) -> None:
    """Reads of random places and sizes, which are decoded from restart points, return the content."""
    store = open_store()
    first = Opened(store, "gzip")
    first.sealed()
    first.close()
    evict(store, "decoded")
    second = Opened(open_store(), "gzip")
    order = random.Random(5)
    for _ in range(40):
        at, size = order.randrange(len(CONTENT)), order.choice([1, 4096, 200_000, 5 << 20])
        assert second.decoded.pread(at, size) == CONTENT[at : at + size]
    second.close()
