"""Any bytes from a registry or a file are parsed to a value or raise the parser's own error."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kitfs.errors import InvalidReference, KitfileError, KitfsError, ManifestError, UsageError
from kitfs.modelkit.filters import Filter
from kitfs.modelkit.kitfile import Kitfile, clean_path
from kitfs.modelkit.layers import FileMetadata, kit_layers, kitfile_of
from kitfs.oci.manifest import KIT_CONFIG, Descriptor, IndexManifest, Manifest, is_index
from kitfs.oci.names import Digest, LayoutReference, parse_any

SHA = "sha256:" + "ab" * 32
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.sampled_from([SHA, "sha256:", "a:b", "-1", "\ud800", "s3://x", "../.."]),
)
VALUES = st.recursive(
    LEAVES,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=5), below, max_size=4),
    max_leaves=12,
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["n", "1.0", "1e3", "- a", "a: b", "2024-05-01", "x\ny\n", " x", "null", "~", "#", "\u2028"]),
)
LAYER_TYPES = st.sampled_from(
    [
        f"application/vnd.{t}"
        for t in ("kitops.modelkit.model.v1.tar", "kitops.modelkit.code.v1.raw+zstd", "cncf.model.weight.v1.raw", "x")
    ]
)


def objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Generate objects with some of the given fields, whose values have the right type or any type."""
    return st.fixed_dictionaries({}, optional={k.replace("_", "."): v | VALUES for k, v in fields.items()})


DESCRIPTORS = objects(
    mediaType=LAYER_TYPES,
    digest=st.just(SHA),
    size=st.integers(0, 1 << 70),
    annotations=st.dictionaries(
        st.sampled_from(["org.cncf.model.filepath", "org.cncf.model.file.metadata+json"]), TEXTS
    ),
)
GOOD = st.fixed_dictionaries(
    {"mediaType": LAYER_TYPES, "digest": st.just(SHA), "size": st.integers(0, 99)},
    optional={
        "annotations": st.dictionaries(
            st.sampled_from(["org.cncf.model.filepath", "org.cncf.model.file.metadata+json"]), TEXTS
        )
    },
)
CONFIG_TYPES = st.sampled_from([KIT_CONFIG, "application/vnd.cncf.model.config.v1+json"])
MANIFESTS = objects(
    schemaVersion=st.just(2),
    config=st.builds(lambda t: {"mediaType": t, "digest": SHA, "size": 2}, CONFIG_TYPES),
    layers=st.lists(GOOD | DESCRIPTORS, max_size=3),
    manifests=st.lists(DESCRIPTORS, max_size=2),
    annotations=st.dictionaries(st.just("ml.kitops.modelkit.kitfile") | TEXTS, TEXTS, max_size=2),
    subject=DESCRIPTORS,
)
ENTRIES = st.lists(objects(name=TEXTS, path=TEXTS, digest=st.just(SHA), parameters=VALUES), max_size=3)
CONFIGS = objects(
    manifestVersion=TEXTS,
    package=objects(name=TEXTS, authors=st.lists(TEXTS, max_size=3)),
    model=objects(name=TEXTS, path=TEXTS, parts=ENTRIES, parameters=VALUES),
    code=ENTRIES,
    datasets=ENTRIES,
    docs=ENTRIES,
    prompts=ENTRIES,
    mcpServers=ENTRIES,
    descriptor=objects(name=TEXTS, authors=st.lists(TEXTS)),
    modelfs=objects(diffIds=st.lists(st.just(SHA), max_size=3)),
)
JSON_TEXTS = st.binary(max_size=60) | st.one_of(MANIFESTS, CONFIGS, VALUES).map(lambda v: json.dumps(v).encode())
LINES = st.lists(
    st.tuples(
        st.sampled_from(["", "  ", "    ", "\t"]),
        st.sampled_from(
            [
                "model:",
                "package:",
                "  name:",
                "parameters:",
                "- ",
                "&a ",
                "*a",
                "<<: *a",
                "<<: {[a]: b}",
                "? ",
                "!!int ",
                "|",
                "> ",
                "[",
                "{",
                '"',
            ]
        ),
        TEXTS,
    ).map("".join),
    max_size=8,
).map("\n".join)


@given(JSON_TEXTS)
@settings(max_examples=300, deadline=None)
def test_manifests_of_any_bytes(data: bytes) -> None:
    """Bytes raise ManifestError, or are parsed to a Manifest that is the same after writing and reading it.

    Numbers in unknown fields have a precision of 53 bits, as in Go.
    """
    for parse in (Manifest.parse, IndexManifest.parse, is_index):
        try:
            parse(data)
        except ManifestError:
            pass
    try:
        manifest = Manifest.parse(data)
    except ManifestError:
        return
    assert Manifest.parse(manifest.to_json()).to_json() == manifest.to_json()
    assert isinstance(manifest.created, int)


