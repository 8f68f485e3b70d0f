"""Define the restart points of a compressed layer: where a decoder can start, and how the result is checked.

A first pass over the layer makes them (``Recorder``). After that, any span of the decoded bytes can be decoded alone.
The layer is divided into *spans* of 4 MiB of decoded bytes, and there is a digest for every span. For every span, there
is a *point* as close as possible before it, where a decoder can start. A point of zstd is the beginning of a frame. A
point of gzip is the beginning of a member, or lies between two blocks of deflate. A point between two blocks has a
*window*: the decoded bytes before it, up to 32 KiB, to which later blocks refer.

The byte form, in which all numbers are little-endian:

    8 bytes    MAGIC
    u8         VERSION
    u8         the compression: 1 for gzip, 2 for zstd
    u16        flags: 1 if there are digests; 2 if the windows are stored apart from the rest
    u32        number of points
    u32        decoded bytes of a span
    u64        size of the layer's blob in bytes
    u64        size of the decoded bytes
    32 bytes   sha256 of the decoded bytes; zeros without digests
    32 bytes   for each span: the sha256 of its decoded bytes; missing without digests
    u64        for each point: the offset in the decoded bytes
    u64        for each point: the offset in the blob
    u8         for each point: the bits of the byte before that offset that belong to the next block
    u32        for each point: length of its compressed window; NONE for a point that needs no window
    then the windows, each compressed as a zstd frame, and the CRC-32 of everything before (u32)

Threading: a ``RestartPoints`` is immutable; a ``Recorder`` belongs to one decoder at a time.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import struct
import sys
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from kitfs.layers.libz import WINDOW

SPAN: Final = 4 << 20  # decoded bytes that one digest covers, and the distance of points in a layer of up to 8 GiB
MIN_SPAN: Final = 32 << 10  # a span consists of whole chunks of the store
MAX_SPAN: Final = 64 << 20  # a decoder keeps a span in memory until its digest is checked
NEAR: Final = 16  # every block in the last sixteenth before a span is considered as its point
STOPS: Final = 4096  # after so many blocks in a span, no further point is looked for: blocks can be empty
MAX_WINDOWS: Final = 2048  # points with a window; if there are more, every second is dropped (64 MiB at most)
MAX_LENGTH: Final = WINDOW + 1024  # bytes of a compressed window
MAX_POINTS: Final = 1 << 18
MAX_GAP: Final = 256 << 20  # decoded bytes between two points: decoding them takes half a second
MAX_SIZE: Final = 1 << 40  # decoded bytes of a layer that has restart points; the digests then take 8 MiB
MAGIC: Final = b"kitfsrst"
VERSION: Final = 1
NONE: Final = 0xFFFFFFFF
DIGESTS: Final = 1  # flags
APART: Final = 2
_HEADER: Final = struct.Struct("<8sBBHIIQQ32s")
FLAGS: Final = 10  # offset of the flags
_CODES: Final = {"gzip": 1, "zstd": 2}
_NAMES: Final = {code: name for name, code in _CODES.items()}


class Point(NamedTuple):
    """A place where a decoder can start: the decoded bytes from ``out`` on begin at byte ``at`` of the blob.

    ``bits`` bits of the byte before ``at`` come first. ``window`` has the decoded bytes before ``out`` that are needed;
    it is None at the beginning of a member or frame.
    """

    out: int
    at: int
    bits: int = 0
    window: bytes | None = None


class RestartPoints:
    """The restart points of a layer, in their byte form ``data``.

    The constructor raises ValueError if ``data`` is invalid. ``read`` returns bytes of the windows at an offset, if
    they are stored apart. They need not be verified, because a wrong window results in a span with a wrong digest.
    ``sha256`` and the digests are missing ("" and None) if the points are from the seek table of a layer that was not
    decoded yet.
    """

    __slots__ = (
        "_at",
        "_bits",
        "_digests",
        "_out",
        "_read",
        "_windows",
        "blob_size",
        "compression",
        "data",
        "sha256",
        "size",
        "span",
    )

    def __init__(self, data: bytes | mmap.mmap, read: Callable[[int, int], bytes] | None = None) -> None:
        self.data: Final = data
        self._read: Final = read
        if len(data) < _HEADER.size + 4 or zlib.crc32(memoryview(data)[:-4]) != int.from_bytes(data[-4:], "little"):
            raise ValueError("the restart points are truncated or damaged")
        magic, version, code, flags, count, span, blob_size, size, digest = _HEADER.unpack_from(data)
        if magic != MAGIC or version != VERSION or code not in _NAMES or flags & ~(DIGESTS | APART):
            raise ValueError("the bytes are not restart points, or are of another version")
        if not 0 < count <= MAX_POINTS or size > MAX_SIZE or blob_size >= 1 << 63:
            raise ValueError("the restart points have a wrong number of points, or a wrong size")
        if not MIN_SPAN <= span <= MAX_SPAN or span & (span - 1):
            raise ValueError("the spans of the restart points have a wrong size")
        self.compression: Final = _NAMES[code]
        self.blob_size: Final[int] = blob_size
        self.size: Final[int] = size
        self.span: Final[int] = span
        self.sha256: Final = digest.hex() if flags & DIGESTS else ""
        if bool(flags & APART) != (read is not None):
            raise ValueError("the windows of the restart points are in another place")
        digests = 32 * -(-size // span) if flags & DIGESTS else 0
        at = _HEADER.size + digests
        if at + count * 21 + 4 > len(data):
            raise ValueError("the restart points are truncated or damaged")
        self._digests: Final = data[_HEADER.size : at]
        self._out: Final = _numbers("Q", data[at : at + 8 * count])
        self._at: Final = _numbers("Q", data[at + 8 * count : at + 16 * count])
        self._bits: Final = data[at + 16 * count : at + 17 * count]
        lengths = _numbers("I", data[at + 17 * count : at + 21 * count])
        ends = itertools.accumulate((0 if n == NONE else n for n in lengths), initial=0 if read else at + 21 * count)
        self._windows: Final = [(end, None if n == NONE else n) for end, n in zip(ends, lengths, strict=False)]
        windows = 0 if read else sum(n for n in lengths if n != NONE)
        if at + 21 * count + windows + 4 != len(data):
            raise ValueError("the restart points are truncated or damaged")
        self._check()

    def _check(self) -> None:
        """Check the points. Raises ValueError."""
        out, at = self._out, self._at
        if out[0] or any(a >= b for a, b in itertools.pairwise(out)) or out[-1] > self.size:
            raise ValueError("the restart points are not in order")
        if at[0] or any(a >= b for a, b in itertools.pairwise(at)) or at[-1] > self.blob_size:
            raise ValueError("the restart points are not in order")
        for bits, (_, length) in zip(self._bits, self._windows, strict=True):
            if length is not None and length > MAX_LENGTH:
                raise ValueError("the window of a restart point is too long")
            if bits > 7 or (length is None and bits) or (length is not None and self.compression != "gzip"):
                raise ValueError("a restart point has invalid bits or an invalid window")
        if self._windows[0][1] is not None or self._bits[0]:
            raise ValueError("the first restart point is not the beginning of the blob")
        if max((b - a for a, b in itertools.pairwise((*out, self.size))), default=0) > MAX_GAP:
            raise ValueError("the restart points are too far apart")

    def __len__(self) -> int:
        return len(self._out)

    def __repr__(self) -> str:
        return f"<RestartPoints {self.compression} {len(self)} points in {self.size} bytes>"

    @property
    def needs_zlib(self) -> bool:
        """Return whether a point has a window, which only ``libz`` can restore."""
        return any(length is not None for _, length in self._windows)

    def digest(self, span: int) -> bytes:
        """Return the sha256 of the span with a number; b"" if it is not known."""
        return self._digests[32 * span : 32 * span + 32]

    def before(self, offset: int) -> Point:
        """Return the last point at or before an offset in the decoded bytes. Raises ValueError for a damaged window."""
        number = bisect_right(self._out, offset) - 1
        start, length = self._windows[number]
        window = None if length is None else _decompressed(self._window(start, length))
        return Point(self._out[number], self._at[number], self._bits[number], window)

    def _window(self, start: int, length: int) -> bytes:
        return self.data[start : start + length] if self._read is None else self._read(start, length)

    def apart(self) -> tuple[bytes, bytes]:
        """Return (points, windows), so that a reader need not read all windows. The windows must not be apart yet."""
        start = self._windows[0][0]
        data = bytearray(self.data[:start])
        struct.pack_into("<H", data, FLAGS, DIGESTS * bool(self.sha256) | APART)
        return bytes(data) + zlib.crc32(data).to_bytes(4, "little"), self.data[start:-4]

    def position(self, offset: int) -> int:
        """Return the offset in the blob of the last point at or before an offset in the decoded bytes."""
        return self.blob_size if offset >= self.size else self._at[bisect_right(self._out, offset) - 1]

    def piece(self, start: int, stop: int) -> tuple[int, int]:
        """Return the smallest range of decoded bytes around [start, stop) that a decoder yields and checks whole.

        It consists of spans if there are digests, and otherwise of the bytes between two points.
        """
        if self.sha256:
            return start // self.span * self.span, min(self.size, -(-stop // self.span) * self.span)
        after = bisect_left(self._out, stop)
        end = self._out[after] if after < len(self._out) else self.size
        return self._out[bisect_right(self._out, start) - 1], end


def restart_points(
    compression: str,
    points: Sequence[Point],
    *,
    size: int,
    blob_size: int,
    span: int = SPAN,
    sha256: str = "",
    digests: Sequence[bytes] = (),
) -> RestartPoints:
    """Return the value of points in ascending order.

    ``Point.window`` must be compressed. Raises ValueError for invalid points.
    """
    code = _CODES.get(compression, 0)
    flags = DIGESTS if sha256 else 0
    if len(points) > MAX_POINTS:
        raise ValueError("there are too many restart points")
    lengths = [NONE if p.window is None else len(p.window) for p in points]
    parts = [
        _HEADER.pack(MAGIC, VERSION, code, flags, len(points), span, blob_size, size, bytes.fromhex(sha256)),
        *digests,
        _bytes("Q", [p.out for p in points]),
        _bytes("Q", [p.at for p in points]),
        bytes(p.bits for p in points),
        _bytes("I", lengths),
        *(p.window or b"" for p in points),
    ]
    data = b"".join(parts)
    return RestartPoints(data + zlib.crc32(data).to_bytes(4, "little"))


def _numbers(code: str, data: bytes) -> array[int]:
    numbers: array[int] = array(code)
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _bytes(code: str, numbers: Sequence[int]) -> bytes:
    packed: array[int] = array(code, numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _compressed(window: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=1).compress(window)


def _decompressed(data: bytes) -> bytes:
    """Decompress a window. Raises ValueError if it is damaged or too long."""
    import zstandard

    try:
        if not 0 <= zstandard.frame_content_size(data) <= WINDOW:
            raise ValueError("the window of a restart point is too long")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=WINDOW)
    except zstandard.ZstdError as e:
        raise ValueError(f"the window of a restart point is damaged: {e}")


class Recorder:
    """A recorder collects the restart points of a layer while a decoder reads the layer from its beginning.

    ``span`` is the size of a span in bytes. If more than ``max_windows`` points have a window, every second is dropped.
    """

    def __init__(self, compression: str, *, span: int = SPAN, max_windows: int = MAX_WINDOWS) -> None:
        self._compression = compression
        self._span = span
        self._max_windows = max_windows
        self._points: list[Point] = []
        self._latest: Point | None = None  # the last point that was offered, not kept yet
        self._spacing = span
        self._next = 0  # a point close before this offset is looked for
        self._stops = 0
        self._windows = 0
        self._digests: list[bytes] = []
        self._hasher: Any = hashlib.sha256()
        self._size = 0

    def quiet(self, out: int) -> int:
        """Return for how many bytes after ``out`` no point is needed; 0 if the decoder should stop at each block.

        Each considered point halves the distance to the span, because the last block before the span may be long.
        """
        if out > self._next:
            self._keep(out)
        if self._stops > STOPS:
            return max(1, self._next - out)
        found = self._latest or (self._points[-1] if self._points else None)
        near = self._span // NEAR
        if found is None or found.out < self._next - self._spacing - near:
            return 0  # the blocks are long, and none began close before the last span
        return max(0, self._next - max(near, (self._next - found.out) // 2) - out)

    def offer(self, out: int, at: int, bits: int = 0, window: Callable[[], bytes] | None = None) -> None:
        """Consider a point. ``window`` returns its window; None at the beginning of a member or frame."""
        if out > self._next:
            self._keep(out)
        self._stops += 1
        if self._latest is not None and self._latest.out == out:
            return  # a header or an empty block or member: the first of two such points is as good
        self._latest = Point(out, at, bits, None if window is None else window())

    def _keep(self, out: int) -> None:
        """Keep the latest point. The decoder has passed the offset for which a point was looked for."""
        latest, self._latest = self._latest, None
        while self._next < out:
            self._next += self._spacing
        self._stops = 0
        if latest is None or (self._points and self._points[-1].out >= latest.out):
            return
        if latest.window is not None:
            self._windows += 1
            latest = latest._replace(window=_compressed(latest.window))
        self._points.append(latest)
        if self._windows > self._max_windows or len(self._points) > MAX_POINTS:
            self._points = self._points[::2]
            self._windows = sum(p.window is not None for p in self._points)
            self._spacing *= 2

    def update(self, piece: bytes) -> None:
        """Hash the next decoded bytes."""
        view = memoryview(piece)
        while len(view):
            part = view[: self._span - self._size % self._span]
            self._hasher.update(part)
            self._size += len(part)
            view = view[len(part) :]
            if self._size % self._span == 0:
                self._digests.append(self._hasher.digest())
                self._hasher = hashlib.sha256()

    def points(self, sha256: str, blob_size: int) -> RestartPoints | None:
        """Return the points of a layer that was decoded to its end. Its decoded bytes have the digest ``sha256``.

        Returns None if the layer has too few points to be of use, such as a large layer with a single frame.
        """
        if self._latest is not None:
            self._keep(self._size + 1)
        digests = [*self._digests, self._hasher.digest()] if self._size % self._span else self._digests
        while len(self._points) > 1 and self._points[-1].out >= self._size:
            self._points.pop()  # the beginning of an empty member at the end
        try:
            return restart_points(
                self._compression,
                self._points,
                size=self._size,
                blob_size=blob_size,
                span=self._span,
                sha256=sha256,
                digests=digests,
            )
        except ValueError:
            return None
