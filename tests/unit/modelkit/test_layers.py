"""Layers are matched with entries of the Kitfile by digest, position or path.

For a ModelPack, the Kitfile is generated.
"""

from __future__ import annotations

import json
import tarfile
from typing import Any

import pytest

from kitfs.errors import KitfileError, ManifestError, UnsupportedLayer
from kitfs.modelkit.kitfile import Kitfile
from kitfs.modelkit.layers import FileMetadata, has_kitfile, kit_layers, kitfile_of
from kitfs.oci.manifest import KIT_CONFIG, Descriptor, Manifest
from kitfs.oci.names import Digest
from tests.conftest import GOLDEN, GOLDEN_KITS

KITOPS = "application/vnd.kitops.modelkit."
PACK = "application/vnd.cncf.model."
FILEPATH = "org.cncf.model.filepath"
METADATA = "org.cncf.model.file.metadata+json"


def sha(n: int) -> Digest:
    return Digest(f"sha256:{n:064x}")


def layer(media_type: str, n: int, path: str | None = None) -> Descriptor:
    return Descriptor(media_type, sha(n), 10, {} if path is None else {FILEPATH: path})


def kit(*layers: Descriptor, config: str = KIT_CONFIG, annotations: dict[str, str] | None = None) -> Manifest:
    return Manifest(Descriptor(config, sha(0), 2), layers, annotations=annotations or {})


def kitfile(**sections: Any) -> Kitfile:
    return Kitfile.from_json(json.dumps(sections).encode())


def golden(name: str) -> tuple[Manifest, Kitfile]:
    with tarfile.open(GOLDEN / "layouts" / f"{name}.tar") as archive:

        def blob(digest: str) -> bytes:
            member = archive.extractfile("blobs/" + digest.replace(":", "/"))
            assert member is not None
            return member.read()

        manifest = Manifest.parse(blob(GOLDEN_KITS[name]["manifest"]))
        return manifest, kitfile_of(manifest, blob(manifest.config.digest))


@pytest.mark.parametrize("name", sorted(GOLDEN_KITS))
def test_every_golden_layer_has_its_entry_and_a_path(name: str) -> None:
    """The layers have the order of the Kitfile."""
    manifest, read = golden(name)
    found = kit_layers(manifest, read)
    assert [x.descriptor for x in found] == list(manifest.layers)
    assert all(x.entry is not None and x.path is not None for x in found)
    if has_kitfile(manifest):
        assert [x.entry for x in found] == list(read.entries())


@pytest.mark.parametrize("name", ["modelpack-raw", "modelpack-tar"])
def test_the_kitfile_of_a_modctl_kit(name: str) -> None:
    """The first weight file is the model. The other weight files and weight.config are parts.

    Code and docs keep their order.
    """
    manifest, read = golden(name)
    by_type: dict[str, list[str]] = {}
    for d in manifest.layers:
        by_type.setdefault(d.media_type.removeprefix(PACK).rsplit(".v1.")[0], []).append(d.annotations[FILEPATH])
    assert not has_kitfile(manifest)
    assert read.model is not None
    assert [read.model.path, *(p.path for p in read.model.parts)] == by_type["weight"] + by_type["weight.config"]
    assert [c.path for c in read.code] == by_type.get("code", [])
    assert [d.path for d in read.docs] == by_type.get("doc", [])
    assert [x.path for x in kit_layers(manifest, read)] == [d.annotations[FILEPATH] for d in manifest.layers]
    assert read.manifest_version == "1.0.0"


def test_layers_are_matched_by_digest_whatever_their_order() -> None:
    """The config has the digest of each layer. The paths of the layers are cleaned, and the path "." becomes empty."""
    read = kitfile(
        model={"name": "m", "path": "./m//w.bin", "digest": sha(1)},
        code=[{"path": ".", "digest": sha(2)}, {"path": "src/", "digest": sha(3)}],
    )
    manifest = kit(
        layer(f"{KITOPS}code.v1.tar", 3), layer(f"{KITOPS}code.v1.tar", 2), layer(f"{KITOPS}model.v1.tar", 1)
    )
    assert [(x.path, x.entry and x.entry.kind) for x in kit_layers(manifest, read)] == [
        ("src", "code"),
        ("", "code"),
        ("m/w.bin", "model"),
    ]


