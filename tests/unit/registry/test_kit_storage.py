"""kitfs reads kits and blobs from the storage of the tool kit.

Some of these kits are in a registry too, and some are only in kit's storage. Damaged blobs are refused.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import random
import tarfile
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from kitfs.content import RemoteOrigin, Source
from kitfs.errors import NotFound, Unauthorized, Unavailable
from kitfs.kit.options import WorkspaceOptions
from kitfs.kit.workspace import Workspace
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import quiet
from kitfs.ops.transfer.pull import pull
from kitfs.registry.kit_storage import KitStorage, StoredFile
from kitfs.registry.options import ClientOptions
from tests import kits
from tests.conftest import GOLDEN
from tests.fakes.faults import IgnoreRange, Status
from tests.fakes.registry import FakeRegistry

MiB = 1 << 20
WEIGHTS = random.Random(6).randbytes(9 * MiB + 3)
LOG = logging.getLogger("kitfs.test")


class Storage:
    """A KITOPS_HOME directory, as kit 1.7 writes it."""

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
        """Return the inode, size and time of every file. Any write changes at least one of them."""
        found = {path: path.stat() for path in sorted(self.home.rglob("*"))}
        return {str(path): (about.st_ino, about.st_size, about.st_mtime_ns) for path, about in found.items()}


Opener = Callable[[], Workspace]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path / "kitops")


@pytest.fixture
def opened(tmp_path: Path, storage: Storage) -> Iterator[Opener]:
    """Return a function that opens workspaces, one after the other, with the same store."""
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
    """Return the content of every file of a kit, as a mount reads it."""
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
    return pull(host, Reference.parse(reference), report=quiet)


FILES = {"w.bin": WEIGHTS, "src/a.py": b"print()\n"}


# -- blobs


@pytest.mark.parametrize("how", ["pull", "read"])
def test_only_the_manifest_is_asked_of_the_registry(
    fake: FakeRegistry, opened: Opener, storage: Storage, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """If kit's storage has the blobs of a kit, only the manifest is requested. The storage is not changed.

    The kit may have another name in the storage.
    """
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
    """If kit's storage has a wrong copy of a blob, the blob is read from the registry. The copy is not changed.

    If the copy has a wrong byte, a warning is logged once.
    """
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
    elif wrong == "a link":  # a link may lead to a file that only the reader may read
        (storage.home / "elsewhere").write_bytes(WEIGHTS)
        path.symlink_to(storage.home / "elsewhere")
    else:
        os.mkfifo(path)
    before = storage.state()
    host = opened()
    assert pulled(host, ref) == kit.digest
    assert files(host, ref) == FILES
    assert fake.moved() == len(kit.manifest) + len(WEIGHTS)
    warnings = [f"kit's copy of {kit.layers[0]} in {storage.home}/storage is not used: it does not match its digest"]
    assert [r.getMessage() for r in caplog.records] == (warnings if wrong == "a byte" else [])
    assert storage.state() == before


@pytest.mark.parametrize("name", ["storage/blobs", "storage/blobs/sha256"])
def test_no_linked_directory_of_kits_is_entered(
    fake: FakeRegistry, opened: Opener, storage: Storage, name: str
) -> None:
    """A symbolic link in kit's storage is not followed. The blobs are read from the registry."""
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
    """A config or manifest in kit's storage is not used if its digest is wrong.

    This is also true if the kit is requested by its digest.
    """
    kit = kit_of()
    ref = f"{fake.put_kit('team/kit', kit, 'v1').removesuffix(':v1')}@{kit.digest}"
    storage.put(kit, "somewhere.test/else")
    for digest in (kit.digest, kits.sha256(kit.config)):
        storage.path(digest).write_bytes(storage.path(digest).read_bytes()[:-1] + b" ")
    assert files(opened(), ref) == FILES
    assert len(caplog.records) == 2
    assert fake.moved() == len(kit.manifest) + len(kit.config)


