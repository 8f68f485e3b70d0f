"""Decide how many requests of a reader run at the same time, from measurements. This module does no I/O.

A server or a router may limit the speed of each connection. So when one request has run for a second and only the link
limits its speed, a second request is begun at a later offset of the blob. If both requests together are much faster,
the reader has two *lanes* from then on, and later perhaps four: requests for consecutive stripes of the blob. If they
are not faster, the first request ends where the second request began, and only the second request continues. So a trial
costs very little.

Threading: a lock guards the state, because each lane has a thread.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Final

STRIPE: Final = 10 << 20  # bytes of one of several requests, few enough for the connection to be reused
MAX_LANES: Final = 4
SETTLE: Final = 1.0  # seconds of a measurement
TRIAL: Final = 0.6  # fewest seconds of a trial of two lanes, besides ``ROUND_TRIPS``; ``WARM`` is not measured
RETRY: Final = 5.0  # seconds between a trial that failed and the next one
MAX_TRIALS: Final = 2  # after so many failed trials, no more are made; in one of them, the machine may have been busy
GAIN: Final = 1.3  # how much faster more lanes must be
FAST: Final = 150 << 20  # bytes per second above which a request is limited by the processor rather than by the link
WARM: Final = 0.2  # seconds until a new connection is measured, besides ``ROUND_TRIPS``
ROUND_TRIPS: Final = 8  # handshake and slow start of a new connection
MIN_DISTANCE: Final = 8 << 20  # bytes between the two requests of a trial
MAX_DISTANCE: Final = 128 << 20


@dataclass(slots=True)
class Lanes:
    """The lanes of a reader.

    ``count`` is the number of requests that may run at the same time. ``settled`` is True if no further trial will be
    made.
    """

    count: int = 1
    settled: bool = False
    _began: float | None = None  # when the measurement began
    _bytes: int = 0  # received since then
    _rate: float = 0.0  # bytes per second before the trial
    _trial: int = 0  # the number of lanes before the trial; 0 when there is none
    _distance: int = 0
    _failures: int = 0
    _not_before: float = 0.0  # when the next measurement may begin
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def reach(self) -> int:
        """Return how many bytes ahead of the reader the requests must be allowed to run; 0 with one lane."""
        if self._trial == 1:
            return 2 * self._distance
        return 2 * self.count * STRIPE if self.count > 1 else 0

    @property
    def several(self) -> bool:
        """Return whether several requests run now. A trial counts, too."""
        return self.count > 1 or self._trial > 0

    def received(self, size: int, delay: float, now: float) -> None:
        """Count bytes that a lane received at the time ``now``. This may begin or end a trial of four lanes."""
        with self._lock:
            if self._began is None:
                self._began, self._bytes = max(now + WARM + ROUND_TRIPS * delay, self._not_before), 0
            if now >= self._began:
                self._bytes += size
            if not self.settled and self.count > 1 and now - self._began >= 2 * SETTLE:
                if self._trial:
                    self._judge(now)
                else:
                    self._begin_trial(self._bytes / (now - self._began), 2 * self.count, delay, now)

    def paused(self) -> None:
        """Record that a request waits for its reader. The current measurement of the link is dropped."""
        with self._lock:
            if not self._trial:
                self._began = None

    def try_second(self, left: int, delay: float, now: float) -> int:
        """Decide whether a second request should begin now. Return its distance from the first request in bytes, or 0.

        0 means that no request should begin. ``left`` is the number of bytes that the first request has not received
        yet.
        """
        with self._lock:
            if self.settled or self.several or self._began is None or now - self._began < SETTLE:
                return 0
            rate = self._bytes / (now - self._began)
            shortest, best = (rate * (seconds + ROUND_TRIPS * delay) for seconds in (TRIAL, SETTLE))
            distance = max(int(min(best, MAX_DISTANCE)), MIN_DISTANCE)
            if rate > FAST or distance < shortest or left < 3 * distance:
                self._began = None
                return 0
            self._distance = distance
            self._begin_trial(rate, 1, delay, now)
            return distance

    def met(self, now: float) -> None:
        """Record that the first request of a trial has reached the beginning of the second request. Ends the trial."""
        with self._lock:
            if self._trial == 1:
                self.count = 2
                self._judge(now)

    def _begin_trial(self, rate: float, count: int, delay: float, now: float) -> None:
        self._trial, self.count, self._rate = self.count, count, rate
        self._began, self._bytes = now + WARM + ROUND_TRIPS * delay, 0

    def _judge(self, now: float) -> None:
        seconds = 0.0 if self._began is None else now - self._began
        faster = seconds >= WARM and self._bytes / seconds >= GAIN * self._rate
        self._began = None
        if not faster:
            self.count = self._trial
            self._failures += 1
            self._not_before = now + RETRY
        self.settled = self._failures == MAX_TRIALS or self.count >= MAX_LANES
        self._trial = 0
