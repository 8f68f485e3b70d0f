"""Receive the body of a large response directly into a reused buffer.

httpcore reads a body in pieces of 64 KiB and copies each piece several times, which costs more processor time than the
rest of a download. In this module, httpcore reads only the head and the first piece, which contains the bytes that
arrived together with the head. The other bytes are received from the connection by ``recv_into`` (socket(2)). The
connection cannot be reused afterwards, because httpcore does not know that the body has ended. So only large bodies are
read in this way.

Each piece costs its reader a fixed time, so a fast body is received in large pieces: a piece has the bytes that arrive
within ``WAIT``. A large piece ends at a multiple of ``UNIT``, so that the store can write whole chunks.

On one core over loopback, 1 GiB takes 0.7 s in this way, and 2.5 s through httpcore. Pieces of 4 MiB do not fit in the
processor's fastest caches, but threads that take turns in Python cost more: with pieces of 1 MiB, a cold read of 1 GiB
through a mount took 13 % longer. Threading: a body belongs to one thread.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from typing import Final, Protocol, runtime_checkable

import httpx

from kitfs.buffers import Buffers
from kitfs.registry.early_answer import SYSTEM_READ
from kitfs.registry.pace import Pace
from kitfs.registry.pool import translated_errors

BUFFER: Final = 4 << 20  # most bytes received at once
UNIT: Final = 128 << 10  # bytes: the store's chunks are not larger, except those of a blob of more than 64 GiB
WAIT: Final = 0.008  # seconds for which the bytes of a fast body are waited for
LARGE: Final = (
    12 << 20
)  # fewest bytes of a body for which a separate connection is worth its round trips and slow start


@runtime_checkable
class DirectStream(Protocol):
    """A connection that can receive into a buffer if ``can_receive_into`` returns True."""

    @property
    def can_receive_into(self) -> bool: ...

    def receive_into(self, view: memoryview, timeout: float | None, *, at_least: int) -> int: ...


def body_pieces(response: httpx.Response, length: int | None) -> Generator[memoryview, None, None]:
    """Yield the body of a response in pieces. A piece is valid until the next piece is requested.

    ``length``: the body's Content-Length in bytes, or None if the response has none. If the server closes the
    connection early, the pieces end early without an error, so the caller must count the bytes. Memory is reserved in
    ``Buffers`` until the generator is closed. Raises the errors of httpx.
    """
    pace = response.extensions.get("pace")
    stream = response.extensions.get("network_stream")
    buffers: Buffers = response.extensions["buffers"]
    large = length is not None and length >= LARGE and isinstance(stream, DirectStream) and stream.can_receive_into
    if large and isinstance(pace, Pace):
        assert length is not None
        assert isinstance(stream, DirectStream)
        with buffers.reserved(BUFFER, UNIT) as size:
            yield from _received(response, stream, pace, length, size)
        return
    piece = SYSTEM_READ if length is None else min(length, SYSTEM_READ)
    with buffers.reserved(piece, piece):
        yield from (memoryview(one) for one in response.iter_raw())


def _received(
    response: httpx.Response, stream: DirectStream, pace: Pace, length: int, size: int
) -> Iterator[memoryview]:
    """Yield a body of ``length`` bytes, received into a buffer of ``size`` bytes."""
    rest = response.iter_raw()  # referenced until the end, because httpcore closes the connection with this generator
    first = next(rest, b"")
    yield memoryview(first)
    left = length - len(first) if first else 0
    count_received = response.extensions.get("count_received")
    received = len(first)
    buffer = memoryview(bytearray(size))
    step, window, began = 0, 0, time.monotonic()
    while left > 0:
        view = buffer[: min(left, step - received % UNIT if step else size)]
        pace.resume()
        try:
            with translated_errors():
                count = stream.receive_into(view, pace, at_least=len(view) if step else 1)
        except httpx.RequestError as e:
            e.request = response.request
            raise
        pace.pause(count)
        if not count:
            return
        left -= count
        received += count
        window += count
        if window >= max(step, UNIT):
            now = time.monotonic()
            step = min(fast_step(window, now - began), size // UNIT * UNIT)
            began, window = now, 0
        if count_received is not None:
            count_received(count)
        yield buffer[:count]


def fast_step(size: int, seconds: float) -> int:
    """Return the size of the next pieces of a body, given that its last ``size`` bytes arrived within ``seconds``.

    Returns 0 if the body is too slow to wait for more bytes.
    """
    expected = BUFFER if seconds <= 0 else min(int(size * WAIT / seconds), BUFFER)
    return expected // UNIT * UNIT
