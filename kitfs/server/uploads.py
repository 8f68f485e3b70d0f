"""Decide which request may write an upload, and keep uploads open between two chunks.

Threading: only the event loop's thread may use this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from kitfs.server.api_errors import ApiError
from kitfs.store.ingest import Ingest

REST: Final = 0.1  # seconds without a byte after which the received bytes of a body are written
SETTLE: Final = 1.0  # most seconds that a request for an upload's progress waits until no more bytes arrive
TAKEOVER: Final = 10.0  # most seconds that a request waits for an earlier request to the same upload
MAX_OPEN: Final = 256  # uploads that are kept open between two chunks, so that nothing is hashed twice


class UploadQueue:
    """The requests for one upload.

    ``users``: the number of requests. ``latest``: the number of the latest request. ``receiving``: the task that waits
    for bytes of a body. ``resting``: True while no bytes of that body arrive.
    """

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0
        self.latest = 0
        self.receiving: asyncio.Task[Any] | None = None
        self.resting = False


class UploadTurn:
    """The turn of a request to write an upload. A later request can end the turn while the body is being received."""

    def __init__(self, queue: UploadQueue, number: int) -> None:
        self.queue = queue
        self._number = number

    def check(self) -> None:
        """Raise ApiError if a later request has arrived."""
        if self.queue.latest > self._number:
            raise ApiError(409, "BLOB_UPLOAD_INVALID", "a later request has taken this upload over")

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a later request for the same upload interrupt this block, which waits for a body."""
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
    """The uploads that this process is writing.

    Only one request at a time writes an upload. The latest request has priority.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[str, Ingest] = {}
        self._queues: dict[str, UploadQueue] = {}

    @contextlib.asynccontextmanager
    async def alone(self, ident: str) -> AsyncIterator[UploadTurn]:
        """Let only this request use an upload during the block. An earlier request that waits for bytes is interrupted.

        Raises ApiError if the earlier request does not end, or if a later request arrives.
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
        """Wait until no more bytes arrive for an upload, but at most SETTLE seconds.

        A client that asks for the progress of an upload has usually lost the connection on which it sent the bytes.
        Some of these bytes may still arrive.
        """
        end = time.monotonic() + SETTLE
        while (queue := self._queues.get(ident)) is not None and not queue.resting and time.monotonic() < end:
            await asyncio.sleep(REST / 2)

    def take(self, ident: str) -> Ingest | None:
        """Return an open upload, or None if it is not open. Only the caller may then use the upload."""
        return self._open.pop(ident, None)

    def keep(self, ingest: Ingest) -> list[Ingest]:
        """Keep an upload open for its next chunk. Returns surplus uploads, which the caller must close."""
        if ingest.ended:
            return []
        self._open[ingest.name] = ingest
        surplus = list(self._open)[: max(0, len(self._open) - self._most)]
        return [self._open.pop(name) for name in surplus]

    def taken(self) -> list[Ingest]:
        """Remove and return all open uploads. The caller must close them."""
        found, self._open = list(self._open.values()), {}
        return found