def test_a_copy_is_checked_once(opened: Opener, storage: Storage) -> None:
    """A file in kit's storage is hashed once. A later process hashes the file again only if the file has changed."""
    storage.put(kit_of(), "somewhere.test/else")
    digest = Digest.of(WEIGHTS)
    reads: list[str] = []

    class Recorded(StoredFile):
        def read_range(self, start: int, stop: int | None, /) -> Generator[tuple[int, memoryview], None, None]:
            reads.append("read")
            yield from super().read_range(start, stop)

    def checked() -> bool:
        home = KitStorage(str(storage.home), opened().store.catalog, LOG, open_file=Recorded.open)
        check = home.check(Descriptor("", digest, len(WEIGHTS)))
        assert check is not None
        check.begin()
        assert check.done.wait(60)
        home.close()
        return check.right

    assert (checked(), reads) == (True, ["read"])
    assert (checked(), reads) == (True, ["read"])
    storage.path(digest).write_bytes(bytes(len(WEIGHTS)))
    assert (checked(), reads) == (False, ["read", "read"])


class NoHints:
    """A store of hints that stores nothing."""

    def get(self, _key: tuple[str, str], /) -> None:
        return None

    def set(self, _key: tuple[str, str], _value: object, /) -> None:
        pass


class SlowStorage:
    """Make kit's storage slow: the check of a file waits until ``released`` is set."""

    def __init__(self, home: Path) -> None:
        released = self.released = threading.Event()

        class SlowFile(StoredFile):
            def read_range(self, start: int, stop: int | None, /) -> Generator[tuple[int, memoryview], None, None]:
                assert released.wait(60)
                yield from super().read_range(start, stop)

        self.storage = KitStorage(str(home), NoHints(), LOG, wait_limit=100, open_file=SlowFile.open)

    def blob(self, data: bytes, answer: Answer) -> Source:
        """Return the blob ``data`` from kit's storage. ``answer`` is the same blob in the registry."""

        class Repository:
            def blob(self, _: Descriptor) -> Answer:
                return answer

        origin = self.storage.origin(Reference.parse("a.test/b:v1"), lambda _: Repository())  # type: ignore[arg-type,return-value]
        return origin.blob(Descriptor("", Digest.of(data), len(data)))


class Answer:
    """A blob in a registry, which is read by ranges or as one stream.

    After ``good`` bytes, a read raises Unavailable.
    """

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


def test_a_large_copy_is_read_after_its_check(storage: Storage) -> None:
    """While the copy in kit's storage is being checked, a read uses the registry.

    If the registry fails, the read waits until the copy has been checked.
    """
    data = random.Random(2).randbytes(10_000)
    storage.path(Digest.of(data)).write_bytes(data)
    slow = SlowStorage(storage.home)
    answer = Answer(data, good=3000)
    source = slow.blob(data, answer)
    assert b"".join(bytes(view) for _, view in source.read_range(100, 2100)) == data[100:2100]
    assert answer.asked == 1
    pieces = source.read_range(2000, 9000)
    assert next(pieces)[0] == 2000
    slow.released.set()
    assert b"".join(bytes(view) for _, view in pieces) == data[3000:9000]
    assert answer.asked == 2
    assert b"".join(bytes(view) for _, view in source.read_range(0, None)) == data
    assert answer.asked == 2
    slow.storage.close()


def test_a_registry_without_ranges_that_goes_away(storage: Storage) -> None:
    """If the registry fails in the middle of its stream, the copy in kit's storage is read for the remaining bytes."""
    data = random.Random(2).randbytes(10_000)
    storage.path(Digest.of(data)).write_bytes(data)
    slow = SlowStorage(storage.home)
    source = slow.blob(data, Answer(data, ranged=False, good=3000))
    pieces = source.read_range(5000, 6000)
    assert next(pieces)[0] == 0
    assert not source.ranged
    slow.released.set()
    assert data[:1000] + b"".join(bytes(view) for _, view in pieces) == data
    slow.storage.close()


