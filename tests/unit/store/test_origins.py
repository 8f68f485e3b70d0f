"""Unverified bytes are used only for kits from the origin that sent them. Verified bytes are shared by all origins.

An origin is the sender of a blob, together with the size that the manifest declares.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kitfs.errors import IntegrityError
from kitfs.oci.names import Digest
from kitfs.store.blob import Blob
from kitfs.store.readback import wrong_bytes
from kitfs.store.store import Store
from tests.fakes.sources import BytesSource
from tests.host import wait_until
from tests.stores import rot, unverified

DATA = random.Random(41).randbytes(1_500_001)
EVIL = bytes(len(DATA))
DIGEST = Digest.of(DATA)


def opened(store: Store, data: bytes, sender: str) -> tuple[Blob, BytesSource]:
    """Return the blob with the digest DIGEST, and its source. The source returns ``data`` in the name of ``sender``."""
    source = BytesSource(data)
    source.sender = sender
    return store.blob(DIGEST, size=len(data), source=source), source


def test_bytes_of_one_origin_are_never_read_from_another(store: Store) -> None:
    """If a hostile registry has sent bytes for a digest, all bytes are still requested from the honest registry."""
    evil, _ = opened(store, EVIL, "https://evil.example")
    assert evil.pread(0, 1_000_000) == EVIL[:1_000_000]
    good, source = opened(store, DATA, "https://good.example")
    assert good.state == "absent"
    assert good.pread(0, 1_000_000) == DATA[:1_000_000]
    assert source.given >= 1_000_000


def test_the_same_origin_shares_its_bytes(store: Store, open_store: Callable[..., Store]) -> None:
    """Two mounts of kits from one registry fetch each byte once, in one process or in two."""
    one, _ = opened(store, DATA, "https://good.example")
    one.pread(0, 500_000)
    two, source = opened(open_store(), DATA, "https://good.example")
    assert two.pread(0, 400_000) == DATA[:400_000]
    assert source.asked == []


def test_a_size_that_a_manifest_made_up_has_bytes_of_its_own(store: Store) -> None:
    """If two kits declare different sizes for the same digest, they do not share unverified bytes."""
    good, _ = opened(store, DATA, "https://good.example")
    good.pread(0, 100_000)
    clash = store.blob(DIGEST, size=10, source=BytesSource(b"0123456789"))
    with unverified(store):
        assert clash.pread(0, 10) == b"0123456789"
    with pytest.raises(IntegrityError, match="does not match its digest"):
        clash.verify()
    assert good.pread(0, 100_000) == DATA[:100_000]
    assert good.failure is None


def test_proven_bytes_are_shared_by_digest(store: Store) -> None:
    """Verified bytes are used for kits of every origin, without a request."""
    good, _ = opened(store, DATA, "https://good.example")
    good.fill()
    good.verify()
    other, source = opened(store, EVIL, "https://evil.example")
    assert other.sealed
    assert other.pread(0, len(DATA)) == DATA
    assert source.asked == []
    assert good.directory == other.directory == store.path(DIGEST)


def test_two_origins_that_are_both_right_seal_one_blob(store: Store) -> None:
    """When the first origin's blob is verified, the second origin's entry is removed.

    The readers of the second origin continue.
    """
    one, _ = opened(store, DATA, "https://one.example")
    two, _ = opened(store, DATA, "https://two.example")
    for blob in (one, two):
        blob.fill()
        blob.verify()
    assert [entry.directory for entry in store.entries()] == [store.path(DIGEST)]
    assert one.pread(7, 70_000) == two.pread(7, 70_000) == DATA[7:70_007]


def test_wrong_bytes_of_one_origin_do_not_touch_another(store: Store) -> None:
    """If verification fails, only the entry of the origin that sent the bytes is removed."""
    good, _ = opened(store, DATA, "https://good.example")
    good.pread(0, 200_000)
    evil, _ = opened(store, EVIL, "https://evil.example")
    with unverified(store):
        evil.fill()
    with pytest.raises(IntegrityError, match="does not match its digest"):
        evil.verify()
    good.fill()
    good.verify()
    assert good.pread(0, len(DATA)) == DATA


def test_wrong_bytes_of_a_mirror_are_fetched_from_the_registry(store: Store) -> None:
    """If verification fails, the mirror that sent the bytes is skipped.

    The blob is then fetched from the registry and verified. The failure is counted.
    """
    blob, source = opened(store, DATA, "https://mirror.example\nhttps://good.example")
    source.lie_at = 1_000_000
    source.others = 1
    blob.fill()
    blob.verify()
    assert blob.pread(0, len(DATA)) == DATA
    assert (blob.state, blob.failure) == ("verified", None)
    assert store.counters.get("integrity_failures") == 1


def test_what_was_decoded_from_wrong_bytes_is_decoded_again(store: Store) -> None:
    wire, source = opened(store, DATA, "https://mirror.example\nhttps://good.example")
    source.lie_at = 5
    source.others = 1
    plain = bytes(reversed(DATA))

    class Reversed(BytesSource):
        """A decoder that outputs the compressed blob in reverse order."""

        def read_range(self, start: int, stop: int | None, /):  # type: ignore[no-untyped-def]
            self.data = b"".join(wire.stream())[::-1]
            yield from super().read_range(start, stop)

    decoded = store.blob(DIGEST, size=None, source=Reversed(plain, ranged=False, known=False), of=wire)
    with unverified(store):
        assert decoded.pread(0, len(DATA)) != plain
    decoded.verify()
    assert decoded.pread(0, len(DATA)) == plain


class Head(BytesSource):
    """A decoder that outputs the first bytes of the compressed blob, inverted."""

    def __init__(self, wire: Blob) -> None:
        super().__init__(b"", ranged=False, known=False)
        self.wire = wire

    def read_range(self, start: int, stop: int | None, /):  # type: ignore[no-untyped-def]
        self.data = inverted(self.wire.pread(0, 300_000))
        yield from super().read_range(start, stop)


def inverted(data: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in data)


def test_bytes_that_were_decoded_from_another_entry_are_not_verified_by_this_one(
    store: Store, open_store: Callable[..., Store]
) -> None:
    """A hostile registry sends a part of a compressed blob. The decoded bytes stay in the store.

    Then an honest registry sends the whole blob. Its decoded blob does not contain the hostile bytes.
    """
    hostile, _ = opened(store, EVIL, "https://evil.example")
    decoded = store.blob(DIGEST, size=None, source=Head(hostile), of=hostile)
    assert decoded.pread(0, 400_000) == inverted(EVIL[:300_000])
    store.close()
    honest, _ = opened(open_store(), DATA, "https://good.example")
    honest.fill()
    honest.verify()
    again = open_store()
    hostile, _ = opened(again, EVIL, "https://evil.example")
    decoded = again.blob(DIGEST, size=None, source=Head(hostile), of=hostile)
    decoded.fill()
    decoded.verify()
    assert decoded.pread(0, 400_000) == inverted(DATA[:300_000])


def test_an_entry_that_changes_while_its_decoded_form_is_read(store: Store, open_store: Callable[..., Store]) -> None:
    """When a verified entry replaces an unverified one, bytes decoded from the unverified entry are dropped."""
    hostile, _ = opened(store, EVIL, "https://evil.example")
    decoded = store.blob(DIGEST, size=None, source=Head(hostile), of=hostile)
    assert decoded.pread(0, 400_000) == inverted(EVIL[:300_000])
    honest, _ = opened(open_store(), DATA, "https://good.example")
    honest.fill()
    honest.verify()
    assert hostile.let_go()
    assert hostile.sealed
    decoded.verify()
    assert decoded.pread(0, 400_000) == inverted(DATA[:300_000])


def test_a_crash_between_the_seal_and_the_move_is_finished(store: Store, open_store: Callable[..., Store]) -> None:
    """After the crash, the verified entry is still in its origin's directory. The next opening of the blob moves it."""
    blob, _ = opened(store, DATA, "https://good.example")
    blob.fill()
    directory = Path(blob.directory)
    blob.verify()
    blob.close()
    directory.parent.mkdir(parents=True, exist_ok=True)
    os.rename(store.path(DIGEST), directory)
    again, source = opened(open_store(), DATA, "https://good.example")
    assert again.sealed
    assert again.directory == store.path(DIGEST)
    assert (again.pread(0, len(DATA)), source.asked) == (DATA, [])


