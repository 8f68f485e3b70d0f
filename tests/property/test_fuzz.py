"""Every parser accepts a changed document or raises its own error, and never another exception.

The changed documents have valid syntax.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import logging
import os
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kitfs.daemon.run_dir import Record, RunDir
from kitfs.errors import ContextError, KitfsError, LayerError, UsageError
from kitfs.fuse import abi
from kitfs.gocompat.template import parse as parse_template
from kitfs.layers.codec import decode
from kitfs.layers.index import LayerIndex
from kitfs.layers.tar import index_tar
from kitfs.metrics import Counters
from kitfs.modelkit.filters import Filter
from kitfs.modelkit.index import KIT_INDEX, KitIndex, annotation_edits, is_kit_index, label_edits, select, selector
from kitfs.modelkit.kitfile import Kitfile
from kitfs.modelkit.layers import kit_layers, kitfile_of
from kitfs.oci.manifest import IMAGE_INDEX, IMAGE_MANIFEST, IndexManifest, LayerType, Manifest, check_media_type
from kitfs.oci.names import LayoutReference, parse_any
from kitfs.oci.referrers import entry_of, subject_of, with_entry, without_entry
from kitfs.ops.library import tags as local
from kitfs.ops.unpack.journal import NAME as JOURNAL
from kitfs.ops.unpack.journal import Journal
from kitfs.registry.credentials import Credentials
from kitfs.registry.layout import open_layout
from kitfs.store.store import Store
from tests import kits

LOG = logging.getLogger("kitfs.test")
EXAMPLES = int(os.environ.get("KITFS_FUZZ_EXAMPLES", "40"))
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
KIT = kits.build(
    [
        kits.part("model", "m", kits.kit_tar({"m/w": b"w"}), name="w"),
        kits.part("dataset", "d.csv", b"1,2", format="raw", name="d"),
        kits.part("code", "src", kits.kit_tar({"src/a.py": b"a"}), compression="gzip"),
    ]
)
PACK = kits.build(
    [kits.part("model", "w.bin", b"w", format="raw"), kits.part("docs", "r.md", b"r", format="raw")], vintage="modctl"
)
SHA = "sha256:" + "ab" * 32
INDEX = json.dumps({
    "schemaVersion": 2, "mediaType": IMAGE_INDEX, "artifactType": KIT_INDEX,
    "manifests": [{"mediaType": IMAGE_MANIFEST, "digest": SHA, "size": 9, "annotations": {"a": "b"},
                   "modelMetadata": {"k": "v", "n": [1, 2.5]}}],
    "annotations": {"x": "y"},
}).encode()  # fmt: skip

# -- documents

NASTY: list[Any] = [
    None, True, False, 0, -1, 1 << 63, 1 << 70, 10**400, 1e308, 0.5, "", "a", "\0", "\ud800", "\udcff", "\u202e", "..",
    "../x", "/", "/x", "a/../..",
    "sha256:", SHA, "sha512:" + "0" * 128, "x" * 5000, "\n", "s3://b/k", "localhost/k:v1", "a:b@c", [], {}, [[]],
    {"": ""}, [None],
    "2024-01-01T00:00:00Z", "9999-99-99T99:99:99Z", "application/vnd.kitops.modelkit.model.v1.tar", IMAGE_INDEX, "{}",
    '{"size":1e999}', "[" * 2000,
]  # fmt: skip
NESTED = ("[" * 90 + "]" * 90, "[" * 5000 + "]" * 5000, '{"a":' * 5000 + "1" + "}" * 5000)
CHANGES = st.lists(
    st.tuples(
        st.integers(0, 1 << 30),
        st.sampled_from(["set", "delete", "twice", "case", "nest", "into", "copy", "rename"]),
        st.sampled_from(NASTY),
    ),
    min_size=1,
    max_size=4,
)
Changes = list[tuple[int, str, Any]]


class Pairs(list[tuple[str, Any]]):
    """A JSON object as (key, value) pairs, in which a key can occur twice."""


def pairs(value: Any) -> Any:
    if isinstance(value, dict):
        return Pairs((k, pairs(v)) for k, v in value.items())
    return [pairs(v) for v in value] if isinstance(value, list) else value


def places(value: Any) -> list[tuple[Any, int]]:
    """Return (container, key or position) of every value in a document."""
    found: list[tuple[Any, int]] = []
    if isinstance(value, list):
        for i, item in enumerate(value):
            found.append((value, i))
            found += places(item[1] if isinstance(value, Pairs) else item)
    return found


def text_of(value: Any) -> str:
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(k)}:{text_of(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(text_of(v) for v in value) + "]"
    return json.dumps(value)


def changed(data: bytes, changes: Changes) -> bytes:
    """Return a JSON document with some values, keys and parts changed, in the same form."""
    document = [pairs(json.loads(data))]
    for seed, what, nasty in changes:
        container, at = (found := places(document))[seed % len(found)]
        key, old = container[at] if isinstance(container, Pairs) else (None, container[at])
        new: Any = pairs(nasty)
        if what == "delete" and len(found) > 1 and container is not document:
            del container[at]
            continue
        if what == "nest":
            new = f"@nested{seed % 3}@"
        elif what == "into":
            new = [old]
        elif what == "copy":
            other, place = found[(seed >> 8) % len(found)]
            new = pairs(json.loads(text_of(other[place][1] if isinstance(other, Pairs) else other[place])))
        if key is None:
            container[at] = new
        elif what == "twice":
            container.insert(at, (key, new))
        elif what == "case":
            container.insert(at, (key.swapcase(), old))
        elif what == "rename":
            container[at] = (str(nasty), old)
        else:
            container[at] = (key, new)
    text = text_of(document[0])
    for number, nested in enumerate(NESTED):
        text = text.replace(f'"@nested{number}@"', nested)
    return text.encode("utf-8", "surrogatepass")


def tried(call: Callable[[], Any], *errors: type[BaseException]) -> Any:
    """Return the result of a call, or None if the call raises one of the given errors."""
    with contextlib.suppress(*errors):
        return call()
    return None


# -- manifests, configs, indexes, layouts


@given(st.sampled_from([KIT.manifest, PACK.manifest, INDEX]), CHANGES)
@fuzz
def test_manifests(data: bytes, changes: Changes) -> None:
    """A changed manifest is parsed or raises the parser's own error."""
    data = changed(data, changes)
    manifest = tried(lambda: Manifest.parse(data), KitfsError)
    if manifest is not None:
        tried(
            lambda: (
                manifest.flavor,
                manifest.created,
                manifest.to_json(),
                [LayerType.parse(d) for d in manifest.layers],
            ),
            KitfsError,
        )
        tried(lambda: kit_layers(manifest, kitfile_of(manifest, KIT.config)), KitfsError)
    index = tried(lambda: KitIndex.parse(data), KitfsError)
    if index is not None:
        tried(
            lambda: (
                select(index, {"k": "v"}, parse_any("r.io/k:v1")),
                index.to_json(),
                [(v.size, v.pairs()) for v in index.variants],
            ),
            KitfsError,
        )
    for call in (
        lambda: IndexManifest.parse(data), lambda: is_kit_index(data),
        lambda: check_media_type(data, IMAGE_MANIFEST, "x"),
        lambda: subject_of(data), lambda: entry_of(IMAGE_MANIFEST, kits_digest(), data),
        lambda: without_entry(data, kits_digest()),
        lambda: with_entry(data, entry_of(IMAGE_MANIFEST, kits_digest(), KIT.manifest)),
    ):  # fmt: skip
        tried(call, KitfsError)


