"""One pattern of a .kitignore: what it matches is what github.com/moby/patternmatcher v0.6.0, and so kit, makes of it.

``filepath.Match`` of Go says which patterns are malformed; then one without wildcards is compared, one whose only
wildcard is a ``**`` at its
beginning or end is compared as a suffix or a prefix, and any other becomes a regular expression (RE2). So ``|``,
``^``, ``{2}`` and
``[[:alpha:]]`` mean in those what they mean in an expression, as they do to kit. The expression is run here by a
machine whose states are the
bits of one integer, so that no pattern takes more than time in proportion to the path. A backslash before a letter or
a digit is refused: it
is an operator of RE2, or an error, and never the character that the one who wrote it thinks of.

Paths and patterns are texts with surrogateescape; a byte that is not UTF-8 is U+FFFD to a regular expression, as in Go.
Patterns that are asked together are one machine, in which a later pattern has the higher bits (``GlobSet``).
Threading: a Glob remembers what it has seen; one thread at a time.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

MAX_ITEMS: Final = 1 << 16  # of one expression with its repetitions written out; what lines of a .kitignore may hold
MAX_REPEAT: Final = 1000  # RE2's
MAX_EDGES: Final = 20_000  # steps that a machine remembers
MAX_MEMORY: Final = 1 << 27  # bits of all states that it remembers, about
DEEP: Final = "(.*/)?"
SPECIAL: Final = re.compile(
    r"[\[\]\\{}|^]"
)  # what can make a pattern malformed, or give it another meaning than that of its stars
TOKEN: Final = re.compile(r"\*\*/?|.", re.DOTALL)
REPEAT: Final = re.compile(r"\{(0|[1-9][0-9]*)(?:(,)(0|[1-9][0-9]*)?)?\}", re.ASCII)
RUNE_MAX: Final = 0x10FFFF
REPLACEMENT: Final = 0xFFFD
NEWLINE: Final = 0x0A

Ranges = tuple[tuple[int, int], ...]
DIGIT: Final[Ranges] = ((0x30, 0x39),)
LOWER: Final[Ranges] = ((0x61, 0x7A),)
UPPER: Final[Ranges] = ((0x41, 0x5A),)
NAMED: Final[dict[str, Ranges]] = {
    "alnum": DIGIT + UPPER + LOWER, "alpha": UPPER + LOWER, "ascii": ((0, 0x7F),), "blank": ((9, 9), (0x20, 0x20)),
    "cntrl": ((0, 0x1F), (0x7F, 0x7F)), "digit": DIGIT, "graph": ((0x21, 0x7E),), "lower": LOWER,
    "print": ((0x20, 0x7E),),
    "punct": ((0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E)), "space": ((9, 13), (0x20, 0x20)), "upper": UPPER,
    "word": (*DIGIT, *UPPER, (0x5F, 0x5F), *LOWER), "xdigit": (*DIGIT, (0x41, 0x46), (0x61, 0x66)),
}  # fmt: skip


class Characters(NamedTuple):
    """Some code points, or all others. The ranges are sorted and apart."""

    ranges: Ranges
    negated: bool = False

    def take(self, rune: int) -> bool:
        at = bisect_right(self.ranges, (rune, RUNE_MAX)) - 1
        return (at >= 0 and rune <= self.ranges[at][1]) != self.negated


def _merged(ranges: list[tuple[int, int]]) -> Ranges:
    """Sorted, and apart."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1]:
            out[-1] = (out[-1][0], max(high, out[-1][1]))
        else:
            out.append((low, high))
    return tuple(out)


NOT_NEWLINE: Final = Characters(((NEWLINE, NEWLINE),), negated=True)


class Glob:
    """A pattern, clean and without ``!``. Raises ValueError, which says why, for one that is malformed.

    ``kind`` is exact, prefix, suffix or expression.
    """

    __slots__ = ("_alternatives", "_globs", "kind", "pattern")

    def __init__(self, pattern: str) -> None:
        self.pattern: Final = pattern
        self._alternatives: tuple[Alternative, ...] | None = None
        self._globs: GlobSet | None = None
        if SPECIAL.search(pattern):
            check(pattern)
            self.kind, expression = _expression(pattern)
            self._alternatives = _Parser(expression).parsed() if self.kind == "expression" else None
        else:
            self.kind = _plain_kind(pattern)

    def __repr__(self) -> str:
        return f"Glob({self.pattern!r}, {self.kind})"

    def alternatives(self) -> tuple[Alternative, ...]:
        """What an expression is made of."""
        return _plain_alternatives(self.pattern) if self._alternatives is None else self._alternatives

    def matches(self, path: str) -> bool:
        """Whether it matches the path or a directory above it. ``path`` is relative, clean and slash separated."""
        if self._globs is None:
            self._globs = GlobSet([self])
        return self._globs.last_match(path) == 0


