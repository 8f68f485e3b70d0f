"""Tar, read by hopping headers: what is inside, and where its bytes lie, without reading the bytes.

Reads what GNU tar, bsdtar, Go and Python write: v7, ustar, pax (POSIX.1-2001 "pax Interchange Format"), GNU long names, base-256
numbers, and sparse files of every GNU version (old GNU, pax 0.0, 0.1, 1.0; GNU tar manual, "Storing Sparse Files"). Nothing is written
and nothing is verified here but header checksums. Damage is LayerError; an entry that cannot be in a tree is left out by ``index``.
Threading: none of its own; one call, one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from kitfs.errors import LayerError
from kitfs.layers.index import Extent, IndexBuilder, LayerIndex

BLOCK: Final = 512
MAX_ENTRIES: Final = 2_000_000
MAX_EXTENDED: Final = 8 << 20  # bytes of one pax header, long name or sparse map: far above what tools write
FIRST_WINDOW: Final = 4096  # bytes read at a header that was hopped to
MAX_WINDOW: Final = 1 << 20  # bytes read at once where headers sit close together
ZEROS: Final = bytes(BLOCK)
NO_DATA: Final = frozenset(b"123456")  # links, devices, directories and fifos have no data, whatever their size field says
FILES: Final = frozenset(b"\x000" + b"7S")


class Reader(Protocol):
    """A blob by position: short at its end. ``size`` None while nobody knows it."""

    @property
    def size(self) -> int | None: ...

    def pread(self, offset: int, size: int, /) -> bytes: ...


class Header(NamedTuple):
    """One entry with its extensions settled. ``at`` is where its data begins, ``size`` what the archive holds of it."""

    name: str
    flag: int
    mode: int
    size: int
    link: str
    at: int
    pax: dict[str, str]
    sparse: tuple[tuple[int, int], ...]  # (offset, length) from pax 0.0
    block: bytes
    extra: int  # bytes of old GNU sparse extension headers, which end where the data begins


def index_tar(reader: Reader, *, max_entries: int = MAX_ENTRIES) -> LayerIndex:
    """The index of a tar. Raises LayerError for what is no tar, is damaged, or has more than ``max_entries`` entries."""
    builder = IndexBuilder(max_entries=max_entries)
    budget = max_entries  # of extents, so that sparse maps cannot outgrow memory either
    window = _Window(reader)
    for header in _headers(window):
        flag = header.flag
        if flag in FILES:
            if header.name.endswith("/"):
                builder.add_directory(header.name, header.mode)
                continue
            name, size, extents = _file(header, window, budget)
            budget -= max(0, len(extents) - 1)
            builder.add_file(name, size, header.mode, extents)
        elif flag == 0x35 or flag == 0x44:  # '5', and GNU's 'D' with a listing as its data
            builder.add_directory(header.name, header.mode)
        elif flag == 0x32:
            builder.add_symlink(header.name, header.link)
        elif flag == 0x31:
            builder.add_hard_link(header.name, header.link)
        elif flag == 0x56:  # 'V', a volume label, is not an entry
            continue
        else:
            kinds = {0x33: "a character device", 0x34: "a block device", 0x36: "a fifo", 0x4D: "the rest of a file from another volume"}
            builder.skip(header.name, kinds.get(flag, f"an entry of unknown type {chr(flag)!r}"))
    return builder.finish()


def first_path(reader: Reader) -> str | None:
    """Normalised path of the first entry, None for an empty archive. Raises LayerError when the head is no tar."""
    from kitfs.layers.index import clean

    for header in _headers(_Window(reader), whole=False):
        return clean(header.pax.get("GNU.sparse.name", header.name))[0]
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
        near = -len(self._data) <= gap <= self._ahead
        self._ahead = min(self._ahead * 2, MAX_WINDOW) if near and self._data else FIRST_WINDOW
        self._start = offset
        self._data = self.reader.pread(offset, max(size, self._ahead))
        return self._data[:size]


def _headers(window: _Window, *, whole: bool = True) -> Iterator[Header]:
    """Every entry but the extensions, which are settled into it. ``whole``: check that the archive is as long as it says."""
    at = end = 0
    shared: dict[str, str] = {}
    pax: dict[str, str] = {}
    sparse: list[tuple[int, int]] = []
    long_name = long_link = None
    while True:
        block = window.get(at, BLOCK)
        if len(block) < BLOCK or block == ZEROS:
            if 0 < len(block) < BLOCK and block.strip(b"\0"):
                raise LayerError(f"truncated tar: a header at {at} is cut off")
            if whole:
                _check_end(window.reader, end)
            return
        _check_sum(block, at)
        flag = block[156]
        size = _number(block[124:136], at)
        at += BLOCK
        if flag in b"xXgLK":
            if size > MAX_EXTENDED:
                raise LayerError(f"an extended header at {at - BLOCK} of {size} bytes")
            data = window.get(at, size)
            if len(data) < size:
                raise LayerError(f"truncated tar: an extended header at {at - BLOCK} is cut off")
            at += _padded(size)
            end = at
            if flag == 0x4C:
                long_name = _text(data)
            elif flag == 0x4B:
                long_link = _text(data)
            elif flag == 0x67:
                _pax(data, shared, [])
            else:
                _pax(data, pax, sparse)
            continue
        merged = {**shared, **pax} if shared else pax
        if "size" in merged:
            size = _decimal(merged["size"], "size")
        extra = _old_sparse_blocks(block, window, at) if flag == 0x53 else 0
        header = Header(
            merged.get("path") or long_name or _name(block),
            flag,
            _number(block[100:108], at) & 0o777,
            size,
            merged.get("linkpath") or long_link or _text(block[157:257]),
            at + extra,
            merged,
            tuple(sparse),
            block,
            extra,
        )
        yield header
        at += extra
        if flag not in NO_DATA or (flag == 0x31 and size and _holds_data(window, at)):
            end = at + size
            at += _padded(size)
        else:
            end = at
        pax, sparse = {}, []
        long_name = long_link = None


def _check_end(reader: Reader, end: int) -> None:
    """The last entry's data must be there to its last byte."""
    short = end > reader.size if reader.size is not None else end > 0 and not reader.pread(end - 1, 1)
    if short:
        raise LayerError(f"truncated tar: its last entry ends at {end}, the layer before that")


