"""Measure and clear the cache: the blobs that mounts and other readers fetched, which no packed or pulled kit pins.
Read all verified blobs of a store back from the disk.

Threading: none of its own.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from kitfs.ops.events import Moved, Report, Total, Warned
from kitfs.store.paths import FORMS
from kitfs.store.store import Store

EVERYTHING: Final = "store"  # the name of the store in events


class Cleared(NamedTuple):
    """Bytes on disk that were freed, and bytes that stay because a process is using them."""

    freed: int
    in_use: int


class Changed(NamedTuple):
    """A blob whose bytes had changed on the disk, and which was removed.

    ``form`` is "blobs", or "decoded" for the decoded form of the blob; ``reason`` is what is wrong with it.
    ``is_pinned``: a kit that was packed or pulled needs it, or a repository of the embedded registry.
    """

    digest: str
    form: str
    reason: str
    is_pinned: bool


class Verified(NamedTuple):
    """The number of blobs that were read back, their bytes, and those that had changed."""

    blobs: int
    size: int
    changed: tuple[Changed, ...]


def usage(store: Store) -> dict[str, int]:
    """Return the bytes on disk by form: blobs as registries have them, and decoded blobs."""
    pinned = store.pinned()
    found = dict.fromkeys(FORMS, 0)
    for entry in store.entries():
        if entry.digest not in pinned:
            found[entry.form] += entry.size
    return found


def clear(store: Store) -> Cleared:
    """Free every unpinned blob that no process is using."""
    entries = list(store.entries())
    pinned = store.pinned()  # after the listing, as in an eviction: a blob that is pinned later was leased later
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

    A changed blob is reported as a warning. Blobs that mounts use are read too; a mount that uses a removed blob goes
    on with the bytes that it has open, and must be mounted again. Raises StoreError if a blob cannot be read or
    removed.
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
    """Return what has happened to a blob, and what to do about it."""
    what = f"{'the decoded form of ' if changed.form == 'decoded' else ''}blob {changed.digest}"
    then = (
        "a kit in the store needs it: pull, pack or push that kit again"
        if changed.is_pinned
        else "it is fetched again when it is read; mount a kit again that is mounted with it"
    )
    return f"{what} had changed on the disk ({changed.reason}) and was removed: {then}"
