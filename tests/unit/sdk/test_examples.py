"""Every example in a docstring is run with a real registry. Examples in the manual are run in tests/manual."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

import kitfs
import kitfs.sdk.kit
from tests.unit.sdk.conftest import Place

DOCSTRINGS = [kitfs.__doc__ or "", kitfs.sdk.kit.Kit.__doc__ or "", kitfs.mount.__doc__ or ""]


@pytest.fixture
def settled(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the environment, and change to a directory in which ./llama is the tree of the kit. Return the directory."""
    here = tmp_path / "here"
    here.mkdir()
    place.tree.rename(here / "llama")
    monkeypatch.chdir(here)
    monkeypatch.setenv("KITFS_CACHE_DIR", str(place.fresh["cache_dir"]))
    monkeypatch.setenv("KITFS_RUN_DIR", str(place.fresh["run_dir"]))
    monkeypatch.setenv("KITFS_CONFIG", str(place.fresh["config"]))
    return here


def adapted(code: str, place: Place, here: Path) -> str:
    """Replace the registry and the directories in an example by those of the test."""
    return code.replace("registry.example.com/team/llama", place.reference.rsplit(":", 1)[0]).replace(
        "/tmp/kits", str(here / "kits")
    )


@pytest.mark.mount
@pytest.mark.parametrize("text", DOCSTRINGS, ids=["kitfs", "Kit", "mount"])
def test_examples_of_docstrings(settled: Path, place: Place, text: str) -> None:
    examples = doctest.DocTestParser().get_examples(
        adapted(text, place, settled).replace('"model.safetensors"', '"model/model.safetensors"')
    )
    assert examples
    names: dict[str, object] = {"kitfs": kitfs, "os": __import__("os")}
    for example in examples:
        exec(compile(example.source.replace('"config.json"', '"model/config.json"'), "docstring", "exec"), names)
