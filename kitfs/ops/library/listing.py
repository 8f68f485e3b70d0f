"""Kits as lists show them: of the store, or of a repository (kit's ``list``, KITOPS §8).

Threading: ``of_repository`` asks several tags at once on threads of its own, and returns when they have ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

from kitfs.content import Repository
from kitfs.errors import KitfsError, ManifestError, NotFound
from kitfs.modelkit.filters import Filter, selects, selects_kitfile
from kitfs.modelkit.kitfile import Entry, Kitfile
from kitfs.oci.manifest import IMAGE_INDEX
from kitfs.oci.names import LOCAL, UNNAMED, Digest, Reference
from kitfs.ops.events import Report, Warned
from kitfs.ops.library import inspect as inspecting
from kitfs.ops.library.inspect import Look
from kitfs.ops.library.tags import kits
from kitfs.store.store import Store

NONE: Final = "<none>"


class Row(NamedTuple):
    """One kit. ``size`` is that of its layers, in bytes; what it does not say is "<none>"."""

    repo: str
    digest: Digest
    tags: tuple[str, ...]
    model_name: str
    size: int
    author: str


def of_store(store: Store, filters: Sequence[Filter] = (), *, report: Report) -> list[Row]:
    """The kits of the store that have something of what a filter selects. One that is damaged is told, and listed by
    its names.
    """
    rows = []
    for kit in kits(store):
        if kit.descriptor.media_type == IMAGE_INDEX:
            continue
        repo = kit.name.removeprefix(f"{LOCAL}/")
        repo = NONE if repo == UNNAMED else repo
        try:
            look = inspecting.stored_digest(store, kit.digest)
        except KitfsError as e:
            report(Warned(f"{repo}@{kit.digest}: {e}"))
            rows.append(Row(repo, kit.digest, kit.tags, NONE, 0, NONE))
            continue
        if _has(look.kitfile, filters):
            rows.append(_row(repo, kit.tags, look))
    return rows


def of_repository(
    repository: Repository, reference: Reference, filters: Sequence[Filter] = (), *, concurrency: int = 5
) -> list[Row]:
    """Return the kits of a repository, one row per tag, or the kit that the reference names.

    Manifests that are not kits are left out.

    Raises NotFound if the repository or the reference does not exist, ManifestError if the reference is not a kit,
    RegistryError.
    """
    if reference.identifier:
        look = inspecting.fetched(repository, reference.identifier)
        return [_row(reference.repository, (reference.identifier,), look)] if _has(look.kitfile, filters) else []

    def ask(tag: str) -> Look | None:
        try:
            return inspecting.fetched(repository, tag)
        except (ManifestError, NotFound):  # another kind of artifact; a tag that went away meanwhile
            return None

    tags = list(repository.tags())
    with ThreadPoolExecutor(concurrency, thread_name_prefix="kitfs-list") as pool:
        looks = list(pool.map(ask, tags))
    found = ((tag, look) for tag, look in zip(tags, looks, strict=True) if look is not None)
    return [_row(reference.repository, (tag,), look) for tag, look in found if _has(look.kitfile, filters)]


def _row(repo: str, tags: tuple[str, ...], look: Look) -> Row:
    package = look.kitfile.package
    author = package.authors[0] if package.authors else NONE
    return Row(repo, look.digest, tags, package.name or NONE, sum(layer.size for layer in look.manifest.layers), author)


def _has(kitfile: Kitfile, filters: Sequence[Filter]) -> bool:
    """Whether a kit has something that a filter selects; what it takes from elsewhere, by reference, counts."""
    entries = [*kitfile.entries(), *(Entry("dataset", d.name, d.path) for d in kitfile.datasets if d.remote_path)]
    if kitfile.model is not None and kitfile.parent is not None:
        entries.append(Entry("model", kitfile.model.name, kitfile.model.path))
    return not filters or selects_kitfile(filters) or any(selects(filters, entry) for entry in entries)
