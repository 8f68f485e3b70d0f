"""Support the part of Go's text/template that ``list --format`` needs: text, fields and constants.

As in text/template, ``{{- `` and `` -}}`` trim the white space beside them, ``{{/* … */}}`` is a comment, and a nil
slice is printed as ``[]``. Anything else in a template is an error, which names the unsupported part. This module does
no I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from kitfs.errors import UsageError

ACTION: Final = re.compile(r"\{\{(-(?=\s))?(.*?)((?<=\s)-)?\}\}", re.DOTALL)
COMMENT: Final = re.compile(r"\{\{(-\s)?/\*.*?\*/(\s-)?\}\}", re.DOTALL)
FIELD: Final = re.compile(r"\.([A-Za-z_]\w*)")
NUMBER: Final = re.compile(r"[+-]?\d+")
KEYWORDS: Final = ("if", "range", "with", "template", "block", "define", "end", "else", "break", "continue")
FUNCTIONS: Final = (
    "and", "call", "eq", "ge", "gt", "html", "index", "js", "le", "len", "lt", "ne", "not", "or", "print", "printf",
    "println", "slice", "urlquery",
)  # fmt: skip


class Field(NamedTuple):
    """A field of the output, ``{{.Name}}``."""

    name: str


def parse(text: str, known: Sequence[str]) -> list[str | Field]:
    """Parse a template into strings and fields. Raises UsageError, which names an unsupported part."""
    parts: list[str | Field] = []
    at, trim = 0, False
    while at <= len(text):
        comment, action = COMMENT.search(text, at), ACTION.search(text, at)
        found = comment if comment is not None and (action is None or comment.start() <= action.start()) else action
        literal = text[at : len(text) if found is None else found.start()]
        if trim:
            literal = literal.lstrip()
        if found is not None and found[1]:
            literal = literal.rstrip()
        if "{{" in literal:
            raise UsageError(f"--format: unclosed action {literal[literal.index('{{') :][:40]!r}")
        parts.append(literal)
        if found is None:
            break
        if found is not comment:
            parts.append(_value(found[2].strip(), known))
        trim = bool(found[found.re.groups])
        at = found.end()
    return [part for part in parts if part != ""]


def _value(text: str, known: Sequence[str]) -> str | Field:
    field = FIELD.fullmatch(text)
    if field is not None:
        if field[1] not in known:
            raise UsageError(f"--format: unknown field .{field[1]} (fields: {', '.join('.' + name for name in known)})")
        return Field(field[1])
    if len(text) > 1 and text[0] == text[-1] == "`" and "`" not in text[1:-1]:
        return text[1:-1]
    if NUMBER.fullmatch(text):
        return str(int(text))
    if text in ("true", "false"):
        return text
    try:
        constant = json.loads(text) if text.startswith('"') else None
    except ValueError:
        constant = None
    if isinstance(constant, str):
        return constant
    raise UsageError(f"--format: {_named(text)} of Go's templates is not supported (only fields and constants are)")


def _named(text: str) -> str:
    """Return the name of the unsupported part of an action."""
    first = re.match(r"\w+", text)
    if not text:
        return "an empty action"
    if "|" in text:
        return "the pipeline " + repr(text[:60])
    if ":=" in text or text.startswith("$"):
        return "the variable " + repr(text[:60])
    if first is not None and first[0] in KEYWORDS:
        return f"the action {first[0]!r}"
    if first is not None and first[0] in FUNCTIONS:
        return f"the function {first[0]!r}"
    return repr(text[:60])


def render(parts: Sequence[str | Field], values: Mapping[str, str]) -> str:
    """Fill in a template."""
    return "".join(values[part.name] if isinstance(part, Field) else part for part in parts)
