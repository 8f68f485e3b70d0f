"""The verbs of the SDK return results or raise errors. The tests use a real registry."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kitfs
from kitfs import errors
from kitfs.ops.events import Event, Moved, Warned
from tests.fakes.huggingface import FakeHub, lfs
from tests.stores import rot
from tests.unit.sdk.conftest import MODEL, Place
from tests.unit.sdk.scripts import run


@pytest.fixture
def second(place: Place) -> str:
    """Return the reference of a second kit in the store. Its data differs from the kit of ``place``."""
    (place.tree / "data" / "train.csv").write_text("a,b\n9,9,9\n")
    reference = place.reference.replace(":v1", ":v2")
    kitfs.pack(place.tree, reference, **place.options)
    return reference


def test_pack_can_push_straight_to_the_registry(place: Place) -> None:
    """With push=True, no blob of the kit is stored. The tag must name a registry."""
    straight = place.reference.replace("example", "straight")
    digest = kitfs.pack(place.tree, straight, push=True, **place.fresh)
    assert kitfs.list(**place.fresh) == []
    with kitfs.open(straight, **place.fresh) as kit:
        assert kit.digest == digest
    with pytest.raises(errors.UsageError, match="registry"):
        kitfs.pack(place.tree, "local:v1", push=True, **place.fresh)


def test_pack_records_the_provenance_of_a_kit(place: Place, tmp_path: Path) -> None:
    """The provenance is signed by a key and written to a file. Signing needs provenance="sign"."""
    key = kitfs.generate_key_pair(tmp_path / "k", password="")[0]
    out = tmp_path / "provenance.json"
    recorded: dict[str, Any] = {"signing_key": key, "password": "", "attestation_output": out}
    kitfs.pack(place.tree, "made:v1", provenance="sign", **recorded, **place.fresh)
    assert json.loads(out.read_text())["buildDefinition"]["buildType"] == "urn:kitfs:pack:v1"
    with pytest.raises(errors.UsageError, match="sign"):
        kitfs.pack(place.tree, "made:v2", **recorded, **place.fresh)


def test_lineage_and_history_read_what_pack_and_approve_have_stored(place: Place, tmp_path: Path) -> None:
    """lineage labels facts by the trusted keys, and history compares the two kits of the store."""
    key, public, *_ = kitfs.generate_key_pair(tmp_path / "k", password="")
    local = {**place.fresh, "cache_dir": tmp_path / "local"}
    for tag, content in (("v1", "a"), ("v2", "bb")):
        (place.tree / "data" / "train.csv").write_text(content)
        kitfs.pack(place.tree, f"team/llama:{tag}", created=len(content), **local)
    kitfs.approve("team/llama:v2", private_key=key, password="", note="good", **local)
    found = kitfs.lineage("team/llama:v2", public_keys=public, **local)
    assert [(fact.label, fact.note) for fact in found.facts if fact.kind == "approval"] == [("signed", "good")]
    assert {fact.label for fact in found.facts if fact.question == "data"} == {"stated"}
    first, last = kitfs.history("team/llama", **local)
    assert (first.tags, first.change, last.digest) == (("v1",), None, found.digest)
    assert last.change is not None
    assert [file.path for file in last.change.files.changed] == ["data/train.csv"]
    assert kitfs.sbom("team/llama:v1", created=86_400, **local)["metadata"]["timestamp"] == "1970-01-02T00:00:00Z"
    with pytest.raises(errors.UsageError, match="without a tag"):
        kitfs.history("team/llama:v1", **local)


def test_init_returns_the_kitfile_that_it_writes(place: Place) -> None:
    (place.tree / "Kitfile").unlink()
    kitfile = kitfs.init(place.tree, name="made", author="Ada", write=False)
    assert not (place.tree / "Kitfile").exists()
    assert (kitfile.package.name, kitfile.package.authors) == ("made", ("Ada",))
    assert kitfs.init(place.tree, name="made", author="Ada") == kitfile
    assert (place.tree / "Kitfile").read_text() == kitfile.to_yaml()
    with pytest.raises(errors.UsageError, match="overwrite=True"):
        kitfs.init(place.tree)
    kitfs.init(place.tree, overwrite=True)


def test_import_kit_makes_a_kit_of_a_repository_of_a_hub(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function ``edit`` receives the generated Kitfile, and returns the Kitfile that is packed."""
    given: list[kitfs.Kitfile] = []

    def edit(kitfile: kitfs.Kitfile) -> kitfs.Kitfile:
        given.append(kitfile)
        return replace(kitfile, package=replace(kitfile.package, name="edited"))

    with FakeHub() as hub:
        hub.put("models", "team/net", {"README.md": b"# net\n", "config.json": b"{}", "model.safetensors": lfs(MODEL)})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        done = kitfs.import_kit("team/net", edit=edit, **place.fresh)
    assert done.references == ("team/net:latest",)
    assert [kitfile.package.name for kitfile in given] == ["net"]
    with kitfs.open("team/net", **place.fresh) as kit:
        assert (kit.digest, kit.kitfile.package.name) == (done.digest, "edited")
        assert kit.read("model.safetensors") == MODEL


