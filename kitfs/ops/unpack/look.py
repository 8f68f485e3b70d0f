"""Run the first phase of an unpack: read the index of every layer, and merge the layers. Nothing is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kitfs.errors import ContextError, UnsafePath
from kitfs.kit.kit import Kit
from kitfs.kit.layering import PlacedLayer
from kitfs.layers.index import LayerIndex
from kitfs.ops.events import Report, Warned
from kitfs.ops.unpack.content import ContentSource
from kitfs.ops.unpack.journal import NAME as JOURNAL
from kitfs.ops.unpack.plan import Item, UnpackPlan, plan_unpack
from kitfs.ops.unpack.progress import Progress, Workers
from kitfs.ops.unpack.steps import KITFILE, Step


class PlannedLayer(NamedTuple):
    """A layer or an object in S3, with the names that are written from it."""

    step: Step
    source: ContentSource
    items: tuple[Item, ...]
    progress: Progress


class PlannedStep(NamedTuple):
    """A step with its layer. ``layer`` is None for the Kitfile and for headings."""

    step: Step
    layer: PlannedLayer | None


@dataclass(frozen=True, slots=True)
class Planned:
    """The names that an unpack of ``kit`` will write, as found by ``look``. ``steps`` are in kit's order."""

    kit: Kit
    steps: tuple[PlannedStep, ...]
    tree: UnpackPlan

    @property
    def layers(self) -> list[PlannedLayer]:
        """The layers in kit's order. ``Item.source`` is an index into this list."""
        return [planned.layer for planned in self.steps if planned.layer is not None]

    @property
    def digests(self) -> list[str]:
        """The digests of the layers. For an object in S3, the list has its ETag instead."""
        return [layer.source.digest for layer in self.layers]


def look(kit: Kit, steps: Sequence[Step], workers: Workers, *, room: int, report: Report) -> Planned:
    """Read every index, and merge the layers. A layer may decompress to at most ``room`` bytes.

    Raises LayerError or IntegrityError, and UnsafePath for a path or link that leads out of the directory.
    """
    sources = [(step, step.source) for step in steps if step.source is not None]
    progress = [Progress(f"{number} {step.path}", step.path, report) for number, (step, _) in enumerate(sources)]
    for (_, source), counted in zip(sources, progress, strict=True):
        if size := source.fetches():
            counted.expect(size)
    indexes: dict[int, LayerIndex] = {}

    def read(number: int) -> None:
        indexes[number] = sources[number][1].index(progress[number].add, workers.stop, room)

    workers.each(range(len(sources)), read)
    placed = [
        PlacedLayer(f"layer {source.digest}", indexes[number], source.path, step.below)
        for number, (step, source) in enumerate(sources)
    ]
    tree = plan_unpack(placed, reserved=(KITFILE,) if kit.kitfile_bytes is not None else ())
    for line in tree.left_out:
        report(Warned(line))
    items = _items_by_layer(tree, len(sources))
    layers = {
        id(step): PlannedLayer(step, source, tuple(items[number]), progress[number])
        for number, (step, source) in enumerate(sources)
    }
    return Planned(kit, tuple(PlannedStep(step, layers.get(id(step))) for step in steps), tree)


def _items_by_layer(tree: UnpackPlan, count: int) -> list[list[Item]]:
    """Group the names of a tree by layer. Raises UnsafePath if one of them is the name of the journal."""
    items: list[list[Item]] = [[] for _ in range(count)]
    for item in tree.items():
        if item.path == JOURNAL:
            raise UnsafePath(
                f"the kit contains a file {JOURNAL}, but unpack uses this name for its journal "
                "(mount the kit instead, or omit the file's layer with --only)"
            )
        items[item.source].append(item)
    return items


def free_space(directory: str) -> int:
    """Return how many bytes are free on the disk where a directory is or will be made. Raises ContextError."""
    at = os.path.abspath(directory)
    while not os.path.isdir(at) and at != os.path.dirname(at):
        at = os.path.dirname(at)
    try:
        found = os.statvfs(at)
    except OSError as e:
        raise ContextError(f"cannot read the free space at {at}: {(e.strerror or str(e)).lower()}")
    return found.f_bavail * found.f_frsize
