"""Decode gzip and zstd streams piece by piece. ``DecodedSource`` is the source of the decoded form of a blob.

A stream may have several gzip members or zstd frames (RFC 1952 §2.2, RFC 8878 §3.1). Zeros may follow the last gzip
member, as gzip itself allows. A piece of the output has at most ``PIECE`` bytes, so that a decompression bomb does not
exhaust the memory. Threading: a decoder belongs to the thread that iterates over it.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Final

from kitfs.errors import LayerError, UnsupportedLayer
from kitfs.layers.inflate import gunzip
from kitfs.layers.libz import INFLATE
from kitfs.layers.points import Point, Recorder, RestartPoints
from kitfs.openfile import PIECE

SLICE: Final = 64 << 10
MAX_WINDOW: Final = 128 << 20  # bytes of a zstd window: what `zstd --ultra -22 --long=27` needs
Bytes = bytes | bytearray | memoryview


def decode(
    stream: Iterable[Bytes],
    compression: str,
    *,
    recorder: Recorder | None = None,
    start: Point | None = None,
    system: bool = INFLATE,
) -> Iterator[bytes]:
    """Decode a stream that arrives in pieces of any size. ``compression`` is "gzip" or "zstd".

    ``recorder`` collects the restart points of the stream. With ``start``, the stream begins at that point, or with the
    byte before the point if the point has bits. ``system`` selects the system's zlib instead of the ``zlib`` module,
    which cannot start at a point that has a window. Raises LayerError for a stream that is damaged or cut off, and
    UnsupportedLayer for another ``compression``.
    """
    if compression == "gzip":
        return gunzip(stream, recorder, start) if system else _gzip(stream, recorder)
    if compression == "zstd":
        return _zstd(stream, recorder)
    raise UnsupportedLayer(f"compression {compression!r} is not supported (only gzip and zstd are)")


def _gzip(stream: Iterable[Bytes], recorder: Recorder | None) -> Iterator[bytes]:
    """Decode gzip with the ``zlib`` module, whose only restart points are the beginnings of members."""
    decoder = None
    members = out_at = in_at = 0
    padding = False
    for data in _sliced(stream):
        in_at += len(data)
        if padding and data.strip(b"\0"):
            raise LayerError("the gzip stream continues after its padding")
        while not padding:
            if decoder is None:
                padding = (
                    members > 0 and data[:1] == b"\0"
                )  # a member cannot begin with zeros, and RFC 1952 does not forbid padding
                if padding and data.strip(b"\0"):
                    raise LayerError("the gzip stream continues after its padding")
                if padding or not data:
                    break
                decoder = zlib.decompressobj(wbits=31)
                if recorder is not None:
                    recorder.offer(out_at, in_at - len(data))
            try:
                out = decoder.decompress(data, PIECE)
            except zlib.error as e:
                raise LayerError(f"the blob is not gzip, or is damaged: {e}")
            if out:
                if recorder is not None:
                    recorder.update(out)
                yield out
                out_at += len(out)
            if decoder.eof:
                members += 1
                data = decoder.unused_data
                decoder = None
            else:
                data = decoder.unconsumed_tail
                if not data and len(out) < PIECE:
                    break
    if decoder is not None or not members:
        raise LayerError("the gzip stream is cut off")


def _sliced(stream: Iterable[Bytes]) -> Iterator[bytes]:
    """Yield small pieces of a stream, because zlib copies the rest of its input at every call."""
    for piece in stream:
        view = memoryview(piece)
        for at in range(0, len(view), SLICE):
            yield bytes(view[at : at + SLICE])


def _zstd(stream: Iterable[Bytes], recorder: Recorder | None) -> Iterator[bytes]:
    """Decode zstd frame by frame. The beginnings of frames are the restart points."""
    import zstandard

    pieces = _Pieces(stream)
    decompressor: Any = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    out_at = 0
    while pieces.next_frame():
        if recorder is not None:
            recorder.offer(out_at, pieces.at)
        reader = decompressor.stream_reader(pieces, read_size=PIECE)
        try:
            while out := reader.read(PIECE):
                if recorder is not None:
                    recorder.update(out)
                yield out
                out_at += len(out)
        except zstandard.ZstdError as e:
            raise LayerError(f"the blob is not zstd, or is damaged: {e}")
        finally:
            reader.close()
        if not pieces.frame_ended:
            raise LayerError("the zstd stream is cut off")
    if not pieces.at:
        raise LayerError("the zstd stream is cut off")


class _Pieces:
    """A file object for zstandard that reads a stream of pieces, and ends at the end of every frame.

    The object parses the frames, because zstandard reports neither where a frame ends nor that it is cut off.
    """

    def __init__(self, stream: Iterable[Bytes]) -> None:
        self._stream = iter(stream)
        self._piece = b""
        self._used = 0  # bytes of the piece that were read
        self._frames = _Frames()
        self.at = 0  # bytes of the stream that were read

    @property
    def frame_ended(self) -> bool:
        """Return whether the last byte of the current frame was read."""
        return bool(self._frames.ends) and self._frames.ends[0] == self.at

    def next_frame(self) -> bool:
        """Go on to the next frame. Returns False at the end of the stream."""
        if self.frame_ended:
            self._frames.ends.popleft()
        return self._fill()

    def _fill(self) -> bool:
        while self._used == len(self._piece):
            piece = next(self._stream, None)
            if piece is None:
                return False
            self._piece, self._used = bytes(piece), 0
            self._frames.feed(self._piece)
        return True

    def read(self, size: int) -> bytes:
        """Return bytes of the current frame; none at its end, or at the end of the stream."""
        if self.frame_ended or not self._fill():
            return b""
        ends = self._frames.ends
        size = min(size, ends[0] - self.at) if ends else size
        out = self._piece[self._used : self._used + size]
        self._used += len(out)
        self.at += len(out)
        return out

    def close(self) -> None:
        """Do nothing, because the stream belongs to the caller."""


class _Frames:
    """A parser that finds the ends of zstd frames by their block headers (RFC 8878 §3.1.1)."""

    MAGIC: Final = 0xFD2FB528
    SKIPPABLE: Final = 0x184D2A50

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0
        self._step = self._magic
        self._checksum = False
        self._frame_ends = False  # whether the last step was the last of its frame
        self._parsed = 0  # the offset of the buffer in the stream
        self.ends: deque[int] = deque()  # the offsets at which frames end, as far as their last blocks have begun

    def feed(self, data: bytes) -> None:
        """Parse the next bytes of the stream."""
        if self._skip >= len(data):
            self._skip -= len(data)
            self._parsed += len(data)
            return
        self._buffer += data[self._skip :]
        self._parsed += self._skip
        self._skip = 0
        at = 0
        while True:
            used = self._step(at)
            if used == 0:
                break
            at += used
            if self._frame_ends:
                self._frame_ends = False
                self.ends.append(self._parsed + at)
            if at > len(self._buffer):
                self._skip = at - len(self._buffer)
                at = len(self._buffer)
                break
        del self._buffer[:at]
        self._parsed += at

    def _magic(self, at: int) -> int:
        head = self._buffer[at : at + 18]  # the length of the longest frame header
        magic = int.from_bytes(head[:4], "little")
        if len(head) >= 8 and magic & 0xFFFFFFF0 == self.SKIPPABLE:
            self._frame_ends = True
            return 8 + int.from_bytes(head[4:8], "little")
        if len(head) < 5 or magic != self.MAGIC:
            return 0
        descriptor = head[4]
        single = descriptor >> 5 & 1
        content = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]  # the offset of the content size field
        stop = content + ((1 if single else 0), 2, 4, 8)[descriptor >> 6]
        if len(head) < stop:
            return 0
        if single:
            window = int.from_bytes(head[content:stop], "little")
        else:
            base = 1 << 10 + (head[5] >> 3)
            window = base + base // 8 * (head[5] & 7)
        if window > MAX_WINDOW:
            raise LayerError(
                f"the zstd stream has a window of more than {MAX_WINDOW >> 20} MiB "
                "(compress the layer with zstd --long=27 or lower)"
            )
        self._checksum = bool(descriptor & 4)
        self._step = self._block
        return stop

    def _block(self, at: int) -> int:
        head = self._buffer[at : at + 3]
        if len(head) < 3:
            return 0
        word = int.from_bytes(head, "little")
        size = 1 if word >> 1 & 3 == 1 else word >> 3
        if word & 1:
            self._step = self._magic
            self._frame_ends = True
            size += 4 if self._checksum else 0
        return 3 + size


class DecodedSource:
    """A source that decodes a compressed blob. Every read begins at offset 0.

    ``open_stream`` returns the compressed bytes from offset 0; it is called for every ``read_range``. Before each piece
    is yielded, ``allow`` is called with the number of decoded bytes up to the end of that piece. ``allow`` raises an
    error if the number is too large (``growth.Growth``). Without ``record``, no restart points are made.
    """

    def __init__(
        self,
        open_stream: Callable[[], Iterable[Bytes]],
        compression: str,
        allow: Callable[[int], None] = lambda total: None,
        *,
        record: bool = True,
    ) -> None:
        self._open = open_stream
        self._compression = compression
        self._allow = allow
        self._record = record
        self._size: int | None = None
        self._recorder: Recorder | None = None  # the recorder of a read that has reached the end

    @property
    def size(self) -> int | None:
        """Return the number of decoded bytes; None until a read has reached the end."""
        return self._size

    @property
    def ranged(self) -> bool:
        """Return False, because a decoder can only begin at the beginning."""
        return False

    @property
    def sender(self) -> str:
        """Return "", because the decoded bytes do not come from a server."""
        return ""

    def distrust(self) -> bool:
        """Return False, because a second attempt would yield the same bytes."""
        return False

    def read_range(self, start: int, stop: int | None, /) -> Generator[tuple[int, memoryview], None, None]:
        """Yield (offset, bytes) from offset 0 to the end, whatever range is requested.

        Raises LayerError, and the errors of ``allow`` and of the compressed blob.
        """
        at = 0
        recorder = Recorder(self._compression) if self._record else None
        for piece in decode(self._open(), self._compression, recorder=recorder):
            self._allow(at + len(piece))
            yield at, memoryview(piece)
            at += len(piece)
        self._size, self._recorder = at, recorder

    def points(self, sha256: str, blob_size: int) -> RestartPoints | None:
        """Return the restart points that a read to the end has made; None if there are none.

        ``sha256`` is the digest of the decoded bytes, and ``blob_size`` the number of compressed bytes.
        """
        return None if self._recorder is None else self._recorder.points(sha256, blob_size)
