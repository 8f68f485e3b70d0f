"""Tests in which another thread acts between two system calls of an operation on an entry."""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

from kitfs.errors import StoreError
from kitfs.oci.names import Digest
from kitfs.store import evict
from kitfs.store.blob import Blob
from kitfs.store.store import Store
from tests.fakes.sources import BytesSource
from tests.stores import room_of

DATA = random.Random(31).randbytes(100_001)
DIGEST = Digest.of(DATA)
CALLS: tuple[tuple[ModuleType, str], ...] = (
    (fcntl, "flock"),
    *((os, name) for name in ("mkdir", "open", "stat", "rename", "replace", "unlink", "pread")),
)
Act = Callable[[], object]


def interrupted(action: Act, act: Act, at: int) -> bool:
    """Call ``action``. Another thread calls ``act`` right before system call number ``at`` of ``action``.

    ``action`` continues when ``act`` has ended or waits for a lock. Returns False if ``action`` makes fewer system
    calls.
    """
    me, count, failures = threading.get_ident(), 0, list[BaseException]()

    def run() -> None:
        try:
            act()
        except BaseException as e:  # noqa: BLE001 - raised below
            failures.append(e)

    other = threading.Thread(target=run)

    def before(call: Callable[..., object]) -> Callable[..., object]:
        def called(*args: object, **options: object) -> object:
            nonlocal count
            if threading.get_ident() == me:
                if count == at:
                    other.start()
                    other.join(0.02)
                count += 1
            return call(*args, **options)

        return called

    with pytest.MonkeyPatch.context() as patch:
        for module, name in CALLS:
            patch.setattr(module, name, before(getattr(module, name)))
        action()
    if count <= at:
        return False
    other.join()
    for failure in failures:
        raise failure
    return True


def opened(store: Store) -> Blob:
    return store.blob(DIGEST, size=len(DATA), source=BytesSource(DATA))


def in_place(store: Store, blob: Blob) -> bool:
    """Return whether the next opening would find the same entry as this open blob."""
    filling = blob._filling
    assert filling is not None
    return os.path.samestat(Path(filling.entry.directory, "lease").stat(), filling.entry.lease.file.stat())


def remove_all(store: Store) -> None:
    """Remove every entry, including those in use."""
    for entry in evict.entries(store.root):
        evict.remove_entry(store.root, entry.directory)


def remove(store: Store) -> list[bool]:
    """Try to evict each entry. Return whether each entry was removed."""
    return [evict.remove(store.root, entry) for entry in evict.entries(store.root)]


def test_opening_meets_an_evictor(store: Store) -> None:
    """If the entry is evicted while the blob is being opened, the blob uses a new entry."""
    blobs: list[Blob] = []
    for at in itertools.count():
        opened(store).close()
        more = interrupted(lambda: blobs.append(opened(store)), lambda: remove(store), at)
        assert in_place(store, blobs[0]), at
        assert blobs[0].pread(0, len(DATA)) == DATA
        blobs.pop().close()
        if not more:
            break


@pytest.mark.parametrize("filled", [False, True])
def test_opening_meets_one_who_drops(store: Store, open_store: Callable[..., Store], filled: bool) -> None:
    """If the entry is removed while the blob is being opened, all files of the blob belong to one entry.

    With ``filled``, another store creates and fills a new entry meanwhile.
    """
    other = open_store()

    def act() -> None:
        remove_all(other)
        if filled:
            blob = opened(other)
            blob.fill()
            blob.close()

    blobs: list[Blob] = []
    for at in itertools.count():
        remove_all(store)
        opened(store).close()
        more = interrupted(lambda: blobs.append(opened(store)), act, at)
        assert blobs[0].pread(0, len(DATA)) == DATA, at
        blobs.pop().close()
        if not more:
            break


@pytest.mark.parametrize("how", ["evict", "drop"])
def test_only_the_entry_that_was_meant_is_taken_away(store: Store, open_store: Callable[..., Store], how: str) -> None:
    """If an entry is replaced while it is being evicted or removed, the new entry stays."""
    other = open_store()
    fresh: list[Blob] = []

    def act() -> None:
        remove_all(other)
        fresh.append(opened(other))

    for at in itertools.count():
        old = opened(store)
        if how == "evict":
            old.close()
            more = interrupted(lambda: remove(store), act, at)
        else:
            more = interrupted(old.drop, act, at)
            old.close()
        for blob in fresh:
            assert in_place(store, blob), at
            blob.close()
        fresh.clear()
        if not more:
            break


def test_the_entry_that_was_verified_is_sealed(store: Store, open_store: Callable[..., Store]) -> None:
    """If an entry is replaced while it is being verified, the new entry is not marked as verified."""
    other = open_store()
    digests = threading.Event()
    store.prove(digests.wait)  # keeps the verification thread busy, so that this thread verifies

    def act() -> None:
        remove_all(other)
        opened(other).close()

    try:
        for at in itertools.count():
            whole = opened(store)
            whole.fill()

            def verify(blob: Blob = whole) -> None:
                with suppress(StoreError):
                    blob.verify()

            more = interrupted(verify, act, at)
            whole.close()
            blob = opened(other)
            assert blob.pread(0, len(DATA)) == DATA, at
            blob.close()
            remove_all(other)
            if not more:
                break
    finally:
        digests.set()


def test_what_was_used_since_the_evictor_looked_stays(store: Store) -> None:
    """If a blob is opened or read after the evictor listed it, it is not evicted, because it may be pinned now."""
    store.put(DIGEST, DATA)
    lease = Path(store.path(DIGEST), "lease")
    uses: tuple[Act, ...] = (lambda: opened(store).close(), lambda: store.get(DIGEST))
    for use in uses:
        os.utime(lease, ns=(1, 1_000_000_001))
        (seen,) = evict.entries(store.root)
        assert seen.used == 1_000_000_001
        use()
        assert not evict.remove(store.root, seen)
    assert remove(store) == [True]


def test_pins_are_read_after_the_blobs_are_listed(store: Store) -> None:
    """The evictor lists blobs first and reads pins later. A blob that is tagged in between is not evicted."""
    store.put(DIGEST, DATA)

    def late(root: str) -> Iterator[evict.Entry]:
        store.refs.set("localhost/kit", "v1", {"digest": DIGEST})
        return evict.entries(root)

    room_of(store, entries=late).evict(at_least=1 << 40)
    assert store.get(DIGEST) == DATA


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("size", [100, 300_000])
def test_the_end_becomes_known_while_it_is_read(
    store: Store, open_store: Callable[..., Store], size: int, elsewhere: bool
) -> None:
    """A read across the end of a decoded blob is short, even if another reader reaches the end meanwhile.

    With ``elsewhere``, the other reader uses its own store object, as another process would.
    """
    other = open_store()
    wire = opened(store)

    def decoded(where: Store) -> Blob:
        return where.blob(DIGEST, size=None, source=BytesSource(DATA, ranged=False, known=False), of=wire)

    for at in itertools.count():
        blob = decoded(store)
        another = decoded(other) if elsewhere else blob
        read: list[bytes] = []
        more = interrupted(
            lambda: read.append(blob.pread(len(DATA) - 10, size)),  # noqa: B023 - called before the next round
            lambda: another.pread(len(DATA), 1),  # noqa: B023 - the same
            at,
        )
        assert read == [DATA[-10:]], at
        blob.drop()
        blob.close()
        another.close()
        if not more:
            break
