"""Write the entries of a layer for its chunk table, and make the layer's index from them.

The section "entries" of a chunk table is a zlib stream of JSON lists, one a line, in the order of the archive:

    ["d", path, mode]                           a directory
    ["f", path, mode, size, offset]             a file, whose bytes lie at one offset of the (decoded) blob
    ["x", file offset, offset, length, …]       extents of the next file, which has the offset -1
    ["l", path, target]                         a symbolic link
    ["h", path, first name]                     another name of an earlier file or symbolic link
    ["s", name, reason, detail, link]           an entry that is not in the tree; ``names.Skipped`` explains the fields

The section "files" has the sha256 of the file of each "f" line, 32 bytes each, in the same order.

The section is not an index file, because an index file has the byte order of its host and the version of the rules that
decide which entries are in the tree. An ``IndexBuilder`` applies these rules to every entry, so that a malicious table
cannot make an index that no archive could have.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Final

from kitfs.errors import LayerError
from kitfs.layers.builder import IndexBuilder
from kitfs.layers.index import SIZE_MAX, Extent, LayerIndex, Member
from kitfs.layers.names import SkipReason

LEVEL: Final = 6  # of zlib
STEP: Final = 64 << 10  # bytes that are decompressed at a time
MAX_LINE: Final = 128 << 10  # bytes: more than the longest path and target of an entry
ENTRY: Final = 4096  # bytes of lines for each entry that the limit permits: an index permits names of 256 characters
MIN_TEXT: Final = 256 << 20  # bytes of lines that are always permitted: 16 Mi characters of names, escaped in JSON
EXTENTS: Final = 1000  # extents in a line
SINGLE: Final = -1  # the offset of a file whose extents are in the lines before it


def encode(index: LayerIndex) -> bytes:
    """Return the section "entries" of an index."""
    packer = zlib.compressobj(LEVEL)
    parts = [packer.compress(json.dumps(fields).encode() + b"\n") for fields in _lines(index)]
    return b"".join((*parts, packer.flush()))


def _lines(index: LayerIndex) -> Iterator[list[Any]]:
    for member in map(index.member, index.members.rows()):
        if member.link:
            yield ["h", member.path, member.link]
        elif member.kind == "dir":
            yield ["d", member.path, member.mode]
        elif member.kind == "symlink":
            yield ["l", member.path, member.target]
        else:
            yield from _file(member)
    for skipped in index.skipped:
        yield ["s", skipped.name, skipped.reason.value, skipped.detail, skipped.link]


def _file(member: Member) -> Iterator[list[Any]]:
    extents = member.extents
    fields: list[Any] = ["f", member.path, member.mode, member.size]
    if len(extents) == 1 and extents[0].file_offset == 0 and extents[0].length == member.size:
        yield [*fields, extents[0].blob_offset]
    elif not extents and not member.size:
        yield [*fields, 0]
    else:
        for at in range(0, len(extents), EXTENTS):
            yield ["x", *(number for extent in extents[at : at + EXTENTS] for number in extent)]
        yield [*fields, SINGLE]


def decode(data: bytes, *, size: int = SIZE_MAX, max_entries: int) -> LayerIndex:
    """Return the index whose entries are in the section ``data``. The (decoded) blob has at most ``size`` bytes.

    Raises LayerError if the section is damaged, or describes bytes outside the blob or more than ``max_entries``
    entries. The memory and the time are at most proportional to ``max_entries``.
    """
    builder = IndexBuilder(max_entries=max_entries)
    extents: list[Extent] = []
    budget = max_entries  # the number of extents is limited, too
    try:
        for line in _decompressed(data, MIN_TEXT + ENTRY * max_entries):
            match json.loads(line):
                case ["d", str(path), int(mode)]:
                    builder.add_directory(path, mode)
                case ["f", str(path), int(mode), int(length), int(offset)]:
                    if offset != SINGLE:
                        extents = [Extent(0, offset, length)] if length else []
                    _check(extents, length, size)
                    builder.add_file(path, length, mode, tuple(extents))
                    extents = []
                case ["x", *numbers]:
                    budget -= len(numbers) // 3
                    if budget < 0 or not numbers or len(numbers) % 3:
                        raise LayerError("the entries of a chunk table have too many extents")
                    extents += [Extent(*numbers[at : at + 3]) for at in range(0, len(numbers), 3)]
                case ["l", str(path), str(target)]:
                    builder.add_symlink(path, target)
                case ["h", str(path), str(first)]:
                    builder.add_hard_link(path, first)
                case ["s", str(name), str(reason), str(detail), str(link)]:
                    builder.skip(name, SkipReason(reason), detail, link=link)
                case _:
                    raise LayerError("the entries of a chunk table have an invalid line")
    except (ValueError, TypeError, RecursionError, zlib.error) as e:
        raise LayerError(f"the entries of a chunk table are damaged: {type(e).__name__}")
    return builder.finish()


def _check(extents: list[Extent], length: int, size: int) -> None:
    """Raise LayerError unless the extents of a file of ``length`` bytes are in order and within the blob."""
    at = 0
    for start, offset, count in extents:
        if not (at <= start and count > 0 and start + count <= length and 0 <= offset <= size - count):
            raise LayerError("the entries of a chunk table have a file outside the layer")
        at = start + count
    if not 0 <= length <= SIZE_MAX:
        raise LayerError("the entries of a chunk table have a file of an impossible size")


def _decompressed(data: bytes, most: int) -> Iterator[bytes]:
    """Yield the lines of a section, which have at most ``most`` bytes. Raises LayerError and zlib.error."""
    unpacker = zlib.decompressobj()
    rest, line = data, b""
    while not unpacker.eof:
        piece = unpacker.decompress(rest, STEP)
        most -= len(piece)
        if most < 0:
            raise LayerError("the entries of a chunk table are too long")
        rest = unpacker.unconsumed_tail
        if not piece and not rest and not unpacker.eof:
            raise LayerError("the entries of a chunk table are cut off")
        *lines, line = (line + piece).split(b"\n")
        if len(line) > MAX_LINE:
            raise LayerError("the entries of a chunk table have a line that is too long")
        yield from lines
    if line:
        raise LayerError("the entries of a chunk table are cut off")


class FileHasher:
    """A hasher that computes the sha256 of each file of a layer, whose (decoded) bytes are given in order.

    ``places`` has the offset and the size of each file in bytes, in ascending order.
    """

    def __init__(self, places: Sequence[tuple[int, int]]) -> None:
        self._places = places
        self._number = 0  # the file that is hashed
        self._current = hashlib.sha256()
        self._at = 0
        self._digests = bytearray()

    def update(self, data: bytes) -> None:
        """Hash the next bytes."""
        view, start = memoryview(data), self._at
        self._at += len(view)
        while self._number < len(self._places):
            offset, size = self._places[self._number]
            if offset >= self._at and size:
                return
            self._current.update(view[max(0, offset - start) : max(0, offset + size - start)])
            if offset + size > self._at:
                return
            self._digests += self._current.digest()
            self._current = hashlib.sha256()
            self._number += 1

    def digests(self) -> bytes:
        """Return the section "files". Every byte of the layer must have been given."""
        return bytes(self._digests)
