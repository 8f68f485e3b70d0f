"""Print the output of verbs: lines, tables and JSON on stdout, and messages on stderr.

Only this module writes to stdout. So a failure to write stdout is distinguished from every other failure, and control
characters that come from a kit or a registry are escaped (``escaping``). ``put`` and ``say`` write one line,
``put_lines`` writes several lines.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from kitfs.errors import KitfsError
from kitfs.escaping import shown, shown_json, shown_lines
from kitfs.redaction import redacted

GAP: Final = "   "  # the space between two columns of a table
DIGEST: Final = re.compile(r"(sha(?:256|512):[0-9a-f]{12})[0-9a-f]+")
NARROWEST: Final = 8  # a cell is never shortened to fewer columns
BROKEN_PIPE: Final = 141  # the exit code in shells of a program that SIGPIPE ended (128 + 13)


class Unwritable(KitfsError):  # noqa: N818 - as the classes of errors.py
    """stdout cannot be written. If the program that reads stdout has exited, no message is printed."""


def settle_streams() -> None:
    """Open /dev/null for each closed descriptor from 0 to 2, so that no other file gets its number.

    Characters that the encoding of stdout does not have are written as backslash escapes, as on stderr.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # open(2) returns the lowest free number, which is this descriptor
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - to the end of the process
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the interpreter's flush at exit does not fail again
        error = Unwritable(f"cannot write to stdout: {e.strerror}")
        error.exit_code = BROKEN_PIPE if isinstance(e, BrokenPipeError) else 1
        raise error


def say(text: str) -> None:
    """Write one line to stderr. Secrets in URLs and headers are removed."""
    sys.stderr.write(f"{shown(redacted(text))}\n")


def say_json(value: Any) -> None:
    """Write one line of JSON to stderr."""
    sys.stderr.write(f"{shown_json(json.dumps(value))}\n")


def report_failure(error: BaseException, *, as_json: bool = False) -> int:
    """Write a failure as one line to stderr, and return its exit code."""
    kind, code, message = type(error).__name__, 1, str(error)
    if isinstance(error, KitfsError):
        code = error.exit_code
    else:
        message = f"a bug in kitfs: {kind}: {error} (set KITFS_DEBUG=1 to see the traceback)"
    if as_json:
        say_json({"error": kind, "message": " ".join(message.split()), "exit_code": code})
    else:
        say("kitfs: " + " ".join(message.split()))
    return code


_before: Callable[[], None] | None = None


def before_the_answer(do: Callable[[], None] | None) -> None:
    """Register a function that is called once, before the first output is written to stdout."""
    global _before  # noqa: PLW0603 - a process runs one verb
    _before = do


def _begin() -> None:
    global _before
    do, _before = _before, None
    if do is not None:
        do()


def put(text: str) -> None:
    """Write one line to stdout."""
    _put_escaped(shown(text))


def put_lines(text: str) -> None:
    """Write several lines to stdout. Newlines and tabs are not escaped."""
    _put_escaped(shown_lines(text))


def put_json_text(text: str) -> None:
    """Write a string that already is JSON to stdout."""
    _put_escaped(shown_json(text))


def _put_escaped(text: str) -> None:
    _begin()
    with _writing():
        sys.stdout.write(f"{text}\n")


def put_bytes(data: bytes | bytearray) -> None:
    """Write bytes to stdout unchanged."""
    _begin()
    with _writing():
        sys.stdout.buffer.write(data)


def flush() -> None:
    """Flush stdout. Raises Unwritable."""
    with _writing():
        sys.stdout.flush()


def put_json(value: Any) -> None:
    """Write a value as indented JSON to stdout."""
    put_json_text(json.dumps(value, indent=2, ensure_ascii=sys.stdout.encoding.lower() not in ("utf-8", "utf8")))


def put_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, full: bool = True) -> None:
    """Write a table as kit does: each column is as wide as its widest cell, with three blanks between columns.

    On a terminal, the table is made to fit, unless ``full`` is True: the middle of the widest cells becomes an
    ellipsis. Digests are not cut, because a part of a digest is useless.
    """
    rows = [[shown(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    if not full and is_terminal():
        least = [width if title == "DIGEST" else len(title) for title, width in zip(head, widths, strict=True)]
        widths = _fitted(widths, least, shutil.get_terminal_size().columns)
    for row in (head, *rows):
        cells = (_cut(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True))
        put(GAP.join(cells).rstrip())


def _fitted(widths: Sequence[int], least: Sequence[int], columns: int) -> list[int]:
    """Return widths with which the table fits into ``columns`` columns.

    The widest columns are narrowed first, but not below their ``least`` widths.
    """
    fitted = list(widths)
    excess = sum(fitted) + len(GAP) * (len(fitted) - 1) - columns
    while excess > 0:
        at = max(range(len(fitted)), key=lambda i: fitted[i] - max(least[i], NARROWEST))
        if fitted[at] <= max(least[at], NARROWEST):
            break
        fitted[at] -= 1
        excess -= 1
    return fitted


def _cut(text: str, width: int) -> str:
    """Cut out the middle of a string. Both ends of a path or reference are more informative than its middle."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def is_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout.isatty()


def short(text: str, *, full: bool) -> str:
    """Shorten the digests in a string to their first 12 digits if stdout is a terminal.

    If stdout is not a terminal, or if ``full`` is True, the string is returned unchanged.
    """
    return text if full or not is_terminal() else DIGEST.sub(r"\1", text)


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: "1 blob", "3 blobs"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def human_size(size: int) -> str:
    """Format a size as kit's FormatBytes does: ``512 B``, ``7.0 KiB``, with one decimal, rounded down."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        value /= 1024
        if value < 1024 or unit == "PiB":
            return f"{int(value * 10) / 10:.1f} {unit}"
    raise AssertionError("unreachable")
