"""What verbs print: tables, JSON, messages on stderr. Programs get JSON with sorted meaning and no colour; people get columns."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def say(text: str) -> None:
    """A message for people, on stderr."""
    sys.stderr.write(f"{text}\n")


def put(text: str) -> None:
    """One line of the answer, on stdout."""
    sys.stdout.write(f"{text}\n")


def put_json(value: Any) -> None:
    """The answer for programs."""
    put(json.dumps(value, indent=2, ensure_ascii=False))


def put_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as kit prints them: as wide as their widest cell, three blanks between."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        put("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def human_size(size: int) -> str:
    """Bytes as kit's FormatBytes: ``512 B``, ``7.0 KiB``, one floored decimal."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        value /= 1024
        if value < 1024 or unit == "PiB":
            return f"{int(value * 10) / 10:.1f} {unit}"
    raise AssertionError("unreachable")


def shown(path: str) -> str:
    """A path of a kit as it may be printed: control characters and broken UTF-8 escaped, so that no name can drive a terminal."""
    return "".join(c if c.isprintable() else _escaped(c) for c in path)


def _escaped(c: str) -> str:
    if 0xDC80 <= ord(c) <= 0xDCFF:  # a byte that is not UTF-8, by surrogateescape
        return f"\\x{ord(c) - 0xDC00:02x}"
    return c.encode("unicode_escape").decode()
