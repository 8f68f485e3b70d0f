"""Run credential helpers, the programs ``docker-credential-NAME`` that credsStore and credHelpers name.

Follows docker-credential-helpers' protocol: the argument is a verb (get, store, erase), stdin contains the registry or
the credential, and stdout contains JSON. A helper is looked up only on PATH, never in the current directory. The
message of a helper that fails is shown without the secret that was passed to it. Threading: the functions have no
state, and each call waits for its program.
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
# The messages of a helper that has no credential (docker-credential-helpers, credentials/error.go)
ABSENT: Final = ("credentials not found", "no credentials server URL", "no credentials username")
PATIENCE: Final = 30.0  # seconds that a credential helper may take
MAX_MESSAGE: Final = 200  # characters of a failed helper's message that are shown


def ask(helper: str, key: str) -> tuple[str, str] | None:
    """Return the user name and secret that a helper has for ``key``, or None if it has no credential.

    Raises UsageError for a helper that does not work.
    """
    answer = run(helper, "get", key.encode(), about=key)
    if answer is None:
        return None
    try:
        found = json.loads(answer)
        return str(found.get("Username", "")).strip("\r\n"), str(found.get("Secret", "")).strip("\r\n")
    except (ValueError, AttributeError, RecursionError):
        raise UsageError(f"the credential helper docker-credential-{helper} did not print JSON")


def run(helper: str, verb: str, data: bytes, *, about: str, secret: str = "") -> bytes | None:
    """Run a helper, and return its output, or None if it has no credential.

    ``data``: the helper's stdin. ``about``: the name of the registry for messages. ``secret``: the part of ``data``
    that messages must not show. Raises UsageError for an invalid name, and for a helper that is missing, hangs or
    fails.
    """
    if not NAME.fullmatch(helper):
        raise UsageError(
            f"{helper[:100]!r} is not the name of a credential helper "
            "(write the NAME of docker-credential-NAME into credsStore or credHelpers)"
        )
    program = f"docker-credential-{helper}"
    found = shutil.which(program)
    if found is None or not os.path.isabs(found):
        raise UsageError(f"the credential helper {program} is not on PATH")
    try:
        done = subprocess.run([found, verb], input=data, capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise UsageError(f"the credential helper {program} did not finish within {PATIENCE:g} s")
    except OSError as e:
        raise UsageError(f"cannot run the credential helper {program}: {e.strerror}")
    if not done.returncode:
        return done.stdout
    message = (done.stdout.strip() or done.stderr.strip()).decode(errors="replace")
    if verb != "store" and (not message or any(words in message for words in ABSENT)):
        return None
    cause = without((message.splitlines() or ["it printed no message"])[0], [secret])[:MAX_MESSAGE]
    raise UsageError(
        f"the credential helper {program} failed {f'for {about}' if verb == 'get' else f'to {verb}'}: {cause}"
    )
