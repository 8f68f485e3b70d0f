"""Remember whether the disk of a store works, so that reads continue without a disk that fails.

Threading: any thread may call every method.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from typing import Final

RETRY: Final = 30.0  # seconds after a failure until the disk is tried again
FAULTS: Final = frozenset({
    errno.EIO, errno.EROFS, errno.ENODEV, errno.ENXIO, errno.EBADMSG, errno.EUCLEAN, errno.ESTALE, errno.ETIMEDOUT,
    errno.EHOSTDOWN, errno.ENOTCONN, errno.ESHUTDOWN,
})  # fmt: skip  # the errno values of a broken, read-only or vanished disk, and of a network file system that is away


class Disk:
    """The disk of the store in ``root``. After a failure, it is tried again every ``retry`` seconds."""

    def __init__(self, root: str, *, log: logging.Logger, retry: float = RETRY) -> None:
        self._root: Final = root
        self._log: Final = log
        self._retry: Final = retry
        self._lock = threading.Lock()
        self._failed = 0.0
        self.failure: str | None = None  # the reason of the last failure; None while the disk works

    def may_try(self) -> bool:
        """Return whether the disk works, or should be tried again."""
        return self.failure is None or time.monotonic() - self._failed > self._retry

    def failed(self, error: OSError) -> None:
        """Record a failure of the disk. Only the first failure is logged until the disk works again."""
        with self._lock:
            first, self.failure = self.failure is None, (error.strerror or str(error)).lower()
            self._failed = time.monotonic()
        if first:
            self._log.warning(
                "the disk of the cache %s fails (%s): reads continue without the cache, and the disk is tried again "
                "every %.0f s",
                self._root,
                self.failure,
                self._retry,
            )

    def worked(self) -> None:
        """Record that bytes were stored. The first call after a failure is logged."""
        if self.failure is None:
            return
        with self._lock:
            again, self.failure = self.failure is not None, None
        if again:
            self._log.warning("the disk of the cache %s works again", self._root)


def fault_of(error: BaseException) -> OSError | None:
    """Return the failure of the disk: the error itself or its cause. Return None if the disk has not failed."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return cause if isinstance(cause, OSError) and cause.errno in FAULTS else None
