"""A blob is fetched once, stored, and then verified. The tests include faults of sources, disks and processes."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from kitfs.errors import Closed, IntegrityError, KitfsError, StoreError, Unavailable, WouldBlock
from kitfs.oci.names import Digest
from kitfs.store.blob import Blob
from kitfs.store.chunk_map import ChunkMap
from kitfs.store.flight import GAP
from kitfs.store.meta import MIN_CHUNK
from kitfs.store.store import Store
from tests.fakes.sources import BytesSource
from tests.host import wait_until
from tests.stores import unverified

CHUNK = 32 << 10
DATA = random.Random(3).randbytes(3_000_001)
DIGEST = Digest.of(DATA)


def opened(store: Store, source: BytesSource | None, data: bytes = DATA) -> Blob:
    return store.blob(Digest.of(data), size=len(data), source=source)


def test_random_read_fetches_its_chunk_and_no_more(store: Store) -> None:
    """A read of 4 KiB in the middle of a blob fetches one chunk. A second read fetches nothing."""
    source = BytesSource(DATA)
    blob = opened(store, source)
    assert blob.pread(1_000_000, 4096) == DATA[1_000_000:1_004_096]
    assert source.asked == [(1_000_000 // CHUNK * CHUNK, (1_000_000 // CHUNK + 1) * CHUNK)]
    assert blob.pread(1_000_100, 100) == DATA[1_000_100:1_000_200]
    assert len(source.asked) == 1
    assert (blob.state, blob.fetched) == ("partial", CHUNK)


def test_sequential_reads_get_ever_larger_requests(store: Store) -> None:
    """Sequential reads cause far fewer requests than there are reads."""
    source = BytesSource(DATA)
    blob = opened(store, source)
    read = b"".join(blob.pread(at, 8192) for at in range(0, len(DATA), 8192))
    assert read == DATA
    assert len(source.asked) < 20
    assert source.given == len(DATA)


def test_bytes_that_are_fetched_alone_bring_no_others(store: Store) -> None:
    """Fetches with ``alone`` request their own bytes only. They cause no readahead."""
    source = BytesSource(DATA)
    blob = opened(store, source)
    for at in range(0, 20 * CHUNK, 2 * CHUNK):
        assert blob.fetch(at, 2 * CHUNK, alone=True)
    assert blob.fetch(0, 20 * CHUNK, alone=True)
    assert blob.pread(0, 20 * CHUNK) == DATA[: 20 * CHUNK]
    assert source.asked == [(at, at + 2 * CHUNK) for at in range(0, 20 * CHUNK, 2 * CHUNK)]


def test_a_long_request_ends_before_bytes_that_were_stored_meanwhile(store: Store) -> None:
    """The request ends before the stored bytes. The reader gets later bytes by another request."""
    data = DATA * 8
    source = BytesSource(data, piece=CHUNK)
    blob = opened(store, source, data)
    blob.will_read(0, CHUNK)
    assert blob.pread(0, CHUNK) == data[:CHUNK]  # the request runs to the end, and pauses ahead of its reader
    assert blob.fetch(12 << 20, 8 << 20, alone=True)
    assert b"".join(blob.pread(at, 100_000) for at in range(0, len(data), 100_000)) == data
    assert source.given < len(data) + (1 << 20)


def test_reads_at_the_end_are_short(store: Store) -> None:
    """At and after the end of a blob, reads return the same as pread(2)."""
    blob = opened(store, BytesSource(DATA))
    assert blob.pread(len(DATA) - 10, 100) == DATA[-10:]
    assert blob.pread(len(DATA), 100) == b""
    assert blob.pread(len(DATA) + 5, 100) == b""


def test_wait_false_never_fetches(store: Store) -> None:
    """Without ``wait``, a read of missing bytes raises WouldBlock. A read of stored bytes returns them."""
    source = BytesSource(DATA)
    blob = opened(store, source)
    with pytest.raises(WouldBlock):
        blob.pread(0, 10, wait=False)
    assert source.asked == []
    blob.pread(0, 10)
    assert blob.pread(0, 10, wait=False) == DATA[:10]


def test_complete_blob_is_verified_by_reading_back(store: Store) -> None:
    """After its last chunk, a blob is "present". After its stored bytes were hashed, it is "verified".

    A verified blob needs no source.
    """
    blob = opened(store, BytesSource(DATA))
    blob.fill()
    wait_until(lambda: blob.sealed, blob.state)
    again = opened(store, None)
    assert (again.state, b"".join(again.stream())) == ("verified", DATA)


def test_lying_source_is_found_and_dropped(store: Store, open_store: Callable[..., Store]) -> None:
    """After a wrong byte was received, every read of the open blob fails. The failure is counted once.

    The entry is removed. The next opening fetches the whole blob again.
    """
    source = BytesSource(DATA)
    source.lie_at = 2_000_000
    blob = opened(store, source)
    with unverified(store):
        blob.fill()
    wait_until(lambda: blob.failure is not None and not os.path.exists(blob.directory), "the wrong byte was not found")
    assert blob.state == "absent"
    for _ in range(2):
        with pytest.raises(IntegrityError, match="does not match its digest"):
            blob.pread(0, 10)
    assert store.counters.get("integrity_failures") == 1
    fresh = opened(open_store(), BytesSource(DATA))
    fresh.fill()
    wait_until(lambda: fresh.state == "verified", fresh.state)


def test_failed_blob_is_reported_on_a_thread_without_locks(store: Store) -> None:
    """The housekeeping thread calls ``on_failure`` without any lock, so the callback may use the failed blob."""
    reported: list[tuple[Digest, str, bool]] = []
    source = BytesSource(DATA)
    source.lie_at = 2_000_000
    blob = opened(store, source)

    def report(digest: Digest) -> None:
        with pytest.raises(IntegrityError):
            blob.verify()  # takes the lock that the failed verification held
        reported.append((digest, threading.current_thread().name, os.path.exists(store.path(digest))))

    store.on_failure(report)
    with unverified(store):
        blob.fill()
    wait_until(lambda: len(reported) > 0, "the failed blob was not reported")
    assert reported == [(DIGEST, "kitfs-store", False)]


def test_flipped_bit_is_found_before_verified(open_store: Callable[..., Store]) -> None:
    """A blob is not verified if its stored bytes changed after they were fetched."""
    store = open_store()
    blob = opened(store, BytesSource(DATA))
    blob.pread(0, 100)
    with Path(blob.directory, "rest").open("r+b") as f:
        f.write(bytes([DATA[0] ^ 1]))
    with unverified(store):
        blob.fill()
    wait_until(lambda: blob.failure is not None and not os.path.exists(blob.directory), "the wrong byte was not found")
    assert blob.state == "absent"


def test_failed_fetch_is_tried_afresh(store: Store) -> None:
    """The read raises the error of the source. The next read requests only the bytes that are still missing."""
    source = BytesSource(DATA, piece=CHUNK)
    source.cut_after = 2 * CHUNK
    blob = opened(store, source)
    with pytest.raises(Unavailable):
        blob.pread(0, 4 * CHUNK)
    assert blob.fetched == 2 * CHUNK
    source.cut_after = None
    assert blob.pread(0, 4 * CHUNK) == DATA[: 4 * CHUNK]
    assert source.asked[1][0] == 2 * CHUNK


def test_source_that_ends_early_is_an_integrity_error(store: Store) -> None:
    """If a source yields fewer bytes than the descriptor declares, the read raises IntegrityError."""
    source = BytesSource(DATA)
    source.short = 1000
    blob = opened(store, source)
    with pytest.raises(IntegrityError):
        blob.pread(len(DATA) - 500, 500)
    assert blob.pread(0, 10) == DATA[:10]


def test_readers_of_one_chunk_share_its_flight(store: Store) -> None:
    """32 threads read a blob that is not stored. Each byte is fetched once.

    Only short runs of stored chunks may be received twice.
    """
    source = BytesSource(DATA)
    blob = opened(store, source)
    r = random.Random(0)
    spans = [(r.randrange(len(DATA)), r.randrange(1, 200_000)) for _ in range(200)]
    with ThreadPoolExecutor(32) as pool:
        for (at, size), got in zip(spans, pool.map(lambda s: blob.pread(*s), spans), strict=True):
            assert got == DATA[at : at + size]
    assert source.given <= len(DATA) + len(source.asked) * GAP
    assert store.counters.get("read_through") == 0


def test_waiter_is_woken_by_its_own_chunk(store: Store) -> None:
    """A reader of the first chunk of a long request does not wait for the later chunks."""
    source = BytesSource(DATA, piece=CHUNK)
    blob = opened(store, source)
    blob.pread(0, 32 * CHUNK)
    source.stall = threading.Event()
    try:
        at = 32 * CHUNK
        assert blob.pread(at, 100) == DATA[at : at + 100]
        stop = source.asked[-1][1]
        assert stop is not None
        assert stop > at + CHUNK
        assert blob.fetched < stop
    finally:
        source.stall.set()


class Ready:
    """A callback that is passed to ``WouldBlock.when_ready``. It records its calls."""

    def __init__(self) -> None:
        self.called: list[KitfsError | None] = []
        self.event = threading.Event()

    def __call__(self, error: KitfsError | None) -> None:
        self.called.append(error)
        self.event.set()


def in_flight(store: Store) -> tuple[Blob, BytesSource, int]:
    """Return a blob, its stalled source, and the offset of a chunk that the running request will receive later.

    The request extends to the end of the blob, so no other request follows.
    """
    data = DATA[: 32 * CHUNK]
    source = BytesSource(data, piece=CHUNK)
    source.stall = threading.Event()
    blob = opened(store, source, data)

    def read() -> None:
        with suppress(KitfsError):
            blob.pread(0, len(data))

    threading.Thread(target=read, daemon=True).start()
    wait_until(lambda: source.given > 0, "the fetch did not begin")
    return blob, source, 31 * CHUNK


def when_ready(blob: Blob, offset: int, size: int, ready: Ready) -> bool:
    """Register the callback ``ready`` for missing bytes. Return False if no running request will soon store them."""
    with pytest.raises(WouldBlock) as caught:
        blob.pread(offset, size, wait=False)
    return caught.value.when_ready is not None and caught.value.when_ready(ready)


def test_reader_without_a_thread_is_called_when_its_bytes_are_stored(store: Store) -> None:
    """``ready`` is called once, by the thread that fetches. After the call, the bytes can be read without waiting."""
    blob, source, at = in_flight(store)
    ready = Ready()
    assert when_ready(blob, at, 100, ready)
    assert not ready.called
    assert source.stall is not None
    source.stall.set()
    assert ready.event.wait(30)
    assert ready.called == [None]
    assert blob.pread(at, 100, wait=False) == DATA[at : at + 100]


def test_reader_without_a_thread_is_given_the_error_of_its_fetch(store: Store) -> None:
    blob, source, at = in_flight(store)
    ready = Ready()
    assert when_ready(blob, at, 100, ready)
    assert source.stall is not None
    source.cut_after = 0
    source.stall.set()
    assert ready.event.wait(30)
    assert [str(error) for error in ready.called] == ["the source was cut"]


def test_reader_without_a_thread_is_called_when_the_blob_is_closed(store: Store) -> None:
    blob, source, at = in_flight(store)
    ready = Ready()
    assert when_ready(blob, at, 100, ready)
    blob.stop()
    assert source.stall is not None
    source.stall.set()
    assert ready.event.wait(30)
    assert ready.called == [None]
    with pytest.raises(Closed):
        blob.pread(at, 100)


def test_no_fetch_is_started_for_a_reader_without_a_thread(store: Store) -> None:
    """If no running request will soon store the bytes, ``when_ready`` returns False. It does not start a request."""
    source = BytesSource(DATA)
    blob = opened(store, source)
    assert not when_ready(blob, 0, 100, Ready())
    assert source.asked == []


@pytest.mark.parametrize("turns", [False, True])
def test_source_without_ranges_is_streamed_once(store: Store, turns: bool) -> None:
    """One request stores the whole blob for all readers.

    With ``turns``, the source claims to support ranges, and its first response shows that it does not.
    """
    source = BytesSource(DATA, ranged=turns, turns=turns)
    blob = opened(store, source)
    with ThreadPoolExecutor(8) as pool:
        spans = [(at, 1000) for at in (2_900_000, 5, 1_500_000, 700_000)]
        assert list(pool.map(lambda s: blob.pread(*s), spans)) == [DATA[a : a + n] for a, n in spans]
    wait_until(lambda: blob.state == "verified", blob.state)
    assert source.given <= len(DATA) + (4 * source.piece if turns else 0)


def test_a_stream_does_not_store_a_chunk_that_another_process_is_fetching(store: Store) -> None:
    """The readers of the stream get the bytes of that chunk nevertheless."""
    blob = opened(store, BytesSource(DATA, ranged=False))
    chunks = -(-len(DATA) // MIN_CHUNK)
    other = ChunkMap(blob.directory, chunks)
    assert other.try_lock(1, 1)
    assert blob.pread(0, len(DATA)) == DATA
    assert [other.has(chunk, chunk) for chunk in range(chunks)] == [chunk != 1 for chunk in range(chunks)]
    other.unlock(1, 1)
    blob.fill()
    blob.verify()
    other.close()


def test_decoded_form_is_read_up_to_where_it_stands(store: Store) -> None:
    """If the size of a source is unknown, the source is read only as far as needed.

    When the source ends, the size and the digest are known.
    """
    wire = opened(store, BytesSource(DATA))
    decoded_bytes = DATA * 2
    source = BytesSource(decoded_bytes, ranged=False, known=False)
    blob = store.blob(wire.digest, size=None, source=source, of=wire)
    assert blob.pread(10, 10) == decoded_bytes[10:20]
    assert source.given < 400_000
    assert (blob.size, blob.state) == (None, "partial")
    assert blob.pread(len(decoded_bytes) - 5, 100) == decoded_bytes[-5:]
    assert blob.size == len(decoded_bytes)
    assert b"".join(blob.stream()) == decoded_bytes
    assert len(source.asked) == 1
    wire.fill()
    wait_until(lambda: wire.state == "verified", wire.state)
    blob.verify()
    assert blob.state == "verified"
    assert store.has_decoded(wire.digest)


def test_decoded_form_of_wrong_bytes_is_never_verified(store: Store) -> None:
    """If the compressed bytes are wrong, a read of the decoded blob raises IntegrityError."""
    lying = BytesSource(DATA)
    lying.lie_at = 5
    wire = opened(store, lying)
    blob = store.blob(wire.digest, size=None, source=BytesSource(b"decoded" * 1000, ranged=False, known=False), of=wire)
    assert blob.pread(0, 7) == b"decoded"
    with unverified(store):
        wire.fill()
    wait_until(lambda: wire.failure is not None, "the wrong byte was not found")
    with pytest.raises(IntegrityError):
        blob.pread(0, 7)


def test_only_what_was_synced_is_believed_after_a_reboot(open_store: Callable[..., Store]) -> None:
    """After a reboot, a chunk counts as stored only if its mark was fsynced. A clean close fsyncs all marks."""
    store = open_store()
    blob = opened(store, BytesSource(DATA))
    blob.pread(0, CHUNK)
    directory = Path(blob.directory)
    blob.close()
    raw = bytearray((directory / "present").read_bytes())
    raw[12:28] = bytes(range(16))  # the id of another boot
    raw[64 + 5] = 1  # a mark that was not synced
    (directory / "present").write_bytes(raw)
    source = BytesSource(DATA)
    blob = opened(store, source)
    assert blob.fetched == CHUNK
    assert blob.pread(5 * CHUNK, 10) == DATA[5 * CHUNK : 5 * CHUNK + 10]
    assert source.asked == [(5 * CHUNK, 6 * CHUNK)]


def test_marks_are_not_believed_where_no_boot_can_be_told_from_another(tmp_path: Path) -> None:
    """Without a boot id, marks that were not fsynced are used only by the ChunkMap that wrote them."""
    nobody_knows = bytes(16)
    first = ChunkMap(str(tmp_path), 8, boot=nobody_knows)
    first.mark(0, 2)
    first.save(str(tmp_path), first.marks())
    first.mark(5)
    second = ChunkMap(str(tmp_path), 8, boot=nobody_knows)
    assert [first.has(0, 1), first.has(5, 5), second.has(0, 1), second.has(5, 5)] == [True, True, True, False]
    first.close()
    second.close()
    boot = bytes(range(16))
    for marked in (False, True):  # with a boot id the same map is shared
        shared = ChunkMap(str(tmp_path), 8, boot=boot)
        assert shared.has(7, 7) == marked
        shared.mark(7)
        shared.close()


def test_full_disk_is_read_through(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk is full, reads return bytes without storing them. ``read_through`` counts these bytes."""
    blob = opened(store, BytesSource(DATA))
    blob.pread(0, 10)

    def full(fd: int, data: object, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for at in (1_000_000, 2_000_000, 1_000_000):
        assert blob.pread(at, 100_000) == DATA[at : at + 100_000]
    assert blob.fetched == CHUNK
    assert store.counters.get("read_through") > 0


def test_size_that_contradicts_a_verified_blob(store: Store) -> None:
    """If a descriptor declares another size than that of the verified blob, an IntegrityError is raised.

    If the blob is not verified, its entry is replaced.
    """
    store.blob(DIGEST, size=5, source=None).close()
    blob = opened(store, BytesSource(DATA))
    blob.fill()
    wait_until(lambda: blob.sealed, blob.state)
    with pytest.raises(IntegrityError, match="its descriptor says 7"):
        store.blob(DIGEST, size=7, source=None)


def test_closed_blob_ends_its_flights(store: Store) -> None:
    """When a blob is closed, its running requests and their threads end."""
    source = BytesSource(DATA, piece=CHUNK)
    source.stall = threading.Event()
    blob = opened(store, source)
    blob.pread(0, CHUNK)
    blob.pread(CHUNK, 10)
    source.stall.set()
    blob.close()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "kitfs-fetch"], "a thread was left behind")


