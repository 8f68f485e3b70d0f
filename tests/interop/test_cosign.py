"""cosign (version 3) accepts signatures of kitfs, and kitfs accepts signatures of cosign, in both formats.

cosign must be on PATH, because Debian has no package for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import kits
from tests.conftest import CANNOT, GOLDEN
from tests.host import Host
from tests.registry_process import RegistryProcess
from tests.server import Server

KEY, PUB = GOLDEN / "cosign/test-only.key", GOLDEN / "cosign/test-only.pub"
PASSWORD = {"KITFS_KEY_PASSWORD": "pw"}
KIT = kits.build([kits.Part(kind="docs", path="a.txt", content=kits.kit_tar({"a.txt": b"signed"}))])
SHAPES = {"bundle": "true", "tag": "false"}  # the value of cosign's option --new-bundle-format


@pytest.fixture(autouse=True)
def _password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSIGN_PASSWORD", "pw")


@pytest.fixture
def kit(either_registry: RegistryProcess | Server) -> str:
    """Return the reference of a kit.

    One of the two registries has the referrers API, and the other does not.
    """
    return kits.push(KIT, either_registry.host, "team/kit", "v1")


def cosign(home: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run cosign without a transparency log."""
    if shutil.which("cosign") is None:
        pytest.skip(f"{CANNOT} cosign is not on PATH")
    env = {**os.environ, "HOME": str(home)}
    return subprocess.run(
        ["cosign", *map(str, words)], env=env, capture_output=True, text=True, timeout=120, check=False
    )


