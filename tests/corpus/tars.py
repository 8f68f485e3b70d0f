"""Hostile and unusual tars, built block by block.

``CASES`` says what an index must read from each archive: its members and the names that are left out, or a LayerError.

``members`` maps a path to (kind, x), where x is the content of a file, the target of a symlink, or "" for a directory.
This module writes the blocks from the descriptions of the formats and imports nothing from kitfs.
"""

from __future__ import annotations

from typing import NamedTuple

END = bytes(1024)


def block(
    name: bytes,
    size: int = 0,
    flag: bytes = b"0",
    *,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    fields: dict[int, bytes] | None = None,
) -> bytes:
    """Return a header block. ``fields`` maps offsets to raw bytes that overwrite the header."""
    head = bytearray(512)
    head[0 : min(100, len(name))] = name[:100]
    head[100:124] = b"0000644\x000001750\x000000000\x00"
    head[124:136] = b"%011o\0" % size
    head[136:148] = b"00000000000\0"
    head[156:157] = flag
    head[157 : 157 + min(100, len(link))] = link[:100]
    head[257 : 257 + len(magic)] = magic
    for at, value in (fields or {}).items():
        head[at : at + len(value)] = value
    return signed(bytes(head))


def signed(head: bytes) -> bytes:
    """Return a header block with a correct checksum."""
    head = head[:148] + b" " * 8 + head[156:]
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def data(content: bytes) -> bytes:
    """Return the content of a member, padded to whole blocks."""
    return content + bytes(-len(content) % 512)


def file(
    name: bytes, content: bytes = b"", *, magic: bytes = b"ustar\x0000", fields: dict[int, bytes] | None = None
) -> bytes:
    """Return the header and the content of a regular file."""
    return block(name, len(content), magic=magic, fields=fields) + data(content)


