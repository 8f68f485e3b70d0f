"""Match the patterns of a .kitignore as kit does, with github.com/moby/patternmatcher v0.6.0.

Go's ``filepath.Match`` decides which patterns are malformed. A pattern without wildcards is compared with the path. A
pattern whose only wildcard is a ``**`` at its beginning or end is compared as a suffix or prefix. Any other pattern
becomes a regular expression of RE2. As in kit, ``|``, ``^``, ``{2}`` and ``[[:alpha:]]`` in such a pattern mean what
they mean in RE2. A backslash before a letter or digit is an error, because in RE2 it never means the character itself.

A ``Machine`` runs the expressions. Its states are the bits of one integer, so the time of a match is proportional to
the length of the path, whatever the pattern is. All patterns of a ``GlobSet`` have one machine, in which later patterns
have the higher bits. google-re2 returns the same results, but cannot compile thousands of patterns into one set.

Paths and patterns are decoded with surrogateescape. A regular expression sees a byte that is not UTF-8 as U+FFFD, as in
Go. Threading: a Glob caches states, so only one thread at a time may use it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from kitfs.gocompat.expressions import (
    BEGIN,
    DEEP,
    NOT_NEWLINE,
    NOT_SLASH,
    REPLACEMENT,
    Alternative,
    Item,
    Machine,
    Parser,
    literal,
)

# characters that can make a pattern malformed, or that mean something in a regular expression
SPECIAL: Final = re.compile(r"[\[\]\\{}|^]")
TOKEN: Final = re.compile(r"\*\*/?|.", re.DOTALL)


class Glob:
    """A normalized pattern without ``!``. ``kind`` is exact, prefix, suffix or expression.

    Raises ValueError, with the reason, for a malformed pattern.
    """

    __slots__ = ("_alternatives", "_globs", "kind", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern: Final = pattern
        self._alternatives: tuple[Alternative, ...] | None = None
        self._globs: GlobSet | None = None
        if SPECIAL.search(pattern):
            check(pattern)
            self.kind, expression = _expression(pattern)
            self._alternatives = Parser(expression).parsed() if self.kind == "expression" else None
        else:
            self.kind = _plain_kind(pattern)

    def __repr__(self) -> str:
        return f"Glob({self.pattern!r}, {self.kind})"

    def alternatives(self) -> tuple[Alternative, ...]:
        """Return the alternatives of a pattern of the kind ``expression``."""
        return _plain_alternatives(self.pattern) if self._alternatives is None else self._alternatives

    def matches(self, path: str) -> bool:
        """Return whether the pattern matches the path or a directory above it.

        ``path`` is relative, clean, and separated by slashes.
        """
        if self._globs is None:
            self._globs = GlobSet([self])
        return self._globs.last_match(path) == 0


class GlobSet:
    """Many patterns that are matched together.

    A pattern that is not an expression is looked up in a table. One machine matches all expressions. More patterns make
    the integers of the machine longer, but do not add steps to a match.
    """

    def __init__(self, globs: Iterable[Glob]) -> None:
        self._exact: dict[str, int] = {}
        self._prefixes: dict[str, int] = {}
        self._suffixes: dict[str, int] = {}
        expressions: list[tuple[int, Sequence[Alternative]]] = []
        for number, glob in enumerate(globs):
            if glob.kind == "exact":
                self._exact[glob.pattern] = number
            elif glob.kind == "prefix":
                self._prefixes[glob.pattern[:-2]] = number
            elif glob.kind == "suffix":
                self._suffixes[glob.pattern[2:] + "/"] = number
            else:
                expressions.append((number, glob.alternatives()))
        self._prefix_lengths = sorted({len(text) for text in self._prefixes})
        self._suffix_lengths = sorted({len(text) for text in self._suffixes})
        self._machine = Machine(expressions) if expressions else None

    def last_match(self, path: str) -> int:
        """Return the number of the last pattern that matches the path or a directory above it, or -1 for none."""
        last = -1 if self._machine is None else self._machine.last_match(path)
        for length in self._prefix_lengths:
            if length > len(path):
                break
            last = max(last, self._prefixes.get(path[:length], -1))
        ended = f"/{path}/"
        at = ended.find("/", 1)
        while at > 0:
            last = max(last, self._exact.get(ended[1:at], -1))
            for length in self._suffix_lengths:
                if length > at + 1:
                    break
                last = max(last, self._suffixes.get(ended[at + 1 - length : at + 1], -1))
            at = ended.find("/", at + 1)
        return last


def check(pattern: str) -> None:
    """Raise ValueError if Go's ``filepath.Match(pattern, ".")`` returns ErrBadPattern.

    Stars split a pattern into parts. Go checks the first part. Go checks the second part only if the first part is a
    single element that matches ".".
    """
    at = 0
    for _ in range(2):
        while pattern.startswith("*", at):
            at += 1
        end = _next_star(pattern, at)
        if _elements(pattern[at:end]) != [True]:
            return
        at = end


def _next_star(pattern: str, at: int) -> int:
    """Return the position of the next star outside of brackets, or the length of the pattern if there is none."""
    bracket = False
    while at < len(pattern):
        c = pattern[at]
        if c == "*" and not bracket:
            return at
        if c in "[]":
            bracket = c == "["
        at += 2 if c == "\\" else 1
    return len(pattern)


def _elements(part: str) -> list[bool]:
    """Return a list with an item for each element of a part without stars: whether the element matches a dot."""
    found = []
    at = 0
    while at < len(part):
        c = part[at]
        if c == "[":
            takes, at = _class(part, at + 1)
            found.append(takes)
            continue
        if c == "\\" and at + 1 == len(part):
            raise ValueError("the last backslash has no character after it")
        found.append(part[at : at + 2] == "\\." if c == "\\" else c in ".?")
        at += 2 if c == "\\" else 1
    return found


def _class(part: str, at: int) -> tuple[bool, int]:
    """Read a character class. ``at`` is the position after its opening bracket.

    Returns (whether the class matches a dot, the position after the class).
    """
    negated = part.startswith("^", at)
    at += negated
    takes = False
    first = True
    while first or not part.startswith("]", at):
        low, at = _class_character(part, at)
        high = low
        if part[at] == "-":
            high, at = _class_character(part, at + 1)
        takes |= low <= "." <= high
        first = False
    return takes != negated, at + 1


def _class_character(part: str, at: int) -> tuple[str, int]:
    if part[at : at + 1] in ("", "-", "]"):
        raise ValueError("brackets that are empty, not closed, or have a range without an end")
    at += part[at] == "\\"
    if at + 1 >= len(part):
        raise ValueError("brackets that are not closed")
    if "\udc80" <= part[at] <= "\udcff":
        raise ValueError("brackets with bytes that are not UTF-8")
    return part[at], at + 1


def _expression(pattern: str) -> tuple[str, str]:
    """Return (kind, regular expression) of a pattern, as moby's patternmatcher compiles it."""
    kind = "exact"
    out = ["^"]
    at = 0
    while at < len(pattern):
        c = pattern[at]
        at += 1
        if c == "*" and pattern.startswith("*", at):
            first = at == 1
            at += 1 + pattern.startswith("/", at + 1)
            if at < len(pattern):
                out.append(DEEP)
                kind = "expression"
            elif kind == "exact":
                kind = "prefix"
            else:
                out.append(".*")
                kind = "expression"
            if first:
                kind = "suffix"
            continue
        if c == "*":
            out.append("[^/]*")
        elif c == "?":
            out.append("[^/]")
        elif c == "\\" and at < len(pattern):
            out.append(c + pattern[at])
            at += 1
        elif c in ".+()$":
            out.append("\\" + c)
            continue
        else:
            out.append(c)
            if c not in "[]":
                continue
        kind = "expression"
    return kind, "".join(out) + "$"


