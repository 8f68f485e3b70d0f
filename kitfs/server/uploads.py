"""Whose turn it is on an upload session, and the sessions that are kept open."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from kitfs.server.api_errors import ApiError
from kitfs.store.ingest import Ingest

REST: Final = 0.1  # seconds without a byte after which what has come of a body is written
SETTLE: Final = 1.0  # seconds that a question for an upload's progress waits for its body to rest
TAKEOVER: Final = 10.0  # seconds that a request waits for the one before it on the same upload
MAX_OPEN: Final = 256  # uploads that are kept open between two chunks, so that nothing is hashed twice


class UploadQueue:
    """The requests for one upload: how many there are, the number of the latest, who waits for a body, and whether
    nothing of it comes.
    """

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.latest = 0
        self.receiving: asyncio.Task[Any] | None = None
        self.resting = False


class UploadTurn:
    """A request's time alone with an upload; while it waits for a body it gives way to a later one."""

    def __init__(self, queue: UploadQueue, number: int) -> None:
        self.queue = queue
        self._number = number

    def check(self) -> None:
        """Raises ApiError when a later request is there."""
        if self.queue.latest > self._number:
            raise ApiError(409, "BLOB_UPLOAD_INVALID", "a later request has taken this upload over")

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """While a body is waited for, a later request for the same upload may take over."""
        self.check()
        task = asyncio.current_task()
        assert task is not None
        self.queue.receiving = task
        before = task.cancelling()
        try:
            yield
        except asyncio.CancelledError:
            if self.queue.latest > self._number and task.uncancel() <= before:
                self.check()
            raise
        finally:
            self.queue.receiving, self.queue.resting = None, False


class OpenUploads:
    """Which uploads this process works on: one request at a time, the latest first. Used on the loop's thread only."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[str, Ingest] = {}
        self._queues: dict[str, UploadQueue] = {}

    @contextlib.asynccontextmanager
    async def alone(self, ident: str) -> AsyncIterator[UploadTurn]:
        """Alone with an upload; whoever waits for a body on it is interrupted. Raises ApiError when he does not end,
        or a later one comes.
        """
        queue = self._queues.setdefault(ident, UploadQueue())
        queue.users += 1
        queue.latest += 1
        turn = UploadTurn(queue, queue.latest)
        try:
            if queue.receiving is not None and not queue.receiving.cancelling():
                queue.receiving.cancel()
            try:
                async with asyncio.timeout(TAKEOVER):
                    await queue.lock.acquire()
            except TimeoutError:
                raise ApiError(
                    409, "BLOB_UPLOAD_INVALID", "another request works on this upload", headers={"Retry-After": "1"}
                )
            try:
                turn.check()
                yield turn
            finally:
                queue.lock.release()
        finally:
            queue.users -= 1
            if not queue.users:
                del self._queues[ident]

    async def wait_idle(self, ident: str) -> None:
        """Wait until nothing comes in for an upload, for SETTLE at most: who asks how far it is has lost the
        connection that it came on.
        """
        end = time.monotonic() + SETTLE
        while (queue := self._queues.get(ident)) is not None and not queue.resting and time.monotonic() < end:
            await asyncio.sleep(REST / 2)

    def take(self, ident: str) -> Ingest | None:
        """An upload that is open, for whoever is alone with it."""
        return self._open.pop(ident, None)

    def keep(self, ingest: Ingest) -> list[Ingest]:
        """Keep an upload open for its next chunk; those that are to be closed instead."""
        if ingest.ended:
            return []
        self._open[ingest.name] = ingest
        surplus = list(self._open)[: max(0, len(self._open) - self._most)]
        return [self._open.pop(name) for name in surplus]

    def taken(self) -> list[Ingest]:
        """All of them, for closing."""
        found, self._open = list(self._open.values()), {}
        return found
