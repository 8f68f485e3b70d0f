"""List the versions of a repository, and compare each version with the version before it.

Versions are compared by their manifests, their Kitfiles and the indexes of the layers that differ. Only the headers of
tensors are read. The index of a layer is used if it is known, or if the layer is raw or an uncompressed tar with few
entries, so that its index needs only a few requests. Other layers that differ are listed as unread. So a history
fetches kilobytes for each version. Threading: ``history`` starts threads that fetch several manifests at once, and
returns when they have ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any, Final, NamedTuple

from kitfs.errors import IntegrityError, LayerError, LayerLimit, ManifestError, NotFound
from kitfs.kit.kit import Kit
from kitfs.kit.layer import Layer
from kitfs.kit.tree import tree_of
from kitfs.kit.workspace import Workspace
from kitfs.layers.tar import index_tar
from kitfs.modelkit.kitfile import Dataset, Kitfile
from kitfs.oci.names import LOCAL, Digest, Reference
from kitfs.oci.referrers import is_tag
from kitfs.ops.diff.files import FileChanges, KitFiles, compare_files
from kitfs.ops.diff.layers import LayerChanges, compare_layers
from kitfs.ops.diff.tensors import TensorChanges, compare_tensors
from kitfs.ops.library import inspect as inspecting
from kitfs.ops.library.inspect import KitDocuments
from kitfs.ops.library.tags import kits
from kitfs.ops.library.values import values_of

CONCURRENCY: Final = 5  # manifests that are fetched at once
MAX_READ_ENTRIES: Final = 64  # entries of a tar whose index is made; each may cost a request of 32 KiB
COSIGN_TAG: Final = re.compile(r"sha256-[0-9a-f]{64}\.(sig|att|sbom)")
DIGITS: Final = re.compile(r"(\d+)")


class ValueChange(NamedTuple):
    """A value of the Kitfile that differs. ``before`` or ``after`` is None if only the other version has the value."""

    path: str
    before: Any
    after: Any


class DatasetChange(NamedTuple):
    """A dataset that differs. ``before`` and ``after``: its digest or remote place, or None if it is missing."""

    name: str
    before: str | None
    after: str | None


class VersionChange(NamedTuple):
    """What has changed since the version before.

    ``files`` and ``tensors``: the changes in layers that differ and could be compared. ``unread``: the paths of the
    layers that differ and could not be compared, each with the reason.
    """

    layers: LayerChanges
    files: FileChanges
    tensors: TensorChanges
    data: tuple[DatasetChange, ...]
    parameters: tuple[ValueChange, ...]
    unread: tuple[tuple[str, str], ...]


class Version(NamedTuple):
    """A kit of a repository. ``created``: seconds since the epoch, or 0 if the manifest does not state a time.

    ``size``: the bytes of all layers. ``change`` is None for the first version.
    """

    digest: Digest
    tags: tuple[str, ...]
    created: int
    size: int
    change: VersionChange | None


def history(
    workspace: Workspace, reference: Reference, *, last: int | None = None, concurrency: int = CONCURRENCY
) -> list[Version]:
    """Return the versions of a repository, the oldest first. Tags of the same kit are one version.

    Versions are sorted by the creation time in their manifests, and by tag if the times are equal. A version without a
    time comes first. If the reference has no registry, the kits of the store are returned. ``last``: return only the
    newest versions. Raises NotFound if the repository does not exist or has no kit, and RegistryError or StoreError.
    """
    remote = reference.registry != LOCAL
    found = _fetched(workspace, reference, concurrency) if remote else _stored(workspace, reference)
    if not found:
        raise NotFound(f"{reference.display} has no kit{'' if remote else ' in the store'}")
    found.sort(key=lambda one: (one[1].manifest.created, [_natural(tag) for tag in one[0]]))
    first = 0 if last is None else max(0, len(found) - last)
    versions = []
    for at, (tags, documents) in enumerate(found[first:], first):
        change = _change(workspace, reference, found[at - 1][1], documents, remote=remote) if at else None
        size = sum(layer.size for layer in documents.manifest.layers)
        versions.append(Version(documents.digest, tags, documents.manifest.created, size, change))
    return versions


def _stored(workspace: Workspace, reference: Reference) -> list[tuple[tuple[str, ...], KitDocuments]]:
    found = []
    for kit in kits(workspace.store):
        if kit.name == reference.name:
            try:
                found.append((kit.tags, inspecting.stored_digest(workspace.store, kit.digest)))
            except ManifestError:  # an index of kits
                continue
    return found


def _fetched(
    workspace: Workspace, reference: Reference, concurrency: int
) -> list[tuple[tuple[str, ...], KitDocuments]]:
    """Fetch the manifests and configs of all tags. Tags of other artifacts are omitted."""
    repository = workspace.client.repository(reference)
    tags = [tag for tag in repository.tags() if not is_tag(tag) and not COSIGN_TAG.fullmatch(tag)]

    def ask(tag: str) -> KitDocuments | None:
        try:
            return inspecting.fetched(repository, tag)
        except (ManifestError, NotFound):  # the tag names another kind of artifact, or was deleted meanwhile
            return None

    with ThreadPoolExecutor(concurrency, thread_name_prefix="kitfs-history") as pool:
        answers = list(pool.map(ask, tags))
    named: dict[Digest, list[str]] = {}
    documents = {one.digest: one for one in answers if one is not None}
    for tag, one in zip(tags, answers, strict=True):
        if one is not None:
            named.setdefault(one.digest, []).append(tag)
    return [(tuple(sorted(names, key=_natural)), documents[digest]) for digest, names in named.items()]


def _natural(tag: str) -> list[tuple[int, str]]:
    """Return a key that sorts v2 before v10."""
    return [(int(part[:18]), "") if part.isdigit() else (-1, part) for part in DIGITS.split(tag) if part]


def _change(
    workspace: Workspace, reference: Reference, before: KitDocuments, after: KitDocuments, *, remote: bool
) -> VersionChange:
    layers = compare_layers(before.manifest, after.manifest)
    files, tensors = FileChanges([], [], [], []), TensorChanges([], [], [], [], 0)
    unread: dict[str, str] = {}
    try:
        with (
            closing(_opened(workspace, reference, before.digest, remote=remote)) as first,
            closing(_opened(workspace, reference, after.digest, remote=remote)) as second,
        ):
            left, right = _differing(first, second), _differing(second, first)
            unread = {layer.path or layer.digest: reason for layer in (*left, *right) if (reason := _refusal(layer))}
            old, new = (_files(workspace, kit, side, unread) for kit, side in ((first, left), (second, right)))
            files, tensors = compare_files(old, new), compare_tensors(old, new)
    except NotFound as e:  # a parent kit does not exist any more
        unread = {".": str(e)}
    return VersionChange(
        layers,
        files,
        tensors,
        tuple(_dataset_changes(before.kitfile, after.kitfile)),
        tuple(_value_changes(values_of(before.kitfile), values_of(after.kitfile))),
        tuple(sorted(unread.items())),
    )


def _opened(workspace: Workspace, reference: Reference, digest: Digest, *, remote: bool) -> Kit:
    return workspace.resolver.open(replace(reference, tag=None, digest=digest), remote=remote)


def _differing(kit: Kit, other: Kit) -> list[Layer]:
    """Return the layers of a kit that the other kit does not have at the same path."""
    same = {(layer.digest, layer.path) for layer in other.layers}
    return [layer for layer in kit.layers if (layer.digest, layer.path) not in same]


def _files(workspace: Workspace, kit: Kit, layers: Sequence[Layer], unread: Mapping[str, str]) -> KitFiles:
    """List the files of the ``layers`` of a kit, without the layers that ``unread`` names.

    ``unread`` maps the path (or digest) of each layer that cannot be read in one of the two versions to the reason.
    """
    chosen = tuple(layer for layer in layers if (layer.path or layer.digest) not in unread)
    part = replace(kit, layers=chosen, kitfile_bytes=None)
    return KitFiles(part, tree_of(part, counters=workspace.counters, log=workspace.log))


def _refusal(layer: Layer) -> str:
    """Return why the index of a layer is not read; "" if it is known or cheap to read."""
    if layer.listed:
        return ""
    if layer.compressed:
        return "it is compressed, and its index is not known"
    try:
        index_tar(layer.wire(), max_entries=MAX_READ_ENTRIES)
        layer.index()
    except LayerLimit:
        return f"it has more than {MAX_READ_ENTRIES} entries, and its index is not known"
    except (LayerError, IntegrityError) as e:
        return str(e)
    return ""


def _dataset_changes(before: Kitfile, after: Kitfile) -> Iterator[DatasetChange]:
    old, new = ({one.name or one.path: _content(one) for one in kit.datasets} for kit in (before, after))
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name):
            yield DatasetChange(name, old.get(name), new.get(name))


def _content(dataset: Dataset) -> str:
    return " ".join(part for part in (dataset.remote_path, dataset.remote_hash) if part) or dataset.digest


def _value_changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[ValueChange]:
    for path in sorted({*before, *after}):
        if before.get(path) != after.get(path):
            yield ValueChange(path, before.get(path), after.get(path))
