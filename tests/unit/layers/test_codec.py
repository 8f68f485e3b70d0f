"""Tests of gzip and zstd streams with several members or frames, truncated streams, and huge expansion."""

from __future__ import annotations

import gzip
import io
import random
from collections.abc import Iterator

import pytest
import zstandard

from kitfs.errors import LayerError, UnsupportedLayer
from kitfs.layers.codec import DecodedSource, decode
from kitfs.openfile import PIECE

DATA = random.Random(1).randbytes(300_000) + bytes(5_000_000) + b"tail"
SKIPPABLE = b"\x50\x2a\x4d\x18\x05\0\0\0hello"


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[i : i + size] for i in range(0, len(data), size))


def zstd(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


@pytest.mark.parametrize("size", [7, 1000, 65_536, 1 << 22])
def test_gzip_members(size: int) -> None:
    """Several members form one stream, for any sizes of input pieces. Zeros may follow the last member."""
    short = DATA if size > 7 else DATA[:2000]
    stream = gzip.compress(short) + gzip.compress(b"") + gzip.compress(b"end") + bytes(700)
    assert b"".join(decode(pieces(stream, size), "gzip")) == short + b"end"


@pytest.mark.parametrize("size", [1, 1000, 65_536, 1 << 22])
def test_zstd_frames(size: int) -> None:
    """Several frames form one stream.

    A frame may have a checksum or a size. Skippable frames may occur between other frames.
    """
    short = DATA if size > 1 else DATA[:2000]
    stream = zstd(short) + SKIPPABLE + zstd(b"end", write_checksum=True, write_content_size=False) + zstd(b"")
    assert b"".join(decode(pieces(stream, size), "zstd")) == short + b"end"


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_cut_anywhere_is_an_error(compression: str) -> None:
    """A stream raises an error wherever it is truncated."""
    whole = gzip.compress(DATA[:5000]) if compression == "gzip" else zstd(DATA[:5000], write_checksum=True)
    for cut in [*range(40), *range(len(whole) - 30, len(whole))]:
        with pytest.raises(LayerError):
            list(decode([whole[:cut]], compression))


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_garbage_is_an_error(compression: str) -> None:
    """Bytes that are not a stream, bytes after the end of a stream, and a damaged stream raise LayerError."""
    good = gzip.compress(DATA[:999]) if compression == "gzip" else zstd(DATA[:999], write_checksum=True)
    flipped = good[:500] + bytes([good[500] ^ 1]) + good[501:]
    for bad in (b"hello world, this is text", good + b"garbage that follows", flipped):
        with pytest.raises(LayerError):
            list(decode([bad], compression))


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_bomb_comes_in_bounded_pieces(compression: str) -> None:
    """A stream that expands a thousandfold is decoded in pieces of at most PIECE bytes."""
    data = bytes(64 << 20)
    stream = gzip.compress(data) if compression == "gzip" else zstd(data)
    total = 0
    for piece in decode([stream], compression):
        assert len(piece) <= PIECE
        total += len(piece)
    assert total == len(data)


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE])
def test_content_of_whole_pieces(compression: str, size: int) -> None:
    """Content is decoded completely if its length is a multiple of PIECE, for one or many input pieces."""
    for content in (bytes(size), random.Random(size).randbytes(size)):
        stream = gzip.compress(content, 1) if compression == "gzip" else zstd(content)
        for cut in (len(stream), 8191):
            assert b"".join(decode(pieces(stream, cut), compression)) == content


@pytest.mark.parametrize("size", [1, 3, 40, 1 << 20])
def test_gzip_padding_means_the_same_however_it_is_cut(size: int) -> None:
    """Zeros after the last member are padding. Other bytes after this padding raise an error.

    This holds for all sizes of input pieces.
    """
    member = gzip.compress(b"hi")
    assert b"".join(decode(pieces(member + bytes(64), size), "gzip")) == b"hi"
    for rest in (bytes(64) + member, bytes(1) + member, bytes(64) + b"x"):
        with pytest.raises(LayerError, match="padding"):
            list(decode(pieces(member + rest, size), "gzip"))


def test_zeros_alone_are_no_gzip() -> None:
    """Zeros without a member before them raise an error."""
    with pytest.raises(LayerError):
        list(decode([bytes(64)], "gzip"))


@pytest.mark.parametrize(("log", "fits"), [(27, True), (28, False)])
def test_zstd_window(log: int, fits: bool) -> None:
    """The output of `zstd --long=27` is decoded.

    A window of more than 128 MiB is refused before memory is allocated.
    """
    parameters = zstandard.ZstdCompressionParameters(window_log=log, compression_level=1, write_content_size=False)
    out = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(out, closefd=False) as writer:
        writer.write(b"x" * 1000)
    if fits:
        assert b"".join(decode([out.getvalue()], "zstd")) == b"x" * 1000
    else:
        with pytest.raises(LayerError, match="window of more than 128 MiB"):
            list(decode([out.getvalue()], "zstd"))


def test_skippable_frames_alone_are_empty() -> None:
    """A stream that contains only skippable frames decodes to nothing. If it is truncated, it raises an error."""
    assert list(decode([SKIPPABLE * 2], "zstd")) == []
    with pytest.raises(LayerError):
        list(decode([SKIPPABLE * 2 + SKIPPABLE[:-1]], "zstd"))


def test_unknown_compression() -> None:
    """The error contains the name of the compression."""
    with pytest.raises(UnsupportedLayer, match="'lz4'"):
        decode([], "lz4")


def test_decoded_source_knows_its_size_at_the_end() -> None:
    """DecodedSource does not support ranges. Its size is None until it has been read to the end."""
    source = DecodedSource(lambda: [gzip.compress(DATA)], "gzip")
    assert (source.size, source.ranged) == (None, False)
    at = 0
    for offset, view in source.read_range(5, 7):
        assert offset == at
        assert DATA[at : at + len(view)] == view
        at += len(view)
    assert source.size == at == len(DATA)
