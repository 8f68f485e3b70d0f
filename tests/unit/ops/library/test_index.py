"""ModelKit indexes are edited in the store, and pushed to and pulled from a registry, as in KitOps 1.17."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kitfs.errors import ManifestError, NotFound, UsageError
from kitfs.kit.options import WorkspaceOptions
from kitfs.kit.workspace import Workspace
from kitfs.modelkit.index import KIT_INDEX, annotation_edits, indented, label_edits
from kitfs.oci.manifest import IMAGE_INDEX, IMAGE_MANIFEST, Descriptor
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import Event, Sent, quiet
from kitfs.ops.library import index
from kitfs.ops.library.listing import of_store
from kitfs.ops.library.remove import remove as remove_kit
from kitfs.ops.library.tags import assign, find
from kitfs.registry.options import ClientOptions
from kitfs.registry.repository import Repository
from kitfs.store.store import Store
from tests import kits
from tests.fakes.registry import FakeRegistry

LOG = logging.getLogger("kitfs.test")
ALL = Reference.parse("test/model:all")


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """Return a workspace without credentials whose client waits at most ten seconds for a response."""
    options = WorkspaceOptions(
        cache_dir=str(tmp_path / "store"), kit_home=str(tmp_path / "kit"), client=ClientOptions(read_timeout=10.0)
    )
    with Workspace.open(options, log=LOG) as opened:
        yield opened


@pytest.fixture
def store(workspace: Workspace) -> Store:
    """Return the store of the workspace."""
    return workspace.store


def kit_of(text: str, vintage: kits.Vintage = "1.17") -> kits.Kit:
    return kits.build([kits.part("model", "m.bin", kits.kit_tar({"m.bin": text.encode()}))], vintage=vintage)


def keep(store: Store, text: str, reference: str, vintage: kits.Vintage = "1.17") -> Digest:
    """Store a kit under a name and return the digest of its manifest."""
    kit = kit_of(text, vintage)
    for digest, content in {**kit.blobs, kit.digest: kit.manifest}.items():
        assert isinstance(content, bytes)
        store.put(Digest.parse(digest), content)
    assign(store, Reference.parse(reference), Descriptor(IMAGE_MANIFEST, Digest.parse(kit.digest), len(kit.manifest)))
    return Digest.parse(kit.digest)


def of(repository: str, reference: str) -> Reference:
    return Reference.parse(f"{repository}:{reference}")


def test_create_add_remove_delete(store: Store, workspace: Workspace) -> None:
    """Adding and removing kits changes the list in the index. Deleting the index does not delete the kits."""
    q4, q8 = keep(store, "q4", "test/model:q4"), keep(store, "q8", "test/model:q8")
    index.create(store, ALL)
    index.add(workspace, ALL, Reference.parse("test/model:q4"))
    digest = index.add(workspace, ALL, Reference.parse("test/model:q8"))
    found = index.stored(store, ALL)
    assert found.digest == digest == Digest.of(found.data)
    assert [v.digest for v in found.value.variants] == [q4, q8]
    assert index.stored(store, replace(ALL, tag=None, digest=digest)) == found
    assert index.remove(store, ALL, Reference.parse("test/model:q4"))[0] == q4
    assert [v.digest for v in index.stored(store, ALL).value.variants] == [q8]
    assert index.delete(store, ALL).tags == ("all",)
    with pytest.raises(NotFound, match="could not find index test/model:all in local storage"):
        index.stored(store, ALL)
    assert {row.digest for row in of_store(store, report=quiet)} == {q4, q8}


def test_an_entry_is_kits(store: Store, workspace: Workspace) -> None:
    """The entry of a kit in an index has the bytes that kit writes.

    The entry contains the tag by which the kit was added, the total size of its layers, its artifact type, labels and
    annotations.
    """
    q4 = keep(store, "q4", "test/model:q4")
    index.create(store, ALL)
    labels = label_edits(["quantization=q4_0", 'gpuArchs:=["sm_80", "sm_90"]'])
    index.add(
        workspace,
        ALL,
        Reference.parse("test/model:q4"),
        labels=labels,
        annotations=annotation_edits(["org.example.tested=true"]),
    )
    size = len(kit_of("q4").manifest)
    assert index.stored(store, ALL).data.decode() == (
        f'{{"schemaVersion":2,"mediaType":"{IMAGE_INDEX}","artifactType":"{KIT_INDEX}","manifests":['
        f'{{"mediaType":"{IMAGE_MANIFEST}","digest":"{q4}","size":{size},"annotations":{{"ml.kitops.modelkit.original-tag":"q4",'
        f'"ml.kitops.modelkit.size":"2048","org.example.tested":"true"}},"artifactType":"application/vnd.kitops.modelkit.manifest.v1+json",'
        '"modelMetadata":{"gpuArchs":["sm_80","sm_90"],"quantization":"q4_0"}}]}'
    )


def test_kits_of_every_vintage_can_be_listed(store: Store, workspace: Workspace) -> None:
    """A kit whose manifest has no media type and no artifact type can be added to an index too."""
    index.create(store, ALL)
    for vintage in ("1.7", "modelpack"):
        keep(store, "x", f"test/model:{vintage}", vintage)
        index.add(workspace, ALL, Reference.parse(f"test/model:{vintage}"))
    first, second = json.loads(index.stored(store, ALL).data)["manifests"]
    assert (first["mediaType"], "artifactType" in first) == (IMAGE_MANIFEST, False)
    assert second["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"


def test_adding_again_merges(store: Store, workspace: Workspace) -> None:
    """If a kit is added again, only the given labels and annotations change.

    A label name that ends with "-" removes the label. Adding the kit by its digest does not change the recorded tag.
    """
    q4 = keep(store, "q4", "test/model:q4")
    named = Reference.parse("test/model:q4")
    index.create(store, ALL)
    index.add(workspace, ALL, named, labels=label_edits(["a=1", "b=2"]), annotations=annotation_edits(["x=1", "y=2"]))
    index.add(
        workspace,
        ALL,
        replace(named, tag=None, digest=q4),
        labels=label_edits(["b-", "c:=3"]),
        annotations=annotation_edits(["x-"]),
    )
    [variant] = index.stored(store, ALL).value.variants
    assert (variant.labels, variant.notes(), variant.tag) == ({"a": '"1"', "c": "3"}, {"y": "2"}, "q4")


def test_what_cannot_be_added(store: Store, workspace: Workspace) -> None:
    keep(store, "q4", "test/model:q4")
    q4 = Reference.parse("test/model:q4")
    with pytest.raises(NotFound, match=r"could not find index test/model:all in local storage; use kitfs index create"):
        index.add(workspace, ALL, q4)
    index.create(store, ALL)
    with pytest.raises(UsageError, match="index test/model:all already exists"):
        index.create(store, ALL)
    with pytest.raises(UsageError, match="other/model:q4 is not in the same repository as index test/model:all"):
        index.add(workspace, ALL, Reference.parse("other/model:q4"))
    with pytest.raises(NotFound, match="could not find ModelKit test/model:q5 in local storage; use --remote"):
        index.add(workspace, ALL, Reference.parse("test/model:q5"))
    with pytest.raises(NotFound, match="use --remote"):
        index.add(workspace, ALL, ALL)


def test_an_index_and_a_kit_may_have_one_name(store: Store, workspace: Workspace) -> None:
    """Operations on an index do not affect the kit with the same name.

    Operations on the kit do not affect the index.
    """
    keep(store, "q4", "test/model:q4")
    same = keep(store, "all", "test/model:all")
    index.create(store, ALL)
    index.add(workspace, ALL, Reference.parse("test/model:q4"))
    assert find(store, ALL) is not None
    with pytest.raises(UsageError, match="test/model:q4 is not a ModelKit index"):
        index.delete(store, Reference.parse("test/model:q4"))
    index.delete(store, ALL)
    assert store.has_sealed(same)
    index.create(store, ALL)
    remove_kit(store, ALL)
    assert index.stored(store, ALL).value.variants == ()
    assert find(store, ALL) is None


def test_a_kit_that_is_gone_is_still_listed(store: Store, workspace: Workspace) -> None:
    """A kit that was removed from the store remains in the index with its recorded size.

    Afterwards, the entry of the kit can only be removed by the digest.
    """
    q4 = keep(store, "q4", "test/model:q4")
    index.create(store, ALL)
    index.add(workspace, ALL, Reference.parse("test/model:q4"))
    remove_kit(store, Reference.parse("test/model:q4"))
    assert not store.has_sealed(q4)
    [variant] = index.stored(store, ALL).value.variants
    assert index.size_of(variant, store.get) == 2048
    with pytest.raises(NotFound, match="specify the entry by digest instead"):
        index.remove(store, ALL, Reference.parse("test/model:q4"))
    index.remove(store, ALL, Reference.parse(f"test/model@{q4}"))
    with pytest.raises(NotFound, match=f"index test/model:all does not contain {q4}"):
        index.remove(store, ALL, Reference.parse(f"test/model@{q4}"))


def test_equal_indexes_of_many_names(store: Store, workspace: Workspace) -> None:
    """If an index is deleted or changed under one of its names, the other names still refer to the old index.

    When the last name is deleted, the index is removed from the store.
    """
    keep(store, "q4", "other/model:q4")
    empty = index.create(store, of("test/model", "a"))
    assert index.create(store, of("test/model", "b")) == index.create(store, of("other/model", "all")) == empty
    assert index.delete(store, of("test/model", "a")) == ("localhost/test/model", empty, ("a",), False)
    index.add(workspace, of("other/model", "all"), Reference.parse("other/model:q4"))
    assert store.has_sealed(empty)
    assert index.delete(store, replace(ALL, tag=None, digest=empty)).whole
    assert not store.has_sealed(empty)
    assert [(row.name, row.tags, row.kits) for row in index.listed(store)] == [("localhost/other/model", ("all",), 1)]
    assert [gone.tags for gone in index.delete_all(store)] == [("all",)]
    assert index.listed(store) == []


def test_force_takes_every_tag(store: Store) -> None:
    index.create(store, of("test/model", "a"))
    index.create(store, of("test/model", "b"))
    assert index.delete(store, of("test/model", "b"), force=True).tags == ("a", "b")


def test_json_for_programs(store: Store, workspace: Workspace) -> None:
    """The JSON of an index has the bytes that kit writes. Numbers in labels are not reformatted."""
    q4 = keep(store, "q4", "test/model:q4")
    index.create(store, ALL)
    index.add(workspace, ALL, Reference.parse(f"test/model@{q4}"), labels=label_edits(["f:=1.50", "e=<"]))
    found = index.stored(store, ALL)
    told = index.as_json(found, ALL, [7]).decode()
    assert told == (
        f'{{"reference":"test/model:all","digest":"{found.digest}","modelKits":[{{"digest":"{q4}","size":7,'
        '"labels":{"e":"\\u003c","f":1.50},"annotations":{}}]}'
    )
    assert indented(told.encode()).startswith('{\n  "reference": "test/model:all",\n  "digest"')


# -- at a registry


def pushed(workspace: Workspace, name: str, told: list[Event] | None = None) -> tuple[Digest, Repository]:
    """Push an index. Return its digest and its repository at the registry."""
    source = Reference.parse(name)
    report = quiet if told is None else told.append
    return index.push(workspace, source, source, report=report), workspace.client.repository(source)


def test_push_brings_the_kits_first(fake: FakeRegistry, workspace: Workspace, store: Store) -> None:
    """A push sends the kits with their blobs, and then the index. A second push sends only the index.

    A pull returns the bytes of the pushed index.
    """
    name = f"{fake.host}/team/model"
    q4, q8 = keep(store, "q4", f"{name}:q4"), keep(store, "q8", f"{name}:q8")
    named = Reference.parse(f"{name}:all")
    index.create(store, named)
    for tag in ("q4", "q8"):
        index.add(workspace, named, Reference.parse(f"{name}:{tag}"), labels=label_edits([f"q={tag}"]))
    digest, target = pushed(workspace, f"{name}:all")
    assert [target.manifest(d)[0].digest for d in (q4, q8)] == [q4, q8]
    told: list[Event] = []
    assert pushed(workspace, f"{name}:all", told)[0] == digest
    assert [event.what for event in told if isinstance(event, Sent)] == ["index"]
    mine = index.stored(store, named)
    index.delete(store, named)
    assert index.pull(workspace, named) == digest
    assert index.stored(store, named) == mine == index.fetched(target, named)


def test_push_as_another_name(fake: FakeRegistry, workspace: Workspace, store: Store) -> None:
    """If an index is pushed to another repository, the kits of the index are pushed to that repository too."""
    q4 = keep(store, "q4", "test/model:q4")
    index.create(store, ALL)
    index.add(workspace, ALL, Reference.parse("test/model:q4"))
    there = Reference.parse(f"{fake.host}/elsewhere/model:x")
    digest = index.push(workspace, ALL, there, report=quiet)
    target = workspace.client.repository(there)
    assert (target.resolve("x").digest, target.resolve(q4).digest) == (digest, q4)


def test_push_without_a_kit(fake: FakeRegistry, workspace: Workspace, store: Store) -> None:
    """If neither the store nor the registry has a kit of the index, the index is not pushed."""
    name = f"{fake.host}/team/model"
    keep(store, "q4", f"{name}:q4")
    named = Reference.parse(f"{name}:all")
    index.create(store, named)
    index.add(workspace, named, Reference.parse(f"{name}:q4"))
    remove_kit(store, Reference.parse(f"{name}:q4"))
    with pytest.raises(
        NotFound, match=rf"{name} does not contain every ModelKit the index references: {name}:q4 is not there, and not"
    ):
        pushed(workspace, f"{name}:all")
    with pytest.raises(NotFound):
        workspace.client.repository(named).resolve("all")


def test_add_from_a_registry(fake: FakeRegistry, workspace: Workspace, store: Store) -> None:
    """A kit that only the registry has can be added to an index, and this index can be pushed."""
    kit = kit_of("q4")
    name = f"{fake.host}/team/model"
    kits.push(kit, fake.host, "team/model", "q4")
    named, q4 = Reference.parse(f"{name}:all"), Reference.parse(f"{name}:q4")
    index.create(store, named)
    index.add(workspace, named, q4, remote=True)
    digest, target = pushed(workspace, f"{name}:all")
    assert [v.digest for v in index.fetched(target, named).value.variants] == [kit.digest]
    with pytest.raises(ManifestError, match="this is an index of several manifests"):
        index.add(workspace, named, named, remote=True)
    with pytest.raises(ManifestError, match="artifact is not a ModelKit index"):
        index.pull(workspace, q4)
    assert digest == index.stored(store, named).digest
