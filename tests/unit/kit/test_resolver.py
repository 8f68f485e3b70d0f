"""A resolver opens kits from registries and from the store. It applies filters and finds parents."""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import os
import random
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kitfs.content import Origin, Source
from kitfs.errors import (
    IntegrityError,
    LayerLimit,
    ManifestError,
    NotFound,
    RateLimited,
    Unauthorized,
    Unavailable,
    UsageError,
    WouldBlock,
)
from kitfs.kit.kit import Kit
from kitfs.kit.layer import Layer
from kitfs.kit.resolver import Resolver
from kitfs.layers import index_file
from kitfs.layers.access import Closed
from kitfs.layers.index import LayerIndex, Member
from kitfs.layers.names import SkipReason
from kitfs.modelkit.filters import Filter
from kitfs.modelkit.index import KIT_INDEX
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest, LayoutReference, Reference
from kitfs.registry.layout import open_layout
from kitfs.registry.options import MAX_TAG_AGE
from kitfs.store import members
from kitfs.store.store import Store
from tests import kits

LOG = logging.getLogger("kitfs.test")


class Registry:
    """A fake registry whose repositories are OCI layouts on disk.

    A request for a manifest waits until the event ``speaks`` is set. If ``failure`` is set, requests raise it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.failure: Exception | None = None
        self.speaks = threading.Event()
        self.speaks.set()
        self.asked: list[str] = []

    def put(self, name: str, kit: kits.Kit) -> Reference:
        kits.write_layout(kit, self.root / name.replace("/", "_"), "v1")
        return Reference.parse(f"{name}:v1")

    def origin_of(self, reference: Reference | LayoutReference) -> Origin:
        assert isinstance(reference, Reference)
        return Repository(self, open_layout(LayoutReference("oci", str(self.root / reference.name.replace("/", "_")))))


class Repository:
    def __init__(self, registry: Registry, layout: Origin) -> None:
        self._registry = registry
        self._layout = layout

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]:
        self._registry.asked.append(f"manifest {identifier[:12]}")
        assert self._registry.speaks.wait(60)
        if self._registry.failure is not None:
            raise self._registry.failure
        return self._layout.manifest(identifier)

    def blob(self, descriptor: Descriptor) -> Source | None:
        return self._layout.blob(descriptor)

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes:
        self._registry.asked.append("config")
        return self._layout.blob_bytes(descriptor, limit)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


def resolver(
    registry: Registry, store: Store, now: float = 1000.0, patience: float = 60.0, max_tag_age: float = MAX_TAG_AGE
) -> Resolver:
    return Resolver(store, registry.origin_of, log=LOG, clock=lambda: now, patience=patience, max_tag_age=max_tag_age)


def paths(kit: Kit) -> Sequence[str | None]:
    return [layer.path for layer in kit.layers]


def model(path: str, data: bytes = b"weights") -> kits.Part:
    return kits.part("model", path, data, format="raw")


def test_opening_asks_for_manifest_and_config_only(registry: Registry, store: Store) -> None:
    """The first opening sends two requests. The second opening is by digest and sends no request."""
    ref = registry.put("r.io/a", kits.build([model("m/w.bin")]))
    kit = resolver(registry, store).open(ref)
    assert registry.asked == ["manifest v1", "config"]
    assert paths(kit) == ["m/w.bin"]
    assert kit.layers[0].state() == "absent"
    registry.failure = AssertionError("asked")
    by_digest = resolver(registry, store).open(Reference.parse(f"r.io/a@{kit.digest}"))
    assert by_digest.kitfile_bytes == kit.kitfile_bytes


@pytest.mark.parametrize("failure", [Unavailable("away"), RateLimited("too many")])
def test_tag_means_its_last_digest_when_the_registry_is_away(
    registry: Registry, store: Store, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    """If the registry is unavailable, the last known digest is used. One warning states its age."""
    ref = registry.put("r.io/a", kits.build([model("w.bin")]))
    digest = resolver(registry, store, 1000.0).open(ref).digest
    registry.failure = failure
    assert resolver(registry, store, 1000.0 + 3 * 3600).open(ref).digest == digest
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "3 h ago" in warnings[0]


@pytest.mark.parametrize("age", [-1.0, 0.0, 1.0])
def test_a_digest_of_a_tag_that_is_too_old_is_not_used(registry: Registry, store: Store, age: float) -> None:
    """If the last known digest is older than ``max_tag_age``, the error of the registry is raised. It names the option.

    When the registry responds again, the digest can be used for the same time again.
    """
    ref = registry.put("r.io/a", kits.build([model("w.bin")]))
    digest = resolver(registry, store, 1000.0).open(ref).digest
    registry.failure = Unavailable("r.io is away")
    late = resolver(registry, store, 1000.0 + 7 * 86_400 + age, max_tag_age=7 * 86_400.0)
    if age <= 0:
        assert late.open(ref).digest == digest
        return
    with pytest.raises(Unavailable, match=r"r.io is away; .* 7 d old, which --max-tag-age forbids"):
        late.open(ref)
    assert late.open(Reference.parse(f"r.io/a@{digest}")).digest == digest
    registry.failure = None
    assert late.open(ref).digest == digest
    registry.failure = Unavailable("r.io is away")
    assert late.open(ref).digest == digest


def test_a_silent_registry_is_not_waited_for_where_the_tag_is_known(
    registry: Registry, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """If there is no response within ``patience`` seconds, the last known digest of the tag is used, with a warning.

    If no digest of the tag is known, the resolver waits longer.
    """
    ref = registry.put("r.io/a", kits.build([model("w.bin")]))
    digest = resolver(registry, store).open(ref).digest
    other = registry.put("r.io/b", kits.build([model("v.bin")]))
    registry.speaks.clear()
    assert resolver(registry, store, patience=0.01).open(ref).digest == digest
    assert [r.getMessage().endswith("r.io has not answered within 0.01 s") for r in caplog.records] == [True]
    timer = threading.Timer(0.5, registry.speaks.set)
    timer.start()
    assert paths(resolver(registry, store, patience=0.01).open(other)) == ["v.bin"]
    timer.join()


def test_a_known_tag_that_is_refused_in_time_is_refused(registry: Registry, store: Store) -> None:
    """If the registry responds within ``patience`` seconds, the response is used, even if it is an error."""
    ref = registry.put("r.io/a", kits.build([model("w.bin")]))
    resolver(registry, store).open(ref)
    registry.put("r.io/a", kits.build([model("v.bin")]))
    assert paths(resolver(registry, store).open(ref)) == ["v.bin"]
    registry.failure = TimeoutError("a bug")
    with pytest.raises(TimeoutError, match="a bug"):
        resolver(registry, store).open(ref)


@pytest.mark.parametrize("failure", [Unauthorized("401", status=401), NotFound("404")])
def test_refusals_are_never_answered_from_memory(registry: Registry, store: Store, failure: Exception) -> None:
    """After a 401, 403 or 404, the last known digest is not used."""
    ref = registry.put("r.io/a", kits.build([model("w.bin")]))
    resolver(registry, store).open(ref)
    registry.failure = failure
    with pytest.raises(type(failure)):
        resolver(registry, store).open(ref)


def test_unknown_tag_of_a_registry_that_is_away(registry: Registry, store: Store) -> None:
    """If no digest of the tag is known, the registry's error is raised."""
    ref = registry.put("r.io/a", kits.build([model("w.bin")]))
    registry.failure = Unavailable("away")
    with pytest.raises(Unavailable, match="away"):
        resolver(registry, store).open(ref)


