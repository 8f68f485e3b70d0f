"""A flight locks its chunks before it stores them, so that no other process fetches them too.

The other process is a second ``ChunkMap`` of the same file, because the locks of two open files exclude each other.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from kitfs.buffers import Buffers
from kitfs.store.chunk_map import ChunkMap
from kitfs.store.data_file import DataFile
from kitfs.store.fetch import Fetcher
from kitfs.store.flight import GAP, SEGMENT
from kitfs.store.sink import Sink
from tests.fakes.sources import BytesSource

CHUNK = 32 << 10
DATA = random.Random(5).randbytes(3 * SEGMENT + 12_345)
CHUNKS = -(-len(DATA) // CHUNK)
PATIENCE = 60.0  # seconds; no test waits for another process


class Owner:
    """The owner of a blob that is fetched. It stores every byte."""

    def stored(self, size: int) -> None:
        """Do nothing."""

    def may_store(self) -> bool:
        return True

    def disk_failed(self, error: OSError) -> None:
        raise error

    def make_room(self) -> bool:
        return False

    def read_through(self, size: int, *, full: bool) -> None:
        """Do nothing."""

    def finished(self, size: int, sha256: str) -> bool:
        return True

    def landed(self) -> None:
        """Do nothing."""

    def learn_size(self) -> int | None:
        return len(DATA)


class Rival(Owner):
    """An owner that lets another process lock the first absent chunk as soon as bytes were stored."""

    def __init__(self, other: ChunkMap) -> None:
        self._other = other
        self.locked: list[int] = []

    def stored(self, size: int) -> None:
        chunk = self._other.first_missing(0, CHUNKS - 1)
        if chunk is not None and self._other.try_lock(chunk, 1):
            self.locked.append(chunk)


class LateMap(ChunkMap):
    """A chunk map in which another process stores the chunks ``late`` right before the first chunks are locked."""

    def __init__(self, directory: str, other: ChunkMap, late: range) -> None:
        super().__init__(directory, CHUNKS)
        self._other = other
        self._late = late

    def try_lock(self, first: int, count: int) -> bool:
        late, self._late = self._late, range(0)
        if late:
            self._other.mark(late.start, len(late))
        return super().try_lock(first, count)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[ChunkMap]:
    """Return the chunk map that another process has opened."""
    found = ChunkMap(str(tmp_path), CHUNKS)
    yield found
    found.close()


def fetch_all(directory: Path, present: ChunkMap, owner: Owner, piece: int) -> BytesSource:
    """Fetch all chunks, and return the source, which sent pieces of ``piece`` bytes."""
    body = DataFile(str(directory))
    sink = Sink(owner, body, present, chunk=CHUNK, size=len(DATA), buffers=Buffers())
    source = BytesSource(DATA, piece=piece)
    fetcher = Fetcher(source, sink, owner, name="blob", rests=False, patience=PATIENCE)
    fetcher.ensure(0, CHUNKS - 1)
    fetcher.close()
    body.close()
    present.close()
    return source


@pytest.mark.parametrize("piece", [CHUNK // 2 + 1, SEGMENT // 4, SEGMENT], ids=["small", "medium", "segment"])
def test_no_other_process_can_lock_the_chunk_after_the_stored_chunks(
    tmp_path: Path, other: ChunkMap, piece: int
) -> None:
    """Otherwise the request would end there, and the bytes that are already under way would be fetched twice."""
    owner = Rival(other)
    source = fetch_all(tmp_path, ChunkMap(str(tmp_path), CHUNKS), owner, piece)
    assert owner.locked == []
    assert source.asked == [(0, len(DATA))]
    assert (tmp_path / "rest").read_bytes() == DATA


def test_chunks_that_another_process_stored_before_they_were_locked_are_not_fetched(
    tmp_path: Path, other: ChunkMap
) -> None:
    late = range(10, 10 + 2 * GAP // CHUNK)
    source = fetch_all(tmp_path, LateMap(str(tmp_path), other, late), Owner(), CHUNK)
    assert source.asked == [(0, late.start * CHUNK), (late.stop * CHUNK, len(DATA))]
