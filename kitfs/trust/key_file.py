"""Encrypt and decrypt the files of private keys as cosign does: with scrypt and NaCl's secretbox, in PEM.

The body of the PEM is a JSON object (go-securesystemslib, ``encrypted/encrypted.go``):

    {"kdf": {"name": "scrypt", "params": {"N": 65536, "r": 8, "p": 1}, "salt": BASE64},
     "cipher": {"name": "nacl/secretbox", "nonce": BASE64}, "ciphertext": BASE64}

The plain text is a PKCS #8 key. Threading: the module has no state.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from typing import Any, Final

from kitfs.errors import UsageError
from kitfs.gocompat.json import loads

LABEL: Final = "ENCRYPTED SIGSTORE PRIVATE KEY"
LABELS: Final = (LABEL, "ENCRYPTED COSIGN PRIVATE KEY")  # the second one was written by cosign before 2.0
PEM: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,64})-----\r?\n(.*?)-----END \1-----", re.S)
COST: Final = {"N": 65_536, "r": 8, "p": 1}  # what cosign writes; takes 64 MiB and about 0.2 s
MAX_MEMORY: Final = 512 << 20  # bytes that deriving a key may take
MAX_ROUNDS: Final = 1 << 24  # N x r x p; 32 times what cosign writes
SALT: Final = 32  # bytes


def label_of(pem: bytes) -> str:
    """Return the label of the first PEM block, such as "PUBLIC KEY"; "" if there is no PEM block."""
    found = PEM.search(pem)
    return "" if found is None else found[1].decode()


def encrypt(key: bytes, password: bytes) -> bytes:
    """Encrypt a PKCS #8 key (DER), and return it as a file that cosign can read. The password may be empty."""
    from nacl.secret import SecretBox

    salt, nonce = os.urandom(SALT), os.urandom(SecretBox.NONCE_SIZE)
    box = SecretBox(_derived(password, salt, COST))
    body = {
        "kdf": {"name": "scrypt", "params": COST, "salt": _text(salt)},
        "cipher": {"name": "nacl/secretbox", "nonce": _text(nonce)},
        "ciphertext": _text(box.encrypt(key, nonce).ciphertext),
    }
    text = _text(json.dumps(body, separators=(",", ":")).encode())
    lines = "\n".join(text[i : i + 64] for i in range(0, len(text), 64))
    return f"-----BEGIN {LABEL}-----\n{lines}\n-----END {LABEL}-----\n".encode()


def decrypt(pem: bytes, password: bytes, name: str) -> bytes:
    """Return the PKCS #8 key (DER) in a file that cosign wrote. ``name`` is the file's name in messages.

    Raises UsageError if the password is wrong, if the file is damaged, or if its parameters exceed MAX_MEMORY or
    MAX_ROUNDS.
    """
    from nacl.exceptions import CryptoError
    from nacl.secret import SecretBox

    damaged = UsageError(f"cannot use the private key {name}: the file is damaged, or was not written by cosign")
    found = PEM.search(pem)
    try:
        body = loads(base64.b64decode(b"" if found is None else found[2]))
        kdf, cipher = body["kdf"], body["cipher"]
        if (kdf["name"], cipher["name"]) != ("scrypt", "nacl/secretbox"):
            raise damaged
        salt, nonce, ciphertext = _bytes(kdf["salt"]), _bytes(cipher["nonce"]), _bytes(body["ciphertext"])
        derived = _derived(password, salt, {name: int(kdf["params"][name]) for name in COST})
    except (ValueError, LookupError, TypeError, AttributeError):
        raise damaged
    try:
        plain: bytes = SecretBox(derived).decrypt(ciphertext, nonce)
    except CryptoError:
        raise UsageError(f"cannot use the private key {name}: the password is wrong")
    except ValueError:
        raise damaged
    return plain


def _derived(password: bytes, salt: bytes, cost: dict[str, int]) -> bytes:
    """Derive the key of the secretbox. Raises ValueError if ``cost`` exceeds the limits."""
    n, r, p = cost["N"], cost["r"], cost["p"]
    memory = 128 * r * (n + p + 2)
    if min(n, r, p) < 1 or memory > MAX_MEMORY or n * r * p > MAX_ROUNDS:
        raise ValueError("scrypt would take too much memory or time")
    return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=memory + (1 << 20), dklen=32)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bytes(value: Any) -> bytes:
    return base64.b64decode(value, validate=True)
