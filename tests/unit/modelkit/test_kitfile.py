"""Kitfiles and configs are compared with those that kit wrote."""

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
from kitfs.modelkit.kitfile import Kitfile, clean_path
from kitfs.oci.manifest import Manifest
from tests.conftest import GOLDEN, GOLDEN_KITS

MODELKITS = sorted(n for n, k in GOLDEN_KITS.items() if "packed_by" not in k)


def blob(name: str, digest: str) -> bytes:
    with tarfile.open(GOLDEN / "layouts" / f"{name}.tar") as archive:
        member = archive.extractfile("blobs/" + digest.replace(":", "/"))
        assert member is not None
        return member.read()


@pytest.mark.parametrize("name", MODELKITS)
def test_config_comes_back_byte_for_byte(name: str) -> None:
    """A config of kit is unchanged by reading and writing it."""
    data = blob(name, GOLDEN_KITS[name]["config"]["digest"])
    assert Kitfile.from_json(data).to_json() == data


@pytest.mark.parametrize("name", MODELKITS)
def test_yaml_is_what_kit_unpack_wrote(name: str) -> None:
    """The Kitfile that is generated from a config has the recorded digest of kit's Kitfile."""
    written = Kitfile.from_json(blob(name, GOLDEN_KITS[name]["config"]["digest"])).to_yaml().encode()
    assert (
        hashlib.sha256(written).hexdigest()
        == json.loads((GOLDEN / "trees" / f"{name}.json").read_text())["Kitfile"]["sha256"]
    )


@pytest.mark.parametrize("name", sorted(GOLDEN_KITS))
def test_manifest_comes_back_byte_for_byte(name: str) -> None:
    """A manifest is unchanged by reading and writing it, even with the null layers of kit 1.7."""
    data = blob(name, GOLDEN_KITS[name]["manifest"])
    assert Manifest.parse(data).to_json() == data


def test_source_kitfiles_are_the_configs_without_digests(tmp_path: Path) -> None:
    """A source Kitfile that is written as JSON is equal to kit's config, except for the digests of the layers."""

    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: stripped(v) for k, v in value.items() if k not in ("digest", "diffId")}
        return [stripped(v) for v in value] if isinstance(value, list) else value

    subprocess.run([sys.executable, GOLDEN / "make_trees.py", tmp_path / "trees"], check=True)
    seen = 0
    for name in MODELKITS:
        source = tmp_path / "trees" / GOLDEN_KITS[name]["tree"] / "Kitfile"
        written = json.loads(Kitfile.from_yaml(source.read_bytes()).to_json())
        assert written == stripped(json.loads(blob(name, GOLDEN_KITS[name]["config"]["digest"])))
        seen += 1
    assert seen == 13


@pytest.mark.parametrize(
    ("parameters", "written"),
    [
        (
            '{"lr": 1e-7, "big": 4000000, "n": 1, "yes": "yes", "t": "1:30", "x": "0x1F", "e": ""}',
            'big: 4e+06\ne: ""\nlr: 1e-07\n"n": 1\nt: "1:30"\nx: "0x1F"\n"yes": "yes"\n',
        ),
        ('{"a10": 1, "a9": 2, "B": 3, "_": 4}', "_: 4\nB: 3\na9: 2\na10: 1\n"),
        (
            '{"text": "two\\nlines\\n", "tail": "a\\nb", "tabs": "a\\tb", '
            '"lead": " x", "colon": "a: b", "hash": "a #b", "q": "it\'s"}',
            "colon: 'a: b'\nhash: 'a #b'\nlead: ' x'\nq: it's\n"
            'tabs: "a\\tb"\ntail: |-\n  a\n  b\ntext: |\n  two\n  lines\n',
        ),
        (
            '{"null": null, "t": true, "l": [], "m": {}, "n1": [1, [2.5]], "date": "2024-05-01"}',
            'date: "2024-05-01"\nl: []\nm: {}\nn1:\n  - 1\n  - - 2.5\n"null": null\nt: true\n',
        ),
        ('{"u": "日本語 é", "v": "日本語 🧪 é"}', 'u: 日本語 é\nv: "日本語 \\U0001F9EA é"\n'),
        (
            '{"f": 123456, "g": 1234567, "h": 0.0001, "i": 0.00001, "j": 1e21, "k": -0.5}',
            "f: 123456\ng: 1.234567e+06\nh: 0.0001\ni: 1e-05\nj: 1e+21\nk: -0.5\n",
        ),
    ],
)
def test_parameters_are_written_as_yaml_v3_writes_them(parameters: str, written: str) -> None:
    """The expected text was recorded from yaml.v3.

    The text has ambiguous scalars in double quotes, floats in Go's 'g' format, keys in natural order, and literal
    blocks.
    """
    text = Kitfile.from_json(b'{"manifestVersion":"1","model":{"parameters":' + parameters.encode() + b"}}").to_yaml()
    head = 'manifestVersion: "1"\nmodel:\n  parameters:\n'
    assert text == head + "".join(f"    {line}\n" for line in written.splitlines())


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1e21", 1e21),
        ("0o17", 15),
        ("017", 15),
        ("0x1F", 31),
        ("0b11", 3),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("~", None),
        ("true", True),
        ("1_000", 1000),
        ("1.", 1.0),
        (".5", 0.5),
        ("+1", 1),
        ("-0x10", -16),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("1e", "1e"),
        ("08", 8.0),
        ("2024-05-01T10:00:00Z", "2024-05-01T10:00:00Z"),
        ("2024-05-01", "2024-05-01T00:00:00Z"),
        ("99999999999999999999999", 1e23),
    ],
)
def test_yaml_is_yaml_v3s(scalar: str, value: object) -> None:
    """A plain scalar has its type in yaml.v3, even if YAML 1.1 has another type for it."""
    kitfile = Kitfile.from_yaml(f"manifestVersion: 1.0.0\nmodel: {{parameters: {{v: {scalar}}}}}\n".encode())
    assert json.loads(kitfile.to_json())["model"]["parameters"] == {"v": value}


