"""Escapes for foreign text that is printed on a terminal or logged, so that it cannot control either.

Names, annotations, paths and the messages of registries come from other people. A character that Unicode does not call
printable is written as an escape: C0 and C1 controls, DEL, the controls of bidirectional text, separators of lines and
paragraphs, characters without a width, and halves of surrogate pairs, which in Python represent bytes that are not
UTF-8. Letters of every alphabet are not changed, and neither is a text that was escaped before. ``cli.output`` and
``LogFormatter`` escape texts, and in the SDK ``LogFilter``. Threading: no state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from kitfs.redaction import redacted


def shown(text: str) -> str:
    """Return ``text`` as one line: a newline or a tab is escaped too."""
    return text if text.isprintable() else _with_escapes(text, "", escaped)


def shown_lines(text: str) -> str:
    """Return ``text`` with its newlines and tabs; every other character that could move a cursor is escaped."""
    return text if _plain(text) else _with_escapes(text, "\n\t", escaped)


def shown_json(text: str) -> str:
    """Return an equivalent JSON text without characters that are not printable (RFC 8259, section 7)."""
    return text if _plain(text) else _with_escapes(text, "\n", _json_escape)


def escaped(char: str) -> str:
    r"""Return one character as ``\xff``, ``\u202e`` or ``\U000e0001``; a byte that is not UTF-8 as ``\xff`` too."""
    if 0xDC80 <= ord(char) <= 0xDCFF:  # by surrogateescape
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def _json_escape(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _plain(text: str) -> bool:
    return text.replace("\n", "").isprintable()


def _with_escapes(text: str, kept: str, escape: Callable[[str], str]) -> str:
    return "".join(c if c.isprintable() or c in kept else escape(c) for c in text)


class LogFormatter(logging.Formatter):
    """A formatter that writes a record as one line and a traceback as several, both without secrets (``redaction``)."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the record's line."""
        return shown(redacted(super().formatMessage(record)))

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line and its traceback."""
        return shown_lines(redacted(super().format(record)))


class LogFilter(logging.Filter):
    """A filter that escapes the message of a record before any handler gets it, for programs with own handlers."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Escape the message of the record; return True, so that the record is logged."""
        record.msg, record.args = shown(record.getMessage()), None
        return True
