"""Manifests, descriptors and media types of every version of kit are parsed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from typing import Any

import pytest

from kitfs.errors import KitfsError, ManifestError, UnsupportedLayer
from kitfs.oci.manifest import (
    IMAGE_INDEX,
    IMAGE_MANIFEST,
    KIT_CONFIG,
    Descriptor,
    IndexManifest,
    LayerType,
    Manifest,
    check_media_type,
    is_index,
)
from kitfs.oci.names import Digest

SHA = "sha256:" + "0a" * 32
CONFIG = {"mediaType": KIT_CONFIG, "digest": SHA, "size": 3}
MODEL = "application/vnd.kitops.modelkit.model.v1.tar"


def manifest(**more: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, "config": CONFIG, "layers": [], **more}).encode()


def test_the_vector_of_a_kit_1_7_manifest() -> None:
    """A manifest that is built for a config and a layer of kit 1.7 has the recorded size and digest."""
    made = Manifest(
        Descriptor(KIT_CONFIG, Digest("sha256:edbe426e41cf7af6f482317d9150baae723476e1c2fdf616723003a95af4a48c"), 313),
        (Descriptor(MODEL, Digest("sha256:29cdf6272176a3bcba34eeaacaeba2863713eaa748887a9a5563277cd8c95671"), 2560),),
        annotations={"ml.kitops.modelkit.cli-version": "1.7.0"},
    )
    written = made.to_json()
    assert len(written) == 409
    assert hashlib.sha256(written).hexdigest() == "2db85c38ca5956305487f4adbcb448b289889548502ba34c13dfa4e750fc41c2"
    assert Manifest.parse(written) == made


def test_fields_come_back_in_gos_order_with_unknown_ones_last() -> None:
    """A manifest with every field of kit 1.17 and with unknown fields is written as it was read."""
    text = (
        '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",'
        '"artifactType":"application/vnd.kitops.modelkit.manifest.v1+json",'
        f'"config":{{"mediaType":"{KIT_CONFIG}","digest":"{SHA}","size":3}},'
        f'"layers":[{{"mediaType":"{MODEL}","digest":"{SHA}","size":5,"urls":["https://x/\\u0026"],'
        '"annotations":{"a":"1","b":"\\u003c"},"data":"aGVsbG8=","platform":{"architecture":"amd64","os":"linux"},'
        '"artifactType":"x/y","modelMetadata":{"labels":{"n":1.5}}}],'
        f'"subject":{{"mediaType":"x/y","digest":"{SHA}","size":1}},"annotations":{{"k":"v"}},"future":[1,2.5,null]}}'
    )
    parsed = Manifest.parse(text.encode())
    assert parsed.to_json() == text.encode()
    assert parsed.layers[0].data == b"hello"
    assert parsed.layers[0].extra == {"modelMetadata": {"labels": {"n": 1.5}}}


def test_old_kits_have_no_media_type_and_null_layers() -> None:
    """kit 1.7 omits mediaType, and writes an empty list of layers as null."""
    parsed = Manifest.parse(manifest(layers=None))
    assert (parsed.media_type, parsed.layers, parsed.null_layers, parsed.flavor) == ("", (), True, "modelkit")


@pytest.mark.parametrize(
    ("config", "artifact", "flavor"),
    [
        (KIT_CONFIG, "", "modelkit"),
        ("application/vnd.oci.empty.v1+json", "application/vnd.kitops.modelkit.manifest.v1+json", "modelkit"),
        ("application/vnd.cncf.model.config.v1+json", "application/vnd.cncf.model.manifest.v1+json", "modelpack"),
        ("application/vnd.cncf.model.config.v1+json", "", "modelpack"),
        ("application/vnd.cnai.model.config.v1+json", "application/vnd.cnai.model.manifest.v1+json", "modelpack"),
    ],
)
def test_flavors(config: str, artifact: str, flavor: str) -> None:
    """The flavor of a kit depends on the media type of its config, or on its artifact type."""
    assert Manifest.parse(manifest(config={**CONFIG, "mediaType": config}, artifactType=artifact)).flavor == flavor


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("application/vnd.oci.image.config.v1+json", "an ordinary container image, not a ModelKit"),
        ("application/vnd.docker.container.image.v1+json", "an ordinary container image, not a ModelKit"),
        (
            "application/vnd.cncf.helm.config.v1+json",
            "an artifact of type application/vnd.cncf.helm.config.v1+json, not a ModelKit",
        ),
        ("", "an artifact of type unknown, not a ModelKit"),
    ],
)
def test_other_artifacts(config: str, message: str) -> None:
    """The error for a manifest that is not a kit names the type of the artifact."""
    with pytest.raises(ManifestError) as e:
        assert Manifest.parse(manifest(config={**CONFIG, "mediaType": config})).flavor
    assert message in str(e.value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1970-01-01T00:00:10Z", 10),
        ("2024-05-01T12:00:00+02:00", 1714557600),
        ("2024-05-01T10:00:00.5Z", 1714557600),
        ("1969-01-01T00:00:00Z", 0),
        ("2024-05-01", 0),
        ("yesterday", 0),
        ("", 0),
    ],
)
def test_created(value: str, seconds: int) -> None:
    """The created annotation becomes seconds since the epoch. An invalid annotation becomes 0."""
    assert Manifest.parse(manifest(annotations={"org.opencontainers.image.created": value})).created == seconds


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a manifest"),
        (b"{", "not a manifest"),
        (b"<html>", "not a manifest: it looks like HTML (a page of a proxy, or a login?)"),
        (b"\xef\xbb\xbf\r\n <!DOCTYPE html>\n<html>", "not a manifest: it looks like HTML"),
        (b"[]", "an object was expected, not a list"),
        (b"null", "an object was expected, not null"),
        (b"7", "an object was expected, not a number"),
        (b"{}", "it has no config"),
        (b'{"manifests":[]}', "an index of several manifests"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested too deeply"),
        (manifest(schemaVersion=1), "schemaVersion 1 is not supported"),
        (manifest(schemaVersion=["x" * 10_000]), "is not supported"),
        (manifest(config=None), "manifest.config: an object was expected, not null"),
        (manifest(config={**CONFIG, "size": -1}), "size -1 is not a number of bytes"),
        (manifest(config={**CONFIG, "size": "3"}), "size '3' is not a number of bytes"),
        (manifest(config={**CONFIG, "size": True}), "size True is not a number of bytes"),
        (manifest(config={**CONFIG, "size": 1.5}), "size 1.5 is not a number of bytes"),
        (manifest(config={**CONFIG, "size": 1 << 63}), "is not a number of bytes"),
        (manifest(config={**CONFIG, "digest": "sha256:abc"}), "is not a digest"),
        (manifest(config={**CONFIG, "digest": None}), "is not a digest"),
        (manifest(config={**CONFIG, "data": "!"}), "manifest.config.data: not base64"),
        (manifest(config={**CONFIG, "data": "é"}), "manifest.config.data: not base64"),
        (manifest(config={**CONFIG, "urls": "x"}), "manifest.config.urls: a list was expected, not a string"),
        (manifest(layers={}), "manifest.layers: a list was expected, not an object"),
        (manifest(layers=[CONFIG, 1]), "manifest.layers[1]: an object was expected, not a number"),
        (manifest(annotations=[]), "manifest.annotations: an object was expected, not a list"),
        (manifest(annotations={"a": 1}), "manifest.annotations: a string was expected, not a number"),
        (manifest(mediaType=False), "manifest.mediaType: a string was expected, not a boolean"),
        (b'{"schemaVersion":NaN}', "NaN is not JSON"),
        (b'{"schemaVersion":1e999}', "a number that is too large"),
        (b'{"schemaVersion":' + b"9" * 10_000 + b"}", "not a manifest"),
    ],
)
def test_wrong_manifests(data: bytes, message: str) -> None:
    """The ManifestError is one short line that names the invalid field."""
    with pytest.raises(ManifestError) as e:
        Manifest.parse(data)
    assert message in str(e.value)
    assert len(str(e.value)) < 300


def test_lone_surrogates_and_bytes_that_are_not_utf8_can_be_written_again() -> None:
    """Lone surrogates and invalid UTF-8 are replaced by U+FFFD, as in Go."""
    parsed = Manifest.parse(manifest(annotations={"a": "SURROGATE"}).replace(b"SURROGATE", b"\\ud800\xff"))
    assert parsed.annotations == {"a": "\ufffd\ufffd"}
    assert Manifest.parse(parsed.to_json()) == parsed


def test_indexes() -> None:
    """A parsed index has its descriptors. The labels of kit 1.17 are in ``extra`` of each descriptor."""
    entry = {"mediaType": IMAGE_MANIFEST, "digest": SHA, "size": 9, "modelMetadata": {"labels": {"q": "q4"}}}
    data = json.dumps(
        {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "artifactType": "x/y", "manifests": [entry]}
    ).encode()
    parsed = IndexManifest.parse(data)
    assert [d.to_json() for d in parsed.manifests] == [entry]
    assert (parsed.media_type, parsed.artifact_type) == (IMAGE_INDEX, "x/y")
    assert is_index(data)
    assert is_index(b'{"manifests":[]}')
    assert not is_index(manifest())


@pytest.mark.parametrize(
    "data", [b"{}", b"[]", b'{"manifests":{}}', b'{"manifests":[{}]}', b'{"manifests":[null]}', b"\xff"]
)
def test_wrong_indexes(data: bytes) -> None:
    """Bytes that are not an index raise ManifestError."""
    with pytest.raises(ManifestError):
        IndexManifest.parse(data)


KITOPS = "application/vnd.kitops.modelkit."


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        (f"{KITOPS}model.v1.tar", ("modelkit", "model", "tar", "none")),
        (f"{KITOPS}modelpart.v1.tar+gzip", ("modelkit", "modelpart", "tar", "gzip")),
        (f"{KITOPS}dataset.v1.tar+zstd", ("modelkit", "dataset", "tar", "zstd")),
        (f"{KITOPS}code.v1.raw", ("modelkit", "code", "raw", "none")),
        (f"{KITOPS}docs.v1.raw+gzip", ("modelkit", "docs", "raw", "gzip")),
        (f"{KITOPS}model.v1.raw+zstd", ("modelkit", "model", "raw", "zstd")),
        (f"{KITOPS}mcpb.v1.raw", ("modelkit", "mcpserver", "raw", "none")),
        ("application/vnd.cncf.model.weight.v1.raw", ("modelpack", "model", "raw", "none")),
        ("application/vnd.cncf.model.weight.v1.tar", ("modelpack", "model", "tar", "none")),
        ("application/vnd.cncf.model.weight.config.v1.tar+gzip", ("modelpack", "modelpart", "tar", "gzip")),
        ("application/vnd.cncf.model.doc.v1.tar+zstd", ("modelpack", "docs", "tar", "zstd")),
        ("application/vnd.cncf.model.code.v1.raw", ("modelpack", "code", "raw", "none")),
        ("application/vnd.cnai.model.dataset.v1.tar", ("modelpack", "dataset", "tar", "none")),
        ("application/vnd.cnai.model.weight.v1.tar", ("modelpack", "model", "tar", "none")),
    ],
)
def test_layer_types(media_type: str, expected: tuple[str, ...]) -> None:
    """Every layer type of KitOps is parsed, and every layer type of ModelPack under its current and legacy names."""
    found = LayerType.parse(Descriptor(media_type, Digest(SHA), 0))
    assert (found.family, found.kind, found.format, found.compression) == expected


def test_prompts_are_code_layers_with_a_subtype() -> None:
    """kit 1.16 stores prompts as code layers with an annotation."""
    annotations = {"ml.kitops.modelkit.layer-subtype": "prompt"}
    assert LayerType.parse(Descriptor(f"{KITOPS}code.v1.tar", Digest(SHA), 0, annotations)).kind == "prompt"
    assert LayerType.parse(Descriptor(f"{KITOPS}model.v1.tar", Digest(SHA), 0, annotations)).kind == "model"


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        f"{KITOPS}model.v1.zip",
        f"{KITOPS}model.v1.tar+lz4",
        f"{KITOPS}weights.v1.tar",
        f"{KITOPS}model.v2.tar",
        f"{KITOPS}model.v1.tar\n",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.cncf.model.weight.v1.zip",
        "x" * 100_000,
    ],
)
def test_unsupported_layers(media_type: str) -> None:
    """An unknown media type raises UnsupportedLayer with one short line."""
    with pytest.raises(UnsupportedLayer) as e:
        LayerType.parse(Descriptor(media_type, Digest(SHA), 0))
    assert isinstance(e.value, KitfsError)
    assert len(str(e.value)) < 350


TEXT = json.dumps(CONFIG)
INDEX_TYPE, MANIFEST_TYPE = "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'{{"config":{TEXT},"layers":[],"manifests":[]}}', "this manifest also has 'manifests'"),
        ('{"layers":[],"manifests":[]}', "this manifest also has 'manifests'"),
        (f'{{"config":{TEXT},"layers":[],"fsLayers":[]}}', "this manifest also has 'fsLayers'"),
        (
            f'{{"config":{TEXT},"layers":[],"mediaType":"{INDEX_TYPE}"}}',
            "this manifest has the mediaType application/vnd.oci.image.index",
        ),
        (f'{{"config":{TEXT},"config":{TEXT},"layers":[]}}', "an object has the key 'config' twice"),
        (f'{{"config":{TEXT},"layers":[],"l\\u0061yers":[]}}', "an object has the key 'layers' twice"),
        (
            f'{{"config":{TEXT},"layers":[{{"digest":"{SHA}","size":1,"size":2}}]}}',
            "an object has the key 'size' twice",
        ),
        (
            f'{{"config":{TEXT},"layers":[],"annotations":{{"a":"1","a":"2"}}}}',
            "an object has the key 'a' twice",
        ),
        (f'{{"config":{TEXT},"layers":[],"Layers":[{TEXT}]}}', "the key 'Layers' differs from 'layers' in case only"),
        (f'{{"config":{TEXT},"layer\u017f":[{TEXT}]}}', "the key 'layer\u017f' differs from 'layers' in case only"),
        (
            f'{{"config":{TEXT},"layers":[{{"digest":"{SHA}","Digest":"{SHA}","size":1}}]}}',
            r"manifest.layers\[0\]: the key 'Digest' differs",
        ),
        (
            f'{{"config":{TEXT},"layers":[],"ManifestS":[]}}',
            "the key 'ManifestS' differs from 'manifests' in case only",
        ),
    ],
)
def test_manifests_that_can_be_read_in_two_ways(text: str, message: str) -> None:
    """Manifests as in CVE-2021-41190, and JSON that Go reads differently, are refused. The error names the key."""
    with pytest.raises(ManifestError, match=f"ambiguous.*{message}"):
        Manifest.parse(text.encode())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"manifests":[],"layers":[]}', "this index also has 'layers'"),
        (f'{{"manifests":[],"config":{TEXT}}}', "this index also has 'config'"),
        (
            f'{{"manifests":[],"mediaType":"{MANIFEST_TYPE}"}}',
            "this index has the mediaType application/vnd.oci.image.manifest",
        ),
        ('{"manifests":[],"manifests":[]}', "an object has the key 'manifests' twice"),
        (
            f'{{"manifests":[{{"digest":"{SHA}","size":1,"mediaType":"a","mediaType":"b"}}]}}',
            "an object has the key 'mediaType' twice",
        ),
        ('{"manifests":[],"MediaType":"x"}', "the key 'MediaType' differs from 'mediaType' in case only"),
    ],
)
def test_indexes_that_can_be_read_in_two_ways(text: str, message: str) -> None:
    """Indexes as in CVE-2021-41190, and JSON that Go reads differently, are refused. The error names the key."""
    with pytest.raises(ManifestError, match=f"ambiguous.*{message}"):
        IndexManifest.parse(text.encode())


def test_keys_of_annotations_are_case_sensitive() -> None:
    """Two annotations whose keys differ only in case are both kept."""
    assert Manifest.parse(manifest(annotations={"a": "1", "A": "2"})).annotations == {"a": "1", "A": "2"}


@pytest.mark.parametrize(
    ("fields", "media_type", "fits"),
    [
        ({"config": CONFIG, "mediaType": MANIFEST_TYPE}, MANIFEST_TYPE, True),
        ({"config": CONFIG, "mediaType": MANIFEST_TYPE}, INDEX_TYPE, False),
        ({"manifests": [], "mediaType": INDEX_TYPE}, MANIFEST_TYPE, False),
        ({"config": CONFIG, "layers": []}, MANIFEST_TYPE, True),
        ({"config": CONFIG, "layers": []}, INDEX_TYPE, False),
        ({"manifests": []}, MANIFEST_TYPE, False),
        ({"manifests": []}, INDEX_TYPE, True),
        ({"config": CONFIG, "mediaType": MANIFEST_TYPE}, "application/json", True),
        ({"config": CONFIG, "mediaType": MANIFEST_TYPE}, "", True),
        ({}, INDEX_TYPE, True),
    ],
)
def test_the_type_that_a_manifest_is_served_with(fields: dict[str, Any], media_type: str, fits: bool) -> None:
    """A manifest's own media type must be its Content-Type.

    A Content-Type that is not a type of manifests is ignored.
    """
    with (
        contextlib.nullcontext()
        if fits
        else pytest.raises(ManifestError, match="a/b is ambiguous: it was served as " + re.escape(media_type))
    ):
        check_media_type(json.dumps(fields).encode(), media_type, "a/b")
