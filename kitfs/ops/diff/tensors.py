"""Compare the tensors of two kits by the headers of their safetensors and GGUF files. Values are not compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kitfs.errors import LayerError
from kitfs.formats.header import Tensor
from kitfs.formats.tensors import has_tensors, tensors_of
from kitfs.ops.diff.files import ComparedFile
from kitfs.ops.diff.pairs import pair


class KitTensor(NamedTuple):
    """A tensor of a kit. ``path``: the path of the file that contains it."""

    path: str
    tensor: Tensor


class TensorChange(NamedTuple):
    """A tensor that differs between the two kits. ``what``: "reshaped", "retyped" or "moved" (to another file)."""

    before: KitTensor
    after: KitTensor
    what: tuple[str, ...]


class UnreadableFile(NamedTuple):
    """A file whose header cannot be read. ``kit``: 1 or 2 for the first or second kit. ``reason``: a message."""

    kit: int
    path: str
    reason: str


class TensorChanges(NamedTuple):
    """The differences between the tensors of two kits.

    ``same``: the number of tensors that have the same name, type and shape in both kits. Tensors in files that both
    kits share are not counted.
    """

    added: list[KitTensor]
    removed: list[KitTensor]
    changed: list[TensorChange]
    unreadable: list[UnreadableFile]
    same: int


def compare_tensors(first: Mapping[str, ComparedFile], second: Mapping[str, ComparedFile]) -> TensorChanges:
    """Compare the tensors of two kits by file and name.

    A tensor without a counterpart has moved to another file if its name occurs exactly once in each kit. Only the
    headers of files are read. A file that both kits have in the same layer is not read.
    """
    unreadable: list[UnreadableFile] = []
    left = _tensors(first, second, 1, unreadable)
    right = _tensors(second, first, 2, unreadable)
    pairs, left, right = pair(left, right, lambda found: (found.path, found.tensor.name))
    unique = _unique_names(left) & _unique_names(right)
    moved = pair(
        [found for found in left if found.tensor.name in unique],
        [found for found in right if found.tensor.name in unique],
        lambda found: found.tensor.name,
    ).pairs
    changes = [TensorChange(a, b, _differences(a, b)) for a, b in (*pairs, *moved)]
    changed = [change for change in changes if change.what]
    return TensorChanges(
        [found for found in right if found.tensor.name not in unique],
        [found for found in left if found.tensor.name not in unique],
        changed,
        unreadable,
        len(changes) - len(changed),
    )


def _tensors(
    files: Mapping[str, ComparedFile],
    other: Mapping[str, ComparedFile],
    kit: int,
    unreadable: list[UnreadableFile],
) -> list[KitTensor]:
    """List the tensors of all files that differ from the ``other`` kit.

    Unreadable files are appended to ``unreadable``.
    """
    found: list[KitTensor] = []
    for path, file in sorted(files.items()):
        if file.kind != "file" or not has_tensors(path) or file.same_bytes(other.get(path)):
            continue
        try:
            found += [KitTensor(path, tensor) for tensor in tensors_of(path, file.size, file.read)]
        except LayerError as e:
            unreadable.append(UnreadableFile(kit, path, str(e)))
    return found


def _unique_names(tensors: Sequence[KitTensor]) -> set[str]:
    counts = Counter(found.tensor.name for found in tensors)
    return {name for name, count in counts.items() if count == 1}


def _differences(a: KitTensor, b: KitTensor) -> tuple[str, ...]:
    differs = {
        "reshaped": a.tensor.shape != b.tensor.shape,
        "retyped": a.tensor.dtype != b.tensor.dtype,
        "moved": a.path != b.path,
    }
    return tuple(name for name, is_so in differs.items() if is_so)
