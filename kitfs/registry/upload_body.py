"""The body of a request that sends a blob, or a part of one: read from the local copy each time that it is sent.
Threading: none of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx

from kitfs.errors import IntegrityError, StoreError

Read = Callable[[int], Iterator[bytes]]


class Body(httpx.SyncByteStream):
    """The bytes [start, stop) of a blob, read again each time they are sent; ``sent`` is told the place up to which
    they went out.
    """

    def __init__(self, read: Read, start: int, stop: int, what: str, sent: Callable[[int], None]) -> None:
        self._read = read
        self._start = start
        self._stop = stop
        self._what = what
        self._sent = sent

    @property
    def size(self) -> int:
        """Bytes."""
        return self._stop - self._start

    def __iter__(self) -> Iterator[bytes]:
        """Pieces. Raises StoreError when they cannot be read, IntegrityError when there are too few."""
        at = self._start
        self._sent(at)
        pieces = self._pieces()
        while at < self._stop:
            piece = next(pieces, b"")[: self._stop - at]
            if not piece:
                raise IntegrityError(
                    f"{self._what}: the local copy ends at byte {at}, before the end that its descriptor says"
                )
            yield piece
            at += len(piece)
            self._sent(at)

    def _pieces(self) -> Iterator[bytes]:
        try:
            yield from (piece for piece in self._read(self._start) if piece)
        except OSError as e:
            raise StoreError(f"{self._what}: the local copy cannot be read: {e}")
