"""If the disk of the store fails, reads continue without the store, and the disk is tried again later.

A real disk cannot be made to fail here, so the tests hand in calls of the operating system that fail.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kitfs.errors import IntegrityError, StoreError, StoreFull
from kitfs.oci.names import Digest
from kitfs.store.fill import fill
from kitfs.store.store import Store
from tests.fakes.sources import BytesSource

MiB = 1 << 20
DATA = random.Random(29).randbytes(5 * MiB + 333)
DIGEST = Digest.of(DATA)
PLACES = (4 * MiB, 100, 0, 2 * MiB + 5, len(DATA) - 50)


class FailingDisk:
    """Replacements for calls of the operating system.

    While ``error`` is set, the functions named in ``calls`` fail with it for files below ``root``.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: str) -> None:
        self.error = 0
        self.calls: set[str] = set()
        self._root = root
        for name in ("open", "mkdir", "pread", "preadv", "pwrite", "fsync", "fdatasync", "rename", "replace", "utime"):
            monkeypatch.setattr(os, name, self._failing(name, getattr(os, name)))

    def _failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *args: Any, **more: Any) -> Any:
            if self.error and name in self.calls:
                path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else os.fspath(target)
                if str(path).startswith(self._root):
                    raise OSError(self.error, os.strerror(self.error))
            return real(target, *args, **more)

        return call


