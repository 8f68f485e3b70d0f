"""This host makes chunk tables for a kit that was packed without them, and its readers use these tables."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import kitfs
from kitfs import errors
from kitfs.layers.chunk_table import TableHead
from tests.fakes.faults import Lie, Status
from tests.fakes.registry import FakeRegistry
from tests.unit.sdk.table_trees import TEXTS, write_model_and_data

WEIGHTS = random.Random(7).randbytes(1_500_000)


class Place(NamedTuple):
    """A kit without chunk tables at a registry, and the options of a store. ``layers`` has the layers' digests."""

    registry: FakeRegistry
    reference: str
    layers: dict[str, str]
    options: dict[str, Any]


def packed(registry: FakeRegistry, tree: Path, name: str, options: dict[str, Any], **form: Any) -> dict[str, str]:
    """Pack the tree into a repository of the registry, and return the digest of each layer by its path."""
    kitfs.pack(tree, f"{registry.host}/{name}:v1", push=True, **form, **options)
    manifest = json.loads(registry.manifest(name, "v1")[0])
    return {d["annotations"]["org.cncf.model.filepath"]: d["digest"] for d in manifest["layers"]}


@pytest.fixture(
    params=[{"compression": "none"}, {"compression": "gzip"}, {"compression": "zstd"}, {"layer_format": "raw"}],
    ids=["tar", "gzip", "zstd", "raw"],
)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    tree = write_model_and_data(tmp_path / "tree", WEIGHTS)
    options: dict[str, Any] = {"config": tmp_path / "home"}
    with FakeRegistry() as registry:
        packer = options | {"cache_dir": tmp_path / "packer"}
        layers = packed(registry, tree, "team/kit", packer, chunk_table="none", **request.param)
        yield Place(registry, f"{registry.host}/team/kit:v1", layers, options | {"cache_dir": tmp_path / "store"})


def test_tables_stay_when_their_layers_are_evicted(place: Place) -> None:
    """A later reader verifies each chunk by the tables, and lists the files without fetching a byte of a layer."""
    made = kitfs.chunk_table(place.reference, **place.options)
    assert (set(made.made), made.kept, made.named, made.pushed) == (set(place.layers.values()), (), (), None)
    kitfs.cache.clear(**place.options)
    sent = [place.registry.moved(digest) for digest in place.layers.values()]
    with kitfs.open(place.reference, **place.options) as kit:
        found = {path: kit.stat(path).size for path in ("w.bin", *TEXTS)}
        assert found == {"w.bin": len(WEIGHTS), **{path: len(text) for path, text in TEXTS.items()}}
        assert [place.registry.moved(digest) for digest in place.layers.values()] == sent
        blob = place.registry.blob("team/kit", place.layers["w.bin"])
        assert blob is not None
        place.registry.fail(place.layers["w.bin"], Lie(len(blob) // 2), method="GET")
        with pytest.raises(errors.IntegrityError, match="do not match their digest in the chunk table"):
            kit.read("w.bin")
        place.registry.heal()
        assert kit.read("w.bin") == WEIGHTS
        assert {path: kit.read(path) for path in TEXTS} == TEXTS
    again = kitfs.chunk_table(place.reference, **place.options)
    assert (again.made, set(again.kept)) == ((), set(made.made))


def test_a_wrong_layer_gets_no_table(place: Place) -> None:
    """The layer is verified as a whole before its table is made."""
    place.registry.fail(place.layers["w.bin"], Lie(1000), method="GET")
    with pytest.raises(errors.IntegrityError):
        kitfs.chunk_table(place.reference, **place.options)
    kept = {path.name for path in Path(place.options["cache_dir"]).glob("tables/sha256/??/*")}
    assert place.layers["w.bin"].partition(":")[2] not in kept


def test_a_table_that_has_changed_on_the_disk_is_not_used(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """The layer is read as if it had no table, and the table is made again."""
    kitfs.chunk_table(place.reference, **place.options)
    kitfs.cache.clear(**place.options)
    for path in Path(place.options["cache_dir"]).glob("tables/sha256/??/*"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    with kitfs.open(place.reference, **place.options) as kit:
        assert kit.read("w.bin") == WEIGHTS
    assert "has changed on the disk" in caplog.text
    assert place.layers["w.bin"] in kitfs.chunk_table(place.reference, **place.options).made


def test_tables_are_pushed_with_a_manifest_that_refers_to_the_kit(place: Place) -> None:
    """The manifest has a descriptor for each table, which names the layer and the head of the table."""
    done = kitfs.chunk_table(place.reference, push=True, **place.options)
    assert done.pushed is not None
    listed = json.loads(place.registry.manifest("team/kit", done.pushed)[0])
    assert listed["subject"]["digest"] == done.digest
    assert listed["artifactType"] == "application/vnd.kitfs.chunk-table.v1"
    assert {one["annotations"]["org.kitfs.layer"] for one in listed["layers"]} == set(place.layers.values())
    for one in listed["layers"]:
        table = place.registry.blob("team/kit", one["digest"])
        assert table is not None
        head = TableHead(table[: json.loads(one["annotations"]["org.kitfs.chunk-table"])["headSize"]])
        assert f"sha256:{head.layer}" == one["annotations"]["org.kitfs.layer"]
    assert kitfs.chunk_table(place.reference, push=True, **place.options).pushed == done.pushed


def test_tables_that_were_not_copied_with_the_kit_are_made(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The manifest names tables that the registry does not have, so this host makes its own."""
    packed(place.registry, tmp_path / "tree", "team/new", place.options)
    manifest = json.loads(place.registry.manifest("team/new", "v1")[0])
    tables = [json.loads(d["annotations"]["org.kitfs.chunk-table"])["digest"] for d in manifest["layers"]]
    place.registry.fail("|".join(tables), Status(404), method="GET")
    reference = f"{place.registry.host}/team/new:v1"
    assert set(kitfs.chunk_table(reference, **place.options).made) == {d["digest"] for d in manifest["layers"]}
    caplog.clear()
    kitfs.cache.clear(**place.options)
    with kitfs.open(reference, **place.options) as kit:
        assert kit.read("w.bin") == WEIGHTS
    assert "cannot be used" not in caplog.text


def test_the_tables_of_the_manifest_are_not_made_again(place: Place, tmp_path: Path) -> None:
    layers = packed(place.registry, tmp_path / "tree", "team/new", place.options)
    reference = f"{place.registry.host}/team/new:v1"
    done = kitfs.chunk_table(reference, push=True, **place.options)
    assert (done.made, set(done.named), done.pushed) == ((), set(layers.values()), None)
    with pytest.raises(errors.UsageError, match="registry"):
        kitfs.chunk_table("local:v1", push=True, **place.options)
