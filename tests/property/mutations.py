"""Change documents and bytes so that parsers read far into them.

The changes of a JSON document keep its syntax, except where a key occurs twice or a value is nested deeply. All choices
come from a ``random.Random``. Hypothesis can pass a Random whose choices it controls (``strategies.randoms``).
"""

from __future__ import annotations

import json
from random import Random
from typing import Any, Final

SHA: Final = "sha256:" + "ab" * 32
INDEX: Final = "application/vnd.oci.image.index.v1+json"
NASTY: Final[list[Any]] = [
    None, True, False, 0, -1, 1 << 63, 1 << 70, 10**400, 1e308, 0.5, "", "a", "\0", "\ud800", "\udcff", "\u202e", "..",
    "../x", "/", "/x", "a/../..",
    "sha256:", SHA, "sha512:" + "0" * 128, "x" * 5000, "\n", "s3://b/k", "localhost/k:v1", "a:b@c", [], {}, [[]],
    {"": ""}, [None],
    "2024-01-01T00:00:00Z", "9999-99-99T99:99:99Z", "application/vnd.kitops.modelkit.model.v1.tar", INDEX, "{}",
    '{"size":1e999}', "[" * 2000, "YQ==", "%%%",
]  # fmt: skip
NESTED: Final = ("[" * 90 + "]" * 90, "[" * 5000 + "]" * 5000, '{"a":' * 5000 + "1" + "}" * 5000)
KINDS: Final = ("set", "delete", "twice", "case", "nest", "into", "copy", "rename")
NUMBERS: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1)


class Pairs(list[tuple[str, Any]]):
    """A JSON object as (key, value) pairs, in which a key can occur twice."""


def _pairs(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs((k, _pairs(v)) for k, v in value.items())
    return [_pairs(v) for v in value] if isinstance(value, list) else value


def _places(value: Any) -> list[tuple[Any, int]]:
    """Return (container, key or position) of every value in a document."""
    found: list[tuple[Any, int]] = []
    if isinstance(value, list):
        for i, item in enumerate(value):
            found.append((value, i))
            found += _places(item[1] if isinstance(value, Pairs) else item)
    return found


def _text_of(value: Any) -> str:
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(k)}:{_text_of(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_text_of(v) for v in value) + "]"
    return json.dumps(value)


def document(r: Random, data: bytes) -> bytes:
    """Return a JSON document with one to four values, keys or parts changed, in the same form."""
    whole = [_pairs(json.loads(data))]
    for _ in range(r.randint(1, 4)):
        _change(r, whole)
    text = _text_of(whole[0])
    for number, nested in enumerate(NESTED):
        text = text.replace(f'"@nested{number}@"', nested)
    return text.encode("utf-8", "surrogatepass")


def _change(r: Random, whole: list[Any]) -> None:
    found = _places(whole)
    what, nasty = r.choice(KINDS), r.choice(NASTY)
    container, at = r.choice(found)
    key, old = container[at] if isinstance(container, Pairs) else (None, container[at])
    new: Any = _pairs(nasty)
    if what == "delete" and len(found) > 1 and container is not whole:
        del container[at]
        return
    if what == "nest":
        new = f"@nested{r.randrange(len(NESTED))}@"
    elif what == "into":
        new = [old]
    elif what == "copy":
        other, place = r.choice(found)
        new = _pairs(json.loads(_text_of(other[place][1] if isinstance(other, Pairs) else other[place])))
    if key is None:
        container[at] = new
    elif what == "twice":
        container.insert(at, (key, new))
    elif what == "case":
        container.insert(at, (key.swapcase(), old))
    elif what == "rename":
        container[at] = (str(nasty), old)
    else:
        container[at] = (key, new)


def flipped(r: Random, data: bytes, most: int = 4) -> bytes:
    """Return bytes in which a few numbers, slices or lengths are changed."""
    changed = bytearray(data)
    for _ in range(r.randint(1, most)):
        at = r.randrange(len(changed)) if changed else 0
        kind = r.randrange(6)
        if kind == 0:
            changed[at : at + 1] = bytes([r.randrange(256)])
        elif kind == 1:
            width = r.choice((1, 2, 4, 8))
            number = r.choice(NUMBERS) & ((1 << 8 * width) - 1)
            changed[at : at + width] = number.to_bytes(width, r.choice(("little", "big")))
        elif kind == 2:
            del changed[at : at + r.randint(1, 64)]
        elif kind == 3:
            piece = changed[at : at + r.randint(1, 64)]
            changed[at:at] = piece
        elif kind == 4:
            del changed[at:]
        else:
            changed[at:at] = bytes([r.randrange(256)]) * r.randint(1, 16)
    return bytes(changed)


def text(r: Random, alphabet: str, most: int) -> str:
    """Return a text of at most ``most`` characters."""
    return "".join(r.choice(alphabet) for _ in range(r.randint(0, most)))