def test_import_kit_takes_a_kit_of_a_layout_as_it_is(place: Place, tmp_path: Path) -> None:
    digest = kitfs.export(place.reference, tmp_path / "layout", **place.options)
    done = kitfs.import_kit(f"oci:{tmp_path / 'layout'}", "copy:a,b", **place.fresh)
    assert (done.digest, done.references) == (digest, ("copy:a", "copy:b"))


def test_list_shows_the_kits_of_the_store_and_of_a_repository(place: Place, second: str) -> None:
    (v1, v2) = sorted(kitfs.list(**place.options), key=lambda kit: kit.tags)
    repository = place.reference.rpartition(":")[0]
    assert (v1.repository, v1.tags, v1.name, v1.author) == (repository, ("v1",), "example", "Ada")
    assert v1.size > len(MODEL)
    assert v2.tags == ("v2",)
    assert kitfs.list(repository, **place.fresh) == [v1]
    assert kitfs.list(only="docs", **place.options) == []
    with pytest.raises(errors.UsageError, match="registry"):
        kitfs.list("local", **place.options)


def test_info_and_inspect_show_a_kit_of_the_store_or_of_its_registry(place: Place) -> None:
    assert kitfs.info(place.reference, **place.options).package.name == "example"
    with pytest.raises(errors.NotFound):
        kitfs.info(place.reference, **place.fresh)
    here, there = (
        kitfs.inspect(place.reference, **place.options),
        kitfs.inspect(place.reference, remote=True, **place.fresh),
    )
    assert here == there
    assert here.manifest["config"]["digest"].startswith("sha256:")
    assert here.kit_version == f"kitfs-{kitfs.__version__}"


def test_tag_gives_more_names_and_remove_takes_them_away(place: Place) -> None:
    digest = kitfs.tag(place.reference, "other:a,b", **place.options)
    assert {kit.digest for kit in kitfs.list(**place.options)} == {digest}
    (untagged,) = kitfs.remove("other:a", **place.options)
    assert (untagged.repository, untagged.tags, untagged.kit, untagged.digest) == ("other", ("a",), False, digest)
    (removed,) = kitfs.remove("other:b", **place.options)
    assert removed.kit
    with pytest.raises(errors.NotFound):
        kitfs.remove("other:b", **place.options)
    with pytest.raises(errors.UsageError):
        kitfs.remove(**place.options)
    assert len(kitfs.remove(all=True, force=True, **place.options)) == 1
    assert kitfs.list(**place.options) == []


