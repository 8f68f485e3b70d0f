"""Tar, read by hopping headers: what is inside, and where its bytes lie, without reading the bytes.

Reads what GNU tar, bsdtar, Go and Python write: v7, ustar, pax, GNU long names, base-256 numbers, and sparse files of
every GNU version (``header`` and ``sparse`` have the formats). Nothing is written and nothing is verified here but
header checksums. Damage is LayerError; an entry that cannot be in a tree is left out by ``index``. An archive ends
with its first block of zeros, as GNU tar and bsdtar have it, or with the blob. However it lies, it costs time in
proportion to the blob's size, and memory in proportion to ``max_entries``. Threading: none of its own; one call, one
thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from kitfs.errors import LayerError
from kitfs.layers.builder import IndexBuilder
from kitfs.layers.index import SIZE_MAX, LayerIndex
from kitfs.layers.names import SkipReason, clean
from kitfs.layers.tar_header import BLOCK, Extensions, Header, check_sum, number, padded
from kitfs.layers.tar_sparse import map_headers, spread

MAX_ENTRIES: Final = 2_000_000
MAX_EXTENDED: Final = 8 << 20  # bytes of all extension headers of one entry: far above what tools write
FIRST_WINDOW: Final = 4096  # bytes read at a header that was hopped to
NEAR: Final = 32 << 10  # bytes between two reads that are not worth a hop: a store fetches as much for a header alone
MAX_WINDOW: Final = 1 << 20  # bytes read at once where headers sit close together
ZEROS: Final = bytes(BLOCK)
NO_DATA: Final = frozenset(
    b"123456"
)  # links, devices, directories and fifos have no data, whatever their size field says
FILES: Final = frozenset(b"\x000" + b"7S")
SKIPPED: Final = {
    0x33: SkipReason.CHARACTER_DEVICE,
    0x34: SkipReason.BLOCK_DEVICE,
    0x36: SkipReason.FIFO,
    0x4D: SkipReason.OTHER_VOLUME,  # the rest of a file that began on an earlier volume
}


class Reader(Protocol):
    """A blob by position: short at its end. ``size`` None while nobody knows it."""

    @property
    def size(self) -> int | None: ...

    def pread(self, offset: int, size: int, /) -> bytes: ...


def index_tar(reader: Reader, *, max_entries: int = MAX_ENTRIES) -> LayerIndex:
    """The index of a tar. Raises LayerError for data that is not a tar, is damaged, or has more than ``max_entries``
    entries.
    """
    builder = IndexBuilder(max_entries=max_entries)
    budget = max_entries  # of extents, so that sparse maps cannot outgrow memory either
    window = _Window(reader)
    for header in _headers(window):
        flag = header.flag
        if flag in FILES:
            if header.name.endswith("/"):
                builder.add_directory(header.name, header.mode)
                continue
            name, size, extents = spread(header, window, budget)
            budget -= max(0, len(extents) - 1)
            builder.add_file(name, size, header.mode, extents)
        elif flag == 0x35 or flag == 0x44:  # '5', and GNU's 'D' with a listing as its data
            builder.add_directory(header.name, header.mode)
        elif flag == 0x32:
            builder.add_symlink(header.name, header.link)
        elif flag == 0x31:
            builder.add_hard_link(header.name, header.link)
        elif flag == 0x56:  # 'V', a volume label
            builder.skip_data()
        elif flag in SKIPPED:
            builder.skip(header.name, SKIPPED[flag])
        else:
            builder.skip(header.name, SkipReason.UNKNOWN_TYPE, chr(flag))
    return builder.finish()


def first_path(reader: Reader) -> str | None:
    """Normalised path of the first entry that can be in a tree and is not its root, None when there is none.

    Raises LayerError if the data before it is not a tar.
    """
    for header in _headers(_Window(reader), whole=False):
        path = clean(header.pax.get("GNU.sparse.name", header.name))[0]
        if path and header.flag != 0x56:
            return path
    return None


class _Window:
    """Reads ahead a little: the window doubles while hops stay near it, and falls back when one goes far."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._start = 0
        self._data = b""
        self._ahead = FIRST_WINDOW

    def get(self, offset: int, size: int) -> bytes:
        """``size`` bytes at ``offset``, short at the end of the archive."""
        at = offset - self._start
        if at >= 0 and at + size <= len(self._data):
            return self._data[at : at + size]
        gap = at - len(self._data)
        near = -len(self._data) <= gap <= max(self._ahead, NEAR)
        self._ahead = min(self._ahead * 2, MAX_WINDOW) if near and self._data else FIRST_WINDOW
        self._start = offset
        self._data = self.reader.pread(offset, max(size, self._ahead))
        return self._data[:size]


def _headers(window: _Window, *, whole: bool = True) -> Iterator[Header]:
    """Every entry but the extensions, which are settled into it. ``whole``: check that the archive is as long as it
    says.
    """
    at = end = 0
    extensions = Extensions()
    while True:
        block = window.get(at, BLOCK)
        if len(block) < BLOCK or block == ZEROS:
            if len(block) < BLOCK and block.strip(b"\0"):
                raise LayerError(f"truncated tar: a header at {at} is cut off")
            if extensions.pending:
                raise LayerError(f"truncated tar: it ends at {at} after the extended header of an entry")
            if whole:
                _check_end(window.reader, end, at, len(block))
            return
        check_sum(block, at)
        flag = block[156]
        if flag in Extensions.FLAGS:
            size = number(block[124:136], at)
            if extensions.taken + size > MAX_EXTENDED:
                raise LayerError(f"extended headers of more than {MAX_EXTENDED} bytes at {at}")
            data = window.get(at + BLOCK, size)
            if len(data) < size:
                raise LayerError(f"truncated tar: an extended header at {at} is cut off")
            extensions.take(flag, data)
            end = at + BLOCK + size
            at += BLOCK + padded(size)
            continue
        header = extensions.apply(block, at)
        if flag == 0x53:
            extra = map_headers(block, window, header.at)
            header = header._replace(at=header.at + extra, extra=extra)
        yield header
        at = end = header.at
        if header.size and (flag not in NO_DATA or (flag == 0x31 and _holds_data(window, at))):
            end = at + header.size
            at += padded(header.size)
        size_known = window.reader.size if whole else None
        if end > (SIZE_MAX if size_known is None else size_known):
            raise LayerError(f"truncated tar: {header.name[:200]!r} ends at {end}, the layer before that")


def _check_end(reader: Reader, end: int, at: int, got: int) -> None:
    """The last entry's data must be there to its last byte. Of the block at ``at``, behind that, ``got`` bytes were
    there.
    """
    if got == BLOCK:
        return
    size = reader.size
    there = end <= size <= at + got if size is not None else got > 0 or end == 0 or bool(reader.pread(end - 1, 1))
    if not there:
        raise LayerError(f"truncated tar: its last entry ends at {end}, the layer before that")


def _holds_data(window: _Window, at: int) -> bool:
    """Whether data follows a hard link that claims a size (pax -o linkdata), rather than the next header."""
    block = window.get(at, BLOCK)
    if len(block) < BLOCK or block == ZEROS:
        return False
    try:
        check_sum(block, at)
    except LayerError:
        return True
    return False