def test_an_old_store_is_converted(tmp_path: Path, open_store: Callable[..., Store]) -> None:
    """A store of format 1 is converted: verified blobs are kept, and other blobs are removed.

    After that, older versions of kitfs refuse the store.
    """
    store = open_store()
    store.put(DIGEST, DATA)
    other = Digest.of(b"another")
    partial = Path(store.path(other))
    root = Path(store.root)
    store.close()
    partial.mkdir(parents=True)
    for name in ("meta.json", "present", "lease", "rest"):
        (partial / name).write_bytes(b"")
    (root / "VERSION").write_text("1\n")
    again = open_store()
    assert (root / "VERSION").read_text() == "2\n"
    assert again.get(DIGEST) == DATA
    assert not partial.exists()


def test_an_old_store_in_use_is_not_converted(open_store: Callable[..., Store]) -> None:
    """While a blob is in use, the store keeps format 1. Its verified blobs can be read."""
    store = open_store()
    store.put(DIGEST, DATA)
    (Path(store.root) / "VERSION").write_text("1\n")
    held = store.hold(DIGEST)
    assert held is not None
    again = open_store()
    assert (Path(store.root) / "VERSION").read_text() == "1\n"
    assert again.get(DIGEST) == DATA
    held.close()
    open_store()
    assert (Path(store.root) / "VERSION").read_text() == "2\n"


