"""Bring all bytes of a layer into the store, step by step. Any thread may do this."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from kitfs.kit.layer import Layer
from kitfs.store.blob import Blob
from kitfs.store.readahead import MAX_WINDOW

STEP: Final = 4 << 20  # bytes


def complete(layer: Layer, *, most: int = MAX_WINDOW) -> Iterator[int]:
    """Fetch a layer, and decode it if it is compressed; yield how many bytes of the blob each step has fetched.

    A single request fetches the missing bytes. The request runs ahead of the steps by at most ``most`` bytes, or by the
    bandwidth-delay product of the link if that is larger. It pauses while no step is taken.

    Nothing is fetched if the store has the content of the layer already. A step that decodes yields 0. Raises StoreFull
    if the store has no room for the layer, StoreError if its disk fails, and errors of the source.
    """
    content = layer.content()
    if content.complete:
        yield layer.size
        return
    wire = layer.wire()
    wire.will_read(0, most)
    for at in range(0, layer.size, STEP):
        size = min(STEP, layer.size - at)
        _fetch(wire, at, size)
        yield size
    at = 0
    while layer.compressed and not content.complete:
        if content.size is not None and at >= content.size:
            raise content.not_stored()
        _fetch(content, at, STEP)
        at += STEP
        yield 0


def _fetch(blob: Blob, at: int, size: int) -> None:
    if not blob.fetch(at, size):
        raise blob.not_stored()
