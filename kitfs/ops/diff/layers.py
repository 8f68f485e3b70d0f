"""What differs between two kits: layers by their manifests (kit's ``diff``, KITOPS §8), files by their indexes,
tensors by their heads.

It says what it knows and no more: files of one size in different layers may have changed, and are read only when that
is asked for. No printing, no network of its own: files come with what reads them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from kitfs.errors import LayerError
from kitfs.formats.tensors import Tensor, has_tensors, tensors_of
from kitfs.oci.manifest import FILEPATH, Descriptor, Manifest
from kitfs.oci.paths import paths_overlap

PIECE: Final = 1 << 20
T = TypeVar("T")


class Comparison(NamedTuple):
    """Two manifests side by side. Layers are sorted by media type, and stay in the manifest's order among their
    like.
    """

    same_config: bool
    same_annotations: bool
    shared: list[Descriptor]
    first: list[Descriptor]
    second: list[Descriptor]


def compare(first: Manifest, second: Manifest) -> Comparison:
    """Layers are paired by digest, those of one path before others, each once."""
    left, right = list(first.layers), list(second.layers)
    shared: list[Descriptor] = []
    for key in (lambda d: (d.digest, _path(d)), lambda d: d.digest):
        left, right, pairs = paired(left, right, key)
        shared += [b for _, b in pairs]
    sort: Callable[[list[Descriptor]], list[Descriptor]] = lambda found: sorted(found, key=lambda d: d.media_type)  # noqa: E731
    return Comparison(
        first.config.digest == second.config.digest,
        dict(first.annotations) == dict(second.annotations),
        sort([d for d in second.layers if any(d is s for s in shared)]),
        sort(left),
        sort(right),
    )


def _path(descriptor: Descriptor) -> str:
    return next((descriptor.annotations[name] for name in FILEPATH if name in descriptor.annotations), "")


def paired(
    left: Sequence[T], right: Sequence[T], key: Callable[[T], Hashable]
) -> tuple[list[T], list[T], list[tuple[T, T]]]:
    """(what is left of the one, what is left of the other, pairs of equal key), all in order."""
    waiting: dict[Hashable, list[T]] = defaultdict(list)
    for a in left:
        waiting[key(a)].append(a)
    pairs, rest = [], []
    for b in right:
        if waiting[key(b)]:
            pairs.append((waiting[key(b)].pop(0), b))
        else:
            rest.append(b)
    return [a for a in left if any(a is w for w in waiting[key(a)])], rest, pairs


class Placed(Protocol):
    """A layer, as far as ``differing`` needs it; ``kit.Layer`` is one."""

    @property
    def digest(self) -> str: ...

    path: str | None

    def first_entry_agrees(self, *, wait: bool = True) -> bool: ...


L = TypeVar("L", bound=Placed)


def differing(first: Sequence[L], second: Sequence[L]) -> tuple[list[L], list[L]]:
    """Both without the layers that cannot make a difference: those that both have, in one order, at places that
    nothing else touches.

    They need not be indexed, which for compressed layers means read whole.
    """
    left, right, pairs = paired(first, second, lambda layer: (layer.digest, layer.path))
    if [id(a) for a, _ in pairs] != [id(a) for a in first if not any(a is x for x in left)]:
        return list(first), list(second)
    others = [layer.path for layer in (*left, *right)]
    idle: set[int] = set()
    for a, b in pairs:
        if (
            a.path
            and all(path is not None and not paths_overlap(path, a.path) for path in others)
            and a.first_entry_agrees()
        ):
            idle |= {id(a), id(b)}
    return [a for a in first if id(a) not in idle], [b for b in second if id(b) not in idle]


class File(NamedTuple):
    """A file or symbolic link of a kit.

    ``layer`` is its layer's digest and ``place`` where it lies in it; ``whole``: the layer is this file and nothing
    else, so that its digest is the file's. ``read(offset, size)`` gives its bytes.
    """

    kind: str
    mode: int
    size: int
    target: str
    layer: str
    place: Hashable
    whole: bool
    read: Callable[[int, int], bytes]


class Change(NamedTuple):
    """A path that both kits have. ``what``: kind, size, mode, target, content; ``maybe`` when only its bytes could
    tell.
    """

    path: str
    before: File
    after: File
    what: tuple[str, ...]


class Files(NamedTuple):
    """What became of files; all by path."""

    added: list[tuple[str, File]]
    removed: list[tuple[str, File]]
    changed: list[Change]
    maybe: list[Change]


def compare_files(first: Mapping[str, File], second: Mapping[str, File], *, content: bool = False) -> Files:
    """Two kits' files. ``content``: those that may have changed are read, side by side up to the first difference."""
    changes = [
        Change(path, first[path], second[path], _changed(first[path], second[path], content))
        for path in sorted(first.keys() & second)
    ]
    return Files(
        [(path, second[path]) for path in sorted(second.keys() - first)],
        [(path, first[path]) for path in sorted(first.keys() - second)],
        [c for c in changes if c.what and c.what != ("maybe",)],
        [c for c in changes if c.what == ("maybe",)],
    )


