"""Blobs and manifests are pushed to CNCF distribution and ``kitfs serve``, even if connections break.

A blob is sent in one request or in chunks, or is mounted from another repository. Skopeo reads the pushed kits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kitfs.errors import IntegrityError, NotFound, RegistryError
from kitfs.metrics import Counters
from kitfs.oci.manifest import IMAGE_MANIFEST, Descriptor
from kitfs.oci.names import Digest, Reference
from kitfs.registry.client import RegistryClient, Repository
from kitfs.registry.credentials import Credentials
from kitfs.registry.options import ClientOptions
from tests import kits
from tests.conftest import needs
from tests.registry_process import RegistryProcess
from tests.relay import Relay
from tests.server import Server

pytestmark = pytest.mark.interop
MiB = 1 << 20
DATA = random.Random(5).randbytes(9 * MiB + 7)
BLOB = Descriptor("application/octet-stream", Digest.of(DATA), len(DATA))
Repositories = Callable[[str, str], Repository]


@pytest.fixture
def repository() -> Iterator[Repositories]:
    """Return a function that makes a Repository from a host and a name."""
    client = RegistryClient(
        ClientOptions(read_timeout=20.0), Credentials(()), counters=Counters(), log=logging.getLogger("kitfs.test")
    )
    yield lambda host, name: client.repository(Reference.parse(f"{host}/{name}"))
    client.close()


def reader(data: bytes = DATA) -> Callable[[int], Iterator[bytes]]:
    return lambda offset: (data[at : at + MiB] for at in range(offset, len(data), MiB))


def uploads(registry: RegistryProcess, name: str) -> list[Path]:
    """Return the unfinished uploads in the registry's storage."""
    return list((registry.data / "docker/registry/v2/repositories" / name / "_uploads").glob("*"))


class Notes(dict[tuple[str, str], Any]):
    """A journal of uploads that is kept in memory."""

    def set(self, key: tuple[str, str], value: Any) -> None:
        self[key] = value

    def delete(self, key: tuple[str, str]) -> None:
        self.pop(key, None)


@pytest.mark.parametrize("chunk", [32 * MiB, 4 * MiB, 9 * MiB + 7, 3 * MiB])
def test_a_blob_is_uploaded(own_registry: RegistryProcess, repository: Repositories, chunk: int) -> None:
    """A blob is uploaded in one PUT or in chunks, with or without a shorter last chunk.

    No upload session is left behind, and a second push sends nothing.
    """
    team, told = repository(own_registry.host, "team/kit"), list[int]()
    assert team.upload(BLOB, reader(), chunk=chunk, progress=told.append) == "uploaded"
    assert own_registry.blob_path(BLOB.digest).read_bytes() == DATA
    assert (sum(told), uploads(own_registry, "team/kit")) == (len(DATA), [])
    assert team.upload(BLOB, reader(), chunk=chunk) == "exists"


def test_an_empty_blob_is_uploaded(registry: RegistryProcess, repository: Repositories) -> None:
    team, empty = repository(registry.host, "push/empty"), Descriptor("x", Digest.of(b""), 0)
    team.upload(empty, reader(b""))
    assert team.upload(empty, reader(b"")) == "exists"


def test_a_blob_is_mounted(own_registry: RegistryProcess, repository: Repositories) -> None:
    """A blob is mounted from the repository that has it, and no byte of it is sent."""
    repository(own_registry.host, "lib/base").upload(BLOB, reader())

    def read(_: int) -> Iterator[bytes]:
        raise AssertionError("the blob was read although the registry has it")

    team = repository(own_registry.host, "team/kit")
    assert team.upload(BLOB, read, mount_from=["lib/none", "lib/base"]) == "mounted"
    assert team.upload(BLOB, read) == "exists"
    assert [row.status for row in own_registry.served() if row.method == "DELETE"] == [
        204
    ]  # the session that the mount request to lib/none began


@pytest.mark.parametrize("chunk", [32 * MiB, 2 * MiB])
@pytest.mark.parametrize("after", [100, 3 * MiB + 99, 9 * MiB])
def test_a_connection_that_breaks(
    own_registry: RegistryProcess, repository: Repositories, after: int, chunk: int
) -> None:
    """A blob is uploaded although a connection breaks.

    If a connection breaks within a chunk, CNCF distribution loses the session, and the upload starts again.
    """
    with Relay(own_registry.port) as relay:
        relay.cut(after)
        told: list[int] = []
        assert (
            repository(relay.host, "team/kit").upload(BLOB, reader(), chunk=chunk, progress=told.append) == "uploaded"
        )
    assert own_registry.blob_path(BLOB.digest).read_bytes() == DATA
    assert sum(told) == len(DATA)


