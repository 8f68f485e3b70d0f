"""Index a tar archive by reading only its headers and skipping the contents of its files.

The archives of GNU tar, bsdtar, Go and Python can be read: v7, ustar, pax, GNU long names, base-256 numbers, and sparse
files of every GNU version (``tar_header`` and ``tar_sparse`` parse the formats). Only header checksums are verified. A
damaged archive raises LayerError. ``builder`` skips entries that cannot be in a tree. An archive ends with its first
block of zeros, as in GNU tar and bsdtar, or with the blob. Even for a malicious archive, the time is proportional to
the size of the blob, and the memory to ``max_entries``.
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
MAX_EXTENDED: Final = 8 << 20  # bytes of all extension headers of one entry: far more than any tool writes
FIRST_WINDOW: Final = 4096  # bytes read at a header after a skip
NEAR: Final = 32 << 10  # bytes: a shorter gap between two reads is read, as the store fetches that much for any header
MAX_WINDOW: Final = 1 << 20  # bytes read at once where headers are close together
ZEROS: Final = bytes(BLOCK)
NO_DATA: Final = frozenset(
    b"123456"
)  # links, devices, directories and fifos have no data, even if their size field is not 0
FILES: Final = frozenset(b"\x000" + b"7S")
SKIPPED: Final = {
    0x33: SkipReason.CHARACTER_DEVICE,
    0x34: SkipReason.BLOCK_DEVICE,
    0x36: SkipReason.FIFO,
    0x4D: SkipReason.OTHER_VOLUME,  # the rest of a file that began on an earlier volume
}


class Reader(Protocol):
    """A reader of a blob at any offset; it returns fewer bytes at the end. ``size`` is None until the end is known."""

    @property
    def size(self) -> int | None: ...

    def pread(self, offset: int, size: int, /) -> bytes: ...


def index_tar(reader: Reader, *, max_entries: int = MAX_ENTRIES) -> LayerIndex:
    """Return the index of a tar archive.

    Raises LayerError for data that is not a tar, is damaged, or has more than ``max_entries`` entries.
    """
    builder = IndexBuilder(max_entries=max_entries)
    budget = max_entries  # the number of extents is limited too, so that sparse maps cannot exhaust the memory
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
        elif flag == 0x35 or flag == 0x44:  # '5', or GNU's 'D', whose data is a listing of the directory
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
    """Return the path of the first entry that is neither skipped nor the root, or None.

    Raises LayerError if the data before that entry is not a tar.
    """
    for header in _headers(_Window(reader), whole=False):
        path = clean(header.pax.get("GNU.sparse.name", header.name))[0]
        if path and header.flag != 0x56:
            return path
    return None


class _Window:
    """A window of bytes that are read ahead. It doubles while reads stay close together, and shrinks after a skip."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._start = 0
        self._data = b""
        self._ahead = FIRST_WINDOW

    def get(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes at ``offset``: fewer at the end of the archive."""
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
    """Yield the header of every entry, with its extension headers applied.

    With ``whole``, raises LayerError if the archive ends inside the data of an entry.
    """
    at = end = 0
    extensions = Extensions()
    while True:
        block = window.get(at, BLOCK)
        if len(block) < BLOCK or block == ZEROS:
            if len(block) < BLOCK and block.strip(b"\0"):
                raise LayerError(f"truncated tar: a header at {at} is cut off")
            if extensions.pending:
                raise LayerError(
                    f"truncated tar: it ends at {at}, between the extended header of an entry and the entry"
                )
            if whole:
                _check_end(window.reader, end, at, len(block))
            return
        check_sum(block, at)
        flag = block[156]
        if flag in Extensions.FLAGS:
            size = number(block[124:136], at)
            if extensions.taken + size > MAX_EXTENDED:
                raise LayerError(f"the extended headers at {at} of the tar have more than {MAX_EXTENDED} bytes")
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
            raise LayerError(
                f"truncated tar: the layer ends before its file {header.name[:200]!r}, which ends at {end}"
            )


def _check_end(reader: Reader, end: int, at: int, got: int) -> None:
    """Raise LayerError if the archive ends before the last byte of the last entry's data.

    The data ends at ``end``. The next block is at ``at``, and the archive has ``got`` bytes of that block.
    """
    if got == BLOCK:
        return
    size = reader.size
    there = end <= size <= at + got if size is not None else got > 0 or end == 0 or bool(reader.pread(end - 1, 1))
    if not there:
        raise LayerError(f"truncated tar: the layer ends before its last entry, which ends at {end}")


def _holds_data(window: _Window, at: int) -> bool:
    """Return whether a hard link with a size is followed by its data (pax -o linkdata), not by the next header."""
    block = window.get(at, BLOCK)
    if len(block) < BLOCK or block == ZEROS:
        return False
    try:
        check_sum(block, at)
    except LayerError:
        return True
    return False
