"""Where the bytes of a kit come from when they are copied: the store, or else the origin of the kit.

Threading: none of its own.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from kitfs.content import ReadFrom, Source
from kitfs.errors import NotFound
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest
from kitfs.openfile import PIECE
from kitfs.store.store import Store


class StoreOrigin:
    """The Origin of a kit that was packed or pulled: the store has all of it, so no registry is asked."""

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]:
        """Raises NotFound: this is called only for a manifest that the store does not have."""
        raise _evicted(f"manifest {identifier}")

    def blob(self, descriptor: Descriptor) -> Source | None:
        """Return None: there is no source beside the store."""
        return None

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes:
        """Raises NotFound: this is called only for a blob that the store does not have."""
        raise _evicted(f"blob {descriptor.digest}")


@contextmanager
def blob_reader(store: Store, digest: Digest, source_of: Callable[[], Source | None]) -> Iterator[ReadFrom]:
    """Open a blob for a copy, until the end of the block.

    A blob that the store has whole is read from the store. Any other is read from its source, and not stored. Reading
    raises NotFound if there is no source, and what the source raises.
    """
    file = store.open_sealed(digest)
    if file is None:
        yield lambda offset: _from_source(digest, source_of(), offset)
        return
    with file:
        yield lambda offset: file_pieces(file, offset)


def file_pieces(file: io.FileIO, offset: int) -> Iterator[bytes]:
    """Yield the bytes of a file from an offset to its end. The position of the file does not move."""
    while data := os.pread(file.fileno(), PIECE, offset):
        yield data
        offset += len(data)


def _from_source(digest: Digest, source: Source | None, offset: int) -> Iterator[bytes]:
    if source is None:
        raise _evicted(f"blob {digest}")
    with closing(source.read_range(offset, None)) as pieces:
        for at, view in pieces:
            if at + len(view) > offset:
                yield bytes(view[max(0, offset - at) :])


def _evicted(what: str) -> NotFound:
    return NotFound(f"{what} is not in the store any more; ask its registry with --remote")
