"""A kit is an object, and its files are file objects. The tests use a real registry."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from pathlib import Path, PurePosixPath

import pytest

import kitfs
from kitfs import errors
from kitfs.modelkit.kitfile import Code, Kitfile, Package
from tests.unit.sdk.conftest import MODEL, Place


def test_a_kit_is_read_lazily(place: Place) -> None:
    with kitfs.open(place.reference, **place.fresh) as kit:
        assert kit.digest.startswith("sha256:")
        assert kit.reference == place.reference
        assert (kit.kitfile.package.name, kit.kitfile.package.authors) == ("example", ("Ada",))
        assert [(x.kind, x.path, x.state) for x in kit.layers] == [
            ("model", "model", "absent"),
            ("dataset", "data/train.csv", "absent"),
        ]
        assert [f.path for f in kit.files()] == [
            "Kitfile",
            "data",
            "data/train.csv",
            "model",
            "model/config.json",
            "model/model.safetensors",
        ]
        assert [f.path for f in kit.listdir("model")] == ["model/config.json", "model/model.safetensors"]
        assert kit.stat("model/model.safetensors").size == len(MODEL)
        assert kit.read("model/model.safetensors", 8, 20) == MODEL[8:28]
        assert kit.read("model/model.safetensors") == MODEL
        assert kit.read("data/train.csv", 100) == b""
        assert kit.exists("model")
        assert not kit.exists("nothing")
        assert kit.layers[0].state in ("present", "verified")
        assert repr(kit) == f"<Kit {place.reference} {kit.digest[:19]}>"


def test_the_values_of_a_kit_need_no_layer(place: Place) -> None:
    """manifest, annotations, size and created are available without reading a layer, also after ``close``."""
    with kitfs.open(place.reference, **place.fresh) as kit:
        assert all(layer.state == "absent" for layer in kit.layers)
        size = sum(layer.size for layer in kit.layers)
    assert [layer["digest"] for layer in kit.manifest["layers"]] != []
    assert kit.size == sum(layer["size"] for layer in kit.manifest["layers"]) == size
    assert kit.annotations == kit.manifest["annotations"]
    kit.annotations.clear()
    assert kit.annotations == kit.manifest["annotations"], "the property does not return a new dict"
    assert kit.created > 0


def test_paths_may_be_path_objects(place: Place) -> None:
    with kitfs.open(place.reference, **place.fresh) as kit:
        data = PurePosixPath("data")
        assert [f.path for f in kit.listdir(data)] == [f.path for f in kit.files(data)] == ["data/train.csv"]
        assert kit.read(data / "train.csv", 0, 3) == b"a,b"
        assert kit.stat(data).kind == "dir"
        assert kit.exists(data / "train.csv")
        with kit.open(data / "train.csv", "r") as f:
            assert f.read() == kit.read_text(data / "train.csv") == "a,b\n1,2\n3,4\n"


def test_walk_goes_down_as_os_walk_does(place: Place) -> None:
    with kitfs.open(place.reference, **place.fresh) as kit:
        assert list(kit.walk()) == [
            ("", ["data", "model"], ["Kitfile"]),
            ("data", [], ["train.csv"]),
            ("model", [], ["config.json", "model.safetensors"]),
        ]
        for at, directories, _ in kit.walk():
            assert at != "model"
            if not at:
                directories.remove("model")
        assert [at for at, _, _ in kit.walk("data")] == ["data"]
        with pytest.raises(NotADirectoryError):
            next(kit.walk("Kitfile"))


GLOBS = {
    "*": ["Kitfile", "data", "model"],
    "*/*.json": ["model/config.json"],
    "**/*.[jc]s*": ["data/train.csv", "model/config.json"],
    "**": ["Kitfile", "data", "data/train.csv", "model", "model/config.json", "model/model.safetensors"],
    "model/**": ["model/config.json", "model/model.safetensors"],
    "**/**/train.csv": ["data/train.csv"],
    "model/config.json": ["model/config.json"],
    "nothing/*": [],
    "Kitfile/*": [],
    "data/train.cs?": ["data/train.csv"],
}


@pytest.mark.parametrize("pattern", GLOBS)
def test_glob_finds_paths(place: Place, pattern: str) -> None:
    with kitfs.open(place.reference, **place.fresh) as kit:
        assert [info.path for info in kit.glob(pattern)] == GLOBS[pattern]


@pytest.mark.parametrize("pattern", ["/data", "", "."])
def test_a_glob_must_be_relative_and_not_empty(place: Place, pattern: str) -> None:
    with kitfs.open(place.reference, **place.fresh) as kit, pytest.raises(ValueError, match="pattern"):
        kit.glob(pattern)


def test_a_kit_can_be_unpacked_as_it_was_opened(place: Place, tmp_path: Path) -> None:
    """Kit.unpack writes the files that the kit's filters select. It fails if a file already exists."""
    with kitfs.open(place.reference, only="datasets", **place.fresh) as kit:
        assert kit.unpack(tmp_path / "out") == kit.digest
        with pytest.raises(errors.ContextError):
            kit.unpack(tmp_path / "out")
        kit.unpack(tmp_path / "out", overwrite=True)
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["train.csv"]


