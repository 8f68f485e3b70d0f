"""Keep what was learned about a layer in files that are written once, by rename, and then only read.

    <root>/<name>/<algorithm>/ab/<hex>    made from verified bytes. It is valid for any blob of this digest, whatever
                                          its origin, and it stays when the blob is evicted.
    <entry>/<name>                        made from bytes that are not verified yet. It is valid only for this entry
                                          (the directory of the blob, for one origin), and is removed with it.

A file is not fsynced, so it needs a checksum of its own, and can be made again. All functions treat a failure of the
disk as a miss. Threading: any thread and any process may read and write at any time.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from kitfs.oci.names import Digest
from kitfs.ownership import check_below, make_directories, open_file
from kitfs.store.durable import whole_file
from kitfs.store.paths import names_in

MAPPED: Final = 256 << 10  # bytes: larger files are mapped, which takes a descriptor; smaller files are read


class Kept:
    """The files named ``name``, one per blob.

    If the files of verified bytes exceed ``limit`` bytes, the least recently used of them are removed.
    """

    def __init__(self, name: str, *, limit: int) -> None:
        self._name = name
        self._limit = limit

    def load(self, root: str, digest: Digest, entry: str, *, proven: bool) -> bytes | mmap.mmap | None:
        """Return the bytes of the blob ``digest``, whose store directory is ``entry``; None if there is no file.

        ``proven`` selects the file that was made from verified bytes.
        """
        path = self._path(root, digest, entry, proven)
        try:
            check_below(root, os.path.dirname(path))
            with open(open_file(path), "rb") as f:
                size = os.fstat(f.fileno()).st_size
                with suppress(OSError):  # a read-only disk cannot record the last use
                    os.utime(f.fileno())
                return mmap.mmap(f.fileno(), size, access=mmap.ACCESS_READ) if size > MAPPED else f.read(MAPPED)
        except (OSError, ValueError):
            return None

    def keep(self, root: str, digest: Digest, entry: str, data: bytes | mmap.mmap, *, proven: bool) -> bool:
        """Write the file of a blob. Returns False if it cannot be written."""
        path = self._path(root, digest, entry, proven)
        try:
            if proven:
                make_directories(os.path.dirname(path))
                check_below(root, os.path.dirname(path))
            with whole_file(path, durable=False) as f:
                f.write(data)
        except OSError:
            return False
        if proven:
            self._prune(root)
        return True

    def discard(self, root: str, digest: Digest, entry: str, *, proven: bool) -> None:
        """Remove a file if it exists."""
        with suppress(OSError):
            os.unlink(self._path(root, digest, entry, proven))

    def _path(self, root: str, digest: Digest, entry: str, proven: bool) -> str:
        if not proven:
            return os.path.join(entry, self._name)
        return os.path.join(root, self._name, digest.algorithm, digest.hex[:2], digest.hex)

    def _prune(self, root: str) -> None:
        """Remove the least recently used files of verified bytes until the rest take at most ``limit`` bytes."""
        found = sorted(self._kept(root))
        surplus = sum(size for _, size, _ in found) - self._limit
        for _, size, path in found:
            if surplus <= 0:
                return
            with suppress(OSError):
                os.unlink(path)
                surplus -= size

    def _kept(self, root: str) -> Iterator[tuple[int, int, str]]:
        """Yield (time of last use in nanoseconds, size in bytes, path) for each file of verified bytes."""
        base = os.path.join(root, self._name)
        for algorithm in names_in(base):
            for prefix in names_in(os.path.join(base, algorithm)):
                for name in names_in(os.path.join(base, algorithm, prefix)):
                    path = os.path.join(base, algorithm, prefix, name)
                    with suppress(OSError):
                        info = os.lstat(path)
                        yield info.st_mtime_ns, info.st_size, path
