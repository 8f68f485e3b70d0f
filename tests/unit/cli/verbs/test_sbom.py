"""sbom writes a bill of materials that is valid by the schema of CycloneDX 1.7, and is always the same for a kit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from referencing import Registry, Resource

from tests.conftest import GOLDEN, GOLDEN_KITS
from tests.fakes.registry import FakeRegistry
from tests.unit.cli.conftest import Kitfs

SCHEMAS = Path(__file__).parents[3] / "corpus/cyclonedx"
KITFILE = """manifestVersion: 1.0.0
package: {name: llama, version: 1.2.0, license: apache-2.0, authors: [Ann], description: "small \\u202e model"}
model:
  name: llama
  path: base/llama:v1
  license: My own licence
  parameters: {lr: 0.1, layers: [2, 3], note: "a \\u001b b"}
  parts: [{name: adapter, path: adapter.bin, license: mit}]
code: [{path: train.py, license: MIT}]
datasets:
  - {name: train, path: data, license: cc-by-4.0, description: pairs}
  - {name: web, path: web, remotePath: "s3://bucket/a b.parquet", remoteHash: 12ab}
  - {name: sets, path: sets, remotePath: "registry.example.com/team/sets:v3"}
docs: [{path: README.md}]
prompts: [{path: prompt.txt}]
"""


@pytest.fixture(scope="module")
def validator() -> Draft7Validator:
    """Return a validator with the schemas of CycloneDX 1.7, which needs no network."""
    schemas = [json.loads(path.read_text()) for path in sorted(SCHEMAS.glob("*.json"))]
    registry = Registry().with_resources([(one["$id"], Resource.from_contents(one)) for one in schemas])
    [bom] = [one for one in schemas if one["$id"].endswith("bom-1.7.schema.json")]
    return Draft7Validator(bom, registry=registry)


@pytest.fixture
def kit(kitfs: Kitfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Pack a kit with entries of every kind, and a parent kit, into the store."""
    monkeypatch.delenv("KITFS_PACK_KIT_VERSION")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for path in ("adapter.bin", "train.py", "data/train.csv", "README.md", "prompt.txt", "model/w.bin"):
        (tmp_path / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / path).write_text(path)
    (tmp_path / "base.yaml").write_text("manifestVersion: 1.0.0\nmodel: {name: base, path: model}\n")
    (tmp_path / "tree/Kitfile").write_text(KITFILE)
    for arguments in (["-f", "base.yaml", "-t", "base/llama:v1"], ["-t", "team/llama:v1"]):
        done = kitfs("pack", "tree", *arguments)
        assert done.code == 0, done.err
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    return "team/llama:v1"


def bill(kitfs: Kitfs, *arguments: str | Path) -> Any:
    done = kitfs("sbom", *arguments)
    assert done.code == 0, done.err
    return done.json


def test_a_bill_has_every_part_of_the_kit(kitfs: Kitfs, kit: str, validator: Draft7Validator) -> None:
    """The bill is valid, and has the parent kit, the layers with their digests, and the remote datasets."""
    found = bill(kitfs, kit)
    assert [error.message for error in validator.iter_errors(found)] == []
    root = found["metadata"]["component"]
    layers = kitfs("inspect", kit).json["manifest"]["layers"]
    hashes = [f"sha256:{one['hashes'][0]['content']}" for one in found["components"] if "hashes" in one]
    assert hashes == [layer["digest"] for layer in layers]
    assert [one["type"] for one in found["components"]] == [
        "machine-learning-model", "file", "data", "file", "file", "data", "data",
    ]  # fmt: skip
    assert root["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert root["pedigree"]["ancestors"][0]["name"] == "base/llama:v1"
    data = [one["bom-ref"] for one in found["components"] if one["type"] == "data"]
    assert [one["ref"] for one in root["modelCard"]["modelParameters"]["datasets"]] == data
    values = {one["name"]: one["value"] for one in root["modelCard"]["properties"]}
    assert (values["kitfs:model.parameters.lr"], values["kitfs:model.parameters.layers.1"]) == ("0.1", "3")
    urls = [one["data"][0].get("contents", {}).get("url") for one in found["components"] if one["type"] == "data"]
    assert urls == [None, "s3://bucket/a%20b.parquet", "oci://registry.example.com/team/sets:v3"]


def test_the_same_kit_has_the_same_bill(
    kitfs: Kitfs, kit: str, fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is that of the kit, or SOURCE_DATE_EPOCH. A kit of a registry also has a package URL."""
    first = kitfs("sbom", kit).out
    assert kitfs("sbom", kit).out == first
    assert json.loads(first)["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert bill(kitfs, kit)["metadata"]["timestamp"] == "1970-01-02T00:00:00Z"
    remote = f"{fake.host}/team/llama:v1"
    assert kitfs("push", kit, remote).code == 0
    found = bill(kitfs, remote)["metadata"]["component"]
    assert found["purl"].startswith("pkg:oci/llama@sha256%3A")
    assert found["hashes"] == json.loads(first)["metadata"]["component"]["hashes"]


def test_control_characters_are_escaped(kitfs: Kitfs, kit: str) -> None:
    text = kitfs("sbom", kit).out
    assert not {"\x1b", "\u202e"} & set(text)


@pytest.mark.parametrize("name", sorted(GOLDEN_KITS))
def test_the_bill_of_every_golden_kit_is_valid(kitfs: Kitfs, name: str, validator: Draft7Validator) -> None:
    """Bills of kits that kit itself has packed, of every version and kind, are valid."""
    found = bill(kitfs, f"oci-archive:{GOLDEN / 'layouts' / name}.tar")
    assert [error.message for error in validator.iter_errors(found)] == []