def test_remove_goes_on_after_a_later_tag_that_does_not_exist(place: Place) -> None:
    """If a later tag does not exist, the other tags are removed, and an error is raised at the end.

    If the first tag does not exist, nothing is removed.
    """
    kitfs.tag(place.reference, "other:a,b,c", **place.options)
    with pytest.raises(errors.NotFound, match="other:x"):
        kitfs.remove("other:x,a", **place.options)
    with pytest.raises(errors.NotFound, match="other:x"):
        kitfs.remove("other:a,x,c", **place.options)
    assert [kit.tags for kit in kitfs.list(**place.options) if kit.repository == "other"] == [("b",)]


def test_remove_can_remove_from_the_registry(place: Place) -> None:
    (removed,) = kitfs.remove(place.reference, remote=True, force=True, **place.fresh)
    assert removed.kit
    with pytest.raises(errors.NotFound):
        kitfs.open(place.reference, **place.fresh)


def test_export_writes_a_layout_that_can_be_opened(place: Place, tmp_path: Path) -> None:
    """The target is a directory, given as a string or a path.

    The source is a kit in the store, a kit at its registry, or a layout.
    """
    digest = kitfs.export(place.reference, f"oci:{tmp_path / 'a'}:v1", **place.options)
    assert kitfs.export(place.reference, tmp_path / "b", **place.fresh) == digest
    assert kitfs.export(f"oci:{tmp_path / 'a'}:v1", f"oci-archive:{tmp_path / 'c.tar'}", **place.fresh) == digest
    for layout in (f"oci:{tmp_path / 'a'}:v1", f"oci:{tmp_path / 'b'}", f"oci-archive:{tmp_path / 'c.tar'}"):
        with kitfs.open(layout, **place.fresh) as kit:
            assert kit.digest == digest
    with pytest.raises(errors.UsageError, match="not an OCI layout"):
        kitfs.export(place.reference, "r.example.com/a:v1", **place.options)


def test_convert_makes_an_image_without_sending_layers(place: Place) -> None:
    image = place.reference.replace(":v1", ":image")
    done = kitfs.convert(place.reference, image, platforms=["linux/amd64", "linux/arm64"], **place.fresh)
    assert (done.reference, done.uploaded < 10_000) == (image, True)
    assert done.existed + done.mounted > len(MODEL)
    with pytest.raises(errors.UsageError, match="platforms"):
        kitfs.convert(place.reference, image, platforms=["amd64"], **place.fresh)


def test_diff_tells_what_changed(place: Place, second: str) -> None:
    found = kitfs.diff(place.reference, second, files=True, tensors=True, **place.options)
    assert not found.identical
    assert [layer.kind for layer in found.shared] == ["model"]
    assert (
        [layer.path for layer in found.only_first] == [layer.path for layer in found.only_second] == ["data/train.csv"]
    )
    assert found.files is not None
    assert [(file.path, file.what) for file in found.files.changed] == [("data/train.csv", ("size",))]
    assert (found.files.changed[0].before, found.files.changed[0].after) == (12, 10)
    assert found.tensors is not None
    assert found.tensors.changed == found.tensors.added == ()
    same = kitfs.diff(place.reference, f"remote://{place.reference}", files=True, **place.options)
    assert (same.identical, same.files, same.second.remote) == (True, None, True)


def test_an_index_chooses_a_kit_by_its_labels(place: Place, second: str) -> None:
    """An index is created, pushed and pulled. A label then selects one of its kits."""
    name = place.reference.replace(":v1", ":all")
    kitfs.index.create(name, **place.options)
    kitfs.index.add(name, place.reference, labels={"bits": 4, "kind": "old"}, **place.options)
    digest = kitfs.index.add(name, second, labels={"bits": 8}, annotations={"note": "new"}, **place.options)
    assert kitfs.index.push(name, **place.options) == digest
    info = kitfs.index.info(name, remote=True, **place.fresh)
    assert info == kitfs.index.info(name, **place.options)
    assert [(kit.reference, kit.labels, kit.annotations) for kit in info.kits] == [
        (place.reference, {"bits": 4, "kind": "old"}, {}),
        (second, {"bits": 8}, {"note": "new"}),
    ]
    with kitfs.open(name, labels={"bits": "8"}, **place.fresh) as kit:
        assert kit.digest == info.kits[1].digest
    assert kitfs.index.pull(name, **place.fresh) == digest
    assert [(row.tags, row.kits) for row in kitfs.index.list(**place.fresh)] == [(("all",), 2)]
    assert kitfs.index.inspect(name, **place.fresh)["manifests"][1]["digest"] == info.kits[1].digest


