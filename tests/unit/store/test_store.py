"""The store as a whole: opening, small blobs, limits, pins, hints and tags."""

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
from kitfs.store.readahead import MAX_WINDOW, Streams
from kitfs.store.store import Store
from tests.fakes.sources import BytesSource

MIB = 1 << 20


def fill(store: Store, seed: int, size: int = MIB) -> Digest:
    """A blob that is here, verified and not in use."""
    data = random.Random(seed).randbytes(size)
    digest = Digest.of(data)
    blob = store.blob(digest, size=size, source=BytesSource(data))
    blob.fill()
    blob.verify()
    blob.close()
    return digest


def test_directory_is_private(store: Store) -> None:
    """The store is 0700, and says which format it has."""
    assert os.stat(store.root).st_mode & 0o777 == 0o700
    assert (Path(store.root) / "VERSION").read_text() == "1\n"


def test_unknown_version_is_refused(open_store: Callable[..., Store]) -> None:
    """A store written by a newer kitfs is left alone."""
    root = Path(open_store().root)
    (root / "VERSION").write_text("2\n")
    with pytest.raises(StoreError, match="format '2', but this kitfs knows only 1"):
        open_store()
    assert (root / "VERSION").read_text() == "2\n"


def test_file_in_place_of_the_store(tmp_path: Path, open_store: Callable[..., Store]) -> None:
    """A file is one clear error that names the option."""
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match="--cache-dir"):
        open_store()


def test_small_blobs(store: Store) -> None:
    """put checks the digest, get too; a damaged one is as good as none."""
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
    """Above the limit whole blobs go, oldest use first, until the rest fits."""
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
    """A blob in use and the blobs of a tagged kit are never evicted."""
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
    """A manifest is not sacrificed for a layer in use that is too big anyway; it goes when its bytes are what is too
    much.
    """
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


def test_store_over_its_limit_reads_through(open_store: Callable[..., Store]) -> None:
    """A blob that does not fit is served all the same, and not kept."""
    store = open_store(size_limit=2 * MIB)
    data = random.Random(7).randbytes(8 * MIB)
    blob = store.blob(Digest.of(data), size=len(data), source=BytesSource(data))
    assert b"".join(blob.stream()) == data
    assert b"".join(blob.stream()) == data
    assert store.counters.get("read_through") > 0


def test_damaged_catalog_is_a_miss(open_store: Callable[..., Store]) -> None:
    """A catalog that is no database costs its hints and nothing else."""
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
    """A tag is there, by any name, until it is deleted; a damaged one is an error, not a miss."""
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
    """32 KiB to 16 GiB, then doubling, so that no blob has more than 2^19 chunks."""
    assert chunk_size(size) == chunk


def test_streams_double_and_jumps_do_not() -> None:
    """Several sequential readers each get a doubling window; a reader that jumps gets what it asks for."""
    streams = Streams()
    for base in (0, 1 << 30):
        assert streams.plan(base, base + 4096) == base + 4096
    windows = []
    at = {0: 4096, 1 << 30: (1 << 30) + 4096}
    for _ in range(12):
        for base in at:
            end = streams.plan(at[base], at[base] + 4096)
            windows.append(end - at[base])
            at[base] = end
    assert windows[::2] == windows[1::2]
    assert windows[::2] == [min(8192 << i, MAX_WINDOW) for i in range(12)]
    for jump in range(5 << 30, 9 << 30, 1 << 28):
        assert streams.plan(jump, jump + 4096) == jump + 4096


def test_an_index_of_kits_is_pinned_and_its_kits_are_not(store: Store) -> None:
    """What an index lists may be no more than what mounts have fetched."""
    layer = fill(store, 1)
    listed = json.dumps({"manifests": [{"digest": str(layer)}]}).encode()
    store.put(Digest.of(listed), listed)
    store.indexes.set("r.io/a/b", "all", {"digest": str(Digest.of(listed))})
    assert store.pinned() == {Digest.of(listed)}
    store.refs.set("r.io/a/b", "all", {"digest": str(Digest.of(listed))})
    assert store.pinned() == {Digest.of(listed), layer}
