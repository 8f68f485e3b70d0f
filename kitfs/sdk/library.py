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

NONE = "<none>"  # kit prints this for a missing name


@dataclass(frozen=True, slots=True)
class KitSummary:
    """A kit in a list.

    ``repository``: registry/repository, or only the repository if the kit was packed without a registry, or "" for a
    kit without a name. ``name`` and ``author``: the fields of the Kitfile's package, "" when they are missing.
    ``size``: the bytes of the layers.
    """

    repository: str
    tags: tuple[str, ...]
    digest: str
    name: str
    author: str
    size: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """The documents of a kit.

    ``manifest``: the parsed manifest. ``kit_version``: the version of the program that packed the kit, or "".
    """

    digest: str
    kitfile: Kitfile
    manifest: dict[str, Any]
    kit_version: str


@dataclass(frozen=True, slots=True)
class RemovedKit:
    """A result of ``remove``: the ``tags`` that were removed, and whether the ``kit`` itself was removed."""

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
    """List the kits of the store, or of a repository at its registry (public as ``kitfs.list``).

    ``repository``: registry/repository to list all its tags, or registry/repository:tag. ``only``: filters, such as
    "model"; kits without a matching part are not listed. A damaged kit of the store is listed with its names only, and
    the logger "kitfs" logs the reason as a warning. Raises NotFound, RegistryError, ManifestError, StoreError,
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
    """Return the Kitfile of a kit. The kit is read from the store or a layout, or with ``remote`` from its registry.

    Raises NotFound, ManifestError, KitfileError, StoreError, RegistryError, UsageError.
    """
    return _look(reference, settings_of(options, Options), remote=remote).kitfile


def inspect(reference: str, *, remote: bool = False, **options: Unpack[Options]) -> Inspection:
    """Return the manifest and the Kitfile of a kit. The parameters are those of ``info``.

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
    """Add tags to a kit of the store, and return the digest of its manifest.

    ``target``: repository:tag, or repository:tag1,tag2 for several tags. If another kit has one of the tags, the tag
    moves to this kit. Raises NotFound or StoreError, and UsageError if the target is a digest.
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
    """Remove tags of a kit, and return what was removed. Removing the last tag also removes the kit.

    ``reference``: repository:tag, or repository:tag1,tag2 for several tags, or a digest, which removes the kit with all
    its tags. ``force``: remove the kit even if it has other tags. ``all`` instead of a reference: remove every kit of
    the store that has no tag, and with ``force`` every kit. ``remote``: remove from the registry, not from the store.

    If the first tag cannot be removed, nothing is removed. If later tags cannot be removed, all remaining tags are
    still removed. The last error is raised at the end, and the logger "kitfs" logs earlier errors as warnings. Raises
    NotFound, StoreError or UsageError, and RegistryError if the registry does not support deletion.
    """
    from kitfs.ops.library import remove as removing

    settings = settings_of(options, Options)
    if (reference is None) != all or (all and remote):
        raise UsageError("cannot remove: name a kit, or pass all=True without a name and without remote=True")
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