@pytest.fixture
def disk(open_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    return FailingDisk(monkeypatch, open_store().root)


def read_everywhere(blob: Any) -> list[int]:
    """Return the places at which a blob returns wrong bytes."""
    return [at for at in PLACES if blob.pread(at, 200_000) != DATA[at : at + 200_000]]


WRITES = {"open", "mkdir", "pwrite", "fsync", "fdatasync", "rename", "replace", "utime"}
ALL = WRITES | {"pread", "preadv"}


@pytest.mark.parametrize(
    ("error", "calls"),
    [(errno.EIO, ALL), (errno.ENODEV, ALL), (errno.EROFS, WRITES - {"open"}), (errno.ENOSPC, {"pwrite", "mkdir"})],
    ids=["EIO", "ENODEV", "EROFS", "ENOSPC"],
)
@pytest.mark.parametrize("form", ["raw", "decoded"])
def test_reads_go_on_without_the_disk(
    open_store: Callable[..., Store], disk: FailingDisk, error: int, calls: set[str], form: str
) -> None:
    """Blobs that are open, and blobs that are opened while the disk fails, are read from their source."""
    store = open_store()

    def opened(source: BytesSource) -> Any:
        if form == "raw":
            return store.blob(DIGEST, size=len(DATA), source=source)
        wire = store.blob(Digest.of(b"wire"), size=4, source=BytesSource(b"wire"))
        return store.blob(wire.digest, size=None, source=source, of=wire)

    ranged = form == "raw"
    before = opened(BytesSource(DATA, ranged=ranged, known=ranged))
    assert before.pread(0, 2 * MiB) == DATA[: 2 * MiB]
    disk.error, disk.calls = error, calls
    assert read_everywhere(before) == []
    during = opened(BytesSource(DATA, ranged=ranged, known=ranged))
    assert read_everywhere(during) == []
    assert store.counters.get("bugs") == 0
    disk.error = 0


def test_a_failure_is_logged_once_and_the_disk_is_used_again(
    open_store: Callable[..., Store], disk: FailingDisk, caplog: pytest.LogCaptureFixture
) -> None:
    """One line is logged when the disk fails, and one line when it works again. Then bytes are stored again."""
    store = open_store(retry=-1.0)
    disk.error, disk.calls = errno.EIO, ALL
    blob = store.blob(DIGEST, size=len(DATA), source=BytesSource(DATA))
    for _ in range(3):
        assert read_everywhere(blob) == []
        store.look()
    assert blob.fetched == 0
    assert store.disk.failure == "input/output error"
    disk.error = 0
    store.look()
    assert read_everywhere(blob) == []
    assert blob.fetched > 0
    assert store.disk.failure is None
    said = [record.message for record in caplog.records if "the disk of the cache" in record.message]
    assert [("fails" in line, "works again" in line) for line in said] == [(True, False), (False, True)]


def test_stored_bytes_that_cannot_be_read_are_fetched_again(
    open_store: Callable[..., Store], disk: FailingDisk
) -> None:
    """If a sector of a verified blob is lost, the blob is dropped and fetched again, and no read fails."""
    store = open_store(retry=-1.0)
    first = store.blob(DIGEST, size=len(DATA), source=BytesSource(DATA))
    first.fill()
    first.verify()
    source = BytesSource(DATA)
    blob = store.blob(DIGEST, size=len(DATA), source=source)
    assert blob.sealed
    disk.error, disk.calls = errno.EIO, {"pread", "preadv"}
    assert read_everywhere(blob) == []
    assert source.asked
    disk.error = 0
    store.look()
    assert read_everywhere(blob) == []
    blob.fill()
    blob.verify()
    assert blob.sealed


def test_without_a_source_a_failing_disk_is_an_error(open_store: Callable[..., Store], disk: FailingDisk) -> None:
    """A kit that is only in the store cannot be read without its disk. Its blobs are not dropped."""
    store = open_store()
    store.put(DIGEST, DATA)
    blob = store.blob(DIGEST, size=len(DATA), source=None)
    disk.error, disk.calls = errno.EIO, ALL
    with pytest.raises((OSError, StoreError)):
        blob.pread(0, 100)
    with pytest.raises(StoreError):
        store.blob(DIGEST, size=len(DATA), source=None)
    disk.error = 0
    assert blob.pread(0, 100) == DATA[:100]
    assert blob.sealed


def test_bytes_are_fetched_although_their_marks_cannot_be_read(
    open_store: Callable[..., Store], disk: FailingDisk
) -> None:
    """``fetch`` returns False, because the bytes were not stored."""
    blob = open_store().blob(DIGEST, size=len(DATA), source=BytesSource(DATA))
    assert blob.fetch(0, 100)
    disk.error, disk.calls = errno.EIO, ALL
    assert not blob.fetch(4 * MiB, 100)
    assert blob.pread(4 * MiB, 100) == DATA[4 * MiB :][:100]


def test_a_transfer_to_a_failing_disk_does_not_ask_for_free_space(
    open_store: Callable[..., Store], disk: FailingDisk
) -> None:
    store = open_store()
    blob = store.blob(DIGEST, size=len(DATA), source=BytesSource(DATA))
    disk.error, disk.calls = errno.EIO, WRITES
    with pytest.raises(StoreError, match="cannot be stored: input/output error") as e:
        fill(blob, len(DATA), lambda size: None, threading.Event())
    assert not isinstance(e.value, StoreFull)


def test_a_blob_without_the_disk_is_not_verified(open_store: Callable[..., Store], disk: FailingDisk) -> None:
    """A blob that is read without the disk is never complete, because none of its bytes are stored."""
    store = open_store()
    disk.error, disk.calls = errno.EIO, ALL
    blob = store.blob(DIGEST, size=len(DATA), source=BytesSource(DATA))
    assert blob.fetch(0, MiB) is False
    assert (blob.state, blob.complete, blob.sealed) == ("absent", False, False)
    with pytest.raises(IntegrityError, match="is not complete"):
        blob.verify()
    assert not blob.let_go() or blob.pread(0, 10) == DATA[:10]
    disk.error = 0


def test_the_cache_is_removed_while_a_blob_is_open(open_store: Callable[..., Store]) -> None:
    """If the cache directory is removed, open blobs can be read, and new blobs are stored in a new directory."""
    store = open_store()
    blob = store.blob(DIGEST, size=len(DATA), source=BytesSource(DATA))
    blob.pread(0, MiB)
    shutil.rmtree(store.root)
    assert read_everywhere(blob) == []
    assert read_everywhere(store.blob(DIGEST, size=len(DATA), source=BytesSource(DATA))) == []
    assert Path(store.root).is_dir()
    assert store.counters.get("bugs") == 0
