"""Who may use the registry: HTTP Basic against an htpasswd file with bcrypt hashes, as CNCF distribution reads it.

The file is read again when it changes; while it cannot be read, or has a wrong line, what it said before counts, which is logged once.
bcrypt is slow by design, so what was right once is remembered, as a keyed hash, for as long as the file stays the same. Threading: any
thread.
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
from typing import Final

import bcrypt

from kitfs.errors import UsageError

MAX_PASSWORD: Final = 72  # bytes that bcrypt looks at; newer ones refuse more
MAX_REMEMBERED: Final = 1000
HASH: Final = re.compile(r"\$2[aby]\$(?:0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}")


class Htpasswd:
    """The users of a file. Raises UsageError when it cannot be read, or has a line that is no user with a bcrypt hash."""

    def __init__(self, path: str, *, log: logging.Logger) -> None:
        self._path = path
        self._log = log
        self._said = ""
        self._lock = threading.Lock()
        self._key = os.urandom(32)
        self._stamp: tuple[int, int, int] | None = None
        self._users: dict[str, bytes] = {}
        self._right: set[bytes] = set()
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
                raise UsageError(f"--htpasswd: {self._path}: line {number} is no user with a bcrypt hash (make it with htpasswd -B)")
            users[user] = hashed.encode()
        with self._lock:
            self._users, self._stamp, self._right, self._said = users, stamp, set(), ""

    def user(self, authorization: str) -> str | None:
        """The user whom an Authorization header proves, None when it proves nobody."""
        scheme, _, encoded = authorization.partition(" ")
        try:
            user, found, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return None
        if scheme.lower() != "basic" or not found:
            return None
        try:
            self._refresh()
        except UsageError as e:
            told = str(e)
            with self._lock:
                told, self._said = "" if told == self._said else told, told
            if told:
                self._log.warning("%s; what it said before counts", told)
        users = self._users
        hashed = users.get(user)
        seal = hmac.digest(self._key, f"{user}:{password}".encode(), hashlib.sha256)
        if hashed is not None and seal in self._right:
            return user
        try:
            decoy = next(iter(users.values()), b"")  # so that unknown users take as long as known ones
            right = bcrypt.checkpw(password.encode()[:MAX_PASSWORD], hashed or decoy)
        except ValueError:
            return None
        if not right or hashed is None:
            return None
        with self._lock:
            if len(self._right) >= MAX_REMEMBERED:
                self._right.clear()
            if self._users.get(user) == hashed:
                self._right.add(seal)
        return user
