"""Tests of the chunk tables that ``pack`` writes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kitfs.layers.chunk_table import CHUNK, ENTRIES, FILES, POINTS, WINDOWS, TableHead
from kitfs.layers.codec import decode
from kitfs.layers.entries import decode as entries_of
from kitfs.layers.libz import INFLATE
from kitfs.layers.points import RestartPoints
from kitfs.layers.tar import index_tar
from kitfs.modelkit.writer import KitFormat, PackedKit
from kitfs.oci.chunk_tables import ANNOTATION, MEDIA_TYPE, referrer_of, table_of
from kitfs.oci.manifest import Descriptor, Manifest
from kitfs.oci.names import Reference
from kitfs.ops.events import quiet
from kitfs.ops.library.remove import remove
from kitfs.ops.pack.kitfiles import read_kitfile
from kitfs.ops.pack.pack import pack_to_store
from kitfs.store.store import Store
from tests.property.test_tar import Bytes

HERE = Reference.parse("here:v1")
FORMS: dict[str, dict[str, Any]] = {
    "tar": {}, "raw": {"layer_format": "raw"}, "gzip": {"compression": "gzip"}, "zstd": {"compression": "zstd"},
}  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a directory with a model of two and a half chunks and a directory of small files."""
    root = tmp_path / "tree"
    (root / "data/é/deep").mkdir(parents=True)
    (root / "Kitfile").write_text(
        "manifestVersion: 1.0.0\nmodel: {name: m, path: w.bin}\ndatasets: [{name: d, path: data}]\n"
    )
    (root / "w.bin").write_bytes(bytes(range(256)) * (CHUNK // 256 * 5 // 2))
    (root / "data/é/deep" / ("n" * 150)).write_bytes(b"x" * 700)
    (root / "data/empty").write_bytes(b"")
    (root / "data/z").write_bytes(b"z" * CHUNK)
    return root


def packed(tree: Path, store: Store, **form: Any) -> PackedKit:
    kit_format = KitFormat(created=1, **{"chunk_tables": True, **form})
    kitfile = read_kitfile(str(tree / "Kitfile"))
    return pack_to_store(str(tree), kitfile, store, [HERE], kit_format=kit_format, report=quiet)


def table_in(store: Store, layer: Descriptor) -> tuple[bytes, TableHead]:
    """Return the table of a layer of the store, and its head, after checking the digests in the annotation."""
    named = table_of(layer.annotations)
    assert named is not None
    data = store.get(named.blob.digest)
    assert data is not None
    assert (named.blob.size, named.head.matches(data[: named.head_size])) == (len(data), True)
    return data, TableHead(data[: named.head_size])


@pytest.mark.parametrize("form", FORMS)
def test_each_layer_has_a_table_of_its_bytes(tree: Path, store: Store, form: str) -> None:
    """The table has the digests of the layer's chunks and of its files, and the entries of the layer's index."""
    for layer in packed(tree, store, **FORMS[form]).manifest.layers:
        data, head = table_in(store, layer)
        blob = store.get(layer.digest)
        assert blob is not None
        assert (head.layer, head.size) == (layer.digest.hex, len(blob))
        digests = [hashlib.sha256(blob[at : at + CHUNK]).digest() for at in range(0, len(blob), CHUNK)]
        assert data[head.digests : head.digests + len(digests) * 32] == b"".join(digests)
        files = head.sections[FILES]
        hashes = files.check(data[files.offset : files.offset + files.length])
        plain = blob if form in ("tar", "raw") else b"".join(decode([blob], form))
        if ".raw" in layer.media_type:
            assert hashes == hashlib.sha256(plain).digest()
            continue
        index = index_tar(Bytes(plain))
        section = head.sections[ENTRIES]
        entries = section.check(data[section.offset : section.offset + section.length])
        assert entries_of(entries, max_entries=100) == index
        contents = [
            plain[m.extents[0].blob_offset :][: m.size] if m.size else b""
            for m in index.members.values()
            if m.kind == "file"
        ]
        assert hashes == b"".join(hashlib.sha256(content).digest() for content in contents)


@pytest.mark.skipif(not INFLATE, reason="the system has no zlib")
def test_a_gzip_layer_has_its_restart_points(tree: Path, store: Store) -> None:
    """The table of a gzip layer has the points that a reader of the layer makes, and other tables have none."""
    for layer in packed(tree, store, compression="gzip").manifest.layers:
        data, head = table_in(store, layer)
        places = [head.sections[name] for name in (POINTS, WINDOWS)]
        found, windows = (place.check(data[place.offset : place.offset + place.length]) for place in places)
        points = RestartPoints(found, lambda offset, size, of=windows: of[offset : offset + size])
        blob = store.get(layer.digest)
        assert blob is not None
        plain = b"".join(decode([blob], "gzip"))
        assert (points.blob_size, points.size) == (len(blob), len(plain))
        assert points.sha256 == hashlib.sha256(plain).hexdigest()
    for layer in packed(tree, store, compression="zstd").manifest.layers:
        assert POINTS not in table_in(store, layer)[1].sections


def test_only_the_annotations_differ_from_the_kit_without_tables(tree: Path, store: Store) -> None:
    """Without the annotations that name the tables, the manifest is byte for byte the manifest without tables."""
    kit = packed(tree, store).manifest
    layers = tuple(
        replace(d, annotations={k: v for k, v in d.annotations.items() if k != ANNOTATION}) for d in kit.layers
    )
    plain = packed(tree, store, chunk_tables=False)
    assert replace(kit, layers=layers).to_json() == plain.manifest_bytes


def test_tables_stay_as_long_as_their_kit(tree: Path, store: Store) -> None:
    """The tables of a tagged kit are pinned, and are removed with the kit."""
    kit = packed(tree, store)
    tables = [table_of(layer.annotations) for layer in kit.manifest.layers]
    digests = {table.blob.digest for table in tables if table is not None}
    assert len(digests) == 2
    assert digests <= store.pinned()
    remove(store, HERE)
    assert not any(store.has_sealed(digest) for digest in digests)


def test_the_referrer_lists_the_tables(tree: Path, store: Store) -> None:
    """The referrer of a kit has the kit as its subject, and the tables as its layers."""
    kit = packed(tree, store)
    data = referrer_of(kit.descriptor, kit.manifest)
    assert data is not None
    referrer = Manifest.parse(data)
    assert referrer.subject is not None
    assert (referrer.subject.digest, referrer.artifact_type) == (kit.descriptor.digest, MEDIA_TYPE)
    named = [table_of(layer.annotations) for layer in kit.manifest.layers]
    assert [layer.digest for layer in referrer.layers] == [table.blob.digest for table in named if table]


@pytest.mark.parametrize(
    "value",
    [
        "",
        "[]",
        "{}",
        json.dumps({"digest": "sha256:" + "0" * 64, "size": 10, "head": "sha256:" + "0" * 64, "headSize": 11}),
        json.dumps({"digest": "sha256:" + "0" * 64, "size": -1, "head": "sha256:" + "0" * 64, "headSize": -2}),
        json.dumps({"digest": "x", "size": 10, "head": "sha256:" + "0" * 64, "headSize": 1}),
        json.dumps({"digest": "sha256:" + "0" * 64, "size": 1 << 40, "head": "sha256:" + "0" * 64, "headSize": 9}),
    ],
)
def test_a_damaged_annotation_names_no_table(value: str) -> None:
    """An annotation that cannot be right is treated as if the layer had no table."""
    assert table_of({ANNOTATION: value}) is None
