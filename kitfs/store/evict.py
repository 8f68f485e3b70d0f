"""Evict blobs to free space: the least recently used first, but never blobs that are leased or pinned.

A blob is renamed and then unlinked. Its file is never truncated, so a process that has the file open can still read
it. ``victims`` chooses the blobs without accessing the disk. Threading: any thread or process may evict at any time;
only the process that gets the exclusive lease of a blob removes it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from kitfs.openfile import OpenFile, OwnFile
from kitfs.ownership import make_directories
from kitfs.store.lease import exclusive, locked, release
from kitfs.store.mounted import is_mounted
from kitfs.store.paths import SMALL_FILES, TRASH, entry_bases, ingest_path, names_in, trash_path

SMALL: Final = 256 << 10  # bytes on disk
LEFT: Final = 86_400.0  # seconds: an older temporary file was left behind by a crash


class Entry(NamedTuple):
    """A blob on disk.

    ``form`` is "blobs" or "decoded". ``size`` is in bytes on disk, and ``used`` is the time of the last use in
    nanoseconds since the epoch.
    """

    directory: str
    form: str
    digest: str
    size: int
    used: int

    def came_whole(self) -> bool:
        """Return whether an ingest wrote the blob. Such a blob has no chunk map."""
        there = os.path.exists(os.path.join(self.directory, "sealed"))
        return there and not os.path.exists(os.path.join(self.directory, "present"))


def entries(root: str) -> Iterator[Entry]:
    """Yield every blob of a store. Blobs that are added or removed meanwhile may be left out."""
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
    """Return (layers, small blobs): the entries that may be evicted, the least recently used first.

    Manifests and configs take little space, and with them a kit can be mounted again without its registry. So they are
    evicted only if the layers do not free enough space.
    """
    free = sorted((e for e in found if e.digest not in pinned), key=lambda e: e.used)
    return [e for e in free if e.size > SMALL], [e for e in free if e.size <= SMALL]


def remove(root: str, entry: Entry) -> bool:
    """Remove a blob, and return whether it was removed.

    A blob stays if it is leased, or if a sealed mount uses it. A blob also stays if a process has leased it since
    ``entry`` was read, because that process may have pinned it.
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
    """Rename a blob's directory into the trash, and unlink it there. After a crash, ``sweep`` unlinks it.

    Returns False if another process removed the blob first. If ``lease`` is given, only the entry of this open lease is
    removed, and not an entry that has replaced it. With ``spare_sealed``, a verified entry stays.
    """
    trash = trash_path(root)
    with locked(directory, lease) as there:
        if not there or (spare_sealed and os.path.exists(os.path.join(directory, "sealed"))):
            return False
        make_directories(os.path.dirname(trash))
        try:
            os.rename(directory, trash)
        except FileNotFoundError:
            return False  # a user removed it by hand; no process of kitfs can, because this process holds the lock
    shutil.rmtree(trash, ignore_errors=True)
    return True


def sweep(root: str) -> None:
    """Unlink the files that a crash has left in the trash."""
    for name in names_in(ingest_path(root)):
        if name.startswith(TRASH):
            shutil.rmtree(ingest_path(root, name), ignore_errors=True)


def sweep_temporary(root: str) -> tuple[int, int]:
    """Remove the temporary files (``durable.whole_file``) that crashes have left behind beside small files.

    Returns (number of files, bytes on disk).
    """
    count = freed = 0
    for base in SMALL_FILES:
        for directory, _, names in os.walk(os.path.join(root, base)):
            for path in (os.path.join(directory, name) for name in names if name.endswith("~")):
                with suppress(OSError):
                    info = os.lstat(path)
                    if time.time() - info.st_mtime > LEFT:
                        os.unlink(path)
                        count, freed = count + 1, freed + info.st_blocks * 512
    return count, freed
