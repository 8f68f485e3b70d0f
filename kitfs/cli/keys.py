"""Functions for verbs that sign: the password of a private key, the time, and the options for provenance.

Threading: only the main thread may call the functions.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Final

from kitfs.config import Option, Settings
from kitfs.errors import UsageError
from kitfs.escaping import shown_json
from kitfs.parsers import Choice, path, word

if TYPE_CHECKING:
    from datetime import datetime

    from kitfs.cli.progress import Reporter
    from kitfs.ops.provenance.record import ProvenanceOptions
    from kitfs.trust.keys import PrivateKey

STDOUT: Final = "-"
PROVENANCE: Final = (
    Option(
        "provenance",
        Choice("none", "unsigned", "sign"),
        "Attach a statement of where the kit comes from; =sign signs it with --signing-key.",
        default="none",
        metavar="sign",
        bare="unsigned",
    ),
    Option("signing-key", path, "Private key for --provenance=sign.", metavar="FILE", is_file=True),
    Option("attestation-output", word, "Write the provenance to this file, or - for stdout.", metavar="FILE"),
)


def private_key_of(file: str) -> PrivateKey:
    """Read a private key. Its password is read from a variable, or else from the terminal. Raises UsageError."""
    from kitfs.ops.signing.files import read_private_key

    return read_private_key(file, lambda: password("Enter password for private key: "))


def password(prompt: str, *, again: str = "") -> bytes:
    """Return the password of a private key. It is read from the environment, otherwise from the terminal."""
    import getpass

    from kitfs.trust.keys import password_of

    given = password_of(os.environ)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise UsageError("the private key needs a password: set KITFS_KEY_PASSWORD (it may be empty)")
    try:
        text = getpass.getpass(prompt)
        if again and getpass.getpass(again) != text:
            raise UsageError("the passwords differ")
    except EOFError:
        raise UsageError("no password was given")
    return text.encode("utf-8", "surrogateescape")


def now() -> datetime:
    """Return the time of SOURCE_DATE_EPOCH, or the present time if it is not set."""
    from datetime import UTC, datetime

    from kitfs.cli.kitfile import source_date

    epoch = source_date()
    return datetime.now(UTC) if epoch is None else datetime.fromtimestamp(epoch, UTC)


def provenance_of(settings: Settings, report: Reporter) -> ProvenanceOptions:
    """Make the options of a pack or an import for provenance. Raises UsageError."""
    from kitfs.ops.provenance.record import ProvenanceOptions
    from kitfs.ops.signing.files import write_file

    mode, file, target = settings["provenance"], settings["signing-key"], settings["attestation-output"]
    if mode != "sign" and settings.origin("signing-key") == "--signing-key":
        raise UsageError("--signing-key can be used only with --provenance=sign")

    def write(text: str) -> None:
        if target == STDOUT:
            report.say_lines(shown_json(text).rstrip("\n"), event="provenance", predicate=json.loads(text))
        else:
            write_file(target, text.encode("utf-8", "surrogateescape"))

    key = private_key_of(file) if mode == "sign" and file is not None else None
    return ProvenanceOptions(mode, key, None if target is None else write, now)
