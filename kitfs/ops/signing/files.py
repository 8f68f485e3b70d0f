"""Read and write the files of key pairs and signatures. Threading: the functions have no state."""

from __future__ import annotations

import os
from collections.abc import Callable

from kitfs.errors import ContextError, UsageError
from kitfs.trust.bundle import MAX_BUNDLE
from kitfs.trust.keys import MAX_FILE, PrivateKey, PublicKey, generate, private_key, public_key
from kitfs.trust.named_file import read_named


def read_public_key(path: str) -> PublicKey:
    """Read a public key. Raises UsageError."""
    return public_key(read_named(path, "the key", MAX_FILE), path)


def read_private_key(path: str, password: Callable[[], bytes]) -> PrivateKey:
    """Read a private key. ``password`` is called if the key is encrypted. Raises UsageError."""
    return private_key(read_named(path, "the key", MAX_FILE), path, password)


def write_key_pair(prefix: str, password: bytes) -> tuple[str, str, PublicKey]:
    """Make a key pair, and write it to PREFIX.key and PREFIX.pub. Return both paths and the public key.

    PREFIX.key is encrypted, and only its owner can read it. Raises UsageError if one of the files exists, and
    ContextError if they cannot be written.
    """
    secret, public = f"{prefix}.key", f"{prefix}.pub"
    for path in (secret, public):
        if os.path.lexists(path):
            raise UsageError(f"{path} exists already; choose another name with --output-key-prefix")
    pem, key = generate(password)
    written: list[str] = []
    try:
        for path, data, mode in ((secret, pem, 0o600), (public, key.pem, 0o644)):
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as f:
                written.append(path)
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
    except OSError as e:
        for path in written:
            os.unlink(path)
        raise ContextError(f"cannot write the key pair {prefix}: {e.strerror}")
    return secret, public, key


def read_bundle(path: str) -> bytes:
    """Read a signature from a file. Raises UsageError."""
    return read_named(path, "the signature", MAX_BUNDLE)


def write_file(path: str, data: bytes) -> None:
    """Write a file. An existing file is replaced. Raises ContextError."""
    try:
        with open(path, "wb") as f:
            f.write(data)
    except OSError as e:
        raise ContextError(f"cannot write {path}: {e.strerror}")
