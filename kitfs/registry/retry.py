"""Retry transient failures with jittered exponential backoff. Permanent failures are raised at once.

``RetryTransport`` wraps another transport. The statuses 408, 429 and 5xx are retried, and so are connections that break
before a response. ``Retry-After`` is honoured up to ``MAX_PAUSE``. After repeated failures of a host, its circuit
breaker (see ``breaker``) lets requests fail at once for a while. A streamed body is sent only once, because only the
caller can find out whether the server has kept a part of the body. Threading: any thread may send requests, and a pause
blocks only the calling thread.
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Callable, Iterator
from datetime import UTC
from typing import Final, NamedTuple

import httpx

from kitfs.metrics import Counters
from kitfs.registry.breaker import CIRCUIT, Breaker, Breakers, BreakPolicy
from kitfs.registry.http_errors import explained, host_of, is_permanent

ATTEMPTS: Final = 5
MAX_BACKOFF: Final = 3.0  # seconds of one pause, unless a Retry-After asks for more
MAX_PAUSE: Final = 30.0  # seconds that a Retry-After may ask for
MAX_WAIT: Final = 60.0  # most seconds of all attempts and pauses for one request, unless its read timeout is lower
CONNECT_BUDGET: Final = 2.5  # seconds for which a refused connection is retried if the host never responded
RESTART_BUDGET: Final = 10.0  # the same if the host has responded before, because it may be restarting
REFUSED_PAUSE: Final = 1.0  # most seconds between two refused connections; an attempt costs next to nothing
MAX_DATE: Final = 64  # characters of a Retry-After that are read; an HTTP date has 29
RETRYABLE: Final = frozenset({408, 429, 500, 502, 503, 504})


class RetryPolicy(NamedTuple):
    """The parameters for retrying failed requests.

    ``backoff``: seconds of the first pause, which doubles after every failed attempt. ``circuit``: after how many
    failures the host is not asked, and for how long. A failure of a host is a request whose retries have failed too.
    """

    backoff: float = 0.25
    circuit: BreakPolicy = CIRCUIT

    def pause_after(self, failures: int) -> float:
        """Return the seconds to pause after ``failures`` failed attempts in a row, capped and with jitter."""
        longest = min(MAX_BACKOFF, self.backoff * 2.0 ** (failures - 1))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret


RETRIES: Final = RetryPolicy()


class RetryTransport(httpx.BaseTransport):
    """A transport that sends requests over ``inner``, retries those without a streamed body, and counts bytes.

    Extensions of a request: "repeat" is False if the request must not be retried after a connection was made. Refused
    connections are retried in any case. "connect_budget" and "restart_budget" are seconds for retries of refused
    connections, instead of ``CONNECT_BUDGET`` and ``RESTART_BUDGET``. "would_break_again" is a function that gets the
    error of a broken connection, and returns whether another attempt would fail in the same way.
    """

    def __init__(
        self,
        inner: httpx.BaseTransport,
        counters: Counters,
        policy: RetryPolicy = RETRIES,
        *,
        breakers: Breakers | None = None,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner = inner
        self._counters = counters
        self._policy = policy
        self._breakers = Breakers(policy=policy.circuit, clock=clock) if breakers is None else breakers
        self._sleep = sleep
        self._clock = clock

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, retry it, and return the final response. Raises the error of the last attempt."""
        breaker = self._breakers.of(request.url)
        path = request.url.path
        breaker.check(path)
        began = self._clock()
        once = not request.extensions.get("repeat", isinstance(request.stream, httpx.ByteStream))
        patience = min(MAX_WAIT, request.extensions.get("timeout", {}).get("read") or MAX_WAIT)
        attempt = refusals = 0
        while True:
            self._counters.add("requests")
            try:
                response = self._inner.handle_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as e:
                refusals += 1
                pause = min(REFUSED_PAUSE, self._policy.pause_after(refusals))
                if is_permanent(e) or self._clock() + pause > self._connect_deadline(request, breaker, began):
                    breaker.failed(path, _cause_of(e, request), connected=False)
                    raise
            except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as e:
                attempt += 1
                if once or ("would_break_again" in request.extensions and request.extensions["would_break_again"](e)):
                    raise
                pause = self._policy.pause_after(attempt)
                if attempt == ATTEMPTS or self._clock() - began + pause > patience:
                    breaker.failed(path, _cause_of(e, request), connected=False)
                    raise
            except httpx.TimeoutException as e:
                breaker.failed(path, _cause_of(e, request), connected=True)
                raise
            else:
                attempt += 1
                breaker.answered()
                counted = CountedBody(response.stream, self._counters)
                response.stream = counted
                response.extensions["count_received"] = counted.count
                if once and response.status_code in RETRYABLE:
                    return response
                pause = retry_after(response) or self._policy.pause_after(attempt)
                if (
                    response.status_code not in RETRYABLE
                    or attempt == ATTEMPTS
                    or self._clock() - began + pause > patience
                ):
                    if response.status_code == 429 or response.status_code not in RETRYABLE:
                        breaker.succeeded(path)
                    else:
                        cause = f"{host_of(request.url)} returned {response.status_code}"
                        breaker.failed(path, cause, connected=True)
                    return response
                response.close()
            self._counters.add("retries")
            self._sleep(pause)

    def _connect_deadline(self, request: httpx.Request, breaker: Breaker, began: float) -> float:
        """Return the time until which refused connections are retried."""
        deadline = began + float(request.extensions.get("connect_budget", CONNECT_BUDGET))
        since = breaker.refused()
        if since is None:
            return deadline
        return max(deadline, since + float(request.extensions.get("restart_budget", RESTART_BUDGET)))

    def close(self) -> None:
        """Close the inner transport."""
        self._inner.close()


def _cause_of(e: httpx.HTTPError, request: httpx.Request) -> str:
    """Return a text that says how a request failed."""
    return explained(e, host_of(request.url), request.extensions.get("timeout", {}).get("read"))[1]


class CountedBody(httpx.SyncByteStream):
    """A body whose bytes are counted as they arrive. ``count`` adds bytes that were received directly from a socket."""

    def __init__(self, inner: object, counters: Counters) -> None:
        assert isinstance(inner, httpx.SyncByteStream)
        self._inner = inner
        self._counters = counters

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._inner:
            self.count(len(piece))
            yield piece

    def count(self, size: int) -> None:
        """Add ``size`` bytes to the count."""
        self._counters.add("bytes_fetched", size)

    def close(self) -> None:
        self._inner.close()


def retry_after(response: httpx.Response) -> float | None:
    """Return the seconds of a Retry-After header (a number or an HTTP date), capped, or None if it is invalid."""
    text = response.headers.get("Retry-After", "").strip()[:MAX_DATE]
    if text.isascii() and text.isdigit():
        return float(min(MAX_PAUSE, int(text[:9])))
    try:
        when = email.utils.parsedate_to_datetime(text)
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(MAX_PAUSE, max(0.0, seconds))
