"""Parse the regular expressions of patterns, and match a path against many of them at once.

The parser accepts those parts of RE2 that the module ``patterns`` writes. A ``Machine`` simulates all expressions
together. Its states are the bits of an integer, so the time of a match is proportional to the length of the path.
Threading: a machine caches states, so only one thread at a time may use it.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

MAX_ITEMS: Final = 1 << 16  # items of one expression, with its repetitions expanded
MAX_REPEAT: Final = 1000  # the limit of RE2
MAX_EDGES: Final = 20_000  # transitions that a machine caches
MAX_MEMORY: Final = 1 << 27  # bits of all cached states, approximately
DEEP: Final = "(.*/)?"
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
    """A set of code points. If ``negated`` is True, it contains all code points outside the ranges.

    The ranges are sorted and do not overlap.
    """

    ranges: Ranges
    negated: bool = False

    def has(self, rune: int) -> bool:
        at = bisect_right(self.ranges, (rune, RUNE_MAX)) - 1
        return (at >= 0 and rune <= self.ranges[at][1]) != self.negated


def _merged(ranges: list[tuple[int, int]]) -> Ranges:
    """Sort ranges, and merge those that overlap."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1]:
            out[-1] = (out[-1][0], max(high, out[-1][1]))
        else:
            out.append((low, high))
    return tuple(out)


NOT_NEWLINE: Final = Characters(((NEWLINE, NEWLINE),), negated=True)


class Item(NamedTuple):
    """A step of an alternative.

    ``kind`` is what the step matches: a character of ``characters`` once ("one"), at most once ("optional") or any
    number of times ("star"), the group DEEP ("deep"), or the beginning of the path ("begin").
    """

    kind: str  # "one", "optional", "star", "deep", "begin"
    characters: Characters = Characters(())


class Alternative(NamedTuple):
    """A sequence of steps. If ``to_the_end`` is True, the path must end after the last step."""

    items: Sequence[Item]
    to_the_end: bool


BEGIN: Final = Item("begin")
NOT_SLASH: Final = Characters(((0x2F, 0x2F),), negated=True)


@lru_cache(4096)
def literal(rune: int) -> Item:
    return Item("one", Characters(((rune, rune),)))


class Parser:
    """A parser of the expressions that ``patterns`` writes: RE2 without groups other than DEEP."""

    def __init__(self, text: str) -> None:
        self._text = "".join(chr(REPLACEMENT) if "\udc80" <= c <= "\udcff" else c for c in text)
        self._at = 0
        self.alternatives: list[list[Item]] = [[]]
        self.to_the_end = False  # whether the text must end after the last alternative
        self._count = 0
        repeated = False  # whether the last step was a repetition
        while self._at < len(self._text):
            repeated = self._next(repeated=repeated)

    def parsed(self) -> tuple[Alternative, ...]:
        last = len(self.alternatives) - 1
        return tuple(
            Alternative(items, self.to_the_end and number == last) for number, items in enumerate(self.alternatives)
        )

    def _next(self, *, repeated: bool) -> bool:
        """Read one step, and return whether it was a repetition."""
        items = self.alternatives[-1]
        text, at = self._text, self._at
        c = text[at]
        self._at += 1
        if text.startswith(DEEP, at):
            self._at = at + len(DEEP)
            self._add(Item("deep"), 1)
            return True
        if c == ".":
            self._at += 1
            self._add(Item("star", NOT_NEWLINE), 1)
            return True
        if c == "[":
            item = Item("one", self._class())
            if text.startswith("*", self._at):
                self._at += 1
                self._add(Item("star", item.characters), 1)
                return True
            self._add(item, 1)
        elif c == "^":
            self._add(Item("begin"), 1)
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
            self._add(literal(rune), 1)
        return False

    def _add(self, item: Item, times: int) -> None:
        self._count += times
        if self._count > MAX_ITEMS:
            raise ValueError("too long")
        self.alternatives[-1] += [item] * times

    def _repeat(self, items: list[Item], found: re.Match[str], *, repeated: bool) -> None:
        """Repeat the previous step. ``found`` is the match of the repetition operator."""
        if repeated or not items:
            raise ValueError(f"{found[0]} has nothing before it that can be repeated")
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
            self._add(Item("star", item.characters), 1)
        else:
            self._add(Item("optional", item.characters), high - low)

    def _escaped(self) -> int:
        """Read the character after a backslash."""
        c = self._text[self._at]
        self._at += 1
        if c.isalnum() or ord(c) >= 0x80:
            raise ValueError(f"a backslash before {c!r}")
        return ord(c)

    def _class(self) -> Characters:
        """Read a character class. Its opening bracket has already been read."""
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
            raise ValueError(f"[:{name}:] is not a class")
        if not name.startswith("^"):
            return ranges
        edges = [-1, *(edge for pair in ranges for edge in pair), RUNE_MAX + 1]
        return tuple((low + 1, high - 1) for low, high in zip(edges[::2], edges[1::2], strict=True) if low + 1 < high)