class GlobSet:
    """Many patterns, asked at once: a path is looked up among those without an expression, and runs through one
    machine for all others.

    So that the time for a path does not grow with the number of patterns, but for the width of the machine's integers.
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
        self._machine = _Machine(expressions) if expressions else None

    def last_match(self, path: str) -> int:
        """The number of the last pattern that matches the path or a directory above it, -1 when none does."""
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
    """Raises ValueError where Go's ``filepath.Match(pattern, ".")`` says ErrBadPattern.

    It looks at a part between two stars only when it gets there: at the first, and at the second when the first is
    one element and takes ".".
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
    """Where the next star outside of brackets is, or the end."""
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
    """For each element of a part without stars: whether it takes a dot."""
    found = []
    at = 0
    while at < len(part):
        c = part[at]
        if c == "[":
            takes, at = _class(part, at + 1)
            found.append(takes)
            continue
        if c == "\\" and at + 1 == len(part):
            raise ValueError("nothing after its last backslash")
        found.append(part[at : at + 2] == "\\." if c == "\\" else c in ".?")
        at += 2 if c == "\\" else 1
    return found


def _class(part: str, at: int) -> tuple[bool, int]:
    """The class whose bracket is before ``at``, as filepath.Match has it: (whether it takes a dot, where it ends)."""
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
    """(exact, prefix, suffix or expression; the regular expression)."""
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


class _Item(NamedTuple):
    """One step of an alternative: ``characters`` once, or any number of times; or DEEP; or the beginning of the
    text.
    """

    kind: str  # "one", "optional", "star", "deep", "begin"
    characters: Characters = Characters(())


class Alternative(NamedTuple):
    """Steps one after the other; ``to_the_end``: the text must end behind the last one."""

    items: Sequence[_Item]
    to_the_end: bool


BEGIN: Final = _Item("begin")
NOT_SLASH: Final = Characters(((0x2F, 0x2F),), negated=True)
STEPS: Final = {"**": _Item("deep"), "**/": _Item("deep"), "*": _Item("star", NOT_SLASH), "?": _Item("one", NOT_SLASH)}


def _plain_kind(pattern: str) -> str:
    """The kind of a pattern in which nothing but stars and question marks is special, as ``_expression`` finds it."""
    if "*" not in pattern and "?" not in pattern:
        return "exact"
    rest = pattern[2 + pattern.startswith("**/") :] if pattern.startswith("**") else pattern
    if rest is not pattern and "*" not in rest and "?" not in rest:
        return "suffix"
    is_prefix = pattern.endswith("**") and "*" not in pattern[:-2] and "?" not in pattern
    return "prefix" if is_prefix else "expression"


def _plain_alternatives(pattern: str) -> tuple[Alternative, ...]:
    """The one alternative of such a pattern that is an expression."""
    tokens = TOKEN.findall(pattern)
    items = [BEGIN]
    for token in tokens:
        step = STEPS.get(token)
        items.append(_literal(REPLACEMENT if "\udc80" <= token <= "\udcff" else ord(token)) if step is None else step)
    if tokens[-1].startswith("**"):
        items[-1] = _Item("star", NOT_NEWLINE)
    return (Alternative(items, to_the_end=True),)


@lru_cache(4096)
def _literal(rune: int) -> _Item:
    return _Item("one", Characters(((rune, rune),)))


