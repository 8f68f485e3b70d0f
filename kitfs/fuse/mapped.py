"""Read verified layers directly from the store's files. Large reads are not copied in this process.

A large read is answered with a part of a mapping of the layer's file. The kernel copies the part into the reader's page
cache, so the bytes are copied once instead of twice. This made warm sequential reads 1.4 times as fast. Only the kernel
accesses the mapped bytes, so an error of the disk is an error of a system call, never a signal. The pages of a reply
are unmapped when the thread answers its next request. So the mappings take address space, but each thread takes only
the memory of one request or of one huge page.

Only files that the store has verified are mapped; the store neither changes nor truncates them. Threading: any thread
may call every method.
"""

from __future__ import annotations

import io
import mmap
import os
import threading
import weakref
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from kitfs.kit.node import Node, TreeLayer

SMALLEST: Final = 64 << 10  # bytes: for a shorter read, pread(2) is faster than a mapping
_FILES: Final = 64  # open layers; each takes two descriptors, one for the file and one for the mapping
_POPULATE_READ: Final = 22  # MADV_POPULATE_READ (Linux 5.14), which faults in all pages at once and reports errors


class MappedFile:
    """A file of the store, which is open and mapped as long as this object exists. The caller may close ``file``.

    Raises OSError or ValueError if the file cannot be mapped.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self._fd = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._fd)
        self._view = memoryview(self._mapping)
        self._last = threading.local()

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return bytes of the file. A memoryview is valid until this thread reads again. Raises OSError."""
        if size < SMALLEST:
            return os.pread(self._fd, size, offset)
        begin = offset - offset % mmap.PAGESIZE
        before = getattr(self._last, "range", None)
        if before is not None:
            self._mapping.madvise(mmap.MADV_DONTNEED, *before)
        self._last.range = begin, offset + size - begin
        self._mapping.madvise(_POPULATE_READ, begin, offset + size - begin)
        return self._view[offset : offset + size]


class Span(NamedTuple):
    """The position of a file of the tree in the stored file of its layer: ``size`` bytes from ``at`` on."""

    digest: str
    file: MappedFile
    at: int
    size: int

    def read(self, offset: int, size: int) -> bytes | memoryview | None:
        """Return bytes, fewer at the end of the file. Return None if they must be read in another way."""
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        try:
            return self.file.read(self.at + offset, size)
        except OSError:
            return None  # the kernel is too old, or the disk has an error


class MappedLayers:
    """The open files of at most ``_FILES`` layers: those that were read first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, MappedFile | None] = {}

    def span(self, node: Node) -> Span | None:
        """Return the span of a file's bytes, or None if the file's layer is compressed or not verified."""
        layer = node.layer
        if layer is None or layer.compressed or not node.size or not layer.is_verified():
            return None
        extents = node.member.extents
        if len(extents) != 1 or extents[0].file_offset or extents[0].length != node.size:
            return None
        file = self._file(layer)
        return None if file is None else Span(layer.digest, file, extents[0].blob_offset, node.size)

    def _file(self, layer: TreeLayer) -> MappedFile | None:
        with self._lock:
            if layer.digest not in self._files and len(self._files) < _FILES:
                self._files[layer.digest] = _opened(layer)
            return self._files.get(layer.digest)

    def forget(self, digest: str) -> None:
        """Close the file of a layer whose bytes turned out to be wrong."""
        with self._lock:
            self._files.pop(digest, None)


def _opened(layer: TreeLayer) -> MappedFile | None:
    file = layer.open_whole()
    if file is None:
        return None
    with file:
        try:
            return MappedFile(file)
        except (OSError, ValueError):
            return None
