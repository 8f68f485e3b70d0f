"""From what a file system raises to what a caller is told: errno, log line, count. One rule for both transports.

    OSError            its own errno
    KitfsError         its ``errno``; a read: EIO whatever it is
    anything else      a bug: one traceback, ``bugs``, EIO

Each EIO counts ``errors`` and has a log line with its cause; of one cause that comes back there is one line in
``QUIET`` seconds, and the next one says how many were left out. Threading: any thread; the lock is taken only when
something failed.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from kitfs.errors import KitfsError
from kitfs.metrics import Counters

QUIET: Final = 10.0  # seconds
_CAUSES: Final = 1000  # remembered, then all are forgotten at once


class Failures:
    """Judges the exceptions of one mount."""

    def __init__(self, counters: Counters, log: logging.Logger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._counters = counters
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._said: dict[str, tuple[float, int]] = {}  # cause: when it was logged, how often it was not since then

    def errno_of(self, operation: str, error: Exception) -> int:
        """The positive errno that answers ``operation`` (an opcode's name in lower case)."""
        if isinstance(error, KitfsError | OSError) and error.errno:
            number = error.errno
        else:
            self._bug(operation, error)
            return errno.EIO
        if operation == "read":
            number = errno.EIO
        if number == errno.EIO:
            self._counters.add("errors")
            self._say(f"{operation}: {error}")
        return number

    def _bug(self, operation: str, error: Exception) -> None:
        self._counters.add("bugs")
        self._counters.add("errors")
        self._log.error("%s: a bug: %s: %s", operation, type(error).__name__, error, exc_info=error)

    def _say(self, cause: str) -> None:
        now = self._clock()
        with self._lock:
            last, unsaid = self._said.get(cause, (float("-inf"), 0))
            if now - last < QUIET:
                self._said[cause] = last, unsaid + 1
                return
            if len(self._said) >= _CAUSES:
                self._said.clear()
            self._said[cause] = now, 0
        self._log.error("%s%s", cause, f" ({unsaid} more times since the last line)" if unsaid else "")
