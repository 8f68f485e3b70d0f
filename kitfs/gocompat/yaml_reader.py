"""Read YAML as Go's yaml.v3 (v3.0.1) does, from the nodes that ``yaml_scanner`` composes.

``parse`` returns nodes whose scalars are not resolved. For a field of Go's type string, the value is the literal text
of the scalar. For a field of Go's type any, the text is resolved as in resolve.go:126, which follows YAML 1.2 and parts
of YAML 1.1: ``0o17`` and ``010`` are numbers, ``yes`` and ``1:30`` are strings. Problems after which decode.go
continues (such as a key that occurs twice) are appended to the caller's list ``wrong``. ``yaml_writer`` writes YAML.
This module does no I/O.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import math
import re
from collections.abc import Mapping
from typing import Any, Final

import yaml

from kitfs.errors import KitfileError
from kitfs.gocompat.yaml_scanner import MAX_DEPTH, MAX_NODES, Loader

MAX_BYTES: Final = 1 << 20  # bytes of a YAML text, enough for about ten thousand entries
MAX_TEXT: Final = 4 << 20  # characters of all scalars, with aliases expanded
PREFIX: Final = "tag:yaml.org,2002:"
MERGE: Final = "<<"
RESOLVABLE: Final = frozenset(("", "!!str", "!!bool", "!!int", "!!float", "!!null", "!!timestamp"))
FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INTEGER: Final = re.compile(
    r"(?P<sign>[-+]?)(?:0[xX](?P<hex>[0-9a-fA-F]+)|0[oO](?P<oct>[0-7]+)|0[bB](?P<bin>[01]+)"
    r"|(?P<old>0[0-7]+)|(?P<dec>0|[1-9][0-9]*))"
)
# resolve.go passes what follows 0o and 0b to ParseInt, which accepts a sign
SIGNED: Final = re.compile(r"0(?:o(?P<oct>[-+][0-7]+)|b(?P<bin>[-+][01]+))")
BASES: Final = {"hex": 16, "oct": 8, "bin": 2, "old": 8, "dec": 10}
MAX_DIGITS: Final = 64  # digits of a 64-bit integer in base 2, without leading zeros
CLOCK: Final = r"(?P<hour{0}>\d\d?):(?P<minute{0}>\d\d?):(?P<second{0}>\d\d?)(?:[.,](?P<fraction{0}>\d+))?"
TIMESTAMP: Final = re.compile(
    r"(?P<year>\d{4})-(?P<month>\d\d?)-(?P<day>\d\d?)"
    rf"(?:[Tt]{CLOCK.format(1)}(?:Z|(?P<sign>[-+])(?P<zone_hour>\d\d):(?P<zone_minute>\d\d))| +{CLOCK.format(2)})?",
    re.ASCII,
)
DAYS: Final = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
WORDS: Final[Mapping[str, Any]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
}


class Timestamp(str):
    """A time in the form RFC3339Nano. Go writes a YAML timestamp to JSON in this form."""

    __slots__ = ()


class AnyMap(dict[Any, Any]):
    """A map[interface{}]interface{}: a mapping with a key that is not a string. Go cannot write it as JSON."""


def parse(data: bytes) -> yaml.Node | None:
    """Parse the first document into PyYAML nodes. Return None if there is no document. Raises KitfileError."""
    if len(data) > MAX_BYTES:
        raise KitfileError(f"the Kitfile has {len(data)} bytes; the limit is {MAX_BYTES}")
    try:
        loader = Loader(_decoded(data))
        try:
            node = loader.get_node() if loader.check_node() else None
        finally:
            loader.dispose()
    except UnicodeDecodeError as e:
        raise KitfileError(f"yaml: invalid {e.encoding} at byte {e.start}")
    except yaml.MarkedYAMLError as e:
        line = f"line {e.problem_mark.line + 1}: " if e.problem_mark else ""
        raise KitfileError(f"yaml: {line}{e.problem or e.context}")
    except (yaml.YAMLError, ValueError) as e:
        raise KitfileError(f"yaml: {e}")
    except RecursionError:
        raise KitfileError("yaml: nested too deeply")
    if node is not None:
        _check_aliases(node)
    return node


def _decoded(data: bytes) -> str:
    """Decode UTF-8, or UTF-16 if the data begins with its byte order mark, as editors on Windows write it."""
    for mark, encoding in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding)
    return data.decode("utf-8-sig")


def _check_aliases(root: yaml.Node) -> None:
    """Raise KitfileError if the expansion of the aliases never ends or exceeds the limits of a document.

    yaml.v3 has a different limit, which depends on the size of the text (allowedAliasRatio, decode.go:468).
    """
    sizes: dict[int, tuple[int, int, int] | None] = {}

    def size(node: yaml.Node) -> tuple[int, int, int]:
        """Return (nodes, characters, levels) of a node with aliases expanded.

        An anchor precedes its aliases, so the size of the anchor is known already and the recursion stays shallow.
        """
        if id(node) in sizes:
            known = sizes[id(node)]
            if known is None:
                raise KitfileError("yaml: anchor value contains itself")
            return known
        sizes[id(node)] = None
        if isinstance(node, yaml.ScalarNode):
            total = 1, len(node.value), 1
        else:
            below = [size(n) for n in children(node)]
            total = 1 + sum(s[0] for s in below), sum(s[1] for s in below), 1 + max((s[2] for s in below), default=0)
        if total[0] > MAX_NODES or total[1] > MAX_TEXT:
            raise KitfileError("yaml: document contains excessive aliasing")
        if total[2] > MAX_DEPTH:
            raise KitfileError("yaml: nested too deeply")
        sizes[id(node)] = total
        return total

    size(root)


def children(node: yaml.Node) -> list[yaml.Node]:
    """Return the items of a sequence, or the keys and values of a mapping. A scalar has no children."""
    if isinstance(node, yaml.MappingNode):
        return [n for pair in node.value for n in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def line_of(node: yaml.Node) -> int:
    """Return the line on which a node begins, counted from 1."""
    return int(node.start_mark.line) + 1


def short_tag(node: yaml.Node) -> str:
    """Return a node's tag as in yaml.v3's errors: the explicit tag, or else the resolved tag (yaml.go:435)."""
    tag = _written_tag(node)
    if tag:
        return tag
    if isinstance(node, yaml.MappingNode):
        return "!!map"
    if isinstance(node, yaml.SequenceNode):
        return "!!seq"
    if node.style is not None:  # type: ignore[attr-defined]  # a ScalarNode by now
        return "!!str"
    return "!!merge" if node.value == MERGE else _tag_of(resolve(str(node.value)))


def _written_tag(node: yaml.Node) -> str:
    tag = str(node.tag or "")
    if isinstance(node, yaml.CollectionNode) and tag in (f"{PREFIX}map", f"{PREFIX}seq"):
        return ""  # PyYAML assigns these to collections without a tag
    return "" if tag == "!" else f"!!{tag.removeprefix(PREFIX)}" if tag.startswith(PREFIX) else tag


def _tag_of(value: Any) -> str:
    names = {type(None): "!!null", bool: "!!bool", int: "!!int", float: "!!float", Timestamp: "!!timestamp"}
    return names.get(type(value), "!!str")


def pairs(node: yaml.MappingNode, wrong: list[str]) -> list[tuple[yaml.Node, yaml.Node]] | None:
    """Return the entries of a mapping. Entries of merge keys (``<<``) come last and never replace other entries.

    If a key occurs twice, the problem is appended to ``wrong``, and the result is None. Raises KitfileError if a merged
    value is not a mapping. Port of mapping and merge (decode.go:767, :959).
    """
    if not _unique(node, wrong):
        return None
    own: list[tuple[yaml.Node, yaml.Node]] = []
    merge: yaml.Node | None = None
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode) and short_tag(key) == "!!merge":
            merge = value
        else:
            own.append((key, value))
    seen: set[str] = {key.value for key, _ in own if isinstance(key, yaml.ScalarNode)}
    for source in merge.value if isinstance(merge, yaml.SequenceNode) else [merge] if merge is not None else []:
        if not isinstance(source, yaml.MappingNode):
            raise KitfileError("yaml: map merge requires map or sequence of maps as the value")
        new = [
            (k, v) for k, v in pairs(source, wrong) or () if not isinstance(k, yaml.ScalarNode) or k.value not in seen
        ]
        seen.update(k.value for k, _ in new if isinstance(k, yaml.ScalarNode))
        own += new
    return own


def _unique(node: yaml.MappingNode, wrong: list[str]) -> bool:
    lines: dict[str, int] = {}
    before = len(wrong)
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            line = line_of(key)
            if key.value in lines:
                wrong.append(f'line {line}: mapping key "{key.value}" already defined at line {lines[key.value]}')
            lines.setdefault(key.value, line)
    return len(wrong) == before


def value_of(node: yaml.Node, wrong: list[str]) -> Any:
    """Return the value of a node for a field of Go's type any, as unmarshal (decode.go:484) does.

    The value is a dict (AnyMap if a key is not a string), list, str, int, float, bool, Timestamp or None.
    """
    if isinstance(node, yaml.MappingNode):
        entries = pairs(node, wrong)
        if entries is None:
            return None
        found = {_key(k, wrong): value_of(v, wrong) for k, v in entries}
        return found if all(short_tag(k) in ("!!str", "!!merge") for k, _ in entries) else AnyMap(found)
    if isinstance(node, yaml.SequenceNode):
        return [value_of(v, wrong) for v in node.value]
    return scalar(node)


def _key(node: yaml.Node, wrong: list[str]) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        raise KitfileError(f"yaml: line {line_of(node)}: invalid map key")
    return value_of(node, wrong)


def scalar(node: yaml.Node) -> Any:
    """Resolve a scalar. Port of scalar (decode.go:565). Raises KitfileError if its tag does not fit its text."""
    text, tag = str(node.value), _written_tag(node)
    quoted = node.style is not None  # type: ignore[attr-defined]  # callers have a ScalarNode
    if tag == "!!binary":
        return _binary(text)
    if tag == "!!str" or tag not in RESOLVABLE or (not tag and (quoted or text == MERGE)):
        return text
    value = resolve(text, times=tag in ("", "!!timestamp"))
    found = _tag_of(value)
    if tag == "!!float" and found == "!!int":
        return float(value)
    if tag and found != tag:
        raise KitfileError(f"yaml: cannot decode {found} `{text}` as a {tag}")
    return value


def _binary(text: str) -> str:
    try:
        return base64.b64decode(text.replace("\r", "").replace("\n", ""), validate=True).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        raise KitfileError("yaml: !!binary value contains invalid base64 data")


def resolve(text: str, *, times: bool = True) -> Any:
    """Resolve the text of a plain scalar. Port of resolve (resolve.go:126).

    The result can be a Timestamp only if ``times`` is True.
    """
    if text in WORDS:
        return WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    if text[0] == ".":
        return _float(text)
    when = timestamp(text) if times else None
    if when is not None:
        return when
    digits = text.replace("_", "")
    number = _integer(digits)
    if number is not None:
        return number
    value = _float(digits)
    return text if isinstance(value, str) else value


def _float(text: str) -> float | str:
    """Parse a float. Return the text itself if it is not a float of 64 bits."""
    value = float(text) if FLOAT.fullmatch(text) else math.inf
    return text if math.isinf(value) else value


def _integer(text: str) -> int | None:
    match = INTEGER.fullmatch(text) or SIGNED.fullmatch(text)
    if not match:
        return None
    groups = match.groupdict()
    base, digits = next((BASES[k], v) for k, v in groups.items() if k in BASES and v is not None)
    if len(digits.lstrip("0")) > MAX_DIGITS + 1:
        return None
    sign = groups.get("sign", digits[0] if digits[0] in "-+" else "")
    value = int(digits.lstrip("+-"), base) * (-1 if sign == "-" else 1)
    return value if -(1 << 63) <= value < (1 << 63 if sign else 1 << 64) else None


def timestamp(text: str) -> Timestamp | None:
    """Parse a time in one of yaml.v3's four formats. Port of parseTimestamp (resolve.go:306)."""
    match = TIMESTAMP.fullmatch(text)
    if not match:
        return None
    parts = match.groupdict()
    number = {k: int(v or 0) for k, v in parts.items() if k not in ("sign", "fraction1", "fraction2")}
    year, month, day = number["year"], number["month"], number["day"]
    clock = "1" if parts["hour1"] is not None else "2"
    hour, minute, second = (number[f"{unit}{clock}"] for unit in ("hour", "minute", "second"))
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if (
        not 1 <= month <= 12
        or not 1 <= day <= DAYS[month - 1] + (leap and month == 2)
        or hour > 23
        or minute > 59
        or second > 59
    ):
        return None
    if number["zone_hour"] > 24 or number["zone_minute"] > 60:
        return None
    fraction = (parts[f"fraction{clock}"] or "")[:9].rstrip("0")
    offset = number["zone_hour"] * 60 + number["zone_minute"]
    zone = f"{parts['sign']}{offset // 60:02d}:{offset % 60:02d}" if offset else "Z"
    fraction = f".{fraction}" if fraction else ""
    return Timestamp(f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}{fraction}{zone}")
