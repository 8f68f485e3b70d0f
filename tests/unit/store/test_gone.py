"""If files of an open store are deleted or damaged, reads continue. A damaged catalog is replaced."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from kitfs.oci.names import Digest
from kitfs.store.store import Store
from tests.fakes.sources import BytesSource

MiB = 1 << 20
DATA = random.Random(23).randbytes(3 * MiB)


def test_a_store_that_is_deleted_is_read_through(open_store: Callable[..., Store]) -> None:
    store = open_store(recheck=-1.0)
    blob = store.blob(Digest.of(DATA), size=len(DATA), source=BytesSource(DATA))
    assert blob.pread(0, 4096) == DATA[:4096]
    shutil.rmtree(store.root)
    store.room.read_through(0)  # as after a write that failed because the disk was full
    assert [at for at in range(0, len(DATA), MiB // 2) if blob.pread(at, 100_000) != DATA[at : at + 100_000]] == []
    assert store.counters.get("bugs") == 0


def test_a_tag_that_is_damaged_fails_no_read(open_store: Callable[..., Store]) -> None:
    """If a tag is damaged, the store cannot know which blobs are pinned.

    It then evicts nothing, and reads continue without storing bytes.
    """
    store = open_store(recheck=-1.0)
    blob = store.blob(Digest.of(DATA), size=len(DATA), source=BytesSource(DATA))
    store.refs.set("r/a", "v1", {"digest": str(Digest.of(DATA))})
    for path in Path(store.root, "refs").rglob("v1"):
        path.write_text("{")
    store.room.read_through(0)
    assert blob.pread(MiB, 4096) == DATA[MiB : MiB + 4096]


def test_a_damaged_catalog_is_begun_anew(open_store: Callable[..., Store]) -> None:
    """The hints in the catalog are lost. This process and later ones can store new hints."""
    store = open_store()
    store.catalog.set(("tag", "r/a:v1"), {"digest": "x"})
    store.close()
    for file in (Path(store.root) / "catalog").glob("*.db*"):
        file.write_bytes(b"no database " * 1000)
    again = open_store()
    assert again.catalog.get(("tag", "r/a:v1")) is None
    again.catalog.set(("tag", "r/a:v1"), {"digest": "y"})
    assert again.catalog.get(("tag", "r/a:v1")) == {"digest": "y"}
    assert open_store().catalog.get(("tag", "r/a:v1")) == {"digest": "y"}
    assert list(Path(store.root, "ingest").iterdir()) == []
