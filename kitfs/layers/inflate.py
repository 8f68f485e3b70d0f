"""Decode gzip streams with the system's zlib (``libz``): record restart points on the way, and start from a point.

Threading: a decoder belongs to the thread that iterates over it.
"""

from __future__ import annotations

import ctypes
import hashlib
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from kitfs.errors import LayerError
from kitfs.layers.libz import BLOCK, GZIP, NO_FLUSH, RAW, Inflate
from kitfs.layers.points import Point, Recorder, RestartPoints
from kitfs.openfile import PIECE

TRAILER: Final = 8  # bytes after the last block of a gzip member: its CRC-32 and its length (RFC 1952 §2.3)
Bytes = bytes | bytearray | memoryview


def gunzip(stream: Iterable[Bytes], recorder: Recorder | None = None, start: Point | None = None) -> Iterator[bytes]:
    """Decode gzip members that arrive in pieces of any size, and yield pieces of at most ``PIECE`` bytes.

    With ``start``, the stream begins at that point, or with the byte before the point if the point has bits. The CRC-32
    of a member that is decoded from its middle is not checked. Raises LayerError for a stream that is damaged or cut
    off.
    """
    pieces = (bytes(piece) for piece in stream if len(piece))
    members = _Members(recorder)
    try:
        if start is not None and start.window is not None:
            first = next(pieces, b"")
            value = first[0] >> (8 - start.bits) if start.bits and first else 0
            members.resume(start, value)
            yield from members.decode(first[1:] if start.bits else first)
        for data in pieces:
            yield from members.decode(data)
    except zlib.error as e:
        raise LayerError(f"the blob is not gzip, or is damaged: {e}")
    if not members.whole:
        raise LayerError("the gzip stream is cut off")


class PointsMaker:
    """A maker of the restart points of a gzip stream that is being written, and whose bytes are given in order."""

    def __init__(self) -> None:
        self._recorder = Recorder("gzip")
        self._members = _Members(self._recorder)
        self._hasher = hashlib.sha256()
        self._size = 0

    def update(self, data: bytes) -> None:
        """Decode the next bytes of the stream. Raises LayerError if they are not gzip."""
        self._size += len(data)
        try:
            for piece in self._members.decode(data):
                self._hasher.update(piece)
        except zlib.error as e:
            raise LayerError(f"the stream is not gzip: {e}")

    def points(self) -> RestartPoints | None:
        """Return the points, after the last byte; None if they would be of no use."""
        return self._recorder.points(self._hasher.hexdigest(), self._size)


class _Members:
    """The state of a decoder of several gzip members between two pieces of its input."""

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder
        self._buffer = ctypes.create_string_buffer(PIECE)
        self._filled = 0
        self._out = 0  # decoded bytes
        self._in = 0  # bytes of the pieces before this one
        self._member: Inflate | None = None
        self._ended = 0  # members that have ended
        self._padding = False  # whether the zeros after the last member have begun
        self._raw = False  # whether zlib leaves the trailer of the current member to this object
        self._skip = 0  # bytes of that trailer that are left

    @property
    def whole(self) -> bool:
        """Return whether the bytes so far are complete members."""
        return self._member is None and self._ended > 0 and not self._skip

    def resume(self, start: Point, value: int) -> None:
        """Begin in the middle of a member. ``value`` has the bits before the first byte."""
        self._member, self._raw = Inflate(RAW), True
        self._member.restore(start.window or b"", start.bits, value)

    def decode(self, data: bytes) -> Iterator[bytes]:
        """Decode the next piece of the stream. Raises ``zlib.error`` and LayerError."""
        at = min(self._skip, len(data))
        self._skip -= at
        while at < len(data):
            if self._member is None:
                self._begin(data, at)
            if self._member is None:
                break
            self._member.feed(data, at)
            ended = False
            while not ended:
                room, flush = self._room()
                count, ended = self._member.run(ctypes.addressof(self._buffer) + self._filled, room, flush)
                self._filled += count
                self._out += count
                if flush == BLOCK and not ended:
                    self._offer(self._member, self._in + len(data) - self._member.left)
                if self._filled == PIECE:
                    yield self._taken()
                if not self._member.left and count < room:
                    break  # zlib needs more input
            at = len(data) - self._member.left
            if ended:
                at = self._end(data, at)
        self._in += len(data)
        if self._filled:
            yield self._taken()

    def _begin(self, data: bytes, at: int) -> None:
        """Begin a member, unless the padding has begun.

        Zeros after a member are padding, because no member begins with zeros.
        """
        self._padding = self._padding or (self._ended > 0 and data[at] == 0)
        if self._padding:
            if data[at:].strip(b"\0"):
                raise LayerError("the gzip stream continues after its padding")
            return
        self._member = Inflate(GZIP)
        if self._recorder is not None:
            self._recorder.offer(self._out, self._in + at)

    def _end(self, data: bytes, at: int) -> int:
        """End a member. Returns the offset after the part of its trailer that is in ``data``."""
        if self._member is not None:
            self._member.close()
        self._member = None
        self._ended += 1
        if self._raw:
            skipped = min(TRAILER, len(data) - at)
            self._raw, self._skip, at = False, TRAILER - skipped, at + skipped
        return at

    def _room(self) -> tuple[int, int]:
        """Return how many bytes zlib may decode now, and whether it stops after the next block."""
        room = PIECE - self._filled
        if self._recorder is None:
            return room, NO_FLUSH
        quiet = self._recorder.quiet(self._out)
        return (min(room, quiet), NO_FLUSH) if quiet else (room, BLOCK)

    def _offer(self, member: Inflate, at: int) -> None:
        bits = member.bits
        if bits is not None and self._recorder is not None:
            self._recorder.offer(self._out, at, bits, member.window)

    def _taken(self) -> bytes:
        """Take the decoded bytes out of the buffer."""
        piece = ctypes.string_at(self._buffer, self._filled)
        self._filled = 0
        if self._recorder is not None:
            self._recorder.update(piece)
        return piece
