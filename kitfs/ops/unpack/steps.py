"""List the steps of an unpack in kit's order: parent kits, the Kitfile, the kit's layers, and remote datasets.

This module opens the kits to which a kit refers, but reads no layers. Threading: each call uses one thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from kitfs.kit.chain import extended
from kitfs.kit.kit import Kit
from kitfs.kit.layer import Layer
from kitfs.kit.layering import joined
from kitfs.kit.workspace import Workspace
from kitfs.modelkit.filters import Filter, for_parent, selects
from kitfs.modelkit.kitfile import Dataset, Entry, clean_path
from kitfs.modelkit.layers import kit_layers
from kitfs.oci.names import Reference
from kitfs.ops.events import Report, Warned
from kitfs.ops.unpack.content import ContentSource, LayerContent

KITFILE: Final = "Kitfile"
LABELS: Final = {
    "model": "model {name}", "modelpart": "model part {name}", "code": "code", "dataset": "dataset {name}",
    "docs": "docs", "prompt": "prompt", "mcpserver": "mcpServer {name}",
}  # fmt: skip
DATASETS: Final = (Filter(("datasets",)),)


@dataclass(frozen=True, slots=True)
class Step:
    """A step of an unpack. ``text`` is the line that kit prints for it.

    ``source``: the layer or object to write, or None for the Kitfile (``kitfile``) and for headings. ``below``: the
    directory to which the layer is written ("" is the target directory of the unpack). ``path``: the path of the
    Kitfile entry.
    """

    text: str
    source: ContentSource | None = None
    below: str = ""
    path: str = ""
    kitfile: bool = False


@dataclass(frozen=True, slots=True)
class StepContext:
    """The parameters for making steps.

    ``stack``: closes the kits that the steps open. ``remote``: ask registries even for kits that the store has.
    ``include_remote``: include datasets that are stored elsewhere.
    """

    workspace: Workspace
    stack: ExitStack
    remote: bool
    include_remote: bool
    report: Report


def steps_of(kit: Kit, directory: str, filters: Sequence[Filter], context: StepContext) -> list[Step]:
    """List the steps for a kit that was opened with ``filters``.

    Raises the errors of opening a referenced kit, and UsageError for an invalid reference to an object in S3.
    """
    own = sum(
        1
        for e in kit_layers(kit.manifest, kit.kitfile)
        if not filters or (e.entry is not None and selects(filters, e.entry))
    )
    inherited = len(kit.layers) - own
    steps = [Step(f"Unpacking referenced modelkit {text}") for text in _parents(kit, filters, context)]
    steps += [_step(layer, context) for layer in kit.layers[:inherited]]
    if kit.kitfile_bytes is not None:
        steps.append(Step(f"Unpacking config to {directory.rstrip('/')}/{KITFILE}", kitfile=True))
    steps += [_step(layer, context) for layer in kit.layers[inherited:]]
    steps += _remote(kit, filters, context, (str(kit.reference),), "")
    if filters and not steps:
        context.report(Warned(f"{' and '.join(map(str, filters))}: nothing in this kit is selected"))
    return steps


def _parents(kit: Kit, filters: Sequence[Filter], context: StepContext) -> Iterator[str]:
    """Yield the references of the parent kits, which contain the model, as they are written in the Kitfiles."""
    at, wanted = kit, tuple(filters)
    while at.kitfile.parent is not None and at.kitfile.model is not None:
        yield at.kitfile.model.path
        above = for_parent(wanted)
        if above is None:
            return
        parent = context.workspace.resolver.open(
            at.kitfile.parent.or_latest().held_by(at.reference), filters=above, remote=context.remote
        )
        parent.close()
        at, wanted = parent, above


def _step(layer: Layer, context: StepContext, below: str = "") -> Step:
    entry = layer.entry
    path = entry.path if entry is not None else layer.path or ""
    what = LABELS[entry.kind].format(name=entry.name).rstrip() if entry is not None else f"layer {layer.digest}"
    return Step(
        f"Unpacking {what} to {path}",
        LayerContent(layer, context.workspace.store, max_entries=context.workspace.options.max_entries),
        below,
        path,
    )


def _remote(
    kit: Kit, filters: Sequence[Filter], context: StepContext, chain: tuple[str, ...], below: str
) -> list[Step]:
    """List the steps for datasets that are stored elsewhere.

    Datasets of other kits come first, and are written below the path of their entry. Objects in S3 follow, and are
    written to the path of their entry. ``chain``: the references that lead to ``kit``, including its own reference at
    the end.
    """
    found = [d for d in kit.kitfile.datasets if d.remote_path and selects(filters, Entry("dataset", d.name, d.path))]
    if found and not context.include_remote:
        context.report(Warned("ModelKit contains remote datasets. To unpack, specify the --include-remote flag"))
        return []
    objects = [d for d in found if d.remote_path.startswith("s3://")]
    steps: list[Step] = []
    for dataset in found:
        if dataset not in objects:
            steps += _referenced(dataset, kit, context, chain, joined(below, dataset.path))
    for dataset in objects:
        from kitfs.ops.unpack.s3 import ObjectContent  # which imports httpx

        source = ObjectContent(dataset.remote_path, dataset.remote_hash, clean_path(dataset.path))
        path = joined(below, dataset.path)
        steps.append(Step(f"Downloading remote S3 dataset for path {path}", source, below, path))
    return steps


def _referenced(dataset: Dataset, kit: Kit, context: StepContext, chain: tuple[str, ...], path: str) -> list[Step]:
    """List the steps that unpack the datasets of another kit, to which ``dataset`` of ``kit`` refers.

    Raises ManifestError if the chain of references is too long or has a cycle.
    """
    reference = Reference.parse(dataset.remote_path).or_latest().held_by(kit.reference)
    chain = extended(chain, reference)
    other = context.workspace.resolver.open(reference, filters=DATASETS, remote=context.remote)
    context.stack.callback(other.close)
    steps = [Step(f"Unpacking referenced dataset ModelKit {dataset.remote_path} to {path}")]
    steps += [_step(layer, context, path) for layer in other.layers]
    return steps + _remote(other, DATASETS, context, chain, path)
