"""List the kits of the store or of a repository (kit's ``list``, KitOps' pkg/cmd/list).

Threading: ``of_repository`` starts threads that look up several tags at once, and returns when they have ended.
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
from kitfs.ops.library.inspect import KitDocuments
from kitfs.ops.library.tags import kits
from kitfs.store.store import Store

NONE: Final = "<none>"


class Row(NamedTuple):
    """A kit in the list. ``size``: the size of its layers in bytes. A missing string is "<none>"."""

    repo: str
    digest: Digest
    tags: tuple[str, ...]
    model_name: str
    size: int
    author: str


def of_store(store: Store, filters: Sequence[Filter] = (), *, report: Report) -> list[Row]:
    """List the kits of the store. With filters, list only the kits in which a filter selects something.

    A damaged kit is listed with only its name and tags, and a warning is reported.
    """
    rows = []
    for kit in kits(store):
        if kit.descriptor.media_type == IMAGE_INDEX:
            continue
        repo = kit.name.removeprefix(f"{LOCAL}/")
        repo = NONE if repo == UNNAMED else repo
        try:
            documents = inspecting.stored_digest(store, kit.digest)
        except KitfsError as e:
            report(Warned(f"{repo}@{kit.digest}: {e}"))
            rows.append(Row(repo, kit.digest, kit.tags, NONE, 0, NONE))
            continue
        if _has(documents.kitfile, filters):
            rows.append(_row(repo, kit.tags, documents))
    return rows


def of_repository(
    repository: Repository, reference: Reference, filters: Sequence[Filter] = (), *, concurrency: int = 5
) -> list[Row]:
    """List the kits of a repository, one row per tag, or only the kit that the reference names.

    Tags of other artifacts are omitted. Raises NotFound if the repository or the reference does not exist,
    ManifestError if the reference does not name a kit, and RegistryError.
    """
    if reference.identifier:
        documents = inspecting.fetched(repository, reference.identifier)
        return (
            [_row(reference.repository, (reference.identifier,), documents)] if _has(documents.kitfile, filters) else []
        )

    def ask(tag: str) -> KitDocuments | None:
        try:
            return inspecting.fetched(repository, tag)
        except (ManifestError, NotFound):  # the tag names another kind of artifact, or was deleted meanwhile
            return None

    tags = list(repository.tags())
    with ThreadPoolExecutor(concurrency, thread_name_prefix="kitfs-list") as pool:
        answers = list(pool.map(ask, tags))
    found = ((tag, documents) for tag, documents in zip(tags, answers, strict=True) if documents is not None)
    return [
        _row(reference.repository, (tag,), documents) for tag, documents in found if _has(documents.kitfile, filters)
    ]


def _row(repo: str, tags: tuple[str, ...], documents: KitDocuments) -> Row:
    package = documents.kitfile.package
    author = package.authors[0] if package.authors else NONE
    return Row(
        repo,
        documents.digest,
        tags,
        package.name or NONE,
        sum(layer.size for layer in documents.manifest.layers),
        author,
    )


def _has(kitfile: Kitfile, filters: Sequence[Filter]) -> bool:
    """Return whether a filter selects something in a kit. A reference to another kit's model or dataset is included."""
    entries = [*kitfile.entries(), *(Entry("dataset", d.name, d.path) for d in kitfile.datasets if d.remote_path)]
    if kitfile.model is not None and kitfile.parent is not None:
        entries.append(Entry("model", kitfile.model.name, kitfile.model.path))
    return not filters or selects_kitfile(filters) or any(selects(filters, entry) for entry in entries)
