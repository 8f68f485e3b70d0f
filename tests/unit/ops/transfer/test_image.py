"""A kit is converted to an OCI image, unless the image would show other files than a mount of the kit."""

from __future__ import annotations

import gzip
import io
import json
import logging
import random
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import zstandard

from kitfs.errors import LayerError, ManifestError, NotFound, UnsupportedLayer, UsageError
from kitfs.kit.options import WorkspaceOptions
from kitfs.kit.tree import tree_of
from kitfs.kit.workspace import Workspace
from kitfs.metrics import Counters
from kitfs.modelkit.filters import Filter
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import Event, Moved, Noted, Total, quiet
from kitfs.ops.transfer.image import IMAGE_CONFIG, IMAGE_LAYER, Converted, convert
from kitfs.ops.transfer.pull import pull
from kitfs.registry.options import ClientOptions
from tests import kits
from tests.fakes.registry import FakeRegistry

LOG = logging.getLogger("kitfs.test")
NOISE = random.Random(7).randbytes(300_000)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Workspace]:
    options = WorkspaceOptions(
        cache_dir=str(tmp_path / "store"), kit_home=str(tmp_path / "kit"), client=ClientOptions(read_timeout=10.0)
    )
    with Workspace.open(options, log=LOG) as opened:
        yield opened


def a_kit(**more: Any) -> kits.Kit:
    """Return a kit with one layer for each compression. Two of the layers contain a file with the same name."""
    parts = [
        kits.part("model", "m", kits.kit_tar({"m/w.bin": NOISE, "m/deep/x": b"x"}, modes={"m/w.bin": 0o600})),
        kits.part("code", "src", kits.kit_tar({"src/a.py": b"one", "src/b.py": b"b"}), compression="gzip"),
        kits.part("docs", "src/a.py", kits.kit_tar({"src/a.py": b"two"}), compression="zstd"),
    ]
    return kits.build(parts, **more)


def made(host: Workspace, ref: str, image: str, told: list[Event] | None = None, **more: Any) -> Converted:
    named, filters = Reference.parse(image, multiple_tags=True), [Filter.parse(text) for text in more.pop("only", ())]
    with closing(host.resolver.open(Reference.parse(ref), filters=filters)) as kit:
        report = quiet if told is None else told.append
        return convert(host, kit, named, report=report, **more)


def manifest_of(fake: FakeRegistry, image: str) -> dict[str, Any]:
    repository, _, tag = image.partition("/")[2].rpartition(":")
    found: dict[str, Any] = json.loads(fake.manifest(repository, tag)[0])
    return found


def config_of(fake: FakeRegistry, image: str) -> dict[str, Any]:
    repository = image.partition("/")[2].rpartition(":")[0]
    found: dict[str, Any] = json.loads(fake.blob(repository, manifest_of(fake, image)["config"]["digest"]) or b"")
    return found


def shown(fake: FakeRegistry, image: str) -> dict[str, bytes | None]:
    """Check the diffIds of an image. Return the files in its layers by path, with None for a directory."""
    repository = image.partition("/")[2].rpartition(":")[0]
    tree: dict[str, bytes | None] = {}
    for layer, diff_id in zip(
        manifest_of(fake, image)["layers"], config_of(fake, image)["rootfs"]["diff_ids"], strict=True
    ):
        data = fake.blob(repository, layer["digest"]) or b""
        plain = decoded(data, layer["mediaType"].removeprefix(IMAGE_LAYER))
        assert kits.sha256(plain) == diff_id
        with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
            for member in tar:
                file = tar.extractfile(member)
                tree[member.name] = None if file is None else file.read()
    return tree


def decoded(data: bytes, suffix: str) -> bytes:
    if suffix == "+gzip":
        return gzip.decompress(data)
    assert suffix in ("", "+zstd")
    return zstandard.ZstdDecompressor().decompressobj().decompress(data) if suffix else data


def mounted_tree(host: Workspace, ref: str) -> dict[str, bytes | None]:
    with closing(host.resolver.open(Reference.parse(ref))) as kit:
        tree = tree_of(kit, counters=Counters(), log=LOG)
        return {
            path: None if node.kind == "dir" else tree.pread(node, 0, node.size) for path, node in tree.walk(tree.root)
        }


