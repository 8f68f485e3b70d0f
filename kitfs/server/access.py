"""Decide which user may pull, push and delete in which repository, by the rules of a YAML file.

    rules:
      - users: [ann, ci]
        repositories: ["team/*"]
        rights: [pull, push, delete]
      - users: ["*"]
        repositories: ["public/*"]
        rights: [pull]

A user has a right in a repository if one rule says so. In the patterns, ``*`` stands for any characters, also for "/".
The file is read again when it changes. While it cannot be read or is not valid, its previous rules are used, and one
warning is logged. Threading: any thread may use this module.
"""

from __future__ import annotations

import logging
import os
import threading
from fnmatch import fnmatchcase
from typing import Final, Literal, NamedTuple

from kitfs.errors import UsageError
from kitfs.ownership import read_start

MAX_FILE: Final = 1 << 20  # bytes
Right = Literal["pull", "push", "delete"]
RIGHTS: Final = ("pull", "push", "delete")
FIELDS: Final = ("users", "repositories", "rights")


class Rule(NamedTuple):
    """A rule: users that match a pattern have rights in repositories that match a pattern."""

    users: tuple[str, ...]
    repositories: tuple[str, ...]
    rights: tuple[str, ...]


class Access:
    """The rules in a file. The constructor raises UsageError if the file cannot be read or is not valid."""

    def __init__(self, path: str, *, log: logging.Logger) -> None:
        self._path = path
        self._log = log
        self._lock = threading.Lock()
        self._said = ""
        self._stamp: tuple[int, int, int] | None = None
        self._rules: tuple[Rule, ...] = ()
        self._refresh()

    def may(self, user: str, repository: str, right: Right) -> bool:
        """Return whether a user has a right in a repository."""
        with self._lock:
            try:
                self._refresh()
            except UsageError as e:
                if str(e) != self._said:
                    self._said = str(e)
                    self._log.warning("%s; the previous rules are used", e)
            rules = self._rules
        return any(
            right in rule.rights and _matches(user, rule.users) and _matches(repository, rule.repositories)
            for rule in rules
        )

    def _refresh(self) -> None:
        try:
            found = os.stat(self._path)
            stamp = found.st_mtime_ns, found.st_size, found.st_ino
            if stamp == self._stamp:
                return
            data = read_start(self._path, MAX_FILE + 1)
        except OSError as e:
            raise UsageError(f"--access: cannot read {self._path}: {e.strerror or e}")
        self._rules, self._stamp, self._said = parsed(data, f"--access: {self._path}"), stamp, ""


def parsed(data: bytes, where: str) -> tuple[Rule, ...]:
    """Parse the YAML of a file with rules. Raises UsageError, whose message begins with ``where``."""
    import yaml

    if len(data) > MAX_FILE:
        raise UsageError(f"{where}: the file has more than {MAX_FILE} bytes")
    try:
        loaded = yaml.load(data, Loader=yaml.BaseLoader)  # noqa: S506 - BaseLoader makes only strings
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        raise UsageError(f"{where}: the file is not valid YAML") from None
    rows = loaded.get("rules") if isinstance(loaded, dict) and set(loaded) == {"rules"} else None
    if not isinstance(rows, list):
        raise UsageError(f"{where}: the file must have a list named rules, and nothing else")
    return tuple(_rule(row, f"{where}: rule {number}") for number, row in enumerate(rows, 1))


def _rule(row: object, where: str) -> Rule:
    if not isinstance(row, dict) or set(row) != set(FIELDS):
        raise UsageError(f"{where} must have the fields {', '.join(FIELDS)}, and no other")
    for name in FIELDS:
        if not isinstance(row[name], list) or not all(isinstance(value, str) and value for value in row[name]):
            raise UsageError(f"{where}: {name} must be a list of words")
    if unknown := [right for right in row["rights"] if right not in RIGHTS]:
        raise UsageError(f"{where}: {unknown[0][:40]!r} is not a right (the rights are {', '.join(RIGHTS)})")
    return Rule(*(tuple(row[name]) for name in FIELDS))


def _matches(text: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)
