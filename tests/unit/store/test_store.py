"""Tests of the whole store: opening, small blobs, limits, pins, hints and tags."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kitfs.errors import IntegrityError, StoreError
from kitfs.oci.names import Digest
from kitfs.store.meta import chunk_size
from kitfs.store.store import Store
from tests.fakes.sources import BytesSource
from tests.host import wait_until

MIB = 1 << 20


def fill(store: Store, seed: int, size: int = MIB) -> Digest:
    """Store and verify a new blob that is not in use. Return its digest."""
    data = random.Random(seed).randbytes(size)
    digest = Digest.of(data)
    blob = store.blob(digest, size=size, source=BytesSource(data))
    blob.fill()
    blob.verify()
    blob.close()
    return digest


def test_directory_is_private(store: Store) -> None:
    """The directory has mode 0700. It contains the version number of the store's format."""
    assert os.stat(store.root).st_mode & 0o777 == 0o700
    assert (Path(store.root) / "VERSION").read_text() == "2\n"


def test_unknown_version_is_refused(open_store: Callable[..., Store]) -> None:
    """If a newer kitfs wrote the store, the store is refused and not changed."""
    root = Path(open_store().root)
    (root / "VERSION").write_text("3\n")
    with pytest.raises(StoreError, match="format '3', but this kitfs knows only 1 and 2"):
        open_store()
    assert (root / "VERSION").read_text() == "3\n"


def test_file_in_place_of_the_store(tmp_path: Path, open_store: Callable[..., Store]) -> None:
    """If the path of the store is a file, the error names the option that sets the path."""
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match="--cache-dir"):
        open_store()


def test_small_blobs(store: Store) -> None:
    """``put`` and ``get`` check the digest. A damaged blob is treated as missing."""
    digest = Digest.of(b"manifest")
    assert store.get(digest) is None
    store.put(digest, b"manifest")
    store.put(digest, b"manifest")
    assert store.get(digest) == b"manifest"
    with pytest.raises(IntegrityError):
        store.put(digest, b"something else")
    (Path(store.path(digest)) / "rest").write_bytes(b"manifesT")
    assert store.get(digest) is None