class _State:
    """A state of a machine.

    Bit k of ``main`` is set if all steps before step k have matched. Bit k of ``deep`` is set if the match is inside
    step k and this step is a DEEP. ``found`` is the last pattern that has already matched, and ``ended`` is the last
    pattern that matches if the path or one of its components ends here. Both are -1 if there is no such pattern.
    """

    __slots__ = ("after", "deep", "ended", "found", "main")

    def __init__(self, main: int, deep: int, found: int, ended: int) -> None:
        self.main = main
        self.deep = deep
        self.found = found
        self.ended = ended
        self.after: dict[str, _State] = {}


def _bits(places: Iterable[int], size: int) -> int:
    """Return the integer whose set bits are ``places``.

    It is made from bytes, which is faster than setting each bit.
    """
    found = bytearray(size // 8 + 1)
    for place in places:
        found[place >> 3] |= 1 << (place & 7)
    return int.from_bytes(found, "little")


class Machine:
    """A bit-parallel simulation of expressions (the shift-and algorithm of Baeza-Yates and Gonnet).

    Stars are processed with carries, as in Parabix. Each alternative has consecutive bits and an extra bit after them,
    so no carry reaches the next alternative. Later patterns have higher bits.
    """

    def __init__(self, patterns: Sequence[tuple[int, Sequence[Alternative]]]) -> None:
        size = sum(len(a.items) + 1 for _, alternatives in patterns for a in alternatives)
        steps: dict[int, tuple[Item, list[int]]] = {}  # keyed by identity: most steps are one of a few objects
        starts: list[int] = []
        restarts: list[int] = []
        ends: dict[bool, list[int]] = {True: [], False: []}
        self._ends: list[int] = []  # the last place of each pattern
        self._numbers: list[int] = []  # the number of each pattern
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
        self._literals: dict[int, int] = {}  # the steps that match one code point
        self._classes: dict[Characters, int] = {}  # the steps that match several
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
        """Record that the steps in ``bits`` match ``characters``."""
        ranges, negated = characters
        if not negated and len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
            self._literals[ranges[0][0]] = self._literals.get(ranges[0][0], 0) | bits
        else:
            self._classes[characters] = self._classes.get(characters, 0) | bits

    @staticmethod
    def _close(main: int, skip: int) -> int:
        """Add to ``main`` the steps that are reached by skipping steps.

        ``skip`` has the bits of the steps that can be skipped.
        """
        return (((main & skip) + skip) ^ skip) | main

    def _state(self, main: int, deep: int) -> _State:
        state = self._states.get((main, deep))
        if state is None:
            found, ended = self._number(main & self._done), self._number(main & (self._last | self._done))
            state = self._states[main, deep] = _State(main, deep, found, ended)
        return state

    def _number(self, ends: int) -> int:
        """Return the number of the pattern with the highest bit of ``ends``, or -1 if ``ends`` is 0."""
        return self._numbers[bisect_left(self._ends, ends.bit_length() - 1)] if ends else -1

    def last_match(self, path: str) -> int:
        """Return the number of the last pattern that matches the path or a directory above it, or -1 for none."""
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
        """Return the bits of the steps that match a character."""
        mask = self._masks.get(c)
        if mask is None:
            rune = REPLACEMENT if "\udc80" <= c <= "\udcff" else ord(c)
            mask = self._literals.get(rune, 0)
            for characters, bits in self._classes.items():
                if characters.has(rune):
                    mask |= bits
            if len(self._masks) >= self._max_edges:
                self._masks.clear()
            self._masks[c] = mask
        return mask
