"""kit's own storage beside a registry: what is read there, what is not believed, and what a kit that only kit has
is.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kitfs.errors import NotFound, Unavailable
from kitfs.kit.options import WorkspaceOptions
from kitfs.kit.workspace import Workspace
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import quiet
from kitfs.ops.transfer.pull import pull
from kitfs.registry import kit_storage as kit_home
from kitfs.registry.kit_storage import KitStorage
from kitfs.registry.options import ClientOptions
from tests import kits
from tests.conftest import GOLDEN
from tests.fakes.faults import IgnoreRange, Stall, Status
from tests.fakes.registry import FakeRegistry

MiB = 1 << 20
WEIGHTS = random.Random(6).randbytes(9 * MiB + 3)
LOG = logging.getLogger("kitfs.test")


class Storage:
    """kit's home, as kit 1.7 writes it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.blobs = home / "storage/blobs/sha256"
        self.blobs.mkdir(parents=True)
        (home / "storage/oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')

    def put(self, kit: kits.Kit, name: str, *tags: str) -> None:
        for digest, content in {**kit.blobs, kit.digest: kit.manifest}.items():
            assert isinstance(content, bytes)
            self.path(digest).write_bytes(content)
        about = {"mediaType": kits.MANIFEST, "digest": kit.digest, "size": len(kit.manifest)}
        stem = self.home / "storage" / base64.urlsafe_b64encode(name.encode()).decode()
        Path(f"{stem}-index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [about]}))
        if tags:
            Path(f"{stem}-tags.json").write_text(json.dumps(dict.fromkeys(tags, about)))

    def path(self, digest: str) -> Path:
        return self.blobs / digest.removeprefix("sha256:")

    def state(self) -> dict[str, tuple[int, int, int]]:
        """What would be another if something was written: inode, size and time of every file."""
        found = {path: path.stat() for path in sorted(self.home.rglob("*"))}
        return {str(path): (about.st_ino, about.st_size, about.st_mtime_ns) for path, about in found.items()}


Opener = Callable[[], Workspace]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "kitops")


@pytest.fixture
def opened(tmp_path: Path, storage: Storage) -> Iterator[Opener]:
    """Hosts of one store, one after the other."""
    last: list[Workspace] = []

    def run() -> Workspace:
        close()
        options = WorkspaceOptions(
            cache_dir=str(tmp_path / "store"), kit_home=str(storage.home), client=ClientOptions(read_timeout=10.0)
        )
        last.append(Workspace.open(options, log=LOG))
        return last[0]

    def close() -> None:
        while last:
            last.pop().close()

    yield run
    close()


def kit_of(**more: object) -> kits.Kit:
    parts = [
        kits.part("model", "w.bin", WEIGHTS, format="raw"),
        kits.part("code", "src", kits.kit_tar({"src/a.py": b"print()\n"})),
    ]
    return kits.build(parts, **more)  # type: ignore[arg-type]


def files(host: Workspace, reference: str, *, remote: bool = False) -> dict[str, bytes]:
    """What a mount reads."""
    kit = host.resolver.open(Reference.parse(reference), remote=remote)
    found = {
        m.path: layer.pread(m, 0, m.size)
        for layer in kit.layers
        for m in layer.index().members.values()
        if m.kind == "file"
    }
    kit.close()
    return found


def pulled(host: Workspace, reference: str) -> Digest:
    return pull(Reference.parse(reference), host.store, host.pull_from, report=quiet)


FILES = {"w.bin": WEIGHTS, "src/a.py": b"print()\n"}


# -- blobs


@pytest.mark.parametrize("how", ["pull", "read"])
def test_only_the_manifest_is_asked_of_the_registry(
    fake: FakeRegistry, opened: Opener, storage: Storage, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """When kit has pulled the kit before, under whatever name; what kit has is as it was."""
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    storage.put(kit, "somewhere.test/else", "v7")
    before = storage.state()
    host = opened()
    if how == "pull":
        assert pulled(host, ref) == kit.digest
        assert all(host.store.has_sealed(Digest.parse(digest)) for digest in (*kit.blobs, kit.digest))
    assert files(host, ref) == FILES
    assert [s.path for s in fake.served()] == ["/v2/team/kit/manifests/v1"]
    assert storage.state() == before
    assert caplog.records == []


@pytest.mark.parametrize("wrong", ["a byte", "shorter", "a folder", "a pipe", "a link"])
def test_a_wrong_copy_is_not_used(
    fake: FakeRegistry, opened: Opener, storage: Storage, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    """The registry is asked instead; of a byte one warning tells. The file stays as it is."""
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    storage.put(kit, "somewhere.test/else")
    path = storage.path(kit.layers[0])
    path.unlink()
    if wrong == "a byte":
        path.write_bytes(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]))
    elif wrong == "shorter":
        path.write_bytes(WEIGHTS[:-1])
    elif wrong == "a folder":
        path.mkdir()
    elif wrong == "a link":  # which may lead to what only the reader may read
        (storage.home / "elsewhere").write_bytes(WEIGHTS)
        path.symlink_to(storage.home / "elsewhere")
    else:
        os.mkfifo(path)
    before = storage.state()
    host = opened()
    assert pulled(host, ref) == kit.digest
    assert files(host, ref) == FILES
    assert fake.moved() == len(kit.manifest) + len(WEIGHTS)
    told = [f"kit's copy of {kit.layers[0]} in {storage.home}/storage is not used: it does not have its digest"]
    assert [r.getMessage() for r in caplog.records] == (told if wrong == "a byte" else [])
    assert storage.state() == before


@pytest.mark.parametrize("name", ["storage/blobs", "storage/blobs/sha256"])
def test_no_linked_directory_of_kits_is_entered(
    fake: FakeRegistry, opened: Opener, storage: Storage, name: str
) -> None:
    """The registry is asked instead."""
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    storage.put(kit, "somewhere.test/else")
    (storage.home / name).rename(storage.home / "elsewhere")
    (storage.home / name).symlink_to(storage.home / "elsewhere")
    assert files(opened(), ref) == FILES
    assert fake.moved() >= len(WEIGHTS)


def test_a_wrong_config_and_manifest_are_not_used(
    fake: FakeRegistry, opened: Opener, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor are they believed when they are asked for by digest."""
    kit = kit_of()
    ref = f"{fake.put_kit('team/kit', kit, 'v1').removesuffix(':v1')}@{kit.digest}"
    storage.put(kit, "somewhere.test/else")
    for digest in (kit.digest, kits.sha256(kit.config)):
        storage.path(digest).write_bytes(storage.path(digest).read_bytes()[:-1] + b" ")
    assert files(opened(), ref) == FILES
    assert len(caplog.records) == 2
    assert fake.moved() == len(kit.manifest) + len(kit.config)


def test_a_copy_is_checked_once(
    fake: FakeRegistry, opened: Opener, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later process takes it at its word, for as long as the file is the same."""
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    storage.put(kit, "somewhere.test/else")
    assert files(opened(), ref)["w.bin"] == WEIGHTS
    read: list[str] = []
    plain = kit_home.DigestCheck._read
    monkeypatch.setattr(kit_home.DigestCheck, "_read", lambda self: (read.append(self._digest), plain(self)))
    host = opened()
    host.store.evict(at_least=1 << 40)
    assert files(host, ref)["w.bin"] == WEIGHTS
    assert read == []
    path = storage.path(kit.layers[0])
    path.write_bytes(bytes(len(WEIGHTS)))
    host = opened()
    host.store.evict(at_least=1 << 40)
    assert files(host, ref)["w.bin"] == WEIGHTS
    assert read == [kit.layers[0]]


class Held:
    """A file whose check has not come to its end; a Notes that knows nothing."""

    def get(self, _key: tuple[str, str], /) -> None:
        return None

    def set(self, _key: tuple[str, str], _value: object, /) -> None:
        pass


class Answer:
    """A repository's blob, by ranges or whole; ``failure`` is raised after ``good`` bytes."""

    def __init__(self, data: bytes, *, ranged: bool = True, good: int = 1 << 60) -> None:
        self.data = data
        self.ranged = ranged
        self.good = good
        self.asked = 0

    def read_range(self, start: int, stop: int | None) -> Iterator[tuple[int, memoryview]]:
        self.asked += 1
        start, stop = (start, stop) if self.ranged else (0, None)
        stop = len(self.data) if stop is None else stop
        for at in range(start, stop, 1000):
            if at >= self.good:
                raise Unavailable("away")
            yield at, memoryview(self.data)[at : min(at + 1000, stop)]


def test_a_big_copy_is_not_waited_for(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is checked the registry is asked; then it is not, and where the registry goes away the check is waited
    for.
    """
    data = random.Random(2).randbytes(10_000)
    digest = Digest.of(data)
    storage.path(digest).write_bytes(data)
    monkeypatch.setattr(kit_home, "AT_ONCE", 100)
    go = Stall()
    plain = kit_home.DigestCheck._read
    monkeypatch.setattr(kit_home.DigestCheck, "_read", lambda self: (go.until.wait(), plain(self)))
    home = KitStorage(str(storage.home), Held(), LOG)
    answer = Answer(data, good=3000)

    class Repository:
        def blob(self, _: Descriptor) -> Answer:
            return answer

    source = home.origin(Reference.parse("a.test/b:v1"), lambda _: Repository()).blob(Descriptor("", digest, len(data)))  # type: ignore[arg-type,return-value]
    assert b"".join(bytes(view) for _, view in source.read_range(100, 2100)) == data[100:2100]
    assert answer.asked == 1
    pieces = source.read_range(2000, 9000)
    assert next(pieces)[0] == 2000
    go.until.set()
    assert b"".join(bytes(view) for _, view in pieces) == data[3000:9000]
    assert answer.asked == 2
    assert b"".join(bytes(view) for _, view in source.read_range(0, None)) == data
    assert answer.asked == 2
    home.close()


def test_a_registry_without_ranges_that_goes_away(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one stream goes on from kit's copy."""
    data = random.Random(2).randbytes(10_000)
    storage.path(Digest.of(data)).write_bytes(data)
    monkeypatch.setattr(kit_home, "AT_ONCE", 100)
    go = Stall()
    plain = kit_home.DigestCheck._read
    monkeypatch.setattr(kit_home.DigestCheck, "_read", lambda self: (go.until.wait(), plain(self)))
    home = KitStorage(str(storage.home), Held(), LOG)
    answer = Answer(data, ranged=False, good=3000)

    class Repository:
        def blob(self, _: Descriptor) -> Answer:
            return answer

    source = home.origin(Reference.parse("a.test/b:v1"), lambda _: Repository()).blob(
        Descriptor("", Digest.of(data), len(data))
    )  # type: ignore[arg-type,return-value]
    pieces = source.read_range(5000, 6000)
    assert next(pieces)[0] == 0
    assert not source.ranged
    go.until.set()
    assert data[:1000] + b"".join(bytes(view) for _, view in pieces) == data
    home.close()


def test_a_registry_without_ranges(
    fake: FakeRegistry, opened: Opener, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a copy that comes to count meanwhile: the kit is right."""
    monkeypatch.setattr(kit_home, "AT_ONCE", 100)
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    fake.fail("/blobs/", IgnoreRange())
    storage.put(kit, "somewhere.test/else")
    assert files(opened(), ref) == FILES


# -- tags


@pytest.mark.parametrize("how", ["pull", "read"])
@pytest.mark.parametrize("name", ["localhost/mine", "localhost/team/mine"])
def test_a_kit_that_only_kit_has(
    opened: Opener, storage: Storage, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    """Packed by kit without a registry: it is there by its tag and by its digest, and nobody is asked."""
    kit = kit_of()
    storage.put(kit, name, "v1", "latest")
    host = opened()
    short = name.removeprefix("localhost/")
    for ref in (f"{short}:v1", short, kit.digest, f"{short}@{kit.digest}"):
        if how == "pull":
            assert pulled(host, ref) == kit.digest
        assert files(host, ref) == FILES
    with pytest.raises(NotFound, match=f"{short}:v2 is not in the store, and it names no registry"):
        files(host, f"{short}:v2")
    assert caplog.records == []


@pytest.mark.parametrize("how", ["pull", "read"])
@pytest.mark.parametrize("away", ["stopped", "404", "401", "503"])
def test_a_kit_whose_registry_does_not_have_it(
    fake: FakeRegistry, opened: Opener, storage: Storage, caplog: pytest.LogCaptureFixture, away: str, how: str
) -> None:
    """It is taken from kit's storage, with one warning, but not where the registry is to be asked (--remote)."""
    kit = kit_of()
    storage.put(kit, f"{fake.host}/team/kit", "v1")
    ref = f"{fake.host}/team/kit:v1"
    if away == "stopped":
        fake.stop()
    elif away != "404":
        fake.fail("/v2/", Status(int(away), code="NO", message="no"))
    host = opened()
    if how == "pull":
        assert pulled(host, ref) == kit.digest
    else:
        with pytest.raises((NotFound, kit_home.Unauthorized, Unavailable)):
            files(host, ref, remote=True)
        assert files(host, ref) == FILES
    [record] = caplog.records
    assert record.getMessage().startswith(f"{ref}: using {kit.digest}, which is what kit has here: ")


def test_a_tag_is_the_registrys_first(fake: FakeRegistry, opened: Opener, storage: Storage) -> None:
    """kit's may be old."""
    old = kits.build([kits.part("code", "old", b"old", format="raw")])
    storage.put(old, f"{fake.host}/team/kit", "v1")
    ref = fake.put_kit("team/kit", kit_of(), "v1")
    host = opened()
    assert files(host, ref) == FILES
    fake.stop()
    assert files(host, ref) == FILES  # what was seen last, not what kit saw


@pytest.mark.parametrize("text", ["", "{", "[]", '{"v1": 5}', '{"v1": {"digest": "x", "size": 1}}', "[" * 100_000])
def test_tags_that_are_none(opened: Opener, storage: Storage, text: str) -> None:
    """They are passed over."""
    storage.put(kit_of(), "localhost/mine", "v1")
    next(storage.home.glob("storage/*-tags.json")).write_text(text)
    with pytest.raises(NotFound):
        files(opened(), "mine:v1")


@pytest.mark.parametrize(
    "name", [path.stem for path in sorted((GOLDEN / "layouts").glob("*.tar")) if path.stem != "child"]
)
def test_golden_kits_in_kits_storage(opened: Opener, storage: Storage, tmp_path: Path, name: str) -> None:
    """Whatever form kit packed them in, they are pulled from there."""
    with tarfile.open(GOLDEN / "layouts" / f"{name}.tar") as archive:
        archive.extractall(tmp_path / "layout", filter="data")
    [row] = json.loads((tmp_path / "layout/index.json").read_bytes())["manifests"]
    for blob in (tmp_path / "layout/blobs/sha256").iterdir():
        (storage.blobs / blob.name).write_bytes(blob.read_bytes())
    stem = base64.urlsafe_b64encode(b"localhost/golden").decode()
    (storage.home / f"storage/{stem}-tags.json").write_text(json.dumps({"v1": row}))
    host = opened()
    assert pulled(host, "golden:v1") == row["digest"]
    assert files(host, "golden:v1") is not None
