"""Turn the exceptions of a file system into errnos, log lines and counts, for both transports.

    ClosedHandleError  EBADF, which is neither counted nor logged
    OSError            its own errno
    KitfsError         its ``errno``, but EIO for every failed read
    anything else      EIO; the exception is a bug, which is logged with its traceback and counted in ``bugs``

Each EIO is counted in ``errors`` and logged with its cause. A cause is logged at most once in ``QUIET`` seconds, and
the next line reports how many failures were not logged. Threading: any thread may call the methods; they take a lock.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from kitfs.errors import KitfsError
from kitfs.metrics import Counters

QUIET: Final = 10.0  # seconds
_CAUSES: Final = 1000  # remembered causes; when there are more, all are forgotten


class ClosedHandleError(OSError):
    """A request uses a file handle that was released.

    The kernel releases a handle after the last request for it. But if a task is killed, its requests are answered at
    once, and a thread may still be working on them when the handle is released. Nobody gets the thread's reply.
    """

    def __init__(self) -> None:
        super().__init__(errno.EBADF, os.strerror(errno.EBADF))


class ErrnoPolicy:
    """The errno policy of one mount."""

    def __init__(self, counters: Counters, log: logging.Logger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._counters = counters
        self._log = log
        self._clock = clock
        self._lock = threading.Lock()
        self._logged: dict[
            str, tuple[float, int]
        ] = {}  # by cause: the time of the last log line, and how many failures were not logged since then

    def errno_of(self, operation: str, error: Exception) -> int:
        """Return the positive errno of a failed ``operation`` (the name of an opcode in lower case)."""
        if isinstance(error, ClosedHandleError):
            return errno.EBADF
        if isinstance(error, KitfsError | OSError) and error.errno:
            number = error.errno
        else:
            self._bug(operation, error)
            return errno.EIO
        if operation == "read":
            number = errno.EIO
        if number == errno.EIO:
            self._counters.add("errors")
            self._log_once(f"{operation}: {error}")
        return number

    def _bug(self, operation: str, error: Exception) -> None:
        self._counters.add("bugs")
        self._counters.add("errors")
        self._log.error(
            "%s failed because of a bug in kitfs: %s: %s", operation, type(error).__name__, error, exc_info=error
        )

    def _log_once(self, cause: str) -> None:
        now = self._clock()
        with self._lock:
            last, left_out = self._logged.get(cause, (float("-inf"), 0))
            if now - last < QUIET:
                self._logged[cause] = last, left_out + 1
                return
            if len(self._logged) >= _CAUSES:
                self._logged.clear()
            self._logged[cause] = now, 0
        self._log.error("%s%s", cause, f" ({left_out} more times since the last line)" if left_out else "")