LAUGHS = "x: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"x{i}: &{chr(98 + i)} [{','.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(8)
)


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
        ("x: &a " + "t" * 500_000 + "\ny: [" + "*a," * 5000 + "]\n", "excessive aliasing"),
        (
            "x0: &x0 {k: 1}\n" + "".join(f"x{i}: &x{i} {{<<: *x{i - 1}, k{i}: 1}}\n" for i in range(1, 3000)),
            "nested too deeply",
        ),
        ("[" * 100_000, "nested too deeply"),
        ("{" * 100_000, "nested too deeply"),
        ("? " * 50_000, "nested too deeply"),
        pytest.param("model: {parameters: [" + "1," * 250_000 + "]}", "too many values", marks=pytest.mark.slow),
        ("x" * (1 << 20) + "x", "bytes; the limit is"),
        ("x" * (100 << 20), "bytes; the limit is"),
        ("".join(f"k{i}: v\n" for i in range(5000)), "and 4990 more"),
        ("a: \x00", "not allowed"),
        ("model: {parameters: !!int x}\n", "cannot decode !!str `x` as a !!int"),
        ("model: {parameters: {<<: 1}}\n", "map merge requires map"),
        ("model: {parameters: {[a]: 1}}\n", "invalid map key"),
        ("model: {parameters: {<<: {[a]: 1}}}\n", "invalid map key"),
        ("model: {<<: {[a]: 1}}\n", "cannot unmarshal !!seq into string"),
        ("model: *a\n", "undefined alias"),
        ("datasets:\n  - bogus: 1\n", "line 2: field bogus not found in type artifact.DataSet"),
        ("model:\n  digest: sha256:x\n", "line 2: field digest not found in type artifact.Model"),
        (
            "code: [1, a]\n",
            "line 1: cannot unmarshal !!int `1` into artifact.Code; "
            "line 1: cannot unmarshal !!str `a` into artifact.Code",
        ),
        ("", "empty"),
    ],
)
def test_wrong_kitfiles(text: str, told: str) -> None:
    """The KitfileError is one line."""
    with pytest.raises(KitfileError) as e:
        Kitfile.from_yaml(text.encode())
    assert told in str(e.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"7",
        b'{"model":7}',
        b'{"model":{"parts":{}}}',
        b'{"package":{"authors":[1]}}',
        b'{"docs":[[]]}',
        b'{"model":{"parameters":1e999}}',
        b'{"model":{"parameters":NaN}}',
        b"[" * 100_000,
    ],
)
def test_wrong_configs(data: bytes) -> None:
    """The error is a KitfileError."""
    with pytest.raises(KitfileError):
        Kitfile.from_json(data)


def test_config_is_read_leniently() -> None:
    """Unknown fields are dropped, keys match in any case, and null counts as missing, as in Go's encoding/json."""
    assert Kitfile.from_json(
        b'{"manifestversion":"1.0.0","new":1,"Model":{"NAME":"m","path":null},"code":null}'
    ).to_json() == (b'{"manifestVersion":"1.0.0","package":{},"model":{"name":"m"}}')


