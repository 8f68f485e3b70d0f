"""Programs read kits with chunk tables: no byte that was changed at the registry or on the way is returned."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zstandard

import kitfs
from kitfs import errors
from kitfs.layers.chunk_table import DIGEST, ENTRIES, POINTS, WINDOWS, BuiltTable, TableHead, build
from kitfs.layers.points import RestartPoints, restart_points
from kitfs.oci.chunk_tables import ANNOTATION, annotation_of, named
from tests.fakes.faults import Lie, Status
from tests.fakes.registry import FakeRegistry
from tests.host import wait_until
from tests.unit.sdk.table_trees import TEXTS, write_model, write_model_and_data

WEIGHTS = random.Random(5).randbytes(1_500_000)


class Place(NamedTuple):
    """A kit at a registry, and the options of a reader whose store is empty. ``layers`` has the layers' digests."""

    registry: FakeRegistry
    reference: str
    layers: dict[str, str]
    tables: list[str]
    options: dict[str, Any]


@pytest.fixture(params=["none", "gzip"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    tree = write_model_and_data(tmp_path / "tree", WEIGHTS)
    options: dict[str, Any] = {"config": tmp_path / "home"}
    with FakeRegistry() as registry:
        reference = f"{registry.host}/team/kit:v1"
        kitfs.pack(tree, reference, push=True, compression=request.param, cache_dir=tmp_path / "packer", **options)
        manifest = json.loads(registry.manifest("team/kit", "v1")[0])
        layers = {d["annotations"]["org.cncf.model.filepath"]: d["digest"] for d in manifest["layers"]}
        tables = [json.loads(d["annotations"]["org.kitfs.chunk-table"])["digest"] for d in manifest["layers"]]
        yield Place(registry, reference, layers, tables, options | {"cache_dir": tmp_path / "fresh"})


def test_a_listing_does_not_touch_the_layers(place: Place) -> None:
    """The names and sizes of files are in the chunk tables, so no byte of a layer is fetched for them."""
    with kitfs.open(place.reference, **place.options) as kit:
        found = {path: kit.stat(path).size for path in ("w.bin", *TEXTS)}
    assert found == {"w.bin": len(WEIGHTS), **{path: len(text) for path, text in TEXTS.items()}}
    assert [place.registry.moved(digest) for digest in place.layers.values()] == [0, 0]


def test_a_flipped_byte_is_never_returned(place: Place) -> None:
    """A byte that is flipped on the way makes reads fail until it is right, wherever it is."""
    blob = place.registry.blob("team/kit", place.layers["w.bin"])
    assert blob is not None
    for seed in range(3):
        at = random.Random(seed).randrange(len(blob))
        place.registry.fail(place.layers["w.bin"], Lie(at), method="GET")
        options = place.options | {"cache_dir": f"{place.options['cache_dir']}{seed}"}
        with kitfs.open(place.reference, **options) as kit:
            with pytest.raises(errors.IntegrityError, match="do not match their digest"):
                kit.read("w.bin")
            assert kit.read("data/two.txt") == TEXTS["data/two.txt"]
            place.registry.heal()
            assert kit.read("w.bin") == WEIGHTS


def test_a_flipped_byte_of_a_table_is_never_used(place: Place) -> None:
    """A table with a wrong byte makes reads fail. It is not treated as a missing table."""
    for at in (3, 100, 300):
        place.registry.fail("|".join(place.tables), Lie(at), method="GET")
        options = place.options | {"cache_dir": f"{place.options['cache_dir']}{at}"}
        with kitfs.open(place.reference, **options) as kit:
            with pytest.raises(errors.IntegrityError, match="chunk table"):
                kit.read("w.bin")
            place.registry.heal()
            assert kit.read("w.bin") == WEIGHTS


def test_a_kit_without_its_tables_is_read(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """If the tables were not copied with the kit, a warning is logged, and the layers are verified as a whole."""
    place.registry.fail("|".join(place.tables), Status(404), method="GET")
    with kitfs.open(place.reference, **place.options) as kit:
        assert kit.read("w.bin") == WEIGHTS
        assert kit.read("data/two.txt") == TEXTS["data/two.txt"]
    assert "its chunk table cannot be used" in caplog.text


def test_tables_travel_with_their_kit(place: Place, tmp_path: Path) -> None:
    """Pull, export, import and push copy the tables. The registry lists them as a referrer of the kit."""
    kitfs.pull(place.reference, **place.options)
    layout = f"oci:{tmp_path / 'layout'}:v1"
    kitfs.export(place.reference, layout, **place.options)
    other = place.options | {"cache_dir": tmp_path / "other"}
    kitfs.import_kit(layout, "there:v1", **other)
    copied = f"{place.registry.host}/copy/kit:v1"
    kitfs.push("there:v1", copied, **other)
    for table in place.tables:
        assert place.registry.blob("copy/kit", table) == place.registry.blob("team/kit", table)
    with kitfs.open(copied, **place.options | {"cache_dir": tmp_path / "third"}) as kit:
        assert kit.read("data/one.txt") == TEXTS["data/one.txt"]


def flip(path: Path, at: int) -> None:
    """Flip a bit of a file in place, as a failing disk does."""
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 4]))


def stored(options: dict[str, Any], digest: str) -> list[Path]:
    """Wait until a layer or its decoded form is verified in a store, and return the files with verified bytes."""
    found: list[Path] = []

    def look() -> bool:
        found[:] = Path(options["cache_dir"]).glob(f"[bd]*/sha256/??/{digest.partition(':')[2]}/sealed")
        return bool(found)

    wait_until(look, "the layer was not verified")
    return [path.with_name("rest") for path in found]


