"""Recognize programs that read the tensors of a file in order, and predict which bytes they will read next.

Around a page fault, the kernel reads ahead up to 1 MiB, which may be bytes of a neighbouring tensor. So a tensor counts
as read only after a sixteenth of it, and at least 2 MiB, has been read. Tensors of less than 2 MiB are not counted. A
reader is recognized when two successive tensors have been read. The reads may have any size, come from several threads,
and leave gaps, as page faults of a mapped file do.

A reader follows the order of the offsets, or the order in which safetensors sorts the names. A reader is forgotten
after ``PATIENCE`` tensors were read elsewhere. This module does no I/O. Threading: a TensorOrder belongs to one thread.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from kitfs.formats.header import Tensor

LARGE: Final = 2 << 20  # bytes; a smaller tensor does not count as read
SHARE: Final = 16  # a tensor counts as read after its size divided by SHARE was read
NEAR: Final = 4  # a reader may advance by so many tensors at a time
READERS: Final = 4  # readers remembered for each file
PATIENCE: Final = 8  # tensors read elsewhere after which a reader is forgotten
WINDOW: Final = 64 << 20  # bytes fetched ahead of a reader at most

Span = tuple[int, int]  # [start, stop) of a file, in bytes


@dataclass(slots=True, eq=False)
class Reader:
    """A program that reads tensors in order.

    ``place`` is the position of the tensor that the program read last, or -1 before the first tensor of a file.
    ``read`` is the total size of the tensors that the program has read. ``latest`` is how many tensors of the file had
    been read when the reader last advanced.
    """

    names: bool  # whether the reader follows the order of the names
    place: int
    read: int
    latest: int = 0

    @property
    def window(self) -> int:
        """Return how many bytes may be fetched ahead: half of the bytes that were read in order."""
        return min(self.read // 2, WINDOW)


class TensorOrder:
    """The readers of a file that has ``tensors``."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        found: list[Tensor] = []
        for tensor in sorted(tensors, key=lambda one: one.offset):
            if tensor.size and (not found or tensor.offset >= found[-1].offset + found[-1].size):
                found.append(tensor)
        large = [tensor for tensor in found if tensor.size >= LARGE]
        self._large: Final = large
        self._starts = [tensor.offset for tensor in large]
        self._asked = [0] * len(large)
        self._read: set[int] = set()
        by_name = sorted(range(len(large)), key=lambda number: large[number].name)
        self._orders: Final = (list(range(len(large))), by_name)  # the numbers of the tensors, by offset and by name
        self._places: Final = tuple(dict(zip(order, range(len(order)), strict=True)) for order in self._orders)
        self._all: Final = (found, sorted(found, key=lambda one: one.name))
        self._readers: list[Reader] = []

    def resume(self, reader: Reader) -> None:
        """Add a reader that has read another file to its end, and probably reads the first tensor of this file next."""
        if not self._readers:
            self._readers = [Reader(reader.names, -1, reader.read)]

    def feed(self, offset: int, size: int) -> None:
        """Record that a program has read ``size`` bytes at ``offset``."""
        number = max(0, bisect_right(self._starts, offset) - 1)
        while number < len(self._large) and self._starts[number] < offset + size:
            tensor = self._large[number]
            low, high = max(offset, tensor.offset), min(offset + size, tensor.offset + tensor.size)
            if low < high:
                self._asked[number] += high - low
                if number not in self._read and self._asked[number] >= max(LARGE, tensor.size // SHARE):
                    self._finish(number)
            number += 1

    def _finish(self, number: int) -> None:
        """Record that a tensor counts as read, and advance the reader that has read it."""
        done, size = len(self._read) + 1, self._large[number].size
        for names, (order, places) in enumerate(zip(self._orders, self._places, strict=True)):
            place = places[number]
            for reader in self._readers:
                if reader.names == bool(names) and reader.place < place <= reader.place + NEAR:
                    break
            else:
                if not place or order[place - 1] not in self._read:
                    continue
                reader = Reader(bool(names), place, self._large[order[place - 1]].size)
            reader.place, reader.read, reader.latest = place, reader.read + size, done
            others = [other for other in self._readers if other is not reader and done - other.latest < PATIENCE]
            self._readers = [reader, *others][:READERS]
            break
        else:
            self._readers = [reader for reader in self._readers if done - reader.latest < PATIENCE]
        self._read.add(number)

    @property
    def reader(self) -> Reader | None:
        """Return the reader that has most recently read a tensor; None if no program reads in order."""
        return self._readers[0] if self._readers else None

    def ahead(self) -> Iterator[Span]:
        """Yield the bytes within the windows of the readers. The bytes for the latest reader come first."""
        for reader in tuple(self._readers):
            room = reader.window
            for tensor in self._after(reader):
                if room <= 0:
                    break
                yield tensor.offset, tensor.offset + min(room, tensor.size)
                room -= tensor.size

    def beyond(self) -> Reader | None:
        """Return the latest reader if its window extends beyond the last tensor of the file, otherwise None."""
        reader = self.reader
        if reader is None:
            return None
        room = reader.window
        for tensor in self._after(reader):
            room -= tensor.size
            if room <= 0:
                return None
        return reader

    def _after(self, reader: Reader) -> Iterator[Tensor]:
        """Yield the tensors that follow a reader's position in its order."""
        tensors, first = self._all[reader.names], 0
        if reader.place >= 0:
            last = self._large[self._orders[reader.names][reader.place]]
            if reader.names:
                first = bisect_right(tensors, last.name, key=lambda one: one.name)
            else:
                first = bisect_right(tensors, last.offset, key=lambda one: one.offset)
        for number in range(first, len(tensors)):
            yield tensors[number]
