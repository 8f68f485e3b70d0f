"""Measure, clear and collect the cache of a store, pin kits in it, and verify all blobs of a store.

The cache consists of the blobs that mounts and other readers fetched and that no packed or pulled kit pins. Threading:
each call uses one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Final, NamedTuple

from kitfs.errors import NotFound
from kitfs.kit.workspace import Workspace
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import Moved, Report, Total, Warned
from kitfs.ops.library.heal import Healing, heal
from kitfs.store.paths import FORMS
from kitfs.store.store import Store

EVERYTHING: Final = "store"  # the name of the store in events


class Cleared(NamedTuple):
    """The result of ``clear``: the bytes on disk that were freed, and the bytes that stay because they are in use."""

    freed: int
    in_use: int


class MountedKit(NamedTuple):
    """A kit that is mounted at a directory.

    ``sealed`` has the digests of the layers that the kernel reads for a sealed mount; it is empty for other mounts.
    """

    reference: str
    digest: str
    mountpoint: str
    sealed: frozenset[str]


class Changed(NamedTuple):
    """A blob that was removed because its bytes had changed on the disk.

    ``form``: "blobs", or "decoded" for the decompressed form of the blob. ``reason``: what is wrong with the bytes.
    ``is_pinned``: whether a packed or pulled kit, a pinned kit, or a repository of the embedded registry needs the
    blob. ``is_healed``: whether the blob was fetched again. ``kits``: the references of the kits that need the blob.
    ``mounts``: the sealed mounts that still show the changed bytes.
    """

    digest: str
    form: str
    reason: str
    is_pinned: bool
    is_healed: bool
    kits: tuple[str, ...]
    mounts: tuple[str, ...]

    @property
    def is_wrong(self) -> bool:
        """Return whether the blob is still missing, or a mount still shows its changed bytes."""
        return not self.is_healed or bool(self.mounts)


class Verified(NamedTuple):
    """The result of ``verify``: the number of blobs that were read, their bytes, and the changed blobs."""

    blobs: int
    size: int
    changed: tuple[Changed, ...]


class Collected(NamedTuple):
    """The result of ``collect``: the number of removed blobs and temporary files, and the freed bytes on disk."""

    blobs: int
    files: int
    freed: int


def usage(store: Store) -> dict[str, int]:
    """Return the bytes on disk of blobs as registries store them ("blobs") and of decoded blobs ("decoded")."""
    pinned = store.pinned()
    found = dict.fromkeys(FORMS, 0)
    for entry in store.entries():
        if entry.digest not in pinned:
            found[entry.form] += entry.size
    return found


def clear(store: Store) -> Cleared:
    """Delete every unpinned blob that no process uses."""
    entries = list(store.entries())
    pinned = store.pinned()  # read after the listing: a blob that is pinned later is leased, and thus not deleted
    freed = in_use = 0
    for entry in entries:
        if entry.digest not in pinned:
            if store.remove(entry):
                freed += entry.size
            else:
                in_use += entry.size
    return Cleared(freed, in_use)


def verify(workspace: Workspace, *, mounted: Sequence[MountedKit] = (), report: Report) -> Verified:
    """Read every verified blob back from the disk, and fetch the blobs again whose bytes have changed.

    A changed blob is removed first. It is fetched again if the registry or the layout of a kit that needs it is known
    (``heal``). Each changed blob is reported as a warning. Blobs that mounts use are verified too. A lazy mount drops
    a removed blob soon (``Store.look``). A sealed mount serves the changed bytes until the kit is mounted again.
    Raises StoreError if a blob cannot be read or removed.
    """
    store = workspace.store
    found = sorted(store.sealed())
    report(Total(EVERYTHING, sum(blob.size for blob in found)))
    pinned = store.pinned()
    reasons: dict[tuple[str, str], str] = {}
    for blob in found:
        reason = store.check(blob.digest, blob.form, moved=lambda size: report(Moved(EVERYTHING, size)))
        if reason is not None:
            reasons[str(blob.digest), blob.form] = reason
    healed = heal(workspace, reasons, [(kit.reference, kit.digest) for kit in mounted], report=report)
    pinned |= store.pinned()  # a manifest that was fetched again tells which other blobs are pinned
    changed = []
    for (digest, form), reason in reasons.items():
        healing = healed[digest, form]
        mounts = tuple(kit.mountpoint for kit in mounted if digest in kit.sealed)
        is_pinned = form == "blobs" and digest in pinned
        changed.append(Changed(digest, form, reason, is_pinned, bool(healing.source), healing.users, mounts))
        report(Warned(_advice(changed[-1], healing)))
    return Verified(len(found), sum(blob.size for blob in found), tuple(changed))


def _advice(changed: Changed, healing: Healing) -> str:
    """Return the warning about a changed blob, with what to do about it."""
    what = f"{'the decoded form of ' if changed.form == 'decoded' else ''}blob {changed.digest}"
    if healing.source:
        then = f"it was fetched again for {healing.source}"
    elif changed.is_pinned:
        needing = ", ".join(changed.kits) or "a kit in the store"
        then = f"{needing} needs it: pull, pack or push that kit again"
    else:
        then = "it is fetched again when it is read"
    if healing.failure:
        then += f" (it could not be fetched now: {healing.failure})"
    for mountpoint in changed.mounts:
        then += f"; the sealed mount at {mountpoint} still shows the changed bytes: unmount it, and mount it again"
    return f"{what} had changed on the disk ({changed.reason}) and was removed: {then}"


def pin(workspace: Workspace, reference: Reference) -> Digest:
    """Pin a kit, so that the blobs that were or will be fetched for it are not evicted. Return its digest.

    The parents of the kit are pinned too. Nothing but manifests and configs is fetched. Raises NotFound, ManifestError,
    StoreError, and the errors of the registry.
    """
    store = workspace.store
    with closing(workspace.resolver.open(reference)) as kit:
        digests = {str(digest) for digest in kit.pins.values()}
        with store.pin(digests):
            store.kept.set(
                reference.name, reference.identifier, {"digest": str(kit.digest), "manifests": sorted(digests)}
            )
        return kit.digest


def unpin(store: Store, reference: Reference) -> None:
    """Remove the pin of a kit. Raises NotFound if the kit is not pinned under this reference."""
    if not store.kept.delete(reference.name, reference.identifier):
        raise NotFound(f"{reference.display} is not pinned")


def pins(store: Store) -> list[str]:
    """Return the references of the pinned kits."""
    found = []
    for name, tag, value in store.kept.items():
        registry, _, repository = name.partition("/")
        digest = Digest.parse(value["digest"])
        found.append(Reference(registry, repository, *((None, digest) if ":" in tag else (tag, None))).display)
    return sorted(found)


def collect(store: Store) -> Collected:
    """Remove the blobs to which no known kit refers, and the temporary files that crashes have left behind.

    Abandoned ingests were removed when the store was opened. The known kits are the packed and pulled kits, the pinned
    kits, the kits in repositories of the embedded registry, and the kits that tags named when they were last resolved.
    Blobs that a process or a mount uses stay. Raises StoreError.
    """
    entries = list(store.entries())
    tags = [store.catalog.get(("tag", name)) for name in store.catalog.names("tag")]
    known = store.pins.below([tag["digest"] for tag in tags if isinstance(tag, dict) and "digest" in tag])
    known |= store.pinned()  # read after the listing: a blob that is pinned later is leased, and thus not removed
    blobs = freed = 0
    for entry in entries:
        if entry.digest not in known and store.remove(entry):
            blobs += 1
            freed += entry.size
    files, size = store.sweep()
    return Collected(blobs, files, freed + size)
