"""Measure and clear the cache: the blobs that mounts and other readers fetched, which no packed or pulled kit pins.

Threading: none of its own.
"""

from __future__ import annotations

from typing import NamedTuple

from kitfs.store.paths import FORMS
from kitfs.store.store import Store


class Cleared(NamedTuple):
    """Bytes on disk that were freed, and bytes that stay because a process is using them."""

    freed: int
    in_use: int


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
