"""Foreign text on its way to a terminal or a log: what could drive either is written as an escape.

Names, annotations, messages of registries and paths are other people's. A character that Unicode does not call
printable is never written as it is: C0 and C1 controls, DEL, the controls of bidirectional text, separators of lines
and paragraphs, characters without a width, and halves of surrogate pairs, by which Python stands for bytes that are
not UTF-8. Letters of every alphabet stay. A text that was escaped once stays as it is when it is escaped again.
``cli.output`` and ``LogFormatter`` are the places where this happens, and in the SDK ``LogFilter``. Threading: no
state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from kitfs.redaction import redacted


def shown(text: str) -> str:
    """Return ``text`` as one line: a newline or a tab is escaped too."""
    return text if text.isprintable() else _with_escapes(text, "", escaped)


def shown_lines(text: str) -> str:
    """Return ``text`` with its newlines and tabs; nothing else in it moves a cursor."""
    return text if _plain(text) else _with_escapes(text, "\n\t", escaped)


def shown_json(text: str) -> str:
    """Return a JSON text that means the same, without a character that is not printable (RFC 8259, section 7: every
    one may be escaped).
    """
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
    """A formatter of log lines: a record is one line, a traceback keeps its own lines, and neither holds a secret
    (``redaction``).
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the record's line."""
        return shown(redacted(super().formatMessage(record)))

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line and its traceback."""
        return shown_lines(redacted(super().format(record)))


class LogFilter(logging.Filter):
    """Escapes the message of a record before any handler sees it: for programs that have handlers of their own, or
    none.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep the record, with its message escaped."""
        record.msg, record.args = shown(record.getMessage()), None
        return True
