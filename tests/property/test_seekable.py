"""Seekable zstd: any decoder reads it as one stream, and every frame is found and decoded alone."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator

import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kitfs.layers.codec import decode
from kitfs.layers.points import SPAN, RestartPoints
from kitfs.layers.seekable import FOOTER, compress, frames

bounded = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
CONTENT = random.Random(1).randbytes(1000) * 9000  # 9 MB


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


def compressed(content: bytes, cuts: list[int], size: int = 1 << 20) -> bytes:
    return b"".join(compress(pieces(content, size), cuts))


def frames_in(stream: bytes) -> RestartPoints | None:
    return frames(lambda offset, length: stream[offset : offset + length], len(stream))


def borders(points: RestartPoints) -> list[int]:
    """Return the offsets in the content at which frames begin."""
    found, at = [], 0
    while at < points.size:
        found.append(at)
        at = points.piece(at, at + 1)[1]
    return found


@given(
    size=st.integers(0, 10 << 20),
    cuts=st.lists(st.integers(0, 11 << 20), max_size=5).map(sorted),
    piece=st.sampled_from([100_000, 1 << 20]),
)
@bounded
def test_every_frame_is_found_and_decoded_alone(size: int, cuts: list[int], piece: int) -> None:
    """Frames end at every cut and at every 4 MiB, and each has its part of the content."""
    content = (CONTENT * 2)[:size]
    stream = compressed(content, cuts, piece)
    assert stream == compressed(content, cuts)
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(stream), read_across_frames=True)
    assert reader.read() == content
    points = frames_in(stream)
    assert points is not None
    assert (points.size, points.blob_size, points.sha256) == (len(content), len(stream), "")
    assert set(borders(points)) == {at for at in (0, *cuts, *range(0, size, SPAN)) if at < size}
    for start in borders(points):
        end = points.piece(start, start + 1)[1]
        frame = stream[points.before(start).at : points.position(end)]
        assert b"".join(decode([frame], "zstd")) == content[start:end]


@given(at=st.integers(0, 200), data=st.binary(min_size=1, max_size=30))
@bounded
def test_a_changed_table_is_refused_or_consistent(at: int, data: bytes) -> None:
    """A stream whose table was changed has no frames, or frames that cover the stream."""
    stream = bytearray(compressed(CONTENT[:300_000], [10_000, 100_000]))
    at = max(0, len(stream) - at - len(data))
    stream[at : at + len(data)] = data
    points = frames_in(bytes(stream))
    if points is not None:
        assert points.blob_size == len(stream)
        assert points.before(0).at == 0


def test_tables_with_checksums_are_read() -> None:
    """A seek table may have a checksum for each frame, which is ignored."""
    stream = compressed(CONTENT[:300_000], [100_000])
    plain = frames_in(stream)
    table = stream[-FOOTER.size - 16 : -FOOTER.size]
    body = table[:8] + b"abcd" + table[8:] + b"efgh"
    head = (0x184D2A5E).to_bytes(4, "little") + (len(body) + FOOTER.size).to_bytes(4, "little")
    other = stream[: -FOOTER.size - 24] + head + body + FOOTER.pack(2, 0x80, 0x8F92EAB1)
    points = frames_in(other)
    assert points is not None
    assert plain is not None
    assert borders(points) == borders(plain) == [0, 100_000]


def test_other_streams_have_no_frames() -> None:
    """A zstd stream without a seek table, other bytes and no bytes have no frames."""
    assert frames_in(zstandard.compress(CONTENT[:1000])) is None
    assert frames_in(b"") is None
    assert frames_in(bytes(100)) is None
