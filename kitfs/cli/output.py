"""What verbs print: tables, JSON, and messages on stderr.

All of stdout goes through here, so that a failure to write it is distinguished from every other failure, and so that no
foreign text reaches a terminal unescaped (``escaping``). ``put`` and ``say`` write one line, ``put_lines`` a text of
several lines.
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

GAP: Final = "   "  # between two columns of a table
DIGEST: Final = re.compile(r"(sha(?:256|512):[0-9a-f]{12})[0-9a-f]+")
NARROWEST: Final = 8  # columns below which no cell is shortened
BROKEN_PIPE: Final = 141  # exit code of a program whose reader went away, as shells have it (128 + SIGPIPE)


class Unwritable(KitfsError):  # noqa: N818 - as the classes of errors.py
    """stdout cannot be written. If its reader went away the exit code is BROKEN_PIPE, and nothing is printed."""


def settle_streams() -> None:
    """Open /dev/null for those of the descriptors 0 to 2 that are closed, so that no file of ours gets their numbers.

    stdout writes characters that its encoding does not have as backslash escapes, as stderr does.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the interpreter's own flush at exit is silent
        error = Unwritable(f"stdout cannot be written: {e.strerror}")
        error.exit_code = BROKEN_PIPE if isinstance(e, BrokenPipeError) else 1
        raise error


def say(text: str) -> None:
    """Write one line for people to stderr, without the secrets of URLs and headers in it."""
    sys.stderr.write(f"{shown(redacted(text))}\n")


def say_json(value: Any) -> None:
    """Write one line of JSON to stderr."""
    sys.stderr.write(f"{shown_json(json.dumps(value))}\n")


def report_failure(error: BaseException, *, as_json: bool = False) -> int:
    """Report a failure in one line on stderr, and return its exit code."""
    kind, code, message = type(error).__name__, 1, str(error)
    if isinstance(error, KitfsError):
        code = error.exit_code
    else:
        message = f"a bug in kitfs: {kind}: {error} (KITFS_DEBUG=1 shows where)"
    if as_json:
        say_json({"error": kind, "message": " ".join(message.split()), "exit_code": code})
    else:
        say("kitfs: " + " ".join(message.split()))
    return code


_before: Callable[[], None] | None = None


def before_the_answer(do: Callable[[], None] | None) -> None:
    """Call a function once, before the first part of the answer is written."""
    global _before  # noqa: PLW0603 - one answer a process
    _before = do


def _begin() -> None:
    global _before
    do, _before = _before, None
    if do is not None:
        do()


def put(text: str) -> None:
    """Write one line of the answer to stdout."""
    _put_escaped(shown(text))


def put_lines(text: str) -> None:
    """Write a text of several lines to stdout: newlines and tabs stay."""
    _put_escaped(shown_lines(text))


def put_json_text(text: str) -> None:
    """Write a text that is JSON already to stdout."""
    _put_escaped(shown_json(text))


def _put_escaped(text: str) -> None:
    _begin()
    with _writing():
        sys.stdout.write(f"{text}\n")


def put_bytes(data: bytes | bytearray) -> None:
    """Write bytes to stdout as they are."""
    _begin()
    with _writing():
        sys.stdout.buffer.write(data)


def flush() -> None:
    """Flush stdout."""
    with _writing():
        sys.stdout.flush()


def put_json(value: Any) -> None:
    """Write an answer for programs as indented JSON."""
    put_json_text(json.dumps(value, indent=2, ensure_ascii=sys.stdout.encoding.lower() not in ("utf-8", "utf8")))


def put_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, full: bool = True) -> None:
    """Write columns as kit does: each as wide as its widest cell, with three blanks between.

    Unless ``full``, a table for a terminal is made to fit it: the middle of the widest cells becomes an ellipsis.
    Digests stay whole, since part of a digest is of no use.
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
    """Return widths that fit a terminal. The widest columns are made narrower first, but none than its least width."""
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
    """Shorten a text in its middle, because both ends of a path and of a reference say more than the middle."""
    if len(text) <= width:
        return text
    end = (width - 1) // 2
    return f"{text[: width - 1 - end]}…{text[len(text) - end :]}"


def is_terminal() -> bool:
    """Return whether people read stdout."""
    return sys.stdout.isatty()


def short(text: str, *, full: bool) -> str:
    """Return a text in which people read digests: on a terminal, only the first 12 digits of each.

    Elsewhere, and if ``full``, the text is returned unchanged.
    """
    return text if full or not is_terminal() else DIGEST.sub(r"\1", text)


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: "1 blob", "3 blobs"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def human_size(size: int) -> str:
    """Return a size as kit's FormatBytes writes it: ``512 B``, ``7.0 KiB``, with one decimal that is rounded down."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        value /= 1024
        if value < 1024 or unit == "PiB":
            return f"{int(value * 10) / 10:.1f} {unit}"
    raise AssertionError("unreachable")
