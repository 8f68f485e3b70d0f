"""A kit is packed in every format. All formats are mounted as the same tree; only the manifests differ."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from kitfs.errors import ContextError, UsageError
from kitfs.kit.origin import StoreOrigin
from kitfs.kit.resolver import Resolver
from kitfs.kit.tree import tree_of
from kitfs.metrics import Counters
from kitfs.modelkit.writer import KitFormat
from kitfs.oci.manifest import Descriptor, Manifest
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import quiet
from kitfs.ops.pack.kitfiles import find_kitfile, read_kitfile
from kitfs.ops.pack.pack import pack_to_registry, pack_to_store
from kitfs.store.store import Store
from tests.conftest import GOLDEN, GOLDEN_KITS

BASIC = GOLDEN_KITS["basic"]
TREE = json.loads((GOLDEN / "trees" / "basic.json").read_text())
LOG = logging.getLogger("test")
FORMS: list[dict[str, Any]] = [
    {"compression": c, "layer_format": f, "model_pack": m}
    for c in ("none", "gzip", "gzip-fastest", "zstd")
    for f in ("tar", "raw")
    for m in (False, True)
    if not (m and f == "raw" and c != "none")
]


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trees")
    subprocess.run([sys.executable, str(GOLDEN / "make_trees.py"), str(out), "basic"], check=True)
    return out / "basic"


def shown(store: Store, reference: Reference) -> dict[str, dict[str, Any]]:
    """Return the tree that a mount shows, with the fields that trees/*.json records for each path."""
    kit = Resolver(store, lambda _: StoreOrigin(), log=LOG).open(reference)
    tree = tree_of(kit, counters=Counters(), log=LOG)
    found: dict[str, dict[str, Any]] = {}
    for path, node in tree.walk(tree.root):
        found[path] = {"type": node.kind, "mode": f"{node.mode:04o}"}
        if node.kind == "file":
            found[path] |= {"size": node.size, "sha256": hashlib.sha256(tree.pread(node, 0, node.size)).hexdigest()}
    kit.close()
    return found


def packed_shape(**form: Any) -> KitFormat:
    return KitFormat(created=1_700_000_000, **form)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: "-".join(str(v) for v in f.values()))
def test_the_tree_is_the_same(basic: Path, store: Store, form: dict[str, Any]) -> None:
    reference = Reference.parse("r.io/a:v1")
    made = pack_to_store(
        str(basic),
        read_kitfile(find_kitfile(str(basic)) or ""),
        store,
        [reference],
        kit_format=packed_shape(**form),
        report=quiet,
    )
    tars = [d for layer, d in zip(made.manifest.layers, BASIC["diff_ids"], strict=True) if ".tar" in layer.media_type]
    diff_ids = [str(e.diff_id) for e in made.kitfile.entries()]
    assert [d for layer, d in zip(made.manifest.layers, diff_ids, strict=True) if ".tar" in layer.media_type] == tars
    if form["compression"] == "none":
        assert diff_ids == [str(layer.digest) for layer in made.manifest.layers]
    for layer, diff_id in zip(made.manifest.layers, diff_ids, strict=True):
        blob = store.get(layer.digest) or b""
        plain = {"+gzip": gzip.decompress, "+zstd": _unzstd}.get(layer.media_type[-5:], bytes)(blob)
        assert Digest.of(plain) == diff_id
    wanted = {
        path: {k: v for k, v in told.items() if k in ("type", "mode", "size", "sha256")} for path, told in TREE.items()
    }
    assert {p: {**t, "mode": t["mode"].zfill(4)} for p, t in shown(store, reference).items()} == {
        p: {**t, "mode": str(t["mode"]).zfill(4)} for p, t in wanted.items()
    }


def _unzstd(data: bytes) -> bytes:
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as reader:
        return reader.read()


def test_media_types_annotations_and_config_of_a_model_pack(basic: Path, store: Store) -> None:
    """Every field has the value that CNCF's model-spec defines."""
    shape = packed_shape(layer_format="raw", model_pack=True)
    made = pack_to_store(str(basic), read_kitfile(str(basic / "Kitfile")), store, [], kit_format=shape, report=quiet)
    manifest = json.loads(made.manifest.to_json())
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert [x["mediaType"].removeprefix("application/vnd.cncf.model.") for x in manifest["layers"]] == [
        "weight.v1.raw", "code.v1.tar", "code.v1.raw", "dataset.v1.raw", "dataset.v1.tar", "doc.v1.raw", "doc.v1.tar",
    ]  # fmt: skip
    model = manifest["layers"][0]
    assert model["annotations"]["org.cncf.model.filepath"] == "model/tiny.safetensors"
    assert json.loads(model["annotations"]["org.cncf.model.file.metadata+json"]) == {
        "name": "tiny.safetensors", "mode": 0o644, "uid": 0, "gid": 0, "size": TREE["model/tiny.safetensors"]["size"],
        "mtime": "2023-11-14T22:13:20Z", "typeflag": 48,
    }  # fmt: skip
    assert "org.cncf.model.file.metadata+json" not in manifest["layers"][1]["annotations"]
    config = json.loads(store.get(made.manifest.config.digest) or b"")
    assert config == {
        "descriptor": {
            "createdAt": "2023-11-14T22:13:20Z",
            "authors": ["Ada Lovelace", "O'Neil & Sons"],
            "name": "golden-basic",
            "version": "1.2.0",
            "licenses": ["Apache-2.0", "MIT"],
            "title": "golden-basic",
            "description": "Everything a plain kit has <& more>",
        },
        "modelfs": {"type": "layers", "diffIds": [str(e.diff_id) for e in made.kitfile.entries()]},
        "config": {"format": "safetensors"},
    }
    assert json.loads(manifest["annotations"]["ml.kitops.modelkit.kitfile"])["package"]["name"] == "golden-basic"


@pytest.mark.parametrize(
    "form",
    [
        {"cli_version": "newest"},
        {"compression": "lz4"},
        {"layer_format": "zip"},
        {"cli_version": "1.7.0", "compression": "zstd"},
        {"cli_version": "1.7.0", "layer_format": "raw"},
        {"cli_version": "1.7.0", "model_pack": True},
        {"layer_format": "raw", "compression": "gzip", "model_pack": True},
    ],
)
def test_what_no_reader_could_read_is_refused(form: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        KitFormat(**form)


def test_mcp_servers_are_no_part_of_a_model_pack(tmp_path: Path, store: Store) -> None:
    (tmp_path / "Kitfile").write_text("manifestVersion: 1.0.0\nmcpServers: [{name: s, path: s.mcpb}]\n")
    with pytest.raises(UsageError, match="mcpServers are not supported when packing in modelpack format"):
        pack_to_store(
            str(tmp_path),
            read_kitfile(str(tmp_path / "Kitfile")),
            store,
            [],
            kit_format=KitFormat(model_pack=True),
            report=quiet,
        )


class Registry:
    """A fake repository for ``pack_to``. It reads each blob from its start and from each offset in ``starts``."""

    def __init__(self, starts: Sequence[int]) -> None:
        self.blobs: dict[Digest, bytes] = {}
        self.tags: dict[str, bytes] = {}
        self._starts = starts

    def upload(
        self,
        descriptor: Descriptor,
        read: Callable[[int], Iterator[bytes]],
        *,
        mount_from: Sequence[str] = (),
        hints: Any = None,
        progress: Callable[[int], None] | None = None,
    ) -> str:
        if descriptor.digest in self.blobs:
            return "exists"
        whole = b"".join(read(0))
        assert len(whole) == descriptor.size
        assert Digest.of(whole) == descriptor.digest
        for start in (s for s in self._starts if s <= len(whole)):
            assert b"".join(read(start)) == whole[start:]
        self.blobs[descriptor.digest] = whole
        return "uploaded"

    def put_manifest(self, identifier: str, media_type: str, data: bytes) -> Digest:
        assert all(layer.digest in self.blobs for layer in Manifest.parse(data).layers)
        self.tags[identifier] = data
        return Digest.of(data)


@pytest.mark.parametrize(
    "form", [{}, {"compression": "gzip"}, {"compression": "zstd"}, {"layer_format": "raw"}], ids=str
)
def test_straight_to_a_registry_gives_the_same_kit(basic: Path, store: Store, form: dict[str, Any]) -> None:
    kitfile = read_kitfile(str(basic / "Kitfile"))
    kept = pack_to_store(
        str(basic), kitfile, store, [Reference.parse("r.io/a:v1")], kit_format=packed_shape(**form), report=quiet
    )
    registry = Registry([1, 511, 512, 513, 1024, 1536, 2000, 16_384, 100_000, 400_000])
    sent = pack_to_registry(
        str(basic), kitfile, registry, ["v1", "latest"], kit_format=packed_shape(**form), report=quiet
    )
    assert sent.descriptor == kept.descriptor
    assert registry.tags == {"v1": kept.manifest.to_json(), "latest": kept.manifest.to_json()}
    assert set(registry.blobs) == {d.digest for d in (kept.manifest.config, *kept.manifest.layers)}


def test_a_file_that_changes_between_its_two_readings_fails_the_push(basic: Path, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"x" * 100)
    (tmp_path / "Kitfile").write_text("manifestVersion: 1.0.0\nmodel: {name: m, path: w.bin}\n")

    class Late(Registry):
        def upload(self, descriptor: Descriptor, read: Callable[[int], Iterator[bytes]], **more: Any) -> str:
            (tmp_path / "w.bin").write_bytes(b"y" * 101)
            return super().upload(descriptor, read, **more)

    registry = Late([])
    with pytest.raises(ContextError, match=r"w\.bin changed while it was packed"):
        pack_to_registry(
            str(tmp_path),
            read_kitfile(str(tmp_path / "Kitfile")),
            registry,
            ["v1"],
            kit_format=KitFormat(),
            report=quiet,
        )
    assert registry.tags == {}
