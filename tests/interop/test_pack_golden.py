"""From the golden trees ``kitfs pack`` makes the same layers and configs as kit, byte for byte.

The manifest is in the format of the requested version of kit.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kitfs.version import __version__
from tests import kits, trees
from tests.conftest import GOLDEN, GOLDEN_KITS
from tests.fakes.registry import FakeRegistry
from tests.host import Host

pytestmark = pytest.mark.interop
PACKED_BY_KIT = [name for name, kit in GOLDEN_KITS.items() if "packed_by" not in kit]
PLAIN = [name for name in PACKED_BY_KIT if GOLDEN_KITS[name]["compression"] == "none"]
VERSION = "ml.kitops.modelkit.cli-version"
CREATED = "org.opencontainers.image.created"
SAVED = re.compile(r"(Saved|Already saved) (\w+) layer: (sha256:[0-9a-f]{64})")


@pytest.fixture(scope="module")
def mirror() -> Iterator[tuple[str, str]]:
    """Return the option ``--mirror`` for a registry that contains golden/parts, the parent of the kit ``child``."""
    archive, about = GOLDEN / "layouts/parts.tar", GOLDEN_KITS["parts"]
    with FakeRegistry() as registry:
        for blob in (about["config"], *about["layers"]):
            registry.put_blob("golden/parts", trees.blob_of(archive, blob["digest"]))
        registry.put_manifest("golden/parts", trees.blob_of(archive, about["manifest"]), tag="v1")
        yield "--mirror-tags", f"--mirror=registry.golden.test={registry.url}"


def blob(box: Host, digest: str) -> bytes:
    """Return the bytes of a blob in the store of a host, after checking their digest."""
    algorithm, _, name = digest.partition(":")
    data = (box.cache / "blobs" / algorithm / name[:2] / name / "rest").read_bytes()
    assert kits.sha256(data) == digest
    return data


def packed(
    box: Host, *args: str | os.PathLike[str], env: dict[str, str] | None = None
) -> tuple[str, dict[str, Any], dict[str, Any], list[str]]:
    """Pack a kit, and return its digest, its manifest, its config and the lines that were printed."""
    lines = box.kitfs("pack", *args, env=env).stdout.splitlines()
    digest = lines[-1].removeprefix("Model saved: ")
    manifest = json.loads(blob(box, digest))
    return digest, manifest, json.loads(blob(box, manifest["config"]["digest"])), lines


@pytest.mark.parametrize("name", PACKED_BY_KIT)
@pytest.mark.parametrize("version", [None, *(pytest.param(v, marks=pytest.mark.slow) for v in ("1.7.0", "1.10.0"))])
def test_layers_and_config_of_a_golden_tree_are_those_of_kit(
    golden_trees: Path, box: Host, mirror: tuple[str, str], name: str, version: str | None
) -> None:
    """Layers have kit's digests, sizes and media types, and the config has kit's digest and size.

    kitfs packs without compression here. If kit compressed the layers, only the digests of the uncompressed layers are
    compared.
    """
    expected = GOLDEN_KITS[name]
    options = ("--chunk-table", "none") if version is None else ("--kit-version", version)
    _, manifest, config, lines = packed(box, golden_trees / expected["tree"], "-t", "here:v1", *options, *mirror)
    layers = manifest["layers"] or []
    assert [layer["digest"] for layer in layers] == expected["diff_ids"]
    assert [m[3] for m in map(SAVED.fullmatch, lines) if m] == expected["diff_ids"]
    if expected["compression"] == "none":
        assert [{key: layer[key] for key in ("mediaType", "digest", "size")} for layer in layers] == (
            expected["layers"] or []
        )
        assert manifest["config"] == expected["config"]
    else:
        assert [layer["mediaType"] for layer in layers] == [
            layer["mediaType"].removesuffix("+gzip") for layer in expected["layers"]
        ]
        theirs = json.loads(trees.blob_of(GOLDEN / f"layouts/{name}.tar", expected["config"]["digest"]))
        assert config == without_digests(theirs, config)


def without_digests(theirs: Any, ours: Any) -> Any:
    """Return ``theirs`` with the layer digests of ``ours``, after checking that the diffIds are equal.

    kitfs packs the layers without compression, so their digests are equal to their diffIds.
    """
    if isinstance(theirs, dict):
        found = {key: without_digests(value, ours[key]) for key, value in theirs.items()}
        if "diffId" in theirs:
            assert ours["digest"] == ours["diffId"] == theirs["diffId"]
            found["digest"] = ours["digest"]
        return found
    if isinstance(theirs, list):
        return [without_digests(a, b) for a, b in zip(theirs, ours, strict=True)]
    return theirs


@pytest.mark.parametrize("name", PLAIN)
def test_a_manifest_of_kit_1_7_is_that_of_kit(
    golden_trees: Path, box: Host, mirror: tuple[str, str], name: str
) -> None:
    """With ``--kit-version 1.7.0`` the whole kit is byte for byte what kit 1.7.0 made of the tree."""
    digest, *_ = packed(box, golden_trees / name, "-t", "here:v1", "--kit-version", "1.7.0", *mirror)
    assert digest == GOLDEN_KITS[name]["manifest"]


# -- other versions

KITFILE = b"""\
manifestVersion: 1.0.0
package: {name: shapes}
model:
  name: m
  path: ./model/w.bin
  parts: [{name: p, path: adapters/}]
  parameters: {n: 1}
