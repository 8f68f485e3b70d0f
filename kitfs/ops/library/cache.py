"""Measure and clear the cache of a store, and verify all blobs of a store.

The cache consists of the blobs that mounts and other readers fetched and that no packed or pulled kit pins. Threading:
each call uses one thread.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from kitfs.ops.events import Moved, Report, Total, Warned
from kitfs.store.paths import FORMS
from kitfs.store.store import Store

EVERYTHING: Final = "store"  # the name of the store in events


class Cleared(NamedTuple):
    """The result of ``clear``: the bytes on disk that were freed, and the bytes that stay because they are in use."""

    freed: int
    in_use: int


class Changed(NamedTuple):
    """A blob that was removed because its bytes had changed on the disk.

    ``form``: "blobs", or "decoded" for the decompressed form of the blob. ``reason``: what is wrong with the bytes.
    ``is_pinned``: whether a packed or pulled kit, or a repository of the embedded registry, needs the blob.
    """

    digest: str
    form: str
    reason: str
    is_pinned: bool


class Verified(NamedTuple):
    """The result of ``verify``: the number of blobs that were read, their bytes, and the changed blobs."""

    blobs: int
    size: int
    changed: tuple[Changed, ...]


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


def verify(store: Store, *, report: Report) -> Verified:
    """Read every verified blob back from the disk, compare its digest, and remove it if its bytes have changed.

    A changed blob is reported as a warning. Blobs that mounts use are verified too. A mount that uses a removed blob
    drops it soon (``Store.look``). A sealed mount serves the changed bytes until the kit is mounted again. Raises
    StoreError if a blob cannot be read or removed.
    """
    found = sorted(store.sealed())
    report(Total(EVERYTHING, sum(blob.size for blob in found)))
    pinned = store.pinned()
    changed = []
    for blob in found:
        reason = store.check(blob.digest, blob.form, moved=lambda size: report(Moved(EVERYTHING, size)))
        if reason is not None:
            changed.append(Changed(str(blob.digest), blob.form, reason, blob.form == "blobs" and blob.digest in pinned))
            report(Warned(_advice(changed[-1])))
    return Verified(len(found), sum(blob.size for blob in found), tuple(changed))


def _advice(changed: Changed) -> str:
    """Return the warning about a changed blob, with what to do about it."""
    what = f"{'the decoded form of ' if changed.form == 'decoded' else ''}blob {changed.digest}"
    then = (
        "a kit in the store needs it: pull, pack or push that kit again"
        if changed.is_pinned
        else "it is fetched again when it is read; unmount a sealed mount that uses it, and mount it again"
    )
    return f"{what} had changed on the disk ({changed.reason}) and was removed: {then}"
