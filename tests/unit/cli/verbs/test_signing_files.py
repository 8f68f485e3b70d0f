"""sign --oms signs the files of a kit, and verify --oms compares the files with the signature."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from kitfs.oci.names import Digest
from kitfs.trust.bundle import bundle_of
from kitfs.trust.keys import private_key
from kitfs.trust.model_signing import PREDICATE, statement_of
from kitfs.trust.statement import PAYLOAD_TYPE, signed_bytes
from tests import kits
from tests.fakes.registry import FakeRegistry
from tests.unit.cli.conftest import Kitfs

RAW = kits.part("model", "model/w.bin", b"weights" * 1000, format="raw")
TAR = kits.part("docs", "docs", kits.kit_tar({"docs/a.txt": b"one", "docs/sub/b.txt": b""}))
KIT = kits.build([RAW, TAR])


def write_pair(path: Path, made: Any) -> Path:
    encoding = serialization.Encoding.PEM
    path.write_bytes(made.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public = made.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Return the path of a file with a private key. The public key is in a file with the suffix .pub."""
    return write_pair(tmp_path / "k.key", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def kit(fake: FakeRegistry) -> str:
    return fake.put_kit("team/kit", KIT, "v1")


def signed(path: Path, key: Path, statement: bytes) -> Path:
    """Write a bundle with ``statement``, signed by ``key``, to ``path``."""
    private = private_key(key.read_bytes(), "k", lambda: b"")
    path.write_bytes(bundle_of(statement, private.sign(signed_bytes(PAYLOAD_TYPE, statement)), ""))
    return path


def statement_in(bundle: Path) -> Any:
    return json.loads(base64.b64decode(json.loads(bundle.read_bytes())["dsseEnvelope"]["payload"]))


def test_the_files_of_a_kit_are_signed_and_verified(kitfs: Kitfs, kit: str, key: Path, tmp_path: Path) -> None:
    """The signature is attached to the kit. It contains the digest of every file of the kit, also of the Kitfile."""
    done = kitfs("sign", kit, "--oms", "--key", key, "--bundle", tmp_path / "model.sig")
    assert done.code == 0, done.err
    assert done.out.endswith("(oms, 4 files)\n")
    statement = statement_in(tmp_path / "model.sig")
    assert statement["predicateType"] == PREDICATE
    found = {one["name"]: one["digest"] for one in statement["predicate"]["resources"]}
    assert list(found) == ["Kitfile", "docs/a.txt", "docs/sub/b.txt", "model/w.bin"]
    assert found["model/w.bin"] == Digest.of(b"weights" * 1000).hex
    for words in ([], ["--bundle", tmp_path / "model.sig"]):
        verified = kitfs("verify", kit, "--oms", "--key", key.with_suffix(".pub"), "--json", *words).json
        assert (verified["digest"], verified["files"]) == (Digest.of(KIT.manifest), 4)


def test_a_kit_of_raw_layers_is_verified_without_fetching_a_layer(kitfs: Kitfs, fake: FakeRegistry, key: Path) -> None:
    built = kits.build([RAW])
    kit = fake.put_kit("team/raw", built, "v1")
    assert kitfs("sign", kit, "--oms", "--key", key).code == 0
    assert kitfs("verify", kit, "--oms", "--key", key.with_suffix(".pub")).code == 0
    assert fake.moved(Digest.of(b"weights" * 1000)) == 0


def test_a_signature_of_files_is_not_one_of_the_kit(kitfs: Kitfs, kit: str, key: Path) -> None:
    """verify without --oms does not accept a signature by sign --oms."""
    kitfs("sign", kit, "--oms", "--key", key)
    assert kitfs("verify", kit, "--key", key.with_suffix(".pub")).code == 11
    kitfs("sign", kit, "--key", key)
    assert kitfs("verify", kit, "--key", key.with_suffix(".pub")).code == 0


def test_another_key_is_refused(kitfs: Kitfs, kit: str, key: Path, tmp_path: Path) -> None:
    other = write_pair(tmp_path / "other.key", ec.generate_private_key(ec.SECP256R1()))
    assert kitfs("verify", kit, "--oms", "--key", other.with_suffix(".pub")).code == 11
    kitfs("sign", kit, "--oms", "--key", key)
    done = kitfs("verify", kit, "--oms", "--key", other.with_suffix(".pub"))
    assert (done.code, "has no signature of OpenSSF Model Signing by key SHA256:" in done.err) == (11, True)


def test_a_kit_with_other_files_is_refused(
    kitfs: Kitfs, fake: FakeRegistry, kit: str, key: Path, tmp_path: Path
) -> None:
    """The error gives the number and the names of missing, added and changed files."""
    kitfs("sign", kit, "--oms", "--key", key, "--bundle", tmp_path / "model.sig")
    docs = kits.part("docs", "docs", kits.kit_tar({"docs/a.txt": b"changed", "docs/c.txt": b"more"}))
    other = fake.put_kit("team/kit", kits.build([RAW, docs]), "v2")
    words = ("verify", other, "--oms", "--key", key.with_suffix(".pub"), "--bundle", tmp_path / "model.sig")
    done = kitfs(*words)
    assert done.code == 11
    assert "1 are missing ('docs/sub/b.txt'), 1 are not signed ('docs/c.txt')" in done.err
    assert "have other content ('docs/a.txt')" in done.err
    assert kitfs(*words, "--ignore-path", "docs").code == 0


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: s["predicate"]["serialization"].update(method="shards"), "verifies files with sha256 only"),
        (lambda s: s["predicate"]["serialization"].update(hash_type="blake3"), "verifies files with sha256 only"),
        (lambda s: s["predicate"]["resources"][0].update(digest="00" * 32), "has no signature"),
        (lambda s: s["predicate"]["resources"][0].update(algorithm="md5"), "has no signature"),
        (lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]), "has no signature"),
        (lambda s: s["predicate"].clear(), "has no signature"),
        (lambda s: s.update(predicate=[]), "has no signature"),
        (lambda s: s.update(subject=s["subject"] * 2), "has no signature"),
        (lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"), "has no signature"),
    ],
)
def test_a_statement_that_contradicts_itself_is_refused(
    kitfs: Kitfs, fake: FakeRegistry, key: Path, tmp_path: Path, change: Any, text: str
) -> None:
    """A signed statement is refused if it does not conform to OMS v1.0, or if its root digest is wrong."""
    kit = fake.put_kit("team/raw", kits.build([RAW]), "v1")
    statement = json.loads(statement_of("raw", {"model/w.bin": Digest.of(b"weights" * 1000).hex}))
    change(statement)
    bundle = signed(tmp_path / "model.sig", key, json.dumps(statement).encode())
    done = kitfs("verify", kit, "--oms", "--key", key.with_suffix(".pub"), "--bundle", bundle)
    assert (done.code, text in done.err) == (11, True), done.err