class _Parser:
    """Reads what ``_expression`` writes: RE2 without groups but DEEP."""

    def __init__(self, text: str) -> None:
        self._text = "".join(chr(REPLACEMENT) if "\udc80" <= c <= "\udcff" else c for c in text)
        self._at = 0
        self.alternatives: list[list[_Item]] = [[]]
        self.to_the_end = False  # whether the last alternative must end where the text ends
        self._count = 0
        repeated = False  # whether what was read last was a repetition
        while self._at < len(self._text):
            repeated = self._next(repeated=repeated)

    def parsed(self) -> tuple[Alternative, ...]:
        """The alternatives."""
        last = len(self.alternatives) - 1
        return tuple(
            Alternative(items, self.to_the_end and number == last) for number, items in enumerate(self.alternatives)
        )

    def _next(self, *, repeated: bool) -> bool:
        """Read one step; tells whether it was a repetition."""
        items = self.alternatives[-1]
        text, at = self._text, self._at
        c = text[at]
        self._at += 1
        if text.startswith(DEEP, at):
            self._at = at + len(DEEP)
            self._add(_Item("deep"), 1)
            return True
        if c == ".":
            self._at += 1
            self._add(_Item("star", NOT_NEWLINE), 1)
            return True
        if c == "[":
            item = _Item("one", self._class())
            if text.startswith("*", self._at):
                self._at += 1
                self._add(_Item("star", item.characters), 1)
                return True
            self._add(item, 1)
        elif c == "^":
            self._add(_Item("begin"), 1)
        elif c == "$":
            self.to_the_end = True
        elif c == "|":
            self.alternatives.append([])
        elif c == "{" and (found := REPEAT.match(text, at)):
            self._at = found.end()
            self._repeat(items, found, repeated=repeated)
            return True
        else:
            rune = self._escaped() if c == "\\" else ord(c)
            self._add(_literal(rune), 1)
        return False

    def _add(self, item: _Item, times: int) -> None:
        self._count += times
        if self._count > MAX_ITEMS:
            raise ValueError("too long")
        self.alternatives[-1] += [item] * times

    def _repeat(self, items: list[_Item], found: re.Match[str], *, repeated: bool) -> None:
        """The step before is wanted a number of times."""
        if repeated or not items:
            raise ValueError(f"nothing before {found[0]} that can be repeated")
        if max(len(found[1]), len(found[3] or "")) > 4:
            raise ValueError(f"more than {MAX_REPEAT} repetitions")
        low = int(found[1])
        high = low if not found[2] else int(found[3]) if found[3] else None
        if low > MAX_REPEAT or (high is not None and not low <= high <= MAX_REPEAT):
            raise ValueError(f"{found[0]} is not a number of repetitions up to {MAX_REPEAT}")
        item = items.pop()
        self._count -= 1
        if item.kind == "begin":
            self._add(item, min(low, 1))
            return
        self._add(item, low)
        if high is None:
            self._add(_Item("star", item.characters), 1)
        else:
            self._add(_Item("optional", item.characters), high - low)

    def _escaped(self) -> int:
        """The character after a backslash."""
        c = self._text[self._at]
        self._at += 1
        if c.isalnum() or ord(c) >= 0x80:
            raise ValueError(f"a backslash before {c!r}")
        return ord(c)

    def _class(self) -> Characters:
        """A class, its bracket read already."""
        text = self._text
        negated = text.startswith("^", self._at)
        self._at += negated
        ranges: list[tuple[int, int]] = []
        first = True
        while first or not text.startswith("]", self._at):
            first = False
            end = text.find(":]", self._at + 2) if text.startswith("[:", self._at) else -1
            if end >= 0:
                ranges += self._named(text[self._at + 2 : end])
                self._at = end + 2
                continue
            low = high = self._class_rune()
            if text.startswith("-", self._at) and self._at + 1 < len(text) and text[self._at + 1] != "]":
                self._at += 1
                high = self._class_rune()
                if high < low:
                    raise ValueError(f"brackets with a range from {chr(low)!r} down to {chr(high)!r}")
            ranges.append((low, high))
        self._at += 1
        return Characters(_merged(ranges), negated)

    def _class_rune(self) -> int:
        if self._at >= len(self._text):
            raise ValueError("brackets that are not closed")
        c = self._text[self._at]
        self._at += 1
        return self._escaped() if c == "\\" else ord(c)

    def _named(self, name: str) -> Ranges:
        ranges = NAMED.get(name.removeprefix("^"))
        if ranges is None:
            raise ValueError(f"[:{name}:] is no class")
        if not name.startswith("^"):
            return ranges
        edges = [-1, *(edge for pair in ranges for edge in pair), RUNE_MAX + 1]
        return tuple((low + 1, high - 1) for low, high in zip(edges[::2], edges[1::2], strict=True) if low + 1 < high)


class _State:
    """Where a machine is: bit k of ``main`` is "what is before step k has matched"; of ``deep``, "in the middle of
    step k, a DEEP".

    ``found`` is the last pattern that matches whatever comes, ``ended`` the last one that matches if the text, or a
    name of it, ends here.
    """

    __slots__ = ("after", "deep", "ended", "found", "main")

    def __init__(self, main: int, deep: int, found: int, ended: int) -> None:
        self.main = main
        self.deep = deep
        self.found = found
        self.ended = ended
        self.after: dict[str, _State] = {}


