"""Decide which files a layer omits: files that .kitignore excludes, and files that belong to another layer.

.kitignore has the syntax of .dockerignore (moby's ``ignorefile.ReadAll`` and ``MatchesOrParentMatches``), as KitOps'
pkg/lib/filesystem/ignore.go reads it. Patterns are relative to the context directory, ``*`` matches within a name,
``**`` matches across directories, and ``!`` makes an exception. The last pattern that matches a path, or a directory
above it, decides. These functions do no I/O. Threading: rules cache their matches, so only one thread at a time may use
them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from kitfs.errors import KitfileError
from kitfs.gocompat.patterns import Glob, GlobSet
from kitfs.modelkit.kitfile import clean_path

ALWAYS: Final = (
    "Kitfile",
    "kitfile",
    ".kitfile",
    ".kitignore",
)  # follow the user's rules, so that no "!" can include them
MAX_LINE: Final = (1 << 16) - 1  # bytes of a line, the limit of Go's bufio.Scanner
BOM: Final = b"\xef\xbb\xbf"
SPACE: Final = (  # of Go's unicode.IsSpace
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029"
    "\u202f\u205f\u3000"
)


class Rule(NamedTuple):
    """A pattern. ``exception``: whether it was written with ``!``."""

    glob: Glob
    exception: bool


class IgnoreRules:
    """The rules of one context directory."""

    def __init__(self, rules: Collection[Rule]) -> None:
        self._rules = tuple(rules)
        self._globs: GlobSet | None = None  # made when the first path is checked
        self.has_exceptions: Final = any(
            rule.exception for rule in self._rules
        )  # if True, a path below an ignored directory may be included

    @classmethod
    def parse(cls, data: bytes | None) -> IgnoreRules:
        """Parse a .kitignore. ``data`` is None if the directory has none.

        Raises KitfileError with the line number for a malformed pattern.
        """
        rules: list[Rule] = []
        for number, pattern in _patterns(data or b""):
            try:
                rules += _rule(pattern)
            except ValueError as e:
                raise KitfileError(f"line {number} of .kitignore: invalid pattern {_shown(pattern)}: {e}")
        return cls([*rules, *(Rule(Glob(name), exception=False) for name in ALWAYS)])

    def ignores(self, path: str) -> bool:
        """Return whether a path is ignored.

        ``path`` is relative to the context, clean, and separated by slashes. Bytes that are not UTF-8 are decoded with
        surrogateescape.
        """
        if self._globs is None:
            self._globs = GlobSet(rule.glob for rule in self._rules)
        last = self._globs.last_match(path)
        return last >= 0 and not self._rules[last].exception


def left_out(path: str, layer: str, others: Collection[str]) -> bool:
    """Return whether ``path`` belongs to another layer that is inside or beside this layer.

    Layers that contain this layer do not count. ``layer``: the path of this layer. ``others``: the paths of all layers;
    this layer's path may be among them. All paths are clean, and "." is the context.
    """
    return any(is_within(path, other) and not is_within(layer, other) for other in others)


def is_within(path: str, directory: str) -> bool:
    """Return whether a clean relative path is ``directory`` or below it. Whole names are compared."""
    return directory in (".", path) or path.startswith(directory + "/")


def _patterns(data: bytes) -> Iterator[tuple[int, str]]:
    """Yield (line number, pattern) of every line with a pattern. An exception keeps its "!"."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if len(line) > MAX_LINE:
            raise KitfileError(f"line {number} of .kitignore is longer than {MAX_LINE} bytes")
        if number == 1:
            line = line.removeprefix(BOM)
        text = line.decode("utf-8", "surrogateescape")
        pattern = text.strip(SPACE)
        if text.startswith("#") or not pattern:
            continue
        exception = pattern.startswith("!")
        if exception:
            pattern = pattern[1:].strip(SPACE)
        if pattern:
            pattern = clean_path(pattern)
        if len(pattern) > 1:
            pattern = pattern.removeprefix("/")
        yield number, "!" + pattern if exception else pattern


def _rule(pattern: str) -> list[Rule]:
    """Return a list with the rule of a pattern, or [] if the pattern is empty after cleaning. Raises ValueError.

    The pattern is trimmed and cleaned a second time, as moby does.
    """
    pattern = pattern.strip(SPACE)
    if not pattern:
        return []
    pattern = clean_path(pattern)
    if pattern == "!":
        raise ValueError("the exclamation mark has no pattern after it")
    exception = pattern.startswith("!")
    return [Rule(Glob(pattern[exception:]), exception)]


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 100 else pattern[:100] + "…")
