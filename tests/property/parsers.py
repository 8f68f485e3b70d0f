"""Every parser of input that kitfs does not control, with changed inputs for it.

``PARSERS`` is the registry. ``message_parsers`` adds the parsers of signatures, policies, headers and requests, and
``file_parsers`` those of files on this machine. ``Parser.draw`` makes an input. ``Parser.parse`` reads it, and returns
whether the parser accepted it. The errors that a parser may raise count as a refusal; any other exception is a fault of
the parser.
``tests/property/test_fuzz.py`` tries a few inputs of each parser, and ``python -m benchmarks.faults fuzz`` many.
"""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any, Final, NamedTuple

import zstandard

from kitfs.errors import IntegrityError, KitfsError, LayerError
from kitfs.formats.gguf import gguf
from kitfs.formats.safetensors import safetensors
from kitfs.formats.shards import weight_map
from kitfs.layers import chunk_table, entries, index_file
from kitfs.layers.codec import decode
from kitfs.layers.index import LayerIndex
from kitfs.layers.points import SPAN, Point, RestartPoints, restart_points
from kitfs.layers.tar import index_tar
from kitfs.modelkit.index import KIT_INDEX, KitIndex, is_kit_index, select
from kitfs.modelkit.kitfile import Kitfile
from kitfs.modelkit.layers import kit_layers, kitfile_of
from kitfs.oci.manifest import IMAGE_INDEX, IMAGE_MANIFEST, IndexManifest, LayerType, Manifest, check_media_type
from kitfs.oci.names import parse_any
from kitfs.oci.referrers import entry_of, subject_of, with_entry, without_entry
from tests import kits
from tests.corpus import tars
from tests.property.mutations import SHA, document, flipped

KIT: Final = kits.build(
    [
        kits.part("model", "m", kits.kit_tar({"m/w": b"w"}), name="w"),
        kits.part("dataset", "d.csv", b"1,2", format="raw", name="d"),
        kits.part("code", "src", kits.kit_tar({"src/a.py": b"a"}), compression="gzip"),
    ]
)
PACK: Final = kits.build(
    [kits.part("model", "w.bin", b"w", format="raw"), kits.part("docs", "r.md", b"r", format="raw")], vintage="modctl"
)
INDEX: Final = json.dumps({
    "schemaVersion": 2, "mediaType": IMAGE_INDEX, "artifactType": KIT_INDEX,
    "manifests": [{"mediaType": IMAGE_MANIFEST, "digest": SHA, "size": 9, "annotations": {"a": "b"},
                   "modelMetadata": {"k": "v", "n": [1, 2.5]}}],
    "annotations": {"x": "y"},
}).encode()  # fmt: skip
CONFIG_DIGEST: Final = Manifest.parse(KIT.manifest).config.digest


class Parser(NamedTuple):
    """A parser, with changed inputs for it."""

    draw: Callable[[Random], Any]
    parse: Callable[[Any], bool]


PARSERS: Final[dict[str, Parser]] = {}


def parser(draw: Callable[[Random], Any]) -> Callable[[Callable[[Any], bool]], Callable[[Any], bool]]:
    """Register a function as a parser. Its name is the name of the parser."""

    def register(parse: Callable[[Any], bool]) -> Callable[[Any], bool]:
        PARSERS[parse.__name__] = Parser(draw, parse)
        return parse

    return register


def accepts(call: Callable[[], Any], *errors: type[BaseException]) -> bool:
    """Return True if a call returns, and False if it raises one of ``errors``, which are by default KitfsError."""
    allowed = errors or (KitfsError,)
    try:
        call()
    except allowed:
        return False
    return True


def of(*samples: bytes) -> Callable[[Random], bytes]:
    """Return a function that draws a changed JSON document."""
    return lambda r: document(r, r.choice(samples))


