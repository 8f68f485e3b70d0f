"""The content of an uncompressed layer that is written to files while it is fetched, without a copy in the store.

The bytes are hashed in the order in which they arrive, and the files get their names when the digest has been verified.
The index of the layer was read earlier, by separate requests, and the registry can have sent different headers for
these requests. To detect this, the bytes outside the files (the headers of the archive) are kept in memory, and the
index is made from them again at the end.

When an unpack is interrupted, the files that it has begun stay under their temporary names. The next run hashes their
bytes instead of fetching them, and requests the rest of the layer. Threading: only one thread may use a content.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, Final

from kitfs.content import Source
from kitfs.errors import IntegrityError, LayerError
from kitfs.kit.layer import Layer
from kitfs.layers.index import LayerIndex
from kitfs.layers.tar import index_tar
from kitfs.openfile import PIECE
from kitfs.ops.unpack.progress import Stopped
from kitfs.ops.unpack.safe_directory import write_all
from kitfs.system import begin_writeback

WRITEBACK: Final = 8 << 20  # bytes of a file that the kernel is asked to write to the disk at once
LITTLE: Final = 4 << 20  # bytes between two files of an earlier run that are worth a separate request


class Headers:
    """The bytes of an archive outside the files of ``index``.

    ``index_tar`` reads these bytes to make the index again. Inside the files, it reads zeros. If the result is equal to
    ``index``, then ``index`` is the right index of the archive, because the headers of an archive are never inside its
    files. ``size``: the size of the archive in bytes. ``outside``: how many bytes will be kept.
    """

    def __init__(self, index: LayerIndex, size: int) -> None:
        self.size: Final = size
        self._starts: list[int] = []  # starts of the runs of bytes that belong to files, ascending
        self._stops: list[int] = []
        spans = {(e.blob_offset, e.blob_offset + e.length) for r in index.members.rows() for e in index.extents(r)}
        for start, stop in sorted(spans):
            if self._stops and start <= self._stops[-1]:
                self._stops[-1] = max(stop, self._stops[-1])
            else:
                self._starts.append(start)
                self._stops.append(stop)
        self.outside: Final = size - sum(self._stops) + sum(self._starts)
        self._kept_at: list[int] = []
        self._kept: list[bytes] = []

    def add(self, at: int, view: memoryview) -> None:
        """Add the bytes of the archive from ``at`` on. Only bytes outside the files are kept."""
        base, stop = at, at + len(view)
        span = bisect_right(self._stops, at)
        while at < stop:
            start = self._starts[span] if span < len(self._starts) else stop
            if at < start:
                self._kept_at.append(at)
                self._kept.append(bytes(view[at - base : min(start, stop) - base]))
            if span == len(self._starts):
                return
            at = self._stops[span]
            span += 1

    def pread(self, offset: int, size: int) -> bytes:
        """Return ``size`` bytes at an offset, or fewer at the end."""
        data = bytearray(max(0, min(size, self.size - offset)))
        kept = max(0, bisect_right(self._kept_at, offset) - 1)
        while kept < len(self._kept_at) and self._kept_at[kept] < offset + len(data):
            piece, at = self._kept[kept], self._kept_at[kept] - offset
            part = piece[max(0, -at) : len(data) - at]
            data[max(0, at) : max(0, at) + len(part)] = part
            kept += 1
        return bytes(data)


class Direct:
    """The content of ``layer``, read once from ``source``, from its beginning to its end.

    ``headers``: None if the layer is one file. ``index``: the index with which the files were planned. ``kept``: how
    many files an earlier run has written or begun. ``wrong``: called with the error if the source has sent wrong bytes.
    """

    verified: Final = False
    resumable: Final = True

    def __init__(
        self, layer: Layer, source: Source, index: LayerIndex, headers: Headers | None, *,
        kept: int, max_entries: int, count: Callable[[int], None], stop: threading.Event,
        wrong: Callable[[IntegrityError], None],
    ) -> None:  # fmt: skip
        self.misindexed = False  # whether the digest was right, but the index was made from other bytes
        self._layer = layer
        self._source = source
        self._index = index
        self._headers = headers
        self._max_entries = max_entries
        self._count = count
        self._stop = stop
        self._wrong = wrong
        self._hasher: Any = layer.digest.hasher()
        self._kept = kept
        self._reused = 0  # bytes that earlier runs have written, or that were in the store
        self._at = 0  # bytes that were hashed
        self._piece = memoryview(b"")  # the piece that was hashed last
        self._stream: Generator[memoryview, None, None] | None = None

    def take(self, fd: int, offset: int, at: int, size: int) -> int:
        """Use bytes of a file from an earlier run instead of the source.

        The bytes from position ``at`` of the content on are in the file ``fd`` at ``offset``. Returns how many bytes
        were used: at most ``size``, and 0 if the file contains none of them.
        """
        there = min(size, os.fstat(fd).st_size - offset)
        if there <= 0 or self._kept <= 0:
            return 0
        self._kept -= 1
        if self._stream is not None or not self._reach(at):
            return 0
        buffer = memoryview(bytearray(min(PIECE, there)))
        done = 0
        while done < there and (got := os.preadv(fd, [buffer[: there - done]], offset + done)):
            self._pass(buffer[:got])
            done += got
        self._piece = memoryview(b"")
        self._reused += done
        return done

    def _reach(self, at: int) -> bool:
        """Read the bytes before ``at`` if they are few. Return whether the content has been read up to ``at``.

        The bytes are read from the store, which fetches them if necessary.
        """
        if not 0 <= at - self._at <= LITTLE:
            return False
        if at > self._at:
            data = self._layer.wire().pread(self._at, at - self._at)
            self._pass(memoryview(data))
            self._reused += len(data)
        return self._at == at

    def copy(self, at: int, size: int, fd: int, offset: int) -> None:
        """Copy ``size`` bytes from position ``at`` of the content.

        ``at`` must not be before the end of the last copy.
        """
        if self._kept > 0 and self._stream is None and size <= LITTLE and self._reach(at):
            self._reach(at + size)
        begun = offset
        while size:
            start = self._at - len(self._piece)
            if at >= self._at:
                self._next()
                continue
            part = self._piece[at - start :][:size]
            write_all(fd, part, offset)
            at, offset, size = at + len(part), offset + len(part), size - len(part)
            if offset - begun >= WRITEBACK:
                begin_writeback(fd, begun, offset - begun)
                begun = offset

    def _next(self) -> None:
        if self._stream is None:
            self._stream = self._received(self._at)
        piece = next(self._stream, None)
        if piece is None:
            raise IntegrityError(f"layer {self._layer.digest} ends before its files do")
        self._pass(piece)

    def _received(self, start: int) -> Generator[memoryview, None, None]:
        with closing(self._source.read_range(start, None)) as pieces:
            for at, view in pieces:  # from byte 0 on if the registry has no ranges
                if at + len(view) > start:
                    yield view[max(0, start - at) :]

    def _pass(self, piece: memoryview) -> None:
        """Hash the next bytes of the content. Raises Stopped."""
        if self._stop.is_set():
            raise Stopped
        self._hasher.update(piece)
        if self._headers is not None:
            self._headers.add(self._at, piece)
        self._piece = piece
        self._at += len(piece)
        self._count(len(piece))

    def finish(self) -> bool:
        """Read the rest, and compare the digest and the index.

        Returns True if both are right, and False if another attempt may succeed. Raises IntegrityError if the digest is
        wrong and another attempt cannot help.
        """
        while self._at < self._layer.size:
            self._next()
        actual = self._hasher.hexdigest()
        if actual != self._layer.digest.hex:
            algorithm = self._layer.digest.algorithm
            error = IntegrityError(f"layer {self._layer.digest} does not match its digest: it has {algorithm}:{actual}")
            if not self._reused:
                self._wrong(error)
                if not self._source.distrust():
                    raise error
        elif self._headers is None or self._is_indexed(self._headers):
            return True
        else:
            self.misindexed = True
        self._count(-self._at)
        return False

    def _is_indexed(self, headers: Headers) -> bool:
        try:
            return index_tar(headers, max_entries=self._max_entries) == self._index
        except LayerError:
            return False

    def close(self) -> None:
        """End the request."""
        if self._stream is not None:
            self._stream.close()
