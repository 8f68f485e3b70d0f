"""ModelKit indexes are parsed, written and edited, and labels select a kit.

Source: KitOps 1.17, pkg/lib/index.
"""

from __future__ import annotations

import json

import pytest

from kitfs.errors import ManifestError, NotFound, UsageError
from kitfs.modelkit.index import (
    KIT_INDEX,
    KitIndex,
    Variant,
    annotation_edits,
    indented,
    is_kit_index,
    label_edits,
    plain,
    select,
    selector,
)
from kitfs.oci.manifest import IMAGE_INDEX, IMAGE_MANIFEST, Descriptor
from kitfs.oci.names import Digest, Reference

A, B = Digest.of(b"a"), Digest.of(b"b")
NAMED = Reference.parse("registry.example.com/my-org/my-model:all")
HEAD = f'{{"schemaVersion":2,"mediaType":"{IMAGE_INDEX}","artifactType":"{KIT_INDEX}","manifests":['


def variant(digest: Digest, tag: str = "", **labels: str) -> Variant:
    notes = {"ml.kitops.modelkit.original-tag": tag} if tag else {}
    return Variant(Descriptor(IMAGE_MANIFEST, digest, 649, notes, artifact_type="t"), labels)


def test_an_empty_index() -> None:
    """The list of manifests is empty, not null."""
    assert KitIndex().to_json().decode() == HEAD + "]}"
    assert KitIndex.parse(KitIndex().to_json()) == KitIndex()


def test_fields_are_in_gos_order_and_maps_sorted() -> None:
    index = KitIndex((variant(A, "q4_0", vram='"6GB"', gpu="[1]"),), {"b": "2", "a": "<"})
    assert index.to_json().decode() == (
        HEAD
        + f'{{"mediaType":"{IMAGE_MANIFEST}","digest":"{A}","size":649,'
        + '"annotations":{"ml.kitops.modelkit.original-tag":"q4_0"},'
        '"artifactType":"t","modelMetadata":{"gpu":[1],"vram":"6GB"}}],"annotations":{"a":"\\u003c","b":"2"}}'
    )
    assert KitIndex.parse(index.to_json()) == index


@pytest.mark.parametrize(
    "labels",
    [
        '{"n":7000000000,"f":1.50,"e":1e3}',
        '{"o":{"bytes":6442450944},"l":["cuda",{"a":[]}]}',
        '{"s":"a\\u00e9\\"b\\\\","z":null,"t":true}',
        "{}",
    ],
)
def test_values_keep_their_bytes(labels: str) -> None:
    """Numbers and escapes in labels are written as they were read. Otherwise the digest would change."""
    pairs = json.loads(labels, parse_float=str, parse_int=str)
    text = HEAD + f'{{"mediaType":"m","digest":"{A}","size":1,"modelMetadata":{labels}}}]}}'
    again = KitIndex.parse(text.encode()).to_json().decode()
    assert set(KitIndex.parse(again.encode()).variants[0].labels) == set(pairs)
    for key in pairs:
        assert labels[labels.index(f'"{key}":') :].split(",")[0].rstrip("}") in again


def test_what_is_not_known_is_kept() -> None:
    entry = f'{{"mediaType":"m","digest":"{A}","size":1,"modelMetadata":{{"a":"b"}},"x":{{"y":1}}}}'
    text = HEAD + entry + '],"subject":{"z":1},"annotations":{"k":"v"}}'
    assert KitIndex.parse(text.encode()).to_json().decode() == text


def test_blanks_in_a_foreign_index_do_not_matter() -> None:
    index = KitIndex((variant(A, "q4", gpu='["sm_80","sm_90"]'), variant(B)))
    spread = json.dumps(json.loads(index.to_json()), indent=3).replace(":", " : ").encode()
    assert KitIndex.parse(spread.replace(b"sha256 : ", b"sha256:")).variants[0].labels == {"gpu": '["sm_80","sm_90"]'}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        f'{{"mediaType":"{IMAGE_INDEX}","manifests":[]}}',
        f'{{"artifactType":"{KIT_INDEX}","manifests":[]}}',
        HEAD + "7]}",
        HEAD + f'{{"digest":"{A}","size":1,"modelMetadata":[]}}]}}',
        HEAD[:-14] + "}",
        HEAD + "NaN]}",
    ],
)
def test_what_is_no_index_of_kits(text: str) -> None:
    with pytest.raises(ManifestError):
        KitIndex.parse(text.encode())


def test_telling_them_apart() -> None:
    assert is_kit_index(KitIndex().to_json())
    assert not is_kit_index(b'{"mediaType":"x"}')
    assert not is_kit_index(b"<html>")


def test_labels_choose_one() -> None:
    """A kit is selected if it has every given label. A label that is not a string is given as JSON."""
    index = KitIndex((variant(A, "q4", quant='"q4"', vram='"6GB"'), variant(B, quant='"q8"', gpus="[1,2]")))
    assert select(index, {"quant": "q8"}, NAMED).digest == B
    assert select(index, {"quant": "q4", "vram": "6GB"}, NAMED).digest == A
    assert select(index, {"gpus": "[1,2]"}, NAMED).digest == B