def kits_digest() -> Any:
    return Manifest.parse(KIT.manifest).config.digest


@given(st.sampled_from([(KIT, KIT.config), (PACK, PACK.config)]), CHANGES)
@fuzz
def test_configs(of: tuple[kits.Kit, bytes], changes: Changes) -> None:
    """A changed config is parsed or raises the parser's own error."""
    data = changed(of[1], changes)
    kitfile = tried(lambda: kitfile_of(Manifest.parse(of[0].manifest), data), KitfsError)
    if kitfile is not None:
        kitfile.to_yaml().encode()
        tried(lambda: (kitfile.to_json(), kitfile.warnings(), kitfile.parent, kitfile.validate()), KitfsError)
        tried(lambda: kit_layers(Manifest.parse(of[0].manifest), kitfile), KitfsError)


@given(
    CHANGES,
    st.lists(
        st.tuples(
            st.integers(0, 1 << 20),
            st.sampled_from(["\\ud800", "\\0", "&a ", "*a", "!!int ", "- ", "? ", "{", "'", "\t"]),
        )
    ),
)
@fuzz
def test_kitfiles(changes: Changes, inserted: list[tuple[int, str]]) -> None:
    """A changed Kitfile with elements that only YAML has is parsed or raises the parser's own error."""
    text = changed(KIT.config, changes).decode("utf-8", "surrogateescape")
    for at, what in inserted[:4]:
        text = text[: at % (len(text) + 1)] + what + text[at % (len(text) + 1) :]
    kitfile = tried(lambda: Kitfile.from_yaml(text.encode("utf-8", "surrogatepass")), KitfsError)
    if kitfile is not None:
        kitfile.to_yaml().encode()
        tried(lambda: (kitfile.validate(), kitfile.to_json(), kitfile.warnings()), KitfsError)