code: [{path: src//run.py}]
datasets: [{name: d, path: data}]
docs: [{path: README.md}]
prompts: [{name: ask, path: prompts/ask.md}]
mcpServers: [{name: tool, path: tool.mcpb}]
"""
FILES = {
    "model/w.bin": b"hello\n",
    "adapters/a.bin": b"a" * 700,
    "src/run.py": b"print()\n",
    "data/rows.csv": b"1,2\n",
    "README.md": b"# shapes\n",
    "prompts/ask.md": b"What is it?\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for path, data in {**FILES, "Kitfile": KITFILE}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    with zipfile.ZipFile(root / "tool.mcpb", "w") as bundle:
        bundle.writestr(zipfile.ZipInfo("manifest.json"), "{}")
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return root


def go_tar(*files: str) -> bytes:
    """Return a tar of these files as Go writes it.

    Device numbers are in octal, and names of directories do not end with a slash.
    """
    data, at = bytearray(kits.kit_tar({file: FILES[file] for file in files})), 0
    while data[at]:
        data[at : at + 100] = bytes(data[at : at + 100]).rstrip(b"\0").rstrip(b"/").ljust(100, b"\0")
        data[at + 329 : at + 345] = b"0000000\x000000000\0"
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
        at += 512 + -(-int(data[at + 124 : at + 135], 8) // 512) * 512
    return bytes(data)


def oracle(tree: Path, vintage: kits.Vintage) -> kits.Kit:
    """Return the kit that tests/kits.py builds from ``tree``.

    Paths in the config are written as in the Kitfile. Paths in annotations are normalized.
    """

    def layer(kind: str, path: str, *files: str, name: str = "") -> kits.Part:
        return kits.part(kind, path, go_tar(*files), name=name)

    parts = [
        layer("model", "model/w.bin", "model/w.bin", name="m"),
        layer("modelpart", "adapters", "adapters/a.bin", name="p"),
        layer("code", "src/run.py", "src/run.py"),
        layer("dataset", "data", "data/rows.csv", name="d"),
        layer("docs", "README.md", "README.md"),
        layer("prompt", "prompts/ask.md", "prompts/ask.md", name="ask"),
        kits.part("mcpserver", "tool.mcpb", (tree / "tool.mcpb").read_bytes(), name="tool"),
    ]
    return kits.build(parts, vintage=vintage, name="shapes", parameters={"n": 1})


@pytest.mark.parametrize(
    ("vintage", "version"),
    [
        ("1.7", "1.7.0"),
        ("1.7", "v1.9.3"),
        ("1.10", "1.10.0"),
        ("1.10", "1.15.2"),
        ("1.17", "1.16.0"),
        ("1.17", "1.17.0"),
        ("1.17", None),
    ],
)
def test_a_manifest_has_the_shape_of_its_version(
    tree: Path, box: Host, vintage: kits.Vintage, version: str | None
) -> None:
    """Without chunk tables, a manifest has the same fields, in the same order, as the one that tests/kits.py builds.

    Every version marks a prompt as a prompt.
    """
    options = ("--chunk-table", "none") if version is None else ("--kit-version", version)
    digest, found, config, _ = packed(
        box, tree, "-t", "shapes:v1", *options, env={"SOURCE_DATE_EPOCH": str(kits.CREATED_EPOCH)}
    )
    kit = oracle(tree, vintage)
    expected = json.loads(kit.manifest)
    written = json.loads(kit.config)
    written["model"]["path"], written["model"]["parts"][0]["path"], written["code"][0]["path"] = (
        "./model/w.bin",
        "adapters/",
        "src//run.py",
    )
    expected["config"] = {
        **expected["config"],
        "digest": kits.sha256(kits.compact(written)),
        "size": len(kits.compact(written)),
    }
    expected["annotations"] = {**expected["annotations"], VERSION: version or f"kitfs-{__version__}"}
    if vintage == "1.7":
        expected["layers"][5]["annotations"] = {"ml.kitops.modelkit.layer-subtype": "prompt"}
    assert list(found) == list(expected)
    for field, value in expected.items():
        assert found[field] == value, field
    assert config == written
    assert blob(box, digest) == kits.compact(expected)


@pytest.mark.parametrize("version", ["1.7.0", "1.10.0", "1.17.0"])
def test_a_kit_of_no_layers_has_the_shape_of_its_version(golden_trees: Path, box: Host, version: str) -> None:
    """The manifest has ``"layers":null`` in 1.7. Since 1.10 it has ``[]``, and pack prints a warning."""
    done = box.kitfs("pack", golden_trees / "empty", "-t", "none:v1", "--kit-version", version)
    manifest = json.loads(blob(box, done.stdout.splitlines()[-1].removeprefix("Model saved: ")))
    assert manifest["layers"] == (None if version == "1.7.0" else [])
    assert done.stderr == ("" if version == "1.7.0" else "kitfs: warning: ModelKit contains no layers\n")


def test_the_created_time_is_now_without_source_date_epoch(tree: Path, box: Host) -> None:
    """Without SOURCE_DATE_EPOCH the created time is the current time, in UTC and whole seconds."""
    before = _now()
    _, manifest, *_ = packed(box, tree, "-t", "shapes:v1")
    assert before <= manifest["annotations"][CREATED] <= _now()


def _now() -> str:
    return subprocess.run(
        ["date", "-u", "+%Y-%m-%dT%H:%M:%SZ"], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.parametrize("value", ["yesterday", "-1", "1e9", "253402300800", "12 13"])
def test_a_bad_source_date_epoch_packs_nothing(tree: Path, box: Host, value: str) -> None:
    """An invalid SOURCE_DATE_EPOCH is refused in one line that names it, with exit code 2, and nothing is stored."""
    done = box.kitfs("pack", tree, "-t", "shapes:v1", env={"SOURCE_DATE_EPOCH": value}, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"kitfs: invalid SOURCE_DATE_EPOCH {value!r}")
    assert len(done.stderr.splitlines()) == 1
    assert not list(box.cache.rglob("rest"))
