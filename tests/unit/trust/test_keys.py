"""Key pairs: which key files are read, and what the keys sign and verify."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from kitfs.errors import UsageError
from kitfs.trust import key_file
from kitfs.trust.keys import PrivateKey, generate, password_of, private_key, public_key
from tests.conftest import GOLDEN

COSIGN_KEY = (GOLDEN / "cosign/test-only.key").read_bytes()
COSIGN_PUB = (GOLDEN / "cosign/test-only.pub").read_bytes()
MAKERS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}


def no_password() -> bytes:
    raise AssertionError("the key is not encrypted")


def pem_of(key: object, form: serialization.PrivateFormat, password: bytes = b"") -> bytes:
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    pem: bytes = key.private_bytes(serialization.Encoding.PEM, form, encryption)  # type: ignore[attr-defined]
    return pem


def changed(pem: bytes, **fields: object) -> bytes:
    """Return cosign's key file with other parameters for the key derivation."""
    found = key_file.PEM.search(pem)
    assert found
    body = json.loads(base64.b64decode(found[2]))
    body["kdf"]["params"] |= fields
    text = base64.b64encode(json.dumps(body).encode())
    return b"-----BEGIN %s-----\n%s\n-----END %s-----\n" % (found[1], text, found[1])


def test_a_private_key_of_cosign_is_read_with_its_password() -> None:
    """The key in cosign's encrypted file belongs to the recorded public key."""
    key = private_key(COSIGN_KEY, "test-only.key", lambda: b"pw")
    public = public_key(COSIGN_PUB, "test-only.pub")
    assert key.public.der == public.der
    assert public.hint == "pdfPSO6irabwxS5g8S1K7SN1UWVP0o1EHnPEaTpUlQg="
    assert public.pem == COSIGN_PUB
    assert public.verifies(key.sign(b"data"), b"data")


def test_a_wrong_password_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="the password is wrong"):
        private_key(COSIGN_KEY, "test-only.key", lambda: b"other")


@pytest.mark.parametrize("password", [b"", "pässwörd".encode()])
def test_a_new_key_pair_is_read_back(password: bytes) -> None:
    """A generated private key can be read with its password, even if the password is empty."""
    pem, public = generate(password)
    assert pem.startswith(b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n")
    assert private_key(pem, "new.key", lambda: password).public.der == public.der


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_of_key_signs_and_verifies(kind: str) -> None:
    """OpenSSL's key files are read with and without a password. A signature is valid only for its key and its data."""
    made = MAKERS[kind]()
    plain = pem_of(made, serialization.PrivateFormat.PKCS8)
    key = private_key(plain, "k.pem", no_password)
    locked = private_key(pem_of(made, serialization.PrivateFormat.PKCS8, b"pw"), "k.pem", lambda: b"pw")
    signature = locked.sign(b"data")
    assert public_key(key.public.pem, "k.pub").verifies(signature, b"data")
    assert not key.public.verifies(signature, b"other data")
    assert not key.public.verifies(b"", b"data")
    assert not public_key(COSIGN_PUB, "other.pub").verifies(signature, b"data")


@pytest.mark.parametrize("kind", ["P-256", "RSA"])
def test_keys_in_the_older_forms_of_openssl_are_read(kind: str) -> None:
    """The older forms are SEC 1 ("EC PRIVATE KEY") and PKCS #1 ("RSA PRIVATE KEY")."""
    made = MAKERS[kind]()
    pem = pem_of(made, serialization.PrivateFormat.TraditionalOpenSSL)
    assert isinstance(private_key(pem, "k.pem", no_password), PrivateKey)


def test_prehashed_ed25519_is_verified() -> None:
    """The example comes from RFC 8032, section 7.3. cosign 3 signs in this way with an Ed25519 key."""
    seed = bytes.fromhex("833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42")
    signature = bytes.fromhex(
        "98a70222f0b8121aa9d30f813d683f809e462b469c7ff87639499bb94e6dae41"
        "31f85042463c2a355a2003d062adf5aaa10b8c61e636062aaad11c2a26083406"
    )
    made = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
    public = private_key(pem_of(made, serialization.PrivateFormat.PKCS8), "k.pem", no_password).public
    assert public.verifies(signature, b"abc")
    assert not public.verifies(signature, b"abd")


@pytest.mark.parametrize(
    "make", [lambda: rsa.generate_private_key(65537, 1024), lambda: dsa.generate_private_key(2048),
             lambda: ec.generate_private_key(ec.SECP256K1())]
)  # fmt: skip
def test_keys_that_cosign_does_not_use_are_refused(make: object) -> None:
    """Short RSA keys, DSA keys and keys on other curves are refused."""
    pem = pem_of(make(), serialization.PrivateFormat.PKCS8)  # type: ignore[operator]
    with pytest.raises(UsageError, match="not supported"):
        private_key(pem, "k.pem", no_password)


@pytest.mark.parametrize("cost", [{"N": 1 << 30}, {"r": 1 << 20}, {"p": 1 << 20}, {"N": 0}, {"N": "x"}, {"N": 65_535}])
def test_a_key_file_cannot_ask_for_much_memory_or_time(cost: dict[str, object]) -> None:
    """A key file is refused at once if its scrypt parameters are impossible or exceed the limits."""
    with pytest.raises(UsageError, match="damaged"):
        private_key(changed(COSIGN_KEY, **cost), "k.key", lambda: b"pw")


@pytest.mark.parametrize("pem", [b"", b"text", COSIGN_PUB, COSIGN_KEY[:200], COSIGN_KEY.replace(b"eyJ", b"AAA")])
def test_what_is_not_a_private_key_is_a_usage_error(pem: bytes) -> None:
    with pytest.raises(UsageError, match=r"k\.key"):
        private_key(pem, "k.key", lambda: b"pw")


@pytest.mark.parametrize("pem", [b"", b"text", COSIGN_KEY, COSIGN_PUB.replace(b"MFk", b"AAA")])
def test_what_is_not_a_public_key_is_a_usage_error(pem: bytes) -> None:
    with pytest.raises(UsageError, match=r"k\.pub"):
        public_key(pem, "k.pub")


def test_the_password_of_kitfs_counts_before_that_of_cosign() -> None:
    assert password_of({"COSIGN_PASSWORD": "theirs", "KITFS_KEY_PASSWORD": "ours"}) == b"ours"
    assert password_of({"COSIGN_PASSWORD": ""}) == b""
    assert password_of({}) is None


def test_a_private_key_is_not_shown(tmp_path: Path) -> None:
    """``repr`` of a private key contains no secret."""
    pem = pem_of(MAKERS["Ed25519"](), serialization.PrivateFormat.PKCS8)
    assert "0x" in repr(private_key(pem, "k.pem", no_password))
