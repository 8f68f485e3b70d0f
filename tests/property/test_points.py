"""Decoded bytes equal those of the standard library, from the beginning and from every restart point."""

from __future__ import annotations

import gzip
import hashlib
import random
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kitfs.errors import LayerError
from kitfs.layers.codec import decode
from kitfs.layers.inflate import PointsMaker
from kitfs.layers.libz import INFLATE
from kitfs.layers.points import MIN_SPAN, Recorder, RestartPoints

FLUSHES = (zlib.Z_NO_FLUSH, zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH, zlib.Z_BLOCK)
bounded = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


class Part(NamedTuple):
    """A member or frame of ``size`` bytes, which repeat after ``repeat`` bytes.

    ``flush``: how the compressor is flushed.
    """

    seed: int
    size: int
    repeat: int
    level: int
    flush: int

    @property
    def content(self) -> bytes:
        unit = random.Random(self.seed).randbytes(max(1, self.repeat))
        return (unit * (self.size // len(unit) + 1))[: self.size]

    def gzip(self) -> bytes:
        deflate, content = zlib.compressobj(self.level, wbits=31), self.content
        out = bytearray()
        for at in range(0, len(content), 9000):
            out += deflate.compress(content[at : at + 9000])
            out += deflate.flush(self.flush) if self.flush != zlib.Z_NO_FLUSH else b""
        return bytes(out + deflate.flush())

    def zstd(self) -> bytes:
        return zstandard.ZstdCompressor(level=1, write_checksum=bool(self.seed % 2)).compress(self.content)


parts = st.lists(
    st.builds(
        Part,
        st.integers(0, 99),
        st.integers(0, 200_000),
        st.sampled_from([1, 100, 5000, 70_000]),
        st.sampled_from([0, 1, 6, 9]),
        st.sampled_from(FLUSHES),
    ),
    min_size=1,
    max_size=4,
)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


def stream_of(given_parts: list[Part], compression: str) -> tuple[bytes, bytes]:
    """Return (compressed stream, content)."""
    made = [part.gzip() if compression == "gzip" else part.zstd() for part in given_parts]
    return b"".join(made), b"".join(part.content for part in given_parts)


def recorded(stream: bytes, content: bytes, compression: str, cut: int, **limits: int) -> RestartPoints | None:
    recorder = Recorder(compression, span=MIN_SPAN, **limits)
    assert b"".join(decode(pieces(stream, cut), compression, recorder=recorder)) == content
    return recorder.points(hashlib.sha256(content).hexdigest(), len(stream))


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@given(given_parts=parts, cut=st.sampled_from([1009, 4096, 100_000, 1 << 20]), most=st.sampled_from([2, 2048]))
@bounded
def test_every_point_restarts(compression: str, given_parts: list[Part], cut: int, most: int) -> None:
    """From every restart point, a decoder yields the rest of the content, and each span has its digest."""
    stream, content = stream_of(given_parts, compression)
    made = recorded(stream, content, compression, cut, max_windows=most)
    assert made is not None
    points = RestartPoints(made.data)
    assert (points.size, points.blob_size) == (len(content), len(stream))
    head, windows = points.apart()
    apart = RestartPoints(head, lambda offset, length: windows[offset : offset + length])
    for number, start in enumerate(range(0, len(content), MIN_SPAN)):
        assert points.digest(number) == hashlib.sha256(content[start : start + MIN_SPAN]).digest()
        point = points.before(start)
        assert point.out <= start
        assert apart.before(start) == point
        rest = pieces(stream[point.at - (point.bits > 0) :], cut)
        assert b"".join(decode(rest, compression, start=point)) == content[point.out :]


@given(given_parts=parts, cut=st.sampled_from([1009, 4096, 100_000]), keep=st.floats(0, 0.999))
@bounded
def test_cut_streams_are_errors(given_parts: list[Part], cut: int, keep: float) -> None:
    """A truncated stream yields the beginning of the content, and then an error unless it ends after a member."""
    stream, content = stream_of(given_parts, "gzip")
    short = stream[: int(len(stream) * keep)]
    out = bytearray()
    try:
        for piece in decode(pieces(short, cut), "gzip", recorder=Recorder("gzip", span=MIN_SPAN)):
            out += piece
        assert gzip.decompress(short) == bytes(out)
    except LayerError:
        with pytest.raises((EOFError, gzip.BadGzipFile)):
            gzip.decompress(short or b"\x1f")
    assert content.startswith(bytes(out))


@pytest.mark.skipif(not INFLATE, reason="the system has no zlib")
def test_points_are_close_to_every_span() -> None:
    """Zlib makes blocks often enough that every span of common content has a point in the quarter before it."""
    content = random.Random(1).randbytes(300_000) + b"text that repeats, with numbers %d" % 7 * 20_000
    stream = gzip.compress(content)
    points = recorded(stream, content, "gzip", 65_536)
    assert points is not None
    assert len(points) >= 300_000 // MIN_SPAN
    for start in range(0, 300_000, MIN_SPAN):
        assert start - points.before(start).out <= MIN_SPAN


def test_damaged_points_are_refused() -> None:
    """Restart points with any changed byte raise ValueError, as do truncated ones."""
    content = random.Random(1).randbytes(100_000)
    made = recorded(gzip.compress(content), content, "gzip", 65_536)
    assert made is not None
    for at in range(0, len(made.data), 97):
        flipped = bytearray(made.data)
        flipped[at] ^= 1
        for data in (bytes(flipped), made.data[:at]):
            with pytest.raises(ValueError, match="restart point"):
                RestartPoints(data)


@given(data=st.binary(max_size=300), at=st.integers(0, 400))
@bounded
def test_any_bytes_are_points_or_refused(data: bytes, at: int) -> None:
    """Bytes with a right checksum are valid restart points, or raise ValueError."""
    content = random.Random(1).randbytes(40_000)
    made = recorded(gzip.compress(content), content, "gzip", 65_536)
    assert made is not None
    changed = made.data[:-4][:at] + data + made.data[:-4][at + len(data) :]
    try:
        points = RestartPoints(changed + zlib.crc32(changed).to_bytes(4, "little"))
        for start in range(0, min(points.size, 1 << 22), MIN_SPAN):
            points.before(start)
    except ValueError:
        pass


@pytest.mark.skipif(not INFLATE, reason="the system has no zlib")
@pytest.mark.parametrize("cut", [999, 1 << 20])
def test_points_are_made_while_a_stream_is_written(cut: int) -> None:
    """A packer makes the points from the bytes that it writes, and they are those that a reader makes."""
    content = random.Random(1).randbytes(1 << 20) * 9
    stream = gzip.compress(content)
    maker, recorder = PointsMaker(), Recorder("gzip")
    for piece in pieces(stream, cut):
        maker.update(piece)
    made = maker.points()
    assert b"".join(decode(pieces(stream, cut), "gzip", recorder=recorder)) == content
    read = recorder.points(hashlib.sha256(content).hexdigest(), len(stream))
    assert made is not None
    assert read is not None
    assert made.data == read.data
    assert len(made) > 2


def test_without_zlib_the_members_are_points() -> None:
    """Where the system's zlib cannot be loaded, the standard library decodes, and only members are restart points."""
    content = random.Random(1).randbytes(100_000)
    stream = gzip.compress(content) * 3
    recorder = Recorder("gzip", span=MIN_SPAN)
    assert b"".join(decode(pieces(stream, 9999), "gzip", recorder=recorder, system=False)) == content * 3
    points = recorder.points(hashlib.sha256(content * 3).hexdigest(), len(stream))
    assert points is not None
    assert not points.needs_zlib
    assert [points.before(at).out for at in (0, 120_000, 299_999)] == [0, 100_000, 200_000]
    point = points.before(120_000)
    assert b"".join(decode([stream[point.at :]], "gzip", start=point, system=False)) == content * 2


def test_a_single_large_frame_has_no_points() -> None:
    """A zstd stream with one frame has no restart point but its beginning."""
    content = random.Random(1).randbytes(300_000)
    made = recorded(zstandard.compress(content), content, "zstd", 65_536)
    assert made is not None
    assert len(made) == 1


def test_blocks_without_content_are_bounded() -> None:
    """A gzip stream of a million empty blocks is decoded without a stop at each of them."""
    stream = gzip.compress(b"x", 0)[:10] + b"\0\0\0\xff\xff" * 1_000_000 + b"\1\0\0\xff\xff" + bytes(8)
    recorder = Recorder("gzip", span=MIN_SPAN)
    assert b"".join(decode([stream], "gzip", recorder=recorder)) == b""
    points = recorder.points(hashlib.sha256(b"").hexdigest(), len(stream))
    assert points is not None
    assert len(points) == 1
