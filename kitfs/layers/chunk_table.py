"""Define the chunk table of a layer: the sha256 of every chunk of the layer's blob, and further sections.

kit publishes one digest for a whole layer. With a chunk table, each chunk of a layer can be verified by itself. A table
is a blob of its own. All its numbers are little-endian:

    8 bytes    MAGIC
    u32        VERSION
    u32        CHUNK, the size of a chunk in bytes; the last chunk may be short
    u64        size of the layer's blob in bytes
    32 bytes   sha256 of the layer's blob
    u64        offset of the digests of the chunks
    u32        number of sections
    u32        0
    64 bytes   for each section: its name (16 bytes, padded with NUL), its offset (u64), its length (u64), its sha256
    32 bytes   for each page of the digests: the sha256 of the page
    then       the digests of the chunks, 32 bytes each, and the sections; they do not overlap

A page has ``PAGE`` digests, and the last page may be short. The part up to the digests of the pages is the *head*. A
reader that knows the sha256 of the head can verify every page and every section, and fetches only those that it needs.
A reader ignores sections that it does not know. ``entries`` defines the sections "entries" and "files", and ``points``
the section "points". This module does no I/O.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from kitfs.errors import IntegrityError, LayerError

MAGIC: Final = b"kitfstbl"
VERSION: Final = 1
CHUNK: Final = 32 << 10  # bytes: it divides the chunk size of every blob in the store
DIGEST: Final = 32  # bytes of a sha256
PAGE: Final = 1024  # digests in a page, which cover 32 MiB of the layer
HEADER: Final = struct.Struct("<8sIIQ32sQII")
SECTION: Final = struct.Struct("<16sQQ32s")
MAX_SECTIONS: Final = 16
MAX_CHUNKS: Final = 1 << 26  # chunks of a layer of 2 TiB, whose table has 2 GiB
MAX_HEAD: Final = HEADER.size + MAX_SECTIONS * SECTION.size + MAX_CHUNKS // PAGE * DIGEST
MAX_SECTION: Final = 1 << 30  # bytes
MAX_OFFSET: Final = 1 << 62
NEAR: Final = 64 << 10  # bytes of the entries that are stored next to the head, so that one request gets both

ENTRIES: Final = "entries"  # the entries of the layer (``layers.entries``)
FILES: Final = "files"  # the sha256 of each file (``layers.entries``)
POINTS: Final = "points"  # the restart points of a gzip layer (``layers.points``), without their windows
WINDOWS: Final = "windows"  # the windows of the restart points, each of which is read alone


class Section(NamedTuple):
    """The place of a section in a table, in bytes, and its sha256."""

    offset: int
    length: int
    sha256: bytes

    def check(self, data: bytes) -> bytes:
        """Return ``data``, the bytes of the section. Raises IntegrityError if their digest is wrong."""
        if len(data) != self.length or hashlib.sha256(data).digest() != self.sha256:
            raise IntegrityError("a section of the chunk table does not match its digest")
        return data


class TableHead:
    """The head of a chunk table, for a layer of ``size`` bytes whose sha256 is ``layer`` (in hexadecimal).

    ``chunks`` is the number of chunks, and ``length`` the number of bytes of the head. ``sections`` maps the name of a
    section to its place. Raises LayerError if the bytes are not the head of a table of this version.
    """

    def __init__(self, data: bytes) -> None:
        if len(data) < HEADER.size or data[: len(MAGIC)] != MAGIC:
            raise LayerError("the bytes are not a chunk table")
        _, version, chunk, size, layer, digests, count, _ = HEADER.unpack_from(data)
        if version != VERSION or chunk != CHUNK:
            raise LayerError(f"a chunk table has version {version} and chunks of {chunk} bytes, which is not supported")
        self.size: Final[int] = size
        self.layer: Final = layer.hex()
        self.chunks: Final = -(-size // CHUNK)
        pages = -(-self.chunks // PAGE)
        self.length: Final = HEADER.size + count * SECTION.size + pages * DIGEST
        if count > MAX_SECTIONS or self.chunks > MAX_CHUNKS or len(data) != self.length:
            raise LayerError("the head of a chunk table has an impossible size")
        if not self.length <= digests <= MAX_OFFSET:
            raise LayerError("the digests of a chunk table have an impossible place")
        self.digests: Final[int] = digests  # offset in bytes
        self._pages: Final = data[self.length - pages * DIGEST :]
        self.sections: Final[dict[str, Section]] = {}
        for number in range(count):
            name, offset, length, sha256 = SECTION.unpack_from(data, HEADER.size + number * SECTION.size)
            if not self.length <= offset <= MAX_OFFSET or length > MAX_SECTION or not name.isascii():
                raise LayerError("a section of a chunk table has an impossible place or name")
            self.sections[name.rstrip(b"\0").decode("ascii")] = Section(offset, length, sha256)

    def __repr__(self) -> str:
        return f"<TableHead of layer {self.layer[:12]}, {self.chunks} chunks, sections {sorted(self.sections)}>"

    def page(self, number: int) -> Section:
        """Return the place of page ``number`` of the digests."""
        first = number * PAGE
        return Section(
            self.digests + first * DIGEST,
            (min(first + PAGE, self.chunks) - first) * DIGEST,
            self._pages[number * DIGEST : (number + 1) * DIGEST],
        )


class ChunkHasher:
    """A hasher that computes the sha256 of each chunk of a blob, whose bytes are given in order."""

    def __init__(self) -> None:
        self._digests = bytearray()
        self._current = hashlib.sha256()
        self._within = 0  # bytes of the current chunk that are hashed
        self.size = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Hash the next bytes."""
        view = memoryview(data)
        self.size += len(view)
        while len(view):
            part = view[: CHUNK - self._within]
            if len(part) == CHUNK:
                self._digests += hashlib.sha256(part).digest()
            else:
                self._current.update(part)
                self._within += len(part)
                if self._within == CHUNK:
                    self._end()
            view = view[len(part) :]

    def _end(self) -> None:
        self._digests += self._current.digest()
        self._current, self._within = hashlib.sha256(), 0

    def digests(self) -> bytes:
        """Return the digests of all chunks. No bytes may be added after this call."""
        if self._within:
            self._end()
        return bytes(self._digests)