@given(st.sampled_from(["index.json", "oci-layout"]), CHANGES)
@fuzz
def test_layouts(name: str, changes: Changes) -> None:
    """A changed layout is parsed or raises the parser's own error."""
    with tempfile.TemporaryDirectory() as folder:
        layout = Path(kits.write_layout(KIT, Path(folder) / "layout", "v1"))
        (layout / name).write_bytes(changed((layout / name).read_bytes(), changes))
        for identifier in ("v1", "", SHA):
            with contextlib.closing(open_layout(LayoutReference("oci", str(layout)))) as opened:
                tried(lambda opened=opened, identifier=identifier: opened.manifest(identifier), KitfsError)  # type: ignore[misc]


# -- layers


class Bytes:
    """A reader of bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size: int | None = len(data)

    def pread(self, offset: int, size: int, *, wait: bool = True) -> bytes:
        return self.data[offset : offset + size]


RECORDS = st.lists(
    st.tuples(
        st.sampled_from([
            "path", "linkpath", "size", "mtime", "uid", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.name",
            "GNU.sparse.major",
            "GNU.sparse.minor", "GNU.sparse.realsize", "GNU.sparse.numblocks", "GNU.sparse.offset",
            "GNU.sparse.numbytes", "hdrcharset", "x",
        ]),
        st.sampled_from([
            "", "0", "1", "-1", "9" * 30, "1.5", "a", "a/b", "../x", "/x", "a\0b", "0,1", "0,1,1,1", "5,1,0,1", "1,",
            ",", "\ud800", "BINARY", "1e3",
        ]),
    ),
    max_size=6,
)  # fmt: skip


@given(
    RECORDS,
    st.binary(max_size=40),
    st.integers(-1, 60),
    st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, b"S", b"D"]),
)
@fuzz
def test_pax_records(records: list[tuple[str, str]], data: bytes, length: int, kind: bytes) -> None:
    """Pax records with wrong lengths or contradictions are parsed or raise the parser's own error."""
    body = b""
    for key, value in records:
        record = f" {key}={value}\n".encode("utf-8", "surrogatepass")
        size = len(record) + 2 if length < 0 else length
        body += str(size).encode() + record
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, flag, content in (("pax", b"x", body), ("a/b", kind, data), ("c", tarfile.REGTYPE, b"c")):
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = flag, len(content), "a/b"
            archive.addfile(info, io.BytesIO(content))
    index = tried(lambda: index_tar(Bytes(out.getvalue()), max_entries=100), LayerError)
    if index is not None:
        assert LayerIndex(bytes(index.data)) == index


@given(
    st.sampled_from(["gzip", "zstd"]),
    st.binary(max_size=3000),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=3),
)
@fuzz
def test_streams(kind: str, data: bytes, flips: list[tuple[int, int]]) -> None:
    """A changed compressed stream is decoded or raises the decoder's own error."""
    packed = bytearray(gzip.compress(data) if kind == "gzip" else zstandard.compress(data))
    for at, value in flips:
        packed[at % len(packed)] = value
    found = tried(lambda: b"".join(decode([bytes(packed)], kind)), LayerError)
    assert found is None or len(found) < 1 << 20


@given(CHANGES)
@fuzz
def test_index_files(changes: Changes) -> None:
    """A damaged index file raises ValueError."""
    data = bytes(index_tar(Bytes(kits.kit_tar({"m/w": b"w", "m/x/y": b"yy"}))).data)
    found = tried(lambda: LayerIndex(changed(data, changes)), ValueError)
    assert found is None or found.data == data


# -- files on the host