def sign_with_cosign(home: Path, kit: str, key: Path, shape: str) -> None:
    done = cosign(
        home, "sign", "--yes", "--allow-http-registry", "--use-signing-config=false", "--tlog-upload=false",
        f"--new-bundle-format={SHAPES[shape]}", "--key", key, kit,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def verify_with_cosign(home: Path, kit: str, key: Path, shape: str) -> subprocess.CompletedProcess[str]:
    return cosign(
        home, "verify", "--allow-http-registry", "--insecure-ignore-tlog",
        f"--new-bundle-format={SHAPES[shape]}", "--key", key, kit,
    )  # fmt: skip


@pytest.mark.interop
@pytest.mark.parametrize("shape", SHAPES)
def test_cosign_verifies_what_kitfs_signed(box: Host, kit: str, tmp_path: Path, shape: str) -> None:
    """cosign accepts a signature that kitfs made, and refuses it if another key is given."""
    box.kitfs("sign", kit, "--key", KEY, "--signature-format", shape, env=PASSWORD)
    done = verify_with_cosign(tmp_path, kit, PUB, shape)
    assert done.returncode == 0, done.stderr
    cosign(tmp_path, "generate-key-pair", "--output-key-prefix", tmp_path / "other")
    assert verify_with_cosign(tmp_path, kit, tmp_path / "other.pub", shape).returncode != 0


@pytest.mark.interop
@pytest.mark.parametrize("shape", SHAPES)
def test_kitfs_verifies_what_cosign_signed(box: Host, kit: str, tmp_path: Path, shape: str) -> None:
    """kitfs accepts a signature that cosign made, and refuses it if another key is given."""
    cosign(tmp_path, "generate-key-pair", "--output-key-prefix", tmp_path / "theirs")
    sign_with_cosign(tmp_path, kit, tmp_path / "theirs.key", shape)
    assert f"({shape})" in box.kitfs("verify", kit, "--key", tmp_path / "theirs.pub").stdout
    assert box.kitfs("verify", kit, "--key", PUB, check=False).returncode == 11


@pytest.mark.interop
def test_cosign_reads_the_key_pair_that_kitfs_made(box: Host, kit: str, tmp_path: Path) -> None:
    """cosign signs with a private key that kitfs encrypted."""
    box.kitfs("generate-key-pair", "--output-key-prefix", tmp_path / "ours", env=PASSWORD)
    sign_with_cosign(tmp_path, kit, tmp_path / "ours.key", "bundle")
    box.kitfs("verify", kit, "--key", tmp_path / "ours.pub")


@pytest.mark.interop
@pytest.mark.parametrize("shape", SHAPES)
def test_signatures_of_both_programs_stand_beside_each_other(box: Host, kit: str, tmp_path: Path, shape: str) -> None:
    """Both signatures are valid if kitfs and cosign sign the same kit."""
    cosign(tmp_path, "generate-key-pair", "--output-key-prefix", tmp_path / "theirs")
    box.kitfs("sign", kit, "--key", KEY, "--signature-format", shape, env=PASSWORD)
    sign_with_cosign(tmp_path, kit, tmp_path / "theirs.key", shape)
    box.kitfs("sign", kit, "--key", KEY, "--signature-format", "tag" if shape == "bundle" else "bundle", env=PASSWORD)
    for key in (PUB, tmp_path / "theirs.pub"):
        box.kitfs("verify", kit, "--key", key)
        assert verify_with_cosign(tmp_path, kit, key, shape).returncode == 0


@pytest.mark.interop
@pytest.mark.parametrize(
    "options",
    [["-algorithm", "ed25519"], ["-algorithm", "RSA"], ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"]],
)
def test_cosign_verifies_signatures_of_every_kind_of_key(
    box: Host, kit: str, tmp_path: Path, options: list[str]
) -> None:
    """kitfs signs with a key that OpenSSL made, and cosign accepts the signature.

    cosign itself cannot sign with some of these keys.
    """
    if shutil.which("openssl") is None:
        pytest.skip(f"{CANNOT} openssl is not on PATH")
    key, public = tmp_path / "k.pem", tmp_path / "k.pub"
    subprocess.run(["openssl", "genpkey", *options, "-out", key], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True, capture_output=True)
    for shape in SHAPES:
        box.kitfs("sign", kit, "--key", key, "--signature-format", shape, env=PASSWORD)
        done = verify_with_cosign(tmp_path, kit, public, shape)
        assert done.returncode == 0, done.stderr


def attest_with_cosign(home: Path, kit: str, key: Path, predicate: Path, shape: str) -> None:
    done = cosign(
        home, "attest", "--yes", "--allow-http-registry", "--use-signing-config=false", "--tlog-upload=false",
        f"--new-bundle-format={SHAPES[shape]}", "--type", "slsaprovenance1", "--predicate", predicate,
        "--key", key, kit,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def directory_of(path: Path) -> Path:
    """Make a directory with a Kitfile and a dataset."""
    (path / "data").mkdir(parents=True)
    (path / "data/train.csv").write_text("a,b\n")
    (path / "Kitfile").write_text("manifestVersion: 1.0.0\ndatasets: [{name: train, path: data}]\n")
    return path


@pytest.mark.interop
def test_cosign_verifies_the_provenance_and_the_approval_of_kitfs(
    box: Host, either_registry: RegistryProcess | Server, tmp_path: Path
) -> None:
    """cosign verify-attestation accepts what pack --provenance=sign and approve have signed."""
    kit, tree = f"{either_registry.host}/team/made:v1", directory_of(tmp_path / "tree")
    box.kitfs("pack", tree, "-t", kit, "--push", "--provenance=sign", "--signing-key", KEY, env=PASSWORD)
    box.kitfs("approve", kit, "--key", KEY, "--note", "fine", env=PASSWORD)
    for kind in ("slsaprovenance1", "urn:kitfs:approval:v1"):
        done = cosign(
            tmp_path, "verify-attestation", "--allow-http-registry", "--insecure-ignore-tlog", "--key", PUB,
            "--new-bundle-format=true", "--type", kind, kit,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


@pytest.mark.interop
@pytest.mark.parametrize("shape", SHAPES)
def test_lineage_reads_what_cosign_attested(
    box: Host, either_registry: RegistryProcess | Server, tmp_path: Path, shape: str
) -> None:
    """Provenance that --attestation-output wrote and cosign attested is signed, in both formats of cosign."""
    kit, tree = f"{either_registry.host}/team/made:v1", directory_of(tmp_path / "tree")
    box.kitfs("pack", tree, "-t", kit, "--push", "--attestation-output", tmp_path / "predicate.json")
    attest_with_cosign(tmp_path, kit, KEY, tmp_path / "predicate.json", shape)
    lines = box.kitfs("lineage", kit, "--key", PUB).stdout.splitlines()
    assert [line for line in lines if line.startswith("  signed   dataset train: sha256:")]
