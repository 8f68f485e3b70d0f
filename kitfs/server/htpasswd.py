"""Check HTTP Basic logins against an htpasswd file with bcrypt hashes, as CNCF distribution reads it.

The file is read again when it changes. While it cannot be read or contains an invalid line, its previous contents are
used, and one warning is logged. bcrypt is slow by design, so a successful login is remembered, as a keyed hash, for as
long as the file contains the same hash for that user. A failed login takes the same time for every user name, known or
unknown: the time of the costliest hash in the file. Threading: any thread may use this module.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import os
import re
import threading
from typing import Final, NamedTuple

import bcrypt

from kitfs.errors import UsageError

MAX_PASSWORD: Final = 72  # bytes that bcrypt uses; newer releases refuse more
MAX_REMEMBERED: Final = 1000
# A hash without its cost. It is checked only so that an unknown user takes the same time as a known user.
DECOY: Final = b"$2b$%02d$abcdefghijklmnopqrstuuEe6YbDLLbgOvcJNHMVIFJIN8KGCQXPG"
HASH: Final = re.compile(r"\$2[aby]\$(?:0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}")


class Login(NamedTuple):
    """A user name and a password that have not been checked."""

    user: str
    password: str


class Htpasswd:
    """The users in an htpasswd file.

    The constructor raises UsageError if the file cannot be read, or has a line that is not a user with a bcrypt hash.
    """

    def __init__(self, path: str, *, log: logging.Logger) -> None:
        self._path = path
        self._log = log
        self._said = ""
        self._lock = threading.Lock()
        self._key = os.urandom(32)
        self._stamp: tuple[int, int, int] | None = None
        self._users: dict[str, bytes] = {}
        self._right: dict[bytes, tuple[str, bytes]] = {}  # keyed hash of a login → its user, and the hash in the file
        self._refresh()

    def _refresh(self) -> None:
        try:
            found = os.stat(self._path)
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp == self._stamp:
                return
            with open(self._path, encoding="utf-8") as f:
                lines = f.read().splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise UsageError(f"--htpasswd: cannot read {self._path}: {getattr(e, 'strerror', None) or 'not UTF-8'}")
        users: dict[str, bytes] = {}
        for number, line in enumerate(lines, 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            user, found_colon, hashed = line.partition(":")
            if not found_colon or not user or not HASH.fullmatch(hashed):
                raise UsageError(
                    f"--htpasswd: {self._path}: line {number} is not a user with a bcrypt hash "
                    "(make it with htpasswd -B)"
                )
            users[user] = hashed.encode()
        with self._lock:
            self._users, self._stamp, self._said = users, stamp, ""
            self._right = {
                seal: (user, hashed) for seal, (user, hashed) in self._right.items() if users.get(user) == hashed
            }

    def user(self, authorization: str) -> str | None:
        """Return the user whose credentials are in an Authorization header.

        Return None for missing or wrong credentials.
        """
        login = self.login(authorization)
        return login.user if login is not None and (self.remembered(login) or self.check(login)) else None

    def login(self, authorization: str) -> Login | None:
        """Return the user name and password in an Authorization header, or None if the header does not contain them."""
        scheme, _, encoded = authorization.partition(" ")
        try:
            user, found, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
        return Login(user, password) if scheme.lower() == "basic" and found else None

    def remembered(self, login: Login) -> bool:
        """Return whether a login succeeded before, with a hash that the file still contains.

        This check is quick. If it returns False, ``check`` must decide.
        """
        try:
            self._refresh()
        except UsageError as e:
            message = str(e)
            with self._lock:
                known, self._said = message == self._said, message
            if not known:
                self._log.warning("%s; the previous contents are used", message)
        return self._seal(login) in self._right

    def check(self, login: Login) -> bool:
        """Return whether a login is right. The check is slow, and equally slow for known and unknown names."""
        users = self._users
        hashed = users.get(login.user)
        password = login.password.encode()[:MAX_PASSWORD]
        most = max((_cost(h) for h in users.values()), default=0)
        try:
            if not users or not bcrypt.checkpw(password, hashed or DECOY % most) or hashed is None:
                for cost in range(_cost(hashed) if hashed else most, most):
                    # 2**c + 2**(c+1) + … + 2**(m-1) rounds are the difference between 2**m and 2**c.
                    bcrypt.checkpw(password, DECOY % cost)
                return False
        except ValueError:
            return False
        with self._lock:
            if len(self._right) >= MAX_REMEMBERED:
                self._right.clear()
            if self._users.get(login.user) == hashed:
                self._right[self._seal(login)] = (login.user, hashed)
        return True

    def _seal(self, login: Login) -> bytes:
        return hmac.digest(self._key, f"{login.user}:{login.password}".encode(), hashlib.sha256)


def _cost(hashed: bytes) -> int:
    """Return the cost of a hash: the binary logarithm of its rounds."""
    return int(hashed[4:6])
