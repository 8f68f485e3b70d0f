"""Read and write the files of key pairs and signatures. Threading: the functions have no state."""

from __future__ import annotations

import os
from collections.abc import Callable

from kitfs.errors import ContextError, UsageError
from kitfs.ownership import read_start
from kitfs.trust.bundle import MAX_BUNDLE
from kitfs.trust.keys import MAX_FILE, PrivateKey, PublicKey, generate, private_key, public_key


def read_public_key(path: str) -> PublicKey:
    """Read a public key. Raises UsageError."""
    return public_key(_read(path), path)


def read_private_key(path: str, password: Callable[[], bytes]) -> PrivateKey:
    """Read a private key. ``password`` is called if the key is encrypted. Raises UsageError."""
    return private_key(_read(path), path, password)


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
    return _read(path, "the signature", MAX_BUNDLE)


def write_file(path: str, data: bytes) -> None:
    """Write a file. An existing file is replaced. Raises ContextError."""
    try:
        with open(path, "wb") as f:
            f.write(data)
    except OSError as e:
        raise ContextError(f"cannot write {path}: {e.strerror}")


def _read(path: str, what: str = "the key", limit: int = MAX_FILE) -> bytes:
    try:
        data = read_start(path, limit + 1)
    except (OSError, ValueError) as e:
        raise UsageError(f"cannot read {what} {path}: {getattr(e, 'strerror', None) or e}")
    if len(data) > limit:
        raise UsageError(f"cannot use {what} {path}: it has more than {limit} bytes")
    return data
