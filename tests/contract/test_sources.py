"""Every implementation of Source (``kitfs.content``) follows the contract of Source."""

from __future__ import annotations

import gzip
import logging
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zstandard

from kitfs.content import Source
from kitfs.layers.codec import DecodedSource
from kitfs.metrics import Counters
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest, LayoutReference, Reference
from kitfs.registry.client import RegistryClient
from kitfs.registry.credentials import Credentials
from kitfs.registry.layout import open_layout
from kitfs.registry.options import ClientOptions
from tests.fakes.faults import Chunked, Cut, IgnoreRange
from tests.fakes.registry import FakeRegistry
from tests.fakes.sources import BytesSource
from tests.kits import Kit, write_archive, write_layout

DATA = random.Random(3).randbytes(300_001)
DIGEST = Digest.of(DATA)
BLOB = Descriptor("application/octet-stream", DIGEST, len(DATA))
REFERENCE = "registry.test/team/kit:v1"


def remote(stack: ExitStack, fake: FakeRegistry, reference: str, *, sockets: bool = True, **options: object) -> Source:
    fake.put_blob("team/kit", DATA)
    transport = None if sockets else fake.transport()
    client = RegistryClient(
        ClientOptions(**options),
        Credentials(()),
        counters=Counters(),
        log=logging.getLogger("test"),
        transport=transport,
    )  # type: ignore[arg-type]
    stack.callback(client.close)
    return client.repository(Reference.parse(reference)).blob(BLOB)


def registry(stack: ExitStack, _: Path) -> Source:
    fake = stack.enter_context(FakeRegistry())
    return remote(stack, fake, f"{fake.host}/team/kit:v1")


def registry_without_socket(stack: ExitStack, _: Path) -> Source:
    return remote(stack, FakeRegistry(), REFERENCE, sockets=False)


def registry_without_ranges(stack: ExitStack, _: Path) -> Source:
    fake = FakeRegistry()
    fake.fail("/blobs/", IgnoreRange())
    return remote(stack, fake, REFERENCE, sockets=False)


def registry_without_ranges_that_cuts(stack: ExitStack, _: Path) -> Source:
    fake = FakeRegistry()
    fake.fail("/blobs/", Cut(100_000), times=1)
    fake.fail("/blobs/", IgnoreRange())
    return remote(stack, fake, REFERENCE, sockets=False)


def registry_that_cuts(stack: ExitStack, _: Path) -> Source:
    fake = stack.enter_context(FakeRegistry())
    fake.fail("/blobs/", Cut(1_000), times=2)
    return remote(stack, fake, f"{fake.host}/team/kit:v1")


def registry_without_lengths(stack: ExitStack, _: Path) -> Source:
    fake = stack.enter_context(FakeRegistry())
    fake.fail("/blobs/", Chunked())
    return remote(stack, fake, f"{fake.host}/team/kit:v1")


def registry_with_cdn(stack: ExitStack, _: Path) -> Source:
    fake, cdn = stack.enter_context(FakeRegistry()), stack.enter_context(FakeRegistry())
    fake.redirect_blobs_to(cdn)
    return remote(stack, fake, f"{fake.host}/team/kit:v1")


def mirror(stack: ExitStack, _: Path) -> Source:
    fake, empty = stack.enter_context(FakeRegistry(prefix="/mirror/of")), stack.enter_context(FakeRegistry())
    return remote(stack, fake, REFERENCE, mirrors={"registry.test": (empty.url, fake.url)})


def layout_directory(stack: ExitStack, tmp_path: Path) -> Source:
    where = write_layout(Kit(b"{}", b"{}", {DIGEST: DATA}), tmp_path / "layout", "v1")
    layout = open_layout(LayoutReference("oci", str(where)))
    stack.callback(layout.close)
    return layout.blob(BLOB)


def layout_archive(stack: ExitStack, tmp_path: Path) -> Source:
    where = write_archive(Kit(b"{}", b"{}", {DIGEST: DATA}), tmp_path / "layout.tar", "v1")
    layout = open_layout(LayoutReference("oci-archive", str(where)))
    stack.callback(layout.close)
    return layout.blob(BLOB)


