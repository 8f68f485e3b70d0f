"""Kits that exist here: their names in the store, as kit keeps them in its own.

A tag is a ref of that name. A kit that has no tag (any more) is a ref whose name is its digest, so that it stays
pinned until it is removed, and is listed as kit lists it. Threading and processes: each change is a file of its own;
the last writer of a tag wins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from kitfs.errors import InvalidReference, NotFound, StoreError
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest, Reference
from kitfs.store.store import Store


class LocalKit(NamedTuple):
    """A kit of one repository ("registry/repository"); ``tags`` are sorted, none for one that lost its own."""

    name: str
    descriptor: Descriptor
    tags: tuple[str, ...]

    @property
    def digest(self) -> Digest:
        """The manifest's digest."""
        return self.descriptor.digest


def kits(store: Store) -> list[LocalKit]:
    """Every kit of the store, by repository and digest. Raises StoreError for a damaged tag."""
    found: dict[tuple[str, Digest], list[str]] = defaultdict(list)
    descriptors: dict[Digest, Descriptor] = {}
    for name, tag, value in store.refs.items():
        descriptor = Descriptor.from_json(value, f"the tag {name}:{tag}")
        descriptors[descriptor.digest] = descriptor
        tags = found[name, descriptor.digest]
        if not is_untagged(tag):
            tags.append(tag)
    return [LocalKit(name, descriptors[digest], tuple(sorted(tags))) for (name, digest), tags in sorted(found.items())]


def find(store: Store, reference: Reference) -> LocalKit | None:
    """The kit that a reference (with a tag or digest) means here."""
    if reference.digest is None:
        value = store.refs.get(reference.name, reference.tag or "latest")
        digest = None if value is None else value["digest"]
    else:
        digest = reference.digest
    return next((kit for kit in kits(store) if kit.name == reference.name and kit.digest == digest), None)


def assign(store: Store, reference: Reference, descriptor: Descriptor) -> None:
    """Let a reference mean a manifest that is in the store; durable. A kit whose last tag this takes is kept without
    one.
    """
    tag = reference.tag or str(descriptor.digest)
    before = store.refs.get(reference.name, tag)
    if before is not None and before["digest"] != descriptor.digest:
        old = Descriptor.from_json(before)
        if len(_names(store, reference.name, old.digest)) == 1:
            store.refs.set(reference.name, str(old.digest), before)
    others = _names(store, reference.name, descriptor.digest)
    if is_untagged(tag) and any(not is_untagged(name) for name in others):
        return  # it has a name already
    store.refs.set(reference.name, tag, descriptor.to_json())
    if not is_untagged(tag) and str(descriptor.digest) in others:
        store.refs.delete(reference.name, str(descriptor.digest))


def check_whole(store: Store, digests: Iterable[Digest], what: str) -> None:
    """Raises StoreError unless every blob is in the store, whole and verified: before a kit gets a name, and at the
    end of a verb that gave it.
    """
    lost = next((digest for digest in digests if not store.has_sealed(digest)), None)
    if lost is not None:
        raise StoreError(
            f"{what}: the store has lost blob {lost}, evicted or removed meanwhile; run the same command again"
        )


def is_untagged(tag: str) -> bool:
    """Whether a ref's name is a digest: that of a kit without a tag."""
    try:
        Digest.parse(tag)
    except InvalidReference:
        return False
    return True


def _names(store: Store, name: str, digest: Digest) -> list[str]:
    """The refs of a repository that mean a digest."""
    return [tag for other, tag, value in store.refs.items() if other == name and value["digest"] == digest]


def required(store: Store, reference: Reference) -> LocalKit:
    """``find``, where there must be one. Raises NotFound."""
    found = find(store, reference)
    if found is None:
        raise NotFound(f"{reference.display} is not in the store; pack or pull it first")
    return found