def test_parents_come_first_and_give_their_model(registry: Registry, store: Store) -> None:
    """A kit shows the model and the model parts of its parent. It does not show the parent's Kitfile and datasets."""
    parent = [
        model("base.bin"),
        kits.part("modelpart", "tok.json", b"t", format="raw"),
        kits.part("dataset", "data.csv", b"d", format="raw"),
    ]
    registry.put("r.io/parent", kits.build(parent))
    ref = registry.put(
        "r.io/child", kits.build([kits.part("docs", "README.md", b"r", format="raw")], parent="r.io/parent:v1")
    )
    kit = resolver(registry, store).open(ref)
    assert paths(kit) == ["base.bin", "tok.json", "README.md"]
    assert kit.kitfile_bytes is not None
    assert b"r.io/parent:v1" in kit.kitfile_bytes


@pytest.mark.parametrize(
    ("filters", "shown", "kitfile"),
    [
        (["model"], ["base.bin"], False),
        (["docs"], ["README.md"], False),
        (["kitfile"], [], True),
        (["kitfile,docs", "model:base"], ["README.md"], True),
        (["model:base.bin"], ["base.bin"], False),
    ],
)
def test_filters(registry: Registry, store: Store, filters: list[str], shown: list[str], kitfile: bool) -> None:
    """Filters select entries by type, name and path. They also apply to the model of a parent."""
    registry.put("r.io/parent", kits.build([model("base.bin")]))
    ref = registry.put(
        "r.io/child", kits.build([kits.part("docs", "README.md", b"r", format="raw")], parent="r.io/parent:v1")
    )
    kit = resolver(registry, store).open(ref, filters=[Filter.parse(f) for f in filters])
    assert paths(kit) == shown
    assert (kit.kitfile_bytes is not None) == kitfile


