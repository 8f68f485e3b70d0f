"""Fetch blobs again that were removed from the store because their bytes had changed on the disk.

A blob can be fetched again if a kit that needs it has a registry or a layout: a kit with a tag in the store, a pinned
kit, a kit whose tag was resolved on this machine before, or a kit that is mounted. Threading: each call uses the
threads of ``fill_all`` and of the layers, and returns when they have ended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any, NamedTuple

from kitfs.errors import KitfsError, NotFound
from kitfs.gocompat.json import own_json
from kitfs.kit.completing import complete
from kitfs.kit.workspace import Workspace
from kitfs.oci.chunk_tables import tables_of
from kitfs.oci.manifest import Descriptor, children
from kitfs.oci.names import LOCAL, Digest, LayoutReference, Reference, parse_any
from kitfs.ops.events import Report
from kitfs.ops.transfer.filling import fill_all
from kitfs.store.store import Store

Named = Reference | LayoutReference


class User(NamedTuple):
    """A kit that needs a blob: its ``reference`` as users write it, and its ``place``, a reference by its digest.

    ``descriptor`` describes the blob. It is None if the blob is the manifest of the kit.
    """

    reference: str
    place: Named
    descriptor: Descriptor | None

    @property
    def is_remote(self) -> bool:
        """Return whether the kit has a registry or a layout from which the blob can be fetched."""
        return isinstance(self.place, LayoutReference) or self.place.registry != LOCAL


def users_of(workspace: Workspace, mounted: Iterable[tuple[str, str]]) -> Mapping[str, list[User]]:
    """Return the kits that need each blob, by the digest of the blob.

    ``mounted`` are pairs (reference, digest of the manifest) of the kits that are mounted. If neither the store nor a
    layout has the manifest of a kit, the blobs of this kit are missing in the result.
    """
    found: dict[str, list[User]] = defaultdict(list)
    seen: set[tuple[str, Digest]] = set()
    pending = list(_kits(workspace.store, mounted))
    while pending:
        name, place = pending.pop()
        digest = place.digest
        if digest is None or (name, digest) in seen:
            continue
        seen.add((name, digest))
        found[digest].append(User(name, place, None))
        blobs, manifests = children(_manifest(workspace, place, digest))
        for blob in blobs:
            with suppress(KitfsError):
                descriptor = Descriptor.from_json(blob)
                found[descriptor.digest].append(User(name, place, descriptor))
                for table in tables_of([descriptor]):
                    found[table.digest].append(User(name, place, table))
        for manifest in manifests:
            with suppress(KitfsError):
                pending.append((name, replace(place, digest=Descriptor.from_json(manifest).digest)))
    return found


def _kits(store: Store, mounted: Iterable[tuple[str, str]]) -> Iterator[tuple[str, Named]]:
    """Yield (reference, reference by its digest) of the kits that are known on this machine."""
    for refs in (store.refs, store.kept, store.indexes):
        for name, tag, value in refs.items():
            registry, _, repository = name.partition("/")
            with suppress(KitfsError):
                place = Reference(registry, repository, digest=Digest.parse(value["digest"]))
                yield (place if ":" in tag else place.with_tag(tag)).display, place
    for text in store.catalog.names("tag"):
        with suppress(KitfsError, TypeError, KeyError):
            tagged = Reference.parse(text)
            digest = Digest.parse(store.catalog.get(("tag", text))["digest"])
            yield tagged.display, replace(tagged, tag=None, digest=digest)
    for text, manifest in mounted:
        with suppress(KitfsError):
            yield text, replace(parse_any(text), tag=None, digest=Digest.parse(manifest))


def _manifest(workspace: Workspace, place: Named, digest: Digest) -> Mapping[str, Any]:
    data = workspace.store.get(digest)
    try:
        if data is None and isinstance(place, LayoutReference):
            data = workspace.asked(place).manifest(digest)[1]
        manifest = own_json(data or b"{}")
    except (KitfsError, OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


class Healing(NamedTuple):
    """The result of ``heal`` for a blob: the kits that need the blob, and the kit from which it was fetched again.

    ``source`` is "" if the blob was not fetched again. ``failure`` is the last error, or "".
    """

    users: tuple[str, ...]
    source: str
    failure: str


def heal(
    workspace: Workspace, lost: Iterable[tuple[str, str]], mounted: Iterable[tuple[str, str]], *, report: Report
) -> Mapping[tuple[str, str], Healing]:
    """Fetch blobs again. ``lost`` are pairs (digest, form); ``mounted`` is as in ``users_of``.

    Manifests are fetched first, because they tell which kits need the other blobs. Errors are returned, not raised.
    """
    left = set(lost)
    done: dict[tuple[str, str], Healing] = {}
    mounted = tuple(mounted)
    tried: set[tuple[str, str, Named]] = set()
    again = True
    while left and again:
        again = False
        users = users_of(workspace, mounted)
        for digest, form in sorted(
            left, key=lambda blob: not any(u.descriptor is None for u in users.get(blob[0], ()))
        ):
            source, failure = "", done[digest, form].failure if (digest, form) in done else ""
            for user in users.get(digest, ()):
                if source or (digest, form, user.place) in tried or not (user.is_remote or form == "decoded"):
                    continue
                tried.add((digest, form, user.place))
                try:
                    _fetch(workspace, Digest.parse(digest), form, user, report)
                    source, again = user.reference, True
                except (KitfsError, OSError) as e:
                    failure = str(e)
            names = tuple(sorted({user.reference for user in users.get(digest, ())}))
            done[digest, form] = Healing(names, source, "" if source else failure)
        left = {blob for blob in left if not done[blob].source}
    return done


def _fetch(workspace: Workspace, digest: Digest, form: str, user: User, report: Report) -> None:
    """Fetch a blob from the registry or the layout of a kit, and decode it for the form "decoded".

    Raises the errors of the origin, IntegrityError, StoreError, and NotFound if the kit does not decode the blob.
    """
    store, place = workspace.store, user.place
    if form == "decoded":
        with closing(workspace.resolver.open(place)) as kit:
            layer = next((layer for layer in kit.layers if layer.digest == digest and layer.compressed), None)
            if layer is None:
                raise NotFound(f"{user.reference} has no compressed layer {digest}")
            for _ in complete(layer):
                pass
            layer.content().verify()
        return
    origin = workspace.pull_from(place) if isinstance(place, Reference) else workspace.asked(place)
    with store.pin([digest]):  # the store had room for the bytes that were removed
        if user.descriptor is None:
            store.put(digest, origin.manifest(digest)[1])
        else:
            fill_all([user.descriptor], origin, store, 1, report)
