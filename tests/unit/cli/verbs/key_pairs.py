"""Make key pairs without a password, because deriving a key from a password takes a large part of a second."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


def write_key_pair(prefix: Path) -> None:
    """Write PREFIX.key and PREFIX.pub, as PEM files of OpenSSL."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    Path(f"{prefix}.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    Path(f"{prefix}.pub").write_bytes(public)