def test_equal_digests_are_taken_in_order() -> None:
    """If two entries have the same digest, the layers with this digest belong to them in order.

    A third layer with this digest belongs to the last entry.
    """
    read = kitfile(docs=[{"path": "a", "digest": sha(1)}, {"path": "b", "digest": sha(1)}])
    manifest = kit(*[layer(f"{KITOPS}docs.v1.tar", 1)] * 3)
    assert [x.path for x in kit_layers(manifest, read)] == ["a", "b", "b"]


def test_equal_digests_are_told_apart_by_their_annotation() -> None:
    """Since kit 1.10, an annotation of a layer has the layer's path."""
    read = kitfile(docs=[{"path": "a", "digest": sha(1)}, {"path": "b", "digest": sha(1)}])
    manifest = kit(layer(f"{KITOPS}docs.v1.raw", 1, "b"), layer(f"{KITOPS}docs.v1.raw", 1, "a"))
    assert [(x.path, x.entry and x.entry.path) for x in kit_layers(manifest, read)] == [("b", "b"), ("a", "a")]


def test_kits_without_layer_info_are_matched_by_position_within_their_type() -> None:
    """Versions of kit before 0.5 write no digests of layers into the config.

    A remote dataset and a model that is a reference have no layer.
    """
    read = kitfile(
        model={"path": "r.io/base:v1", "parts": [{"path": "p"}]},
        code=[{"path": "c1"}, {"path": "c2"}],
        datasets=[{"path": "far", "remotePath": "s3://b/k"}, {"path": "d"}],
    )
    types = ("dataset", "code", "modelpart", "code", "docs")
    manifest = kit(*[layer(f"{KITOPS}{t}.v1.tar+gzip", i) for i, t in enumerate(types)])
    assert [x.path for x in kit_layers(manifest, read)] == ["d", "c1", "p", "c2", None]


def test_a_layer_that_the_config_does_not_know_has_no_entry() -> None:
    """The layer is shown at the path that its annotation states."""
    read = kitfile(docs=[{"path": "a", "digest": sha(1)}])
    manifest = kit(layer(f"{KITOPS}docs.v1.tar", 2), layer(f"{KITOPS}docs.v1.raw", 3, "x/../y"))
    assert [(x.entry, x.path) for x in kit_layers(manifest, read)] == [(None, None), (None, "y")]


def test_modelpack_layers_with_a_kitfile_are_matched_by_path() -> None:
    """KitOps stores the Kitfile of a ModelPack in an annotation. The entries of this Kitfile can lack digests."""
    text = json.dumps({"manifestVersion": "1.0.0", "model": {"path": "w.bin"}, "code": [{"path": "src"}]})
    manifest = kit(
        layer(f"{PACK}code.v1.tar", 1, "src"),
        layer(f"{PACK}weight.v1.raw", 2, "./w.bin"),
        config=f"{PACK}config.v1+json",
        annotations={"ml.kitops.modelkit.kitfile": text},
    )
    read = kitfile_of(manifest, b"not looked at")
    assert has_kitfile(manifest)
    assert [(x.path, x.entry and x.entry.kind) for x in kit_layers(manifest, read)] == [
        ("src", "code"),
        ("w.bin", "model"),
    ]


def test_layers_of_unknown_types_are_refused() -> None:
    """A kit is refused if one of its layers has an unknown type."""
    with pytest.raises(UnsupportedLayer):
        kit_layers(kit(layer("application/x", 1)), kitfile())


