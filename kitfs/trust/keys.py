"""Read and write key pairs in PEM files as cosign does, and use them to sign and to check signatures.

The algorithms are those of cosign: ECDSA on P-256, P-384 and P-521, RSA with PKCS #1 v1.5, and Ed25519. For P-384,
P-521 and Ed25519, cosign 3.1 writes signatures that it does not accept itself: with the hash of the curve's size, or
with a prehash (RFC 8032, Ed25519ph). This module accepts those signatures and also the signatures that cosign accepts,
with SHA-256 or plain Ed25519. It writes the kind that cosign accepts. ``cryptography`` is imported when the first key
is read. Threading: keys do not change, so any thread may use them.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from kitfs.errors import UsageError
from kitfs.trust import key_file

MAX_FILE: Final = 64 << 10  # bytes of a key file
SMALLEST_RSA: Final = 2048  # bits, as in cosign
LARGEST_RSA: Final = 16_384  # bits; checking a signature of a larger key takes seconds
PASSWORDS: Final = ("KITFS_KEY_PASSWORD", "COSIGN_PASSWORD")  # the first variable that is set counts
CURVES: Final = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key. ``der`` is its SubjectPublicKeyInfo, and ``key`` is the object of ``cryptography``."""

    key: Any
    der: bytes

    @property
    def hint(self) -> str:
        """Return the hint by which cosign's bundles identify the key: the SHA-256 of ``der`` in base64."""
        return base64.b64encode(hashlib.sha256(self.der).digest()).decode()

    @property
    def name(self) -> str:
        """Return the name of the key for people."""
        return f"key SHA256:{self.hint}"

    @property
    def pem(self) -> bytes:
        """Return the key as a PEM file, as cosign and OpenSSL write it."""
        from cryptography.hazmat.primitives import serialization

        pem: bytes = self.key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        return pem

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Return whether this key has signed ``data`` with ``signature``."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

        if not isinstance(self.key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey)):
            return _verifies_ed25519(self.key, signature, data)
        ways: list[tuple[Any, ...]] = [(padding.PKCS1v15(), hashes.SHA256())]
        if isinstance(self.key, ec.EllipticCurvePublicKey):
            ways = [(ec.ECDSA(hashes.SHA256()),)]
            if CURVES[self.key.curve.name] != "SHA256":
                ways.append((ec.ECDSA(getattr(hashes, CURVES[self.key.curve.name])()),))
        for way in ways:
            try:
                self.key.verify(signature, data, *way)
            except InvalidSignature:
                continue
            return True
        return False


@dataclass(frozen=True, slots=True, repr=False)
class PrivateKey:
    """A private key. ``key`` is the object of ``cryptography``."""

    key: Any
    public: PublicKey

    @property
    def is_ecdsa(self) -> bool:
        """Return whether the key is an ECDSA key."""
        from cryptography.hazmat.primitives.asymmetric import ec

        return isinstance(self.key, ec.EllipticCurvePrivateKey)

    def sign(self, data: bytes, *, hash_of_curve: bool = False) -> bytes:
        """Sign ``data``, and return the signature. An ECDSA signature is in ASN.1.

        The hash is SHA-256, or with ``hash_of_curve`` the hash of the curve's size.
        """
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

        signature: bytes
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            name = CURVES[self.key.curve.name] if hash_of_curve else "SHA256"
            signature = self.key.sign(data, ec.ECDSA(getattr(hashes, name)()))
        elif isinstance(self.key, rsa.RSAPrivateKey):
            signature = self.key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        else:
            signature = self.key.sign(data)
        return signature


def generate(password: bytes) -> tuple[bytes, PublicKey]:
    """Make a key pair (ECDSA P-256). Return the file of the private key, encrypted as by cosign, and the public key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    der = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key_file.encrypt(der, password), _public(key.public_key(), "the new key")


def public_key(pem: bytes, name: str) -> PublicKey:
    """Read a public key from PEM. ``name`` is the file's name in messages. Raises UsageError."""
    from cryptography.hazmat.primitives import serialization

    label = key_file.label_of(pem)
    if label.endswith("PRIVATE KEY"):
        raise UsageError(f"cannot use {name}: it is a private key; name the file of its public key (cosign.pub)")
    try:
        key = serialization.load_pem_public_key(pem)
    except Exception as e:  # noqa: BLE001 - ValueError, UnsupportedAlgorithm, and errors of its Rust part
        raise UsageError(f"cannot use {name}: it is not a public key in PEM ({_reason(e)})")
    return _public(key, name)


def private_key(pem: bytes, name: str, password: Callable[[], bytes]) -> PrivateKey:
    """Read a private key from PEM: a key that cosign has encrypted, or PKCS #8, PKCS #1 or SEC 1.

    ``password`` is called if the key is encrypted, and returns the password. ``name`` is the file's name in messages.
    Raises UsageError.
    """
    from cryptography.hazmat.primitives import serialization

    label = key_file.label_of(pem)
    if label.endswith("PUBLIC KEY"):
        raise UsageError(f"cannot use {name}: it is a public key; name the file of its private key (cosign.key)")
    if label and not label.endswith("PRIVATE KEY"):
        raise UsageError(f"cannot use {name}: it is not a private key, but {label!r}")
    try:
        if label in key_file.LABELS:
            key: Any = serialization.load_der_private_key(key_file.decrypt(pem, password(), name), None)
        else:
            encrypted = b"ENCRYPTED" in pem
            key = serialization.load_pem_private_key(pem, password() if encrypted else None)
    except UsageError:
        raise
    except Exception as e:  # noqa: BLE001 - as in public_key; TypeError: an empty password
        raise UsageError(
            f"cannot use the private key {name}: it cannot be read, or the password is wrong ({_reason(e)})"
        )
    return PrivateKey(key, _public(key.public_key(), name))


def password_of(environ: Mapping[str, str]) -> bytes | None:
    """Return the password for private keys from the environment variables, or None. The password may be empty."""
    texts = (environ[name] for name in PASSWORDS if name in environ)
    return next((text.encode("utf-8", "surrogateescape") for text in texts), None)


def _public(key: Any, name: str) -> PublicKey:
    """Check that a public key is of a kind that cosign uses, and return it. Raises UsageError for any other key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePublicKey):
        fits = key.curve.name in CURVES
    elif isinstance(key, rsa.RSAPublicKey):
        fits = SMALLEST_RSA <= key.key_size <= LARGEST_RSA
    else:
        fits = isinstance(key, ed25519.Ed25519PublicKey)
    if not fits:
        kinds = f"ECDSA (P-256, P-384, P-521), RSA from {SMALLEST_RSA} to {LARGEST_RSA} bits, and Ed25519"
        raise UsageError(f"cannot use {name}: keys of this kind are not supported (supported kinds: {kinds})")
    encoding = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    der: bytes = key.public_bytes(*encoding)
    return PublicKey(key, der)


def _verifies_ed25519(key: Any, signature: bytes, data: bytes) -> bool:
    """Return whether an Ed25519 signature is right. Both plain and prehashed signatures are accepted."""
    from cryptography.exceptions import InvalidSignature
    from nacl import bindings
    from nacl.exceptions import CryptoError

    if len(signature) != bindings.crypto_sign_BYTES:
        return False
    try:
        key.verify(signature, data)
        return True
    except InvalidSignature:
        pass
    state = bindings.crypto_sign_ed25519ph_state()
    bindings.crypto_sign_ed25519ph_update(state, data)
    try:
        return bool(bindings.crypto_sign_ed25519ph_final_verify(state, signature, key.public_bytes_raw()))
    except CryptoError:
        return False


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:100] or type(error).__name__
