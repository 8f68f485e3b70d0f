"""A deadline for the head of a response, and a minimum speed for bodies.

``httpcore`` passes a request's timeouts to the connection unchanged, so a ``Pace`` is a float of seconds that can also
tell how long the connection may still wait. Its clock runs only while kitfs waits for the other side: a body whose
reader is slow, or has paused, is not slow. Interim responses, headers, chunk extensions and trailers are not progress;
the bytes of a body are, if at least ``LEAST`` of them arrive per second. Threading: a Pace belongs to one request, and
to one thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

import httpcore
import httpx

LEAST: Final = 1 << 10  # bytes per second of one body, measured over one timeout: a slower body has stalled
# Bytes up to the end of a head, with the rest of the read that ends it: h11 allows a head of 100 KiB, one read has up
# to 256 KiB, and interim responses come before the head.
MAX_HEAD: Final = 512 << 10


class TooSlow(httpcore.ReadTimeout):
    """A response arrived, but too slowly; the text says what the other side did."""


class Pace(float):
    """``Pace(seconds)``: the deadline of a response's head, and then the length of the windows of its body.

    In each window ``least`` times ``seconds`` bytes must arrive. The clock starts paused.
    """

    __slots__ = ("_clock", "_head", "_in_body", "_last", "_left", "_moved", "_quota", "_started", "waited")

    def __new__(cls, seconds: float, *, least: int = LEAST, clock: Callable[[], float] = time.monotonic) -> Pace:
        pace = super().__new__(cls, seconds)
        pace._clock = clock
        pace._quota = max(1.0, least * seconds)  # bytes
        pace._left = float(seconds)  # seconds of the head or of this window, as of the last pause
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
        """Measure a body from now on: the head is complete. The clock is paused."""
        self._in_body, self._started = True, None
        self._renew()

    def resume(self) -> None:
        """Start the clock, because kitfs waits for the other side from now on."""
        self._started = self._clock()

    def pause(self, moved: int) -> None:
        """Stop the clock; ``moved`` bytes of the body were received or sent since ``resume``."""
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
        """Return the seconds that the connection may still wait, and start the clock. 0 or less: the time is over."""
        if self._started is None:
            self.resume()
        assert self._started is not None
        return self._left - (self._clock() - self._started)

    def too_slow(self) -> httpcore.ReadTimeout:
        """Return the error of a read whose time is over."""
        if self._last - self.left() >= 0.9 * self:  # nothing arrived in nearly all of the time
            return httpcore.ReadTimeout("timed out")
        if self._in_body:
            return TooSlow(f"sent only {self._moved} bytes in {float(self):g} s")
        return TooSlow(f"did not complete the head of its response within {float(self):g} s")

    def count_head(self, size: int) -> None:
        """Count received bytes, unless they belong to a body. Raises RemoteProtocolError for an endless head."""
        if not self._in_body:
            self._last = self.left()
            self._head += size
            if self._head > MAX_HEAD:
                raise httpcore.RemoteProtocolError(f"more than {MAX_HEAD} bytes of headers and interim responses")

    def _renew(self) -> None:
        self._left = self._last = float(self)
        self._moved = 0


class PacedBody(httpx.SyncByteStream):
    """The body of a response, measured by the pace of its request."""

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
