"""If the command line requires a signature, mount refuses kits without this signature."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests import kits
from tests.conftest import GOLDEN
from tests.fakes.faults import Status
from tests.fakes.registry import FakeRegistry
from tests.host import Host

pytestmark = pytest.mark.mount
KEY, PUB = GOLDEN / "cosign/test-only.key", GOLDEN / "cosign/test-only.pub"
PASSWORD = {"KITFS_KEY_PASSWORD": "pw"}
KIT = kits.build([kits.Part(kind="docs", path="a.txt", content=kits.kit_tar({"a.txt": b"signed"}))])


@pytest.fixture
def signed(host: Host, fake: FakeRegistry) -> str:
    """Return the reference of a kit that is signed with the private key of PUB."""
    kit = fake.put_kit("team/kit", KIT, "v1")
    host.kitfs("sign", kit, "--key", KEY, env=PASSWORD)
    return kit


def refused(host: Host, *words: str | os.PathLike[str]) -> str:
    """Run a verb, assert that it exits with 11 and prints one line, and return the line."""
    done = host.kitfs(*words, check=False)
    assert (done.returncode, done.stdout) == (11, ""), done.stderr
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_signed_kit_is_mounted(host: Host, signed: str) -> None:
    mounted = host.mount(signed, "--verify-key", PUB)
    assert (mounted.path / "a.txt").read_bytes() == b"signed"


def test_another_key_is_refused(host: Host, signed: str, tmp_path: Path) -> None:
    """If the kit is signed with another key, mount starts no daemon and does not change the directory."""
    host.kitfs("generate-key-pair", "--output-key-prefix", tmp_path / "other", env=PASSWORD)
    line = refused(host, "mount", signed, host.mnt / "a", "--verify-key", tmp_path / "other.pub")
    assert "--verify-key demands a signature by key SHA256:" in line
    assert (host.mount_points(), host.processes()) == ([], {})


def test_a_kit_without_a_signature_is_refused(host: Host, fake: FakeRegistry) -> None:
    kit = fake.put_kit("team/kit", KIT, "v1")
    assert "no signature was found" in refused(host, "mount", kit, host.mnt / "a", "--verify-key", PUB)


def test_a_manifest_with_one_changed_byte_is_refused(host: Host, fake: FakeRegistry, signed: str) -> None:
    """A manifest with one changed byte is refused, because its digest is not signed."""
    changed = KIT.manifest.replace(b'"schemaVersion":2', b'"schemaVersion": 2', 1)
    assert changed != KIT.manifest
    fake.put_manifest("team/kit", changed, tag="v1")
    assert "no signature was found" in refused(host, "mount", signed, host.mnt / "a", "--verify-key", PUB)


def test_a_mount_that_exists_is_verified_again(host: Host, fake: FakeRegistry, signed: str) -> None:
    """If a kit is already mounted, mount verifies the kit again, and is refused if the signature was removed.

    Without ``--verify-key`` the request differs from that of the mount, and is refused.
    """
    mounted = host.mount(signed, "--verify-key", PUB)
    host.mount(signed, "--verify-key", PUB)
    done = host.kitfs("mount", signed, mounted.path, check=False)
    assert (done.returncode, "--verify-key" in done.stderr) == (9, True)
    fake.fail("referrers/", Status(404))
    line = refused(host, "mount", signed, mounted.path, "--verify-key", PUB)
    assert "no signature was found" in line


def test_seal_verifies_the_kit(host: Host, fake: FakeRegistry, tmp_path: Path) -> None:
    """``seal --verify-key`` refuses a mount of an unsigned kit, and the mount is not sealed."""
    kit = fake.put_kit("team/kit", KIT, "v1")
    mounted = host.mount(kit)
    assert (mounted.path / "a.txt").read_bytes() == b"signed"
    assert "no signature was found" in refused(host, "seal", mounted.path, "--verify-key", PUB)
    assert host.status(mounted)["mode"] != "sealed"


def test_a_kit_is_remounted_without_its_registry(host: Host, fake: FakeRegistry, signed: str) -> None:
    """If the registry is unavailable, a kit can be mounted if an earlier mount verified it. The log says so."""
    host.umount(host.mount(signed, "--verify-key", PUB))
    fake.stop()
    mounted = host.mount(signed, "--verify-key", PUB)
    assert "its signature was verified" in mounted.log.read_text()


def test_another_policy_finds_no_verdict(host: Host, fake: FakeRegistry, signed: str, tmp_path: Path) -> None:
    """If the registry is unavailable, mount refuses a kit that was verified only for another policy."""
    host.umount(host.mount(signed, "--verify-key", PUB))
    policy = tmp_path / "policy.json"
    rule = {"type": "sigstoreSigned", "keyPath": str(PUB), "signedIdentity": {"type": "matchRepository"}}
    policy.write_text(json.dumps({"default": [rule]}))
    fake.stop()
    assert "no signature can be fetched" in refused(host, "mount", signed, host.mnt / "a", "--policy", policy)