def test_a_registry_that_restarts(own_registry: RegistryProcess, repository: Repositories) -> None:
    """An upload resumes if the registry restarted between two chunks. The registry keeps complete chunks on disk."""
    restarted: list[int] = []

    def read(offset: int) -> Iterator[bytes]:
        if offset == 4 * MiB and not restarted:
            restarted.append(offset)
            own_registry.stop()
            own_registry.start()
        return reader()(offset)

    assert repository(own_registry.host, "team/kit").upload(BLOB, read, chunk=2 * MiB) == "uploaded"
    assert own_registry.blob_path(BLOB.digest).read_bytes() == DATA


@pytest.mark.parametrize("stop", [0, 77])
def test_a_later_call_resumes_or_starts_again(
    own_registry: RegistryProcess, repository: Repositories, stop: int
) -> None:
    """A later call resumes an upload that was interrupted between chunks.

    An upload that was interrupted within a chunk starts again, because CNCF distribution loses the session.
    """

    class Killed(BaseException):
        pass

    def read(offset: int) -> Iterator[bytes]:
        if offset == 4 * MiB:
            yield DATA[offset : offset + stop]
            raise Killed
        yield from reader()(offset)

    notes, told = Notes(), list[int]()
    team = repository(own_registry.host, "team/kit")
    with pytest.raises(Killed):
        team.upload(BLOB, read, chunk=2 * MiB, hints=notes)
    assert len(notes) == 1
    assert json.loads(json.dumps(list(notes.values()))) == list(notes.values())
    mark = own_registry.mark()
    assert team.upload(BLOB, reader(), chunk=2 * MiB, hints=notes, progress=told.append) == "uploaded"
    assert own_registry.blob_path(BLOB.digest).read_bytes() == DATA
    assert (notes, sum(told)) == ({}, len(DATA))
    assert any(row.method == "GET" and row.status == 204 for row in own_registry.served(mark)) or stop


def test_kitfs_serve_keeps_what_it_has(repository: Repositories, tmp_path: Path) -> None:
    """An upload to ``kitfs serve`` keeps its session through several failures. No whole chunk is sent twice.

    The failures are a broken connection, a killed server and a killed push.
    """

    class Killed(BaseException):
        pass

    class Locations(Notes):
        seen: ClassVar[set[str]] = set()

        def set(self, key: tuple[str, str], value: Any) -> None:
            self.seen.add(value["location"].rpartition("/")[2])
            super().set(key, value)

    with Server(tmp_path / "root", tmp_path / "log") as server, Relay(int(server.host.rpartition(":")[2])) as relay:
        killed: list[int] = []

        def read(offset: int) -> Iterator[bytes]:
            if offset == 4 * MiB and not killed:
                killed.append(offset)
                server.kill()
                server.start()
            if offset >= 6 * MiB:
                raise Killed
            yield from reader()(offset)

        notes, told = Locations(), list[int]()
        team = repository(relay.host, "team/kit")
        relay.cut(3 * MiB)
        with pytest.raises(Killed):
            team.upload(BLOB, read, chunk=2 * MiB, hints=notes)
        assert team.upload(BLOB, reader(), chunk=2 * MiB, hints=notes, progress=told.append) == "uploaded"
        assert (told[0] >= 6 * MiB, sum(told), len(notes.seen), notes) == (True, len(DATA), 1, {})
        assert team.blob_bytes(BLOB, len(DATA)) == DATA


def test_a_wrong_digest_is_refused(registry: RegistryProcess, repository: Repositories) -> None:
    """The registry refuses a wrong digest, and the upload raises IntegrityError."""
    team = repository(registry.host, "push/wrong")
    for chunk in (32 * MiB, 2 * MiB):
        with pytest.raises(IntegrityError, match="computed another digest"):
            team.upload(Descriptor("x", Digest.of(b"else"), len(DATA)), reader(), chunk=chunk)


def test_another_digest_algorithm_gets_an_answer(own_registry: RegistryProcess, repository: Repositories) -> None:
    """A blob with a SHA-512 digest can be uploaded."""
    blob = Descriptor("x", Digest.parse(f"sha512:{hashlib.sha512(DATA).hexdigest()}"), len(DATA))
    team = repository(own_registry.host, "team/kit")
    assert team.upload(blob, reader(), chunk=2 * MiB) == "uploaded"