def _check_sum(block: bytes, at: int) -> None:
    """Raises LayerError unless the header's checksum is right, by unsigned or (old tars) signed bytes."""
    field = block[148:156]
    want = _number(field, at)
    total = sum(block) - sum(field) + 8 * 0x20
    if total == want:
        return
    signed = total - 256 * sum(1 for b in block[:148] + block[156:] if b > 127)
    if signed != want:
        raise LayerError(f"not a tar header at {at}: wrong checksum")


def _holds_data(window: _Window, at: int) -> bool:
    """Whether data follows a hard link that claims a size (pax -o linkdata), rather than the next header."""
    block = window.get(at, BLOCK)
    if len(block) < BLOCK or block == ZEROS:
        return False
    try:
        _check_sum(block, at)
    except LayerError:
        return True
    return False


def _padded(size: int) -> int:
    return (size + BLOCK - 1) & -BLOCK


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        prefix = block[345:476] if block[508:512] == b"tar\0" else block[345:500]  # star keeps times behind 131 bytes
        name = prefix.split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _number(field: bytes, at: int) -> int:
    """A number of a header: octal text, or base-256 with the first bit set (GNU). Raises LayerError for anything else."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise LayerError(f"a negative number in the tar header before {at}")
        return int.from_bytes(bytes([field[0] & 0x3F]) + field[1:], "big")
    text = field.split(b"\0", 1)[0].strip()
    if not text:
        return 0
    if text.translate(None, b"01234567"):
        raise LayerError(f"not a tar header before {at}: {text!r} is not octal")
    return int(text, 8)


def _decimal(text: str, what: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise LayerError(f"a pax header with {what}={text[:30]!r}")
    return int(text)


def _pax(data: bytes, into: dict[str, str], sparse: list[tuple[int, int]]) -> None:
    """Settle the records of a pax header ("length key=value\\n") into a mapping; an empty value takes a key away."""
    at = 0
    offset = None
    while at < len(data) and data[at] != 0:
        space = data.find(b" ", at, at + 20)
        digits = data[at:space] if space > 0 else b""
        length = int(digits) if digits.isdigit() else 0
        if length < 5 or at + length > len(data) or data[at + length - 1] != 0x0A:
            raise LayerError("a damaged pax header")
        key, equals, value = data[space + 1 : at + length - 1].partition(b"=")
        if not equals:
            raise LayerError("a damaged pax header")
        name, text = key.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape")
        at += length
        if name == "GNU.sparse.offset":
            offset = _decimal(text, name)
        elif name == "GNU.sparse.numbytes" and offset is not None:
            sparse.append((offset, _decimal(text, name)))
            offset = None
        elif name in ("path", "linkpath", "size") or name.startswith("GNU.sparse."):
            if text:
                into[name] = text
            else:
                into.pop(name, None)


def _old_sparse_blocks(block: bytes, window: _Window, at: int) -> int:
    """Bytes of the extension headers that follow an old GNU sparse header."""
    extra = 0
    more = block[482]
    while more:
        extension = window.get(at + extra, BLOCK)
        extra += BLOCK
        if len(extension) < BLOCK or extra > MAX_EXTENDED:
            raise LayerError("truncated tar: a sparse map is cut off")
        more = extension[504]
    return extra


def _file(header: Header, window: _Window, budget: int) -> tuple[str, int, tuple[Extent, ...]]:
    """(name, size, extents) of a file, sparse or not."""
    pax = header.pax
    name = pax.get("GNU.sparse.name", header.name)
    if header.flag == 0x53:
        size, pairs, at = _old_sparse(header, window)
    elif "GNU.sparse.major" in pax and pax["GNU.sparse.major"] != "0":
        size = _decimal(pax.get("GNU.sparse.realsize", ""), "GNU.sparse.realsize")
        pairs, at = _sparse_1_0(header, window)
    elif "GNU.sparse.size" in pax or "GNU.sparse.map" in pax:
        size = _decimal(pax.get("GNU.sparse.size", pax.get("GNU.sparse.realsize", "")), "GNU.sparse.size")
        numbers = [_decimal(n, "GNU.sparse.map") for n in pax["GNU.sparse.map"].split(",")] if pax.get("GNU.sparse.map") else []
        pairs = list(zip(numbers[::2], numbers[1::2], strict=False)) if numbers else list(header.sparse)
        at = header.at
    else:
        return name, header.size, (Extent(0, header.at, header.size),) if header.size else ()
    held = header.at + header.size - at
    extents: list[Extent] = []
    after = 0
    for offset, length in pairs:
        if length == 0:
            continue
        if offset < after or offset + length > size or length > held or len(extents) > budget:
            raise LayerError(f"a sparse map of {name!r} that does not fit its file")
        extents.append(Extent(offset, at, length))
        after = offset + length
        at += length
        held -= length
    return name, size, tuple(extents)


def _old_sparse(header: Header, window: _Window) -> tuple[int, list[tuple[int, int]], int]:
    """Old GNU: four pairs in the header, 21 in each extension before the data; the real size at 483."""
    raw = header.block[386:482]
    start = header.at - header.extra
    fields = [raw] + [window.get(start + n, BLOCK)[:504] for n in range(0, header.extra, BLOCK)]
    pairs = []
    for field in fields:
        for i in range(0, len(field), 24):
            if not field[i]:
                break
            pairs.append((_number(field[i : i + 12], start), _number(field[i + 12 : i + 24], start)))
    return _number(header.block[483:495], start), pairs, header.at


def _sparse_1_0(header: Header, window: _Window) -> tuple[list[tuple[int, int]], int]:
    """pax 1.0: the map stands before the data, one decimal number a line, the number of pairs first, padded to a block."""
    numbers: list[int] = []
    taken = 0
    rest = b""
    while not numbers or len(numbers) < 1 + 2 * numbers[0]:
        piece = window.get(header.at + taken, BLOCK)
        if len(piece) < BLOCK or taken >= min(header.size, MAX_EXTENDED):
            raise LayerError(f"a sparse map of {header.name!r} that does not end")
        taken += BLOCK
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if numbers and len(numbers) == 1 + 2 * numbers[0]:
                break
            numbers.append(_decimal(line.decode("ascii", "replace"), "sparse map"))
    return list(zip(numbers[1::2], numbers[2::2], strict=True)), header.at + taken