def test_cycles_and_long_chains_of_parents(registry: Registry, store: Store) -> None:
    """A cycle of parents, and a chain that is too long, raise an error of one line.

    For a cycle, the line lists the parents.
    """
    registry.put("r.io/a", kits.build([], parent="r.io/b:v1"))
    ref = registry.put("r.io/b", kits.build([], parent="r.io/a:v1"))
    with pytest.raises(ManifestError, match=r"found cycle in modelkit references: \[r.io/b:v1=>r.io/a:v1=>r.io/b:v1\]"):
        resolver(registry, store).open(ref)
    for i in range(12):
        ref = registry.put(f"r.io/c{i}", kits.build([], parent=f"r.io/c{i - 1}:v1" if i else ""))
    with pytest.raises(ManifestError, match="reached maximum number of model references"):
        resolver(registry, store).open(ref)


def test_kit_that_was_pulled_here_needs_nobody(registry: Registry, store: Store) -> None:
    """A tag in the store is opened without a request, unless ``remote`` is set."""
    built = kits.build([model("w.bin", b"here")])
    manifest = json.loads(built.manifest)
    for data in (built.manifest, *built.blobs.values()):
        assert isinstance(data, bytes)
        store.put(Digest.of(data), data)
    store.refs.set("localhost/mine", "v1", {"digest": built.digest})
    kit = Resolver(store, _nobody, log=LOG).open(Reference.parse("mine:v1"))
    index = kit.layers[0].index()
    assert kit.layers[0].pread(index.members["w.bin"], 0, 99) == b"here"
    assert kit.layers[0].state() == "verified"
    assert kit.digest == built.digest
    assert len(manifest["layers"]) == len(kit.layers)
    with pytest.raises(NotFound, match="this registry has no kits"):
        Resolver(store, _nobody, log=LOG).open(Reference.parse("mine:v1"), remote=True)


@pytest.mark.parametrize("lie", [3, 5000])
def test_metadata_that_lies_about_a_size(registry: Registry, store: Store, lie: int) -> None:
    """If an annotation declares a wrong size for a compressed file, reading the file to its end raises an error."""
    built = kits.build([kits.part("model", "w.bin", b"0123456789" * 100, format="raw", compression="gzip")])
    manifest = json.loads(built.manifest)
    annotations = manifest["layers"][0]["annotations"]
    key = "org.cncf.model.file.metadata+json"
    annotations[key] = json.dumps(json.loads(annotations[key]) | {"size": lie})
    kit = resolver(registry, store).open(
        registry.put("r.io/a", dataclasses.replace(built, manifest=json.dumps(manifest).encode()))
    )
    layer = kit.layers[0]
    member = layer.index().members["w.bin"]
    assert member.size == lie
    with pytest.raises(IntegrityError, match=r"longer than the 3 bytes|ends before its file"):
        layer.pread(member, 0, lie)


def test_raw_layer_without_a_path_is_left_out(registry: Registry, store: Store) -> None:
    """The kit lists the layer as left out. Its other layers are shown."""
    built = kits.build([model("w.bin")], vintage="0.4")
    manifest = json.loads(built.manifest)
    config = json.dumps({"manifestVersion": "1.0.0", "package": {}}).encode()
    manifest["config"] |= {"digest": kits.sha256(config), "size": len(config)}
    bare = kits.Kit(json.dumps(manifest).encode(), config, {kits.sha256(config): config, **built.blobs}, built.layers)
    layer = resolver(registry, store).open(registry.put("r.io/a", bare)).layers[0]
    assert layer.path is None
    assert [len(layer.index().members), len(layer.index().skipped)] == [0, 1]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/abs/w.bin", SkipReason.ABSOLUTE_PATH),
        ("../w.bin", SkipReason.LEAVES_ROOT),
        (".", SkipReason.REPLACES_ROOT),
        ("", SkipReason.UNNAMED_FILE),
    ],
)
def test_raw_layer_whose_path_cannot_be_is_left_out(
    registry: Registry, store: Store, path: str, reason: SkipReason
) -> None:
    """The reason says what is wrong with the path."""
    layer = resolver(registry, store).open(registry.put("r.io/a", kits.build([model(path)]))).layers[0]
    assert [(len(layer.index().members), s.reason) for s in layer.index().skipped] == [(0, reason)]


