"""Compare two kits: layers, files and tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

from kitfs.errors import UnsupportedLayer
from kitfs.oci.manifest import FILEPATH, Descriptor, LayerType
from kitfs.sdk.names import display
from kitfs.sdk.options import ReadOptions, settings_of
from kitfs.sdk.session import workspace_of
from kitfs.sdk.tensors import TensorInfo, info_of

if TYPE_CHECKING:
    from kitfs.ops.diff.diff import DiffSide
    from kitfs.ops.diff.files import ComparedFile, FileChanges
    from kitfs.ops.diff.tensors import KitTensor, TensorChanges


@dataclass(frozen=True, slots=True)
class ComparedKit:
    """One of the two kits that were compared.

    ``remote``: whether the kit was read from its registry or layout instead of the store.
    """

    reference: str
    digest: str
    remote: bool


@dataclass(frozen=True, slots=True)
class ComparedLayer:
    """A layer of one kit or of both. ``kind``: as in LayerInfo, or "unknown" if kitfs does not know its media type."""

    kind: str
    path: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class ChangedFile:
    """A file that differs between the two kits.

    ``what``: the properties that differ: kind, size, mode, target or content, or "maybe" when only a comparison of the
    bytes could decide. ``before`` and ``after``: its sizes in bytes in the first and in the second kit.
    """

    path: str
    what: tuple[str, ...]
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class FileDifference:
    """The files that differ, sorted by path. ``added`` and ``removed`` are paths."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[ChangedFile, ...]
    maybe: tuple[ChangedFile, ...]


@dataclass(frozen=True, slots=True)
class ChangedTensor:
    """A tensor that differs between the two kits. ``what``: "reshaped", "retyped" or "moved" (to another file)."""

    what: tuple[str, ...]
    before: TensorInfo
    after: TensorInfo


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """The tensors that differ.

    ``same``: how many tensors have the same name, type and shape in both kits. Only files that may differ are compared.
    ``unreadable``: the files whose header cannot be read, as (1 or 2 for the first or second kit, path, reason).
    """

    added: tuple[TensorInfo, ...]
    removed: tuple[TensorInfo, ...]
    changed: tuple[ChangedTensor, ...]
    same: int
    unreadable: tuple[tuple[int, str, str], ...]


@dataclass(frozen=True, slots=True)
class KitDifference:
    """The result of ``diff``.

    ``shared``: the layers that both kits have. ``only_first`` and ``only_second``: the layers that only one kit has.
    ``files`` and ``tensors`` are None if they were not compared, and always None for identical kits.
    """

    first: ComparedKit
    second: ComparedKit
    same_config: bool
    same_annotations: bool
    shared: tuple[ComparedLayer, ...]
    only_first: tuple[ComparedLayer, ...]
    only_second: tuple[ComparedLayer, ...]
    files: FileDifference | None
    tensors: TensorDifference | None

    @property
    def identical(self) -> bool:
        """Return whether both references name the same kit, that is, whether their manifests have the same digest."""
        return self.first.digest == self.second.digest


def diff(
    first: str,
    second: str,
    *,
    files: bool = False,
    content: bool = False,
    tensors: bool = False,
    **options: Unpack[ReadOptions],
) -> KitDifference:
    """Compare two kits.

    A reference is looked up in the store and then at its registry; "local://REF" is looked up only in the store, and
    "remote://REF" only at its registry. ``files``: compare the files by the indexes of their layers. ``content``:
    compare the files, and read a file when the indexes do not show whether it differs. ``tensors``: compare the
    headers of safetensors and GGUF files. Raises NotFound, ManifestError, LayerError, StoreError, RegistryError.
    """
    from kitfs.ops.diff.diff import diff as run

    with workspace_of(settings_of(options, ReadOptions)) as workspace:
        found = run(workspace, first, second, files=files, content=content, tensors=tensors)
    layers = found.layers
    return KitDifference(
        _kit(found.first),
        _kit(found.second),
        layers.same_config,
        layers.same_annotations,
        tuple(map(_layer, layers.shared)),
        tuple(map(_layer, layers.first)),
        tuple(map(_layer, layers.second)),
        None if found.files is None else file_difference(found.files),
        None if found.tensors is None else tensor_difference(found.tensors),
    )


def _kit(side: DiffSide) -> ComparedKit:
    return ComparedKit(display(side.reference), str(side.digest), side.remote)


def _layer(layer: Descriptor) -> ComparedLayer:
    try:
        kind = LayerType.parse(layer).kind
    except UnsupportedLayer:
        kind = "unknown"
    path = next((layer.annotations[name] for name in FILEPATH if name in layer.annotations), "")
    return ComparedLayer(kind, path, str(layer.digest), layer.size)


def file_difference(changes: FileChanges) -> FileDifference:
    """Return the differences between files in the types of the SDK."""

    def changed(path: str, what: tuple[str, ...], before: ComparedFile, after: ComparedFile) -> ChangedFile:
        return ChangedFile(path, what, before.size, after.size)

    return FileDifference(
        tuple(path for path, _ in changes.added),
        tuple(path for path, _ in changes.removed),
        tuple(changed(c.path, c.what, c.before, c.after) for c in changes.changed),
        tuple(changed(c.path, c.what, c.before, c.after) for c in changes.maybe),
    )


def tensor_difference(changes: TensorChanges) -> TensorDifference:
    """Return the differences between tensors in the types of the SDK."""
    return TensorDifference(
        tuple(map(_tensor, changes.added)),
        tuple(map(_tensor, changes.removed)),
        tuple(ChangedTensor(c.what, _tensor(c.before), _tensor(c.after)) for c in changes.changed),
        changes.same,
        tuple((file.kit, file.path, file.reason) for file in changes.unreadable),
    )


def _tensor(found: KitTensor) -> TensorInfo:
    return info_of(found.path, found.tensor)
