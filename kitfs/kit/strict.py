"""Read a blob so that every byte is verified after it was read from the disk (``--verify strict``).

The digests are those of the layer's chunk table. For a blob without a table, the reader waits until the whole blob is
fetched and its digest is right, and then computes the digests of its chunks from these bytes. A chunk that has changed
on the disk is fetched again. Threading: any thread may read. While the blob is fetched and hashed as a whole, other
readers wait.
"""

from __future__ import annotations

import threading
from typing import Final

from kitfs.errors import IntegrityError, LayerError, StoreFull, WouldBlock, WrongChunk
from kitfs.kit.layer_table import LayerTable
from kitfs.layers.chunk_table import CHUNK, DIGEST, ChunkHasher
from kitfs.store.blob import Blob
from kitfs.store.chunk_digests import check_chunks

ATTEMPTS: Final = 3  # how often a chunk that has changed on the disk is fetched before the read fails


class StrictReader:
    """A reader of ``blob``, whose chunks are verified by ``table`` if there is one.

    If ``blob`` is a decoded form, ``wire`` is the compressed blob.
    """

    def __init__(self, blob: Blob, table: LayerTable | None, wire: Blob | None = None) -> None:
        self._blob = blob
        self._wire = wire
        self._digests: LayerTable | _Digests | None = table
        self._is_ready = False
        self._lock = threading.Lock()  # held while the blob is fetched and hashed as a whole

    @property
    def size(self) -> int | None:
        """Return the length of the blob in bytes, or None while it is unknown."""
        return self._blob.size

    def pread(self, offset: int, size: int, *, wait: bool = True) -> bytes:
        """Return verified bytes as ``Blob.pread`` does. Raises WrongChunk if the disk changes them again and again.

        Without ``wait``, raises WouldBlock also if digests of the table are not in memory.
        """
        blob, digests = self._blob, self._ready(wait)
        start = offset - offset % CHUNK
        stop = -(-(offset + size) // CHUNK) * CHUNK
        if not wait and not digests.in_memory(start // CHUNK, (stop - start) // CHUNK):
            raise WouldBlock
        for attempt in range(ATTEMPTS):
            generation = blob.generation
            try:
                data = blob.pread(start, stop - start, wait=wait)
            except LayerError as e:
                if not wait:
                    raise WouldBlock
                if attempt == ATTEMPTS - 1 or self._wire is None:
                    raise
                error = IntegrityError(f"{self._wire} cannot be decoded: {e}")
                if self._wire.check():  # it is right, or is not verified yet and may have changed on the disk too
                    self._wire.drop_rotten(error, self._wire.generation)
                blob.drop_rotten(error, generation)  # what was decoded before the error may be wrong
                continue
            try:
                check_chunks(digests, start, data, str(blob))
            except WrongChunk as e:
                blob.drop_rotten(IntegrityError(f"{blob} has changed on the disk: {e}"), generation)
                if not wait:
                    raise WouldBlock
                if attempt == ATTEMPTS - 1:
                    raise
                continue
            return data[offset - start : offset - start + size]
        raise AssertionError("the last attempt returns or raises")

    def _ready(self, wait: bool) -> LayerTable | _Digests:
        """Return the digests of the chunks. Without a table, wait until the whole blob is verified."""
        digests = self._digests
        if self._is_ready and digests is not None:
            return digests
        if not wait:
            raise WouldBlock
        with self._lock:
            if not self._is_ready:
                if self._digests is None or not self._digests.load():
                    self._digests = _digests_of(self._blob)
                self._is_ready = True
            assert self._digests is not None
            return self._digests


class _Digests:
    """The digests of the chunks of a blob, which were computed from verified bytes."""

    key: Final = ""

    def __init__(self, digests: bytes) -> None:
        self._digests = digests

    def load(self) -> bool:
        return True

    def in_memory(self, first: int, count: int) -> bool:
        return True

    def digests(self, first: int, count: int, /) -> bytes:
        return self._digests[first * DIGEST : (first + count) * DIGEST]


def _digests_of(blob: Blob) -> _Digests:
    """Fetch a blob, verify its digest, and compute the digests of its chunks from the bytes that have this digest.

    Raises StoreFull if the store has no room for the whole blob, and the errors of ``Blob.verify`` and ``Blob.check``.
    """
    for _ in range(ATTEMPTS):
        blob.fill()
        if not blob.complete:
            raise StoreFull(f"{blob} cannot be verified before it is read: the store has no room for all of it")
        blob.verify()
        hasher = ChunkHasher()
        if blob.check(hashers=(hasher,)):
            return _Digests(hasher.digests())
    raise IntegrityError(f"{blob} changes on the disk again and again")
