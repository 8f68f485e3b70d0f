"""If the store is full, readers still get all bytes, from registries and from decoders."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kitfs.errors import StoreFull, WouldBlock
from kitfs.oci.names import Digest
from kitfs.store.blob import Blob
from kitfs.store.store import Store
from tests.fakes.sources import BytesSource
from tests.host import wait_until

MiB = 1 << 20
DATA = random.Random(17).randbytes(30 * MiB + 777)
PATIENCE = 60  # seconds


class Disk:
    """A replacement for os.pwrite. It raises ENOSPC for files whose names match ``refuses``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refuses: Callable[[str], bool] = lambda name: False
        self._pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", self.pwrite)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        if self.refuses(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._pwrite(fd, data, offset)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def decoded(store: Store, source: BytesSource) -> Blob:
    """Return a blob whose size is unknown until its source ends, as for the output of a decoder."""
    wire = store.blob(Digest.of(b"wire"), size=4, source=BytesSource(b"wire"))
    return store.blob(wire.digest, size=None, source=source, of=wire)


def test_a_decoder_begins_anew_for_what_it_has_passed(store: Store, disk: Disk) -> None:
    """If the output of a decoder could not be stored, a read before the decoder's position starts the decoder again."""
    disk.refuses = lambda name: name == "rest"
    blob = decoded(store, BytesSource(DATA, ranged=False, known=False, piece=MiB))
    with ThreadPoolExecutor() as pool:
        for at in (20 * MiB, 5 * MiB, 0, 25 * MiB, len(DATA) - 100, 12 * MiB):
            assert pool.submit(blob.pread, at, 4096).result(PATIENCE) == DATA[at : at + 4096]
    assert blob.size == len(DATA)