class Bytes:
    """A reader of bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size: int | None = len(data)

    def pread(self, offset: int, size: int, *, wait: bool = True) -> bytes:
        return self.data[offset : offset + size]


def reads(data: bytes) -> Callable[[int, int], bytes]:
    """Return a function that reads a file with these bytes."""
    return lambda offset, size: data[offset : offset + size]


# -- documents of registries


@parser(of(KIT.manifest, PACK.manifest, INDEX))
def manifest(data: bytes) -> bool:
    found: list[Manifest] = []
    accepted = accepts(lambda: found.append(Manifest.parse(data)))
    for one in found:
        accepts(lambda one=one: (one.flavor, one.created, one.to_json(), list(map(LayerType.parse, one.layers))))  # type: ignore[misc]
        accepts(lambda one=one: kit_layers(one, kitfile_of(one, KIT.config)))  # type: ignore[misc]
    for call in (
        lambda: IndexManifest.parse(data), lambda: is_kit_index(data),
        lambda: check_media_type(data, IMAGE_MANIFEST, "x"),
        lambda: subject_of(data), lambda: entry_of(IMAGE_MANIFEST, CONFIG_DIGEST, data),
        lambda: without_entry(data, CONFIG_DIGEST),
        lambda: with_entry(data, entry_of(IMAGE_MANIFEST, CONFIG_DIGEST, KIT.manifest)),
    ):  # fmt: skip
        accepts(call)
    return accepted


@parser(of(INDEX))
def kit_index(data: bytes) -> bool:
    found: list[KitIndex] = []
    if not accepts(lambda: found.append(KitIndex.parse(data))):
        return False
    reference = parse_any("r.io/k:v1")
    return accepts(lambda: (select(found[0], {"k": "v"}, reference), found[0].to_json())) or True


@parser(lambda r: (r.choice((KIT, PACK)), document(r, r.choice((KIT.config, PACK.config)))))
def config(given: tuple[kits.Kit, bytes]) -> bool:
    kit, data = given
    found: list[Kitfile] = []
    if not accepts(lambda: found.append(kitfile_of(Manifest.parse(kit.manifest), data))):
        return False
    found[0].to_yaml().encode()
    accepts(lambda: (found[0].to_json(), found[0].warnings(), found[0].parent, found[0].validate()))
    return accepts(lambda: kit_layers(Manifest.parse(kit.manifest), found[0]))


KITFILE: Final = json.dumps({
    "manifestVersion": "1.0.0", "package": {"name": "k", "version": "1", "authors": ["a"]},
    "model": {"name": "w", "path": "m", "parts": [{"path": "p"}], "parameters": {"t": 0.7, "n": [1, None]}},
    "datasets": [{"name": "d", "path": "d.csv"}], "code": [{"path": "src"}], "docs": [{"path": "r.md"}],
}).encode()  # fmt: skip


def _yaml(r: Random) -> bytes:
    changed = document(r, KITFILE).decode("utf-8", "surrogateescape")
    for _ in range(r.choice((0, 0, 1, 2))):
        at = r.randrange(len(changed) + 1)
        what = r.choice(("\\ud800", "\\0", "&a ", "*a", "!!int ", "- ", "? ", "{", "'", "\t", "<<: *a", "| ", "> "))
        changed = changed[:at] + what + changed[at:]
    return changed.encode("utf-8", "surrogatepass")


@parser(_yaml)
def kitfile(data: bytes) -> bool:
    found: list[Kitfile] = []
    if not accepts(lambda: found.append(Kitfile.from_yaml(data))):
        return False
    found[0].to_yaml().encode()
    return accepts(lambda: (found[0].validate(), found[0].to_json(), found[0].warnings()))


# -- layers

FLAGS: Final = (b"0", b"1", b"2", b"5", b"g", b"x", b"L", b"K", b"S", b"D", b"7", b"\0", b"3", b"6")
NAMES: Final = (b"a", b"a/b", b"../x", b"/x", b"a/../../b", b"", b".", b"a" * 100, b"a//b", b"m/w", b"\xff\xfe")
SIZES: Final = (0, 1, 511, 512, 513, 4096, 1 << 33, -1)


def _tar(r: Random) -> bytes:
    """Return a tar of a few members with unusual headers whose checksums are right, and some changed bytes."""
    out = b""
    for _ in range(r.randint(1, 5)):
        content = bytes(r.choice((0, 1, 100, 600)))
        fields: dict[int, bytes] = {}
        for _ in range(r.randint(0, 2)):
            at = r.choice((100, 124, 125, 136, 157, 257, 345, 386, 482, 483, 495))
            fields[at] = r.choice((b"\x80\xff", b"7777777777\0", b"\0", b" ", b"\xff" * 12, b"x", b"000000000001"))
        if r.random() < 0.3:
            size = r.choice(SIZES)
            fields[124] = b"\x80" + (size % (1 << 88)).to_bytes(11, "big")
        link = r.choice(NAMES)
        magic = r.choice((b"ustar\x0000", b"ustar  \0", b"\0" * 8))
        out += tars.block(r.choice(NAMES), len(content), r.choice(FLAGS), link=link, magic=magic, fields=fields)
        out += tars.data(content)
    out += r.choice((tars.END, b"", bytes(512)))
    return flipped(r, out, 2) if r.random() < 0.2 else out


@parser(_tar)
def tar(data: bytes) -> bool:
    return accepts(lambda: _indexed(data), LayerError)


def _indexed(data: bytes) -> None:
    index = index_tar(Bytes(data), max_entries=100)
    assert LayerIndex(bytes(index.data)) == index


KEYS: Final = (
    "path", "linkpath", "size", "mtime", "uid", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.name",
    "GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.realsize", "GNU.sparse.numblocks", "GNU.sparse.offset",
    "GNU.sparse.numbytes", "hdrcharset", "x",
)  # fmt: skip
VALUES: Final = (
    "", "0", "1", "-1", "9" * 30, "1.5", "a", "a/b", "../x", "/x", "a\0b", "0,1", "0,1,1,1", "5,1,0,1", "1,", ",",
    "\ud800", "BINARY", "1e3", "0,512,1024,512", "512",
)  # fmt: skip


def _pax(r: Random, keys: tuple[str, ...] = KEYS) -> bytes:
    body = b""
    for _ in range(r.randint(0, 6)):
        record = f" {r.choice(keys)}={r.choice(VALUES)}\n".encode("utf-8", "surrogatepass")
        size = len(record) + 2 if r.random() < 0.8 else r.randint(-1, 60)
        body += str(size).encode() + record
    data = r.choice((b"", b"0\n1\n", b"1\n0\n1\n", b"2\n0\n512\n1024\n1\n", r.randbytes(40)))
    kind = r.choice((tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, b"S", b"D"))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, flag, content in (("pax", b"x", body), ("a/b", kind, data), ("c", tarfile.REGTYPE, b"c")):
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = flag, len(content), "a/b"
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


@parser(_pax)
def pax(data: bytes) -> bool:
    return accepts(lambda: _indexed(data), LayerError)


def _old_sparse(r: Random) -> bytes:
    """Return a sparse member in GNU's old format, whose map is in the header and in blocks after it."""
    numbers = [r.choice((0, 1, 512, 1024, 1 << 20, 1 << 62, (1 << 70) - 1)) for _ in range(8)]
    places = b"".join(
        b"%011o\0" % number if number < 1 << 33 else b"\x80" + number.to_bytes(11, "big") for number in numbers
    )
    more = r.random() < 0.5
    fields = {386: places[: 24 * r.randint(0, 4)], 482: bytes([more]), 483: b"%011o\0" % r.choice((0, 1024, 1 << 30))}
    head = tars.block(b"a", 512, b"S", magic=b"ustar  \0", fields=fields)
    extra = (places * 3)[: 24 * r.randint(0, 21)].ljust(504, b"\0") + bytes([r.random() < 0.3]) + bytes(7)
    return head + (extra if more else b"") + bytes(512) + tars.END


