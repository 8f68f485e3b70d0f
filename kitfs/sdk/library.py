"""List, inspect, tag and remove the kits of the store and of repositories."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

from kitfs.errors import UsageError
from kitfs.modelkit.filters import Filter
from kitfs.modelkit.kitfile import Kitfile
from kitfs.oci.names import LOCAL, UNNAMED, LayoutReference, Reference
from kitfs.sdk.names import kit_reference, remote_reference
from kitfs.sdk.options import Filters, Options, TransferOptions, filters_of, settings_of
from kitfs.sdk.session import store_of, workspace_of

if TYPE_CHECKING:
    from kitfs.config import Settings
    from kitfs.ops.library.inspect import KitDocuments
    from kitfs.ops.library.remove import Removed

NONE = "<none>"  # what kit prints for a name that does not exist


@dataclass(frozen=True, slots=True)
class KitSummary:
    """A kit in a list.

    ``repository``: registry/repository, without a registry for a kit that was packed without one, "" for a kit that has
    no name. ``name`` and ``author``: of the Kitfile's package, "" when it does not say them. ``size``: bytes of the
    layers.
    """

    repository: str
    tags: tuple[str, ...]
    digest: str
    name: str
    author: str
    size: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """The documents of a ModelKit.

    ``manifest`` is its manifest, parsed. ``kit_version`` is the version of the program that packed it, or "".
    """

    digest: str
    kitfile: Kitfile
    manifest: dict[str, Any]
    kit_version: str


@dataclass(frozen=True, slots=True)
class RemovedKit:
    """What a ``remove`` removed: ``tags`` of a repository, and the kit itself when ``kit`` is True."""

    repository: str
    digest: str
    tags: tuple[str, ...]
    kit: bool


def list_kits(
    repository: str | None = None,
    *,
    only: Filters = (),
    **options: Unpack[TransferOptions],
) -> list[KitSummary]:
    """List the kits of the store, or of a repository at its registry (as ``kitfs.list``).

    ``repository``: registry/repository, whose tags are listed one by one, or registry/repository:tag. ``only``: kits
    that have something of what these filters select. A kit of the store that is damaged is listed with its names
    alone, and a warning of the logger "kitfs" says why. Raises NotFound, RegistryError, ManifestError, StoreError,
    UsageError.
    """
    from kitfs.ops.library import listing
    from kitfs.sdk.progress import reporting

    settings = settings_of(options, TransferOptions)
    filters = [Filter.parse(text) for text in filters_of(only)]
    named = None if repository is None else Reference.parse(repository)
    if named is not None and named.registry == LOCAL:
        raise UsageError(f"cannot list {repository}: it does not name a registry (write registry/repository)")
    with workspace_of(settings) as workspace, reporting(False, "list") as report:
        if named is None:
            rows = listing.of_store(workspace.store, filters, report=report)
        else:
            rows = listing.of_repository(
                workspace.client.repository(named), named, filters, concurrency=settings["concurrency"]
            )
    prefix = "" if named is None else f"{named.registry}/"
    return [
        KitSummary(
            "" if row.repo == NONE else f"{prefix}{row.repo}",
            row.tags,
            str(row.digest),
            _said(row.model_name),
            _said(row.author),
            row.size,
        )
        for row in rows
    ]


def _said(text: str) -> str:
    return "" if text == NONE else text


def info(reference: str, *, remote: bool = False, **options: Unpack[Options]) -> Kitfile:
    """Get the Kitfile of a kit of the store, with ``remote`` of its registry, or of an OCI layout.

    Raises NotFound, ManifestError, KitfileError, StoreError, RegistryError, UsageError.
    """
    return _look(reference, settings_of(options, Options), remote=remote).kitfile


def inspect(reference: str, *, remote: bool = False, **options: Unpack[Options]) -> Inspection:
    """Get the manifest and the Kitfile of a kit of the store, with ``remote`` of its registry, or of an OCI layout.

    Raises NotFound, ManifestError, KitfileError, StoreError, RegistryError, UsageError.
    """
    import json

    from kitfs.modelkit.writer import CLI_VERSION

    look = _look(reference, settings_of(options, Options), remote=remote)
    version = look.manifest.annotations.get(CLI_VERSION, "")
    return Inspection(str(look.digest), look.kitfile, json.loads(look.manifest.to_json()), version)


def _look(reference: str, settings: Settings, *, remote: bool) -> KitDocuments:
    from kitfs.ops.library import inspect as inspecting
    from kitfs.registry.layout import open_layout

    named = kit_reference(reference)
    if isinstance(named, LayoutReference):
        with closing(open_layout(named)) as layout:
            return inspecting.fetched(layout, named.digest or named.tag or "")
    if remote and named.registry == LOCAL:
        raise UsageError(
            f"cannot ask a registry for {reference}: it does not name a registry (write registry/repository:tag)"
        )
    with workspace_of(settings) as workspace:
        if remote:
            return inspecting.fetched(workspace.client.repository(named), named.identifier)
        return inspecting.stored(workspace.store, named)


def tag(source: str, target: str, **options: Unpack[Options]) -> str:
    """Give a kit of the store more names; return the digest of its manifest.

    ``target``: repository:tag, with more tags after commas. A tag that another kit had moves to this one. Raises
    NotFound, UsageError for a digest as target, StoreError.
    """
    from kitfs.ops.library.tags import assign, required

    old = Reference.parse(source).or_latest()
    new = Reference.parse(target, multiple_tags=True).or_latest()
    if new.digest is not None:
        raise UsageError(f"cannot tag {source} as {target}: the new name must be a tag, not a digest")
    with store_of(settings_of(options, Options)) as store:
        kit = required(store, old)
        for reference in new.tagged():
            assign(store, reference, kit.descriptor)
    return str(kit.digest)


def remove(
    reference: str | None = None,
    *,
    all: bool = False,  # noqa: A002 - the flag's name
    force: bool = False,
    remote: bool = False,
    **options: Unpack[Options],
) -> list[RemovedKit]:
    """Remove tags of a kit, and the kit itself with its last tag; return what was removed.

    ``reference``: repository:tag, with more tags after commas, or a digest, which removes the kit with all its tags.
    ``force`` removes the kit at once. ``all`` instead of a reference removes every kit of the store that has no tag,
    and with ``force`` every kit. ``remote`` removes from the registry.

    If the first tag cannot be removed, nothing is removed. If a later tag cannot be removed, the others are removed,
    and the error of the last one that failed is raised at the end; the logger "kitfs" warns about the rest. Raises
    NotFound, RegistryError when the registry does not delete, StoreError, UsageError.
    """
    from kitfs.ops.library import remove as removing

    settings = settings_of(options, Options)
    if (reference is None) != all or (all and remote):
        raise UsageError("remove takes a reference, or all=True without remote")
    if reference is None:
        with store_of(settings) as store:
            gone = removing.remove_all(store) if force else removing.remove_untagged(store)
        return [_removed(kit) for kit in gone]
    first = remote_reference(reference, "remove") if remote else Reference.parse(reference, multiple_tags=True)
    if not first.identifier:
        raise UsageError(f"cannot remove {reference}: it has neither a tag nor a digest")
    with workspace_of(settings) as workspace:
        done = removing.remove_each(workspace, first.tagged(), force=force, remote=remote)
        for name, error in done.failed[:-1]:
            workspace.log.warning("cannot remove %s: %s", name.display, error)
        if done.failed:
            raise done.failed[-1][1]
    return [_removed(kit) for _, kit in done.removed]


def _removed(kit: Removed) -> RemovedKit:
    name = kit.name.removeprefix(f"{LOCAL}/")
    return RemovedKit("" if name == UNNAMED else name, str(kit.digest), kit.tags, kit.kit)
