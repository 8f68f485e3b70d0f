"""The ways in which a blob's bytes can be sent, and what the refusals of a registry teach about them.

distribution-spec v1.1 has two ways: one PUT of everything, and PATCH requests with a Content-Range. Docker's clients
use a third: one PATCH of everything. No registry is known that takes none of them, and few take all of them at every
size: GitHub answers 416 to chunks of more than 4 MiB, Google takes no chunks, Artifactory refuses a PUT with a body,
and a proxy refuses what is larger than its limit (413). A refused method goes to the end of the order for its host, in
this process and for a week in others; it is never ruled out. No I/O here but the notes in a Journal. Threading:
Lessons may be used by any thread, a MethodPlan belongs to one upload.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from kitfs.content import Hints

SHARES: Final = (8, 32)  # of the size of a chunk: 4 MiB (GitHub's limit) and 1 MiB (nginx's) of 32 MiB
BELIEVED: Final = 7 * 86_400  # seconds that a note of another process counts


class Method(NamedTuple):
    """PATCH requests of ``chunk`` bytes each; 0: the whole blob in one request, of the method that ``name`` says."""

    name: str
    chunk: int

    def request(self, size: int) -> int:
        """Bytes of the largest request for a blob of ``size`` bytes."""
        return min(self.chunk, size) if self.chunk else size


PUT: Final = Method("put", 0)
PATCH: Final = Method("patch", 0)


class Lesson(NamedTuple):
    """What a host refused: ways by name, and the size in bytes of the smallest request that was too large (None: none
    was).
    """

    refused: frozenset[str] = frozenset()
    limit: int | None = None

    def against(self, method: Method, size: int) -> bool:
        """Whether a method is likely to be refused for a blob of ``size`` bytes."""
        return method.name in self.refused or (self.limit is not None and method.request(size) >= self.limit > 0)

    def with_(self, other: Lesson) -> Lesson:
        """Both."""
        limits = [limit for limit in (self.limit, other.limit) if limit is not None]
        return Lesson(self.refused | other.refused, min(limits, default=None))


class Lessons:
    """The lessons of one client, by host."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, Lesson] = {}

    def of(self, host: str, hints: Hints | None) -> Lesson:
        """What is known of a host, also from processes before this one."""
        with self._lock:
            if host not in self._known:
                self._known[host] = self._noted(host, hints)
            return self._known[host]

    def learn(self, host: str, lesson: Lesson, hints: Hints | None) -> None:
        """Remember what a host refused, once it has taken the same bytes another method."""
        with self._lock:
            known = self._known[host] = self._known.get(host, Lesson()).with_(lesson)
        if hints is not None:
            note = {"refused": sorted(known.refused), "limit": known.limit, "at": self._clock()}
            hints.set(("upload-methods", host), note)

    def _noted(self, host: str, hints: Hints | None) -> Lesson:
        noted: Any = hints.get(("upload-methods", host)) if hints is not None else None
        try:
            if not 0 <= self._clock() - noted["at"] < BELIEVED:
                return Lesson()
            limit = noted["limit"]
            return Lesson(frozenset(map(str, noted["refused"])), None if limit is None else int(limit))
        except (KeyError, TypeError, ValueError):
            return Lesson()  # there is no note, or it is not one of ours


class MethodPlan:
    """The ways that are left for one blob, in order; each is tried once. ``lesson`` is what was refused on the method."""

    def __init__(self, size: int, chunk: int, known: Lesson) -> None:
        self._size = size
        self._left = sorted(_methods(size, chunk), key=lambda method: known.against(method, size))
        self.lesson = Lesson()

    @property
    def method(self) -> Method:
        """The method to use now."""
        return self._left[0]

    def refuse(self, too_large: int | None) -> bool:
        """Go on to the next method, and say whether there is one. ``too_large``: bytes of the request whose size was
        refused, if it was that.
        """
        method = self._left.pop(0)
        self.lesson = self.lesson.with_(
            Lesson(frozenset({method.name})) if too_large is None else Lesson(limit=too_large)
        )
        if too_large is not None:
            self._left.sort(key=lambda other: other.request(self._size) >= too_large)
        return bool(self._left)


def _methods(size: int, chunk: int) -> list[Method]:
    """Every method for a blob: chunks first for a large one, since they resume."""
    smaller: dict[int, Method] = {}
    for share in SHARES:
        method = Method(f"chunks/{share}", max(1, chunk // share))
        if size:
            smaller.setdefault(method.request(size), method)
    whole = [PUT, PATCH]
    return [*whole, *smaller.values()] if size < chunk else [Method("chunks", chunk), *whole, *smaller.values()]
