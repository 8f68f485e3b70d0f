"""An ingest hashes a blob while the blob is written. It can be resumed, and publishes complete blobs durably."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from kitfs.errors import IntegrityError, NotFound, StoreBusy, StoreError, StoreFull
from kitfs.oci.names import Digest
from kitfs.openfile import OpenFile
from kitfs.store.ingest import Ingest
from kitfs.store.lease import hold_sealed
from kitfs.store.room import DiskUsage
from kitfs.store.store import Store
from tests.stores import room_of

DATA = bytes(range(256)) * 5000


def names(store: Store) -> list[str]:
    return sorted(os.listdir(os.path.join(store.root, "ingest")))


def test_a_committed_blob_is_there_verified_and_leased(store: Store) -> None:
    new = store.ingest()
    for at in range(0, len(DATA), 70_001):
        new.write(DATA[at : at + 70_001])
    digest, added = new.commit()
    assert (digest, added) == (Digest.of(DATA), True)
    blob = store.blob(digest, size=len(DATA), source=None)
    assert blob.state == "verified"
    assert b"".join(blob.stream()) == DATA
    blob.close()
    store.evict(at_least=1 << 40)
    assert store.get(digest) == DATA  # takes a lease
    new.close()
    store.evict(at_least=1 << 40)
    assert store.get(digest) is None
    assert names(store) == []


def test_the_same_bytes_twice_are_one_blob(store: Store) -> None:
    for expected in (True, False, False):
        new = store.ingest()
        new.write(DATA)
        assert new.commit() == (Digest.of(DATA), expected)
        new.close()
    assert names(store) == []
    with store.open_sealed(Digest.of(DATA)) as f:  # type: ignore[union-attr]
        assert f.readall() == DATA


def test_other_bytes_than_expected_are_refused_and_may_be_discarded(store: Store) -> None:
    new = store.ingest()
    new.write(DATA)
    with pytest.raises(IntegrityError, match="have the digest"):
        new.commit(Digest.of(b"something else"))
    assert store.open_sealed(Digest.of(DATA)) is None
    new.discard()
    assert names(store) == []


def test_sha512(store: Store) -> None:
    new = store.ingest()
    new.write(DATA)
    digest = Digest.parse("sha512:" + hashlib.sha512(DATA).hexdigest())
    assert new.commit(digest) == (digest, True)
    new.close()
    assert store.get(digest) == DATA


def test_an_upload_goes_on_where_it_stands(store: Store) -> None:
    first = store.ingest(resumable=True, note={"repository": "a/b"})
    first.write(DATA[:1000])
    with pytest.raises(StoreBusy):
        store.resume(first.name)
    first.close()
    assert store.ingests.note(first.name) == {"repository": "a/b"}
    assert store.ingests.size(first.name) == 1000
    again = store.resume(first.name)
    assert again.size == 1000
    again.write(DATA[1000:])
    assert again.commit(Digest.of(DATA)) == (Digest.of(DATA), True)
    again.close()
    with pytest.raises(NotFound):
        store.resume(first.name)
    assert names(store) == []


@pytest.mark.parametrize("name", ["upload-" + "0" * 32, "../blobs", "upload-../../x", "new-" + "0" * 32, ""])
def test_what_is_no_upload_is_not_found(store: Store, name: str) -> None:
    with pytest.raises(NotFound):
        store.resume(name)
    assert store.ingests.size(name) is None
    assert store.ingests.note(name) is None


def test_what_a_process_left_behind_is_swept_and_uploads_are_kept_for_a_week(store: Store) -> None:
    kept, mine = store.ingest(resumable=True), store.ingest()
    kept.close()
    os.makedirs(os.path.join(store.root, "ingest", "new-of-a-dead-process"))
    store.ingests.sweep()
    assert "new-of-a-dead-process" in names(
        store
    )  # too young to be removed, because its creator may not have a lease yet
    for name in names(store):
        os.utime(os.path.join(store.root, "ingest", name), (0, 0))
    store.ingests.sweep()
    assert names(store) == sorted([kept.name, mine.name])
    os.utime(os.path.join(store.root, "ingest", kept.name, "rest"), (0, 0))
    store.ingests.sweep()
    assert names(store) == [mine.name]
    mine.close()


def test_a_blob_that_a_mount_is_fetching_gives_way(store: Store) -> None:
    digest = Digest.of(DATA)
    lazy = store.blob(digest, size=len(DATA), source=_Origin())
    assert lazy.pread(0, 10) == DATA[:10]
    new = store.ingest()
    new.write(DATA)
    assert new.commit() == (digest, True)
    new.close()
    assert lazy.pread(100_000, 10) == DATA[100_000:100_010]
    lazy.close()
    assert json.loads(Path(store.path(digest), "sealed").read_text())["size"] == len(DATA)


def test_pins_of_served_repositories(store: Store) -> None:
    for data in (b"one" * 100_000, b"two" * 100_000):
        new = store.ingest()
        new.write(data)
        new.commit()
        new.close()
    store.repositories.link("team/kit", "blobs", "sha256-" + Digest.of(b"one" * 100_000).hex, {})
    store.evict(at_least=1 << 40)
    assert store.get(Digest.of(b"one" * 100_000)) is not None
    assert store.get(Digest.of(b"two" * 100_000)) is None


def test_a_blob_that_was_held_since_the_evictor_listed_it_is_spared(store: Store) -> None:
    """After an evictor has listed a blob, another thread leases, links and releases it. The evictor spares it."""
    new = store.ingest()
    new.write(DATA)
    digest, _ = new.commit()
    new.close()
    os.utime(os.path.join(store.path(digest), "lease"), (1, 1))

    def link_meanwhile(root: str) -> DiskUsage:
        lease = store.hold(digest)
        assert lease is not None
        store.repositories.link("a", "blobs", "sha256-" + digest.hex, {})
        lease.close()
        return shutil.disk_usage(root)

    room_of(store, disk_usage=link_meanwhile).evict(at_least=1 << 40)
    assert store.get(digest) == DATA


def test_of_two_that_commit_at_once_the_first_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If two ingests commit the same blob, the blob of the first commit stays.

    The second ingest notices this only when it renames its own file.
    """
    answers: list[None] = []

    def hold(directory: str) -> OpenFile | None:
        if not answers:
            answers.append(None)
            assert first.commit() == (Digest.of(DATA), True)
            return None
        return hold_sealed(directory)

    first, second = store.ingest(), Ingest.new(store.root, make_room=store.room.make, hold=hold)
    first.write(DATA)
    second.write(DATA)
    digest = Digest.of(DATA)
    inode = None

    def rename(source: str, target: str) -> None:
        nonlocal inode
        if target == store.path(digest) and os.path.exists(target):
            inode = os.stat(target).st_ino
        real(source, target)

    real = os.rename
    monkeypatch.setattr(os, "rename", rename)
    assert second.commit() == (digest, False)
    assert inode == os.stat(store.path(digest)).st_ino
    first.close()
    second.close()
    assert store.get(digest) == DATA
    assert names(store) == []