@pytest.mark.parametrize("tables", [True, False], ids=["tables", "no tables"])
def test_strict_reads_never_return_what_has_changed_on_the_disk(place: Place, tables: bool) -> None:
    """A byte that changes in the store is fetched again, with a chunk table and without."""
    if not tables:
        place.registry.fail("|".join(place.tables), Status(404), method="GET")
    options = place.options | {"verify": "strict"}
    with kitfs.open(place.reference, **options) as kit:
        assert kit.read("w.bin") == WEIGHTS
        for seed in range(3):
            for path in stored(options, place.layers["w.bin"]):
                flip(path, random.Random(seed).randrange(path.stat().st_size))
            assert kit.read("w.bin") == WEIGHTS
        kept = stored(options, place.layers["w.bin"])
    for path in kept:
        flip(path, 1000)
    with kitfs.open(place.reference, **options) as kit:
        assert kit.read("w.bin") == WEIGHTS


def test_a_strict_read_waits_for_the_digest_of_a_layer_without_a_table(place: Place) -> None:
    """A flipped byte anywhere in the layer makes the first read of the layer fail."""
    place.registry.fail("|".join(place.tables), Status(404), method="GET")
    blob = place.registry.blob("team/kit", place.layers["w.bin"])
    assert blob is not None
    place.registry.fail(place.layers["w.bin"], Lie(len(blob) - 700), method="GET")
    with kitfs.open(place.reference, verify="strict", **place.options) as kit:
        with pytest.raises((errors.IntegrityError, errors.LayerError)):
            kit.read("w.bin", 0, 10)
        assert kit.read("data/one.txt", 0, 3) == b"one"


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_compressed_kit_is_as_lazy_as_a_tar(tmp_path: Path, compression: str) -> None:
    """A cold read of 4 KiB in the middle of a layer moves a few MiB of it. When all is read, the layer is verified."""
    content = random.Random(6).randbytes(9 << 20)
    at = 5 << 20
    tree = write_model(tmp_path / "tree", content)
    options: dict[str, Any] = {"config": tmp_path / "home"}
    with FakeRegistry() as registry:
        reference = f"{registry.host}/team/kit:v1"
        method = "gzip-fastest" if compression == "gzip" else compression
        kitfs.pack(tree, reference, push=True, compression=method, cache_dir=tmp_path / "packer", **options)
        (layer,) = json.loads(registry.manifest("team/kit", "v1")[0])["layers"]
        with kitfs.open(reference, cache_dir=tmp_path / "fresh", **options) as kit, kit.open("w.bin") as file:
            file.seek(at)
            assert file.read(4096) == content[at : at + 4096]
            assert 0 < registry.moved(layer["digest"]) < 6 << 20
            assert kit.read("w.bin") == content
            wait_until(lambda: kit.layers[0].state == "verified", "the layer was not verified")
            assert registry.moved(layer["digest"]) <= layer["size"] + (1 << 20)


def test_points_that_verify_nothing_are_not_used(tmp_path: Path) -> None:
    """The restart points in a chunk table have wrong windows and no digests. The layer's own bytes are returned."""
    chosen = random.Random(7)
    content = b"".join(chosen.choices([chosen.randbytes(9) for _ in range(5000)], k=1_000_000))
    tree = write_model(tmp_path / "tree", content)
    options: dict[str, Any] = {"config": tmp_path / "home"}
    with FakeRegistry() as registry:
        reference = f"{registry.host}/team/kit:v1"
        kitfs.pack(tree, reference, push=True, compression="gzip", cache_dir=tmp_path / "packer", **options)
        manifest = json.loads(registry.manifest("team/kit", "v1")[0])
        annotations = manifest["layers"][0]["annotations"]
        right = json.loads(annotations[ANNOTATION])
        table = registry.blob("team/kit", right["digest"])
        assert table is not None
        lie = with_wrong_points(table, right["headSize"])
        registry.put_blob("team/kit", lie.data)
        annotations[ANNOTATION] = annotation_of(named(lie))
        registry.put_manifest("team/kit", json.dumps(manifest).encode(), tag="v1")
        with kitfs.open(reference, cache_dir=tmp_path / "fresh", **options) as kit, kit.open("w.bin") as file:
            for place in range(len(content) - 4096, 0, -1 << 20):
                file.seek(place)
                assert file.read(4096) == content[place : place + 4096]


def with_wrong_points(table: bytes, head_size: int) -> BuiltTable:
    """Return the table with restart points that have no digests, and whose windows are zeros."""
    head = TableHead(table[:head_size])

    def section(name: str, start: int = 0, length: int | None = None) -> bytes:
        place = head.sections[name]
        return table[place.offset + start :][: place.length if length is None else length]

    right = RestartPoints(section(POINTS), lambda start, length: section(WINDOWS, start, length))
    window = zstandard.compress(bytes(32 << 10))
    found = {point.out: point for point in map(right.before, range(0, right.size, right.span))}.values()
    wrong = [point if point.window is None else point._replace(window=window) for point in found]
    assert len(wrong) > 1
    points, windows = restart_points(
        "gzip", wrong, size=right.size, blob_size=right.blob_size, span=right.span
    ).apart()  # fmt: skip
    digests = table[head.digests : head.digests + head.chunks * DIGEST]
    sections = {ENTRIES: section(ENTRIES), POINTS: points, WINDOWS: windows}
    return build(head.layer, head.size, digests, sections)
