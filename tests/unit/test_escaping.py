"""Untrusted text is escaped before it is written to a terminal or a log."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitfs.escaping import LogFormatter, shown, shown_json, shown_lines
from kitfs.modelkit.kitfile import Kitfile, Package

BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
FORBIDDEN = [*map(chr, (*range(0x20), 0x7F, *range(0x80, 0xA0), *BIDI, 0x2028, 0x2029, 0xD800, 0xDFFF))]
TEXTS = st.text(st.one_of(st.characters(), st.sampled_from(FORBIDDEN)))


@pytest.mark.parametrize("char", FORBIDDEN, ids=lambda c: f"U+{ord(c):04X}")
def test_no_control_character_is_written(char: str) -> None:
    """Control characters of every kind, and lone surrogates, are escaped in lines and in JSON."""
    assert shown(f"a{char}b").isprintable()
    assert shown_json(json.dumps({"a": char}, ensure_ascii=False)).isprintable()


@given(TEXTS)
def test_json_means_the_same(text: str) -> None:
    """Escaped JSON parses to the same value as the original JSON."""
    assert json.loads(shown_json(json.dumps([text], ensure_ascii=False, indent=2))) == [text]


@given(TEXTS)
def test_escaping_twice_is_escaping_once(text: str) -> None:
    """Escaping does not change a string that was escaped before."""
    assert shown(shown(text)) == shown(text)
    assert shown_lines(shown_lines(text)) == shown_lines(text)


@given(TEXTS.map(lambda text: text.encode("utf-8", "replace").decode()))
def test_yaml_means_the_same(text: str) -> None:
    """An escaped Kitfile has only printable characters, and parses to the same value as the Kitfile without escapes.

    The original value is not used for the comparison, because yaml.v3 drops the first line break of a string.
    """
    kitfile = Kitfile(package=Package("x", description=text))
    written = kitfile.to_yaml(printable=True)
    assert written.replace("\n", "").isprintable()
    assert Kitfile.from_yaml(written.encode()) == Kitfile.from_yaml(kitfile.to_yaml().encode())


def test_a_log_record_is_one_line() -> None:
    """A line break in a message is escaped. A traceback has several lines, but its control characters are escaped."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LogFormatter("%(levelname)s %(message)s"))
    try:
        raise ValueError("\x1b]0;x\x07")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "a %s", ("b\n2026 ERROR forged\x9b",), sys.exc_info())
    handler.handle(record)
    first, *others = stream.getvalue().splitlines()
    assert first == "ERROR a b\\n2026 ERROR forged\\x9b"
    assert others[-1] == "ValueError: \\x1b]0;x\\x07"