WEIGHTS = kits.kit_tar({"m/w.bin": b"".join(random.Random(i).randbytes(3) + b"\x3c" for i in range(100_000))})


@pytest.mark.parametrize(
    ("compression", "blob", "first_entry_agrees"),
    [
        ("gzip", None, True),
        ("zstd", None, True),
        ("gzip", kits.gzip_members(WEIGHTS, 1)[:10] + bytes([0xFF]) * 1000, False),
        ("zstd", b"\x28\xb5\x2f\xfd" + bytes([0xFF]) * 1000, False),
        ("gzip", gzip.compress(b"", mtime=0), False),
        ("zstd", b"", False),
    ],
    ids=["gzip", "zstd", "damaged gzip", "damaged zstd", "empty gzip", "no zstd"],
)
def test_a_layer_whose_head_says_nothing_is_not_taken_at_its_word(
    registry: Registry, store: Store, compression: kits.Compression, blob: bytes | None, first_entry_agrees: bool
) -> None:
    """If the first entry of a layer cannot be read, ``first_entry_agrees`` returns False.

    The weights in this test are larger than a zstd block.
    """
    part = kits.part("model", "m/w.bin", WEIGHTS, compression=compression, blob=blob)
    layer = resolver(registry, store).open(registry.put("r.io/a", kits.build([part]))).layers[0]
    assert layer.first_entry_agrees() == first_entry_agrees


@pytest.mark.parametrize("name", ["d/c", "../c"])
def test_an_index_at_hand_is_refused_where_a_fresh_one_would_be(registry: Registry, store: Store, name: str) -> None:
    """A stored index is refused if it has more entries than this mount permits, even if another mount has used it."""
    ref = registry.put(
        "r.io/a", kits.build([kits.part("dataset", "d", kits.kit_tar({"d/a": b"", "d/b": b"", name: b""}))])
    )

    def indexed(limit: int) -> int:
        layer = Resolver(store, registry.origin_of, log=LOG, max_entries=limit).open(ref).layers[0]
        index = layer.index()
        return len(index.members) + len(index.skipped)

    count = indexed(100)
    assert indexed(count) == count
    with pytest.raises(LayerLimit, match=rf"^layer sha256:\w+: more than {count - 1} entries; .*--max-entries$"):
        indexed(count - 1)


BIG = kits.kit_tar(
    {"d/a": b"1", "d/b": random.Random(1).randbytes(1 << 20)}
)  # larger than the bytes that reading the headers fetches


def swapped(layer: Layer) -> bytes:
    """Return the index of a layer with the files d/a and d/b. The names of the two files are exchanged."""
    data = layer.index().data
    sections = {name: bytes(memoryview(data)[where]) for name, where in index_file.unpack(data).items()}
    assert sections["names"] == b"dab"
    return index_file.pack({**sections, "names": b"dba"})


def sealed(layer: Layer) -> None:
    """Fetch and verify a whole layer."""
    layer.content().fill()
    layer.content().verify()


def wait_for_state(layer: Layer, state: str) -> None:
    """Wait until the store has compared the index of a verified layer with the bytes of the layer."""
    deadline = time.monotonic() + 30
    while layer.state() != state:
        assert time.monotonic() < deadline, layer.state()
        time.sleep(0.01)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_an_index_of_proven_bytes_is_kept_for_every_mount(
    registry: Registry, store: Store, compression: kits.Compression
) -> None:
    """After the blob of a verified layer is removed, the index stays stored and can be read without waiting.

    The index that was created from unverified bytes is removed.
    """
    part = kits.part("dataset", "d", BIG, compression=compression)
    ref = registry.put("r.io/a", kits.build([part]))
    layer = resolver(registry, store).open(ref).layers[0]
    with pytest.raises(WouldBlock):
        layer.index(wait=False)
    made = layer.index()
    entry = layer.content().directory
    assert os.path.exists(os.path.join(entry, "members"))
    sealed(layer)
    wait_for_state(layer, "verified")
    assert not os.path.exists(os.path.join(entry, "members"))
    entry = layer.content().directory
    assert not os.path.exists(os.path.join(entry, "members"))
    layer.close()
    shutil.rmtree(entry)
    other = resolver(registry, store).open(ref).layers[0]
    assert other.index(wait=False) == made
    assert other.closed() == Closed()
    other.close()


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_verified_layer_is_indexed_without_waiting(
    registry: Registry, store: Store, compression: kits.Compression
) -> None:
    """A pull stores a layer without its index. The index is created from the stored layer, without a request."""
    ref = registry.put("r.io/a", kits.build([kits.part("dataset", "d", BIG, compression=compression)]))
    layer = resolver(registry, store).open(ref).layers[0]
    sealed(layer)
    layer.close()
    other = resolver(registry, store).open(ref).layers[0]
    assert sorted(other.index(wait=False).members) == ["d", "d/a", "d/b"]
    other.close()