def test_a_failed_sync_drops_the_bytes_that_it_covered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If fdatasync fails, the bytes of the blob are fetched again.

    A second fdatasync could succeed although the bytes are lost.
    """
    blob, source = opened(store, DATA, "https://good.example")
    blob.fill()
    wait_until(lambda: blob.sealed, blob.state)
    blob.drop()
    blob.close()
    blob, source = opened(store, DATA, "https://good.example")
    calls = []

    def fails_once(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 1:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails_once)
    with unverified(store):
        blob.fill()
    wait_until(lambda: len(calls) > 0, "the bytes were not synced")
    wait_until(lambda: blob.fetched == 0, "the entry was not removed")
    given = source.given
    assert blob.pread(0, len(DATA)) == DATA
    assert source.given >= given + len(DATA)


def test_bytes_that_change_on_the_disk_are_found_by_reading_back(store: Store) -> None:
    """``check`` hashes a verified blob again.

    If its bytes have changed, the entry is removed, and the blob is fetched again.
    """
    store.put(DIGEST, DATA)
    blob, source = opened(store, DATA, "https://good.example")
    assert blob.check()
    rot(store.root, DIGEST, at=1_000_000)
    assert not blob.check()
    assert not os.path.exists(store.path(DIGEST))
    assert blob.pread(999_000, 2000) == DATA[999_000:1_001_000]
    assert source.given > 0
    assert store.counters.get("integrity_failures") == 1


def test_changed_bytes_that_cannot_be_fetched_again_are_not_read_any_more(store: Store) -> None:
    """If the blob has no source, ``check`` raises an error and the entry is removed. Later reads fail."""
    store.put(DIGEST, DATA)
    blob = store.blob(DIGEST, size=len(DATA), source=None)
    rot(store.root, DIGEST, at=1_000_000)
    with pytest.raises(IntegrityError, match="has changed on the disk"):
        blob.check()
    assert store.get(DIGEST) is None
    assert not os.path.exists(store.path(DIGEST))
    with pytest.raises(IntegrityError):
        blob.pread(0, 10)


def test_the_store_reads_back_a_blob_that_is_in_use(store: Store) -> None:
    """If the bytes of a blob in use have changed, its entry is removed. A check of a blob does not count as a use."""
    store.put(DIGEST, DATA)
    lease = Path(store.path(DIGEST), "lease")
    os.utime(lease, ns=(5, 5))
    assert [(b.digest, b.form, b.size) for b in store.sealed()] == [(DIGEST, "blobs", len(DATA))]
    seen: list[int] = []
    assert store.check(DIGEST, moved=seen.append) is None
    assert (sum(seen), lease.stat().st_mtime_ns) == (len(DATA), 5)
    blob, _ = opened(store, DATA, "https://good.example")
    rot(store.root, DIGEST, at=1_000_000)
    assert "its bytes have the digest sha256:" in str(store.check(DIGEST))
    store.look()  # as the store does every few seconds
    assert blob.pread(999_000, 2000) == DATA[999_000:1_001_000]
    assert (list(store.sealed()), store.check(DIGEST)) == ([], None)


def test_bytes_that_another_process_has_found_to_be_wrong_are_not_read_any_more(
    store: Store, open_store: Callable[..., Store]
) -> None:
    """If one process finds wrong bytes in an entry, all other processes stop using the entry."""
    readers = open_store()
    reader, source = opened(readers, EVIL, "https://evil.example")
    liar, _ = opened(store, EVIL, "https://evil.example")
    assert reader.pread(1_000_000, 100) == EVIL[:100]
    with unverified(store):
        liar.fill()
    with pytest.raises(IntegrityError):
        liar.verify()
    directory = reader.directory
    readers.look()
    assert reader.fetched == 0
    assert (os.path.exists(directory), source.given > 0) == (True, True)  # an entry of its own


def test_a_blob_without_a_source_fails_when_another_process_finds_wrong_bytes(store: Store) -> None:
    store.put(DIGEST, DATA)
    blob = store.blob(DIGEST, size=len(DATA), source=None)
    rot(store.root, DIGEST, at=1_000_000)
    assert store.check(DIGEST) is not None
    store.look()
    with pytest.raises(IntegrityError, match="another process has found"):
        blob.pread(0, 10)


@pytest.mark.parametrize("damage", [b"", bytes(90), b"[]"])
def test_a_crash_that_damages_meta_json_costs_no_verified_blob(store: Store, damage: bytes) -> None:
    """If meta.json of a verified entry is damaged, it is restored from the fsynced file ``sealed``."""
    store.put(DIGEST, DATA)
    Path(store.path(DIGEST), "meta.json").write_bytes(damage)
    assert [(b.digest, b.size) for b in store.sealed()] == [(DIGEST, len(DATA))]
    assert store.check(DIGEST) is None
    blob = store.blob(DIGEST, size=len(DATA), source=None)
    assert (blob.state, blob.pread(0, len(DATA))) == ("verified", DATA)


@pytest.mark.parametrize(("name", "reason"), [("rest", "missing"), ("sealed", "damaged")])
def test_an_entry_that_lost_a_file_is_removed(store: Store, name: str, reason: str) -> None:
    """``check`` removes an entry if its data is missing, or if neither meta.json nor ``sealed`` can be parsed."""
    store.put(DIGEST, DATA)
    Path(store.path(DIGEST), "meta.json").write_text("{")
    path = Path(store.path(DIGEST), name)
    path.unlink() if reason == "missing" else path.write_text("{")
    assert "a file of its entry is missing or damaged" in str(store.check(DIGEST))
    assert not os.path.exists(store.path(DIGEST))


@pytest.mark.parametrize(("code", "result"), [(errno.EIO, "the disk cannot read it"), (errno.EMFILE, None)])
def test_a_disk_that_cannot_read_has_lost_bytes(code: int, result: str | None) -> None:
    """If a read of the disk returns EIO, the bytes are lost. Other errors are raised."""

    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    if result is None:
        with pytest.raises(OSError, match="open files"):
            wrong_bytes(fail, 10, DIGEST.hasher(), DIGEST.hex)
    else:
        assert str(wrong_bytes(fail, 10, DIGEST.hasher(), DIGEST.hex)).startswith(result)