def _bits(places: Iterable[int], size: int) -> int:
    """The integer with a bit at each place; made at once, since one bit after the other would copy it each time."""
    found = bytearray(size // 8 + 1)
    for place in places:
        found[place >> 3] |= 1 << (place & 7)
    return int.from_bytes(found, "little")


class _Machine:
    """The bit-parallel simulation of expressions (Baeza-Yates and Gonnet's shift-and; stars by carries, as in Parabix).

    An alternative is a run of bits with one more for its end, so that no carry leaves it. The bits of later patterns
    are higher.
    """

    def __init__(self, patterns: Sequence[tuple[int, Sequence[Alternative]]]) -> None:
        size = sum(len(a.items) + 1 for _, alternatives in patterns for a in alternatives)
        steps: dict[int, tuple[_Item, list[int]]] = {}  # by identity: most steps are one of a few objects
        starts: list[int] = []
        restarts: list[int] = []
        ends: dict[bool, list[int]] = {True: [], False: []}
        self._ends: list[int] = []  # the last place of each pattern,
        self._numbers: list[int] = []  # and its number
        place = 0
        for number, alternatives in patterns:
            for items, to_the_end in alternatives:
                starts.append(place)
                if not items or items[0].kind != "begin":
                    restarts.append(place)
                for item in items:
                    found = steps.get(id(item))
                    if found is None:
                        found = steps[id(item)] = (item, [])
                    found[1].append(place)
                    place += 1
                ends[to_the_end].append(place)
                place += 1
            self._ends.append(place - 1)
            self._numbers.append(number)
        self._last, self._done = _bits(ends[True], size), _bits(ends[False], size)
        self._one = self._star = self._skip = self._deep = begin = 0
        self._literals: dict[int, int] = {}  # the steps that take one code point
        self._classes: dict[Characters, int] = {}  # and those that take several
        for item, places in steps.values():
            bits = _bits(places, size)
            self._one |= bits if item.kind in ("one", "optional") else 0
            self._star |= bits if item.kind == "star" else 0
            self._deep |= bits if item.kind == "deep" else 0
            self._skip |= bits if item.kind in ("optional", "star", "deep") else 0
            begin |= bits if item.kind == "begin" else 0
            if item.kind in ("one", "optional", "star"):
                self._takes(item.characters, bits)
        self._masks: dict[str, int] = {}
        self._restart = self._close(_bits(restarts, size), self._skip)
        self._max_edges = max(16, min(MAX_EDGES, MAX_MEMORY // (size + 1)))
        self._states: dict[tuple[int, int], _State] = {}
        self._edges = 0
        begun = self._close(_bits(starts, size), self._skip | begin)
        self._first = self._state(begun, begun & self._deep)

    def _takes(self, characters: Characters, bits: int) -> None:
        """Note the steps that take some characters."""
        ranges, negated = characters
        if not negated and len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
            self._literals[ranges[0][0]] = self._literals.get(ranges[0][0], 0) | bits
        else:
            self._classes[characters] = self._classes.get(characters, 0) | bits

    @staticmethod
    def _close(main: int, skip: int) -> int:
        """With every step that can be reached by leaving out steps of ``skip``: a carry runs through each row of
        them.
        """
        return (((main & skip) + skip) ^ skip) | main

    def _state(self, main: int, deep: int) -> _State:
        state = self._states.get((main, deep))
        if state is None:
            found, ended = self._number(main & self._done), self._number(main & (self._last | self._done))
            state = self._states[main, deep] = _State(main, deep, found, ended)
        return state

    def _number(self, ends: int) -> int:
        """The pattern of the highest of these places, -1 of none."""
        return self._numbers[bisect_left(self._ends, ends.bit_length() - 1)] if ends else -1

    def last_match(self, path: str) -> int:
        """The number of the last pattern that matches the path, or what is before a slash of it; -1 when none does."""
        state = self._first
        last = -1
        for c in path:
            last = max(last, state.ended if c == "/" else state.found)
            after = state.after.get(c)
            state = self._step(state, c) if after is None else after
            if not (state.main or state.deep):
                return last
        return max(last, state.ended)

    def _step(self, state: _State, c: str) -> _State:
        mask = self._mask(c)
        took = state.main & mask
        main = ((took & self._one) << 1) | (took & self._star) | self._restart
        if c == "/":
            main |= state.deep << 1
        main = self._close(main, self._skip)
        deep = (0 if c == "\n" else state.deep) | (main & self._deep)
        if self._edges >= self._max_edges:
            self._states.clear()
            self._first.after.clear()
            self._edges = 0
        after = state.after[c] = self._state(main, deep)
        self._edges += 1
        return after

    def _mask(self, c: str) -> int:
        """The steps that take a character."""
        mask = self._masks.get(c)
        if mask is None:
            rune = REPLACEMENT if "\udc80" <= c <= "\udcff" else ord(c)
            mask = self._literals.get(rune, 0)
            for characters, bits in self._classes.items():
                if characters.take(rune):
                    mask |= bits
            if len(self._masks) >= self._max_edges:
                self._masks.clear()
            self._masks[c] = mask
        return mask
