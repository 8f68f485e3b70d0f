"""Enforce a deadline for the head of a response, and a minimum speed for its body.

``httpcore`` passes a request's timeouts to the connection unchanged, so a ``Pace`` is a float of seconds that also
computes how long the connection may still wait. Its clock runs only while kitfs waits for the server. The time in which
a reader processes the bytes is not measured. Only the bytes of a body count as progress, and at least ``LEAST`` bytes
must arrive per second. Interim responses, headers, chunk extensions and trailers do not count. Threading: a Pace
belongs to one request, and only one thread at a time may use it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

import httpcore
import httpx

LEAST: Final = 1 << 10  # bytes per second, measured over one timeout, below which a body has stalled
# Most bytes up to the end of the read that completes a head: h11 allows a head of 100 KiB, one read returns up to
# 256 KiB, and interim responses precede the head.
MAX_HEAD: Final = 512 << 10


class TooSlow(httpcore.ReadTimeout):
    """A response arrived too slowly. The message says what the server did."""


class Pace(float):
    """A timeout in seconds: the deadline for a response's head, and then the length of each window of its body.

    In each window, at least ``least`` bytes per second must arrive. At the beginning, the clock is paused.
    """

    __slots__ = ("_clock", "_head", "_in_body", "_last", "_left", "_moved", "_quota", "_started", "waited")

    def __new__(cls, seconds: float, *, least: int = LEAST, clock: Callable[[], float] = time.monotonic) -> Pace:
        pace = super().__new__(cls, seconds)
        pace._clock = clock
        pace._quota = max(1.0, least * seconds)  # bytes
        pace._left = float(seconds)  # seconds left for the head or this window at the last pause
        pace._last = pace._left  # seconds that were left when the last byte arrived
        pace._moved = 0  # bytes in this window
        pace._head = 0  # bytes before the body
        pace._started = None  # when the clock was started, None while it is paused
        pace._in_body = False
        pace.waited = 0.0
        return pace

    _clock: Callable[[], float]
    _quota: float
    _left: float
    _last: float
    _moved: int
    _head: int
    _started: float | None
    _in_body: bool
    waited: float
    """Total seconds that the clock ran."""

    def begin_body(self) -> None:
        """Measure a body from now on, because the head is complete. The clock must be paused."""
        self._in_body, self._started = True, None
        self._renew()

    def resume(self) -> None:
        """Start the clock, because kitfs waits for the server from now on."""
        self._started = self._clock()

    def pause(self, moved: int) -> None:
        """Stop the clock, after ``moved`` bytes of the body were received or sent since ``resume``."""
        if self._started is not None:
            waited = self._clock() - self._started
            self._left -= waited
            self.waited += waited
            self._started = None
        if moved:
            self._last = self._left
        self._moved += moved
        if self._moved >= self._quota:
            self._renew()

    def left(self) -> float:
        """Start the clock, and return the seconds that the connection may still wait.

        The connection has timed out if the result is 0 or less.
        """
        if self._started is None:
            self.resume()
        assert self._started is not None
        return self._left - (self._clock() - self._started)

    def too_slow(self) -> httpcore.ReadTimeout:
        """Return the error for a read that timed out."""
        if self._last - self.left() >= 0.9 * self:  # nothing arrived for nearly the whole time
            return httpcore.ReadTimeout("timed out")
        if self._in_body:
            return TooSlow(f"sent only {self._moved} bytes in {float(self):g} s")
        return TooSlow(f"did not complete the head of its response within {float(self):g} s")

    def count_head(self, size: int) -> None:
        """Count received bytes unless they belong to a body.

        Raises RemoteProtocolError if the head is larger than ``MAX_HEAD`` bytes.
        """
        if not self._in_body:
            self._last = self.left()
            self._head += size
            if self._head > MAX_HEAD:
                raise httpcore.RemoteProtocolError(f"more than {MAX_HEAD} bytes of headers and interim responses")

    def _renew(self) -> None:
        self._left = self._last = float(self)
        self._moved = 0


class PacedBody(httpx.SyncByteStream):
    """The body of a response. The Pace of the request measures the speed of the body."""

    def __init__(self, inner: object, pace: Pace) -> None:
        assert isinstance(inner, httpx.SyncByteStream)
        self._inner = inner
        self._pace = pace

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces of the body as they arrive."""
        pace = self._pace
        pace.resume()
        for piece in self._inner:
            pace.pause(len(piece))
            yield piece
            pace.resume()

    def close(self) -> None:
        """Return the connection to the pool, or close it if the body was not read to its end."""
        self._inner.close()
