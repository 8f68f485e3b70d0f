"""Fixtures for tests of the SDK: a registry, and a kit that is in the registry and in a store."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import kitfs
from tests.server import Server

TENSOR = bytes(range(256)) * 1024
HEADER = json.dumps({"w": {"dtype": "F32", "shape": [256, 256], "data_offsets": [0, len(TENSOR)]}}).encode()
MODEL = struct.pack("<Q", len(HEADER)) + HEADER + TENSOR
KITFILE = """manifestVersion: 1.0.0
package: {name: example, authors: [Ada]}
model: {name: m, path: model}
datasets: [{name: train, path: data/train.csv}]
"""


class Place(NamedTuple):
    """A kit that was packed from the directory ``tree``.

    ``reference`` names the kit in the registry and in the store. ``options`` select this store. ``fresh`` selects an
    empty store.
    """

    reference: str
    tree: Path
    options: dict[str, Any]
    fresh: dict[str, Any]


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("served")
    with Server(home / "root", home / "log") as server:
        yield server


@pytest.fixture
def place(tmp_path: Path, server: Server) -> Place:
    tree = tmp_path / "tree"
    (tree / "model").mkdir(parents=True)
    (tree / "data").mkdir()
    (tree / "model" / "model.safetensors").write_bytes(MODEL)
    (tree / "model" / "config.json").write_text('{"architectures": ["Tiny"]}\n')
    (tree / "data" / "train.csv").write_text("a,b\n1,2\n3,4\n")
    (tree / "Kitfile").write_text(KITFILE)
    common: dict[str, Any] = {"config": str(tmp_path / "home"), "run_dir": str(tmp_path / "run")}
    place = Place(
        f"{server.host}/team/example:v1",
        tree,
        {"cache_dir": tmp_path / "store", **common},
        {"cache_dir": tmp_path / "fresh", **common},
    )
    kitfs.pack(tree, place.reference, **place.options)
    kitfs.push(place.reference, **place.options)
    return place