def test_an_index_loses_labels_kits_and_itself(place: Place) -> None:
    name = place.reference.replace(":v1", ":all")
    kitfs.index.create(name, **place.options)
    kitfs.index.add(name, place.reference, labels={"bits": 4, "kind": "old"}, **place.options)
    kitfs.index.add(name, place.reference, labels={"kind": None}, **place.options)
    assert kitfs.index.info(name, **place.options).kits[0].labels == {"bits": 4}
    kitfs.index.remove(name, place.reference, **place.options)
    assert kitfs.index.info(name, **place.options).kits == ()
    (deleted,) = kitfs.index.delete(name, **place.options)
    assert (deleted.tags, deleted.index) == (("all",), True)
    assert len(kitfs.list(**place.options)) == 1, "the kits of the index were removed"
    with pytest.raises(errors.NotFound):
        kitfs.index.info(name, **place.options)


def test_the_cache_is_measured_and_cleared(place: Place) -> None:
    with kitfs.open(place.reference, **place.fresh) as kit:
        kit.read("data/train.csv")
        assert kitfs.cache.clear(**place.fresh).in_use > 0
    assert kitfs.cache.info(**place.fresh).blobs > 0
    assert kitfs.cache.clear(**place.fresh).freed > 0
    assert kitfs.cache.info(**place.fresh) == kitfs.cache.CacheUsage(0, 0)


def test_the_store_is_read_back(place: Place) -> None:
    """Changed blobs are listed, and fetched again from the registry of a kit that needs them."""
    whole = kitfs.cache.verify(**place.options)
    assert (whole.blobs, whole.changed) == (6, ())
    layer = kitfs.inspect(place.reference, **place.options).manifest["layers"][0]["digest"]
    rot(place.options["cache_dir"], layer)
    seen: list[Event] = []
    done = kitfs.cache.verify(progress=seen.append, **place.options)
    (changed,) = done.changed
    assert (changed.digest, changed.form, changed.is_pinned) == (layer, "blobs", True)
    assert (changed.is_healed, changed.kits, changed.mounts) == (True, (place.reference,), ())
    assert (done.blobs, done.size) == (whole.blobs, whole.size)
    assert sum(event.size for event in seen if isinstance(event, Moved) and event.name == "store") == whole.size
    assert [layer in event.text for event in seen if isinstance(event, Warned)] == [True]
    assert kitfs.cache.verify(**place.options) == whole


def test_a_pinned_kit_stays_in_the_cache(place: Place) -> None:
    """A pinned kit is not cleared or collected until it is unpinned."""
    digest = kitfs.cache.pin(place.reference, **place.fresh)
    with kitfs.open(place.reference, **place.fresh) as kit:
        assert kit.digest == digest
        kit.read("data/train.csv")
    assert kitfs.cache.pins(**place.fresh) == [place.reference]
    assert kitfs.cache.info(**place.fresh) == kitfs.cache.CacheUsage(0, 0)
    assert kitfs.cache.clear(**place.fresh).freed == 0
    assert kitfs.cache.gc(**place.fresh).blobs == 0
    kitfs.cache.unpin(place.reference, **place.fresh)
    with pytest.raises(errors.NotFound, match="is not pinned"):
        kitfs.cache.unpin(place.reference, **place.fresh)
    assert kitfs.cache.clear(**place.fresh).freed > 0


