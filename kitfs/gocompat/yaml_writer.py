"""Write YAML exactly as Go's yaml.v3 does with SetIndent(2), for the output of ``info`` and the Kitfile of ``unpack``.

This is a port of encode.go, emitterc.go and sorter.go of yaml.v3 v3.0.1 for structs, maps, lists and scalars without
comments, anchors and tags. Oddities are ported too, because the bytes of every Kitfile that kit wrote depend on them.
Docstrings name the ported functions with their lines. ``yaml_reader`` reads YAML; neither module knows a schema. This
module does no I/O.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from kitfs.gocompat.json import plain, shortest
from kitfs.gocompat.yaml_reader import Timestamp, resolve

MAX_SIMPLE_KEY: Final = 128  # bytes of a key; a longer one is written as "? key"
BREAKS: Final = frozenset("\r\n\x85\u2028\u2029")
BLANKS: Final = frozenset(" \t\0") | BREAKS
FIRST_INDICATORS: Final = frozenset("#,[]{}&*!|>'\"%@`")
FLOW_INDICATORS: Final = frozenset(",?[]{}:")
# is_printable, yamlprivateh.go:85: no character beyond the basic plane is printable
UNPRINTABLE: Final = re.compile("[^\n\x20-\x7e\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd]")
ESCAPED: Final = re.compile(f'{UNPRINTABLE.pattern}|[\r\n\x85\u2028\u2029"\\\\]')
ESCAPES: Final = {
    "\0": "0", "\a": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r", "\x1b": "e",
    '"': '"', "\\": "\\", "\x85": "N", "\xa0": "_", "\u2028": "L", "\u2029": "P",
}  # fmt: skip
ORDINARY: Final = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_/.+=-]*")  # most names and paths
# isOldBool, encode.go:314
OLD_BOOLS: Final = frozenset(
    ("y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "n", "N", "no", "No", "NO", "off", "Off", "OFF")
)
# isBase60Float, encode.go:292
BASE_60: Final = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")


class Fields(dict[str, Any]):
    """A struct. Its fields stay in their order, but the keys of a map are sorted (structv and mapv, encode.go:214)."""


class Flow(list[str]):
    """A list of strings that is written in flow style."""


class Analysis(NamedTuple):
    """The styles in which a scalar can be written (yaml_emitter_analyze_scalar)."""

    multiline: bool
    flow_plain: bool
    block_plain: bool
    single: bool
    block: bool


def dump(value: Any, *, printable: bool = False) -> str:
    """Write a document as yaml.v3 does, with a final newline. Strings must not contain lone surrogates.

    With ``printable``, a string with characters that are unsafe for a terminal (``escaping``) is quoted, and these
    characters are escaped. yaml.v3 escapes only some of them. A YAML parser reads the same string in both cases.
    """
    writer = _Writer(printable=printable)
    if isinstance(value, Mapping) and value:
        writer.mapping(value, 0)
    elif isinstance(value, list) and value and not isinstance(value, Flow):
        writer.sequence(value, 0)
    else:
        writer.node(value, 0)
    writer.indent(0)
    return "".join(writer.out)


class _Writer:
    """The emitter and its state.

    ``column`` is the current column. ``whitespace`` is True if white space was written last, and ``indention`` is True
    if the line has only indentation so far.
    """

    def __init__(self, *, printable: bool) -> None:
        self.printable = printable
        self.out: list[str] = []
        self.column = 0
        self.whitespace = True
        self.indention = True
        self.flow = False

    def mapping(self, value: Mapping[Any, Any], indent: int) -> None:
        """Port of yaml_emitter_emit_block_mapping_key (emitterc.go:765) and yaml_emitter_check_simple_key (:970)."""
        keys = list(value) if isinstance(value, Fields) else sorted(value, key=functools.cmp_to_key(_order))
        for key in keys:
            self.indent(indent)
            text, style = _scalar(key)
            analysis = analyze(text)
            simple = not analysis.multiline and len(text.encode()) <= MAX_SIMPLE_KEY
            if simple:
                self.scalar(text, style, analysis, indent + 2, key=True)
                self.indicator(":")
            else:
                self.indicator("?", spaced=True, indention=True)
                self.scalar(text, style, analysis, indent + 2)
                self.indent(indent)
                self.indicator(":", spaced=True, indention=True)
            self.node(value[key], indent)

    def sequence(self, value: list[Any], indent: int) -> None:
        """Port of yaml_emitter_emit_block_sequence_item (emitterc.go:729)."""
        for item in value:
            self.indent(indent)
            self.indicator("-", spaced=True, indention=True)
            self.node(item, indent)

    def node(self, value: Any, indent: int) -> None:
        """Write a value of a mapping or sequence whose entries begin in column ``indent``."""
        if isinstance(value, Mapping):
            if value:
                self.mapping(value, indent + 2)
            else:
                self.indicator("{", spaced=True, space=True)
                self.indicator("}")
        elif isinstance(value, list):
            if value and not isinstance(value, Flow):
                self.sequence(value, indent + 2)
            else:
                self.flow_sequence(value, indent)
        else:
            text, style = _scalar(value)
            self.scalar(text, style, analyze(text), indent + 2)

    def flow_sequence(self, value: list[Any], indent: int) -> None:
        """Port of yaml_emitter_emit_flow_sequence_item (emitterc.go:532)."""
        self.indicator("[", spaced=True, space=True)
        self.flow = True
        for i, item in enumerate(value):
            if i:
                self.indicator(",")
            text, style = _scalar(item)
            self.scalar(text, style, analyze(text), indent + 4)
        self.flow = False
        self.indicator("]")

    def scalar(self, text: str, style: str, analysis: Analysis, indent: int, *, key: bool = False) -> None:
        """Choose the style of a scalar, and write the scalar.

        Port of yaml_emitter_select_scalar_style (emitterc.go:1004).
        """
        if style == "" and (
            not (analysis.flow_plain if self.flow else analysis.block_plain) or (not text and (self.flow or key))
        ):
            style = "'"
        if style == "'" and not analysis.single:
            style = '"'
        if style == "|" and (not analysis.block or self.flow or key):
            style = '"'
        if self.printable and not text.replace("\n", "").isprintable():
            style = '"'
        if style == '"':
            self.double_quoted(text)
        elif style == "|":
            self.literal(text, indent)
        else:
            self.lines(text, indent, quote=style)

    def lines(self, text: str, indent: int, *, quote: str) -> None:
        """Write a plain or single-quoted scalar.

        Port of yaml_emitter_write_plain_scalar (emitterc.go:1609) and yaml_emitter_write_single_quoted_scalar (:1668).
        The only line breaks in such a scalar are U+2028 and U+2029. A scalar with "\\n" is written as a literal, and a
        scalar with other line breaks is double-quoted.
        """
        self.indicator(quote, spaced=True)
        breaks = False
        for char in text:
            if char in BREAKS:
                self.break_line(char)
                breaks = True
            else:
                if breaks:
                    self.indent(indent)
                self.put("''" if quote and char == "'" else char)
                self.indention = breaks = False
        self.indicator(quote)
        self.whitespace = self.indention = False

    def double_quoted(self, text: str) -> None:
        """Port of yaml_emitter_write_double_quoted_scalar (emitterc.go:1727)."""
        self.indicator('"', spaced=True)
        everything = text.startswith("\ufeff")  # is_bom (yamlprivateh.go:103) always looks at the first character
        quoted = "".join(map(_escape, text)) if everything else ESCAPED.sub(lambda m: _escape(m[0]), text)
        self.put("".join(c if c.isprintable() else _escape(c) for c in quoted) if self.printable else quoted)
        self.indicator('"')

    def literal(self, text: str, indent: int) -> None:
        """Port of yaml_emitter_write_literal_scalar and its hints (emitterc.go:1890, :1848)."""
        hints = "2" if text[0] == " " or text[0] in BREAKS else ""
        if text[-1] not in BREAKS:
            hints += "-"
        elif len(text) == 1 or text[-2] in BREAKS:
            hints += "+"
        self.indicator("|" + hints, spaced=True)
        self.whitespace = True
        breaks = True
        for char in text:
            if char in BREAKS:
                self.break_line(char)
                breaks = True
            else:
                if breaks:
                    self.indent(indent)
                self.put(char)
                self.indention = breaks = False

    def indent(self, indent: int) -> None:
        """Move to column ``indent``, on a new line if this line has content.

        Port of yaml_emitter_write_indent (emitterc.go:1490).
        """
        if not self.indention or self.column > indent or (self.column == indent and not self.whitespace):
            self.break_line()
        if self.column < indent:
            self.put(" " * (indent - self.column))
        self.whitespace = True

    def indicator(self, text: str, *, spaced: bool = False, space: bool = False, indention: bool = False) -> None:
        """Write an indicator. Port of yaml_emitter_write_indicator (emitterc.go:1517).

        With ``spaced``, white space is written before the indicator if necessary. With ``space``, the indicator counts
        as white space. With ``indention``, the line counts as indentation even after the indicator.
        """
        if spaced and not self.whitespace:
            self.put(" ")
        self.put(text)
        self.whitespace = space
        self.indention = self.indention and indention

    def put(self, text: str) -> None:
        self.out.append(text)
        self.column += len(text)

    def break_line(self, char: str = "\n") -> None:
        self.out.append(char)
        self.column = 0
        self.indention = True


def analyze(text: str) -> Analysis:
    """Find the styles in which ``text`` can be written. Port of yaml_emitter_analyze_scalar (emitterc.go:1255)."""
    if ORDINARY.fullmatch(text):
        return Analysis(multiline=False, flow_plain=True, block_plain=True, single=True, block=True)
    if not text:
        return Analysis(multiline=False, flow_plain=False, block_plain=True, single=True, block=False)
    block_indicators = flow_indicators = text.startswith(("---", "..."))
    multiline = space_break = break_space = False
    before = "\0"  # the previous character; the beginning counts as white space
    for i, char in enumerate(text):
        followed = text[i + 1 : i + 2] in ("", " ", "\t")
        if i == 0 and char in FIRST_INDICATORS:
            flow_indicators = block_indicators = True
        elif i == 0 and char in "?:-":
            flow_indicators = flow_indicators or char != "-" or followed
            block_indicators = block_indicators or followed
        elif i and char in FLOW_INDICATORS:
            flow_indicators = True
            block_indicators = block_indicators or (char == ":" and followed)
        elif i and char == "#" and before in BLANKS:
            flow_indicators = block_indicators = True
        if char in BREAKS:
            multiline = True
            space_break = space_break or (i > 0 and before == " ")
        elif char == " ":
            break_space = break_space or (i > 0 and before in BREAKS)
        before = char
    edges = text[0] == " " or text[-1] == " " or text[0] in BREAKS or text[-1] in BREAKS
    special = space_break or UNPRINTABLE.search(text.replace("\t", "")) is not None
    unquotable = break_space or special or "\t" in text
    return Analysis(
        multiline,
        flow_plain=not (edges or unquotable or multiline or flow_indicators),
        block_plain=not (edges or unquotable or multiline or block_indicators),
        single=not unquotable,
        block=not (text[-1] == " " or special),
    )


def _escape(char: str) -> str:
    code = ord(char)
    short = ESCAPES.get(char)
    if short is not None:
        return "\\" + short
    return f"\\x{code:02X}" if code <= 0xFF else f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"


def _scalar(value: Any) -> tuple[str, str]:
    """Return (text, requested style). "" requests a plain scalar, which the emitter quotes if necessary.

    Port of stringv and floatv (encode.go:324, :391).
    """
    if value is None:
        return "null", ""
    if isinstance(value, bool):
        return "true" if value else "false", ""
    if isinstance(value, int):
        return str(value), ""
    if isinstance(value, float):
        return go_float(value), ""
    if isinstance(value, Timestamp):
        return str(value), ""
    text = str(value)
    if "\n" in text:
        return text, "|"
    ambiguous = type(resolve(text)) is not str or text in OLD_BOOLS or BASE_60.fullmatch(text)
    return text, '"' if ambiguous else ""


def go_float(value: float) -> str:
    """Format a float as strconv.FormatFloat(f, 'g', -1, 64) does.

    Below 1e-4, and from 1e6 on, the result has an exponent of at least two digits.
    """
    if math.isnan(value):
        return ".nan"
    if math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    sign = "-" if math.copysign(1, value) < 0 else ""
    digits, exponent = shortest(value)
    if value == 0:
        return sign + "0"
    if not -4 <= exponent < 6:
        mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
        return f"{sign}{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
    return sign + plain(digits, exponent)


def _order(a: Any, b: Any) -> int:
    """Compare two keys. Port of keyList.Less (sorter.go:27)."""
    return -1 if _less(a, b) else int(_less(b, a))


def _less(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return float(a) < float(b)
    if type(a) is not str or type(b) is not str:
        return _kind(a) < _kind(b)
    digits = False
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x == y:
            digits = x.isdecimal()
            continue
        if x.isalpha() and y.isalpha():
            return x < y
        if x.isalpha() or y.isalpha():
            return x.isalpha() if digits else y.isalpha()
        number = 1 if "0" in (x, y) and _digits_before(a, i).strip("0") else 0
        (a_number, a_end), (b_number, b_end) = _number(a, i, number), _number(b, i, number)
        if a_number != b_number:
            return a_number < b_number
        if a_end != b_end:
            return a_end < b_end
        return x < y
    return len(a) < len(b)


def _kind(value: Any) -> int:
    """Return Go's reflect.Kind of a key. It determines the order of keys of different types."""
    kinds: tuple[tuple[type, int], ...] = ((type(None), 20), (bool, 1), (int, 2), (float, 14), (Timestamp, 25))
    return next((rank for kind, rank in kinds if isinstance(value, kind)), 24)


def _digits_before(text: str, end: int) -> str:
    start = end
    while start and text[start - 1].isdecimal():
        start -= 1
    return text[start:end]


def _number(text: str, at: int, number: int) -> tuple[int, int]:
    """Append the digits of ``text`` from ``at`` on to ``number``, and return (value, end).

    The value overflows as Go's int64 does.
    """
    while at < len(text) and text[at].isdecimal():
        number = number * 10 + ord(text[at]) - 48
        at += 1
    return (number + (1 << 63)) % (1 << 64) - (1 << 63), at