@pytest.mark.parametrize("chunk", [1 << 40, 32 * MiB])
def test_a_body_is_streamed(own_registry: RegistryProcess, repository: Repositories, chunk: int) -> None:
    """A blob of 256 MiB is sent without being held in memory."""
    size, piece = 256 * MiB, bytes(MiB)
    hasher = hashlib.sha256()
    for _ in range(size // MiB):
        hasher.update(piece)
    blob = Descriptor("x", Digest.parse(f"sha256:{hasher.hexdigest()}"), size)
    team = repository(own_registry.host, "team/kit")
    tracemalloc.start()
    try:
        assert team.upload(blob, lambda at: (bytes(MiB) for _ in range(at, size, MiB)), chunk=chunk) == "uploaded"
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * MiB


@pytest.mark.parametrize("vintage", ["1.7", "1.17", "modelpack"])
def test_skopeo_reads_a_pushed_kit(
    registry: RegistryProcess, repository: Repositories, tmp_path: Path, vintage: kits.Vintage
) -> None:
    """Skopeo reads every blob and the manifest of a pushed kit byte for byte, and lists its tags."""
    needs("skopeo")
    model = kits.part("model", "model", kits.kit_tar({"model/w.bin": DATA}))
    kit = kits.build([model, kits.part("docs", "README.md", b"# x", format="raw")], vintage=vintage)
    name = f"push/kit-{vintage}"
    team = repository(registry.host, name)
    for digest, content in kit.blobs.items():
        assert isinstance(content, bytes)
        team.upload(Descriptor("", Digest.parse(digest), len(content)), reader(content), chunk=MiB)
    for tag in ("v1", "latest"):
        assert team.put_manifest(tag, IMAGE_MANIFEST, kit.manifest) == kits.sha256(kit.manifest)
    assert sorted(team.tags()) == ["latest", "v1"]
    command = ["skopeo", "--insecure-policy", "copy", "-q", "--preserve-digests", "--src-tls-verify=false"]
    subprocess.run(
        [*command, f"docker://{registry.host}/{name}:v1", f"oci:{tmp_path}:v1"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    for digest in [*kit.blobs, kits.sha256(kit.manifest)]:
        assert kits.sha256(tmp_path / "blobs/sha256" / digest.partition(":")[2]) == digest


def test_a_manifest_without_its_blobs_is_refused(registry: RegistryProcess, repository: Repositories) -> None:
    """The error for a manifest without its blobs contains the error message of the registry."""
    kit = kits.build([kits.part("docs", "README.md", b"never pushed", format="raw")], vintage="1.17")
    with pytest.raises(RegistryError, match="blob unknown to registry"):
        repository(registry.host, "push/nothing").put_manifest("v1", IMAGE_MANIFEST, kit.manifest)


def test_manifests_are_deleted(own_registry: RegistryProcess, repository: Repositories) -> None:
    """A manifest is deleted by digest. This version of the registry answers 405 or 400 if a tag is to be deleted."""
    team = repository(own_registry.host, "team/kit")
    team.upload(Descriptor("", Digest.of(b"{}"), 2), reader(b"{}"))
    config = {"mediaType": "application/vnd.test", "digest": Digest.of(b"{}"), "size": 2}
    digest = team.put_manifest(
        "v1",
        IMAGE_MANIFEST,
        kits.compact({"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "config": config, "layers": []}),
    )
    with pytest.raises(RegistryError) as caught:
        team.delete_manifest("v1")
    assert caught.value.status in (400, 405)
    team.delete_manifest(digest)
    with pytest.raises(NotFound):
        team.manifest("v1")


def test_referrers_are_kept_under_a_tag(own_registry: RegistryProcess, repository: Repositories) -> None:
    """This version of CNCF distribution has no referrers API, so referrers are listed under a tag.

    If a referrer is deleted, the tag still lists the others.
    """
    team = repository(own_registry.host, "team/kit")
    team.upload(Descriptor("", Digest.of(b"{}"), 2), reader(b"{}"))
    config = {"mediaType": "application/vnd.test", "digest": Digest.of(b"{}"), "size": 2}
    plain = {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "config": config, "layers": []}
    subject = team.put_manifest("v1", IMAGE_MANIFEST, kits.compact(plain))
    about = {"mediaType": IMAGE_MANIFEST, "digest": subject, "size": len(kits.compact(plain))}
    referrers = [kits.compact({**plain, "subject": about, "annotations": {"n": str(n)}}) for n in range(3)]
    digests = [team.put_manifest(Digest.of(data), IMAGE_MANIFEST, data) for data in referrers]
    assert [(d.digest, d.annotations, d.artifact_type) for d in team.referrers(subject)] == [
        (digest, {"n": str(n)}, "application/vnd.test") for n, digest in enumerate(digests)
    ]
    team.delete_manifest(digests[1])
    assert [d.digest for d in team.referrers(subject)] == [digests[0], digests[2]]