def test_a_generated_kitfile_says_what_the_config_says() -> None:
    """Name, version, licence, authors and format come from the ModelPack config.

    The diffIds of the config are in the order of the layers.
    """
    config = {
        "descriptor": {
            "name": "n",
            "version": "2",
            "description": "d",
            "licenses": ["MIT", "BSD"],
            "authors": ["a", "b"],
        },
        "modelfs": {"type": "layers", "diffIds": [sha(7), sha(8)]},
        "config": {"format": "gguf"},
    }
    manifest = kit(
        layer(f"{PACK}doc.v1.tar", 1, "README"), layer(f"{PACK}weight.v1.raw", 2, "a:b"), config=f"{PACK}config.v1+json"
    )
    read = kitfile_of(manifest, json.dumps(config).encode())
    assert json.loads(read.to_json()) == {
        "manifestVersion": "1.0.0",
        "package": {"name": "n", "version": "2", "description": "d", "license": "MIT", "authors": ["a", "b"]},
        "model": {"name": "n", "path": "a:b", "format": "gguf", "version": "2", "digest": sha(2), "diffId": sha(8)},
        "docs": [{"path": "README", "digest": sha(1), "diffId": sha(7)}],
    }
    assert read.parent is None


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (b"", "the config is not a valid ModelPack config"),
        (b"[]", "an object was expected"),
        (b"[" * 50_000, "nested too deeply"),
        (b'{"modelfs":{"diffIds":["a","b"]}}', "2 diffIds for 1 layers"),
    ],
)
def test_wrong_configs_of_modelpacks(config: bytes, told: str) -> None:
    """The error is a KitfileError or a ManifestError of one line."""
    manifest = kit(layer(f"{PACK}weight.v1.raw", 1, "w"), config=f"{PACK}config.v1+json")
    with pytest.raises((KitfileError, ManifestError)) as e:
        kitfile_of(manifest, config)
    assert told in str(e.value)


@pytest.mark.parametrize(
    "config",
    [b"{}", b'{"descriptor":7,"config":[],"modelfs":null}', b'{"descriptor":{"authors":[1,"a"],"licenses":{}}}'],
)
def test_odd_configs_of_modelpacks_are_read_leniently(config: bytes) -> None:
    """A field whose value has an unexpected type is ignored."""
    manifest = kit(layer(f"{PACK}weight.v1.raw", 1, "w"), config=f"{PACK}config.v1+json")
    model = kitfile_of(manifest, config).model
    assert model is not None
    assert model.path == "w"


def test_a_layer_without_a_path_cannot_be_shown() -> None:
    """The error for a ModelPack layer without a path has kit's words."""
    manifest = kit(layer(f"{PACK}weight.v1.raw", 1), config=f"{PACK}config.v1+json")
    with pytest.raises(ManifestError, match=r"unknown file path for layer: no org.cncf.model.filepath annotation"):
        kitfile_of(manifest, b"{}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '{"name":"w","mode":420,"uid":0,"gid":0,"size":9,"mtime":"2024-05-01T10:00:00Z","typeflag":48}',
            ("w", 0o644, 9),
        ),
        ('{"name":"w","mode":2541,"size":0,"typeflag":0}', ("w", 0o755, 0)),
        ('{"mode":"420","size":-1,"name":7}', ("", None, None)),
        ('{"mode":true,"size":1.5}', ("", None, None)),
        ('{"mode":-1,"size":9223372036854775808}', ("", None, None)),
        ("{}", ("", None, None)),
        ("[]", None),
        ("", None),
        ("{", None),
        ("[" * 50_000, None),
        ('{"size":NaN}', None),
    ],
)
def test_file_metadata(text: str, expected: tuple[str, int | None, int | None] | None) -> None:
    """The mode has no setuid, setgid or sticky bit, and the size is in bytes.

    Metadata that cannot be parsed is ignored.
    """
    for key in (METADATA, METADATA.replace("cncf", "cnai")):
        assert FileMetadata.of(Descriptor("x/y", sha(1), 1, {key: text})) == expected


def test_no_metadata() -> None:
    assert FileMetadata.of(Descriptor("x/y", sha(1), 1)) is None
