"""Read the Kitfile of ``--file`` or of a directory, and SOURCE_DATE_EPOCH, for the verbs that pack.

Threading: only the main thread may call the functions.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

from kitfs.errors import UsageError

if TYPE_CHECKING:
    from kitfs.modelkit.kitfile import Kitfile

STDIN: Final = "-"
YEAR_10000: Final = 253_402_300_800  # in seconds since 1970; RFC 3339 cannot write this year


def kitfile_of(file: str | None, directory: str) -> tuple[Kitfile, str]:
    """Read the Kitfile ``file`` ("-" is stdin), or the Kitfile of ``directory`` if ``file`` is None.

    Returns the Kitfile, and its name for messages. Raises ContextError or KitfileError, and UsageError if the Kitfile
    does not exist.
    """
    from kitfs.ops.pack.kitfiles import MAX_KITFILE, find_kitfile, parse_kitfile, read_kitfile

    if file == STDIN:
        if sys.stdin.isatty():
            raise UsageError("no input file specified and no data piped")
        return parse_kitfile(sys.stdin.buffer.read(MAX_KITFILE + 1)), "stdin"
    path = find_kitfile(directory) if file is None else file
    if path is None:
        # "." before the full stop of the message would read as ".."
        where = os.path.abspath(directory) if directory.endswith(".") else directory
        raise UsageError(f"No Kitfile found in {where}. Consider using the -f flag to specify its path")
    if not os.path.isdir(directory):
        raise UsageError(f"{directory} is not a directory")
    return read_kitfile(path), directory


def source_date() -> int | None:
    """Return SOURCE_DATE_EPOCH in seconds since 1970, or None if it is not set. Raises UsageError if it is invalid."""
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    try:
        value = int(text)
        if not 0 <= value < YEAR_10000:
            raise ValueError
    except ValueError:
        raise UsageError(f"invalid SOURCE_DATE_EPOCH {text!r} (set it to a number of seconds since 1970)")
    return value
