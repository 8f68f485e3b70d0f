"""Stream the bodies of requests and responses between a socket and the disk, without holding a body in memory.

A thread writes incoming pieces while the next pieces arrive. Blobs are sent by sendfile(2), but over TLS in pieces,
because asyncio's sendfile is slow with TLS. Threading: this module runs on the event loop's thread; blocking calls run
on the threads of ``run`` and ``pool``.
"""

from __future__ import annotations

import asyncio
import io
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, Final, TypeVar

from aiohttp import HttpVersion11, web
from aiohttp.web_protocol import RequestPayloadError

from kitfs.openfile import PIECE
from kitfs.server import ranges
from kitfs.server.api_errors import ApiError
from kitfs.server.replies import malformed, uploaded
from kitfs.server.uploads import REST, UploadTurn
from kitfs.store.ingest import Ingest

TLS_PIECE: Final = 256 << 10
SLICES: Final = (256 << 10, 8 << 20)  # fewest and most bytes of one sendfile, which must end within ``patience``

T = TypeVar("T")


async def await_to_end(future: asyncio.Future[T]) -> T:
    """Wait for a future whose thread cannot be stopped. A cancellation is raised only after the thread has ended."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as e:
            cancelled = e
    if cancelled is not None:
        raise cancelled
    return future.result()


async def pieces(request: web.BaseRequest, patience: float) -> AsyncIterator[bytes]:
    """Yield the pieces of a request's body as they arrive, and an empty piece whenever no bytes arrive for a moment.

    "100 Continue" is sent to a client that expects it. Raises TimeoutError after ``patience`` seconds without a byte,
    and RequestPayloadError for a malformed body.
    """
    if request.version >= HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # otherwise aiohttp assumes that the response has begun
    end = time.monotonic() + patience
    while True:
        try:
            async with asyncio.timeout(REST):
                piece = await request.content.readany()
        except TimeoutError:
            if malformed(request):
                raise RequestPayloadError("the chunks of the body are malformed")
            if time.monotonic() > end:
                raise
            yield b""
            continue
        if not piece:
            return
        yield piece
        end = time.monotonic() + patience


async def receive(
    request: web.BaseRequest, ingest: Ingest, turn: UploadTurn, *, pool: Executor, patience: float
) -> None:
    """Append a request's body to an upload.

    If the body ends early, the bytes that arrived are kept, and the next request resumes after them. Raises ApiError if
    the Content-Range does not begin where the upload ends.
    """
    _check_content_range(request, ingest)
    with turn.interruptible():
        loop = asyncio.get_running_loop()
        writing: asyncio.Future[None] | None = None
        gathered: list[bytes] = []
        size = 0
        try:
            async for piece in pieces(request, patience):
                turn.queue.resting = False
                gathered.append(piece)
                size += len(piece)
                if size >= PIECE or not piece:
                    if writing is not None:
                        await await_to_end(writing)
                    writing = loop.run_in_executor(pool, _append, ingest, gathered)
                    gathered, size = [], 0
                    if not piece:
                        await await_to_end(writing)
                        turn.queue.resting = True
        finally:
            if writing is not None:
                await await_to_end(writing)
            await await_to_end(loop.run_in_executor(pool, _append, ingest, gathered))


def _append(ingest: Ingest, gathered: list[bytes]) -> None:
    for piece in gathered:
        ingest.write(piece)


def _check_content_range(request: web.BaseRequest, ingest: Ingest) -> None:
    header = request.headers.get("Content-Range")
    if header is None or not request.body_exists:
        return
    try:
        said = ranges.pushed(header)
    except ranges.Unsatisfiable:
        raise ApiError(416, "BLOB_UPLOAD_INVALID", f"Content-Range {header[:100]!r} is not a range")
    length = request.content_length
    if said.start != ingest.size or (length is not None and length != said.stop - said.start):
        raise ApiError(
            416,
            "BLOB_UPLOAD_INVALID",
            f"the upload has {ingest.size} bytes, but Content-Range says {header[:100]}",
            headers={"Range": uploaded(ingest.size)},
        )


async def send(
    request: web.BaseRequest,
    response: web.StreamResponse,
    file: io.FileIO,
    span: ranges.Span,
    *,
    run: Callable[..., Awaitable[Any]],
    patience: float,
) -> None:
    """Send a span of a file as the body of a response.

    Raises ConnectionResetError if the span cannot be sent completely, and TimeoutError if the client does not read for
    ``patience`` seconds.
    """
    start, step = span.start, TLS_PIECE if request.secure else SLICES[0]
    while start < span.stop:
        size = min(step, span.stop - start)
        began = time.monotonic()
        data = await run(os.pread, file.fileno(), size, start) if request.secure else b""
        async with asyncio.timeout(patience):
            try:
                if request.secure:
                    sent = len(data)
                    await response.write(data)
                elif request.transport is None:
                    raise ConnectionResetError("the client has disconnected")
                else:
                    sent = await asyncio.get_running_loop().sendfile(request.transport, file, start, size)
            except (OSError, RuntimeError) as e:  # RuntimeError: the transport is closing
                raise ConnectionResetError(f"cannot send all bytes of {request.path}: {e}")
        if sent != size:
            raise ConnectionResetError(f"cannot send all bytes of {request.path}: the file has become shorter")
        start += size
        if not request.secure:
            step = min(step * 2, SLICES[1]) if time.monotonic() - began < 1.0 else max(step // 2, SLICES[0])