READER = """
import logging, sys, time
from kitfs.metrics import Counters
from kitfs.oci.names import Digest
from kitfs.store.store import Store
from tests.fakes.sources import BytesSource
root, out, digest, data_file = sys.argv[1:5]
data = open(data_file, "rb").read()

class Slow(BytesSource):
    def read_range(self, start, stop):
        for offset, view in super().read_range(start, stop):
            with open(out, "a") as f:
                f.write(f"{offset} {len(view)}\\n")
            yield offset, view
            time.sleep(0.002)

store = Store.open(root, counters=Counters(), log=logging.getLogger("x"), free_share=0.0)
blob = store.blob(Digest(digest), size=len(data), source=Slow(data, piece=8192))
print("ready", flush=True)
sys.stdin.readline()
ok = all(blob.pread(at, 65536) == data[at : at + 65536] for at in range(0, len(data), 65536))
print("right" if ok else "wrong", flush=True)
store.close()
"""


def test_processes_fetch_each_byte_once_even_when_one_is_killed(
    open_store: Callable[..., Store], tmp_path: Path
) -> None:
    """Four processes read a blob that is not stored. One of them is killed.

    Each byte is fetched once, except two chunks that the killed process was receiving by two requests, and the chunks
    between them: a request runs over less than ``GAP`` stored bytes.
    """
    root = open_store().root
    log, data_file = tmp_path / "log", tmp_path / "data"
    data_file.write_bytes(DATA)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", READER, root, log, DIGEST, data_file],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        wait_until(lambda: log.exists() and log.stat().st_size > 500, "the process fetched nothing")
        children[0].kill()
        for child in children[1:]:
            assert child.stdout is not None
            assert child.stdout.readline() == "right\n"
    finally:
        for child in children:
            child.kill()
            child.communicate()
    fetched = sum(int(line.split()[1]) for line in log.read_text().splitlines())
    assert len(DATA) <= fetched <= len(DATA) + 2 * CHUNK + GAP


def test_errors_of_the_store_are_store_errors(store: Store) -> None:
    """If the directory of the store cannot be opened, a StoreError with its path is raised."""
    path = Path(store.path(DIGEST))
    path.parent.mkdir(parents=True)
    path.write_text("a file in the way")
    with pytest.raises(StoreError, match=DIGEST.hex):
        opened(store, None)