@given(CHANGES)
@fuzz
def test_tags_of_the_store(changes: Changes) -> None:
    """A changed tag file is parsed or raises the parser's own error."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(folder, counters=Counters(), log=LOG, free_share=0.0)
        reference: Any = parse_any("r.io/k:v1")
        store.refs.set(reference.name, "v1", {"mediaType": IMAGE_MANIFEST, "digest": SHA, "size": 5})
        (path,) = [p for p in Path(folder, "refs").rglob("*") if p.is_file()]
        path.write_bytes(changed(path.read_bytes(), changes))
        for call in (lambda: local.find(store, reference), lambda: local.kits(store), store.pinned, store.evict):
            tried(call, KitfsError)
        store.close()


@given(CHANGES)
@fuzz
def test_credentials(changes: Changes) -> None:
    """A changed credentials file is parsed or raises the parser's own error."""
    config = {
        "auths": {"r.io": {"auth": "YTpi"}, "https://x/v1/": {"identitytoken": "t"}},
        "credHelpers": {"y": "no-such"},
        "credsStore": "",
    }
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "credentials.json")
        Path(path).write_bytes(changed(json.dumps(config).encode(), changes))
        for host in ("r.io", "x", "z"):
            tried(lambda host=host: Credentials((path,)).of(host, "a/b"), KitfsError)  # type: ignore[misc]


@given(CHANGES)
@fuzz
def test_journals(changes: Changes) -> None:
    """Valid lines of a changed journal are used, and the others are ignored."""
    lines = [
        {"version": 1, "what": ["a"], "nonce": "n"},
        {"boot": "b"},
        {"d": "x"},
        {"f": "x/y", "i": 1, "s": 2, "m": 3},
    ]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, JOURNAL).write_bytes(b"\n".join(changed(json.dumps(line).encode(), changes) for line in lines))
        fd = os.open(folder, os.O_RDONLY)
        try:
            journal = Journal.open(fd, folder, ["a"])
            about = os.stat(folder)
            assert not journal.is_done("x/y", about)
            tried(lambda: (journal.is_ours("x/y", about), journal.begin(), journal.making("z")), ContextError)
            journal.close()
        finally:
            os.close(fd)


@given(CHANGES)
@fuzz
def test_records_of_mounts(changes: Changes) -> None:
    """A changed record of a mount is parsed or ignored, without an error."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(folder)
        record = {
            name: "x" if kind == "str" else 1 if kind == "int" else [] for name, kind in Record.__annotations__.items()
        }
        Path(run.file("/m", "json")).write_bytes(changed(json.dumps(record).encode(), changes))
        Path(run.file("/n", "json")).write_bytes(json.dumps(record).encode())
        run.record("/m")
        run.records()


# -- arguments of the command line, requests of the kernel

TEXTS = st.text(st.sampled_from("ab/:@=-,.{}|$\"'\\\0\udcff 1é["), max_size=20)


@given(TEXTS)
@fuzz
def test_texts(text: str) -> None:
    """References, filters, labels, edits and templates are parsed or raise the parser's own error."""
    for parse in (parse_any, Filter.parse):
        for head in ("", "oci:", "localhost/k:", "model:"):
            tried(lambda parse=parse, head=head: parse(head + text), KitfsError)  # type: ignore[misc]
    for call in (
        lambda: selector([text]), lambda: label_edits([text]), lambda: label_edits(["k:=" + text]),
        lambda: annotation_edits([text]),
        lambda: parse_template("{{" + text + "}}", ("Repo",)), lambda: parse_template(text, ("Repo",)),
    ):  # fmt: skip
        tried(call, KitfsError)


@given(st.integers(0, 70), st.binary(max_size=120), st.integers(0, 3), st.integers(-3, 3))
@fuzz
def test_requests_of_the_kernel(opcode: int, body: bytes, extensions: int, off: int) -> None:
    """A changed request of the kernel is parsed or raises the parser's own error."""
    length = max(0, 40 + len(body) + off)
    data = abi._IN_HEADER.pack(length, opcode, 1, 1, 0, 0, 0, extensions, 0) + body
    found = tried(lambda: abi.request(data), abi.BadRequestError)
    if found is not None:
        for read in (
            found.name,
            found.init,
            found.open_flags,
            found.read,
            found.handle,
            found.xattr,
            found.interrupted,
        ):
            tried(read, abi.BadRequestError)
        init = tried(found.init, abi.BadRequestError)
        tried(lambda: abi.init_out(abi.negotiate(init)) if init is not None else None, abi.BadRequestError, UsageError)
