"""Credential helpers: the programs ``docker-credential-NAME`` that credsStore and credHelpers name.

Follows docker-credential-helpers' protocol: a verb (get, store, erase) as the argument, what it is about on stdin,
JSON on stdout. A helper is looked up on PATH only, never in the current directory. What it says when it fails is
shown without the secret that it was given. Threading: none of its own; each call waits for its program.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import Final

from kitfs.errors import UsageError
from kitfs.redaction import without

NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,99}")
ABSENT: Final = (
    "credentials not found",
    "no credentials server URL",
    "no credentials username",
)  # credentials/error.go
PATIENCE: Final = 30.0  # seconds that a credential helper may take
LONGEST_ANSWER: Final = 200  # characters of what a helper says when it fails


def ask(helper: str, key: str) -> tuple[str, str] | None:
    """The user name and secret that a helper has for ``key``, None when it has none. Raises UsageError for a helper
    that does not work.
    """
    answer = run(helper, "get", key.encode(), about=key)
    if answer is None:
        return None
    try:
        found = json.loads(answer)
        return str(found.get("Username", "")).strip("\r\n"), str(found.get("Secret", "")).strip("\r\n")
    except (ValueError, AttributeError, RecursionError):
        raise UsageError(f"the credential helper docker-credential-{helper} did not answer with JSON")


def run(helper: str, verb: str, data: bytes, *, about: str, secret: str = "") -> bytes | None:
    """What a helper prints, None when it has no credentials. ``about`` names the registry, ``secret`` is part of
    ``data``.

    Raises UsageError for a name that no helper has, a helper that is missing, hangs or fails.
    """
    if not NAME.fullmatch(helper):
        raise UsageError(
            f"{helper[:100]!r} is not the name of a credential helper (credsStore and credHelpers name docker-credential-NAME)"
        )
    program = f"docker-credential-{helper}"
    found = shutil.which(program)
    if found is None or not os.path.isabs(found):
        raise UsageError(f"the credential helper {program} is not on PATH")
    try:
        done = subprocess.run([found, verb], input=data, capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise UsageError(f"the credential helper {program} did not answer within {PATIENCE:g} s")
    except OSError as e:
        raise UsageError(f"the credential helper {program} cannot be run: {e.strerror}")
    if not done.returncode:
        return done.stdout
    said = (done.stdout.strip() or done.stderr.strip()).decode(errors="replace")
    if verb != "store" and (not said or any(words in said for words in ABSENT)):
        return None
    cause = without((said.splitlines() or ["without a word"])[0], [secret])[:LONGEST_ANSWER]
    raise UsageError(
        f"the credential helper {program} failed {f'for {about}' if verb == 'get' else f'to {verb}'}: {cause}"
    )
