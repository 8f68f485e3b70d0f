"""YAML as Go's yaml.v3 reads and writes it, on PyYAML's parser and emitter.

Reading gives nodes with their scalars unresolved, since a field of type string takes a scalar's literal text and one of any type what
yaml.v3's resolve.go makes of it: YAML 1.2 with a little 1.1 (``0o17`` and ``010`` are numbers, ``yes`` and ``1:30`` are strings). Writing
follows encode.go: literal style for text of several lines, double quotes where plain text would read back as something else or where
YAML 1.1 would have (``"n"``, ``"1:30"``), floats as strconv 'g' prints them, keys in natural order. Pure.
"""

from __future__ import annotations

import functools
import io
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

import yaml

from kitfs.errors import KitfileError
from kitfs.oci.gojson import plain, shortest

MAX_BYTES: Final = 1 << 20  # of a YAML text: a Kitfile that people write has a few KiB
MAX_NODES: Final = 200_000  # after aliases are followed: what 1 MiB can honestly hold
PREFIX: Final = "tag:yaml.org,2002:"
OLD_BOOLS: Final = frozenset(
    ("y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "n", "N", "no", "No", "NO", "off", "Off", "OFF")
)
BASE_60: Final = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
TIMESTAMP: Final = re.compile(
    r"(\d{4})-(\d{1,2})-(\d{1,2})(?:(?:[Tt](\d{1,2}):(\d{1,2}):(\d{1,2})(\.\d+)?(Z|[+-]\d\d:\d\d))|(?: +(\d{1,2}):(\d{1,2}):(\d{1,2})(\.\d+)?))?"
)
WORDS: Final[Mapping[str, Any]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}


class _Loader(yaml.BaseLoader):
    """Leaves scalars that have no tag without one, so that ``!!str 1`` can be told from ``1``."""

    DEFAULT_SCALAR_TAG = ""  # type: ignore[misc]  # the stubs call final what PyYAML reads from the class


def parse(data: bytes) -> yaml.Node | None:
    """The document as PyYAML nodes, None when it is empty. Raises KitfileError."""
    if len(data) > MAX_BYTES:
        raise KitfileError(f"a YAML text of {len(data)} bytes: more than {MAX_BYTES} is no Kitfile")
    try:
        text = data.decode("utf-8-sig")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
        finally:
            loader.dispose()
    except UnicodeDecodeError as e:
        raise KitfileError(f"yaml: invalid UTF-8 at byte {e.start}")
    except yaml.MarkedYAMLError as e:
        line = f"line {e.problem_mark.line + 1}: " if e.problem_mark else ""
        raise KitfileError(f"yaml: {line}{e.problem or e.context}")
    except (yaml.YAMLError, ValueError) as e:
        raise KitfileError(f"yaml: {e}")
    except RecursionError:
        raise KitfileError("yaml: nested too deeply")
    _check_aliases(node)
    return node


def _check_aliases(root: yaml.Node | None) -> None:
    """Raises KitfileError when following the aliases would never end, or make far more of the text than it says."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        known = sizes.get(id(node))
        if known is not None:
            if known < 0:
                raise KitfileError("yaml: an anchor contains itself")
            return known
        sizes[id(node)] = -1
        if isinstance(node, yaml.MappingNode):
            total = 1 + sum(size(k) + size(v) for k, v in node.value)
        elif isinstance(node, yaml.SequenceNode):
            total = 1 + sum(size(v) for v in node.value)
        else:
            total = 1
        sizes[id(node)] = total
        return total

    try:
        if root is not None and size(root) > MAX_NODES:
            raise KitfileError("yaml: document contains excessive aliasing")
    except RecursionError:
        raise KitfileError("yaml: nested too deeply")


def line_of(node: yaml.Node) -> int:
    """The line a node begins on, from 1."""
    return int(node.start_mark.line) + 1


def short_tag(node: yaml.Node) -> str:
    """A node's kind as yaml.v3 names it in errors: !!map, !!seq, !!str …"""
    if isinstance(node, yaml.MappingNode):
        return "!!map"
    if isinstance(node, yaml.SequenceNode):
        return "!!seq"
    value = scalar(node)
    names = {type(None): "!!null", bool: "!!bool", int: "!!int", float: "!!float", datetime: "!!timestamp"}
    return names.get(type(value), "!!str")


def pairs(node: yaml.MappingNode) -> list[tuple[yaml.Node, yaml.Node]]:
    """A mapping's entries with merge keys (``<<``) settled. Raises KitfileError for a key that stands twice."""
    own: list[tuple[yaml.Node, yaml.Node]] = []
    merged: list[tuple[yaml.Node, yaml.Node]] = []
    seen: dict[Any, int] = {}
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value == "<<" and key.style is None:
                sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
                if not all(isinstance(s, yaml.MappingNode) for s in sources):
                    raise KitfileError("yaml: map merge requires map or sequence of maps as the value")
                merged += [p for s in sources for p in pairs(s)]
                continue
            if key.value in seen:
                raise KitfileError(f"yaml: line {line_of(key)}: mapping key {key.value!r} already defined at line {seen[key.value]}")
            seen[key.value] = line_of(key)
        own.append((key, value))
    for key, value in merged:
        if isinstance(key, yaml.ScalarNode) and key.value not in seen:
            seen[key.value] = line_of(key)
            own.append((key, value))
    return own


def value_of(node: yaml.Node) -> Any:
    """What a field of any type gets: dict, list, str, int, float, bool, datetime or None."""
    if isinstance(node, yaml.MappingNode):
        return {_key(k): value_of(v) for k, v in pairs(node)}
    if isinstance(node, yaml.SequenceNode):
        return [value_of(v) for v in node.value]
    return scalar(node)


def _key(node: yaml.Node) -> Any:
    key = value_of(node)
    if isinstance(key, (dict, list)):
        raise KitfileError(f"yaml: line {line_of(node)}: invalid map key")
    return key


def scalar(node: yaml.Node) -> Any:
    """A scalar, resolved as yaml.v3's resolve.go does."""
    text = str(node.value)
    tag = node.tag.removeprefix(PREFIX)
    if tag in ("str", "!") or (not tag and getattr(node, "style", None) is not None):
        return text
    value = resolve(text)
    if tag == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def resolve(text: str) -> Any:
    """What plain text means."""
    if text in WORDS:
        return WORDS[text]
    if not text or text[0] not in "+-.0123456789":
        return text
    when = timestamp(text)
    if when is not None:
        return when
    digits = text.replace("_", "")
    number = _integer(digits)
    if number is not None:
        return number
    if FLOAT.fullmatch(text if text[0] == "." else digits):
        return float(digits)
    return text


def _integer(text: str) -> int | None:
    match = re.fullmatch(r"([-+]?)(0[xX][0-9a-fA-F]+|0[oO][0-7]+|0[bB][01]+|0[0-7]*|[1-9][0-9]*)", text)
    if not match:
        return None
    sign, digits = match.groups()
    base = {"x": 16, "o": 8, "b": 2}.get(digits[1:2].lower(), 8 if digits[0] == "0" and len(digits) > 1 else 10)
    value = int(digits[2:] if digits[1:2].isalpha() else digits, base) * (-1 if sign == "-" else 1)
    return value if -(1 << 63) <= value < (1 << 64) else None


def timestamp(text: str) -> datetime | None:
    """A timestamp in one of yaml.v3's four formats."""
    match = TIMESTAMP.fullmatch(text)
    if not match:
        return None
    year, month, day, *rest = match.groups()
    hour, minute, second, fraction = (rest[0:4] if rest[0] is not None else rest[5:9]) if any(rest) else ("0", "0", "0", None)
    zone: timezone = UTC
    if rest[4] and rest[4] != "Z":
        offset = timedelta(hours=int(rest[4][1:3]), minutes=int(rest[4][4:6]))
        zone = timezone(offset if rest[4][0] == "+" else -offset)
    micro = int((fraction or ".")[1:7].ljust(6, "0"))
    try:
        return datetime(int(year), int(month), int(day), int(hour), int(minute), int(second), micro, zone)
    except ValueError:
        return None


def rfc3339(when: datetime) -> str:
    """A time as Go's JSON has it (RFC3339Nano): no trailing zeros, Z for UTC."""
    text = when.strftime("%Y-%m-%dT%H:%M:%S").rjust(19, "0")
    if when.microsecond:
        text += f".{when.microsecond:06d}".rstrip("0")
    offset = when.utcoffset() or timedelta()
    minutes = int(offset.total_seconds() // 60)
    if not minutes:
        return text + "Z"
    return text + f"{'+' if minutes > 0 else '-'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"


class Flow(list[str]):
    """A list of texts to be written in flow style."""


class _Emitter(yaml.emitter.Emitter):
    """PyYAML's emitter, with yaml.v3's sequences (indented under their key) and its judgement of tabs."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream, indent=2, width=1 << 30, allow_unicode=True)
        self._hints = ""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def analyze_scalar(self, scalar: str) -> Any:
        analysis = super().analyze_scalar(scalar.replace("\t", "x") if "\t" in scalar and "\n" in scalar else scalar)
        analysis.scalar = scalar
        if any(c > "\uffff" for c in scalar):  # yaml.v3 takes nothing beyond the basic plane for printable
            analysis.allow_flow_plain = analysis.allow_block_plain = analysis.allow_single_quoted = analysis.allow_block = False
        return analysis

    def check_simple_key(self) -> bool:
        empty = isinstance(self.event, yaml.ScalarEvent) and not self.event.value
        return empty or bool(super().check_simple_key())

    def write_literal(self, text: str) -> None:
        self._hints = super().determine_block_hints(text)
        super().write_literal(text.removeprefix("\n"))  # yaml.v3 loses a first empty line
        self.open_ended = False

    def determine_block_hints(self, text: str) -> str:
        return self._hints


def dump(value: Mapping[str, Any]) -> str:
    """A mapping as yaml.v3 writes it. Its own order stands at the top and in ``Fields``; plain dicts below are sorted as maps are."""
    out = io.StringIO()
    emitter = _Emitter(out)
    emitter.emit(yaml.StreamStartEvent())
    emitter.emit(yaml.DocumentStartEvent(explicit=False))
    _emit(emitter, value, flow=False)
    emitter.emit(yaml.DocumentEndEvent(explicit=False))
    emitter.emit(yaml.StreamEndEvent())
    return out.getvalue()


class Fields(dict[str, Any]):
    """A struct: its fields keep their order, where a map's keys are sorted."""


def _emit(emitter: _Emitter, value: Any, *, flow: bool) -> None:
    if isinstance(value, Mapping):
        emitter.emit(yaml.MappingStartEvent(None, None, implicit=True, flow_style=flow or not value))
        keys = list(value) if isinstance(value, Fields) else sorted(value, key=functools.cmp_to_key(_natural))
        for key in keys:
            _emit(emitter, key, flow=flow)
            _emit(emitter, value[key], flow=flow)
        emitter.emit(yaml.MappingEndEvent())
    elif isinstance(value, list):
        inside = flow or isinstance(value, Flow)
        emitter.emit(yaml.SequenceStartEvent(None, None, implicit=True, flow_style=inside or not value))
        for item in value:
            _emit(emitter, item, flow=inside)
        emitter.emit(yaml.SequenceEndEvent())
    else:
        text, style = _scalar(value, flow)
        emitter.emit(yaml.ScalarEvent(None, None, (True, True), text, style=style))


def _scalar(value: Any, flow: bool) -> tuple[str, str | None]:
    """(text, style) of a scalar: style None is plain, where the emitter may still have to quote."""
    if value is None:
        return "null", None
    if isinstance(value, bool):
        return "true" if value else "false", None
    if isinstance(value, int):
        return str(value), None
    if isinstance(value, float):
        return go_float(value), None
    if isinstance(value, datetime):
        return rfc3339(value), None
    text = str(value)
    if "\n" in text:
        return text, '"' if flow else "|"
    stays_text = isinstance(resolve(text), str) and text != "<<" and text not in OLD_BOOLS and not BASE_60.fullmatch(text)
    return text, None if stays_text else '"'


def go_float(value: float) -> str:
    """A float as strconv.FormatFloat(f, 'g', -1, 64): an exponent of two digits below 1e-4 and from 1e6 on."""
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


def _natural(a: Any, b: Any) -> int:
    """yaml.v3's keyList.Less: numbers inside keys by value, letters after what is no letter."""
    if a == b:
        return 0
    return -1 if _less(str(a), str(b)) else 1


def _less(a: str, b: str) -> bool:
    digits = False
    for i in range(min(len(a), len(b))):
        if a[i] == b[i]:
            digits = a[i].isdecimal()
            continue
        a_letter, b_letter = a[i].isalpha(), b[i].isalpha()
        if a_letter and b_letter:
            return a[i] < b[i]
        if a_letter or b_letter:
            return a_letter if digits else b_letter
        a_number, a_end, b_number, b_end = *_number(a, i), *_number(b, i)
        if "0" in (a[i], b[i]):
            before = re.search(r"\d*$", a[:i])
            if before and before[0].strip("0"):
                a_number, b_number = int(f"1{a[i:a_end]}"), int(f"1{b[i:b_end]}")
        if a_number != b_number:
            return a_number < b_number
        if a_end != b_end:
            return a_end < b_end
        return a[i] < b[i]
    return len(a) < len(b)


def _number(text: str, at: int) -> tuple[int, int]:
    end = at
    while end < len(text) and text[end] in "0123456789":
        end += 1
    return int(text[at:end] or 0), end
