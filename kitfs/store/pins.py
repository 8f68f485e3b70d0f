"""Find the pinned blobs, which are never evicted and do not count toward the limit of the store.

A blob is pinned if a tag of a packed or pulled kit, a pin (``kitfs cache pin``), or a repository of the embedded
registry refers to it directly or indirectly. It is also pinned while an operation of this process stores it. Threading:
any thread may call every method.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from kitfs.errors import InvalidReference
from kitfs.gocompat.json import own_json
from kitfs.oci.chunk_tables import with_tables
from kitfs.oci.manifest import children
from kitfs.oci.names import Digest
from kitfs.store.refs import Refs
from kitfs.store.repositories import Repositories


class Pins:
    """The pins of a store. ``read`` returns the bytes of a manifest, or None if the store does not have it.

    ``kept`` has the pins that a user has made.
    """

    def __init__(
        self,
        refs: Refs,
        indexes: Refs,
        kept: Refs,
        repositories: Repositories,
        read: Callable[[Digest], bytes | None],
    ) -> None:
        self._refs = refs
        self._kept = kept
        self._indexes = indexes
        self._repositories = repositories
        self._read = read
        self._held: list[frozenset[str]] = []

    @contextmanager
    def hold(self, digests: Collection[str]) -> Iterator[None]:
        """Pin blobs for a ``with`` block that is going to tag them."""
        held = frozenset(digests)
        self._held.append(held)
        try:
            yield
        finally:
            self._held.remove(held)

    def is_held(self, digest: str) -> bool:
        """Return whether a ``hold`` block pins a blob now.

        Such a blob is stored even if the store exceeds its limits.
        """
        return any(digest in held for held in list(self._held))

    def digests(self) -> set[str]:
        """Return the digests of all pinned blobs: manifests and what they name, and the manifests in an image index.

        A tag of an index of kits does not pin the kits, which have tags of their own if they were pulled. Raises
        StoreError if a tag cannot be read.
        """
        linked = set(self._repositories.linked())
        pending = [descriptor["digest"] for _, _, descriptor in self._refs.items()]
        for _, _, pin in self._kept.items():
            more = pin.get("manifests")
            pending += [pin["digest"], *(m for m in (more if isinstance(more, list) else ()) if isinstance(m, str))]
        found = self.below(pending)
        found.update(descriptor["digest"] for _, _, descriptor in self._indexes.items())
        return found.union(linked, *self._held)

    def below(self, manifests: Collection[str]) -> set[str]:
        """Return the digests of manifests, and of all blobs and manifests to which they refer."""
        found: set[str] = set()
        pending = list(manifests)
        while pending:
            digest = pending.pop()
            if digest in found:
                continue
            found.add(digest)
            blobs, more = children(self._manifest(digest))
            found |= with_tables(blobs)
            pending += [manifest["digest"] for manifest in more]
        return found

    def _manifest(self, digest: str) -> dict[str, Any]:
        """Return a manifest of the store; an empty dict if it is missing or damaged."""
        try:
            data = self._read(Digest.parse(digest))
            manifest: Any = own_json(data) if data else {}
        except (ValueError, InvalidReference):
            return {}
        return manifest if isinstance(manifest, dict) else {}
