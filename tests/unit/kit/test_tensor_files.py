"""TensorFiles predicts which bytes of safetensors and GGUF files will be read next."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save

from kitfs.kit.resolver import Resolver
from kitfs.kit.tensor_files import BlobSpan, TensorFiles
from kitfs.kit.tree import Tree, tree_of
from kitfs.metrics import Counters
from kitfs.oci.names import LayoutReference, Reference
from kitfs.registry.layout import open_layout
from kitfs.store.store import Store
from tests import kits

LOG = logging.getLogger("kitfs.test")
MiB = 1 << 20
TENSORS = {f"t{number}": np.full(3 * MiB, number, np.uint8) for number in range(4)}


def gguf_file(directory: Path) -> bytes:
    """Return the bytes of a GGUF file that contains ``TENSORS``."""
    writer = gguf.GGUFWriter(directory / "x", "llama")
    for name, values in TENSORS.items():
        writer.add_tensor(name, values.view(np.int8))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (directory / "x").read_bytes()


class Reading:
    """Simulated programs that read files of a tree.

    ``fetched`` counts the bytes that TensorFiles itself reads, for example headers.
    """

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.fetched = 0
        self.files = TensorFiles(tree, lambda node, at, size: self.count(tree.pread(node, at, size)))
        tree.demand.watch(self.files.read)

    def count(self, data: bytes) -> bytes:
        self.fetched += len(data)
        return data

    def read(self, path: str, start: int, stop: int) -> None:
        """Read bytes [start, stop) of a file, 256 KiB at a time."""
        node = self.tree.resolve(path)
        for at in range(start, stop, 256 << 10):
            self.tree.pread(node, at, min(256 << 10, stop - at))

    def ahead(self) -> list[BlobSpan]:
        """Return the spans that TensorFiles wants to prefetch."""
        return [span for file in self.files.followed() for span in file.spans()]


@pytest.fixture
def reading(tmp_path: Path, store: Store) -> Callable[[dict[str, bytes]], Reading]:
    """Return a function that opens a kit with the given files (path → bytes). Each file has its own layer."""

    def make(files: dict[str, bytes]) -> Reading:
        parts = [kits.part("model", path, data, format="raw") for path, data in files.items()]
        kits.write_layout(kits.build(parts), tmp_path / "kit", "v1")
        origin = open_layout(LayoutReference("oci", str(tmp_path / "kit")))
        kit = Resolver(store, lambda reference: origin, log=LOG).open(Reference.parse("r.io/kit:v1"))
        return Reading(tree_of(kit, counters=Counters(), log=LOG))

    return make


def test_a_header_that_no_program_has_read_is_not_looked_at(
    reading: Callable[[dict[str, bytes]], Reading],
) -> None:
    """If no program has read the header of a file, nothing is predicted, even if its tensors are read in order."""
    data = save(TENSORS)
    program = reading({"m.safetensors": data})
    program.read("m.safetensors", MiB, 7 * MiB)
    assert program.ahead() == []
    program.read("m.safetensors", 0, MiB)
    program.read("m.safetensors", 7 * MiB, 9 * MiB)
    assert program.fetched == 0


def test_the_next_tensors_of_a_file_are_known_by_their_place_in_the_layer(
    reading: Callable[[dict[str, bytes]], Reading],
) -> None:
    data = save(TENSORS)
    program = reading({"m.safetensors": data})
    head = len(data) - 12 * MiB
    program.read("m.safetensors", 0, head + 6 * MiB)
    [span] = program.ahead()
    assert (span.start, span.stop) == (head + 6 * MiB, head + 9 * MiB)
    assert span.digest == program.tree.resolve("m.safetensors").layer.digest  # type: ignore[union-attr]


def test_a_damaged_header_is_ignored(reading: Callable[[dict[str, bytes]], Reading]) -> None:
    program = reading({"m.safetensors": bytes(9 * MiB), "m.gguf": bytes(9 * MiB)})
    program.read("m.safetensors", 0, 9 * MiB)
    program.read("m.gguf", 0, 9 * MiB)
    assert program.ahead() == []


@pytest.mark.parametrize("index", [True, False])
def test_the_next_shard_is_known_by_an_index_that_the_store_has(
    reading: Callable[[dict[str, bytes]], Reading], index: bool
) -> None:
    """If a program has read the shard index, the header of the next shard is fetched.

    Without the shard index, nothing after the end of the file is predicted.
    """
    data = save(TENSORS)
    names = {"t0": "1.safetensors", "t1": "2.safetensors"}
    program = reading(
        {
            "m/1.safetensors": data,
            "m/2.safetensors": save({name: values + 1 for name, values in TENSORS.items()}),
            "m/model.safetensors.index.json": json.dumps({"weight_map": names}).encode(),
        }
    )
    if index:
        program.read("m/model.safetensors.index.json", 0, 100)
    program.read("m/1.safetensors", 0, len(data))
    starts = [span.start for span in program.ahead()]
    assert starts == ([len(data) - 12 * MiB, len(data) - 9 * MiB] if index else [])
    assert (program.fetched > 0) == index
    assert program.fetched < 4096


def test_the_next_part_of_a_split_gguf_file_is_known_by_its_name(
    reading: Callable[[dict[str, bytes]], Reading], tmp_path: Path
) -> None:
    """Nothing is predicted if the part is the last one, or if the kit does not contain the next part."""
    data = gguf_file(tmp_path)
    program = reading({"m-00001-of-00003.gguf": data, "m-00002-of-00003.gguf": data + bytes(1)})
    program.read("m-00001-of-00003.gguf", 0, len(data))
    assert [span.digest for span in program.ahead()] == [
        program.tree.resolve("m-00002-of-00003.gguf").layer.digest  # type: ignore[union-attr]
    ] * 2
    program.read("m-00002-of-00003.gguf", 0, len(data))
    assert program.ahead() == []
