"""Remove kits from the store or from their registry (kit's ``remove``, KitOps' pkg/cmd/remove).

When a kit is removed from the store, its blobs are deleted at once, except blobs that another kit contains or that a
process is reading. Threading: each call uses one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from kitfs.content import Repository
from kitfs.errors import KitfsError, NotFound, RegistryError
from kitfs.kit.workspace import Workspace
from kitfs.oci.chunk_tables import blob_digests
from kitfs.oci.manifest import manifest_digests
from kitfs.oci.names import Digest, Reference
from kitfs.oci.referrers import tag_of
from kitfs.ops.library.tags import LocalKit, find, kits
from kitfs.store.store import Store

UNRELATED: Final = (401, 403, 408, 409, 429)  # statuses that have another cause than a registry without deletion


class Removed(NamedTuple):
    """The result of a removal: the removed tags of ``name`` (registry/repository).

    ``kit``: whether the kit itself was removed.
    """

    name: str
    digest: Digest
    tags: tuple[str, ...]
    kit: bool


def remove(store: Store, reference: Reference, *, force: bool = False) -> Removed:
    """Remove a tag from the store. With ``force`` or a digest, or for the last tag, the kit itself is removed.

    Raises NotFound.
    """
    found = find(store, reference)
    if found is None:
        raise NotFound(f"model {reference.display} not found")
    if reference.digest is not None or force or len(found.tags) <= 1:
        return _remove(store, found)
    tag = reference.tag or "latest"
    store.refs.delete(found.name, tag)
    return Removed(found.name, found.digest, (tag,), kit=False)


class RemovedEach(NamedTuple):
    """The result of ``remove_each``: the removals and the errors, each with its reference, in the given order."""

    removed: list[tuple[Reference, Removed]]
    failed: list[tuple[Reference, KitfsError]]


def remove_each(
    workspace: Workspace, references: Sequence[Reference], *, force: bool = False, remote: bool = False
) -> RemovedEach:
    """Remove tags one after another from the store, or with ``remote`` from their registry.

    If the first tag cannot be removed, its error is raised and nothing is removed, as in kit. A later failure does not
    stop the removal of the other tags.
    """
    done = RemovedEach([], [])
    for reference in references:
        try:
            if remote:
                removed = remove_remote(workspace.push_to(reference), reference, force=force)
            else:
                removed = remove(workspace.store, reference, force=force)
            done.removed.append((reference, removed))
        except KitfsError as e:
            if reference is references[0]:
                raise
            done.failed.append((reference, e))
    return done


def remove_untagged(store: Store) -> list[Removed]:
    """Remove every kit that has no tag."""
    return [_remove(store, kit) for kit in kits(store) if not kit.tags]


def remove_all(store: Store) -> list[Removed]:
    """Remove every kit."""
    return [_remove(store, kit) for kit in kits(store)]


def _remove(store: Store, kit: LocalKit) -> Removed:
    attached = _attached(store, kit)
    for tag in (*kit.tags, str(kit.digest), tag_of(kit.digest)):
        store.refs.delete(kit.name, tag)
    free(store, attached)
    _free(store, kit.digest)
    return Removed(kit.name, kit.digest, kit.tags, kit=True)


def _attached(store: Store, kit: LocalKit) -> set[str]:
    """Return the digests of a kit's referrers, of their blobs, and of the index that lists the referrers."""
    listed = store.refs.get(kit.name, tag_of(kit.digest))
    if listed is None:
        return set()
    digest = str(listed["digest"])
    entries = manifest_digests(store.get(Digest.parse(digest)) or b"")
    return {digest} | entries | {blob for one in entries for blob in blob_digests(store.get(Digest.parse(one)) or b"")}


def _free(store: Store, digest: Digest) -> None:
    """Delete the manifest and the blobs of a kit, except those that another kit needs."""
    free(store, {str(digest)} | blob_digests(store.get(digest) or b""))


def free(store: Store, blobs: set[str]) -> None:
    """Delete each of ``blobs`` that is not pinned.

    A blob that a process has open stays until the store needs space.
    """
    blobs = blobs - store.pinned()
    for entry in store.entries():
        if entry.digest in blobs:
            store.remove(entry)


def remove_remote(repository: Repository, reference: Reference, *, force: bool = False) -> Removed:
    """Remove a tag from its registry. With ``force`` or a digest, remove the kit itself with all its tags.

    If the registry cannot delete tags, a kit without other tags is deleted instead. Raises NotFound, and RegistryError
    if the registry cannot delete manifests, or if it cannot delete tags and the kit has other tags.
    """
    tag = reference.identifier
    try:
        digest = repository.resolve(tag).digest
    except NotFound:
        raise NotFound(f"model {reference.display} not found")
    if reference.digest is None and not force:
        try:
            repository.delete_manifest(tag)
            return Removed(reference.name, digest, (tag,), kit=False)
        except (RegistryError, NotFound) as e:
            if not _unsupported(e):
                raise
            others = [t for t in repository.tags() if t != tag and _means(repository, t, digest)]
            if others:
                raise _with_text(
                    e,
                    f"{reference.display}: remote registry does not support untagging; --force deletes the kit, and "
                    f"with it the tags {', '.join(others[:5])}",
                )
    try:
        repository.delete_manifest(digest)
    except RegistryError as e:
        if _unsupported(e):
            raise _with_text(e, f"removing models is unsupported by registry {reference.registry}")
        raise
    return Removed(reference.name, digest, () if reference.digest else (tag,), kit=True)


def _unsupported(e: RegistryError | NotFound) -> bool:
    """Return whether an error of a DELETE request means that the registry does not support the request.

    The manifest existed a moment ago, so statuses such as 400, 404, 405 and 501 mean this.
    """
    status = e.status if isinstance(e, RegistryError) else 404
    return status == 501 or (status < 500 and status not in UNRELATED)


def _with_text(e: RegistryError | NotFound, text: str) -> RegistryError:
    """Return a RegistryError with another message and the fields of ``e``."""
    if isinstance(e, RegistryError):
        return RegistryError(text, status=e.status, code=e.code, url=e.url)
    return RegistryError(text, status=404)


def _means(repository: Repository, tag: str, digest: Digest) -> bool:
    try:
        return repository.resolve(tag).digest == digest
    except NotFound:
        return False
