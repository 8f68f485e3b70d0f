"""Trying again, as a transport around a transport: what may pass is repeated with growing, jittered pauses; what will
not is not.

408, 429 and 5xx are retried, as are connections that break before an answer; ``Retry-After`` is honoured up to
``MAX_PAUSE``. A host that keeps failing is left alone for a while (a circuit breaker), so that a thousand readers do
not each wait out the budget. A body that is streamed goes out once: whoever made it knows whether the other side has
kept a part of it. Threading: one breaker per host behind a lock; pauses are of the calling thread.
"""

from __future__ import annotations

import email.utils
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC
from typing import Final

import httpx

from kitfs.metrics import Counters
from kitfs.registry.http_errors import is_permanent

ATTEMPTS: Final = 5
BASE_PAUSE: Final = 0.25  # seconds, doubled at every attempt
MAX_PAUSE: Final = 30.0  # seconds that a Retry-After may ask for
MAX_WAIT: Final = 60.0  # seconds of attempts and pauses for one request, all told (its read timeout is less)
CONNECT_BUDGET: Final = (
    2.5  # seconds after which a host that refuses connections is given up ("connect_budget" of a request is less)
)
LONGEST_DATE: Final = 64  # characters of a Retry-After that are read; an HTTP date has 29
RETRYABLE: Final = frozenset({408, 429, 500, 502, 503, 504})
BREAK_AFTER: Final = 8  # failures in a row, of whole budgets or refused connections
BREAK_FOR: Final = 2.0  # seconds of leaving a host alone


class Breaker:
    """Counts a host's failures; open, it lets one request in ``BREAK_FOR`` seconds through to see."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._until = 0.0

    def allows(self) -> bool:
        """Whether a request may go out now."""
        with self._lock:
            if self._failures < BREAK_AFTER:
                return True
            if self._clock() < self._until:
                return False
            self._until = self._clock() + BREAK_FOR  # this one is the probe
            return True

    def tell(self, ok: bool) -> None:
        """What became of a request."""
        with self._lock:
            self._failures = 0 if ok else self._failures + 1
            if self._failures >= BREAK_AFTER:
                self._until = self._clock() + BREAK_FOR


class RetryTransport(httpx.BaseTransport):
    """Repeats requests whose body is bytes or nothing on ``inner``; counts every one it sends and every byte it gets.

    Extension "repeat" of a request: False for one answer only. Connections that were refused are tried again all the
    same. Extension "hopeless": a function that says, after a connection broke, whether another attempt would end in
    the same way.
    """

    def __init__(
        self,
        inner: httpx.BaseTransport,
        counters: Counters,
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._counters = counters
        self._sleep = sleep
        self._clock = clock
        self._lock = threading.Lock()
        self._breakers: dict[str, Breaker] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """One answer, or the last failure."""
        breaker = self._breaker(request.url)
        if not breaker.allows():
            raise httpx.ConnectError("it failed several times in a row and is left alone for a moment", request=request)
        began = self._clock()
        once = not request.extensions.get("repeat", isinstance(request.stream, httpx.ByteStream))
        patience = min(
            MAX_WAIT, request.extensions.get("timeout", {}).get("read") or MAX_WAIT
        )  # nobody waits longer for nothing
        for attempt in range(1, ATTEMPTS + 1):
            self._counters.add("requests")
            try:
                response = self._inner.handle_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as e:
                pause = pause_after(attempt)
                budget = request.extensions.get("connect_budget", CONNECT_BUDGET)
                if attempt == ATTEMPTS or self._clock() - began + pause > budget or is_permanent(e):
                    breaker.tell(ok=False)
                    raise
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as e:
                if once or ("hopeless" in request.extensions and request.extensions["hopeless"](e)):
                    raise
                pause = pause_after(attempt)
                if attempt == ATTEMPTS or self._clock() - began + pause > patience:
                    breaker.tell(ok=False)
                    raise
            except httpx.TimeoutException:
                breaker.tell(ok=False)
                raise
            else:
                response.stream = _Counted(response.stream, self._counters)
                if once and response.status_code in RETRYABLE:
                    return response
                pause = retry_after(response) or pause_after(attempt)
                if (
                    response.status_code not in RETRYABLE
                    or attempt == ATTEMPTS
                    or self._clock() - began + pause > patience
                ):
                    breaker.tell(ok=response.status_code not in RETRYABLE or response.status_code == 429)
                    return response
                response.close()
            self._counters.add("retries")
            self._sleep(pause)
        raise AssertionError("unreachable")

    def _breaker(self, url: httpx.URL) -> Breaker:
        with self._lock:
            return self._breakers.setdefault(url.netloc.decode("ascii", "replace"), Breaker(self._clock))

    def close(self) -> None:
        """Close the transport below."""
        self._inner.close()


class _Counted(httpx.SyncByteStream):
    """A body whose bytes are counted as they come."""

    def __init__(self, inner: object, counters: Counters) -> None:
        assert isinstance(inner, httpx.SyncByteStream)
        self._inner = inner
        self._counters = counters

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._inner:
            self._counters.add("bytes_fetched", len(piece))
            yield piece

    def close(self) -> None:
        self._inner.close()


def pause_after(attempt: int) -> float:
    """Seconds to wait after the ``attempt``-th failure in a row, from 1: doubled each time, capped, jittered."""
    return min(3.0, BASE_PAUSE * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret


def retry_after(response: httpx.Response) -> float | None:
    """Seconds of a Retry-After header, as a number or an HTTP date, capped; None for one that is neither."""
    text = response.headers.get("Retry-After", "").strip()[:LONGEST_DATE]
    if text.isascii() and text.isdigit():
        return float(min(MAX_PAUSE, int(text[:9])))
    try:
        when = email.utils.parsedate_to_datetime(text)
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(MAX_PAUSE, max(0.0, seconds))