def test_a_blob_that_lost_bytes_is_mended_by_bringing_it_again(store: Store) -> None:
    def brought() -> bool:
        new = store.ingest()
        new.write(DATA)
        digest, added = new.commit()
        new.close()
        assert digest == Digest.of(DATA)
        return added

    assert brought()
    os.truncate(os.path.join(store.path(Digest.of(DATA)), "rest"), 10)
    assert brought()
    assert store.get(Digest.of(DATA)) == DATA
    assert not brought()


def test_a_disk_that_failed_is_not_believed_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    new = store.ingest(resumable=True, note={})
    new.write(DATA)

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", fails)
        with pytest.raises(StoreError, match="Input/output error"):
            new.commit()
    new.close()
    assert names(store) == []
    with pytest.raises(NotFound):
        store.resume(new.name)


def test_a_full_disk_is_told_as_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreFull, match="no space left"):
        store.repositories.link("a", "blobs", "sha256-" + "0" * 64, {})
    with pytest.raises(StoreFull, match="no space left"):
        store.refs.set("a", "v1", {"digest": str(Digest.of(DATA))})
    assert list(Path(store.root).rglob("*~")) == []


def test_a_blob_that_cannot_be_sealed_is_a_full_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = store.blob(Digest.of(DATA), size=len(DATA), source=_Origin())
    digests = threading.Event()
    store.prove(digests.wait)  # keeps the verification thread busy
    blob.fill()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(StoreFull, match="no space left"):
        blob.verify()
    monkeypatch.undo()
    assert blob.state == "absent"  # after a failed sync the bytes may be lost
    blob.fill()
    blob.verify()
    assert blob.state == "verified"
    digests.set()
    blob.close()


class _Origin:
    size, ranged, sender = len(DATA), True, "fake"

    def distrust(self) -> bool:
        return False

    def read_range(self, start: int, stop: int | None, /):  # type: ignore[no-untyped-def]
        yield start, memoryview(DATA)[start:stop]
