"""Make room: remove whole blobs, the least recently used first, but never leased or pinned ones.

A blob is removed by a rename and then unlinked, never truncated or punched: a process that has a file of the blob open
can still read it. The planning (``victims``) is pure and apart from the disk. Threading: any thread or process may
evict at any time; the exclusive lease decides which of them removes a blob.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

from kitfs.openfile import OpenFile, OwnFile
from kitfs.ownership import make_directories
from kitfs.store.lease import exclusive, locked, release
from kitfs.store.mounted import is_mounted
from kitfs.store.paths import TRASH, entry_bases, ingest_path, names_in, trash_path

SMALL: Final = 256 << 10  # bytes on disk


class Entry(NamedTuple):
    """A blob on disk: ``form`` is "blobs" or "decoded", ``size`` counts bytes on disk, ``used`` is the time of its
    last use in nanoseconds since the epoch.
    """

    directory: str
    form: str
    digest: str
    size: int
    used: int

    def came_whole(self) -> bool:
        """Tell whether an ingest brought the blob: a blob that was fetched in chunks has a chunk map beside it."""
        there = os.path.exists(os.path.join(self.directory, "sealed"))
        return there and not os.path.exists(os.path.join(self.directory, "present"))


def entries(root: str) -> Iterator[Entry]:
    """Yield every blob of a store. Blobs that come or go during the walk may be left out."""
    for form, base in entry_bases(root):
        for algorithm in names_in(base):
            for prefix in names_in(os.path.join(base, algorithm)):
                for name in names_in(os.path.join(base, algorithm, prefix)):
                    directory = os.path.join(base, algorithm, prefix, name)
                    try:
                        size = sum(os.lstat(os.path.join(directory, f)).st_blocks * 512 for f in os.listdir(directory))
                        used = os.lstat(os.path.join(directory, "lease")).st_mtime_ns
                    except OSError:
                        continue
                    yield Entry(directory, form, f"{algorithm}:{name}", size, used)


def victims(found: Sequence[Entry], pinned: Collection[str]) -> tuple[list[Entry], list[Entry]]:
    """Return the entries that may be evicted, the least recently used first: (layers, small blobs).

    Manifests and configs let a kit be mounted again without its registry, and take little space. They are evicted
    only if nothing else frees enough space.
    """
    free = sorted((e for e in found if e.digest not in pinned), key=lambda e: e.used)
    return [e for e in free if e.size > SMALL], [e for e in free if e.size <= SMALL]


def remove(root: str, entry: Entry) -> bool:
    """Remove a blob and return True, unless it is leased, or was leased since ``entry`` was read: a process that
    leased it may have pinned it. A blob that a sealed mount uses stays too.
    """
    try:
        lease = OwnFile(os.path.join(entry.directory, "lease"), os.O_RDWR)
    except OSError:
        return False
    try:
        return (
            exclusive(lease)
            and lease.stat().st_mtime_ns == entry.used
            and not is_mounted(entry.directory)
            and remove_entry(root, entry.directory, lease=lease)
        )
    finally:
        release(lease)


def remove_entry(root: str, directory: str, *, lease: OpenFile | None = None, spare_sealed: bool = False) -> bool:
    """Rename a blob's directory into the trash and unlink it there; ``sweep`` clears what a crash between the two
    leaves.

    Returns False when another process removed it first. With ``lease``, which is open, only the entry that the lease
    belongs to is removed, not one that has taken its place. With ``spare_sealed`` a verified entry stays.
    """
    trash = trash_path(root)
    with locked(directory, lease) as there:
        if not there or (spare_sealed and os.path.exists(os.path.join(directory, "sealed"))):
            return False
        make_directories(os.path.dirname(trash))
        try:
            os.rename(directory, trash)
        except FileNotFoundError:
            return False  # someone removed it by hand: kitfs holds the lock
    shutil.rmtree(trash, ignore_errors=True)
    return True


def sweep(root: str) -> None:
    """Unlink what a crash left in the trash."""
    for name in names_in(ingest_path(root)):
        if name.startswith(TRASH):
            shutil.rmtree(ingest_path(root, name), ignore_errors=True)
