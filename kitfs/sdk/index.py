"""Indexes of kits (``kitfs.index``): an index gives one name to the variants of a model, and labels distinguish them.

    kitfs.index.create("registry.example.com/team/llama:all")
    kitfs.index.add("registry.example.com/team/llama:all", "registry.example.com/team/llama:q4", labels={"bits": "4"})
    kitfs.index.push("registry.example.com/team/llama:all")
    kitfs.open("registry.example.com/team/llama:all", labels={"bits": "4"})

An index and the kits that it lists are in the same repository. Deleting an index does not delete its kits.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

from kitfs.errors import UsageError
from kitfs.oci.names import LOCAL, Digest, Reference
from kitfs.sdk.names import remote_reference
from kitfs.sdk.options import Options, TransferOptions, settings_of
from kitfs.sdk.progress import Progress, reporting
from kitfs.sdk.session import store_of, workspace_of

if TYPE_CHECKING:
    from kitfs.kit.workspace import Workspace
    from kitfs.ops.library.index import Deleted, IndexDocument

Edits = Mapping[str, "str | None"]


@dataclass(frozen=True, slots=True)
class IndexSummary:
    """An index in the store. ``kits``: how many kits it lists, or None when the index is damaged."""

    repository: str
    tags: tuple[str, ...]
    digest: str
    kits: int | None


@dataclass(frozen=True, slots=True)
class IndexedKit:
    """A kit that an index lists.

    ``reference``: the name by which the kit was added, or "" if it was added by digest. ``size``: the bytes of its
    layers, or None if neither the index nor a manifest in the store states the size. ``labels``: parsed JSON values.
    ``annotations``: strings.
    """

    reference: str
    digest: str
    size: int | None
    labels: dict[str, Any]
    annotations: dict[str, str]


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """An index and the kits that it lists, in the order in which they were added."""

    reference: str
    digest: str
    kits: tuple[IndexedKit, ...]


@dataclass(frozen=True, slots=True)
class DeletedIndex:
    """The result of ``delete``: the ``tags`` that were deleted, and whether the ``index`` itself was deleted."""

    repository: str
    digest: str
    tags: tuple[str, ...]
    index: bool


def create(index: str, **options: Unpack[Options]) -> str:
    """Make an empty index in the store, and return its digest.

    Raises StoreError, and UsageError if the index exists.
    """
    from kitfs.ops.library.index import create as run

    with store_of(settings_of(options, Options)) as store:
        return str(run(store, _tag(index)))


def add(
    index: str,
    kit: str,
    *,
    labels: Mapping[str, Any] | None = None,
    annotations: Edits | None = None,
    remote: bool = False,
    **options: Unpack[Options],
) -> str:
    """Add a kit of the same repository to an index, or change its labels, and return the new digest of the index.

    ``labels``: any JSON values. ``annotations``: strings. The value None removes a label or an annotation. Labels and
    annotations that are not named stay. ``remote``: look up the kit at its registry. Raises NotFound, ManifestError,
    StoreError or RegistryError, and UsageError for a kit of another repository or an invalid label.
    """
    import json

    from kitfs.modelkit.index import annotation_edits, label_edits
    from kitfs.ops.library.index import add as run

    label_texts = [
        f"{key}-" if value is None else f"{key}={value}" if isinstance(value, str) else f"{key}:={json.dumps(value)}"
        for key, value in (labels or {}).items()
    ]
    note_texts = [f"{key}-" if value is None else f"{key}={value}" for key, value in (annotations or {}).items()]
    settings = settings_of(options, Options)
    named = _kit(kit)
    if remote and named.registry == LOCAL:
        raise UsageError(
            f"cannot ask a registry for {kit}: it does not name a registry (write registry/repository:tag)"
        )
    with workspace_of(settings) as workspace:
        digest = run(
            workspace,
            _tag(index),
            named,
            remote=remote,
            labels=label_edits(label_texts),
            annotations=annotation_edits(note_texts),
        )
    return str(digest)


def remove(index: str, kit: str, **options: Unpack[Options]) -> str:
    """Remove a kit from an index, and return the new digest of the index. The kit itself is not removed.

    ``kit``: the name of a kit in the store, or registry/repository@digest. Raises NotFound, StoreError.
    """
    from kitfs.ops.library.index import remove as run

    with store_of(settings_of(options, Options)) as store:
        return str(run(store, _tag(index), _kit(kit))[1])


def delete(
    index: str | None = None,
    *,
    all: bool = False,  # noqa: A002 - the flag's name
    force: bool = False,
    **options: Unpack[Options],
) -> builtins.list[DeletedIndex]:
    """Delete a tag of an index from the store. Deleting the last tag also deletes the index. Its kits stay.

    ``force``, or a digest instead of a tag, deletes the index with all its tags. ``all`` together with ``force``
    deletes every index. ``all`` without ``force`` deletes nothing. Raises NotFound, UsageError, StoreError.
    """
    from kitfs.ops.library import index as indexes

    if (index is None) != all:
        raise UsageError("cannot delete: name an index, or pass all=True, but not both")
    with store_of(settings_of(options, Options)) as store:
        if index is None:
            return [_deleted(row) for row in (indexes.delete_all(store) if force else ())]
        return [_deleted(indexes.delete(store, _kit(index), force=force))]


def list_indexes(**options: Unpack[Options]) -> builtins.list[IndexSummary]:
    """List the indexes of the store (public as ``kitfs.index.list``). Raises StoreError."""
    from kitfs.ops.library.index import listed

    with store_of(settings_of(options, Options)) as store:
        rows = listed(store)
    return [IndexSummary(_repository(row.name), row.tags, str(row.digest), row.kits) for row in rows]


def info(index: str, *, remote: bool = False, **options: Unpack[Options]) -> IndexInfo:
    """Return an index and the kits that it lists. It is read from the store, or with ``remote`` from its registry.

    Raises NotFound, ManifestError, StoreError, RegistryError, UsageError.
    """
    import json

    from kitfs.ops.library.index import size_of

    named = Reference.parse(index).or_latest()
    with workspace_of(settings_of(options, Options)) as workspace:
        found = _found(workspace, named, remote=remote)

        def manifest(digest: Digest) -> bytes | None:
            if remote:
                return workspace.client.repository(named).manifest(digest)[1]
            return workspace.store.get(digest)

        kits = tuple(
            IndexedKit(
                variant.name(named),
                str(variant.digest),
                size_of(variant, manifest),
                {key: json.loads(text) for key, text in variant.labels.items()},
                variant.notes(),
            )
            for variant in found.value.variants
        )
    return IndexInfo(named.display, str(found.digest), kits)


def inspect(index: str, *, remote: bool = False, **options: Unpack[Options]) -> dict[str, Any]:
    """Return an index as JSON values. The index is read from the store, or with ``remote`` from its registry.

    Raises NotFound, ManifestError, StoreError, RegistryError, UsageError.
    """
    import json

    with workspace_of(settings_of(options, Options)) as workspace:
        value: dict[str, Any] = json.loads(_found(workspace, Reference.parse(index).or_latest(), remote=remote).data)
    return value


def push(
    index: str,
    destination: str | None = None,
    *,
    progress: Progress = False,
    **options: Unpack[TransferOptions],
) -> str:
    """Push an index, after those of its kits that the registry does not have. Return the digest of the index.

    Raises RegistryError, StoreError or UsageError, and NotFound if a kit is neither at the registry nor in the store.
    """
    from kitfs.ops.library.index import push as run

    settings = settings_of(options, TransferOptions)
    source = Reference.parse(index).or_latest()
    target = remote_reference(destination or index, "push to")
    with workspace_of(settings) as workspace, reporting(progress, f"push {target.display}") as report:
        digest = run(workspace, source, target, concurrency=settings["concurrency"], report=report)
    return str(digest)


def pull(index: str, **options: Unpack[Options]) -> str:
    """Pull an index into the store, and return its digest. Its kits are not pulled.

    Raises NotFound, RegistryError, ManifestError, StoreError, UsageError.
    """
    from kitfs.ops.library.index import pull as run

    named = remote_reference(index, "pull")
    with workspace_of(settings_of(options, Options)) as workspace:
        return str(run(workspace, named))


def _tag(index: str) -> Reference:
    """Parse the name of an index that is to be changed. Raises UsageError for a digest."""
    named = Reference.parse(index)
    if named.digest is not None:
        raise UsageError(f"cannot change {index}: name the index by a tag, not by a digest")
    return named.or_latest()


def _kit(kit: str) -> Reference:
    """Parse a reference with a tag or a digest. Raises UsageError for a reference that has neither."""
    named = Reference.parse(kit)
    if not named.identifier:
        raise UsageError(f"{kit} has neither a tag nor a digest")
    return named


def _found(workspace: Workspace, named: Reference, *, remote: bool) -> IndexDocument:
    from kitfs.ops.library.index import fetched, stored

    if remote and named.registry == LOCAL:
        raise UsageError(
            f"cannot ask a registry for {named.display}: it does not name a registry (write registry/repository:tag)"
        )
    return fetched(workspace.client.repository(named), named) if remote else stored(workspace.store, named)


def _deleted(row: Deleted) -> DeletedIndex:
    return DeletedIndex(_repository(row.name), str(row.digest), row.tags, row.whole)


def _repository(name: str) -> str:
    return name.removeprefix(f"{LOCAL}/")


list = list_indexes  # noqa: A001 - public as kitfs.index.list