LISTED = "registry.example.com/my-org/my-model:q4 (gpu=cuda, quant=q4); {} (gpu=cuda); {} (no labels)"


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (
            {},
            "reference registry.example.com/my-org/my-model:all is a ModelKit index; "
            "select one of its ModelKits with --label (-l): ",
        ),
        ({"quant": "q2", "a": "b"}, "no ModelKit in the index has a=b, quant=q2. The index contains: "),
        ({"gpu": "metal"}, "no ModelKit in the index has gpu=metal. The index contains: "),
    ],
)
def test_what_there_is_is_told(labels: dict[str, str], told: str) -> None:
    """The error lists the kits on one line. A kit is named by the tag under which it was added, or by its digest."""
    index = KitIndex((variant(A, "q4", quant='"q4"', gpu='"cuda"'), variant(B, gpu='"cuda"'), variant(Digest.of(b"c"))))
    with pytest.raises(UsageError) as e:
        select(index, labels, NAMED)
    assert str(e.value).endswith(told + LISTED.format(B, Digest.of(b"c")))


def test_several_that_match() -> None:
    index = KitIndex((variant(A, "q4", gpu='"cuda"'), variant(B, gpu='"cuda"'), variant(Digest.of(b"c"))))
    told = r"2 ModelKits in the index match; add labels to select one of: \S+:q4 \(gpu=cuda\); sha256:\S+ \(gpu=cuda\)$"
    with pytest.raises(UsageError, match=told):
        select(index, {"gpu": "cuda"}, NAMED)
    with pytest.raises(NotFound, match="index contains no ModelKits"):
        select(KitIndex(), {"gpu": "cuda"}, NAMED)


def test_a_message_is_bounded_and_printable() -> None:
    many = tuple(variant(Digest.of(bytes([i])), f"t\x1b[31m{i}") for i in range(100))
    with pytest.raises(UsageError) as e:
        select(KitIndex(many), {}, NAMED)
    assert str(e.value).endswith("; 80 more")
    assert "\x1b" not in str(e.value)


def test_labels_to_choose_by() -> None:
    assert selector(["quantization=q4_0", "vram=6GB", "url=a=b"]) == {
        "quantization": "q4_0",
        "vram": "6GB",
        "url": "a=b",
    }
    for text in ("quantization-", "=q4_0", "x"):
        with pytest.raises(UsageError, match="expected key=value"):
            selector([text])
    with pytest.raises(UsageError, match='a is already set to "1"; each label can be specified only once'):
        selector(["a=1", "a=2"])


def test_changes_of_labels() -> None:
    edits = label_edits(
        ["q=q4_0", "u=https://e.com/?a=b&c", "empty=", "n:=7000000000", 'gpus:=[ "sm_80", "sm 90" ]', "stale-"]
    )
    assert edits.set == {
        "q": '"q4_0"',
        "u": '"https://e.com/?a=b\\u0026c"',
        "empty": '""',
        "n": "7000000000",
        "gpus": '["sm_80","sm 90"]',
    }
    assert edits.remove == ("stale",)
    assert edits.applied({"stale": "1", "q": "2", "kept": "3"}) == {**edits.set, "kept": "3"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("quantization", "expected key=value to set, or key- to remove"),
        ("=value", "key cannot be empty"),
        ("-", "key cannot be empty"),
        ("has space=x", "invalid label key"),
        ("gpuArchs:=[", "value is not valid JSON"),
        ("n:=NaN", "value is not valid JSON"),
    ],
)
def test_wrong_changes(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        label_edits([text])
    with pytest.raises(UsageError, match="each key can be specified only once"):
        label_edits(["z=1", "z-"])


def test_changes_of_annotations() -> None:
    assert annotation_edits(["org.example.tested=true", "org.example.old-"]) == (
        {"org.example.tested": "true"},
        ("org.example.old",),
    )
    with pytest.raises(UsageError, match="annotation values are strings"):
        annotation_edits(["org.example.count:=1"])


def test_values_for_people() -> None:
    assert [plain(v) for v in ('"q4"', "7000000000", '["a"]', "null", '"\\ud800"')] == [
        "q4",
        "7000000000",
        '["a"]',
        "",
        "\ufffd",
    ]


@pytest.mark.parametrize("text", ['{"a":{},"b":[],"c":[1,{"d":"x, {y}: z"}],"e":1.50}', "{}", "[[]]"])
def test_indented_is_gos(text: str) -> None:
    """Empty objects stay on one line, and numbers keep their digits, as in Go's json.Indent."""
    assert indented(text.encode()) == json.dumps(json.loads(text, parse_float=_Raw), indent=2).replace('"1.50"', "1.50")


class _Raw(str):
    """A JSON number as it was written."""