@parser(lambda r: _old_sparse(r) if r.random() < 0.5 else _pax(r, KEYS[5:14]))
def sparse_map(data: bytes) -> bool:
    return accepts(lambda: _indexed(data), LayerError)


def _stream(r: Random) -> tuple[str, bytes]:
    kind, data = r.choice(("gzip", "zstd")), r.randbytes(r.choice((0, 10, 3000))) + bytes(r.choice((0, 50_000)))
    packed = gzip.compress(data) if kind == "gzip" else zstandard.compress(data)
    return kind, flipped(r, packed * r.choice((1, 1, 2)), 2)


@parser(_stream)
def compressed_stream(given: tuple[str, bytes]) -> bool:
    kind, data = given
    return accepts(lambda: [len(piece) for piece in decode([data], kind)], LayerError)


TREE: Final = index_tar(Bytes(kits.kit_tar({"m/w": b"w", "m/x/y": b"yy"})))


def _index_file(r: Random) -> bytes:
    """Return a changed index file whose size and checksum are right."""
    changed = bytearray(flipped(r, bytes(TREE.data), 3)) if r.random() < 0.9 else bytearray(TREE.data)
    if len(changed) > index_file.HEADER.size:
        struct.pack_into("=Q", changed, 16, len(changed))
        checksum = zlib.crc32(changed[index_file.CHECKSUM + 4 :], zlib.crc32(changed[: index_file.CHECKSUM]))
        struct.pack_into("=I", changed, index_file.CHECKSUM, checksum)
    return bytes(changed)