def test_paths_that_the_signature_ignores_may_exist(kitfs: Kitfs, kit: str, key: Path, tmp_path: Path) -> None:
    """A file that is not in the signature is accepted only below a path that the signature ignores."""
    files = {"model/w.bin": Digest.of(b"weights" * 1000).hex, "Kitfile": ""}
    kitfs("sign", kit, "--oms", "--key", key, "--bundle", tmp_path / "all.sig")
    files = {one["name"]: one["digest"] for one in statement_in(tmp_path / "all.sig")["predicate"]["resources"]}
    statement = json.loads(statement_of("kit", {path: d for path, d in files.items() if not path.startswith("docs/")}))
    words = ("verify", kit, "--oms", "--key", key.with_suffix(".pub"), "--bundle")
    bundle = signed(tmp_path / "some.sig", key, json.dumps(statement).encode())
    assert kitfs(*words, bundle).code == 11
    statement["predicate"]["serialization"]["ignore_paths"] = ["docs"]
    assert kitfs(*words, signed(tmp_path / "some.sig", key, json.dumps(statement).encode())).code == 0


def test_what_cannot_be_signed_is_a_usage_error(kitfs: Kitfs, fake: FakeRegistry, key: Path, tmp_path: Path) -> None:
    """sign --oms requires an ECDSA key. --bundle and --ignore-path require --oms."""
    kit = fake.put_kit("team/kit", KIT, "v1")
    edwards = write_pair(tmp_path / "ed.key", ed25519.Ed25519PrivateKey.generate())
    assert "needs an ECDSA key" in kitfs("sign", kit, "--oms", "--key", edwards).err
    assert "--bundle can be used only with --oms" in kitfs("sign", kit, "--key", key, "--bundle", "x").err
    assert "can be used only with" in kitfs("verify", kit, "--key", key.with_suffix(".pub"), "--ignore-path", "x").err
