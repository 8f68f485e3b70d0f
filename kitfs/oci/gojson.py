"""JSON as Go's encoding/json writes it: compact, ``<``, ``>`` and ``&`` escaped, floats in Go's form. Pure."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

ESCAPES: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
ESCAPED: Final = re.compile("[<>&\u2028\u2029]")
SURROGATE: Final = re.compile("[\ud800-\udfff]")


def dumps(value: Any) -> bytes:
    """Compact JSON. dicts keep their order (Go's structs do; give maps sorted). Raises ValueError for NaN and infinity."""
    return "".join(_parts(value)).encode()


def _parts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return ["{", *_joined([string(str(k)) + ":" + "".join(_parts(v)) for k, v in value.items()]), "}"]
    if isinstance(value, (list, tuple)):
        return ["[", *_joined(["".join(_parts(v)) for v in value]), "]"]
    if isinstance(value, str):
        return [string(value)]
    if isinstance(value, float):
        return [number(value)]
    return [json.dumps(value)]


def _joined(parts: list[str]) -> list[str]:
    return [",".join(parts)]


def string(text: str) -> str:
    """A JSON string with Go's escapes; what is not UTF-8 becomes U+FFFD."""
    plain = json.dumps(SURROGATE.sub("\ufffd", text), ensure_ascii=False)
    return ESCAPED.sub(lambda m: ESCAPES[m[0]], plain)


def number(value: float) -> str:
    """A float64 as encoding/json has it: the shortest digits, with an exponent below 1e-6 and from 1e21 on."""
    if not math.isfinite(value):
        raise ValueError(f"{value} cannot be JSON")
    digits, exponent = shortest(value)
    sign = "-" if math.copysign(1, value) < 0 else ""
    if value == 0:
        return sign + "0"
    if -6 <= exponent < 21:
        return sign + plain(digits, exponent)
    mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
    return f"{sign}{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent)}"


def shortest(value: float) -> tuple[str, int]:
    """(digits without trailing zeros, decimal exponent of the first one) of the shortest text that reads back as ``value``."""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    first = len(whole) - 1 if whole.strip("0") else -1 - (len(fraction) - len(fraction.lstrip("0")))
    return digits.rstrip("0") or "0", first + int(exponent or 0)


def plain(digits: str, exponent: int) -> str:
    """Digits in positional notation."""
    if exponent < 0:
        return "0." + "0" * (-exponent - 1) + digits
    if len(digits) <= exponent + 1:
        return digits + "0" * (exponent + 1 - len(digits))
    return digits[: exponent + 1] + "." + digits[exponent + 1 :]
