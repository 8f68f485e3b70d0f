"""Where the bytes of a sparse file are: the maps of old GNU tar and star, and of pax 0.0, 0.1 and 1.0.

Sources: the GNU tar manual, "Storing Sparse Files"; GNU tar's tar.h for the headers, star's included. A map says
which spans of the file are in the archive, one behind the other (whole blocks, but for the last one, in what the
tools write); the rest is zeros. It may contradict itself or the archive, and may be as long as an archive likes: then
it is LayerError, before it costs more memory than the caller's ``budget`` of spans. Threading: pure functions over a
reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, Protocol

from kitfs.errors import LayerError
from kitfs.layers.index import Extent
from kitfs.layers.tar_header import BLOCK, Header, decimal, number

MAX_MAP: Final = 8 << 20  # bytes of a map that stands in the archive: some 400,000 spans
Pairs = Iterable[tuple[int, int]]


class Window(Protocol):
    """The archive by position; short at its end."""

    def get(self, offset: int, size: int) -> bytes: ...


class Fields(NamedTuple):
    """Where an 'S' header has four pairs of a map, whether extension headers follow, and the size of the file."""

    pairs: int
    more: int
    size: int


GNU: Final = Fields(pairs=386, more=482, size=483)
STAR: Final = Fields(pairs=356, more=355, size=452)


def _fields(block: bytes) -> Fields:
    return STAR if block[257:263] == b"ustar\0" and block[508:512] == b"tar\0" else GNU


def map_headers(block: bytes, window: Window, at: int) -> int:
    """Bytes of the extension headers at ``at`` that go on with the map of an 'S' header. Raises LayerError when they
    do not end.
    """
    extra = 0
    more = block[_fields(block).more]
    while more:
        extension = window.get(at + extra, BLOCK)
        extra += BLOCK
        if len(extension) < BLOCK:
            raise LayerError("truncated tar: a sparse map is cut off")
        if extra > MAX_MAP:
            raise LayerError(f"a sparse map at {at} that does not end")
        more = extension[504]
    return extra


def spread(header: Header, window: Window, budget: int) -> tuple[str, int, tuple[Extent, ...]]:
    """(name, size, extents) of a file, sparse or not. Raises LayerError for a map that does not fit its file, or of
    more than ``budget`` spans.
    """
    pax = header.pax
    name = pax.get("GNU.sparse.name", header.name)
    at = header.at
    pairs: Pairs
    if header.flag == 0x53:
        size, pairs = _in_headers(header, window)
    elif pax.get("GNU.sparse.major", "0") != "0":
        size = decimal(pax.get("GNU.sparse.realsize", ""), "GNU.sparse.realsize")
        numbers, at = _lines(header, window, budget)
        pairs = zip(numbers[1::2], numbers[2::2], strict=True)
    elif "GNU.sparse.size" in pax or "GNU.sparse.map" in pax:
        size = decimal(pax.get("GNU.sparse.size", pax.get("GNU.sparse.realsize", "")), "GNU.sparse.size")
        pairs = _listed(pax["GNU.sparse.map"]) if "GNU.sparse.map" in pax else header.sparse
    else:
        return name, header.size, (Extent(0, at, header.size),) if header.size else ()
    return name, size, _extents(name, size, pairs, at, header.at + header.size, budget)


def _extents(name: str, size: int, pairs: Pairs, at: int, stop: int, budget: int) -> tuple[Extent, ...]:
    """Spans laid over the bytes from ``at`` to ``stop``; neighbours become one."""
    extents: list[Extent] = []
    after = 0
    for offset, length in pairs:
        if length == 0:
            continue  # GNU tar marks the end of a file so
        if offset < after or length > size - offset or length > stop - at or len(extents) > budget:
            raise LayerError(f"a sparse map of {name[:200]!r} that does not fit its file")
        if extents and offset == after:
            first = extents.pop()
            extents.append(Extent(first.file_offset, first.blob_offset, first.length + length))
        else:
            extents.append(Extent(offset, at, length))
        after = offset + length
        at += length
    return tuple(extents)


def _in_headers(header: Header, window: Window) -> tuple[int, list[tuple[int, int]]]:
    """Old GNU and star: four pairs in the header, 21 in each extension header before the data."""
    start = header.at - header.extra
    place = _fields(header.block)
    parts = [header.block[place.pairs : place.pairs + 96]] + [
        window.get(start + n, BLOCK)[:504] for n in range(0, header.extra, BLOCK)
    ]
    pairs = []
    for part in parts:
        for i in range(0, len(part), 24):
            if not part[i]:
                break
            pairs.append((number(part[i : i + 12], start), number(part[i + 12 : i + 24], start)))
    return number(header.block[place.size : place.size + 12], start), pairs


def _listed(text: str) -> Iterator[tuple[int, int]]:
    """0.1: all pairs in one record, offset and length by turns."""
    numbers = _numbers(text)
    for offset in numbers:
        length = next(numbers, None)
        if length is None:
            raise LayerError("a sparse map of an odd number of numbers")
        yield offset, length


def _numbers(text: str) -> Iterator[int]:
    """Not by ``split``: a map of millions of numbers would be as many strings at once."""
    at = 0
    while at <= len(text):
        comma = text.find(",", at)
        stop = len(text) if comma < 0 else comma
        yield decimal(text[at:stop], "GNU.sparse.map")
        at = stop + 1


def _lines(header: Header, window: Window, budget: int) -> tuple[list[int], int]:
    """1.0: the map stands before the data, one number a line, the number of pairs first, padded to a block. With
    where the data begins.
    """
    numbers: list[int] = []
    taken = 0
    rest = b""
    while not numbers or len(numbers) < 1 + 2 * numbers[0]:
        piece = window.get(header.at + taken, BLOCK)
        if (
            len(piece) < BLOCK
            or taken >= min(header.size, MAX_MAP)
            or len(rest) > 20
            or (numbers and numbers[0] > budget)
        ):
            raise LayerError(f"a sparse map of {header.name[:200]!r} that is cut off or too long")
        taken += BLOCK
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if numbers and len(numbers) == 1 + 2 * numbers[0]:
                break
            numbers.append(decimal(line.decode("ascii", "replace"), "sparse map"))
    return numbers, header.at + taken