def record(key: bytes, value: bytes) -> bytes:
    """Return a pax record. The length at its start includes the length itself."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def pax(*records: tuple[bytes, bytes], flag: bytes = b"x") -> bytes:
    """Return a pax header with its records."""
    content = b"".join(record(k, v) for k, v in records)
    return block(b"PaxHeaders.0/x", len(content), flag) + data(content)


def long(flag: bytes, name: bytes) -> bytes:
    """Return a long name or link as GNU tar stores it, in a member of type 'L' or 'K'."""
    return block(b"././@LongLink", len(name) + 1, flag, magic=b"ustar  \0") + data(name + b"\0")


def base256(value: int) -> bytes:
    """Return a number in twelve bytes, as GNU tar writes large and negative numbers."""
    return (value & ((1 << 96) - 1) | (0 if value < 0 else 1 << 95)).to_bytes(12, "big")


class Case(NamedTuple):
    """An archive and what an index must read from it.

    ``error`` is a part of the LayerError's message. If ``error`` is empty, no LayerError is raised, and ``members`` and
    ``skipped`` are in the order of the index.
    """

    archive: bytes
    members: dict[str, tuple[str, bytes | str]] | None = None
    skipped: tuple[str, ...] = ()
    error: str = ""


F = "file"
ONE = ("file", b"1")
A, B, C, HOLE = b"a" * 512, b"b" * 512, b"c" * 512, bytes(512)
SPARSE_1_0 = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"s"))
SPARSE_0_1 = ((b"GNU.sparse.size", b"3072"), (b"GNU.sparse.numblocks", b"2"))
OLD = b"ustar  \0"
STAR_TIMES = b"00000000000 00000000000 "


def old_gnu(pairs: list[tuple[int, int]], real: int, *, more: bytes = b"\0") -> dict[int, bytes]:
    """Return the fields that an old GNU sparse header adds to a header."""
    return {386: b"".join(b"%011o\0%011o\0" % p for p in pairs), 482: more, 483: b"%011o\0" % real}


def extension(pairs: list[tuple[int, int]], *, more: bytes = b"\0") -> bytes:
    """Return an old GNU sparse extension header."""
    return b"".join(b"%011o\0%011o\0" % p for p in pairs).ljust(504, b"\0") + more + bytes(7)


ENDS = {
    "empty blob": Case(b"", {}),
    "only the end": Case(END, {}),
    "a record of GNU tar, empty": Case(bytes(10240), {}),
    "no end": Case(file(b"a", b"1"), {"a": ONE}),
    "no padding either": Case(file(b"a", b"1")[:513], {"a": ONE}),
    "one block of zeros": Case(file(b"a", b"1") + bytes(512), {"a": ONE}),
    "half a block of zeros": Case(file(b"a", b"1") + bytes(100), {"a": ONE}),
    "what follows the end does not count": Case(file(b"a", b"1") + END + file(b"b") + b"noise", {"a": ONE}),
    "a lone block of zeros is the end, as GNU tar and bsdtar say": Case(
        file(b"a", b"1") + bytes(512) + file(b"b") + END, {"a": ONE}
    ),
    "only a global header, as git archive of nothing": Case(pax((b"comment", b"0" * 40), flag=b"g") + END, {}),
    "cut in a header": Case(file(b"a", b"1") + file(b"b")[:300], error="cut off"),
    "cut in data": Case(file(b"a", b"12345")[:516], error="truncated"),
    "cut in a pax header": Case(pax((b"path", b"x" * 600))[:800], error="cut off"),
    "cut behind a pax header": Case(pax((b"path", b"x")), error="truncated"),
    "an end behind a long name": Case(long(b"L", b"x" * 200) + END, error="truncated"),
    "noise": Case(b"\x7fELF" + bytes(range(256)) * 8, error="not a tar"),
    "noise behind an entry": Case(file(b"a", b"1") + b"x" * 512, error="not a tar"),
}

NUMBERS = {
    "base-256 size": Case(block(b"a", fields={124: base256(3)}) + data(b"abc") + END, {"a": (F, b"abc")}),
    "negative size": Case(block(b"a", fields={124: base256(-1)}) + data(b"abc") + END, error="negative"),
    "most negative size": Case(block(b"a", fields={124: base256(-(1 << 94))}) + END, error="negative"),
    "size of 2^63": Case(block(b"a", fields={124: base256(1 << 63)}) + END, error="2^63"),
    "size of 2^63 - 1": Case(block(b"a", fields={124: base256((1 << 63) - 1)}) + END, error="truncated"),
    "size of 2^63 - 512, twice": Case(block(b"a", fields={124: base256((1 << 63) - 512)}) * 2 + END, error="truncated"),
    "size of 8 GiB - 1 in octal": Case(block(b"a", fields={124: b"77777777777\0"}) + END, error="truncated"),
    "size of twelve octal digits": Case(
        block(b"a", fields={124: b"000000000003"}) + data(b"abc") + END, {"a": (F, b"abc")}
    ),
    "size between blanks": Case(block(b"a", fields={124: b"        3 \0\0"}) + data(b"abc") + END, {"a": (F, b"abc")}),
    "size left empty": Case(block(b"a", fields={124: bytes(12)}) + END, {"a": (F, b"")}),
    "size in decimal": Case(block(b"a", fields={124: b"00000000009\0"}) + END, error="octal"),
    "negative time and owner, which do not matter": Case(
        block(b"a", 1, fields={108: b"\xff" * 16, 136: base256(-5)}) + data(b"1") + END, {"a": ONE}
    ),
    "pax size over a size of 0": Case(pax((b"size", b"3")) + block(b"a") + data(b"abc") + END, {"a": (F, b"abc")}),
    "pax size of 20 digits": Case(pax((b"size", b"99999999999999999999")) + block(b"a") + END, error="size="),
    "pax size of 2^63": Case(pax((b"size", b"%d" % (1 << 63))) + block(b"a") + END, error="size="),
    "pax size with a sign": Case(pax((b"size", b"-1")) + block(b"a") + END, error="size="),
    "pax size in Arabic digits": Case(pax((b"size", "٣".encode())) + block(b"a") + END, error="size="),
    "a link that claims a size": Case(
        block(b"l", 9999, b"2", link=b"t") + file(b"a", b"1") + END, {"l": ("symlink", "t"), "a": ONE}
    ),
    "a directory that claims a size": Case(
        block(b"d", 9999, b"5") + file(b"a", b"1") + END, {"d": ("dir", ""), "a": ONE}
    ),
    "a hard link that claims a size": Case(
        file(b"a", b"1") + block(b"h", 600, b"1", link=b"a") + file(b"b", b"1") + END, {"a": ONE, "h": ONE, "b": ONE}
    ),
    "a hard link that has its data": Case(
        file(b"a", b"1") + block(b"h", 600, b"1", link=b"a") + data(b"y" * 600) + file(b"b", b"1") + END,
        {"a": ONE, "h": ONE, "b": ONE},
    ),
}

HIGH_BYTES = block("é".encode() + b"\xff", 1)
SIGNED_SUM = (
    HIGH_BYTES[:148] + b"%06o\0 " % (int(HIGH_BYTES[148:154], 8) - 256 * 3) + HIGH_BYTES[156:]
)  # the checksum is the sum of signed bytes, as old Sun systems computed it
HEADERS = {
    "v7": Case(file(b"d/", magic=b"") + file(b"d/a", b"1", magic=b"") + END, {"d": ("dir", ""), "d/a": ONE}),
    "v7 with NUL for its type": Case(block(b"a", 1, b"\0", magic=b"") + data(b"1") + END, {"a": ONE}),
    "contiguous": Case(block(b"a", 1, b"7") + data(b"1") + END, {"a": ONE}),
    "signed checksum": Case(SIGNED_SUM + data(b"1") + END, {"é\udcff": ONE}),
    "wrong checksum": Case(block(b"a")[:148] + b"0000000\0" + block(b"a")[156:] + END, error="checksum"),
    "ustar prefix": Case(file(b"n", b"1", fields={345: b"p/q"}) + END, {"p/q/n": ONE}),
    "GNU's header has no prefix there": Case(
        file(b"n", b"1", magic=b"ustar  \0", fields={345: b"0000"}) + END, {"n": ONE}
    ),
    "star's prefix is shorter": Case(
        file(b"n", b"1", fields={345: b"p".ljust(131, b"\0") + b"00000000000 ", 508: b"tar\0"}) + END, {"p/n": ONE}
    ),
    "names of every byte": Case(file(b"\xff\xfe \n\\", b"1") + END, {"\udcff\udcfe \n\\": ONE}),
    "a name of 100 bytes and no NUL": Case(file(b"n" * 100, b"1") + END, {"n" * 100: ONE}),
    "pax wins over a long name": Case(
        long(b"L", b"l" * 120) + pax((b"path", b"p")) + file(b"s", b"1") + END, {"p": ONE}
    ),
    "the later long name wins": Case(
        long(b"L", b"x" * 120) + long(b"L", b"y" * 120) + file(b"s", b"1") + END, {"y" * 120: ONE}
    ),
    "a long name is of one entry": Case(
        long(b"L", b"x" * 120) + file(b"s", b"1") + file(b"t", b"1") + END, {"x" * 120: ONE, "t": ONE}
    ),
    "a long link": Case(
        long(b"K", b"t" * 300) + block(b"l", flag=b"2", link=b"t" * 100) + END, {"l": ("symlink", "t" * 300)}
    ),
    "Solaris X": Case(pax((b"path", b"p"), flag=b"X") + file(b"s", b"1") + END, {"p": ONE}),
    "a global path holds until an empty one": Case(
        pax((b"path", b"g"), flag=b"g")
        + file(b"a", b"1")
        + pax((b"path", b""))
        + file(b"b", b"1")
        + pax((b"path", b""), flag=b"g")
        + file(b"c", b"1")
        + END,
        {"g": ONE, "b": ONE, "c": ONE},
    ),
    "pax records nobody knows": Case(
        pax(
            (b"SCHILY.xattr.user.a", b"\0\n=\xff"),
            (b"LIBARCHIVE.xattr.b", b"x"),
            (b"mtime", b"-1.5"),
            (b"hdrcharset", b"BINARY"),
            (b"path", b"\xff"),
        )
        + file(b"s", b"1")
        + END,
        {"\udcff": ONE},
    ),
    "pax without a line end": Case(block(b"x", 9, b"x") + data(b"9 path=ab") + file(b"s") + END, error="pax"),
    "pax that is longer than itself": Case(block(b"x", 9, b"x") + data(b"99 a=bcd\n") + file(b"s") + END, error="pax"),
    "pax of length 0": Case(block(b"x", 9, b"x") + data(b"0 a=bcde\n") + file(b"s") + END, error="pax"),
    "pax without a number": Case(block(b"x", 9, b"x") + data(b"path=abc\n") + file(b"s") + END, error="pax"),
    "pax without =": Case(block(b"x", 8, b"x") + data(b"8 abcde\n") + file(b"s") + END, error="pax"),
    "empty pax header": Case(block(b"x", 0, b"x") + file(b"s", b"1") + END, {"s": ONE}),
    "a pax header of 2^40 bytes": Case(
        block(b"x", fields={124: base256(1 << 40)}, flag=b"x") + END, error="extended headers"
    ),
    "pax headers without end": Case(pax((b"comment", b"x" * 4000)) * 2100 + file(b"s") + END, error="extended headers"),
    "global headers without end": Case(block(b"g", 0, b"g") * 17000 + file(b"s") + END, error="extended headers"),
}

ENTRIES = {
    "a volume label": Case(block(b"LABEL", flag=b"V") + file(b"a", b"1") + END, {"a": ONE}),
    "the rest of another volume": Case(
        block(b"m", 3, b"M") + data(b"abc") + file(b"a", b"1") + END, {"a": ONE}, ("m",)
    ),
    "a dumpdir": Case(
        block(b"d/", 9, b"D", magic=b"ustar  \0") + data(b"Ya\0Nb\0\0") + file(b"d/a", b"1") + END,
        {"d": ("dir", ""), "d/a": ONE},
    ),
    "types of vendors": Case(
        block(b"z", 3, b"Z") + data(b"abc") + block(b"A", 3, b"A") + data(b"abc") + file(b"a", b"1") + END,
        {"a": ONE},
        ("z", "A"),
    ),
    "devices and fifos": Case(
        b"".join(block(t, 0, t) for t in (b"3", b"4", b"6")) + file(b"a", b"1") + END, {"a": ONE}, ("3", "4", "6")
    ),
    "names that leave the root": Case(
        b"".join(file(n) for n in (b"/a", b"../a", b"b/..", b"b/../../a", b"..", b"//a"))
        + file(b"..a/...", b"1")
        + END,
        {"..a/...": ONE},
        ("/a", "../a", "b/..", "b/../../a", "..", "//a"),
    ),
    "the root, and a file in its place": Case(
        block(b"./", flag=b"5") + block(b"", flag=b"5") + file(b".") + END, {}, (".",)
    ),
    "a NUL in a pax name": Case(pax((b"path", b"a\0b")) + file(b"s") + END, {}, ("a\0b",)),
    "components of 255 and 256 bytes": Case(
        long(b"L", "é".encode() * 127 + b"x") + file(b"s", b"1") + long(b"L", "é".encode() * 128) + file(b"s") + END,
        {"é" * 127 + "x": ONE},
        ("é" * 128,),
    ),
    "a path of 4097 bytes": Case(
        long(b"L", b"abc/" * 1024 + b"x") + file(b"s") + file(b"a", b"1") + END,
        {"a": ONE},
        (("abc/" * 1024 + "x")[:1024] + "…",),
    ),
    "a megabyte of directories": Case(long(b"L", b"a/" * (1 << 19) + b"x") + file(b"s") + END, {}, ("a/" * 512 + "…",)),
    "symlinks without a usable target": Case(
        block(b"e", flag=b"2")
        + pax((b"linkpath", b"a\0b"))
        + block(b"n", flag=b"2")
        + long(b"K", b"x" * 4096)
        + block(b"l", flag=b"2")
        + END,
        {},
        ("e", "n", "l"),
    ),
    "symlinks that leave the root are shown": Case(
        block(b"a", flag=b"2", link=b"/etc") + block(b"b", flag=b"2", link=b"../..") + END,
        {"a": ("symlink", "/etc"), "b": ("symlink", "../..")},
    ),
    "nothing is written through a symlink": Case(
        block(b"l", flag=b"2", link=b"/etc") + file(b"l/passwd") + block(b"l/d", flag=b"5") + END,
        {"l": ("symlink", "/etc")},
        ("l/passwd", "l/d"),
    ),
    "hard links to nothing that may be linked": Case(
        block(b"d", flag=b"5")
        + b"".join(
            block(b"h%d" % i, flag=b"1", link=t) for i, t in enumerate((b"/a", b"../a", b"d", b"later", b"", b"."))
        )
        + file(b"later", b"1")
        + END,
        {"d": ("dir", ""), "later": ONE},
        tuple(f"h{i}" for i in range(6)),
    ),
    "a hard link to itself changes nothing": Case(
        file(b"a", b"1") + block(b"a", flag=b"1", link=b"./a") + END, {"a": ONE}
    ),
    "a hard link to a symlink": Case(
        block(b"s", flag=b"2", link=b"t") + block(b"h", flag=b"1", link=b"s") + END,
        {"s": ("symlink", "t"), "h": ("symlink", "t")},
    ),
    "a hard link keeps what it linked to": Case(
        file(b"a", b"1") + block(b"h", flag=b"1", link=b"a") + file(b"a", b"2") + END, {"h": ONE, "a": (F, b"2")}
    ),
}


def s_header(size: int, pairs: list[tuple[int, int]], real: int, *, more: bytes = b"\0") -> bytes:
    """Return the whole header block of an old GNU sparse file."""
    return block(b"s", size, b"S", magic=OLD, fields=old_gnu(pairs, real, more=more))


SPARSE = {
    "old GNU": Case(
        s_header(1536, [(0, 512), (1024, 1024), (3072, 0)], 3072) + A + B + C + END,
        {"s": (F, A + HOLE + B + C + HOLE * 2)},
    ),
    "old GNU, two extension headers": Case(
        s_header(15360, [(1024 * i, 512) for i in range(4)], 30720, more=b"\1")
        + extension([(1024 * i, 512) for i in range(4, 25)], more=b"\1")
        + extension([(1024 * i, 512) for i in range(25, 30)] + [(30720, 0)])
        + A * 30
        + file(b"a", b"1")
        + END,
        {"s": (F, (A + HOLE) * 30), "a": ONE},
    ),
    "old GNU, extension headers without end": Case(
        s_header(0, [], 9, more=b"\1") + extension([], more=b"\1") * 16500, error="does not end"
    ),
    "old GNU, cut in an extension header": Case(s_header(0, [], 9, more=b"\1") + bytes(100), error="cut off"),
    "old GNU, a file of 2^63 bytes": Case(
        block(b"s", 0, b"S", magic=OLD, fields={483: base256(1 << 63)}) + END, error="2^63"
    ),
    "star": Case(
        block(
            b"s",
            1024,
            b"S",
            fields={
                355: b"\0" + b"%011o\0%011o\0" % (512, 1024) + b"%011o\0%011o\0" % (2048, 0),
                452: b"%011o " % 2048,
                476: STAR_TIMES,
                508: b"tar\0",
            },
        )
        + A
        + B
        + END,
        {"s": (F, HOLE + A + B + HOLE)},
    ),
    "star, an extension header": Case(
        block(b"s", 512, b"S", fields={355: b"\1", 452: b"%011o " % 1024, 476: STAR_TIMES, 508: b"tar\0"})
        + extension([(512, 512)])
        + A
        + file(b"a", b"1")
        + END,
        {"s": (F, HOLE + A), "a": ONE},
    ),
    "all hole": Case(s_header(0, [(512, 0)], 512) + END, {"s": (F, HOLE)}),
    "spans of no whole blocks lie one behind the other": Case(
        s_header(3, [(0, 1), (5, 2)], 9) + data(b"abc") + END, {"s": (F, b"a\0\0\0\0bc\0\0")}
    ),
    "spans that overlap": Case(s_header(4, [(0, 2), (1, 2)], 9) + data(b"abcd") + END, error="sparse map"),
    "spans out of order": Case(s_header(4, [(5, 2), (1, 2)], 9) + data(b"abcd") + END, error="sparse map"),
    "a span behind the end of its file": Case(s_header(4, [(8, 2)], 9) + data(b"abcd") + END, error="sparse map"),
    "more in the map than in the archive": Case(s_header(1, [(0, 2)], 9) + data(b"a") + END, error="sparse map"),
    "0.0": Case(
        pax(
            (b"GNU.sparse.size", b"3072"),
            (b"GNU.sparse.numblocks", b"2"),
            (b"GNU.sparse.offset", b"0"),
            (b"GNU.sparse.numbytes", b"512"),
            (b"GNU.sparse.offset", b"2048"),
            (b"GNU.sparse.numbytes", b"1024"),
        )
        + file(b"s", A + B + C)
        + END,
        {"s": (F, A + HOLE * 3 + B + C)},
    ),
    "0.0, all hole": Case(
        pax((b"GNU.sparse.size", b"6"), (b"GNU.sparse.numblocks", b"0")) + file(b"s") + END, {"s": (F, bytes(6))}
    ),
    "0.1": Case(
        pax(*SPARSE_0_1, (b"GNU.sparse.name", b"s"), (b"GNU.sparse.map", b"0,512,2048,1024"))
        + file(b"GNUSparseFile.1/s", A + B + C)
        + END,
        {"s": (F, A + HOLE * 3 + B + C)},
    ),
    "0.1, neighbours": Case(
        pax(*SPARSE_0_1, (b"GNU.sparse.map", b"0,512,512,1024")) + file(b"s", A + B + C) + END,
        {"s": (F, A + B + C + HOLE * 3)},
    ),
    "0.1, an odd number": Case(pax(*SPARSE_0_1, (b"GNU.sparse.map", b"0,1,8")) + file(b"s", b"abc") + END, error="odd"),
    "0.1, commas": Case(
        pax(*SPARSE_0_1, (b"GNU.sparse.map", b"0,1,,")) + file(b"s", b"abc") + END, error="GNU.sparse.map"
    ),
    "0.1, beyond 2^63": Case(
        pax((b"GNU.sparse.size", b"9999999999999999999"), (b"GNU.sparse.map", b"0,1")) + file(b"s", b"a") + END,
        error="GNU.sparse.size",
    ),
    "0.1, no size": Case(pax((b"GNU.sparse.map", b"0,1")) + file(b"s", b"a") + END, error="GNU.sparse.size"),
    "1.0": Case(
        pax(*SPARSE_1_0, (b"GNU.sparse.realsize", b"3072"))
        + file(b"G/s", data(b"2\n0\n512\n2048\n1024\n") + A + B + C)
        + END,
        {"s": (F, A + HOLE * 3 + B + C)},
    ),
    "1.0, a map over blocks": Case(
        pax(*SPARSE_1_0, (b"GNU.sparse.realsize", b"307200"))
        + file(b"G/s", data(b"300\n" + b"".join(b"%d\n512\n" % (1024 * i) for i in range(300))) + A * 300)
        + END,
        {"s": (F, (A + HOLE) * 300)},
    ),
    "1.0, no spans": Case(
        pax(*SPARSE_1_0, (b"GNU.sparse.realsize", b"6")) + file(b"G/s", data(b"0\n")) + END, {"s": (F, bytes(6))}
    ),
    "1.0, no map": Case(pax(*SPARSE_1_0, (b"GNU.sparse.realsize", b"6")) + file(b"G/s") + END, error="sparse map"),
    "1.0, megabytes of one number": Case(
        pax(*SPARSE_1_0, (b"GNU.sparse.realsize", b"6")) + file(b"G/s", b"1" * (4 << 20)) + END, error="sparse map"
    ),
    "1.0, more spans than lines": Case(
        pax(*SPARSE_1_0, (b"GNU.sparse.realsize", b"6")) + file(b"G/s", data(b"5\n0\n1\n")) + END, error="sparse map"
    ),
    "1.0, spans without number": Case(
        pax(*SPARSE_1_0, (b"GNU.sparse.realsize", b"6")) + file(b"G/s", data(b"9223372036854775807\n0\n1\n")) + END,
        error="sparse map",
    ),
    "1.0, no size": Case(pax(*SPARSE_1_0) + file(b"G/s", data(b"0\n")) + END, error="realsize"),
}

CASES: dict[str, Case] = {**ENDS, **NUMBERS, **HEADERS, **ENTRIES, **SPARSE}
