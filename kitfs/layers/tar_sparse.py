"""Parse the maps of sparse files in tars of old GNU tar and star, and of pax 0.0, 0.1 and 1.0.

Sources: the GNU tar manual, "Storing Sparse Files"; GNU tar's tar.h for the headers, including those of star. A map
lists the spans of the file that the archive contains, one after the other; the rest of the file is zeros. LayerError is
raised for a map that contradicts itself or the archive, and for a map with more spans than the caller's ``budget``. A
map never takes more memory than ``budget`` spans need.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, Protocol

from kitfs.errors import LayerError
from kitfs.layers.index import Extent
from kitfs.layers.tar_header import BLOCK, Header, decimal, number

MAX_MAP: Final = 8 << 20  # bytes of a map in the archive: about 400,000 spans
Pairs = Iterable[tuple[int, int]]


class Window(Protocol):
    """A reader of the archive at any offset. It returns fewer bytes at the end of the archive."""

    def get(self, offset: int, size: int) -> bytes: ...


class Fields(NamedTuple):
    """The offsets of fields in an 'S' header: the four pairs of its map, the extension flag, and the file size."""

    pairs: int
    more: int
    size: int


GNU: Final = Fields(pairs=386, more=482, size=483)
STAR: Final = Fields(pairs=356, more=355, size=452)


def _fields(block: bytes) -> Fields:
    return STAR if block[257:263] == b"ustar\0" and block[508:512] == b"tar\0" else GNU


def map_headers(block: bytes, window: Window, at: int) -> int:
    """Return how many bytes of extension headers at ``at`` continue the map of an 'S' header.

    Raises LayerError if the headers are cut off or longer than ``MAX_MAP``.
    """
    extra = 0
    more = block[_fields(block).more]
    while more:
        extension = window.get(at + extra, BLOCK)
        extra += BLOCK
        if len(extension) < BLOCK:
            raise LayerError("truncated tar: a sparse map is cut off")
        if extra > MAX_MAP:
            raise LayerError(f"the sparse map at {at} of the tar does not end")
        more = extension[504]
    return extra


def spread(header: Header, window: Window, budget: int) -> tuple[str, int, tuple[Extent, ...]]:
    """Return the name, the size and the extents of a file, which may be sparse.

    Raises LayerError for a map that does not fit its file or has more than ``budget`` spans.
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
        pairs = _pairs(pax["GNU.sparse.map"]) if "GNU.sparse.map" in pax else header.sparse
    else:
        return name, header.size, (Extent(0, at, header.size),) if header.size else ()
    return name, size, _extents(name, size, pairs, at, header.at + header.size, budget)


def _extents(name: str, size: int, pairs: Pairs, at: int, stop: int, budget: int) -> tuple[Extent, ...]:
    """Map spans of the file to the bytes of the archive from ``at`` to ``stop``; adjacent spans become one extent."""
    extents: list[Extent] = []
    after = 0
    for offset, length in pairs:
        if length == 0:
            continue  # GNU tar marks the end of a file with an empty span
        if offset < after or length > size - offset or length > stop - at or len(extents) > budget:
            raise LayerError(f"the sparse map of {name[:200]!r} does not fit its file, or has too many spans")
        if extents and offset == after:
            first = extents.pop()
            extents.append(Extent(first.file_offset, first.blob_offset, first.length + length))
        else:
            extents.append(Extent(offset, at, length))
        after = offset + length
        at += length
    return tuple(extents)


def _in_headers(header: Header, window: Window) -> tuple[int, list[tuple[int, int]]]:
    """Return the size of a file and its map from headers of old GNU tar or star.

    The header has 4 pairs of the map, and each extension header has 21 pairs.
    """
    start = header.at - header.extra
    fields = _fields(header.block)
    parts = [header.block[fields.pairs : fields.pairs + 96]] + [
        window.get(start + n, BLOCK)[:504] for n in range(0, header.extra, BLOCK)
    ]
    pairs = []
    for part in parts:
        for i in range(0, len(part), 24):
            if not part[i]:
                break
            pairs.append((number(part[i : i + 12], start), number(part[i + 12 : i + 24], start)))
    return number(header.block[fields.size : fields.size + 12], start), pairs


def _pairs(text: str) -> Iterator[tuple[int, int]]:
    """Yield the pairs of a pax 0.1 map, which is a record of alternating offsets and lengths."""
    numbers = _numbers(text)
    for offset in numbers:
        length = next(numbers, None)
        if length is None:
            raise LayerError("a sparse map of the tar has an odd count of numbers")
        yield offset, length


def _numbers(text: str) -> Iterator[int]:
    """Yield the numbers of a record one by one. On a long map, ``split`` would make millions of strings at once."""
    at = 0
    while at <= len(text):
        comma = text.find(",", at)
        stop = len(text) if comma < 0 else comma
        yield decimal(text[at:stop], "GNU.sparse.map")
        at = stop + 1


def _lines(header: Header, window: Window, budget: int) -> tuple[list[int], int]:
    """Return the numbers of a map of pax 1.0, and the offset of the data.

    The map precedes the data. It is a list of numbers, one a line, padded to a whole block. The first number is the
    number of pairs.
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
            raise LayerError(f"the sparse map of {header.name[:200]!r} is cut off or too long")
        taken += BLOCK
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if numbers and len(numbers) == 1 + 2 * numbers[0]:
                break
            numbers.append(decimal(line.decode("ascii", "replace"), "sparse map"))
    return numbers, header.at + taken
