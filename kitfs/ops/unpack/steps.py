"""What an unpack does, step by step in kit's order: parents, their layers, the Kitfile, the kit's own layers, remote
datasets.

Opens the kits that are referred to, and reads no layer. Threading: none of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from kitfs.errors import ManifestError
from kitfs.kit.kit import Kit
from kitfs.kit.layer import Layer
from kitfs.kit.resolver import MAX_CHAIN, Resolver
from kitfs.modelkit.filters import Filter, for_parent, selects
from kitfs.modelkit.kitfile import Dataset, Entry, clean_path
from kitfs.modelkit.layers import kit_layers
from kitfs.oci.names import Reference
from kitfs.ops.events import Report, Warned
from kitfs.ops.unpack.content import ContentSource, LayerContent
from kitfs.ops.unpack.plan import Item
from kitfs.ops.unpack.s3 import ObjectContent
from kitfs.store.store import Store

KITFILE: Final = "Kitfile"
LABELS: Final = {
    "model": "model {name}", "modelpart": "model part {name}", "code": "code", "dataset": "dataset {name}", "docs": "docs",
    "prompt": "prompt", "mcpserver": "mcpServer {name}",
}  # fmt: skip
DATASETS: Final = (Filter(("datasets",)),)


@dataclass(slots=True)
class Step:
    """One line of kit's output, and what is done for it. ``supply`` is None for the Kitfile and for headings;
    ``below`` is the directory that its tree goes to; ``path`` as an entry has it; ``wanted`` what it writes,
    ``total`` bytes to fetch (to write, where nothing is to be fetched), both settled later; ``done`` those that
    were."""

    text: str
    supply: ContentSource | None = None
    below: str = ""
    path: str = ""
    kitfile: bool = False
    wanted: list[Item] = field(default_factory=list)
    total: int = 0
    done: int = 0


@dataclass(frozen=True, slots=True)
class StepContext:
    """Where steps get what they need; ``stack`` closes the kits that they open. ``remote`` asks registries also for
    kits that are here.
    """

    store: Store
    resolver: Resolver
    stack: ExitStack
    max_entries: int
    remote: bool
    include_remote: bool
    report: Report


def steps_of(kit: Kit, directory: str, filters: Sequence[Filter], sources: StepContext) -> list[Step]:
    """The steps for a kit that was opened with ``filters``. Raises what opening referenced kits raises, UsageError
    for objects of S3.
    """
    own = sum(
        1
        for e in kit_layers(kit.manifest, kit.kitfile)
        if not filters or (e.entry is not None and selects(filters, e.entry))
    )
    inherited = len(kit.layers) - own
    steps = [Step(f"Unpacking referenced modelkit {text}") for text in _parents(kit, filters, sources)]
    steps += [_step(layer, sources) for layer in kit.layers[:inherited]]
    if kit.kitfile_bytes is not None:
        steps.append(Step(f"Unpacking config to {directory.rstrip('/')}/{KITFILE}", kitfile=True))
    steps += [_step(layer, sources) for layer in kit.layers[inherited:]]
    steps += _remote(kit, filters, sources, (), "")
    if filters and not steps:
        sources.report(Warned(f"{' and '.join(map(str, filters))}: nothing of this kit is selected"))
    return steps


def _parents(kit: Kit, filters: Sequence[Filter], sources: StepContext) -> Iterator[str]:
    """The references of the kits that the model comes from, as their Kitfiles have them."""
    at, wanted = kit, tuple(filters)
    while at.kitfile.parent is not None and at.kitfile.model is not None:
        yield at.kitfile.model.path
        above = for_parent(wanted)
        if above is None:
            return
        parent = sources.resolver.open(
            at.kitfile.parent.or_latest().held_by(at.reference), filters=above, remote=sources.remote
        )
        parent.close()
        at, wanted = parent, above


def _step(layer: Layer, sources: StepContext, below: str = "") -> Step:
    entry = layer.entry
    path = entry.path if entry is not None else layer.path or ""
    what = LABELS[entry.kind].format(name=entry.name).rstrip() if entry is not None else f"layer {layer.digest}"
    return Step(
        f"Unpacking {what} to {path}", LayerContent(layer, sources.store, max_entries=sources.max_entries), below, path
    )


def _remote(
    kit: Kit, filters: Sequence[Filter], sources: StepContext, chain: tuple[str, ...], below: str
) -> list[Step]:
    """The datasets that are somewhere else: those of other kits go below the dataset's path, objects of S3 to it, in
    this order.
    """
    found = [d for d in kit.kitfile.datasets if d.remote_path and selects(filters, Entry("dataset", d.name, d.path))]
    if found and not sources.include_remote:
        sources.report(Warned("ModelKit contains remote datasets. To unpack, specify the --include-remote flag"))
        return []
    objects = [d for d in found if d.remote_path.startswith("s3://")]
    steps: list[Step] = []
    for dataset in found:
        if dataset not in objects:
            steps += _referenced(dataset, kit, sources, (*chain, str(kit.reference)), _joined(below, dataset.path))
    for dataset in objects:
        supply = ObjectContent(dataset.remote_path, dataset.remote_hash, clean_path(dataset.path))
        path = _joined(below, dataset.path)
        steps.append(Step(f"Downloading remote S3 dataset for path {path}", supply, below, path))
    return steps


def _referenced(dataset: Dataset, kit: Kit, sources: StepContext, chain: tuple[str, ...], path: str) -> list[Step]:
    """The datasets of the kit that a dataset refers to. Raises ManifestError for a chain that is too long, or a
    circle.
    """
    reference = Reference.parse(dataset.remote_path).or_latest().held_by(kit.reference)
    if str(reference) in chain:
        raise ManifestError(f"found cycle in modelkit references: [{'=>'.join((*chain, str(reference)))}]")
    if len(chain) > MAX_CHAIN:
        raise ManifestError(f"reached maximum number of model references: [{'=>'.join(chain)}]")
    other = sources.resolver.open(reference, filters=DATASETS, remote=sources.remote)
    sources.stack.callback(other.close)
    steps = [Step(f"Unpacking referenced dataset ModelKit {dataset.remote_path} to {path}")]
    steps += [_step(layer, sources, path) for layer in other.layers]
    return steps + _remote(other, DATASETS, sources, chain, path)


def _joined(directory: str, path: str) -> str:
    return f"{directory}/{path}" if directory else path
