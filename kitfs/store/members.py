"""Store the indexes of layers (``layers.index``) in files that are written once, by rename, and then only read.

    <root>/members/<algorithm>/ab/<hex>    an index of verified bytes. It is valid for any blob of this digest,
                                           whatever its origin, and it stays when the blob is evicted.
    <entry>/members                        an index of bytes that are not verified yet. It is valid only for this entry
                                           (the directory of the blob, for one origin), and is removed with the entry or
                                           when the blob is verified.

A file is not fsynced. If a power loss damages it, its checksum is wrong, and the index is made again. All functions
treat a failure of the disk as a miss, because an index can always be made again. Threading: any thread and any process
may read and write at any time.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from kitfs.layers.index import LayerIndex
from kitfs.layers.index_file import Buffer
from kitfs.oci.names import Digest
from kitfs.ownership import check_below, make_directories, open_file
from kitfs.store.durable import whole_file
from kitfs.store.paths import names_in

NAME: Final = "members"
MAPPED: Final = 256 << 10  # bytes: larger files are mapped, which takes a descriptor; smaller files are read
KEPT: Final = 2 << 30  # bytes: if the indexes of verified bytes exceed this, the least recently used are removed


def load(root: str, digest: Digest, entry: str, *, proven: bool) -> LayerIndex | None:
    """Return the index of the blob ``digest``, whose store directory is ``entry``; None if the index does not exist.

    ``proven`` selects the index of verified bytes. A file that is damaged or has another version is removed.
    """
    data = _read(root, digest, entry, proven)
    if data is None:
        return None
    try:
        return LayerIndex(data)
    except ValueError:
        discard(root, digest, entry, proven=proven)
        return None


def _read(root: str, digest: Digest, entry: str, proven: bool) -> Buffer | None:
    path = _path(root, digest, entry, proven)
    try:
        check_below(root, os.path.dirname(path))
        with open(open_file(path), "rb") as f:
            size = os.fstat(f.fileno()).st_size
            with suppress(OSError):  # a read-only disk cannot record the last use
                os.utime(f.fileno())
            return mmap.mmap(f.fileno(), size, access=mmap.ACCESS_READ) if size > MAPPED else f.read(MAPPED)
    except (OSError, ValueError):
        return None


def keep(root: str, digest: Digest, entry: str, index: LayerIndex, *, proven: bool) -> bool:
    """Write the index of a blob. Returns False if it cannot be written."""
    path = _path(root, digest, entry, proven)
    try:
        if proven:
            make_directories(os.path.dirname(path))
            check_below(root, os.path.dirname(path))
        with whole_file(path, durable=False) as f:
            f.write(index.data)
    except OSError:
        return False
    if proven:
        _prune(root, KEPT)
    return True


def discard(root: str, digest: Digest, entry: str, *, proven: bool) -> None:
    """Remove an index file if it exists."""
    with suppress(OSError):
        os.unlink(_path(root, digest, entry, proven))


def _path(root: str, digest: Digest, entry: str, proven: bool) -> str:
    if not proven:
        return os.path.join(entry, NAME)
    return os.path.join(root, NAME, digest.algorithm, digest.hex[:2], digest.hex)


def _prune(root: str, limit: int) -> None:
    """Remove the least recently used indexes of verified bytes until the rest take at most ``limit`` bytes."""
    found = sorted(_kept(root))
    surplus = sum(size for _, size, _ in found) - limit
    for _, size, path in found:
        if surplus <= 0:
            return
        with suppress(OSError):
            os.unlink(path)
            surplus -= size


def _kept(root: str) -> Iterator[tuple[int, int, str]]:
    """Yield (time of last use in nanoseconds, size in bytes, path) for each index of verified bytes."""
    base = os.path.join(root, NAME)
    for algorithm in names_in(base):
        for prefix in names_in(os.path.join(base, algorithm)):
            for name in names_in(os.path.join(base, algorithm, prefix)):
                path = os.path.join(base, algorithm, prefix, name)
                with suppress(OSError):
                    info = os.lstat(path)
                    yield info.st_mtime_ns, info.st_size, path