def test_files_can_seek_and_be_read_as_text(place: Place) -> None:
    with kitfs.open(place.reference, **place.fresh) as kit:
        with kit.open("model/model.safetensors") as f:
            assert isinstance(f, io.BufferedReader)
            assert f.seek(-10, io.SEEK_END) == len(MODEL) - 10
            assert f.read() == MODEL[-10:]
            assert f.read() == b""
            f.seek(8)
            f.seek(2, io.SEEK_CUR)
            assert f.read(5) == MODEL[10:15]
            with pytest.raises((ValueError, OSError)):
                f.seek(-1)
        with kit.open("data/train.csv", "r") as text:
            assert list(text) == ["a,b\n", "1,2\n", "3,4\n"]
        with pytest.raises(ValueError, match="read-only"):
            kit.open("data/train.csv", "w")  # type: ignore[call-overload]


def test_a_missing_path_and_an_entry_of_another_kind_raise(place: Place) -> None:
    with kitfs.open(place.reference, **place.fresh) as kit:
        with pytest.raises(errors.NotFound, match="nothing"):
            kit.read("nothing")
        with pytest.raises(IsADirectoryError):
            kit.read("model")
        with pytest.raises(NotADirectoryError):
            kit.listdir("data/train.csv")
        with pytest.raises(ValueError, match="must not be negative"):
            kit.read("data/train.csv", -1)
    with pytest.raises(errors.NotFound):
        kitfs.open(place.reference.replace(":v1", ":v9"), **place.fresh)
    with pytest.raises(errors.InvalidReference):
        kitfs.open("UPPER/case", **place.fresh)
    with pytest.raises(TypeError, match="no such option: colour"):
        kitfs.open(place.reference, colour="red")
    with pytest.raises(kitfs.KitfsError, match="read-timeout"):
        kitfs.open(place.reference, read_timeout="never", **place.fresh)


def test_only_chooses_parts_of_a_kit(place: Place) -> None:
    with kitfs.open(place.reference, only=["datasets"], **place.fresh) as kit:
        assert [f.path for f in kit.files()] == ["data", "data/train.csv"]


def test_a_packed_kit_needs_no_registry(place: Place) -> None:
    digest = kitfs.pack(place.tree, "local-kit:v1", **place.options)
    with kitfs.open("local-kit:v1", **place.options) as kit:
        assert kit.digest == digest
        assert kit.read("model/model.safetensors") == MODEL


def test_pack_with_a_kitfile_that_was_made_here(place: Place) -> None:
    kitfile = Kitfile(manifest_version="1.0.0", package=Package("made"), code=(Code("data"),))
    digest = kitfs.pack(place.tree, kitfile=kitfile, created=0, kit_version="1.7.0", **place.options)
    assert digest == kitfs.pack(place.tree, "a:b,c", kitfile=kitfile, created=5, kit_version="1.7.0", **place.options)
    with kitfs.open("a:c", **place.options) as kit:
        assert [f.path for f in kit.files()] == ["Kitfile", "data", "data/train.csv"]
    with pytest.raises(errors.KitfileError, match="absolute"):
        kitfs.pack(place.tree, kitfile=Kitfile(manifest_version="1.0.0", code=(Code("/etc"),)), **place.options)