def test_an_export_of_changed_bytes_fails(place: Place, tmp_path: Path) -> None:
    """The export writes no layout. The changed blob is removed from the store."""
    layer = kitfs.inspect(place.reference, **place.options).manifest["layers"][0]["digest"]
    rot(place.options["cache_dir"], layer)
    with pytest.raises(errors.IntegrityError, match="has changed on the disk"):
        kitfs.export(place.reference, tmp_path / "layout", **place.options)
    assert not (tmp_path / "layout").exists()
    assert kitfs.cache.verify(**place.options).changed == ()
    kitfs.export(place.reference, tmp_path / "layout", remote=True, **place.options)
    assert (tmp_path / "layout/index.json").exists()


def test_serve_runs_a_registry_for_the_time_of_a_block(place: Place, tmp_path: Path) -> None:
    """While the registry runs, its store can be garbage-collected.

    At the end of the ``with`` block, the registry stops.
    """
    with kitfs.serve(tmp_path / "registry") as registry:
        copy = f"{registry.address}/copy:v1"
        digest = kitfs.push(place.reference, copy, **place.options)
        with kitfs.open(copy, **place.fresh) as kit:
            assert kit.digest == digest
        kitfs.remove(copy, remote=True, force=True, **place.fresh)
        assert kitfs.collect_garbage(registry.root).young_blobs > 0
        assert kitfs.collect_garbage(registry.root, min_age=0).blobs > 0
    assert not os.path.exists(f"/proc/{registry.pid}")
    with pytest.raises(errors.UsageError, match="not a store"):
        kitfs.collect_garbage(tmp_path / "nothing")


def test_serve_raises_the_error_of_a_registry_that_cannot_start(tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="tls-key"), kitfs.serve(tmp_path / "r", tls_cert=tmp_path / "cert"):
        pass


def test_a_served_registry_ends_with_a_program_that_is_killed(tmp_path: Path) -> None:
    code = """
import os, signal, kitfs
with kitfs.serve() as registry:
    print(registry.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = run(tmp_path, code)
    process = Path(f"/proc/{ended.out.strip()}")
    for _ in range(6000):
        if not process.exists() or process.joinpath("stat").read_text().split()[2] == "Z":
            return
        subprocess.run(["sleep", "0.01"], check=True)
    raise AssertionError("the registry still runs")


def test_login_and_logout_refuse_what_is_not_a_registry(place: Place) -> None:
    """The registry in this test needs no login. login still stores credentials, and logout erases them."""
    host = place.reference.partition("/")[0]
    where = kitfs.login(host, "secret", username="ada", **place.fresh)
    assert where.startswith(str(place.fresh["config"]))
    assert kitfs.logout(host, **place.fresh)
    assert not kitfs.logout(host, **place.fresh)
    with pytest.raises(errors.UsageError, match="not a registry address"):
        kitfs.login("https://r.example.com/", "secret", **place.fresh)
    with pytest.raises(errors.UsageError, match="password is empty"):
        kitfs.login(host, "", **place.fresh)


def test_a_warning_of_a_verb_goes_to_the_log(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kitfs"):
        kitfs.pull(place.reference, labels={"bits": "4"}, **place.fresh)
    assert "labels are ignored" in caplog.text


def test_without_mounts_there_is_nothing_to_tell(place: Place, tmp_path: Path) -> None:
    assert kitfs.mounts(**place.fresh) == []
    for use in (kitfs.status, kitfs.logs):
        with pytest.raises(errors.NotFound):
            use(tmp_path, **place.fresh)


VALUES: list[tuple[str, dict[str, Any]]] = [
    ("read_timeout", {"read_timeout": 0.5}),
    ("mirror", {"mirror": {"a.example.com": ["http://m:1", "http://n:2"]}}),
    ("tls_verify", {"tls_verify": False}),
]


@pytest.mark.parametrize(("name", "options"), VALUES)
def test_python_values_become_settings(name: str, options: dict[str, Any]) -> None:
    from kitfs.sdk.options import settings_of

    expected = {
        "read_timeout": 0.5,
        "mirror": (("a.example.com", "http://m:1"), ("a.example.com", "http://n:2")),
        "tls_verify": False,
    }
    assert settings_of(options, kitfs.Options)[name.replace("_", "-")] == expected[name]
