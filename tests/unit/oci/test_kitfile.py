"""The Kitfile against what kit made of it: golden configs and Kitfiles are the oracle."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from kitfs.errors import KitfileError
from kitfs.oci.kitfile import Kitfile
from kitfs.oci.manifest import Manifest

GOLDEN = Path(__file__).parents[2] / "golden"
KITS: dict[str, Any] = json.loads((GOLDEN / "kits.json").read_text())
MODELKITS = sorted(n for n, k in KITS.items() if "packed_by" not in k)


def blob(name: str, digest: str) -> bytes:
    with tarfile.open(GOLDEN / "layouts" / f"{name}.tar") as archive:
        member = archive.extractfile("blobs/" + digest.replace(":", "/"))
        assert member is not None
        return member.read()


@pytest.mark.parametrize("name", MODELKITS)
def test_config_comes_back_byte_for_byte(name: str) -> None:
    """Reading a config and writing it again gives kit's bytes."""
    data = blob(name, KITS[name]["config"]["digest"])
    assert Kitfile.from_json(data).to_json() == data


@pytest.mark.parametrize("name", MODELKITS)
def test_yaml_is_what_kit_unpack_wrote(name: str) -> None:
    """The Kitfile made of the config has the recorded digest."""
    written = Kitfile.from_json(blob(name, KITS[name]["config"]["digest"])).to_yaml().encode()
    assert hashlib.sha256(written).hexdigest() == json.loads((GOLDEN / "trees" / f"{name}.json").read_text())["Kitfile"]["sha256"]


@pytest.mark.parametrize("name", sorted(KITS))
def test_manifest_comes_back_byte_for_byte(name: str) -> None:
    """Reading a manifest and writing it again gives the tool's bytes, kit 1.7's null layers too."""
    data = blob(name, KITS[name]["manifest"])
    assert Manifest.parse(data).to_json() == data


def test_source_kitfiles_are_the_configs_without_digests(tmp_path: Path) -> None:
    """Reading the Kitfiles that people wrote and writing JSON gives kit's configs, but for the digests of layers."""

    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: stripped(v) for k, v in value.items() if k not in ("digest", "diffId")}
        return [stripped(v) for v in value] if isinstance(value, list) else value

    subprocess.run([sys.executable, GOLDEN / "make_trees.py", tmp_path / "trees"], check=True)
    seen = 0
    for name in MODELKITS:
        source = tmp_path / "trees" / KITS[name]["tree"] / "Kitfile"
        written = json.loads(Kitfile.from_yaml(source.read_bytes()).to_json())
        assert written == stripped(json.loads(blob(name, KITS[name]["config"]["digest"])))
        seen += 1
    assert seen == 13


@pytest.mark.parametrize(
    ("parameters", "written"),
    [
        ('{"lr": 1e-7, "big": 4000000, "n": 1, "yes": "yes", "t": "1:30", "x": "0x1F", "e": ""}',
         'big: 4e+06\ne: ""\nlr: 1e-07\n"n": 1\nt: "1:30"\nx: "0x1F"\n"yes": "yes"\n'),
        ('{"a10": 1, "a9": 2, "B": 3, "_": 4}', "_: 4\nB: 3\na9: 2\na10: 1\n"),
        ('{"text": "two\\nlines\\n", "tail": "a\\nb", "tabs": "a\\tb", "lead": " x", "colon": "a: b", "hash": "a #b", "q": "it\'s"}',
         "colon: 'a: b'\nhash: 'a #b'\nlead: ' x'\nq: it's\ntabs: \"a\\tb\"\ntail: |-\n  a\n  b\ntext: |\n  two\n  lines\n"),
        ('{"null": null, "t": true, "l": [], "m": {}, "n1": [1, [2.5]], "date": "2024-05-01"}',
         'date: "2024-05-01"\nl: []\nm: {}\nn1:\n  - 1\n  - - 2.5\n"null": null\nt: true\n'),
        ('{"u": "日本語 é", "v": "日本語 🧪 é"}', 'u: 日本語 é\nv: "日本語 \\U0001F9EA é"\n'),
        ('{"f": 123456, "g": 1234567, "h": 0.0001, "i": 0.00001, "j": 1e21, "k": -0.5}',
         "f: 123456\ng: 1.234567e+06\nh: 0.0001\ni: 1e-05\nj: 1e+21\nk: -0.5\n"),
    ],
)  # fmt: skip
def test_parameters_are_written_as_yaml_v3_writes_them(parameters: str, written: str) -> None:
    """Vectors recorded from yaml.v3: ambiguous scalars in double quotes, floats in Go's 'g', keys in natural order, literal blocks."""
    text = Kitfile.from_json(b'{"manifestVersion":"1","model":{"parameters":' + parameters.encode() + b"}}").to_yaml()
    head = 'manifestVersion: "1"\nmodel:\n  parameters:\n'
    assert text == head + "".join(f"    {line}\n" for line in written.splitlines())


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1e21", 1e21), ("0o17", 15), ("017", 15), ("0x1F", 31), ("0b11", 3), ("yes", "yes"), ("1:30", "1:30"), ("~", None), ("true", True),
        ("1_000", 1000), ("1.", 1.0), (".5", 0.5), ("+1", 1), ("-0x10", -16), ("'1'", "1"), ("!!str 1", "1"), ("1e", "1e"), ("08", 8.0),
        ("2024-05-01T10:00:00Z", "2024-05-01T10:00:00Z"), ("2024-05-01", "2024-05-01T00:00:00Z"), ("99999999999999999999999", 1e23),
    ],
)  # fmt: skip
def test_yaml_is_yaml_v3s(scalar: str, value: object) -> None:
    """Plain scalars mean what yaml.v3 takes them for, not what YAML 1.1 says."""
    kitfile = Kitfile.from_yaml(f"manifestVersion: 1.0.0\nmodel: {{parameters: {{v: {scalar}}}}}\n".encode())
    assert json.loads(kitfile.to_json())["model"]["parameters"] == {"v": value}