def test_an_image_shows_what_a_mount_shows_and_no_layer_is_sent(fake: FakeRegistry, host: Workspace) -> None:
    """The registry mounts the layers from the kit's repository.

    No layer is uploaded, and no compressed layer is downloaded.
    """
    kit = a_kit()
    ref, image = fake.put_kit("team/kit", kit, "v1"), f"{fake.host}/images/kit:v1"
    fake.forget()
    told: list[Event] = []
    done = made(host, ref, image, told)
    sizes = sum(layer["size"] for layer in json.loads(kit.manifest)["layers"])
    assert (done.uploaded, done.mounted, done.existed) == (0, sizes, 0)
    assert done.digest == kits.sha256(fake.manifest("images/kit", "v1")[0])
    sent = {
        row.path.partition("digest=")[2].replace("%3A", ":") for row in fake.served("/blobs/uploads/", method="PUT")
    }
    assert sent.isdisjoint(kit.layers)
    assert len(sent) == 2  # the config and the Kitfile
    assert sum(fake.moved(digest) for digest in kit.layers[1:]) == 0
    assert shown(fake, image) == mounted_tree(host, ref)
    totals = {event.name: event.size for event in told if isinstance(event, Total)}
    moved = dict.fromkeys(totals, 0)
    for event in told:
        if isinstance(event, Moved):
            moved[event.name] += event.size
    assert moved == totals


def test_config_and_manifest_are_an_images(fake: FakeRegistry, host: Workspace) -> None:
    """Every field has the value that an image requires. The annotations of the kit's layers are left out."""
    kit = a_kit()
    ref, image = fake.put_kit("team/kit", kit, "v1"), f"{fake.host}/team/kit:image"
    assert made(host, ref, image).existed
    manifest, config = manifest_of(fake, image), config_of(fake, image)
    assert list(manifest) == ["schemaVersion", "mediaType", "config", "layers", "annotations"]
    assert (manifest["mediaType"], manifest["config"]["mediaType"]) == (kits.MANIFEST, IMAGE_CONFIG)
    assert [layer["mediaType"] for layer in manifest["layers"]] == [
        IMAGE_LAYER,
        f"{IMAGE_LAYER}+gzip",
        f"{IMAGE_LAYER}+zstd",
        IMAGE_LAYER,
    ]
    assert [set(layer) for layer in manifest["layers"]] == [{"mediaType", "digest", "size"}] * 4
    assert [layer["digest"] for layer in manifest["layers"]][:3] == list(kit.layers)
    assert manifest["annotations"] == {"org.opencontainers.image.created": kits.CREATED}
    assert list(config) == ["created", "architecture", "os", "config", "rootfs", "history"]
    assert (config["created"], config["architecture"], config["os"], config["config"]) == (
        kits.CREATED,
        "amd64",
        "linux",
        {},
    )
    assert config["rootfs"]["type"] == "layers"
    assert [step["created_by"] for step in config["history"]] == ["model m", "code src", "docs src/a.py", "Kitfile"]
    with pytest.raises(ManifestError, match="this is an ordinary container image"):
        host.resolver.open(Reference.parse(image))


def test_the_same_kit_gives_the_same_image(fake: FakeRegistry, host: Workspace) -> None:
    """A second conversion returns the same digest and uploads nothing."""
    ref, image = fake.put_kit("team/kit", a_kit(), "v1"), f"{fake.host}/images/kit:a,b"
    first = made(host, ref, image)
    fake.forget()
    assert made(host, ref, image).digest == first.digest
    assert not fake.served("/blobs/uploads")
    assert fake.manifest("images/kit", "a") == fake.manifest("images/kit", "b")


def test_platforms_share_all_but_a_config(fake: FakeRegistry, host: Workspace) -> None:
    ref, image = fake.put_kit("team/kit", a_kit(), "v1"), f"{fake.host}/images/kit:v1"
    platforms = [("linux", "amd64", ""), ("linux", "arm64", "v8"), ("linux", "amd64", "")]
    done = made(host, ref, image, platforms=platforms)
    index = manifest_of(fake, image)
    assert done.digest == kits.sha256(fake.manifest("images/kit", "v1")[0])
    assert [row["platform"] for row in index["manifests"]] == [
        {"architecture": "amd64", "os": "linux"}, {"architecture": "arm64", "os": "linux", "variant": "v8"},
    ]  # fmt: skip
    one, two = (json.loads(fake.manifest("images/kit", row["digest"])[0]) for row in index["manifests"])
    assert one["layers"] == two["layers"]
    configs = [json.loads(fake.blob("images/kit", m["config"]["digest"]) or b"") for m in (one, two)]
    assert [(c["architecture"], c.get("variant")) for c in configs] == [("amd64", None), ("arm64", "v8")]