def test_an_index_of_unproven_bytes_is_kept_with_their_entry(registry: Registry, store: Store) -> None:
    """The index of a partly fetched blob can be used by another mount. It is removed together with the blob."""
    ref = registry.put("r.io/a", kits.build([kits.part("dataset", "d", BIG)]))
    layer = resolver(registry, store).open(ref).layers[0]
    made = layer.index()
    assert layer.state() == "partial"
    assert resolver(registry, store).open(ref).layers[0].index(wait=False) == made
    assert not os.path.exists(os.path.join(store.root, "members"))
    layer.content().drop()
    with pytest.raises(WouldBlock):
        resolver(registry, store).open(ref).layers[0].index(wait=False)


def test_an_index_of_unproven_bytes_is_compared_with_the_verified_ones(registry: Registry, store: Store) -> None:
    """If the index of an unverified layer was forged, all reads fail after the layer is verified.

    The next opening uses the right index.
    """
    ref = registry.put("r.io/a", kits.build([kits.part("dataset", "d", BIG)]))
    first = resolver(registry, store).open(ref).layers[0]
    forged = swapped(first)
    assert members.keep(store.root, first.digest, first.content().directory, LayerIndex(forged), proven=False)
    layer = resolver(registry, store).open(ref).layers[0]
    assert layer.index().data == forged
    sealed(layer)
    wait_for_state(layer, "wrong")
    assert store.counters.get("integrity_failures") == 1
    for ask in (layer.index, lambda: layer.pread(Member("d/a", "file", 0o644, 1), 0, 1)):
        with pytest.raises(IntegrityError, match="contain other files"):
            ask()
    again = resolver(registry, store).open(ref).layers[0]
    assert again.pread(again.index(wait=False).members["d/a"], 0, 9) == b"1"
    assert again.state() == "verified"


@pytest.mark.parametrize("proven", [True, False])
def test_a_damaged_index_is_made_again(registry: Registry, store: Store, proven: bool) -> None:
    """After a power loss, the file of an index may be truncated or contain zeros."""
    data = kits.kit_tar({"d/a": b"1", "../c": b"", "d/b": bytes(1 << 20)})
    ref = registry.put("r.io/a", kits.build([kits.part("dataset", "d", data)]))
    layer = resolver(registry, store).open(ref).layers[0]
    if proven:
        sealed(layer)
    made = layer.index()
    kept = Path(store.root, "members/sha256", layer.digest.hex[:2], layer.digest.hex)
    path = kept if proven else Path(layer.content().directory, "members")
    assert path.read_bytes() == made.data
    for damaged in (bytes(len(made.data)), bytes(made.data[:100]), b""):
        path.write_bytes(damaged)
        other = resolver(registry, store).open(ref).layers[0]
        assert other.index() == made
        assert {s.reason for s in other.index().skipped} == {SkipReason.LEAVES_ROOT}


def _nobody(_: Reference | LayoutReference) -> Origin:
    raise NotFound("this registry has no kits")


# -- indexes


def kit_of(text: str) -> kits.Kit:
    return kits.build([kits.part("model", "m.bin", kits.kit_tar({"m.bin": text.encode()}))])


def listing(*made: kits.Kit) -> bytes:
    """Return a ModelKit index of the given kits. The kits have the labels q=0, q=1 and so on."""
    rows = [
        {"mediaType": kits.MANIFEST, "digest": k.digest, "size": len(k.manifest), "modelMetadata": {"q": str(i)}}
        for i, k in enumerate(made)
    ]
    return json.dumps(
        {"schemaVersion": 2, "mediaType": kits.INDEX, "artifactType": KIT_INDEX, "manifests": rows}
    ).encode()


