"""Manage the tags of the kits in the store.

A tag is a ref with the same name (``store.refs``). A kit without a tag has a ref whose name is its digest, so the kit
stays pinned until it is removed. Kits without a tag are listed, as in kit. Threading and processes: each tag is a
separate file, and the last writer of a tag wins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from kitfs.errors import InvalidReference, NotFound, StoreError
from kitfs.oci import referrers
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest, Reference
from kitfs.store.store import Store


class LocalKit(NamedTuple):
    """A kit of the store.

    ``name``: its registry/repository. ``tags``: its sorted tags; they are empty for a kit without a tag.
    """

    name: str
    descriptor: Descriptor
    tags: tuple[str, ...]

    @property
    def digest(self) -> Digest:
        """The manifest's digest."""
        return self.descriptor.digest


def kits(store: Store) -> list[LocalKit]:
    """List the kits of the store, sorted by repository and digest. Raises StoreError for a damaged tag."""
    found: dict[tuple[str, Digest], list[str]] = defaultdict(list)
    descriptors: dict[Digest, Descriptor] = {}
    for name, tag, value in store.refs.items():
        if referrers.is_tag(tag):
            continue  # this tag is the list of the referrers of a kit
        descriptor = Descriptor.from_json(value, f"the tag {name}:{tag}")
        descriptors[descriptor.digest] = descriptor
        tags = found[name, descriptor.digest]
        if not is_untagged(tag):
            tags.append(tag)
    return [LocalKit(name, descriptors[digest], tuple(sorted(tags))) for (name, digest), tags in sorted(found.items())]


def find(store: Store, reference: Reference) -> LocalKit | None:
    """Return the kit that a reference names in the store, or None if the store does not have it."""
    if reference.digest is None:
        value = store.refs.get(reference.name, reference.tag or "latest")
        digest = None if value is None else value["digest"]
    else:
        digest = reference.digest
    return next((kit for kit in kits(store) if kit.name == reference.name and kit.digest == digest), None)


def assign(store: Store, reference: Reference, descriptor: Descriptor) -> None:
    """Tag a manifest of the store durably. A kit that loses its last tag is kept without a tag."""
    tag = reference.tag or str(descriptor.digest)
    before = store.refs.get(reference.name, tag)
    if before is not None and before["digest"] != descriptor.digest:
        old = Descriptor.from_json(before)
        if len(_names(store, reference.name, old.digest)) == 1:
            store.refs.set(reference.name, str(old.digest), before)
    others = _names(store, reference.name, descriptor.digest)
    if is_untagged(tag) and any(not is_untagged(name) for name in others):
        return  # the kit has a tag, so it needs no ref by its digest
    store.refs.set(reference.name, tag, descriptor.to_json())
    if not is_untagged(tag) and str(descriptor.digest) in others:
        store.refs.delete(reference.name, str(descriptor.digest))


def check_whole(store: Store, digests: Iterable[Digest], what: str) -> None:
    """Raise StoreError unless the store has complete and verified copies of all blobs.

    A verb checks this before and after it tags a kit, to notice an eviction in between. ``what``: the name of the kit
    in the message.
    """
    lost = next((digest for digest in digests if not store.has_sealed(digest)), None)
    if lost is not None:
        raise StoreError(
            f"{what}: blob {lost} was evicted or removed from the store meanwhile (run the same command again)"
        )


def is_untagged(tag: str) -> bool:
    """Return whether a ref is named by a digest. The kit of such a ref has no tag."""
    try:
        Digest.parse(tag)
    except InvalidReference:
        return False
    return True


def _names(store: Store, name: str, digest: Digest) -> list[str]:
    """Return the names of the refs of a repository that point to a digest."""
    return [tag for other, tag, value in store.refs.items() if other == name and value["digest"] == digest]


def required(store: Store, reference: Reference) -> LocalKit:
    """Return the kit that a reference names in the store. Raises NotFound."""
    found = find(store, reference)
    if found is None:
        raise NotFound(f"{reference.display} is not in the store; pack or pull it first")
    return found


def blob_of(store: Store, digest: Digest) -> bytes:
    """Return a small blob of a kit of the store. Raises StoreError if the store has lost it."""
    data = store.get(digest)
    if data is None:
        raise StoreError(f"the store has lost its blob {digest}; pull or pack the kit again")
    return data