def test_another_registry_is_sent_the_layers(fake: FakeRegistry, host: Workspace) -> None:
    """Layers are copied from the kit's registry to the image's registry without being stored.

    Layers that are in the store are sent from the store.
    """
    kit = a_kit()
    ref = fake.put_kit("team/kit", kit, "v1")
    sizes = sum(layer["size"] for layer in json.loads(kit.manifest)["layers"])
    with FakeRegistry() as other:
        assert made(host, ref, f"{other.host}/images/kit:v1")[1:] == (sizes, 0, 0)
        assert not host.store.has_sealed(
            Digest.parse(kit.layers[0])
        )  # the other layers may be stored, because they are smaller than one readahead
        assert shown(other, f"{other.host}/images/kit:v1") == mounted_tree(host, ref)
    pull(host, Reference.parse(ref), report=quiet)
    fake.forget()
    with FakeRegistry() as other:
        assert made(host, ref, f"{other.host}/images/kit:v1").uploaded == sizes
    assert fake.moved() == 0


def test_a_registry_that_mounts_nothing(fake: FakeRegistry, host: Workspace) -> None:
    """If the registry does not mount blobs, the layers are uploaded."""
    ref = fake.put_kit("team/kit", a_kit(), "v1")
    fake.mounts = False
    done = made(host, ref, f"{fake.host}/images/kit:v1")
    assert (done.mounted, done.uploaded > 0) == (0, True)
    assert shown(fake, f"{fake.host}/images/kit:v1") == mounted_tree(host, ref)


def test_the_model_of_a_parent_comes_first(fake: FakeRegistry, host: Workspace) -> None:
    """The model layer of a parent is the first layer, and is mounted from the parent's own repository."""
    parent = kits.build(
        [kits.part("model", "m", kits.kit_tar({"m/w": NOISE})), kits.part("code", "no", kits.kit_tar({"no": b""}))]
    )
    above = fake.put_kit("base/model", parent, "v1")
    child = kits.build([kits.part("code", "c", kits.kit_tar({"c/x": b"x"}), compression="gzip")], parent=above)
    ref, image = fake.put_kit("team/child", child, "v1"), f"{fake.host}/images/child:v1"
    assert made(host, ref, image).uploaded == 0
    assert [layer["digest"] for layer in manifest_of(fake, image)["layers"]][:2] == [parent.layers[0], child.layers[0]]
    assert shown(fake, image) == mounted_tree(host, ref)
    assert {row.path.partition("from=")[2] for row in fake.served("mount=", method="POST")} == {
        "base%2Fmodel",
        "team%2Fchild",
    }


@pytest.mark.parametrize("vintage", ["0.4", "1.7", "1.10", "modelpack", "modctl", "cnai"])
def test_kits_of_every_vintage(fake: FakeRegistry, host: Workspace, vintage: kits.Vintage) -> None:
    """If the kit does not declare a diffId, the layer is read to compute the diffId.

    The image has a Kitfile and a creation time only if the kit has them.
    """
    ref, image = fake.put_kit("team/kit", a_kit(vintage=vintage), "v1"), f"{fake.host}/images/kit:v1"
    told: list[Event] = []
    made(host, ref, image, told)
    assert shown(fake, image) == mounted_tree(host, ref)
    read = [event.text for event in told if isinstance(event, Noted)]
    assert len(read) == (2 if vintage == "0.4" else 0)
    assert ("created" in config_of(fake, image)) is False
    assert ("Kitfile" in shown(fake, image)) == (vintage not in ("modctl", "cnai"))


def test_a_part_of_a_kit(fake: FakeRegistry, host: Workspace) -> None:
    ref, image = fake.put_kit("team/kit", a_kit(), "v1"), f"{fake.host}/images/kit:v1"
    made(host, ref, image, only=["model"])
    assert set(shown(fake, image)) == {"m", "m/w.bin", "m/deep", "m/deep/x"}


