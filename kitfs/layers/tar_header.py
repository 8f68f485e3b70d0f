"""Parse one tar header and the records of a pax header.

ustar and pax are defined in POSIX.1-2001 (pax, "pax Interchange Format"); base-256 numbers and the magic of GNU tar in
its tar.h; old Sun systems wrote signed checksums. This module does no I/O: ``tar`` reads the archive. A damaged header
raises LayerError. Threading: an ``Extensions`` belongs to one reader; everything else is without state.
"""

from __future__ import annotations

import zlib
from typing import Final, NamedTuple

from kitfs.errors import LayerError
from kitfs.layers.index import SIZE_MAX

BLOCK: Final = 512
GLOBAL_KEYS: Final = frozenset(("path", "linkpath", "size"))
KEYS: Final = GLOBAL_KEYS | {
    f"GNU.sparse.{key}" for key in ("major", "name", "size", "realsize", "map")
}  # the keys that an index uses; others are ignored


class Header(NamedTuple):
    """The header of one entry, with its extensions applied.

    ``at`` is the offset of the entry's data in the archive, and ``size`` is the length of this data in bytes.
    """

    name: str
    flag: int
    mode: int
    size: int
    link: str
    at: int
    pax: dict[str, str]
    sparse: tuple[tuple[int, int], ...]  # (offset, length) from pax 0.0
    block: bytes
    extra: int  # bytes of the extension headers before the data that continue a sparse map


def padded(size: int) -> int:
    """Round ``size`` up to whole blocks."""
    return (size + BLOCK - 1) & -BLOCK


def check_sum(block: bytes, at: int) -> None:
    """Raise LayerError if the checksum of a header is wrong. Old tars have checksums over signed bytes."""
    field = block[148:156]
    want = number(field, at)
    # The low half of an Adler-32 is 1 + the sum of the bytes modulo 65,521, and the sum of 256 bytes is always smaller.
    # Adler-32 is several times as fast as ``sum``.
    halves = (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF) - 2
    total = halves - sum(field) + 8 * 0x20
    if total == want:
        return
    signed = total - 256 * sum(1 for b in block[:148] + block[156:] if b > 127)
    if signed != want:
        raise LayerError(f"the data at {at} is not a tar header: its checksum is wrong")


def number(field: bytes, at: int) -> int:
    """Parse a number of the header at ``at``: octal text, or base-256 if the first bit is set. Raises LayerError."""
    if field[0] & 0x80:
        if field[0] & 0x40:
            raise LayerError(f"the tar header at {at} has a negative number")
        value = int.from_bytes(bytes([field[0] & 0x3F]) + field[1:], "big")
    else:
        text = field.split(b"\0", 1)[0].strip()
        if text.translate(None, b"01234567"):
            raise LayerError(f"the data at {at} is not a tar header: {text!r} is not an octal number")
        value = int(text, 8) if text else 0
    if value > SIZE_MAX:
        raise LayerError(f"the tar header at {at} has a number of 2^63 or more")
    return value


def decimal(text: str, what: str) -> int:
    """Parse a number of a pax record or a sparse map. Raises LayerError for other characters, and for 2^63 or more."""
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) > SIZE_MAX:
        raise LayerError(f"the tar has an invalid number: {what}={text[:30]!r}")
    return int(text)


def text_of(field: bytes) -> str:
    """Return the string in a field, which ends at the first NUL."""
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def name_of(block: bytes) -> str:
    """Return the name in a header, which is one field in v7 tars and two fields in ustar."""
    name = block[:100].split(b"\0", 1)[0]
    if block[257:263] == b"ustar\0" and block[345]:
        prefix = block[345:476] if block[508:512] == b"tar\0" else block[345:500]  # star stores times after 131 bytes
        name = prefix.split(b"\0", 1)[0] + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def pax_records(data: bytes, into: dict[str, str], sparse: list[tuple[int, int]]) -> None:
    """Parse the records of a pax header, each of which is "length key=value\\n".

    Records that an index uses are added to ``into``, and the pairs of a sparse 0.0 map to ``sparse``. Raises
    LayerError.
    """
    at = 0
    offset = None
    while at < len(data) and data[at] != 0:
        space = data.find(b" ", at, at + 20)
        digits = data[at:space] if space > 0 else b""
        length = int(digits) if digits.isdigit() else 0
        if length < 5 or at + length > len(data) or data[at + length - 1] != 0x0A:
            raise LayerError("a pax header of the tar is damaged")
        key, equals, value = data[space + 1 : at + length - 1].partition(b"=")
        if not equals:
            raise LayerError("a pax header of the tar is damaged")
        name = key.decode("utf-8", "surrogateescape")
        at += length
        if name == "GNU.sparse.offset":
            offset = decimal(value.decode("utf-8", "replace"), name)
        elif name == "GNU.sparse.numbytes" and offset is not None:
            sparse.append((offset, decimal(value.decode("utf-8", "replace"), name)))
            offset = None
        elif name in KEYS:
            into[name] = value.decode("utf-8", "surrogateescape")


class Extensions:
    """The extension headers before an entry: pax 'x' and Solaris 'X', pax global 'g', GNU 'L' and 'K'.

    A record with an empty value removes the value of an earlier global header. ``pending`` is True after an extension
    header that is not global, until its entry is read. ``taken`` is the number of bytes of the extension headers since
    the last entry.
    """

    FLAGS: Final = b"xXgLK"

    def __init__(self) -> None:
        self._shared: dict[str, str] = {}
        self._clear()

    def _clear(self) -> None:
        self._own: dict[str, str] = {}
        self._sparse: list[tuple[int, int]] = []
        self._name = self._link = ""
        self.pending = False
        self.taken = 0

    def take(self, flag: int, data: bytes) -> None:
        """Add the data of one extension header. Raises LayerError if it is damaged."""
        self.taken += BLOCK + len(data)
        if flag == 0x67:
            records: dict[str, str] = {}
            pax_records(data, records, [])
            merged = {**self._shared, **{k: v for k, v in records.items() if k in GLOBAL_KEYS}}
            self._shared = {k: v for k, v in merged.items() if v}
            return
        self.pending = True
        if flag == 0x4C:
            self._name = text_of(data)
        elif flag == 0x4B:
            self._link = text_of(data)
        else:
            pax_records(data, self._own, self._sparse)

    def apply(self, block: bytes, at: int) -> Header:
        """Return the header of the entry whose block is at ``at``, with the extension headers before it applied.

        The data of the entry begins after its block. Extension headers other than global headers apply only to this
        entry.
        """
        if not self.pending and not self._shared:
            pax: dict[str, str] = {}
            sparse: tuple[tuple[int, int], ...] = ()
            name = link = ""
        else:
            pax = {k: v for k, v in {**self._shared, **self._own}.items() if v}
            sparse = tuple(self._sparse)
            name, link = pax.get("path", self._name), pax.get("linkpath", self._link)
        size = decimal(pax["size"], "size") if "size" in pax else number(block[124:136], at)
        if self.taken:
            self._clear()
        mode = number(block[100:108], at) & 0o777
        return Header(
            name or name_of(block),
            block[156],
            mode,
            size,
            link or text_of(block[157:257]),
            at + BLOCK,
            pax,
            sparse,
            block,
            0,
        )
