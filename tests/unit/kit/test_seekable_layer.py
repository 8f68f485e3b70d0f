"""A cold read of a seekable zstd layer moves the headers of its tar and one frame."""

from __future__ import annotations

import functools
import random

import pytest

from kitfs.content import Source
from kitfs.errors import LayerError, WouldBlock
from kitfs.kit.layer import Layer
from kitfs.layers.growth import DEFAULT_EXPANSION, Expansion
from kitfs.layers.points import SPAN
from kitfs.layers.seekable import FOOTER, FRAME, compress
from kitfs.modelkit.layers import LayerEntry
from kitfs.oci.manifest import Descriptor, LayerType
from kitfs.oci.names import Digest
from kitfs.store.store import Store
from tests import kits
from tests.fakes.sources import BytesSource
from tests.host import wait_until
from tests.stores import Opener

ROUND = 64 << 10
SIZE = 13 << 20
AT = 6 << 20


@functools.cache
def weights() -> bytes:
    return random.Random(1).randbytes(SIZE)


@functools.cache
def stream() -> bytes:
    """Return a layer as ``pack --compression zstd`` writes it."""
    tar = kits.kit_tar({"m/w.bin": weights(), "m/c.json": b"{}"})
    start = tar.index(weights()[:64])
    cuts = (-(-start // ROUND) * ROUND, (start + SIZE) // ROUND * ROUND)
    return b"".join(compress((tar[i : i + 100_000] for i in range(0, len(tar), 100_000)), cuts))


class Origin:
    """An origin of one blob."""

    def __init__(self, data: bytes) -> None:
        self.source = BytesSource(data, piece=100_000)

    def blob(self, descriptor: Descriptor) -> Source | None:
        return self.source

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes:
        raise AssertionError("a layer is not read as a small blob")

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]:
        raise AssertionError("a layer needs no manifest")


def layer_of(store: Store, data: bytes, expansion: Expansion = DEFAULT_EXPANSION) -> tuple[Layer, BytesSource]:
    media_type = "application/vnd.kitops.modelkit.model.v1.tar+zstd"
    descriptor = Descriptor(media_type, Digest.of(data), len(data))
    origin = Origin(data)
    entry = LayerEntry(descriptor, LayerType.parse(descriptor), None, "m")
    return Layer(entry, origin, store, max_entries=100, expansion=expansion), origin.source


def read(layer: Layer, at: int, size: int) -> bytes:
    index = layer.index()
    return layer.pread(index.members["m/w.bin"], at, size)


def test_a_cold_read_moves_one_frame(store: Store) -> None:
    """A read of 4 KiB in the middle moves the table of frames, the headers and one frame."""
    layer, source = layer_of(store, stream())
    with pytest.raises(WouldBlock):
        layer.index(wait=False)
    assert set(layer.index().members) == {"m", "m/c.json", "m/w.bin"}
    assert source.given < 4 * ROUND
    assert read(layer, AT, 4096) == weights()[AT : AT + 4096]
    assert source.given < SPAN + 8 * ROUND
    layer.close()


def test_all_frames_together_are_verified(open_store: Opener) -> None:
    """When everything was read, the layer is verified, and another mount reads it without its registry."""
    store = open_store()
    layer, source = layer_of(store, stream())
    assert read(layer, 0, SIZE) == weights()
    layer.content().fill()
    layer.wire().fill()
    wait_until(layer.is_verified, "the layer was not verified")
    assert source.given == len(stream())
    layer.close()
    other, source = layer_of(open_store(), stream())
    assert read(other, AT, 4096) == weights()[AT : AT + 4096]
    assert source.given == 0
    other.close()


def test_a_table_that_lies_is_found(store: Store) -> None:
    """If frames have other sizes than the table says, reads raise an error and return no wrong bytes."""
    data = bytearray(stream())
    at = len(data) - FOOTER.size - 3 * FRAME.size
    packed, size = FRAME.unpack_from(data, at)
    FRAME.pack_into(data, at, packed, size - 1)
    layer, _ = layer_of(store, bytes(data))
    with pytest.raises(LayerError):
        read(layer, SIZE - 4096, 4096)
    layer.close()


def test_a_table_beyond_the_limit_is_not_used(store: Store) -> None:
    """A layer whose table promises more than the limit for decoded bytes is refused like any other such layer."""
    layer, _ = layer_of(store, stream(), Expansion(factor=1, small=1 << 20))
    with pytest.raises(LayerError, match="--max-expansion"):
        read(layer, AT, 4096)
    layer.close()