def test_a_kit_without_anything(fake: FakeRegistry, host: Workspace) -> None:
    ref, image = fake.put_kit("team/kit", kits.build([]), "v1"), f"{fake.host}/images/kit:v1"
    made(host, ref, image)
    assert set(shown(fake, image)) == {"Kitfile"}


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (
            kits.part("dataset", "d.csv", b"1", format="raw"),
            r"layer sha256:\S+ \(dataset d.csv\) is a raw file, but layers of an OCI image",
        ),
        (
            kits.part("dataset", "d.csv", b"1", format="raw", compression="gzip"),
            r"\(dataset d.csv\) is a raw file",
        ),
        (
            kits.part("mcpserver", "s.mcpb", b"PK", format="raw", name="s"),
            r"\(mcpserver s.mcpb\) is a raw file",
        ),
        (
            kits.part("code", "c", kits.kit_tar({"c/.wh.x": b""})),
            r"holds 'c/.wh.x': in an OCI image, a name that begins with .wh. removes",
        ),
    ],
)
def test_what_is_no_layer_of_an_image(fake: FakeRegistry, host: Workspace, part: kits.Part, told: str) -> None:
    """If an image cannot contain a layer, the error is one line that names the layer, and nothing is sent."""
    ref, image = (
        fake.put_kit("team/kit", kits.build([kits.part("model", "m", kits.kit_tar({"m": b"m"})), part]), "v1"),
        f"{fake.host}/images/kit:v1",
    )
    with pytest.raises(UnsupportedLayer, match=told) as e:
        made(host, ref, image)
    assert "\n" not in str(e.value)
    assert not fake.served("images/")


def conflicting() -> bytes:
    """Return a tar with the file m/x and then a file m, which conflicts with the directory m."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("m/x", "m"):
            archive.addfile(tarfile.TarInfo(name))
    return out.getvalue()


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([kits.part("model", "m", conflicting())], r"layer sha256:\S+ holds 'm' more than once"),
        (
            [
                kits.part("model", "m", kits.kit_tar({"m/x": b"x"})),
                kits.part("docs", "m", kits.kit_tar({"m": b"file"})),
            ],
            r"layer sha256:\S+: left out 'm': a file where an earlier layer has something else; "
            r"an OCI image would show it",
        ),
    ],
)
def test_names_that_an_image_would_show_otherwise(
    fake: FakeRegistry, host: Workspace, parts: list[kits.Part], told: str
) -> None:
    """A kit is refused if one of its files has the name of a directory that is not empty.

    An image would show the later entry. A mount would show the directory.
    """
    ref = fake.put_kit("team/kit", kits.build(parts), "v1")
    with pytest.raises(UnsupportedLayer, match=told):
        made(host, ref, f"{fake.host}/images/kit:v1")
    assert not fake.served("images/")


def test_a_damaged_layer_whose_diff_id_is_not_said(fake: FakeRegistry, host: Workspace) -> None:
    kit = kits.build([kits.part("model", "m", b"", blob=b"no gzip", compression="gzip")], vintage="0.4")
    with pytest.raises(LayerError, match=f"layer {kit.layers[0]}: the blob is not gzip, or is damaged"):
        made(host, fake.put_kit("team/kit", kit, "v1"), f"{fake.host}/images/kit:v1")


def test_a_layer_that_is_nowhere(fake: FakeRegistry, host: Workspace) -> None:
    """If a layer is neither in the store nor in the registry, nothing is tagged."""
    kit = kits.build([kits.part("model", "m", kits.kit_tar({"m": NOISE}), compression="gzip")])
    blobs = {digest: content for digest, content in kit.blobs.items() if digest not in kit.layers}
    ref = fake.put_kit("team/kit", kits.Kit(kit.manifest, kit.config, blobs, kit.layers), "v1")
    with pytest.raises(NotFound, match=kit.layers[0]):
        made(host, ref, f"{fake.host}/images/kit:v1")
    with pytest.raises(NotFound):
        host.client.repository(Reference.parse(f"{fake.host}/images/kit")).resolve("v1")


def test_an_image_is_named_by_a_tag(fake: FakeRegistry, host: Workspace) -> None:
    ref = fake.put_kit("team/kit", a_kit(), "v1")
    with pytest.raises(UsageError, match="name the image by a tag"):
        made(host, ref, f"{fake.host}/images/kit@sha256:{'0' * 64}")