@given(
    MANIFESTS.map(lambda v: json.dumps(v).encode()),
    CONFIGS.map(lambda v: json.dumps(v).encode()) | st.binary(max_size=20),
)
@settings(max_examples=300, deadline=None)
def test_kits_of_any_manifest_and_config(data: bytes, config: bytes) -> None:
    """For any manifest and config, a Kitfile can be written and layers have entries, or KitfsError is raised."""
    try:
        manifest = Manifest.parse(data)
        kitfile = kitfile_of(manifest, config)
        layers = kit_layers(manifest, kitfile)
    except KitfsError:
        return
    assert [x.descriptor for x in layers] == list(manifest.layers)
    kitfile.to_yaml().encode()
    kitfile.to_json()


@given(CONFIGS | VALUES)
@settings(max_examples=300, deadline=None)
def test_configs_of_any_value(value: Any) -> None:
    """A config that was parsed is written in the same way every time."""
    try:
        kitfile = Kitfile.from_json(json.dumps(value).encode())
    except KitfileError:
        return
    written = kitfile.to_json()
    assert Kitfile.from_json(written).to_json() == written
    assert kitfile.to_yaml().endswith("\n")
    assert all(e.kind for e in kitfile.entries())
    try:
        kitfile.validate()
    except KitfileError:
        pass


@given(LINES | st.text() | st.binary(max_size=40))
@settings(max_examples=300, deadline=None)
def test_kitfiles_of_any_text(text: str | bytes) -> None:
    """Any text is parsed to a Kitfile that can be written, or raises a KitfileError of one line."""
    try:
        kitfile = Kitfile.from_yaml(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    except KitfileError:
        return
    assert kitfile.to_yaml().endswith("\n")
    try:
        kitfile.to_json()
    except KitfileError:
        assert re.search(
            "parameters|<<|[&{]", text if isinstance(text, str) else text.decode("latin-1")
        )  # only parameters can contain values that JSON cannot express


WHOLE = TEXTS.filter(lambda t: not t.startswith("\n") and not set(t) & set("\r\x85\u2028\u2029"))


@given(st.dictionaries(WHOLE, WHOLE, max_size=4))
@settings(max_examples=200, deadline=None)
def test_texts_survive_yaml(parameters: dict[str, str]) -> None:
    """A string that is written as YAML is read as the same string.

    The exceptions are leading empty lines and Unicode's line separators, which yaml.v3 loses.
    """
    kitfile = Kitfile.from_json(json.dumps({"model": {"parameters": parameters}}).encode())
    again = Kitfile.from_yaml(kitfile.to_yaml().encode())
    assert again.model is not None
    assert again.model.parameters == parameters


@given(
    st.text(alphabet="aA1:@/.-_,[] é\0", max_size=24)
    | st.text()
    | st.text(alphabet="ar.io/:", max_size=6).map(lambda t: f"{t}@{SHA}")
)
@settings(max_examples=500, deadline=None)
def test_references_of_any_text(text: str) -> None:
    """Any string raises InvalidReference, or is parsed to a reference whose text can be parsed again."""
    try:
        found = parse_any(text)
    except InvalidReference:
        return
    assert parse_any(str(found) if isinstance(found, LayoutReference) else found.display) == found


@given(st.text(alphabet="model,:code kitfile/x", max_size=20) | st.text())
@settings(deadline=None)
def test_filters_of_any_text(text: str) -> None:
    """Any text is parsed to a Filter or raises UsageError."""
    try:
        found = Filter.parse(text)
    except UsageError:
        return
    assert Filter.parse(str(found)) == found


@given(st.text(alphabet="a./", max_size=12))
def test_cleaned_paths_stay_clean(path: str) -> None:
    """A cleaned path has no empty components or dots, and cleaning it again does not change it."""
    cleaned = clean_path(path)
    assert clean_path(cleaned) == cleaned
    assert cleaned in (".", "/") or not {"", "."} & set(cleaned.removeprefix("/").split("/"))


@given(VALUES)
@settings(deadline=None)
def test_file_metadata_of_any_value(value: Any) -> None:
    """Any value is parsed to a FileMetadata with usable numbers, or to None."""
    found = FileMetadata.of(Descriptor("x/y", Digest(SHA), 1, {"org.cncf.model.file.metadata+json": json.dumps(value)}))
    assert found is None or found.size is None or 0 <= found.size < 1 << 62
