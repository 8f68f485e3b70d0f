"""What the store holds besides the kits that were packed or pulled: blobs that mounts and other readers fetched. No
printing.
"""

from __future__ import annotations

from typing import NamedTuple

from kitfs.store.paths import FORMS
from kitfs.store.store import Store


class Cleared(NamedTuple):
    """Bytes on disk that were freed, and that stay since somebody uses them now."""

    freed: int
    in_use: int


def usage(store: Store) -> dict[str, int]:
    """Bytes on disk by form: blobs as registries have them, and decoded ones."""
    pinned = store.pinned()
    found = dict.fromkeys(FORMS, 0)
    for entry in store.entries():
        if entry.digest not in pinned:
            found[entry.form] += entry.size
    return found


def clear(store: Store) -> Cleared:
    """Free all of it that nobody uses now."""
    there = list(store.entries())
    pinned = store.pinned()  # after the look, as when evicting: what is pinned later was leased later
    freed = in_use = 0
    for entry in there:
        if entry.digest not in pinned:
            if store.remove(entry):
                freed += entry.size
            else:
                in_use += entry.size
    return Cleared(freed, in_use)
