"""Verify the chunks of a blob by digests from elsewhere, before they are stored.

The digests are those of a chunk table (``layers.chunk_table``), whose chunks have ``CHUNK`` bytes. A chunk of the store
consists of one or more of them. Threading: any thread may call every function.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from kitfs.content import Source
from kitfs.errors import WrongChunk
from kitfs.layers.chunk_table import CHUNK, DIGEST

Data = bytes | bytearray | memoryview
Item = TypeVar("Item")


class ChunkDigests(Protocol):
    """The digests of the chunks of one blob.

    Digests with the same ``key`` are equal.
    """

    @property
    def key(self) -> str: ...

    def load(self) -> bool:
        """Prepare the digests, which may need the network. Return whether they exist. Raises KitfsError."""
        ...

    def digests(self, first: int, count: int, /) -> bytes:
        """Return ``count`` digests from that of chunk ``first`` on, each of 32 bytes. Raises KitfsError."""
        ...


def check_chunks(table: ChunkDigests, offset: int, data: Data, name: str) -> None:
    """Raise WrongChunk unless ``data`` has the bytes of the blob at ``offset``.

    ``offset`` is at the beginning of a chunk, and ``data`` ends at the end of a chunk or of the blob. ``name`` names
    the blob in the message.
    """
    view, first = memoryview(data), offset // CHUNK
    expected = table.digests(first, -(-len(view) // CHUNK))
    for number, at in enumerate(range(0, len(view), CHUNK)):
        if hashlib.sha256(view[at : at + CHUNK]).digest() != expected[number * DIGEST : (number + 1) * DIGEST]:
            raise WrongChunk(f"{name}: the bytes at {offset + at} do not match their digest in the chunk table")


class Endpoints:
    """The endpoints of a source that several threads read. One that has sent a wrong chunk is not used again."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._passed_by = 0  # how many endpoints are not used any more

    def receive(self, receive: Callable[[Item], object], item: Item) -> None:
        """Call ``receive(item)``, which reads the source. After WrongChunk, call it again with another endpoint.

        Raises WrongChunk if the source has no other endpoint.
        """
        while True:
            before = self._passed_by
            try:
                receive(item)
                return
            except WrongChunk:
                with self._lock:
                    if self._passed_by == before:  # no other thread has dropped the endpoint
                        if not self._source.distrust():
                            raise
                        self._passed_by += 1