def test_least_recently_used_goes_first(open_store: Callable[..., Store]) -> None:
    """If the store exceeds its limit, the least recently used blobs are evicted until the rest fits."""
    store = open_store()
    digests = [fill(store, seed) for seed in range(5)]
    for i, digest in enumerate(digests):
        when = time.time() - 1000 + 10 * i
        os.utime(Path(store.path(digest)) / "lease", (when, when))
    os.utime(Path(store.path(digests[0])) / "lease")
    store = open_store(size_limit=3 * MIB + MIB // 2)
    assert store.evict() >= 2 * MIB
    assert [os.path.exists(store.path(d)) for d in digests] == [True, False, False, True, True]
    assert store.counters.get("evicted_blobs") == 2


def test_leased_and_pinned_blobs_stay(open_store: Callable[..., Store]) -> None:
    """Blobs in use and blobs of tagged kits are never evicted."""
    store = open_store()
    used, layer, config = fill(store, 1), fill(store, 2), fill(store, 3, 100)
    manifest = json.dumps({"config": {"digest": config}, "layers": [{"digest": layer}]}).encode()
    store.put(Digest.of(manifest), manifest)
    store.refs.set("localhost/kit", "v1", {"digest": Digest.of(manifest)})
    other = fill(store, 4)
    open_store().blob(used, size=MIB, source=None)
    store = open_store(size_limit=1)
    store.evict()
    assert [os.path.exists(store.path(d)) for d in (used, layer, config, Digest.of(manifest), other)] == [
        True,
        True,
        True,
        True,
        False,
    ]
    assert store.usage() < 2 * MIB


def test_small_blobs_go_only_when_that_helps(open_store: Callable[..., Store]) -> None:
    """If a layer in use is larger than the limit, no manifest is evicted, because that would not help."""
    store = open_store()
    store.put(Digest.of(b"manifest"), b"manifest")
    used = fill(store, 1)
    other = open_store()
    other.blob(used, size=MIB, source=None)
    open_store(size_limit=1).evict()
    assert store.get(Digest.of(b"manifest")) == b"manifest"
    other.close()
    open_store(size_limit=1).evict()
    assert store.get(Digest.of(b"manifest")) is None
    assert not os.path.exists(store.path(used))


def test_a_blob_that_is_larger_than_the_store_starts_over(open_store: Callable[..., Store]) -> None:
    """A blob that is larger than the limit can be read.

    Its entry is removed meanwhile, and later bytes are fetched again.
    """
    store = open_store(size_limit=2 * MIB, recheck=0.0)
    data = random.Random(7).randbytes(8 * MIB)
    blob = store.blob(Digest.of(data), size=len(data), source=BytesSource(data))
    places = random.Random(8)
    with open(os.path.join(blob.directory, "lease"), "rb") as first:  # open, so that its inode is not used again

        def removed() -> bool:
            at = places.randrange(7 * MIB)
            assert blob.pread(at, 100_000) == data[at : at + 100_000]
            return os.fstat(first.fileno()).st_nlink == 0

        wait_until(removed, "the blob was not removed and fetched again", seconds=60)
    assert blob.pread(5, MIB) == data[5 : 5 + MIB]
    assert blob.failure is None


def test_an_idle_blob_of_a_mount_is_evicted_for_another(open_store: Callable[..., Store]) -> None:
    """If a layer was not read lately, it is evicted to make room for a layer that is being read.

    The evicted layer is fetched again when it is next read.
    """
    store = open_store(size_limit=2 * MIB, recheck=0.0)
    one, two = (random.Random(seed).randbytes(2 * MIB) for seed in (8, 9))
    idle, busy = (store.blob(Digest.of(d), size=len(d), source=BytesSource(d)) for d in (one, two))
    assert b"".join(idle.stream()) == one
    idle.used -= 60.0
    places = random.Random(8)

    def evicted() -> bool:
        at = places.randrange(MIB)
        assert busy.pread(at, 4096) == two[at : at + 4096]
        return store.counters.get("evicted_blobs") >= 1

    wait_until(evicted, "nothing was evicted", seconds=60)
    assert idle.pread(1000, 10) == one[1000:1010]


def test_damaged_catalog_is_a_miss(open_store: Callable[..., Store]) -> None:
    """If the catalog is not a database, only the hints in it are lost."""
    store = open_store()
    store.catalog.set(("tag", "r/a:v1"), {"digest": "x"})
    assert store.catalog.get(("tag", "r/a:v1")) == {"digest": "x"}
    store.close()
    for file in (Path(store.root) / "catalog").glob("*.db*"):
        file.write_bytes(b"not a database, not at all" * 100)
    again = open_store()
    assert again.catalog.get(("tag", "r/a:v1")) is None
    again.catalog.set(("tag", "r/a:v1"), {"digest": "y"})
    fill(again, 1)


def test_tags_are_files(store: Store) -> None:
    """A tag of any name exists until it is deleted. Reading a damaged tag raises an error."""
    for name, tag in (("r.io:5000/team/kit", "v1"), ("localhost/_", ".hidden"), ("a/b", "V_1.2-3")):
        assert store.refs.get(name, tag) is None
        store.refs.set(name, tag, {"digest": "sha256:1"})
        assert store.refs.get(name, tag) == {"digest": "sha256:1"}
    assert [(n, t) for n, t, _ in store.refs.items()] == [
        ("a/b", "V_1.2-3"),
        ("localhost/_", ".hidden"),
        ("r.io:5000/team/kit", "v1"),
    ]
    assert store.refs.delete("a/b", "V_1.2-3")
    assert not store.refs.delete("a/b", "V_1.2-3")
    next(Path(store.root, "refs").glob("localhost*/*")).write_text("{")
    with pytest.raises(StoreError, match="cannot read the tag"):
        store.refs.get("localhost/_", ".hidden")


@pytest.mark.parametrize(
    ("size", "chunk"),
    [(1, 32 << 10), (16 << 30, 32 << 10), ((16 << 30) + 1, 64 << 10), (1 << 40, 2 << 20), (None, 128 << 10)],
)
def test_chunk_sizes(size: int | None, chunk: int) -> None:
    """A blob of up to 16 GiB has chunks of 32 KiB. Larger blobs have larger chunks, at most 2^19 of them."""
    assert chunk_size(size) == chunk


def test_an_index_of_kits_is_pinned_and_its_kits_are_not(store: Store) -> None:
    """If an index is pinned, its kits are not pinned, because mounts may have fetched only parts of them."""
    layer = fill(store, 1)
    listed = json.dumps({"manifests": [{"digest": str(layer)}]}).encode()
    store.put(Digest.of(listed), listed)
    store.indexes.set("r.io/a/b", "all", {"digest": str(Digest.of(listed))})
    assert store.pinned() == {Digest.of(listed)}
    store.refs.set("r.io/a/b", "all", {"digest": str(Digest.of(listed))})
    assert store.pinned() == {Digest.of(listed), layer}
