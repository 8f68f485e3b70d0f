"""kitfs and the reference implementation of OpenSSF Model Signing v1.0 verify signatures of each other.

The reference implementation is the Python package model-signing. The tests run if its program ``model_signing`` is on
PATH. The package is not a dependency of the tests, because it requires other versions of packages than kitfs.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests import kits
from tests.conftest import CANNOT
from tests.fakes.registry import FakeRegistry
from tests.host import Host

CURVES = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1}
RAW = kits.part("model", "model/w.bin", b"weights" * 1000, format="raw")
TAR = kits.part("docs", "docs", kits.kit_tar({"docs/a.txt": b"one", "docs/sub/b.txt": b"", "docs/é.txt": b"three"}))
KIT = kits.build([RAW, TAR])


@pytest.fixture(params=CURVES)
def key(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the path of a private key. The public key is the file beside it that ends in .pub."""
    made, encoding = ec.generate_private_key(CURVES[request.param]()), serialization.Encoding.PEM
    path = tmp_path / "k.key"
    path.write_bytes(made.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public = made.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


def model_signing(*words: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("model_signing") is None:
        pytest.skip(f"{CANNOT} model_signing is not on PATH")
    return subprocess.run(["model_signing", *map(str, words)], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.interop
def test_the_reference_implementation_verifies_what_kitfs_signed(
    box: Host, fake: FakeRegistry, key: Path, tmp_path: Path
) -> None:
    """The reference implementation accepts kitfs' signature for the unpacked kit.

    If a file is changed, the reference implementation refuses the signature.
    """
    kit, signature, tree = fake.put_kit("team/kit", KIT, "v1"), tmp_path / "model.sig", tmp_path / "kit"
    box.kitfs("sign", kit, "--oms", "--key", key, "--bundle", signature)
    box.kitfs("unpack", kit, "-d", tree)
    words = ("verify", "key", tree, "--signature", signature, "--public_key", key.with_suffix(".pub"))
    done = model_signing(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    (tree / "docs/a.txt").write_bytes(b"two")
    assert model_signing(*words).returncode != 0


@pytest.mark.interop
def test_kitfs_verifies_what_the_reference_implementation_signed(
    box: Host, fake: FakeRegistry, key: Path, tmp_path: Path
) -> None:
    """The reference implementation signs an unpacked kit. kitfs accepts the signature only for that kit."""
    kit, signature, tree = fake.put_kit("team/kit", KIT, "v1"), tmp_path / "model.sig", tmp_path / "kit"
    box.kitfs("unpack", kit, "-d", tree)
    done = model_signing("sign", "key", tree, "--signature", signature, "--private_key", key)
    assert done.returncode == 0, done.stdout + done.stderr
    words = ("verify", kit, "--oms", "--key", key.with_suffix(".pub"), "--bundle", signature)
    assert "(oms, 5 files)" in box.kitfs(*words).stdout
    other = fake.put_kit("team/kit", kits.build([RAW]), "v2")
    refused = box.kitfs("verify", other, *words[2:], check=False)
    assert refused.returncode == 11
    assert "3 are missing" in refused.stderr
