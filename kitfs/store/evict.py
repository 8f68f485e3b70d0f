"""Making room: whole blobs, least recently used first, never leased or pinned ones.

Death is rename + unlink, never truncate or punch: whoever has a file of the blob open goes on reading it. Pure
planning (``victims``) is apart from the disk. Threading: any thread or process may evict at any time; the exclusive
lease decides.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

from kitfs.openfile import OpenFile, OwnFile
from kitfs.ownership import make_directories
from kitfs.store.lease import exclusive, locked, release

FORMS: Final = ("blobs", "decoded")
SMALL: Final = 256 << 10  # bytes on disk


class Entry(NamedTuple):
    """A blob on disk: bytes it takes, when it was last used (nanoseconds since the epoch), its digest."""

    directory: str
    digest: str
    size: int
    used: int


def entries(root: str) -> Iterator[Entry]:
    """Every blob of a store, as far as they can be looked at while others come and go."""
    for form in FORMS:
        base = os.path.join(root, form)
        for algorithm in _names(base):
            for prefix in _names(os.path.join(base, algorithm)):
                for name in _names(os.path.join(base, algorithm, prefix)):
                    directory = os.path.join(base, algorithm, prefix, name)
                    try:
                        size = sum(os.lstat(os.path.join(directory, f)).st_blocks * 512 for f in os.listdir(directory))
                        used = os.lstat(os.path.join(directory, "lease")).st_mtime_ns
                    except OSError:
                        continue
                    yield Entry(directory, f"{algorithm}:{name}", size, used)


def _names(directory: str) -> Sequence[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return ()


def victims(found: Sequence[Entry], pinned: Collection[str]) -> tuple[list[Entry], list[Entry]]:
    """What may go, least recently used first: (layers, small blobs).

    Manifests and configs are what makes a remount work offline, and weigh nothing: they go only when that cures the
    want of room.
    """
    free = sorted((e for e in found if e.digest not in pinned), key=lambda e: e.used)
    return [e for e in free if e.size > SMALL], [e for e in free if e.size <= SMALL]


def remove(root: str, entry: Entry) -> bool:
    """Take a blob away if nobody has a lease on it, or had one since it was looked at: it may have been pinned
    meanwhile.
    """
    try:
        lease = OwnFile(os.path.join(entry.directory, "lease"), os.O_RDWR)
    except OSError:
        return False
    try:
        return (
            exclusive(lease)
            and lease.stat().st_mtime_ns == entry.used
            and remove_entry(root, entry.directory, lease=lease)
        )
    finally:
        release(lease)


def remove_entry(root: str, directory: str, *, lease: OpenFile | None = None, spare_sealed: bool = False) -> bool:
    """Rename a blob out of its place and unlink it there; a crash between the two leaves rubbish that ``sweep`` takes.

    False when somebody else was quicker: with ``lease``, open, only the entry that it belongs to is taken, not one
    that came after it; with ``spare_sealed`` only one that is not verified.
    """
    trash = os.path.join(root, "ingest", f"dead-{uuid.uuid4().hex}")
    with locked(directory, lease) as there:
        if not there or (spare_sealed and os.path.exists(os.path.join(directory, "sealed"))):
            return False
        make_directories(os.path.dirname(trash))
        try:
            os.rename(directory, trash)
        except FileNotFoundError:
            return False  # by no rule of ours
    shutil.rmtree(trash, ignore_errors=True)
    return True


def sweep(root: str) -> None:
    """Unlink what a crash left between a rename and its unlink."""
    ingest = os.path.join(root, "ingest")
    for name in _names(ingest):
        if name.startswith("dead-"):
            shutil.rmtree(os.path.join(ingest, name), ignore_errors=True)