@parser(_index_file)
def layer_index_file(data: bytes) -> bool:
    return accepts(lambda: LayerIndex(data), ValueError)


HASHER: Final = chunk_table.ChunkHasher()
HASHER.update(bytes(3 << 20))
TABLE: Final = chunk_table.build("ab" * 32, 3 << 20, HASHER.digests(), {chunk_table.ENTRIES: entries.encode(TREE)})


@parser(lambda r: flipped(r, TABLE.data[: TABLE.head], 3))
def chunk_table_head(data: bytes) -> bool:
    def read() -> None:
        head = chunk_table.TableHead(data)
        for section in (*head.sections.values(), head.page(0)):
            section.check(TABLE.data[section.offset : section.offset + section.length])

    return accepts(read, LayerError, IntegrityError)


def _entries(r: Random) -> bytes:
    lines = zlib.decompress(entries.encode(TREE)).splitlines()
    changed = [document(r, line) if r.random() < 0.4 else line for line in lines]
    r.shuffle(changed)
    return zlib.compress(b"\n".join(changed) + b"\n")


@parser(_entries)
def chunk_table_entries(data: bytes) -> bool:
    return accepts(lambda: entries.decode(data, size=1 << 20, max_entries=100), LayerError)


WINDOW: Final = zstandard.compress(b"window" * 100)
POINTS: Final = restart_points(
    "gzip",
    [Point(0, 0), Point(SPAN, 1000, 3, WINDOW), Point(2 * SPAN, 2000, 0, WINDOW)],
    size=2 * SPAN + 5,
    blob_size=3000,
    sha256="cd" * 32,
    digests=[bytes(32)] * 3,
)


def _points(r: Random) -> bytes:
    """Return changed restart points whose checksum is right."""
    changed = flipped(r, bytes(POINTS.data)[:-4], 3)
    return changed + zlib.crc32(changed).to_bytes(4, "little")


@parser(_points)
def restart_point_file(data: bytes) -> bool:
    def read() -> None:
        points = RestartPoints(data)
        for offset in (0, SPAN, points.size // 2, max(0, points.size - 1)):
            points.before(offset)
            points.piece(offset, min(points.size, offset + 1))

    return accepts(read, ValueError)


def _safetensors(r: Random) -> bytes:
    header = document(r, b'{"__metadata__":{"a":"b"},"t":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}')
    length = len(header) if r.random() < 0.9 else r.choice((0, 1, 1 << 63, len(header) - 1))
    return struct.pack("<Q", length) + header + bytes(16)


@parser(_safetensors)
def safetensors_header(data: bytes) -> bool:
    return accepts(lambda: safetensors(len(data), reads(data)), LayerError)


@parser(of(b'{"metadata":{"total_size":9},"weight_map":{"t":"model-1.safetensors","u":"model-2.safetensors"}}'))
def shard_index(data: bytes) -> bool:
    return accepts(lambda: weight_map(len(data), reads(data)), LayerError)


def _gguf(r: Random) -> bytes:
    def string(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    values = (
        struct.pack("<II", 4, 7), struct.pack("<I", 8) + string(b"v"), struct.pack("<IIQ", 9, 4, 2) + bytes(8),
        struct.pack("<IIQ", 9, 9, 1) + bytes(12), struct.pack("<IIQ", 9, 8, 1 << 40),
    )  # fmt: skip
    keys = [r.choice((b"general.alignment", b"k", b"\xff")) for _ in range(r.randint(0, 3))]
    data = b"GGUF" + struct.pack("<IQQ", r.choice((2, 3, 3, 1)), 1, len(keys))
    data += b"".join(string(key) + r.choice(values) for key in keys)
    data += string(b"t") + struct.pack("<IQQIQ", 2, r.choice((2, 1 << 40)), 2, r.choice((0, 1, 8, 99)), 0)
    return flipped(r, data + bytes(200), 2) if r.random() < 0.7 else data + bytes(200)


@parser(_gguf)
def gguf_header(data: bytes) -> bool:
    return accepts(lambda: gguf(len(data), reads(data)), LayerError)