def test_push_reports_its_progress_and_pull_brings_the_kit_back(place: Place) -> None:
    seen: list[object] = []
    copy = place.reference.replace("example", "copy")
    digest = kitfs.push(place.reference, copy, progress=seen.append, **place.options)
    assert {type(event).__name__ for event in seen} >= {"Total", "Moved", "Sent"}
    assert kitfs.pull(copy, **place.fresh) == digest
    with kitfs.open(copy, **place.fresh) as kit:
        assert {x.state for x in kit.layers} == {"verified"}


def test_warm_fetches_and_verifies_what_is_chosen_and_tags_nothing(place: Place) -> None:
    seen: list[object] = []
    with kitfs.open(place.reference, **place.fresh) as kit:
        digest, sizes = kit.digest, {layer.digest: layer.size for layer in kit.layers}
        assert kitfs.warm(place.reference, only="datasets", progress=seen.append, **place.fresh) == digest
    sent = [event for event in seen if isinstance(event, kitfs.events.Sent)]
    assert [(event.how, event.size) for event in sent] == [("fetched", sizes[event.digest]) for event in sent] != []
    assert sum(event.size for event in seen if isinstance(event, kitfs.events.Moved)) == sent[0].size
    kitfs.warm(place.reference, **place.fresh)
    kitfs.warm(place.reference, progress=seen.append, **place.fresh)
    again = [event for event in seen if isinstance(event, kitfs.events.Sent)][len(sent) :]
    assert {event.how for event in again} == {"exists"}
    assert sorted(event.digest for event in again) == sorted(set(sizes))
    assert kitfs.list(**place.fresh) == []


def test_many_threads_read_one_kit(place: Place) -> None:
    with kitfs.open(place.reference, **place.fresh) as kit:
        wrong: list[int] = []

        def read(start: int) -> None:
            places = range(start, len(MODEL), 7919)
            wrong.extend(at for at in places if kit.read("model/model.safetensors", at, 100) != MODEL[at : at + 100])

        threads = [threading.Thread(target=read, args=(i * 100,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


def test_labels_choose_a_kit_of_an_index(place: Place, tmp_path: Path) -> None:
    """open, unpack and pull accept labels. The pulled kit gets the tag of the index."""
    named = place.reference.replace(":v1", ":all")
    kitfs.index.create(named, **place.options)
    kitfs.index.add(named, place.reference, labels={"kind": "one"}, **place.options)
    kitfs.index.push(named, **place.options)
    with kitfs.open(named, labels={"kind": "one"}, **place.fresh) as kit:
        assert kit.read("data/train.csv") == b"a,b\n1,2\n3,4\n"
        digest = kit.digest
    assert kitfs.unpack(named, tmp_path / "out", labels={"kind": "one"}, **place.fresh) == digest
    assert kitfs.pull(named, labels={"kind": "one"}, **place.fresh) == digest
    with kitfs.open(named, **place.fresh) as kit:
        assert kit.digest == digest
    for labels in ({}, {"kind": "two"}):
        with pytest.raises(
            errors.UsageError, match=r"select one of its ModelKits|no ModelKit in the index has kind=two"
        ):
            kitfs.pull(named, labels=labels, **place.fresh)


def test_warnings_are_escaped_for_a_program_without_handlers() -> None:
    """If a program has not configured logging, warnings with text from a registry are still escaped."""
    code = (
        "import logging, sys, kitfs, kitfs.sdk.kit\n"
        "logging.getLogger('kitfs').warning('%s says %s', 'a', '\x1b]0;x\x07\\nFORGED')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "a says \\x1b]0;x\\x07\\nFORGED\n"
