"""A deadline for the head of an answer and a least speed for bodies, which count only while somebody waits for the
other side.

``httpcore`` hands a request's timeouts down to the connection as they are, so a ``Pace`` is a float of seconds that
knows more: how long the connection may wait now. Interim answers, headers, chunk extensions and trailers are not
progress. Bytes of a body are, from ``LEAST`` per second on. A body that nobody asks for (its reader is slow, or has
paused) is not slow. Threading: a Pace belongs to one request, and to one thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

import httpcore
import httpx

LEAST: Final = 1 << 10  # bytes per second of one body, measured over one timeout: less is a stall
MAX_HEAD: Final = (
    512 << 10
)  # bytes up to the end of a head, and of what comes with it (h11 allows 100 KiB of one head, a read has 256)


class TooSlow(httpcore.ReadTimeout):
    """An answer came, but not fast enough; the text says what the other side did."""


class Pace(float):
    """``Pace(seconds)``: first the deadline of an answer's head, after ``body`` the time within which so many
    seconds' worth of bytes must move. ``least`` is in bytes per second."""

    __slots__ = ("_asked", "_clock", "_head", "_in_body", "_last", "_left", "_moved", "_quota", "waited")

    def __new__(cls, seconds: float, *, least: int = LEAST, clock: Callable[[], float] = time.monotonic) -> Pace:
        """A pace that has not begun."""
        pace = super().__new__(cls, seconds)
        pace._clock = clock
        pace._quota = max(1.0, least * seconds)  # bytes
        pace._left = float(seconds)  # of the head or of the present window, when nobody waits
        pace._last = pace._left  # the same when the last byte came
        pace._moved = 0  # bytes in this window
        pace._head = 0  # bytes before the body
        pace._asked = None  # since when somebody waits
        pace._in_body = False
        pace.waited = 0.0
        return pace

    _clock: Callable[[], float]
    _quota: float
    _left: float
    _last: float
    _moved: int
    _head: int
    _asked: float | None
    _in_body: bool
    waited: float
    """Seconds that somebody waited, between ``ask`` and ``rest``, all told."""

    def body(self) -> None:
        """The head is there; what follows is measured as a body."""
        self._in_body, self._asked = True, None
        self._renew()

    def ask(self) -> None:
        """Somebody waits from now on."""
        self._asked = self._clock()

    def rest(self, moved: int) -> None:
        """Nobody waits any more; ``moved`` bytes of the body came, or went, since ``ask``."""
        if self._asked is not None:
            waited = self._clock() - self._asked
            self._left -= waited
            self.waited += waited
            self._asked = None
        if moved:
            self._last = self._left
        self._moved += moved
        if self._moved >= self._quota:
            self._renew()

    def left(self) -> float:
        """Seconds that the connection may wait now; none are left at 0 and below."""
        if self._asked is None:
            self.ask()
        assert self._asked is not None
        return self._left - (self._clock() - self._asked)

    def too_slow(self) -> httpcore.ReadTimeout:
        """The error of a read that has lasted too long."""
        if self._last - self.left() >= 0.9 * self:  # next to nothing of the time has brought anything
            return httpcore.ReadTimeout("timed out")
        if self._in_body:
            return TooSlow(f"sent only {self._moved} bytes in {float(self):g} s")
        return TooSlow(f"did not finish the head of its answer within {float(self):g} s")

    def came(self, size: int) -> None:
        """Bytes have come. Raises RemoteProtocolError when there is no end to what stands before a body."""
        if not self._in_body:
            self._last = self.left()
            self._head += size
            if self._head > MAX_HEAD:
                raise httpcore.RemoteProtocolError(f"more than {MAX_HEAD} bytes of headers and interim answers")

    def _renew(self) -> None:
        self._left = self._last = float(self)
        self._moved = 0


class PacedBody(httpx.SyncByteStream):
    """The body of an answer, measured by the pace of its request."""

    def __init__(self, inner: object, pace: Pace) -> None:
        assert isinstance(inner, httpx.SyncByteStream)
        self._inner = inner
        self._pace = pace

    def __iter__(self) -> Iterator[bytes]:
        """The pieces as they come."""
        pace = self._pace
        pace.ask()
        for piece in self._inner:
            pace.rest(len(piece))
            yield piece
            pace.ask()

    def close(self) -> None:
        """Let go of the connection, or keep it for the next request when the answer is at its end."""
        self._inner.close()
