"""Large reads of verified layers return parts of a memory mapping of the stored file."""

from __future__ import annotations

import io
import os
import random
import threading
from pathlib import Path

import pytest

from kitfs.errors import IntegrityError
from kitfs.fuse.mapped import SMALLEST, MappedFile, MappedLayers, Span
from kitfs.kit.inode import ROOT
from tests.unit.kit.test_tree import FakeLayer, filesystem, tree

HUGE_PAGE = 2 << 20
DATA = random.Random(6).randbytes(8 * SMALLEST)


class VerifiedLayer(FakeLayer):
    """A verified layer. Its file m/f starts at byte 1000 of a larger file on disk."""

    def __init__(self, file: Path) -> None:
        super().__init__("m", "m/e=1", "m/f=" + "x" * len(DATA))
        self.file = file
        self.opened = 0
        file.write_bytes(bytes(1000) + DATA + b"behind")

    def is_verified(self) -> bool:
        return self.state() == "verified"

    def state(self) -> str:
        return "verified" if self.failure is None else "wrong"

    def open_whole(self) -> io.FileIO | None:
        self.opened += 1
        return io.FileIO(self.file)


@pytest.fixture
def layer(tmp_path: Path) -> VerifiedLayer:
    return VerifiedLayer(tmp_path / "blob")


def span_of(layer: VerifiedLayer) -> Span:
    found = MappedLayers().span(tree(layer).resolve("m/f"))
    assert found is not None
    return found


def test_mapped_bytes_are_those_of_the_file(layer: VerifiedLayer) -> None:
    """Reads at any offset return the bytes of the file in the layer, and nothing after the end of the file."""
    span = span_of(layer)
    for offset in (0, 1, 4095, 4096, SMALLEST, len(DATA) - SMALLEST, len(DATA), len(DATA) + 1):
        for size in (1, 4096, SMALLEST - 1, 2 * SMALLEST):
            assert span.read(offset, size) == DATA[offset : offset + size]


def test_other_layers_have_no_span(layer: VerifiedLayer) -> None:
    """A layer that is not verified, or that is compressed, is not mapped."""
    node, mapped = tree(layer).resolve("m/f"), MappedLayers()
    layer.compressed = True
    assert mapped.span(node) is None
    layer.compressed = False
    layer.failure = IntegrityError("sha256:m")
    assert mapped.span(node) is None


def test_layer_that_was_forgotten_is_opened_again(layer: VerifiedLayer) -> None:
    """The stored file of a layer is opened once.

    After the layer fails, it is opened again, because the store may have replaced the file.
    """
    node, mapped = tree(layer).resolve("m/f"), MappedLayers()
    assert [mapped.span(node) == mapped.span(node), layer.opened] == [True, 1]
    mapped.forget(layer.digest)
    mapped.span(node)
    assert layer.opened == 2


def test_handle_of_a_layer_that_fails_does_not_read_its_file(layer: VerifiedLayer) -> None:
    """After the layer fails, reads are passed to the layer. The layer refuses them."""
    fs = filesystem(tree(layer))
    file = fs.lookup(fs.lookup(ROOT, b"m").inode, b"f")
    handle = fs.open(file.inode, os.O_RDONLY).handle
    assert fs.read(handle, 0, 4096) == DATA[:4096]
    layer.failure = IntegrityError("sha256:m")
    fs.failed(layer.digest)
    assert fs.read(handle, 0, 4096) == b"x" * 4096


def test_pages_that_were_answered_are_unmapped(tmp_path: Path) -> None:
    """If a file is read piece by piece, only the last piece (or the huge page around it) stays in memory."""
    path = tmp_path / "f"
    path.write_bytes(DATA * 16)
    with io.FileIO(path) as file:
        mapped = MappedFile(file)

    def resident() -> int:
        smaps = Path("/proc/self/smaps").read_text().split(str(path))[1]
        return int(smaps.split("Rss:")[1].split()[0]) << 10

    for offset in range(0, len(DATA) * 16, SMALLEST):
        assert len(mapped.read(offset, SMALLEST)) == SMALLEST
    assert resident() <= HUGE_PAGE < len(DATA) * 16


def test_threads_do_not_disturb_each_other(layer: VerifiedLayer) -> None:
    """Four threads read the same parts of a file at the same time."""
    span = span_of(layer)
    wrong: list[int] = []

    def read() -> None:
        for n in range(200):
            offset = n * 65521 % (len(DATA) - SMALLEST)
            if span.read(offset, SMALLEST) != DATA[offset : offset + SMALLEST]:
                wrong.append(offset)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
