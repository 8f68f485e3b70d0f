"""Make the chunk table of a layer (``layers.chunk_table``) while the layer is packed, without reading a file again.

A thread hashes the chunks and the files of the layer, beside the thread that hashes the layer as a whole. Threading:
a maker belongs to one thread, apart from the thread that the maker starts and ends itself.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, Self

from kitfs.layers.builder import IndexBuilder
from kitfs.layers.chunk_table import ENTRIES, FILES, POINTS, WINDOWS, BuiltTable, ChunkHasher, build
from kitfs.layers.entries import FileHasher, encode
from kitfs.layers.index import Extent
from kitfs.layers.inflate import PointsMaker
from kitfs.layers.libz import INFLATE
from kitfs.layers.tar_header import padded
from kitfs.oci.names import Digest
from kitfs.ops.pack.layer_stream import GZIP_LEVELS, LayerStream, entry_size

AHEAD: Final = 4  # pieces that the thread may be behind

Task = tuple[Callable[[bytes], object], bytes]


class TableMaker:
    """A maker of the chunk table of the layer that ``stream`` makes. Use it in a ``with`` block.

    ``method`` is the compression of the layer. A zstd layer needs no restart points, because it has a table of frames.
    """

    def __init__(self, stream: LayerStream, method: str) -> None:
        self._sections: dict[str, bytes] = {}
        if stream.raw:
            places = [(0, stream.size)]
        else:
            places, self._sections[ENTRIES] = _tar_entries(stream)
        self._files = FileHasher(places)
        self._chunks = ChunkHasher()
        self._points = PointsMaker() if method in GZIP_LEVELS and INFLATE else None
        self._tasks: queue.Queue[Task | None] = queue.Queue(AHEAD)
        self._thread = threading.Thread(target=self._run, name="kitfs-chunks", daemon=True)
        self._ended = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._end()

    def _run(self) -> None:
        while (task := self._tasks.get()) is not None:
            task[0](task[1])

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._tasks.put(None)
            self._thread.join()

    def plain(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the pieces of the uncompressed layer unchanged, and hash them."""
        for piece in pieces:
            self._tasks.put((self._files.update, piece))
            yield piece

    def packed(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the pieces of the layer's blob unchanged, and hash them."""
        for piece in pieces:
            self._tasks.put((self._chunks.update, piece))
            if self._points is not None:
                self._tasks.put((self._points.update, piece))
            yield piece

    def table(self, layer: Digest) -> BuiltTable:
        """Return the table, after the last piece. Raises LayerError for a layer that is too large for a table."""
        self._end()
        sections = {**self._sections, FILES: self._files.digests()}
        points = None if self._points is None else self._points.points()
        if points is not None:
            sections[POINTS], sections[WINDOWS] = points.apart()
        return build(layer.hex, self._chunks.size, self._chunks.digests(), sections)


def _tar_entries(stream: LayerStream) -> tuple[list[tuple[int, int]], bytes]:
    """Return the offset and the size of each file in the tar of a layer, and the section "entries"."""
    entries = stream.plan.entries
    builder = IndexBuilder(max_entries=max(1, len(entries)))
    places: list[tuple[int, int]] = []
    at = 0
    for entry in entries:
        if entry.directory:
            builder.add_directory(entry.path, entry.mode)
        else:
            start = at + entry_size(entry) - padded(entry.size)
            builder.add_file(entry.path, entry.size, entry.mode, (Extent(0, start, entry.size),) if entry.size else ())
            places.append((start, entry.size))
        at += entry_size(entry)
    return places, encode(builder.finish())