def gzip_decoder(_stack: ExitStack, _: Path) -> Source:
    return DecodedSource(lambda: [gzip.compress(DATA, 1, mtime=0)], "gzip")


def zstd_decoder(_stack: ExitStack, _: Path) -> Source:
    return DecodedSource(lambda: [zstandard.compress(DATA, 1)], "zstd")


def fake_bytes(_stack: ExitStack, _: Path) -> Source:
    return BytesSource(DATA)


MAKERS: list[Callable[[ExitStack, Path], Source]] = [
    registry, registry_without_socket, registry_without_ranges, registry_without_ranges_that_cuts, registry_that_cuts,
    registry_without_lengths,
    registry_with_cdn, mirror, layout_directory, layout_archive, gzip_decoder, zstd_decoder, fake_bytes,
]  # fmt: skip
SPANS = [
    (0, 1),
    (0, None),
    (0, len(DATA)),
    (1, 2),
    (65_535, 65_537),
    (100_000, 250_000),
    (len(DATA) - 1, len(DATA)),
    (len(DATA) - 10, None),
]


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Source]:
    """Return each source in turn, with the same bytes."""
    with ExitStack() as stack:
        yield request.param(stack, tmp_path)


def taken(pieces: Generator[tuple[int, memoryview], None, None]) -> list[tuple[int, bytes]]:
    return [(offset, bytes(view)) for offset, view in pieces]


@pytest.mark.parametrize("span", SPANS, ids=str)
def test_pieces_are_gapless_and_cover_what_was_asked(source: Source, span: tuple[int, int | None]) -> None:
    """A ranged source yields exactly [start, stop) without gaps.

    A source without ranges yields everything from 0, even if it notices only during this request that it has no ranges.
    """
    start, stop = span
    pieces = taken(source.read_range(start, stop))
    if not source.ranged:
        start, stop = 0, None
    at = start
    for offset, data in pieces:
        assert offset == at
        assert data != b""
        at += len(data)
    assert b"".join(data for _, data in pieces) == DATA[start:stop]


def test_ranged_turns_at_most_once(source: Source) -> None:
    """``ranged`` may change from True to False once, and never back."""
    seen = [source.ranged]
    for start, stop in SPANS:
        taken(source.read_range(start, stop))
        seen.append(source.ranged)
    assert seen == sorted(seen, reverse=True)


def test_the_size_is_known_after_a_whole_read(source: Source) -> None:
    """After a source was read to its end, ``size`` is the number of its bytes. Before, ``size`` may be None."""
    assert source.size in (None, len(DATA))
    taken(source.read_range(0, None))
    assert source.size == len(DATA)


def test_a_reader_may_stop_early_and_come_back(source: Source) -> None:
    """A generator can be closed early. The next generator starts at its own offset."""
    for _ in range(3):
        pieces = source.read_range(10, 200_000)
        offset, view = next(pieces)
        assert bytes(view) == DATA[offset : offset + len(view)]
        pieces.close()
    start = 150_000 if source.ranged else 0
    assert b"".join(data for _, data in taken(source.read_range(150_000, None))) == DATA[start:]


def test_readers_do_not_disturb_each_other(source: Source) -> None:
    """If two generators of one source are read in turn, each yields its own bytes."""
    first, second = source.read_range(0, None), source.read_range(0, None)
    got = [bytearray(), bytearray()]
    pending = [(0, first), (1, second)]
    while pending:
        n, pieces = pending.pop(0)
        piece = next(pieces, None)
        if piece is not None:
            got[n] += piece[1]
            pending.append((n, pieces))
    assert got == [bytearray(DATA)] * 2


def test_an_empty_range_gives_nothing(source: Source) -> None:
    """The range [5, 5) of a ranged source sends no request and yields no piece."""
    if source.ranged and taken(source.read_range(0, 1)) and source.ranged:
        assert taken(source.read_range(5, 5)) == []
