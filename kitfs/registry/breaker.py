"""Stop asking a host that fails again and again: a circuit breaker for each host.

After ``break_after`` failures in a row, requests fail at once, and the error names the last cause. After a pause, one
request is sent as a probe (the circuit is *half-open*). If the probe fails too, the next pause is twice as long, up to
``longest_break``. A response that shows that the host works ends all of this. Without a breaker, each of a thousand
readers would wait for the retries of its own request.

Not every failure says that the host is broken: a registry that has lost one blob may return 500 for this blob for
ever. So a failure counts for the host if no response arrived and the connection failed (a refused, reset or untrusted
connection, an unknown name). A status of 5xx or a response that does not arrive in time counts for the path that was
requested, and for the host only if requests for other paths fail too. Other statuses, for example 404 and 429, are not
failures.

The clients of one process share the breakers, as long as they connect in the same way (``Breakers``). Threading: any
thread may call every method.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Hashable
from typing import Any, Final, NamedTuple

import httpx

MAX_PATHS: Final = 64  # failing paths of one host that are remembered


class BreakPolicy(NamedTuple):
    """The parameters of a breaker: a number of failures, the first pause and the longest pause in seconds."""

    break_after: int = 8
    break_for: float = 2.0
    longest_break: float = 10.0


CIRCUIT: Final = BreakPolicy()


class CircuitOpen(httpx.ConnectError):
    """A request was not sent, because its host or its path has failed repeatedly. The message names the last cause."""


class _Circuit:
    """The state of a host, or of a path of a host. The lock of the breaker guards it."""

    __slots__ = ("_policy", "_probing", "cause", "failures", "pause", "until")

    def __init__(self, policy: BreakPolicy) -> None:
        self._policy = policy
        self.failures = 0
        self.cause = ""
        self.pause = 0.0
        self.until = 0.0
        self._probing = False

    @property
    def is_open(self) -> bool:
        return self.failures >= self._policy.break_after

    def allows(self, now: float) -> bool:
        """Return whether a request may be sent now."""
        return not self.is_open or now >= self.until

    def sent(self, now: float) -> None:
        """Record that a request is sent. After the pause of an open circuit, the request is the probe."""
        if self.is_open:
            self._probing = True
            self.until = now + self.pause  # a probe that never ends does not keep the circuit open for ever

    def fail(self, now: float, cause: str) -> None:
        self.failures += 1
        self.cause = cause
        if self.failures == self._policy.break_after or (self.is_open and self._probing):
            longest = self._policy.longest_break
            self.pause = min(longest, 2 * self.pause) if self.pause else self._policy.break_for
            self.until = now + self.pause
            self._probing = False

    def reset(self) -> None:
        self.failures, self.pause, self.until, self._probing = 0, 0.0, 0.0, False


class Breaker:
    """The circuit breaker of one host.

    The breaker also records since when the host refuses connections, if the host has responded before.
    """

    def __init__(self, host: str, clock: Callable[[], float], policy: BreakPolicy) -> None:
        self._name = host
        self._clock = clock
        self._policy = policy
        self._lock = threading.Lock()
        self._host = _Circuit(policy)
        self._paths: dict[str, _Circuit] = {}  # paths whose last request failed although a connection was made
        self._answered = False
        self._refused_since: float | None = None

    def check(self, path: str) -> None:
        """Raise CircuitOpen if no request for a path may be sent now."""
        with self._lock:
            now = self._clock()
            circuits = [self._host, *([self._paths[path]] if path in self._paths else [])]
            for circuit in circuits:
                if not circuit.allows(now):
                    raise CircuitOpen(
                        f"{circuit.cause} (after {circuit.failures} failures in a row, "
                        f"the next request is sent within {circuit.pause:g} s)"
                    )
            for circuit in circuits:  # all of them allow the request, so it is sent
                circuit.sent(now)

    def failed(self, path: str, cause: str, *, connected: bool) -> None:
        """Record that a request failed. ``connected``: whether the host accepted a connection for it."""
        with self._lock:
            now = self._clock()
            if connected:
                if path not in self._paths and len(self._paths) == MAX_PATHS:
                    self._paths.pop(next(iter(self._paths)))
                self._paths.setdefault(path, _Circuit(self._policy)).fail(now, cause)
            if not connected or len(self._paths) > 1:
                self._host.fail(now, cause)

    def succeeded(self, path: str) -> None:
        """Record a response that shows that the host works."""
        with self._lock:
            self._host.reset()
            self._paths.pop(path, None)

    def answered(self) -> None:
        """Record a response, whatever its status is."""
        with self._lock:
            self._answered, self._refused_since = True, None

    def refused(self) -> float | None:
        """Record a refused connection. Return the time of the first refusal since the last response, or None.

        None means that the host has never responded. All requests of an outage share this time, so only the first of
        many readers waits for a restart.
        """
        with self._lock:
            if self._answered and self._refused_since is None:
                self._refused_since = self._clock()
            return self._refused_since

    def report(self) -> list[dict[str, Any]]:
        """Return the open circuits of this host for the status of a mount."""
        with self._lock:
            now = self._clock()
            circuits = {"": self._host, **self._paths}
            return [
                {
                    "host": self._name,
                    "path": path or None,
                    "failures": circuit.failures,
                    "cause": circuit.cause,
                    "next_request_s": round(max(0.0, circuit.until - now), 1),
                }
                for path, circuit in circuits.items()
                if circuit.is_open
            ]


class Breakers:
    """The breakers of the hosts that a client asks.

    Clients with the same ``key`` share the breaker of a host while any of them uses it. The key must contain everything
    that decides how the clients connect: a host that one client cannot reach through its proxy may be well for another
    client. If ``key`` is None, nothing is shared.
    """

    def __init__(
        self, key: Hashable = None, *, policy: BreakPolicy = CIRCUIT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._key = key
        self._policy = policy
        self._clock = clock
        self._lock = threading.Lock()
        self._own: dict[str, Breaker] = {}

    def of(self, url: httpx.URL) -> Breaker:
        """Return the breaker of the host of a URL."""
        host = url.netloc.decode("ascii", "replace")
        with self._lock:
            if host not in self._own:
                made = Breaker(host, self._clock, self._policy)
                if self._key is not None:
                    with _shared_lock:
                        made = _shared.setdefault((self._key, host), made)
                self._own[host] = made
            return self._own[host]

    def report(self) -> list[dict[str, Any]]:
        """Return the open circuits for the status of a mount."""
        with self._lock:
            known = list(self._own.values())
        return [row for breaker in known for row in breaker.report()]


_shared: weakref.WeakValueDictionary[tuple[Hashable, str], Breaker] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()
