"""Make the bytes of a layer from the files of its plan: a tar as kit writes it, or a single file unchanged.

A plan always results in the same bytes. They can be made from any offset on, so a layer can be uploaded without being
stored. If a file differs from its plan, or changes while it is read, a ``LayerStream`` raises an error. It joins small
pieces, so that a layer of many small files is written with few system calls. Threading: several threads may read a
LayerStream.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from kitfs.errors import ContextError, LayerError
from kitfs.layers import seekable
from kitfs.layers.tar_writer import TRAILER, entry_length, header, padding
from kitfs.openfile import PIECE
from kitfs.ops.pack.scan import LayerPlan, ScannedFile, identity

INVALID_ZIP: Final = (zipfile.BadZipFile, KeyError, OSError, ValueError, NotImplementedError, EOFError, struct.error)
# The errors of open() if the file was removed, became a link or a socket, or a directory above it was replaced.
REPLACED: Final = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENOTDIR)
GZIP_LEVELS: Final = {"gzip": 6, "gzip-fastest": 1}
GZIP_WINDOW: Final = 31  # zlib: the largest window, with gzip's header and trailer
LARGE: Final = 1 << 20  # bytes: the content of a file of this size is compressed apart from the headers around it
ROUND: Final = 64 << 10  # bytes: the size of a chunk in the store for a layer of up to 32 GiB


class LayerStream:
    """The uncompressed bytes of a layer: a tar, or with ``raw`` its single file. ``size`` is the number of bytes.

    The constructor raises ContextError for a name that cannot be stored in a tar.
    """

    def __init__(self, context: str, plan: LayerPlan, *, raw: bool) -> None:
        self._context = context
        self.plan: Final = plan
        self.raw: Final = raw
        try:
            self.size: Final = plan.entries[-1].size if raw else sum(map(entry_size, plan.entries)) + len(TRAILER)
        except LayerError as e:
            raise ContextError(str(e))

    def cuts(self) -> Iterator[int]:
        """Yield the offsets between the contents of large files and the headers around them.

        If a compressed layer is divided there, its headers can be read without decoding the large files. The offsets
        are rounded, so that no chunk of the store contains parts of both.
        """
        at = 0
        for entry in [] if self.raw else self.plan.entries:
            at += entry_size(entry)
            if not entry.directory and entry.size >= LARGE:
                stop = at - len(padding(entry.size))
                yield -(-(stop - entry.size) // ROUND) * ROUND
                yield stop // ROUND * ROUND

    def pieces(self, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes from ``start`` on, in pieces of about 1 MiB.

        Raises ContextError if a file differs from its plan.
        """
        gathered = bytearray()
        for data in self._raw(start) if self.raw else self._tar(start):
            if len(gathered) + len(data) > PIECE and gathered:
                yield bytes(gathered)
                gathered.clear()
            if len(data) >= PIECE:
                yield data
            else:
                gathered += data
        if gathered:
            yield bytes(gathered)

    def _raw(self, start: int) -> Iterator[bytes]:
        return self._file(self.plan.entries[-1], start)

    def _tar(self, start: int) -> Iterator[bytes]:
        at = 0
        for entry in self.plan.entries:
            length = entry_size(entry)
            if at + length > start:
                yield from self._entry(entry, max(0, start - at))
            at += length
        yield TRAILER[max(0, start - at) :]

    def _entry(self, entry: ScannedFile, skip: int) -> Iterator[bytes]:
        """Yield the bytes of one entry of the tar, without the first ``skip`` bytes."""
        head = header(os.fsencode(entry.path), directory=entry.directory, mode=entry.mode, size=entry.size)
        if skip < len(head):
            yield head[skip:]
        if entry.directory:
            return
        skip = max(0, skip - len(head))
        yield from self._file(entry, min(skip, entry.size))
        yield padding(entry.size)[max(0, skip - entry.size) :]

    def _file(self, entry: ScannedFile, start: int) -> Iterator[bytes]:
        with opened(self._context, entry) as fd:
            at = os.lseek(fd, start, os.SEEK_SET)
            while at < entry.size:
                data = os.read(fd, min(PIECE, entry.size - at))
                if not data:
                    break
                yield data
                at += len(data)
            now = os.lstat(os.path.join(self._context, entry.path))
            if at < entry.size or identity(os.fstat(fd)) != entry.identity or identity(now) != entry.identity:
                raise changed(entry)


def entry_size(entry: ScannedFile) -> int:
    """Return the size in bytes of an entry in the tar, with its headers and its padding."""
    return entry_length(os.fsencode(entry.path), directory=entry.directory, size=entry.size)


def compressed(pieces: Iterable[bytes], method: str, cuts: Iterable[int]) -> Iterator[bytes]:
    """Compress pieces into one stream. ``method``: "gzip", "gzip-fastest" or "zstd". The result is reproducible.

    zstd consists of frames, which also end at ``cuts`` (``LayerStream.cuts``), and can be read in any order.
    """
    if method == "zstd":
        yield from seekable.compress(pieces, cuts)
        return
    deflate = zlib.compressobj(GZIP_LEVELS[method], zlib.DEFLATED, GZIP_WINDOW)
    for piece in pieces:
        yield deflate.compress(piece)
    yield deflate.flush()


def check_bundle(context: str, plan: LayerPlan) -> None:
    """Raise ContextError unless a layer is an MCP bundle: a single zip file with a manifest.json at its root."""
    files = [e for e in plan.entries if not e.directory]
    if len(files) != 1 or files[0].path != plan.path:
        raise ContextError(f"{plan.path}: an MCP bundle must be a single zip file with a manifest.json")
    with opened(context, files[0]) as fd:
        try:
            with open(fd, "rb", closefd=False) as f, zipfile.ZipFile(f) as bundle:
                bundle.getinfo("manifest.json")
        except INVALID_ZIP:
            raise ContextError(f"{plan.path} is not an MCP bundle (a zip file with manifest.json at its root)")


@contextlib.contextmanager
def opened(context: str, entry: ScannedFile) -> Iterator[int]:
    """Open a planned file for the duration of a block, and yield its file descriptor.

    Raises ContextError if the file cannot be opened, differs from its plan, or cannot be read in the block.
    """
    try:
        fd = os.open(os.path.join(context, entry.path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if identity(os.fstat(fd)) != entry.identity:
                raise changed(entry)
            yield fd
        finally:
            os.close(fd)
    except OSError as e:
        if e.errno in REPLACED:
            raise changed(entry)
        raise ContextError(f"cannot read {entry.path}: {(e.strerror or str(e)).lower()}")


def changed(entry: ScannedFile) -> ContextError:
    """Return the error for a file that was replaced or written to during the pack."""
    return ContextError(f"{entry.path} changed while it was packed (pack again when no program writes to it)")
