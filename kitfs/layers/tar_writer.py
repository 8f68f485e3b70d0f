"""Write tars byte for byte as ``kit`` writes them with Go's archive/tar. The functions return headers and padding.

An entry is written as USTAR if that format can represent it. A name of more than 100 bytes is split at a slash if
possible. A pax header contains long names that cannot be split, names that are not ASCII, and sizes of 8 GiB and more.
Sources: POSIX.1-2001; archive/tar of Go 1.26, ``allowedFormats`` and ``writePAXHeader``. The owner is 1000, the group 0
and the time 0, as kit writes them. An entry consists of its ``header``, its content and its ``padding``; an archive
consists of its entries and ``TRAILER``.
"""

from __future__ import annotations

from typing import Final

from kitfs.errors import LayerError
from kitfs.layers.tar_header import BLOCK, padded

TRAILER: Final = bytes(2 * BLOCK)
NAME: Final = 100  # bytes of the name field
PREFIX: Final = 155  # bytes of the prefix field
SIZE_FIELD: Final = 0o77777777777  # the largest size of 11 octal digits: 8 GiB - 1
MAX_RECORDS: Final = 1 << 20  # bytes of pax records; Go neither writes nor reads more
UID: Final = 1000


def header(name: bytes, *, directory: bool, mode: int, size: int = 0) -> bytes:
    """Return all blocks before the content of an entry.

    ``name`` is a relative path in normal form, without a slash at its end. ``mode`` may have any bits of 0o7777.
    ``size`` is in bytes, and 0 for a directory. Raises LayerError for a name that a tar cannot represent.
    """
    flag = b"5" if directory else b"0"
    records = _records(name, size)
    if not records:
        prefix, rest = _split(name)
        return _block(flag, rest, mode & 0o7777, UID, size, prefix=prefix)
    directories, slash, base = name.rpartition(b"/")
    special = _ascii(directories + slash + b"PaxHeaders.0" + (b"/" + base if base else b""))[:NAME].rstrip(b"/")
    return b"".join((
        _block(b"x", special, 0, 0, len(records), devices=False),
        records,
        padding(len(records)),
        _block(flag, _cut(_ascii(name)), mode & 0o7777, UID, size if size <= SIZE_FIELD else 0),
    ))  # fmt: skip


def padding(size: int) -> bytes:
    """Return the zeros that follow ``size`` bytes of content."""
    return bytes(padded(size) - size)


def entry_length(name: bytes, *, directory: bool, size: int) -> int:
    """Return the size in bytes of a whole entry with its headers and padding. Raises LayerError as ``header`` does."""
    records = len(_records(name, size))
    return BLOCK + (BLOCK + padded(records) if records else 0) + (0 if directory else padded(size))


def _records(name: bytes, size: int) -> bytes:
    """Return the pax records of an entry; empty if USTAR can represent the entry."""
    if b"\0" in name:
        raise LayerError(f"{name[:100]!r}: a name with a NUL byte cannot be in a tar")
    fits = name.isascii() and len(name) <= NAME
    if size <= SIZE_FIELD and (fits or (name.isascii() and _split(name)[0])):
        return b""
    found = b""
    if not fits:
        found += _record(b"path", name)
    if size > SIZE_FIELD:
        found += _record(b"size", b"%d" % size)
    if len(found) > MAX_RECORDS:
        raise LayerError(f"{name[:100]!r}…: a name of {len(name)} bytes is too long for a tar")
    return found


def _record(key: bytes, value: bytes) -> bytes:
    """Return the record ``length key=value\\n``, whose length includes its own digits."""
    bare = len(key) + len(value) + 3
    length = bare + len(str(bare))
    length = bare + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _split(name: bytes) -> tuple[bytes, bytes]:
    """Split a name into (prefix, rest) at the last slash that the prefix field allows.

    The prefix is empty if the name needs no split, or has no slash at which it can be split.
    """
    if len(name) > NAME:
        at = name.rfind(b"/", 0, PREFIX + 1)
        if at > 0 and 0 < len(name) - at - 1 <= NAME:
            return name[:at], name[at + 1 :]
    return b"", name


def _ascii(name: bytes) -> bytes:
    """Return a name without the bytes that are not ASCII."""
    return name if name.isascii() else bytes(b for b in name if b < 0x80)


def _cut(name: bytes) -> bytes:
    """Return the content of the name field, for a name that may be longer than the field.

    If the field would end with slashes, the first of them is replaced by a NUL and the others stay. Go's
    ``formatString`` does this: it strips the slashes, writes one NUL, and leaves the bytes after the NUL unchanged.
    """
    field = bytearray(name[:NAME])
    if len(name) > NAME and field[-1] == 0x2F:
        field[len(bytes(field[:-1]).rstrip(b"/"))] = 0
    return bytes(field)


def _block(
    flag: bytes, name: bytes, mode: int, uid: int, size: int, *, prefix: bytes = b"", devices: bool = True
) -> bytes:
    """Return one header block with its checksum.

    If ``devices`` is True, the device numbers are octal zeros; otherwise they are NULs, as in a pax header.
    """
    start = b"%s%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(NAME, b"\0"), mode, uid, 0, size, 0)
    rest = (
        flag
        + bytes(100)
        + b"ustar\x0000"
        + bytes(64)
        + (b"0000000\x000000000\0" if devices else bytes(16))
        + prefix.ljust(167, b"\0")
    )
    return b"%s%06o\0 %s" % (start, sum(start) + 8 * 0x20 + sum(rest), rest)
