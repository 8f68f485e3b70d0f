"""Kits that go: from the store, or from their registry (kit's ``remove``, KITOPS §8).

A kit that goes frees its blobs at once, but for those that another kit has, or that somebody reads just now. No
printing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kitfs.content import Repository
from kitfs.errors import NotFound, RegistryError
from kitfs.gocompat.json import own_json
from kitfs.oci.names import Digest, Reference
from kitfs.ops.library.tags import LocalKit, find, kits
from kitfs.store.store import Store

PASSING = (401, 403, 408, 429)  # statuses that do not say that a registry deletes no tags, or nothing at all


class Removed(NamedTuple):
    """What went: the tags of ``name`` (registry/repository), and the kit itself when ``kit`` is True."""

    name: str
    digest: Digest
    tags: tuple[str, ...]
    kit: bool


def remove(store: Store, reference: Reference, *, force: bool = False) -> Removed:
    """Remove a tag, and with the last one, ``force`` or a digest the kit itself. Raises NotFound."""
    found = find(store, reference)
    if found is None:
        raise NotFound(f"model {reference.display} not found")
    if reference.digest is not None or force or len(found.tags) <= 1:
        return _remove(store, found)
    tag = reference.tag or "latest"
    store.refs.delete(found.name, tag)
    return Removed(found.name, found.digest, (tag,), kit=False)


def remove_untagged(store: Store) -> list[Removed]:
    """Remove every kit that has no tag."""
    return [_remove(store, kit) for kit in kits(store) if not kit.tags]


def remove_all(store: Store) -> list[Removed]:
    """Remove every kit."""
    return [_remove(store, kit) for kit in kits(store)]


def _remove(store: Store, kit: LocalKit) -> Removed:
    for tag in (*kit.tags, str(kit.digest)):
        store.refs.delete(kit.name, tag)
    _free(store, kit.digest)
    return Removed(kit.name, kit.digest, kit.tags, kit=True)


def _free(store: Store, digest: Digest) -> None:
    """Free what only this kit needed."""
    data = store.get(digest)
    try:
        manifest: Any = own_json(data or b"{}")
        parts = [manifest.get("config"), *(manifest.get("layers") or ())]
        blobs = {
            str(digest),
            *(part["digest"] for part in parts if isinstance(part, dict) and isinstance(part.get("digest"), str)),
        }
    except (ValueError, AttributeError, TypeError):
        blobs = {str(digest)}
    free(store, blobs)


def free(store: Store, blobs: set[str]) -> None:
    """Free blobs that nothing pins. What somebody has open stays until the store needs room."""
    blobs = blobs - store.pinned()
    for entry in store.entries():
        if entry.digest in blobs:
            store.remove(entry)


def remove_remote(repository: Repository, reference: Reference, *, force: bool = False) -> Removed:
    """Remove a tag at its registry, with ``force`` or a digest the kit itself, and all its tags with it.

    Where a registry deletes no tags, a kit goes with its last one. Raises NotFound, RegistryError when the registry
    deletes nothing, or no tag of a kit that has more.
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
                told = f"remote registry does not support untagging; --force deletes the kit, and with it the tags {', '.join(others[:5])}"
                raise _as(e, f"{reference.display}: {told}")
    try:
        repository.delete_manifest(digest)
    except RegistryError as e:
        if _unsupported(e):
            raise _as(e, f"removing models is unsupported by registry {reference.registry}")
        raise
    return Removed(reference.name, digest, () if reference.digest else (tag,), kit=True)


def _unsupported(e: RegistryError | NotFound) -> bool:
    """Whether an answer to a DELETE says that the registry does not do that: 400, 404, 405, 501 …, for what was there
    a moment ago.
    """
    status = e.status if isinstance(e, RegistryError) else 404
    return status == 501 or (status < 500 and status not in PASSING)


def _as(e: RegistryError | NotFound, told: str) -> RegistryError:
    if isinstance(e, RegistryError):
        return RegistryError(told, status=e.status, code=e.code, url=e.url)
    return RegistryError(told, status=404)


def _means(repository: Repository, tag: str, digest: Digest) -> bool:
    try:
        return repository.resolve(tag).digest == digest
    except NotFound:
        return False
