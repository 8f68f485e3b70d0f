"""Escape foreign text before it is printed or logged, so that it cannot control the terminal or forge log lines.

Names, annotations, paths and the messages of registries are written by strangers. Every character that Unicode does not
class as printable is escaped: C0 and C1 controls, DEL, controls of bidirectional text, separators of lines and
paragraphs, characters without a width, and halves of surrogate pairs, which Python uses for bytes that are not UTF-8.
Letters of any alphabet are not changed. Text that is already escaped is not changed. ``cli.output`` and
``LogFormatter`` escape all text that they print. In the SDK, ``LogFilter`` escapes log messages.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from kitfs.redaction import redacted


def shown(text: str) -> str:
    """Return a text as a single line, in which newlines and tabs are escaped, too."""
    return text if text.isprintable() else _with_escapes(text, "", escaped)


def shown_lines(text: str) -> str:
    """Return a text in which every unprintable character is escaped, except newlines and tabs."""
    return text if _plain(text) else _with_escapes(text, "\n\t", escaped)


def shown_json(text: str) -> str:
    """Return an equivalent JSON text without characters that are not printable (RFC 8259, section 7)."""
    return text if _plain(text) else _with_escapes(text, "\n", _json_escape)


def escaped(char: str) -> str:
    r"""Return the escape for a character (``\u202e`` or ``\U000e0001``) or for a byte that is not UTF-8 (``\xff``)."""
    if 0xDC80 <= ord(char) <= 0xDCFF:  # a byte that surrogateescape has decoded
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
    """A formatter that writes a record as one line, and its traceback below. Secrets are removed (``redaction``)."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line of a record."""
        return shown(redacted(super().formatMessage(record)))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, and its traceback."""
        return shown_lines(redacted(super().format(record)))


class LogFilter(logging.Filter):
    """A filter that escapes the message of a record before it reaches the handlers of the program."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Escape the message of the record; return True, so that the record is logged."""
        record.msg, record.args = shown(record.getMessage()), None
        return True
