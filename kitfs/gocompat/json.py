"""Read and write JSON as Go's encoding/json does.

Bytes that are not UTF-8 become U+FFFD. Output is compact, with ``<``, ``>`` and ``&`` escaped and floats in Go's form.
The depth and the number of values of the input are limited, so code that walks over the result needs no limits. This
module does no I/O.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any, Final

ESCAPES: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
ESCAPED: Final = re.compile("[<>&\u2028\u2029\ud800-\udfff]")
SURROGATE: Final = re.compile("[\ud800-\udfff]")
MAX_DEPTH: Final = 100  # levels of nesting, which fit on Python's stack with room to spare
MAX_SHOWN: Final = 100  # characters of a key in a message
MAX_VALUES: Final = 500_000  # values of a text; a manifest of 4 MiB and a Kitfile of ten thousand entries have fewer


class Ambiguous(ValueError):  # noqa: N818 - the name describes the JSON
    """A JSON text that two parsers can read in different ways (CVE-2021-41190 and similar attacks)."""


def loads(data: bytes, *, floats: bool = False) -> Any:
    """Parse JSON. With ``floats``, every number becomes a float, as in Go's ``any``.

    Raises Ambiguous if an object has a key twice. Raises ValueError for invalid JSON (NaN is invalid, too), for a
    number that float64 cannot represent, and for JSON that exceeds MAX_DEPTH or MAX_VALUES.
    """
    number = float if floats else None
    try:
        value = json.loads(
            data.decode("utf-8", "replace"), parse_int=number, parse_constant=_no_constant, object_pairs_hook=_unique
        )
    except RecursionError:
        raise ValueError("nested too deeply")
    return _checked(value, 1, [0])


def own_json(data: bytes) -> Any:
    """Parse JSON that kitfs or the user wrote. Raises ValueError if it is invalid or nested too deeply."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply")


def check_keys(keys: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise Ambiguous if a key differs from a known key only in case: Go's encoding/json reads both as one key."""
    folded = {name.casefold(): name for name in known}
    for key in keys:
        meant = folded.get(key.casefold())
        if meant is not None and key != meant:
            raise Ambiguous(
                f"{where}: the key {key[:MAX_SHOWN]!r} differs from {meant!r} in case only, "
                "and some tools read both as one key"
            )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Ambiguous(
            f"an object has the key {twice[:MAX_SHOWN]!r} twice, and tools differ in which of the two they read"
        )
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _checked(value: Any, depth: int, seen: list[int]) -> Any:
    """Return a parsed value without surrogates. Raises ValueError if the value exceeds a limit.

    ``seen[0]`` is the number of values so far.
    """
    seen[0] += 1
    if seen[0] > MAX_VALUES:
        raise ValueError(f"more than {MAX_VALUES} values")
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        return SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {SURROGATE.sub("\ufffd", k): _checked(v, depth + 1, seen) for k, v in value.items()}
    if isinstance(value, list):
        return [_checked(v, depth + 1, seen) for v in value]
    if isinstance(value, float) and math.isinf(value):
        raise ValueError("a number that is too large")
    return value


def dumps(value: Any) -> bytes:
    """Write compact JSON. The keys of a dict keep their order, like the fields of Go's structs.

    If a dict is a map in Go, the caller must sort it. Raises ValueError for NaN and infinity.
    """
    return _text(value).encode()


def indented(value: Any, margin: str = "") -> str:
    """Write JSON as Go's MarshalIndent does, indented by two blanks. Raises ValueError for NaN and infinity."""
    inner = margin + "  "
    if isinstance(value, dict) and value:
        fields = [f"{inner}{string(k)}: {indented(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(fields) + f"\n{margin}}}"
    if isinstance(value, (list, tuple)) and value:
        return "[\n" + ",\n".join([inner + indented(v, inner) for v in value]) + f"\n{margin}]"
    return _text(value)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join([f"{string(k)}:{_text(v)}" for k, v in value.items()]) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([_text(v) for v in value]) + "]"
    if isinstance(value, str):
        return string(value)
    if isinstance(value, float):
        return number(value)
    return json.dumps(value)


def string(text: str) -> str:
    """Write a JSON string with Go's escapes. A lone surrogate, which stands for invalid UTF-8, becomes ``\\ufffd``."""
    return ESCAPED.sub(lambda m: ESCAPES.get(m[0], "\\ufffd"), json.dumps(text, ensure_ascii=False))


def number(value: float) -> str:
    """Write a float64 as encoding/json does: the shortest digits, and an exponent below 1e-6 and from 1e21 on."""
    if not math.isfinite(value):
        raise ValueError(f"JSON cannot represent {value}")
    digits, exponent = shortest(value)
    sign = "-" if math.copysign(1, value) < 0 else ""
    if value == 0:
        return sign + "0"
    if -6 <= exponent < 21:
        return sign + plain(digits, exponent)
    mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
    return f"{sign}{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent)}"


def shortest(value: float) -> tuple[str, int]:
    """Return the shortest digits that are parsed as ``value``, and the decimal exponent of the first digit.

    The digits have no trailing zeros.
    """
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    first = len(whole) - 1 if whole.strip("0") else -1 - (len(fraction) - len(fraction.lstrip("0")))
    return digits.rstrip("0") or "0", first + int(exponent or 0)


def plain(digits: str, exponent: int) -> str:
    """Write digits in positional notation."""
    if exponent < 0:
        return "0." + "0" * (-exponent - 1) + digits
    if len(digits) <= exponent + 1:
        return digits + "0" * (exponent + 1 - len(digits))
    return digits[: exponent + 1] + "." + digits[exponent + 1 :]
