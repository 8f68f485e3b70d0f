"""Which request may write an upload, and the uploads that are kept open between two chunks. Threading: the loop's
thread only.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from kitfs.server.api_errors import ApiError
from kitfs.store.ingest import Ingest

REST: Final = 0.1  # seconds without a byte after which the bytes of a body so far are written
SETTLE: Final = 1.0  # seconds that a request for an upload's progress waits for its body to pause
TAKEOVER: Final = 10.0  # seconds that a request waits for an earlier one on the same upload
MAX_OPEN: Final = 256  # uploads that are kept open between two chunks, so that nothing is hashed twice


class UploadQueue:
    """The requests for one upload: how many there are, the number of the latest, the task that waits for a body, and
    whether that body pauses.
    """

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.latest = 0
        self.receiving: asyncio.Task[Any] | None = None
        self.resting = False


class UploadTurn:
    """The turn of a request to write an upload. While it waits for a body it gives way to a later request."""

    def __init__(self, queue: UploadQueue, number: int) -> None:
        self.queue = queue
        self._number = number

    def check(self) -> None:
        """Raise ApiError when a later request has come."""
        if self.queue.latest > self._number:
            raise ApiError(409, "BLOB_UPLOAD_INVALID", "a later request has taken this upload over")

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a later request for the same upload take over during the block, which waits for a body."""
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
    """The uploads that this process is writing: one request at a time, the latest first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[str, Ingest] = {}
        self._queues: dict[str, UploadQueue] = {}

    @contextlib.asynccontextmanager
    async def alone(self, ident: str) -> AsyncIterator[UploadTurn]:
        """Give a request sole use of an upload for a block; an earlier request that waits for its body is interrupted.

        Raises ApiError when the earlier request does not end, or when a later one comes.
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
                    409, "BLOB_UPLOAD_INVALID", "another request is writing this upload", headers={"Retry-After": "1"}
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
        """Wait until no bytes come for an upload, at most SETTLE seconds.

        A client that asks for the progress of an upload has lost the connection on which it sent the bytes.
        """
        end = time.monotonic() + SETTLE
        while (queue := self._queues.get(ident)) is not None and not queue.resting and time.monotonic() < end:
            await asyncio.sleep(REST / 2)

    def take(self, ident: str) -> Ingest | None:
        """Return an upload that is kept open, for the request that has sole use of it; None when it is not open."""
        return self._open.pop(ident, None)

    def keep(self, ingest: Ingest) -> list[Ingest]:
        """Keep an upload open for its next chunk. Returns the uploads that the caller must close instead."""
        if ingest.ended:
            return []
        self._open[ingest.name] = ingest
        surplus = list(self._open)[: max(0, len(self._open) - self._most)]
        return [self._open.pop(name) for name in surplus]

    def taken(self) -> list[Ingest]:
        """Return all open uploads and forget them; the caller closes them."""
        found, self._open = list(self._open.values()), {}
        return found