def _changed(a: File, b: File, content: bool) -> tuple[str, ...]:
    if a.kind != b.kind:
        return ("kind",)
    if a.kind == "symlink":
        return () if a.target == b.target else ("target",)
    mode = ("mode",) if a.mode != b.mode else ()
    if a.size != b.size:
        return ("size", *mode)
    if a.size == 0 or (a.layer, a.place) == (b.layer, b.place):
        return mode
    if a.whole and b.whole:
        return mode if a.layer == b.layer else ("content", *mode)
    if not content:
        return (*mode, "maybe")
    same = all(a.read(at, PIECE) == b.read(at, PIECE) for at in range(0, a.size, PIECE))
    return mode if same else ("content", *mode)


class Place(NamedTuple):
    """A tensor, and the file that has it."""

    path: str
    tensor: Tensor


class TensorChange(NamedTuple):
    """A tensor of both kits. ``what``: reshaped, retyped, moved to another file."""

    before: Place
    after: Place
    what: tuple[str, ...]


class Tensors(NamedTuple):
    """What became of tensors; ``unreadable`` are (1 or 2, path, why) of files whose head cannot be read.

    ``same`` counts those whose names, types and shapes are equal, in files that are not known to be the same.
    """

    added: list[Place]
    removed: list[Place]
    changed: list[TensorChange]
    unreadable: list[tuple[int, str, str]]
    same: int


def compare_tensors(first: Mapping[str, File], second: Mapping[str, File]) -> Tensors:
    """Two kits' tensors, by file and name; a name that is once in each of the rest has moved. Values are not compared.

    Files that both kits have from one layer are not read, others for their heads only.
    """
    unreadable: list[tuple[int, str, str]] = []
    left = _tensors(first, second, 1, unreadable)
    right = _tensors(second, first, 2, unreadable)
    left, right, pairs = paired(left, right, lambda p: (p.path, p.tensor.name))
    once = _once(left) & _once(right)
    kept = [p for p in left if p.tensor.name not in once], [p for p in right if p.tensor.name not in once]
    _, _, moved = paired(
        [p for p in left if p.tensor.name in once], [p for p in right if p.tensor.name in once], lambda p: p.tensor.name
    )
    changes = [TensorChange(a, b, _tensor_changed(a, b)) for a, b in (*pairs, *moved)]
    changed = [c for c in changes if c.what]
    return Tensors(kept[1], kept[0], changed, unreadable, len(changes) - len(changed))


def _tensors(
    own: Mapping[str, File], other: Mapping[str, File], number: int, unreadable: list[tuple[int, str, str]]
) -> list[Place]:
    found: list[Place] = []
    for path in sorted(own):
        file = own[path]
        twin = other.get(path)
        if (
            file.kind != "file"
            or not has_tensors(path)
            or (twin is not None and (twin.layer, twin.place) == (file.layer, file.place))
        ):
            continue
        try:
            found += [Place(path, tensor) for tensor in tensors_of(path, file.size, file.read)]
        except LayerError as e:
            unreadable.append((number, path, str(e).removeprefix(f"{path}: ")))
    return found


def _once(places: Iterable[Place]) -> set[str]:
    counts: dict[str, int] = defaultdict(int)
    for place in places:
        counts[place.tensor.name] += 1
    return {name for name, count in counts.items() if count == 1}


def _tensor_changed(a: Place, b: Place) -> tuple[str, ...]:
    facts: Any = (
        ("reshaped", a.tensor.shape != b.tensor.shape), ("retyped", a.tensor.dtype != b.tensor.dtype), ("moved", a.path != b.path),
    )  # fmt: skip
    return tuple(word for word, true in facts if true)
