"""The indexes of layers on disk (``layers.index``): files that are written once, by rename, and then only read.

    <root>/members/<algorithm>/ab/<hex>    made from bytes that had their digest. It says what any blob of this digest
                                           holds, wherever that comes from, and it stays when the blob is evicted.
    <entry>/members                        made from bytes that nothing has proven yet. It belongs to the entry of the
                                           origin that sent them, is used with that entry only, and goes with it, at the
                                           latest when the blob is verified.

A file is not fsynced: its checksum finds one that a power loss left torn, and it is made again. All functions treat a
failure of the disk as a miss, because an index can always be made again. Threading: no state; any process may read and
write at any time.
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
MAPPED: Final = 256 << 10  # bytes from which a file is mapped, which takes a descriptor, rather than read
KEPT: Final = 2 << 30  # bytes of the indexes of proven bytes; the least recently used go first


def load(root: str, digest: Digest, entry: str, *, proven: bool) -> LayerIndex | None:
    """Return the index of the blob ``digest``, whose store directory is ``entry``; None if there is no index.

    A damaged file, and one of another version, is removed.
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
            with suppress(OSError):  # a read-only disk keeps no time of use
                os.utime(f.fileno())
            return mmap.mmap(f.fileno(), size, access=mmap.ACCESS_READ) if size > MAPPED else f.read(MAPPED)
    except (OSError, ValueError):
        return None


def keep(root: str, digest: Digest, entry: str, index: LayerIndex, *, proven: bool) -> bool:
    """Write the index of a blob. Returns False when it cannot be written."""
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
    """Remove an index file, if there is one: of unproven bytes once they are verified, and a damaged one."""
    with suppress(OSError):
        os.unlink(_path(root, digest, entry, proven))


def _path(root: str, digest: Digest, entry: str, proven: bool) -> str:
    if not proven:
        return os.path.join(entry, NAME)
    return os.path.join(root, NAME, digest.algorithm, digest.hex[:2], digest.hex)


def _prune(root: str, limit: int) -> None:
    """Remove the least recently used indexes of proven bytes until the others take ``limit`` bytes at most."""
    found = sorted(_kept(root))
    surplus = sum(size for _, size, _ in found) - limit
    for _, size, path in found:
        if surplus <= 0:
            return
        with suppress(OSError):
            os.unlink(path)
            surplus -= size


def _kept(root: str) -> Iterator[tuple[int, int, str]]:
    """Yield (time of last use in nanoseconds, bytes, path) of the indexes of proven bytes."""
    base = os.path.join(root, NAME)
    for algorithm in names_in(base):
        for prefix in names_in(os.path.join(base, algorithm)):
            for name in names_in(os.path.join(base, algorithm, prefix)):
                path = os.path.join(base, algorithm, prefix, name)
                with suppress(OSError):
                    info = os.lstat(path)
                    yield info.st_mtime_ns, info.st_size, path