LAUGHS = "x: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(f"x{i}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(8))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("manifestVersion: 1.0.0\nfoo: x\n", "line 2: field foo not found in type artifact.KitFile"),
        ("model: {nmae: x}\n", "field nmae not found in type artifact.Model"),
        ("model: [1]\n", "cannot unmarshal !!seq into artifact.Model"),
        ("package: {name: {a: b}}\n", "cannot unmarshal !!map into string"),
        ("code: x\n", "cannot unmarshal !!str `x` into []artifact.Code"),
        ("a: &a [*a]\n", "anchor value contains itself"),
        ("a: [\n", "yaml: line 2"),
        ("package: {name: a, name: b}\n", 'line 1: mapping key "name" already defined at line 1'),
        ("- " * 50_000, "nested too deeply"),
        (LAUGHS, "excessive aliasing"),
        ("x" * (1 << 20) + "x", "is no Kitfile"),
        ("", "empty"),
    ],
)
def test_wrong_kitfiles(text: str, told: str) -> None:
    """Every wrong Kitfile is one KitfileError of one line, and quick."""
    with pytest.raises(KitfileError) as e:
        Kitfile.from_yaml(text.encode())
    assert told in str(e.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"7", b'{"model":7}', b'{"model":{"parts":{}}}', b'{"package":{"authors":[1]}}', b'{"docs":[[]]}',
                                  b'{"model":{"parameters":1e999}}', b'{"model":{"parameters":NaN}}', b"[" * 100_000])  # fmt: skip
def test_wrong_configs(data: bytes) -> None:
    """Every wrong config is a KitfileError."""
    with pytest.raises(KitfileError):
        Kitfile.from_json(data)


def test_config_is_read_leniently() -> None:
    """Unknown fields are dropped, keys match in any case, null is nothing: as Go's encoding/json."""
    assert Kitfile.from_json(b'{"manifestversion":"1.0.0","new":1,"Model":{"NAME":"m","path":null},"code":null}').to_json() == (
        b'{"manifestVersion":"1.0.0","package":{},"model":{"name":"m"}}'
    )


def test_problems_are_told_in_kits_words() -> None:
    """Duplicate and absolute paths and wrong part types, all of them, sorted."""
    kitfile = Kitfile.from_yaml(b"""
manifestVersion: 1.0.0
model: {name: m, path: a, parts: [{name: p, path: /abs, type: "a b"}]}
datasets: [{name: d, path: ./a}]
code: [{path: ../x}]
""")
    with pytest.raises(KitfileError) as e:
        kitfile.validate()
    for told in (
        "absolute paths are not supported in a Kitfile (path /abs in modelpart p)",
        "model m and dataset d use the same path ./a",
        "modelpart p has invalid type (must be alphanumeric with dots, dashes, and underscores)",
        "paths outside the context directory are not supported in a Kitfile (path ../x in code layer 0)",
    ):
        assert told in str(e.value)
