"""What is left out of a layer: by .kitignore, and because another layer holds it.

.kitignore is read as dockerignore is (moby's ``ignorefile.ReadAll`` and ``MatchesOrParentMatches``; KITOPS §3):
patterns begin at the context directory, ``*`` stays in a name, ``**`` does not, ``!`` takes back, and the last one
that matches a path or a directory above it decides. Pure: it reads no file and walks nothing. Threading: rules
remember what they have seen; one thread at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from kitfs.errors import KitfileError
from kitfs.gocompat.patterns import Glob, GlobSet
from kitfs.modelkit.kitfile import clean_path

ALWAYS: Final = ("Kitfile", "kitfile", ".kitfile", ".kitignore")  # after the user's, so that no "!" takes them back
MAX_LINE: Final = (1 << 16) - 1  # bytes of a line, as bufio.Scanner has it
BOM: Final = b"\xef\xbb\xbf"
# Go's
SPACE: Final = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"


class Rule(NamedTuple):
    """A pattern; ``exception`` when it was written with ``!``."""

    glob: Glob
    exception: bool


class IgnoreRules:
    """The rules of one context directory."""

    def __init__(self, rules: Collection[Rule]) -> None:
        self._rules = tuple(rules)
        self._globs: GlobSet | None = None  # made when a path is looked at
        self.has_exceptions: Final = any(
            rule.exception for rule in self._rules
        )  # so that what is below an ignored directory may not be

    @classmethod
    def parse(cls, data: bytes | None) -> IgnoreRules:
        """The rules of a .kitignore, None when there is none. Raises KitfileError for a malformed pattern, with its
        line.
        """
        rules: list[Rule] = []
        for number, pattern in _patterns(data or b""):
            try:
                rules += _rule(pattern)
            except ValueError as e:
                raise KitfileError(f"line {number} of .kitignore: invalid pattern {_shown(pattern)}: {e}")
        return cls([*rules, *(Rule(Glob(name), exception=False) for name in ALWAYS)])

    def ignores(self, path: str) -> bool:
        """Whether a path is left out. It is relative to the context, clean, slash separated, with surrogateescape for
        what is not UTF-8.
        """
        if self._globs is None:
            self._globs = GlobSet(rule.glob for rule in self._rules)
        last = self._globs.last_match(path)
        return last >= 0 and not self._rules[last].exception


def left_out(path: str, layer: str, others: Collection[str]) -> bool:
    """Whether a layer leaves a path to another one: to one that lies inside of the layer or beside it, not to one
    around it.

    ``others`` are the paths of all layers, its own among them or not. All are clean, "." is the context.
    """
    return any(is_within(path, other) and not is_within(layer, other) for other in others)


def is_within(path: str, directory: str) -> bool:
    """Whether a clean relative path is a directory or below it, by whole names."""
    return directory in (".", path) or path.startswith(directory + "/")


def _patterns(data: bytes) -> Iterator[tuple[int, str]]:
    """(line number, pattern, an exception's with its "!") of every line that holds one."""
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
    """A pattern's rule. It is trimmed and cleaned once more, as moby does, which may leave nothing. Raises
    ValueError.
    """
    pattern = pattern.strip(SPACE)
    if not pattern:
        return []
    pattern = clean_path(pattern)
    if pattern == "!":
        raise ValueError("nothing after the exclamation mark")
    exception = pattern.startswith("!")
    return [Rule(Glob(pattern[exception:]), exception)]


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 100 else pattern[:100] + "…")
