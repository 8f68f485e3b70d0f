"""history lists the versions of a repository and what changed between them, and fetches kilobytes for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from tests.conftest import needs
from tests.fakes.registry import FakeRegistry
from tests.registry_process import RegistryProcess
from tests.unit.cli.conftest import Kitfs

KITFILE = """manifestVersion: 1.0.0
package: {{name: llama}}
model: {{name: llama, path: model, parameters: {{lr: {lr}}}}}
datasets:
  - {{name: train, path: data}}
"""


@pytest.fixture
def make(kitfs: Kitfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that packs a version into the registry or the store of its reference, one day after another."""
    monkeypatch.delenv("KITFS_PACK_KIT_VERSION")
    tree = tmp_path / "tree"
    days = 0

    def version(reference: str, *options: str, lr: float = 0.1, files: dict[str, bytes]) -> None:
        nonlocal days
        days += 1
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(1_700_000_000 + days * 86_400))
        for path, content in {"Kitfile": KITFILE.format(lr=lr).encode(), **files}.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        where = ["--push"] if ":" in reference.partition("/")[0] else []
        done = kitfs("pack", tree, "-t", reference, *where, *options)
        assert done.code == 0, done.err

    return version


def changes(kitfs: Kitfs, repository: str, *options: str) -> list[dict[str, Any]]:
    """Return the versions that history prints as JSON."""
    done = kitfs("history", repository, "--json", *options)
    assert done.code == 0, done.err
    found: list[dict[str, Any]] = done.json["versions"]
    return found


def test_five_versions_move_kilobytes(kitfs: Kitfs, make: Any, registry: RegistryProcess) -> None:
    """The history of five versions of 5 MiB fetches less than 800 KiB from a real registry.

    The versions differ in their weights, tensors, data and parameters, and the history names these differences.
    """
    needs("docker-registry")
    name, noise = f"{registry.host}/history/llama", os.urandom(4 << 20)
    weights = {size: save({"w": np.zeros(1 << 18, np.float32), "b": np.zeros(size, np.float32)}) for size in (8, 16)}
    first = {"model/w.bin": noise, "model/m.safetensors": weights[8], "data/train.csv": b"a,b\n"}
    for tag, lr, files in (
        ("v1", 0.1, first),
        ("v2", 0.2, {}),
        ("v3", 0.2, {"data/train.csv": b"a,b\n1,2\n"}),
        ("v4", 0.2, {"model/m.safetensors": weights[16]}),
        ("v10", 0.2, {"model/new.bin": b"new"}),
    ):
        make(f"{name}:{tag}", lr=lr, files=files)
    mark = registry.mark()
    versions = changes(kitfs, name, "--cache-dir", "empty")
    fetched = sum(one.bytes for one in registry.served(mark))
    assert fetched < 800 << 10
    assert [one["tags"] for one in versions] == [["v1"], ["v2"], ["v3"], ["v4"], ["v10"]]
    two, three, four, ten = (one["change"] for one in versions[1:])
    assert two["parameters"] == [{"path": "model.parameters.lr", "before": 0.1, "after": 0.2}]
    assert [one["name"] for one in three["data"]] == ["train"]
    assert [one["path"] for one in three["files"]["changed"]] == ["data/train.csv"]
    assert [(one["before"]["name"], one["what"]) for one in four["tensors"]["changed"]] == [("b", ["reshaped"])]
    assert [one["path"] for one in ten["files"]["added"]] == ["model/new.bin"]
    assert [one["unread"] for one in (two, three, four, ten)] == [[], [], [], []]


def test_tags_of_one_kit_are_one_version(kitfs: Kitfs, make: Any, fake: FakeRegistry) -> None:
    """Tags of the same kit are listed together, in natural order. --last shows only the newest versions."""
    name = f"{fake.host}/team/llama"
    make(f"{name}:v1", files={"model/w.bin": b"one", "data/d": b"d"})
    make(f"{name}:v2,latest,v10,v9", files={"model/w.bin": b"two"})
    assert [one["tags"] for one in changes(kitfs, name)][1] == ["latest", "v2", "v9", "v10"]
    [newest] = changes(kitfs, name, "--last", "1")
    assert [one["path"] for one in newest["change"]["files"]["maybe"]] == ["model/w.bin"]


def test_compressed_layers_are_not_read(kitfs: Kitfs, make: Any, fake: FakeRegistry) -> None:
    """A compressed layer whose index is not known is listed as unread, and none of its bytes are fetched."""
    name = f"{fake.host}/team/llama"
    for tag, content in (("v1", b"one"), ("v2", b"two")):
        make(
            f"{name}:{tag}",
            "--compression",
            "gzip",
            "--kit-version",
            "1.17.0",
            "--push",
            files={"model/w": content, "data/d": b"d"},
        )
    [_, second] = changes(kitfs, name, "--cache-dir", "empty")
    assert [one["path"] for one in second["change"]["unread"]] == ["model"]
    assert second["change"]["files"]["added"] == []


def test_a_tar_with_many_entries_is_not_read(kitfs: Kitfs, make: Any, fake: FakeRegistry) -> None:
    """The index of a tar with many entries would need many requests, so the layer is listed as unread."""
    name = f"{fake.host}/team/llama"
    many = {f"data/{number}": b"x" for number in range(100)}
    for tag, content in (("v1", b"one"), ("v2", b"two")):
        make(f"{name}:{tag}", "--kit-version", "1.17.0", files={"model/w": b"w", **many, "data/0": content})
    [_, second] = changes(kitfs, name, "--cache-dir", "empty")
    assert [one["path"] for one in second["change"]["unread"]] == ["data"]


def test_kits_of_the_store(kitfs: Kitfs, make: Any) -> None:
    """Without a registry, history lists the kits of the store. The text shows each kind of change."""
    make("team/llama:v1", files={"model/w.bin": b"one", "data/train.csv": b"a\n"})
    make("team/llama:v2", lr=0.5, files={"model/w.bin": b"longer", "data/train.csv": b"a\n1\n", "model/\x1bn": b"n"})
    done = kitfs("history", "team/llama")
    assert done.code == 0, done.err
    first, second, *lines = done.out.splitlines()
    assert (first.split()[0], second.split()[0]) == ("v1", "v2")
    assert {line.strip() for line in lines if line.endswith(":")} == {"files:", "data:", "parameters:"}
    assert "    ~ model/w.bin (3 B -> 6 B)" in lines
    assert "    + model/\\x1bn (1 B)" in lines
    assert "    ~ model.parameters.lr: 0.1 -> 0.5" in lines


@pytest.mark.parametrize(("name", "code"), [("none", 3), ("none:v1", 2)])
def test_refusals(kitfs: Kitfs, name: str, code: int) -> None:
    assert kitfs("history", name).code == code
