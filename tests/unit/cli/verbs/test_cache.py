"""Tests of the verbs cache info, clear, gc, pin, unpin and verify."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import kits
from tests.fakes.faults import Status
from tests.fakes.registry import FakeRegistry
from tests.stores import rot
from tests.unit.cli.conftest import Kitfs


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def fetched(kitfs: Kitfs, registry: FakeRegistry) -> str:
    """Read a kit with an uncompressed and a gzip layer through the cache, and return its reference."""
    parts = [
        kits.part("model", "w", kits.kit_tar({"w": os.urandom(300_000)})),
        kits.part("code", "c", kits.kit_tar({"c": os.urandom(50_000)}), compression="gzip"),
    ]
    reference = registry.put_kit("a/b", kits.build(parts), "v1")
    for name in "wc":
        kitfs("cat", reference, name)
    return reference


def test_the_cache_is_what_nobody_packed_or_pulled(kitfs: Kitfs, fetched: str, tmp_path: Path) -> None:
    """cache info prints the same words as kit. cache clear removes all blobs except those of packed and pulled kits."""
    (tmp_path / "t").mkdir()
    (tmp_path / "t/Kitfile").write_text("manifestVersion: 1.0.0\ndocs: [{path: d}]\n")
    (tmp_path / "t/d").write_text("kept\n")
    kitfs("pack", tmp_path / "t", "-t", "mine:v1")
    told = kitfs("cache", "info", "--json").json
    assert told["total"] == told["blobs"] + told["decoded"] > 300_000
    lines = kitfs("cache", "info").out.splitlines()
    assert lines[0].startswith("Total size of cache directory: ")
    assert lines[0].endswith(" KiB")
    assert (lines[1], [line.split()[0] for line in lines[2:]]) == ("Cache contents:", ["./blobs", "./decoded"])
    assert [line.index(line.split()[1]) for line in lines[2:]] == [len("  ./decoded") + 4] * 2
    assert kitfs("cache", "clear") == (0, "", "")
    assert kitfs("cache", "info").out == "Cache is currently empty\n"
    assert kitfs("cat", "mine:v1", "d").out == "kept\n"


def test_clear_leaves_what_is_in_use(kitfs: Kitfs, fetched: str, tmp_path: Path) -> None:
    """cache clear does not remove a blob in use. It prints a warning about the blob."""
    import fcntl

    biggest = max((tmp_path / "store/blobs/sha256").glob("*/*"), key=lambda d: (d / "rest").stat().st_size)
    with (biggest / "lease").open("rb+") as lease:
        fcntl.flock(lease, fcntl.LOCK_SH)
        done = kitfs("cache", "clear")
        assert (done.code, done.out) == (0, "")
        assert "are in use by mounts" in done.err
    assert kitfs("cache", "clear", "--json").json["in_use"] == 0


def biggest(store: Path, form: str = "blobs") -> str:
    """Return the digest of the largest verified blob of a store."""
    found = max((store / form / "sha256").glob("*/*"), key=lambda entry: (entry / "rest").stat().st_size)
    return f"sha256:{found.name}"


def test_a_changed_blob_is_fetched_again(kitfs: Kitfs, registry: FakeRegistry, fetched: str, tmp_path: Path) -> None:
    """cache verify replaces a changed blob from the registry of the kit, prints a line about it, and exits with 0."""
    assert kitfs("unpack", fetched, "-d", tmp_path / "first").code == 0
    done = kitfs("cache", "verify", "--progress", "none")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("verified ")
    digest = biggest(tmp_path / "store")
    rot(tmp_path / "store", digest)
    done = kitfs("cache", "verify", "--progress", "none")
    assert (done.code, len(done.err.splitlines())) == (0, 1)
    assert done.out.rstrip().endswith("1 had changed on the disk and were fetched again")
    assert digest in done.err
    assert f"it was fetched again for {fetched}" in done.err
    done = kitfs("cache", "verify", "--json")
    assert (done.code, done.json["changed"]) == (0, [])
    before = len(registry.served(digest))
    assert kitfs("unpack", fetched, "-d", tmp_path / "second").code == 0
    assert len(registry.served(digest)) == before, "the healed blob was fetched again"


@pytest.mark.parametrize("form", ["blobs", "decoded"])
def test_a_changed_blob_that_its_registry_lacks_is_an_integrity_error(
    kitfs: Kitfs, registry: FakeRegistry, fetched: str, tmp_path: Path, form: str
) -> None:
    """If a changed blob cannot be fetched, cache verify removes it, prints why, and exits with 6.

    The next read fetches it.
    """
    assert kitfs("unpack", fetched, "-d", tmp_path / "first").code == 0
    kitfs("cat", fetched, "c")
    (directory,) = sorted(
        (tmp_path / "store" / form / "sha256").glob("*/*"), key=lambda e: -(e / "rest").stat().st_size
    )[:1]
    digest = f"sha256:{directory.name}"
    rot(tmp_path / "store", digest, form=form)
    registry.fail("/blobs/", Status(404))
    done = kitfs("cache", "verify", "--progress", "none")
    assert (done.code, done.out) == (6, ""), done.err
    assert len(done.err.splitlines()) == 2, done.err
    assert digest in done.err
    assert "it could not be fetched now" in done.err
    assert "1 of " in done.err
    assert not directory.exists()
    assert kitfs("cache", "verify", "--json").json["changed"] == []


def test_a_changed_blob_of_a_local_kit_names_the_kit(kitfs: Kitfs, tmp_path: Path) -> None:
    """A kit that was only packed has no registry. The JSON object names the kit that must be packed again."""
    (tmp_path / "t").mkdir()
    (tmp_path / "t/Kitfile").write_text("manifestVersion: 1.0.0\ndocs: [{path: d}]\n")
    (tmp_path / "t/d").write_text("text\n" * 5000)
    kitfs("pack", tmp_path / "t", "-t", "mine:v1")
    digest = biggest(tmp_path / "store")
    rot(tmp_path / "store", digest)
    done = kitfs("cache", "verify", "--json")
    assert done.code == 6
    (changed,) = done.json["changed"]
    assert (changed["digest"], changed["form"], changed["is_pinned"]) == (digest, "blobs", True)
    assert (changed["is_healed"], changed["kits"], changed["mounts"]) == (False, ["mine:v1"], [])
    kitfs("pack", tmp_path / "t", "-t", "mine:v1")
    assert kitfs("cache", "verify").code == 0


def test_a_changed_manifest_is_fetched_again_first(kitfs: Kitfs, fetched: str, tmp_path: Path) -> None:
    """If the manifest of a pulled kit and a layer have changed, both are fetched again."""
    kitfs("pull", fetched)
    (name,) = [path.name for path in (tmp_path / "store/refs").glob("*/*")]
    assert name == "v1"
    digest = kitfs("list", "--json").json[0]["digest"]
    rot(tmp_path / "store", digest)
    rot(tmp_path / "store", biggest(tmp_path / "store"))
    done = kitfs("cache", "verify", "--json")
    assert done.code == 0
    assert [(blob["is_healed"], blob["is_pinned"]) for blob in done.json["changed"]] == [(True, True)] * 2


def test_a_pinned_kit_is_neither_cleared_nor_collected(kitfs: Kitfs, fetched: str, tmp_path: Path) -> None:
    """cache pin keeps the fetched blobs of a kit until cache unpin, and cache info lists the kit."""
    assert kitfs("cache", "pin", fetched).out.startswith(f"pinned {fetched} (sha256:")
    info = kitfs("cache", "info", "--json").json
    assert (info["total"], info["pins"]) == (0, [fetched])
    assert kitfs("cache", "info").out.splitlines()[1:] == ["Pinned kits:", f"  {fetched}"]
    digest = biggest(tmp_path / "store")
    for verb in ("clear", "gc"):
        assert kitfs("cache", verb).code == 0
        assert biggest(tmp_path / "store") == digest
    assert kitfs("cache", "unpin", fetched).code == 0
    assert kitfs("cache", "unpin", fetched).code == 3
    assert kitfs("cache", "clear", "--json").json["freed"] > 300_000
    assert kitfs("cache", "info", "--json").json == {"total": 0, "blobs": 0, "decoded": 0, "pins": []}


def test_gc_deletes_blobs_of_an_older_version(
    kitfs: Kitfs, registry: FakeRegistry, fetched: str, tmp_path: Path
) -> None:
    """When a tag has moved, cache gc deletes the blobs of the old kit, and old temporary files. Other blobs stay."""
    kitfs("unpack", fetched, "-d", tmp_path / "first")
    old = biggest(tmp_path / "store")
    assert kitfs("cache", "gc", "--json").json == {"blobs": 0, "files": 0, "freed": 0}
    registry.put_kit("a/b", kits.build([kits.part("docs", "d", kits.kit_tar({"d": b"new"}))]), "v1")
    assert kitfs("cat", fetched, "d").out == "new"
    left = tmp_path / "store/members/0123456789abcdef~"
    left.write_text("half")
    os.utime(left, (0, 0))
    done = kitfs("cache", "gc", "--json").json
    assert done["blobs"] >= 3
    assert (done["files"], left.exists()) == (1, False)
    assert done["freed"] > 300_000
    assert not list((tmp_path / "store/blobs/sha256").glob(f"*/{old.removeprefix('sha256:')}"))
    before = len(registry.served("/blobs/"))
    assert kitfs("cat", fetched, "d").out == "new"
    assert len(registry.served("/blobs/")) == before, "a blob of the newer kit was deleted"