@pytest.mark.parametrize("known", [True, False], ids=["registry without ranges", "decoder"])
def test_many_readers_of_one_stream_that_cannot_be_kept(store: Store, disk: Disk, known: bool) -> None:
    """64 readers at 64 places get all their bytes, although one decoder cannot buffer enough for all of them."""
    disk.refuses = lambda name: name == "rest"
    source = BytesSource(DATA, ranged=False, known=known, piece=MiB)
    blob = store.blob(Digest.of(DATA), size=len(DATA), source=source) if known else decoded(store, source)
    places = [n * (len(DATA) // 64) for n in range(64)]
    random.Random(1).shuffle(places)
    with ThreadPoolExecutor(64) as pool:
        reads = [(at, pool.submit(blob.pread, at, 200_000)) for at in places]
        assert [at for at, read in reads if read.result(PATIENCE) != DATA[at : at + 200_000]] == []


class Steps(threading.Event):
    """A stall of a source that lets through as many pieces as ``allow`` says."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces = threading.Semaphore(0)

    def allow(self, pieces: int) -> None:
        self._pieces.release(pieces)

    def wait(self, timeout: float | None = None) -> bool:
        return self._pieces.acquire(timeout=timeout)


def test_a_reader_without_a_thread_is_called_when_its_bytes_pass(store: Store, disk: Disk) -> None:
    """In a full store, a parked read is called when its bytes arrive, although the request goes on."""
    disk.refuses = lambda name: name == "rest"
    source = BytesSource(DATA, piece=1 * MiB)
    blob = store.blob(Digest.of(DATA), size=len(DATA), source=source)
    source.stall = steps = Steps()
    reader = threading.Thread(target=lambda: blob.pread(0, 20 * MiB), daemon=True)
    reader.start()
    wait_until(lambda: source.given > 0, "the fetch did not begin")
    ready = threading.Event()
    with pytest.raises(WouldBlock) as caught:
        blob.pread(2 * MiB, 100, wait=False)
    assert caught.value.when_ready is not None
    assert caught.value.when_ready(lambda _: ready.set())
    steps.allow(3)
    assert ready.wait(PATIENCE)
    assert source.given == 4 * MiB
    assert blob.pread(2 * MiB, 100) == DATA[2 * MiB : 2 * MiB + 100]
    steps.allow(100)
    reader.join(PATIENCE)


def test_a_whole_blob_is_read_in_order_by_reads_without_threads(store: Store, disk: Disk) -> None:
    """In a full store, reads that are parked and tried again transfer about as many bytes as the blob has."""
    disk.refuses = lambda name: name == "rest"
    source = BytesSource(DATA, piece=256 << 10)
    blob = store.blob(Digest.of(DATA), size=len(DATA), source=source)
    size = 128 << 10
    for at in range(0, len(DATA), size):
        try:
            data = blob.pread(at, size, wait=False)
        except WouldBlock as e:
            ready = threading.Event()
            if e.when_ready is not None and e.when_ready(lambda _, ready=ready: ready.set()):
                assert ready.wait(PATIENCE), f"the read at {at} was not called"
            data = blob.pread(at, size)
        assert data == DATA[at : at + size]
    assert source.given < 1.5 * len(DATA)


def test_marks_that_have_no_room_are_no_marks(store: Store, disk: Disk) -> None:
    """A chunk that cannot be marked as stored counts as missing. When the disk has room again, chunks are stored."""
    disk.refuses = lambda name: name == "present"
    source = BytesSource(DATA)
    blob = store.blob(Digest.of(DATA), size=len(DATA), source=source)
    assert blob.pread(0, 4096) == DATA[:4096]
    assert (blob.state, blob.fetched) == ("absent", 0)
    disk.refuses = lambda name: False
    store.evict()
    assert blob.pread(MiB, 4096) == DATA[MiB : MiB + 4096]
    assert blob.state == "partial"


def test_a_size_that_cannot_be_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the size of a decoded blob cannot be written, its last chunk is not stored, and one line is logged.

    When the disk has room again, the blob can be opened and read.
    """
    replace = os.replace

    def full(source: str, target: str) -> None:
        if target.endswith("meta.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    data = DATA[: MiB + 5]
    blob = decoded(store, BytesSource(data, ranged=False, known=False, piece=MiB))
    monkeypatch.setattr(os, "replace", full)
    for _ in range(3):
        assert blob.pread(MiB, 100) == data[MiB:]
    assert len([r for r in caplog.records if "size cannot be recorded" in r.message]) == 1
    assert not blob.complete
    assert list(Path(store.root).rglob("meta.json.*")) == []
    monkeypatch.setattr(os, "replace", replace)
    store.evict()  # finds that there is room again
    other = decoded(store, BytesSource(data, ranged=False, known=False, piece=MiB))
    assert other.pread(MiB - 5, 100) == data[MiB - 5 :]
    assert other.failure is None
    assert other.complete


def test_marks_of_another_process_are_seen(store: Store) -> None:
    """If a blob is opened twice, each opening finds the bytes that the other one stores."""
    one, two = (store.blob(Digest.of(DATA), size=len(DATA), source=BytesSource(DATA)) for _ in range(2))
    assert two.state == "absent"
    one.pread(0, 3 * MiB)
    assert two.pread(2 * MiB, 4096, wait=False) == DATA[2 * MiB : 2 * MiB + 4096]
    one.fill()
    assert (two.complete, two.fetched) == (True, len(DATA))


def test_a_decoder_rests_although_its_size_is_known(store: Store, disk: Disk) -> None:
    """Two readers share one run of a decoder whose output cannot be stored."""
    disk.refuses = lambda name: name == "rest"
    source = BytesSource(DATA, ranged=False, known=False, piece=MiB)
    blob = decoded(store, source)
    assert blob.pread(len(DATA), 1) == b""
    step = 128 << 10
    with ThreadPoolExecutor(2) as pool:
        for at in range(512, len(DATA), 2 * step):
            reads = [(start, pool.submit(blob.pread, start, step)) for start in (at, at + step)]
            assert [start for start, read in reads if read.result(PATIENCE) != DATA[start : start + step]] == []
    assert len(source.asked) <= 3


def test_an_entry_for_which_there_is_no_room_is_read_through(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk is full before a new blob has any bytes, the blob is read without the store.

    Without a source, opening the blob raises StoreFull.
    """

    def mkdir(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(StoreFull, match="no space left"):
        store.blob(Digest.of(DATA), size=len(DATA), source=None)
    with pytest.raises(StoreFull, match="no space left"):
        store.put(Digest.of(b"small"), b"small")
    blob = store.blob(Digest.of(DATA), size=len(DATA), source=BytesSource(DATA))
    assert blob.pread(MiB, 4096) == DATA[MiB : MiB + 4096]
    monkeypatch.undo()
    store.look()
    store.evict()  # finds that there is room again
    assert blob.pread(MiB, 4096) == DATA[MiB : MiB + 4096]
    assert blob.state == "partial"


def test_the_size_limit_is_held(open_store: Callable[..., Store]) -> None:
    """Two stores on one directory, with two streams each, exceed the limit by at most one write per stream.

    Blobs that are read now are not evicted, and the limit holds when the stores are closed.
    """
    limit, size, write = 8 * MiB, 5 * MiB, MiB
    blobs = [random.Random(n).randbytes(size) for n in range(8)]
    stores = [open_store(size_limit=limit, recheck=0.0) for _ in range(2)]
    most = 0

    def read(number: int) -> bool:
        nonlocal most
        store = stores[number % 2]
        blob = store.blob(Digest.of(blobs[number]), size=size, source=BytesSource(blobs[number]))
        found = bytearray()
        while piece := blob.pread(len(found), write // 4):
            found += piece
            most = max(most, store.usage())
        blob.close()
        return bytes(found) == blobs[number]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(8)))
    assert most <= limit + 4 * write
    for store in stores:
        store.close()
    assert open_store().usage() <= limit