def test_latin1_is_no_kitfile() -> None:
    """The error names the byte that is not UTF-8. UTF-16 with a byte order mark is accepted."""
    with pytest.raises(KitfileError, match="invalid utf-8 at byte 19"):
        Kitfile.from_yaml("package: {name: cafés}".encode("latin-1") + b"\n")
    assert Kitfile.from_yaml("package: {name: cafés}".encode("utf-16")).package.name == "cafés"


def test_maps_with_keys_that_are_no_texts_are_no_json() -> None:
    """Parameters whose keys are numbers, times or null are refused, as by kit."""
    for key in ("1", "1.5", "true", "~", "2024-05-01", "!!binary aGk="):
        with pytest.raises(KitfileError, match=r"unsupported type: map\[interface \{\}\]interface \{\}"):
            Kitfile.from_yaml(f"model: {{parameters: {{{key}: x}}}}\n".encode()).to_json()


def test_lone_surrogates_do_not_break_the_kitfile() -> None:
    """A lone surrogate in a config becomes U+FFFD, as in Go. Otherwise the Kitfile could not be written."""
    kitfile = Kitfile.from_json(rb'{"package":{"name":"a\ud800b"},"model":{"parameters":{"\udfff":"\ud83e\uddea"}}}')
    written = 'manifestVersion: ""\npackage:\n  name: a\ufffdb\nmodel:\n  parameters:\n    \ufffd: "\\U0001F9EA"\n'
    assert kitfile.to_yaml().encode() == written.encode()


def test_invalid_utf8_becomes_the_replacement_character() -> None:
    """Go's encoding/json also replaces invalid UTF-8."""
    assert Kitfile.from_json(b'{"package":{"name":"a\xffb"}}').package.name == "a\ufffdb"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model: {name: m, path: m}\ncode: [{path: m}]\n", ["model m and code layer 0 use the same path m"]),
        (
            "model: {name: m, path: /etc/passwd}\n",
            ["absolute paths are not supported in a Kitfile (path /etc/passwd in model m)"],
        ),
        (
            "code: [{path: a}, {path: a}]\ndocs: [{path: a}]\n",
            ["code layer 0, code layer 1 and docs layer 0 use the same path a"],
        ),
        ("code: [{}]\ndocs: [{path: .}]\n", ["code layer 0 and docs layer 0 use the same path ."]),
        (
            "model: {parts: [{name: p, type: " + "t" * 65 + "}]}\n",
            ["modelpart p type is too long (must be fewer than 64 characters)"],
        ),
        ("code: [{path: http://x/y}]\n", ["HTTP urls are not supported in paths (http://x/y)"]),
        (
            "datasets: [{name: d, path: d, remotePath: s3://b/k}]\n",
            ["remoteHash is required when remote dataset paths are used (s3://b/k)"],
        ),
        (
            "datasets: [{name: d, path: d, remotePath: ftp}]\n",
            ["only S3 URLs and ModelKit references are supported for remote dataset paths (ftp)"],
        ),
        ("datasets: [{name: d, path: d, remoteHash: x}]\n", ["remote hash is only applicable when remotePath is set"]),
        (
            "datasets: [{path: d, remotePath: r.io/d:v1}]\ncode: [{path: d/x}]\n",
            ["may be nested below the path of a remote dataset (path d/x in d)"],
        ),
        (
            "mcpServers: [{name: a, path: a.mcpb}, {name: a, path: b.zip}]\n",
            ["mcpServer layer 1 needs a name of its own", "must be an .mcpb file"],
        ),
    ],
)
def test_problems_of_a_kitfile(text: str, told: list[str]) -> None:
    """Kitfiles that kit refuses to pack are refused. If kit has a message for the problem, the error contains it."""
    with pytest.raises(KitfileError) as e:
        Kitfile.from_yaml(text.encode()).validate()
    assert str(e.value).startswith("errors while validating Kitfile: * ")
    for line in told:
        assert line in str(e.value)


def test_a_good_kitfile_has_no_problems() -> None:
    """The model may be a reference and may have parts below its path. Datasets may be remote."""
    Kitfile.from_yaml(b"""
model: {name: m, path: r.io/base:v1, parts: [{name: p, path: a/b, type: lora-adapter}]}
code: [{path: a}]
datasets: [{name: d, path: data, remotePath: "s3://b/k", remoteHash: "sha256:x"},
  {name: e, path: e, remotePath: r.io/data:v1}]
mcpServers: [{name: s, path: s.mcpb}]
""").validate()


