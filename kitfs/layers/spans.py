"""Decode any span of a compressed layer alone, from its restart points. ``SpanSource`` is the source of such spans.

Only the compressed bytes between the nearest point and the end of the span are fetched. If the points have digests, a
span is yielded only after its digest was checked. Threading: every ``read_range`` is independent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Final, Protocol

from kitfs.errors import IntegrityError, LayerError
from kitfs.layers.codec import decode
from kitfs.layers.points import Point, RestartPoints
from kitfs.openfile import PIECE

ALONE: Final = 16 << 20  # compressed bytes of a range that are fetched by one request and without reading ahead
STEP: Final = 128 << 10  # bytes fetched after that, until the decoder has reached the end of the range; then doubled
MAX_STEP: Final = 4 << 20  # bytes
REPAIRS: Final = 3  # times that bytes are decoded again because the store's file has other bytes


class CompressedBlob(Protocol):
    """The blob that is decoded. ``sealed`` is True if it is verified.

    ``generation`` changes when wrong bytes were dropped.
    """

    @property
    def size(self) -> int | None: ...

    @property
    def sealed(self) -> bool: ...

    @property
    def generation(self) -> int: ...

    def pread(self, offset: int, size: int, *, alone: bool = False) -> bytes: ...

    def fetch(self, offset: int, size: int, *, alone: bool = False) -> bool: ...

    def will_read(self, start: int) -> None: ...

    def refuse(self, error: IntegrityError, /) -> bool:
        """Drop unverified bytes, because they are wrong. Returns whether they can be fetched from elsewhere."""
        ...


class WrongPointsError(LayerError):
    """The restart points do not belong to the layer."""


class SpanSource:
    """A source that decodes ranges of ``blob`` from its restart points.

    ``is_proven`` is True if the points were made from the verified blob. Then a span with a wrong digest shows that
    unverified bytes of the blob are wrong; otherwise the points are wrong.
    """

    def __init__(self, points: RestartPoints, blob: CompressedBlob, *, is_proven: bool) -> None:
        self.points: Final = points
        self._is_proven = is_proven
        self._blob = blob
        self._repairs = REPAIRS

    @property
    def size(self) -> int | None:
        """Return the number of decoded bytes."""
        return self.points.size

    @property
    def ranged(self) -> bool:
        """Return True, because a decoder can begin at every restart point."""
        return True

    @property
    def sender(self) -> str:
        """Return "", because the decoded bytes do not come from a server."""
        return ""

    def distrust(self) -> bool:
        """Return True a few times. The spans were right when they were decoded, so the disk has changed them."""
        self._repairs -= 1
        return self._repairs >= 0

    def read_range(self, start: int, stop: int | None, /) -> Generator[tuple[int, memoryview], None, None]:
        """Yield (offset, bytes) for the range, a span at a time.

        Raises LayerError, the errors of the blob, and WrongPointsError if the points do not belong to the verified
        blob.
        """
        stop = self.points.size if stop is None else min(stop, self.points.size)
        while start < stop:
            generation = self._blob.generation
            try:
                for at, data in self._spans(*self.points.piece(start, stop)):
                    low, high = max(at, start), min(at + len(data), stop)
                    if low < high:
                        yield low, memoryview(data)[low - at : high - at]
                        start = high
            except WrongPointsError as e:
                if self._blob.generation != generation:
                    continue  # the wrong bytes were dropped meanwhile
                if self._blob.sealed or not self._is_proven:
                    raise
                error = IntegrityError(f"the compressed bytes that were received for it are wrong: {e}")
                if not self._blob.refuse(error):
                    raise error

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, bytes | bytearray]]:
        """Yield (offset, bytes) for every span from ``start`` to ``stop``, which are the borders of spans."""
        first = self.points.position(start)
        alone = self.points.position(stop) - first <= ALONE
        if not alone:
            self._blob.will_read(first)
        if self.points.sha256:
            yield from self._checked(start, stop, alone)
            return
        while start < stop:  # without digests, every frame is decoded alone, so that its size is checked
            end = self.points.piece(start, start + 1)[1]
            with closing(self._decoded(start, end, alone)) as pieces:
                yield start, b"".join(pieces)
            start = end

    def _checked(self, start: int, stop: int, alone: bool) -> Iterator[tuple[int, bytearray]]:
        span = bytearray()
        with closing(self._decoded(start, stop, alone)) as pieces:
            for piece in pieces:
                view = memoryview(piece)
                while len(view):
                    wanted = min(self.points.span, stop - start)
                    part = view[: wanted - len(span)]
                    span += part
                    view = view[len(part) :]
                    if len(span) == wanted:
                        if hashlib.sha256(span).digest() != self.points.digest(start // self.points.span):
                            raise WrongPointsError(f"the decoded bytes from {start} on do not match their digest")
                        yield start, span
                        start, span = start + wanted, bytearray()
        if start < stop:
            raise WrongPointsError(f"the compressed bytes end before byte {start} of the decoded bytes")

    def _decoded(self, start: int, stop: int, alone: bool) -> Generator[memoryview, None, None]:
        """Yield the decoded bytes from ``start`` to ``stop`` in pieces. Raises WrongPointsError if that fails.

        Without digests, whole frames must contain exactly these bytes. With ``alone``, no later bytes of the blob are
        fetched ahead.
        """
        exact = not self.points.sha256
        try:
            point = self.points.before(start)
            at = point.out
            compressed = self._compressed(point, stop, exact, alone)
            for piece in decode(compressed, self.points.compression, start=point):
                view = memoryview(piece)[max(0, start - at) : stop - at]
                at += len(piece)
                if len(view):
                    yield view
                if at > stop if exact else at >= stop:
                    break
        except (LayerError, ValueError) as e:
            raise WrongPointsError(str(e))
        if exact and at != stop:
            raise WrongPointsError(f"a frame does not end at byte {stop} of the decoded bytes")

    def _compressed(self, point: Point, stop: int, exact: bool, alone: bool) -> Iterator[bytes]:
        """Yield the compressed bytes from a point on: first those that are needed up to ``stop``, then a few more.

        With ``exact``, there is a point at ``stop``, and no bytes after that point are yielded.
        """
        at = point.at - (point.bits > 0)
        needed, size = self.points.position(stop), self.points.blob_size
        if needed == size and not exact and needed - self.points.position(stop - 1) > ALONE:
            needed = max(at, self.points.position(stop - 1))  # much padding may follow the last block
        if alone and needed > at:
            self._blob.fetch(at, needed - at, alone=True)
        step = STEP
        while at < (needed if exact else size):
            if at < needed:
                data = self._blob.pread(at, min(PIECE, needed - at), alone=alone)
            else:
                data = self._blob.pread(at, min(step, size - at), alone=alone)
                step = min(2 * step, MAX_STEP)
            if not data:
                return
            yield data
            at += len(data)
