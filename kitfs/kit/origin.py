"""Read the blobs of a kit to copy them. A blob that the store lacks is read from the kit's origin.

The origin is the place where a kit is read from: a registry, a layout, or the store.
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
    """The origin of a kit that was packed or pulled. The store has the whole kit, so no registry is asked."""

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]:
        """Raise NotFound, because this method is called only for a manifest that the store lacks."""
        raise _evicted(f"manifest {identifier}")

    def blob(self, descriptor: Descriptor) -> Source | None:
        """Return None, because a blob of this origin has no source outside the store."""
        return None

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes:
        """Raise NotFound, because this method is called only for a blob that the store lacks."""
        raise _evicted(f"blob {descriptor.digest}")


@contextmanager
def blob_reader(store: Store, digest: Digest, source_of: Callable[[], Source | None]) -> Iterator[ReadFrom]:
    """Open a blob for copying, and close it at the end of the ``with`` block.

    A blob that is complete in the store is read from the store. Any other blob is read from its source, and is not
    stored. A read raises the errors of the source, and NotFound if the blob has no source.
    """
    file = store.open_sealed(digest)
    if file is None:
        yield lambda offset: _from_source(digest, source_of(), offset)
        return
    with file:
        yield lambda offset: file_pieces(file, offset)


def file_pieces(file: io.FileIO, offset: int) -> Iterator[bytes]:
    """Yield the bytes of a file from an offset to its end. The file's own position does not change."""
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
    return NotFound(f"{what} is not in the store any more (read it from its registry with --remote)")
