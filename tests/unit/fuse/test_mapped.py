"""Large reads of verified layers from a mapping of the store's file."""

from __future__ import annotations

import io
import random
import threading
from pathlib import Path

import pytest

from kitfs.errors import IntegrityError
from kitfs.fuse.mapped import SMALLEST, MappedFile, MappedLayers
from tests.unit.kit.test_tree import FakeLayer, tree

HUGE_PAGE = 2 << 20
DATA = random.Random(6).randbytes(8 * SMALLEST)


class VerifiedLayer(FakeLayer):
    """A layer whose file m/f lies at byte 1000 of a file of the disk."""

    def __init__(self, file: Path) -> None:
        super().__init__("m", "m/e=1", "m/f=" + "x" * len(DATA))
        self.file = file
        self.opened = 0
        file.write_bytes(bytes(1000) + DATA + b"behind")

    def state(self) -> str:
        return "verified" if self.failure is None else "wrong"

    def open_whole(self) -> io.FileIO | None:
        self.opened += 1
        return io.FileIO(self.file)


@pytest.fixture
def layer(tmp_path: Path) -> VerifiedLayer:
    return VerifiedLayer(tmp_path / "blob")


def test_mapped_bytes_are_those_of_the_file(layer: VerifiedLayer) -> None:
    """At any offset, and short at the end of the file, not of the blob; the layer's file is opened once."""
    node, mapped = tree(layer).resolve("m/f"), MappedLayers()
    for offset in (0, 1, 4095, 4096, SMALLEST, len(DATA) - SMALLEST):
        assert mapped.read(node, offset, 2 * SMALLEST) == DATA[offset : offset + 2 * SMALLEST]
    assert layer.opened == 1


def test_other_reads_are_not_mapped(layer: VerifiedLayer) -> None:
    """Small ones, those beyond the end, those of other states and those of compressed layers."""
    node, mapped = tree(layer).resolve("m/f"), MappedLayers()
    assert mapped.read(node, 0, SMALLEST - 1) is None
    assert mapped.read(node, len(DATA), SMALLEST) is None
    assert mapped.read(node, len(DATA) + SMALLEST, SMALLEST) is None
    layer.compressed = True
    assert mapped.read(node, 0, SMALLEST) is None
    layer.compressed = False
    layer.failure = IntegrityError("sha256:m")
    assert mapped.read(node, 0, SMALLEST) is None


def test_layer_that_was_forgotten_is_mapped_again(layer: VerifiedLayer) -> None:
    """After a failure the store may have another file."""
    node, mapped = tree(layer).resolve("m/f"), MappedLayers()
    assert mapped.read(node, 0, SMALLEST) == DATA[:SMALLEST]
    mapped.forget(layer.digest)
    assert mapped.read(node, 0, SMALLEST) == DATA[:SMALLEST]
    assert layer.opened == 2


def test_pages_that_were_answered_are_unmapped(tmp_path: Path) -> None:
    """A thread that reads a whole file in pieces has one piece in memory, or the huge page that holds it."""
    path = tmp_path / "f"
    path.write_bytes(DATA * 16)
    with path.open("rb") as f:
        mapped = MappedFile(f.fileno())

    def resident() -> int:
        smaps = Path("/proc/self/smaps").read_text().split(str(path))[1]
        return int(smaps.split("Rss:")[1].split()[0]) << 10

    for offset in range(0, len(DATA) * 16, SMALLEST):
        assert len(mapped.read(offset, SMALLEST)) == SMALLEST
    assert resident() <= HUGE_PAGE < len(DATA) * 16


def test_threads_do_not_disturb_each_other(layer: VerifiedLayer) -> None:
    """Four of them read the same parts at the same time."""
    node, mapped = tree(layer).resolve("m/f"), MappedLayers()
    wrong: list[int] = []

    def read() -> None:
        for n in range(200):
            offset = n * 65521 % (len(DATA) - SMALLEST)
            if mapped.read(node, offset, SMALLEST) != DATA[offset : offset + SMALLEST]:
                wrong.append(offset)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