def test_entries_are_in_layer_order() -> None:
    """The order is model, parts, code, datasets, docs, prompts, mcpServers.

    A remote dataset and a model that is a reference are not included.
    """
    text = """
mcpServers: [{name: s, path: s.mcpb}]
prompts: [{path: p.md}]
docs: [{path: README.md}]
datasets: [{name: r, path: r, remotePath: "s3://b/k"}, {name: d, path: data}]
code: [{path: .}]
model: {name: m, path: MODEL, parts: [{name: x, path: x.bin}, {path: y.bin}]}
"""
    rest = [
        ("modelpart", "x", "x.bin"),
        ("modelpart", "", "y.bin"),
        ("code", "", "."),
        ("dataset", "d", "data"),
        ("docs", "", "README.md"),
        ("prompt", "", "p.md"),
        ("mcpserver", "s", "s.mcpb"),
    ]
    assert [e[:3] for e in Kitfile.from_yaml(text.replace("MODEL", "m.gguf").encode()).entries()] == [
        ("model", "m", "m.gguf"),
        *rest,
    ]
    referring = Kitfile.from_yaml(text.replace("MODEL", "r.io/base:v1").encode())
    assert [e[:3] for e in referring.entries()] == rest
    assert str(referring.parent) == "r.io/base:v1"


@pytest.mark.parametrize(
    ("path", "parent"),
    [
        ("a/b.bin", None),
        ("", None),
        ("UPPER:v1", None),
        ("a:b", "localhost/a:b"),
        ("r.io/a", None),
        ("r.io/a:v1", "r.io/a:v1"),
    ],
)
def test_parents(path: str, parent: str | None) -> None:
    """The path of a model is a reference if it contains ":" or "@" and can be parsed as a reference.

    Source: kit's IsModelKitReference.
    """
    found = Kitfile.from_json(json.dumps({"model": {"path": path}}).encode()).parent
    assert (None if found is None else str(found)) == parent
    packed = {"model": {"path": path, "digest": "sha256:" + "0" * 64}}
    assert Kitfile.from_json(json.dumps(packed).encode()).parent is None


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [
        ("", "."),
        (".", "."),
        ("./a", "a"),
        ("a//b/", "a/b"),
        ("a/../b", "b"),
        ("../a", "../a"),
        ("a/../../b", "../b"),
        ("/", "/"),
        ("/../a", "/a"),
        ("a/.", "a"),
    ],
)
def test_paths_are_cleaned_as_by_go(path: str, cleaned: str) -> None:
    """The results are those of Go's path.Clean."""
    assert clean_path(path) == cleaned


def test_problems_are_told_in_kits_words() -> None:
    """One error lists all duplicate paths, absolute paths, paths outside the context and wrong part types."""
    kitfile = Kitfile.from_yaml(b"""
manifestVersion: 1.0.0
model: {name: m, path: a, parts: [{name: p, path: /abs, type: "a b"}]}
datasets: [{name: d, path: a}]
code: [{path: ../x}]
""")
    with pytest.raises(KitfileError) as e:
        kitfile.validate()
    for told in (
        "absolute paths are not supported in a Kitfile (path /abs in modelpart p)",
        "model m and dataset d use the same path a",
        "modelpart p has invalid type (must be alphanumeric with dots, dashes, and underscores)",
        "paths outside the context directory are not supported in a Kitfile (path ../x in code layer 0)",
    ):
        assert told in str(e.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"model":{"path":"a","path":"b"}}', "an object has the key 'path' twice"),
        ('{"model":{"path":"a","Path":"b"}}', "Kitfile.model: the keys 'path' and 'Path' differ in case only"),
        ('{"DATASETS":[],"datasets":[]}', "Kitfile: the keys 'DATASETS' and 'datasets' differ in case only"),
        ('{"model":{"parameters":{"lr":1,"lr":2}}}', "an object has the key 'lr' twice"),
    ],
)
def test_configs_that_can_be_read_in_two_ways(text: str, told: str) -> None:
    """A config is refused if a key occurs twice, or both in upper and lower case, because parsers differ.

    The error names the key.
    """
    with pytest.raises(KitfileError, match=told):
        Kitfile.from_json(text.encode())


def test_a_key_may_have_any_case_where_it_is_the_only_one() -> None:
    """As in kit, a key may have any case. In parameters, keys that differ in case are different keys."""
    kitfile = Kitfile.from_json(b'{"Model":{"PATH":"a","parameters":{"lr":1,"LR":2}}}')
    assert kitfile.model is not None
    assert (kitfile.model.path, kitfile.model.parameters) == ("a", {"lr": 1.0, "LR": 2.0})