class BuiltTable(NamedTuple):
    """The bytes of a chunk table. The first ``head`` bytes are its head."""

    data: bytes
    head: int


def build(layer: str, size: int, digests: bytes, sections: Mapping[str, bytes]) -> BuiltTable:
    """Return the table of a layer of ``size`` bytes, whose sha256 is ``layer`` (in hexadecimal).

    ``digests`` is the result of a ``ChunkHasher``. Raises LayerError for a layer or a section that is too large.
    """
    pages = [digests[at : at + PAGE * DIGEST] for at in range(0, len(digests), PAGE * DIGEST)]
    if len(digests) // DIGEST > MAX_CHUNKS or any(len(data) > MAX_SECTION for data in sections.values()):
        raise LayerError("the layer is too large for a chunk table")
    length = HEADER.size + len(sections) * SECTION.size + len(pages) * DIGEST
    entries = sections.get(ENTRIES, b"")
    near = [name for name in sections if name == ENTRIES and len(entries) <= NEAR]
    order = [*near, "", *(name for name in sections if name not in near)]  # "" stands for the digests
    parts = {**sections, "": digests}
    places: dict[str, int] = {}
    at = length
    for name in order:
        places[name] = at
        at += len(parts[name])
    head = bytearray(HEADER.pack(MAGIC, VERSION, CHUNK, size, bytes.fromhex(layer), places[""], len(sections), 0))
    for name, data in sections.items():
        head += SECTION.pack(name.encode("ascii"), places[name], len(data), hashlib.sha256(data).digest())
    for page in pages:
        head += hashlib.sha256(page).digest()
    return BuiltTable(b"".join((head, *(parts[name] for name in order))), length)
