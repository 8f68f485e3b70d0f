"""List the methods of sending a blob's bytes, and remember which methods a registry has refused.

distribution-spec v1.1 defines two methods: a single PUT of the whole blob, and PATCH requests with a Content-Range.
Docker's clients use a third method: a single PATCH of the whole blob. Every known registry accepts at least one method,
but few accept all methods at every size: GitHub returns 416 to chunks of more than 4 MiB, Google does not accept
chunks, Artifactory refuses a PUT with a body, and a proxy refuses requests above its limit (413). A method that a host
has refused is not excluded, but tried last: in this process, and for a week in other processes. The only I/O is to read
and write Hints. Threading: any thread may use Lessons; a MethodPlan belongs to one upload.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from kitfs.content import Hints

SHARES: Final = (8, 32)  # smaller chunks are 1/8 and 1/32 of 32 MiB: 4 MiB (GitHub's limit) and 1 MiB (nginx's limit)
MAX_AGE: Final = 7 * 86_400  # seconds for which a hint of another process is used


class Method(NamedTuple):
    """A method of sending: PATCH requests of ``chunk`` bytes each, or, if ``chunk`` is 0, one PUT or PATCH."""

    name: str
    chunk: int

    def request(self, size: int) -> int:
        """Return how many bytes the largest request for a blob of ``size`` bytes has."""
        return min(self.chunk, size) if self.chunk else size


PUT: Final = Method("put", 0)
PATCH: Final = Method("patch", 0)


class Lesson(NamedTuple):
    """A record of the methods that a host has refused.

    ``refused``: the names of these methods. ``limit``: the bytes of the smallest request that was too large, or None.
    """

    refused: frozenset[str] = frozenset()
    limit: int | None = None

    def against(self, method: Method, size: int) -> bool:
        """Return whether a method is likely to be refused for a blob of ``size`` bytes."""
        return method.name in self.refused or (self.limit is not None and method.request(size) >= self.limit > 0)

    def combined(self, other: Lesson) -> Lesson:
        """Return a lesson with the refusals of both lessons."""
        limits = [limit for limit in (self.limit, other.limit) if limit is not None]
        return Lesson(self.refused | other.refused, min(limits, default=None))


class Lessons:
    """The lessons that a client has learned about hosts."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, Lesson] = {}

    def of(self, host: str, hints: Hints | None) -> Lesson:
        """Return the lesson about a host, which may come from an earlier process."""
        with self._lock:
            if host not in self._known:
                self._known[host] = self._saved(host, hints)
            return self._known[host]

    def learn(self, host: str, lesson: Lesson, hints: Hints | None) -> None:
        """Record a lesson about a host, after the host has accepted the refused bytes by another method."""
        with self._lock:
            known = self._known[host] = self._known.get(host, Lesson()).combined(lesson)
        if hints is not None:
            saved = {"refused": sorted(known.refused), "limit": known.limit, "at": self._clock()}
            hints.set(("upload-methods", host), saved)

    def _saved(self, host: str, hints: Hints | None) -> Lesson:
        saved: Any = hints.get(("upload-methods", host)) if hints is not None else None
        try:
            if not 0 <= self._clock() - saved["at"] < MAX_AGE:
                return Lesson()
            limit = saved["limit"]
            return Lesson(frozenset(map(str, saved["refused"])), None if limit is None else int(limit))
        except (KeyError, TypeError, ValueError):
            return Lesson()  # the hint does not exist or is invalid


class MethodPlan:
    """The methods that are left for one blob, in order. Each is tried once. ``lesson``: the methods refused so far."""

    def __init__(self, size: int, chunk: int, known: Lesson) -> None:
        self._size = size
        self._left = sorted(_methods(size, chunk), key=lambda method: known.against(method, size))
        self.lesson = Lesson()

    @property
    def method(self) -> Method:
        """The method to use next."""
        return self._left[0]

    def refuse(self, too_large: int | None) -> bool:
        """Switch to the next method. Return False if no method is left.

        ``too_large``: the bytes of the refused request if its size was the reason, otherwise None.
        """
        method = self._left.pop(0)
        self.lesson = self.lesson.combined(
            Lesson(frozenset({method.name})) if too_large is None else Lesson(limit=too_large)
        )
        if too_large is not None:
            self._left.sort(key=lambda other: other.request(self._size) >= too_large)
        return bool(self._left)


def _methods(size: int, chunk: int) -> list[Method]:
    """Return every method for a blob. For a large blob, chunks come first, because they can be resumed."""
    smaller: dict[int, Method] = {}
    for share in SHARES:
        method = Method(f"chunks/{share}", max(1, chunk // share))
        if size:
            smaller.setdefault(method.request(size), method)
    whole = [PUT, PATCH]
    return [*whole, *smaller.values()] if size < chunk else [Method("chunks", chunk), *whole, *smaller.values()]