def put_index(registry: Registry, name: str, *made: kits.Kit) -> Digest:
    """Store a ModelKit index and its kits in the registry as ``name:v1``. Return the digest of the index."""
    data = listing(*made)
    whole = {digest: content for k in made for digest, content in {**k.blobs, k.digest: k.manifest}.items()}
    kits.write_layout(kits.Kit(data, b"", whole), registry.root / name.replace("/", "_"), "v1")
    return Digest.of(data)


def test_labels_choose_a_kit_of_an_index(registry: Registry, store: Store) -> None:
    """Labels select a kit in an index, whether the index is named by tag or by digest.

    The opened kit keeps the reference of the index. Without labels, the error lists the kits.
    """
    digest = put_index(registry, "r.io/a", kit_of("0"), kit_of("1"))
    tag = Reference.parse("r.io/a:v1")
    opens = resolver(registry, store)
    for named in (tag, dataclasses.replace(tag, tag=None, digest=digest)):
        kit = opens.open(named, labels={"q": "1"})
        assert (kit.digest, kit.reference) == (kit_of("1").digest, named)
        assert kit.layers[0].pread(kit.layers[0].index().members["m.bin"], 0, 9) == b"1"
        kit.close()
        with pytest.raises(UsageError, match=r"is a ModelKit index; select one of its ModelKits with --label \(-l\): "):
            opens.open(named)
    with pytest.raises(UsageError, match="no ModelKit in the index has q=2"):
        opens.open(tag, labels={"q": "2"})


def test_an_index_of_the_store_needs_no_registry_for_itself(registry: Registry, store: Store) -> None:
    """If the index is in the store and its kit is not, only the kit is requested from the registry.

    If a kit and an index have the same tag, labels select a kit of the index. Without labels, the kit is opened.
    """
    digest = put_index(registry, "r.io/a", kit_of("0"), kit_of("1"))
    store.put(digest, listing(kit_of("0"), kit_of("1")))
    store.indexes.set("r.io/a", "mine", {"digest": str(digest)})
    named = Reference.parse("r.io/a:mine")
    opens = resolver(registry, store)
    assert opens.open(named, labels={"q": "0"}).digest == kit_of("0").digest
    assert registry.asked == [f"manifest {kit_of('0').digest[:12]}", "config"]
    with pytest.raises(UsageError, match="is a ModelKit index"):
        opens.open(named)
    with pytest.raises(NotFound):
        opens.open(named, labels={"q": "0"}, remote=True)
    other = kit_of("other")
    for text, content in {**other.blobs, other.digest: other.manifest}.items():
        assert isinstance(content, bytes)
        store.put(Digest.parse(text), content)
    store.refs.set("r.io/a", "mine", {"digest": other.digest})
    assert opens.open(named).digest == other.digest
    assert opens.open(named, labels={"q": "1"}).digest == kit_of("1").digest


def test_an_index_that_was_seen_serves_offline(
    registry: Registry, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """If the registry is unavailable, the last known digest of the index's tag is used."""
    put_index(registry, "r.io/a", kit_of("0"), kit_of("1"))
    tag = Reference.parse("r.io/a:v1")
    resolver(registry, store).open(tag, labels={"q": "1"})
    registry.failure = Unavailable("no route")
    assert resolver(registry, store).open(tag, labels={"q": "1"}).digest == kit_of("1").digest
    with pytest.raises(Unavailable):
        resolver(registry, store).open(tag, labels={"q": "0"})


def test_labels_of_a_kit_are_ignored_and_told(
    registry: Registry, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    reference = registry.put("r.io/a", kit_of("0"))
    with caplog.at_level("WARNING", "kitfs.test"):
        assert resolver(registry, store).open(reference, labels={"q": "1"}).digest == kit_of("0").digest
    assert caplog.messages == ["labels are ignored: r.io/a:v1 is a ModelKit, not a ModelKit index"]


def test_a_layer_knows_whose_it_is(registry: Registry, store: Store) -> None:
    """``Layer.kit`` is the reference of the kit that contains the layer. For a parent's layer, it names the parent."""
    parent = registry.put("r.io/parent", kit_of("p"))
    child = registry.put(
        "r.io/child", kits.build([kits.part("code", "c", kits.kit_tar({"c": b""}))], parent=str(parent))
    )
    assert [layer.kit for layer in resolver(registry, store).open(child).layers] == [parent, child]