STEPS: Final = {"**": Item("deep"), "**/": Item("deep"), "*": Item("star", NOT_SLASH), "?": Item("one", NOT_SLASH)}


def _plain_kind(pattern: str) -> str:
    """Return the same kind as ``_expression``, for a pattern without special characters other than ``*`` and ``?``."""
    if "*" not in pattern and "?" not in pattern:
        return "exact"
    rest = pattern[2 + pattern.startswith("**/") :] if pattern.startswith("**") else pattern
    if rest is not pattern and "*" not in rest and "?" not in rest:
        return "suffix"
    is_prefix = pattern.endswith("**") and "*" not in pattern[:-2] and "?" not in pattern
    return "prefix" if is_prefix else "expression"


def _plain_alternatives(pattern: str) -> tuple[Alternative, ...]:
    """Return the only alternative of an expression without special characters other than ``*`` and ``?``."""
    tokens = TOKEN.findall(pattern)
    items = [BEGIN]
    for token in tokens:
        step = STEPS.get(token)
        items.append(literal(REPLACEMENT if "\udc80" <= token <= "\udcff" else ord(token)) if step is None else step)
    if tokens[-1].startswith("**"):
        items[-1] = Item("star", NOT_NEWLINE)
    return (Alternative(items, to_the_end=True),)