def test_a_copy_that_is_checked_while_a_registry_without_ranges_is_read(
    fake: FakeRegistry, storage: Storage, repository: Callable[..., RemoteOrigin]
) -> None:
    """While the copy in kit's storage is being checked, a read streams from the registry.

    Later reads use the copy. Both return the same bytes.
    """
    kit = kit_of()
    fake.put_kit("team/kit", kit, "v1")
    fake.fail("/blobs/", IgnoreRange())
    storage.put(kit, "somewhere.test/else")
    slow = SlowStorage(storage.home)
    team = repository()
    blob = slow.storage.origin(Reference.parse("a.test/b:v1"), lambda _: team).blob(
        Descriptor("", Digest.of(WEIGHTS), len(WEIGHTS))
    )
    assert b"".join(bytes(view) for _, view in blob.read_range(5, 10)) == WEIGHTS
    assert not blob.ranged
    slow.released.set()
    slow.storage.close()
    assert b"".join(bytes(view) for _, view in blob.read_range(0, None)) == WEIGHTS


# -- tags


@pytest.mark.parametrize("how", ["pull", "read"])
@pytest.mark.parametrize("name", ["localhost/mine", "localhost/team/mine"])
def test_a_kit_that_only_kit_has(
    opened: Opener, storage: Storage, caplog: pytest.LogCaptureFixture, name: str, how: str
) -> None:
    """A kit that was packed by kit and is in no registry is found by its tag and by its digest, without a request."""
    kit = kit_of()
    storage.put(kit, name, "v1", "latest")
    host = opened()
    short = name.removeprefix("localhost/")
    for ref in (f"{short}:v1", short, kit.digest, f"{short}@{kit.digest}"):
        if how == "pull":
            assert pulled(host, ref) == kit.digest
        assert files(host, ref) == FILES
    with pytest.raises(NotFound, match=f"{short}:v2 is not in the store and does not name a registry"):
        files(host, f"{short}:v2")
    assert caplog.records == []


@pytest.mark.parametrize("how", ["pull", "read"])
@pytest.mark.parametrize("away", ["stopped", "404", "401", "503"])
def test_a_kit_whose_registry_does_not_have_it(
    fake: FakeRegistry, opened: Opener, storage: Storage, caplog: pytest.LogCaptureFixture, away: str, how: str
) -> None:
    """If a registry does not return a kit, kitfs reads the kit from kit's storage and logs one warning.

    With --remote, kit's storage is not used.
    """
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
        with pytest.raises((NotFound, Unauthorized, Unavailable)):
            files(host, ref, remote=True)
        assert files(host, ref) == FILES
    [record] = caplog.records
    assert record.getMessage().startswith(f"{ref}: using {kit.digest} from kit's local storage: ")


def test_a_tag_is_the_registrys_first(fake: FakeRegistry, opened: Opener, storage: Storage) -> None:
    """The registry resolves a tag, because the tag in kit's storage may be old.

    If the registry is unavailable, the last known manifest is used.
    """
    old = kits.build([kits.part("code", "old", b"old", format="raw")])
    storage.put(old, f"{fake.host}/team/kit", "v1")
    ref = fake.put_kit("team/kit", kit_of(), "v1")
    host = opened()
    assert files(host, ref) == FILES
    fake.stop()
    assert files(host, ref) == FILES  # the manifest that kitfs saw last, not that of kit


@pytest.mark.parametrize("text", ["", "{", "[]", '{"v1": 5}', '{"v1": {"digest": "x", "size": 1}}', "[" * 100_000])
def test_an_invalid_list_of_tags_is_ignored(opened: Opener, storage: Storage, text: str) -> None:
    storage.put(kit_of(), "localhost/mine", "v1")
    next(storage.home.glob("storage/*-tags.json")).write_text(text)
    with pytest.raises(NotFound):
        files(opened(), "mine:v1")


@pytest.mark.parametrize(
    "name", [path.stem for path in sorted((GOLDEN / "layouts").glob("*.tar")) if path.stem != "child"]
)
def test_golden_kits_in_kits_storage(opened: Opener, storage: Storage, tmp_path: Path, name: str) -> None:
    """Kits of every version of kit are pulled from kit's storage."""
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
