"""``kitfs pack`` and ``kitfs push`` to CNCF distribution and to ``kitfs serve`` survive every kind of interruption."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import kits, trees
from tests.conftest import CANNOT, GOLDEN, GOLDEN_KITS
from tests.fakes.registry import FakeRegistry
from tests.host import Host
from tests.registry_process import RegistryProcess
from tests.relay import Relay
from tests.server import Server

pytestmark = pytest.mark.interop
MiB = 1 << 20
TALK = 64 << 10  # maximum bytes of requests and small manifests when no blob is sent
BIG = 96 * MiB
CHUNK = 32 * MiB
SOME = 40 * MiB  # ends in the middle of the second chunk


@dataclass
class Registry:
    """A registry behind a relay that counts what clients send. ``host`` is the address of the relay."""

    process: RegistryProcess | Server
    meter: Relay

    @property
    def host(self) -> str:
        return self.meter.host

    def crash(self) -> None:
        """Kill the registry with SIGKILL, and start it again with the same data."""
        self.process.kill()
        self.process.start()

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(self.host, timeout=30)
        try:
            connection.request("GET", f"/v2/{path}", headers={"Accept": kits.MANIFEST})
            answer = connection.getresponse()
            data = answer.read()
            assert answer.status == 200, (path, answer.status, data[:200])
            return data
        finally:
            connection.close()

    def digest_of(self, repository: str, tag: str) -> str:
        """Read the manifest and every blob of a kit, check them, and return the digest of the kit."""
        manifest = self.get(f"{repository}/manifests/{tag}")
        about = json.loads(manifest)
        for blob in (about["config"], *(about["layers"] or ())):
            data = self.get(f"{repository}/blobs/{blob['digest']}")
            assert (kits.sha256(data), len(data)) == (blob["digest"], blob["size"])
        return kits.sha256(manifest)


@pytest.fixture
def registry(either_registry: RegistryProcess | Server) -> Iterator[Registry]:
    """Return each registry in turn, behind a relay."""
    with Relay(either_registry.port, requests=True) as meter:
        yield Registry(either_registry, meter)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """Return a directory that can be packed. Its only layer has a little more than 96 MiB."""
    root = tmp_path / "big"
    root.mkdir()
    (root / "Kitfile").write_text("manifestVersion: 1.0.0\nmodel: {name: big, path: w.bin}\n")
    (root / "w.bin").write_bytes(os.urandom(MiB) * (BIG // MiB))
    return root


def packed(box: Host, tree: Path, ref: str, *options: str) -> str:
    """Pack a tree, and return the digest of the kit."""
    return box.kitfs("pack", tree, "-t", ref, *options).stdout.splitlines()[-1].removeprefix("Model saved: ")


# -- what is transferred


def test_a_kit_is_pushed_once(registry: Registry, box: Host, golden_trees: Path) -> None:
    """After a push the registry has the manifest and every blob, byte for byte.

    A second push sends nothing. A push to a second repository sends no blob, because the registry mounts the blobs of
    the first.
    """
    ref = f"{registry.host}/team/basic:v1"
    digest = packed(box, golden_trees / "basic", ref, "--kit-version", "1.7.0")
    assert digest == GOLDEN_KITS["basic"]["manifest"]
    done = box.kitfs("push", ref, "--plain-http")
    assert (done.stdout, done.stderr) == (f"Pushing {ref}\nPushed {digest}\n", "")
    total = sum(layer["size"] for layer in GOLDEN_KITS["basic"]["layers"])
    assert registry.meter.moved > total > 10 * TALK
    assert registry.digest_of("team/basic", "v1") == digest
    before = registry.meter.moved
    assert box.kitfs("push", ref, "--plain-http").stdout == done.stdout
    assert registry.meter.moved - before < TALK
    before = registry.meter.moved
    other = f"{registry.host}/other/name:v2"
    assert box.kitfs("push", ref, other, "--plain-http").stdout == f"Pushing {ref} to {other}\nPushed {digest}\n"
    assert registry.meter.moved - before < TALK
    assert registry.digest_of("other/name", "v2") == digest


def test_several_tags_are_pushed_at_once(registry: Registry, box: Host, golden_trees: Path) -> None:
    """Pack to ``repo:a,b`` sets two tags in the store. Push to ``repo:a,b`` sets two tags in the registry."""
    digest = packed(box, golden_trees / "parts", "here:v1,v2")
    box.kitfs("push", "here:v2", f"{registry.host}/team/parts:one,two", "--plain-http")
    assert [registry.digest_of("team/parts", tag) for tag in ("one", "two")] == [digest, digest]


def test_a_kit_without_a_tag_is_pushed_by_its_digest(registry: Registry, box: Host, golden_trees: Path) -> None:
    digest = box.kitfs("pack", golden_trees / "empty").stdout.splitlines()[-1].removeprefix("Model saved: ")
    box.kitfs("push", digest, f"{registry.host}/team/empty@{digest}", "--plain-http")
    assert registry.digest_of("team/empty", digest) == digest


def test_a_push_that_was_killed_resumes(registry: Registry, box: Host, big: Path) -> None:
    """A push that was killed in the middle of a layer resumes.

    With ``kitfs serve`` at most one chunk is sent again. CNCF distribution loses the session, so the whole layer is
    sent again.
    """
    ref = f"{registry.host}/team/big:v1"
    digest = packed(box, big, ref)
    registry.meter.hold(SOME)
    with box.running("push", ref, "--plain-http", "--progress", "none"):
        assert registry.meter.held.wait(60)
    registry.meter.release()
    first = registry.meter.moved
    assert SOME <= first < SOME + MiB
    assert box.kitfs("push", ref, "--plain-http").stdout.endswith(f"Pushed {digest}\n")
    assert registry.digest_of("team/big", "v1") == digest
    again = registry.meter.moved - first - (BIG - SOME)
    assert again < (CHUNK + MiB if isinstance(registry.process, Server) else BIG)


def test_a_push_survives_a_registry_that_is_killed(registry: Registry, box: Host, big: Path) -> None:
    """If the registry is killed and restarted, a push waits, asks for the offset of the upload, and completes."""
    ref = f"{registry.host}/team/big:v1"
    digest = packed(box, big, ref)
    registry.meter.hold(SOME)
    with box.running("push", ref, "--plain-http", "--progress", "none") as process:
        assert registry.meter.held.wait(60)
        registry.crash()
        registry.meter.release()
        out, err = process.communicate(timeout=90)
    assert (process.returncode, out, err) == (0, f"Pushing {ref}\nPushed {digest}\n", "")
    assert registry.digest_of("team/big", "v1") == digest
    if isinstance(registry.process, Server):
        assert registry.meter.moved < BIG + CHUNK + MiB


def test_an_interrupted_push_leaves_no_manifest(registry: Registry, box: Host, big: Path) -> None:
    """If the registry accepts nothing, Ctrl-C ends a push with one line and exit code 130. No manifest is pushed."""
    ref = f"{registry.host}/team/big:v1"
    packed(box, big, ref)
    registry.meter.hold(SOME)
    with box.running("push", ref, "--plain-http", "--progress", "none") as process:
        assert registry.meter.held.wait(60)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=90)
    assert (process.returncode, out, err) == (130, f"Pushing {ref}\n", "kitfs: interrupted\n")
    registry.meter.release()
    with pytest.raises(AssertionError, match="404"):
        registry.get("team/big/manifests/v1")


def test_a_push_gets_its_token_and_one_to_mount(box: Host, golden_trees: Path) -> None:
    """Push succeeds with the credentials from docker's config, even if blobs are mounted from another repository.

    Without credentials the push is refused in one line.
    """
    with FakeRegistry() as desk, FakeRegistry() as fake:
        fake.require_token({"ada": "secret"}, server=desk)
        ref = f"{fake.host}/team/basic:v1"
        digest = packed(box, golden_trees / "basic", ref)
        refused = box.kitfs("push", ref, "--plain-http", check=False)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (5, 1)
        (box.home / "docker").mkdir()
        auth = base64.b64encode(b"ada:secret").decode()
        (box.home / "docker/config.json").write_text(json.dumps({"auths": {fake.host: {"auth": auth}}}))
        box.kitfs("push", ref, "--plain-http")
        box.kitfs("push", ref, f"{fake.host}/other/basic:v1", "--plain-http")
        for repository in ("team/basic", "other/basic"):
            data, media_type = fake.manifest(repository, "v1")
            assert (kits.sha256(data), media_type) == (digest, kits.MANIFEST)
            for layer in json.loads(data)["layers"]:
                assert kits.sha256(fake.blob(repository, layer["digest"]) or b"") == layer["digest"]
        assert not [s for s in fake.served("/other/", method="PUT") if "/manifests/" not in s.path]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("absent:v1", "{host}/a/b:v1"), 3, "absent:v1"),
        (("here:v1",), 2, "registry is required when pushing"),
        (("here:v1", "there:v1"), 2, "registry is required when pushing"),
        (("here:v1,v2", "{host}/a/b:v1"), 2, "only one tag"),
        (("here:v1", "127.0.0.1:1/a/b:v1"), 4, "127.0.0.1:1"),
    ],
)
def test_a_push_that_cannot_succeed_fails_in_one_line(
    box: Host, golden_trees: Path, args: tuple[str, ...], code: int, said: str
) -> None:
    packed(box, golden_trees / "empty", "here:v1")
    with FakeRegistry() as fake:
        done = box.kitfs("push", *(arg.format(host=fake.host) for arg in args), "--plain-http", check=False)
        assert fake.served() == []
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
    assert "Pushed" not in done.stdout


# -- reading what was pushed


@pytest.mark.mount
@pytest.mark.parametrize("name", ["basic", "parts", "context", "names", "modes", "empty", "duplicates", "ignore"])
def test_a_pushed_kit_is_mounted_elsewhere(
    registry: Registry, box: Host, host: Host, golden_trees: Path, name: str
) -> None:
    """If a pushed kit is mounted from another store, the mount, ``ls`` and ``cat`` show the recorded tree."""
    ref = f"{registry.host}/team/{name}:v1"
    digest = packed(box, golden_trees / name, ref)
    box.kitfs("push", ref, "--plain-http")
    mount = host.mount(ref, "--plain-http")
    expected = trees.golden(GOLDEN, name)
    assert mount.digest == digest
    assert host.scan(mount) == expected
    listed = json.loads(host.kitfs("ls", ref, "-R", "--json", "--plain-http").stdout)
    assert {row["path"] for row in listed} == set(expected)
    assert host.kitfs("cat", ref, "Kitfile", "--plain-http").stdout == (mount / "Kitfile").read_text()


@pytest.mark.mount
@pytest.mark.parametrize("ref", ["127.0.0.1:1/team/basic:v1", "kit:v1", "kit"])
def test_a_packed_kit_is_mounted_without_a_registry(host: Host, golden_trees: Path, ref: str) -> None:
    """A packed kit is mounted from the store if its name has no registry or an unavailable registry."""
    digest = packed(host, golden_trees / "basic", ref)
    mount = host.mount(ref)
    assert mount.digest == digest
    assert host.scan(mount) == trees.golden(GOLDEN, "basic")
    host.umount(mount)
    mount = host.mount(digest)
    assert host.scan(mount) == trees.golden(GOLDEN, "basic")
    assert host.status(mount)["errors"] == 0


@pytest.mark.parametrize("options", [(), ("--kit-version", "1.7.0")], ids=["as of now", "as of 1.7"])
@pytest.mark.parametrize("name", ["basic", "parts", "context", "names", "modes", "many", "empty"])
def test_kit_pulls_and_unpacks_what_was_pushed(
    registry: Registry, box: Host, golden_trees: Path, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    """The real kit pulls a pushed kit and unpacks the recorded tree."""
    if shutil.which("kit") is None:
        pytest.skip(f"{CANNOT} kit is not on PATH")
    ref = f"{registry.host}/team/{name}:v1"
    packed(box, golden_trees / name, ref, *options)
    box.kitfs("push", ref, "--plain-http")
    for command in (["pull", ref, "--plain-http"], ["unpack", ref, "-d", str(tmp_path / "out")]):
        done = subprocess.run(
            ["kit", *command, "--progress", "none"],
            env=box.env,
            capture_output=True,
            text=True,
            check=False,
            umask=0,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert trees.masked(trees.scan(tmp_path / "out")) == trees.golden(GOLDEN, name)
