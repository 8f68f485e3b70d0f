"""Recognize programs that read the tensors of a file in order, and tell which bytes they will read next.

A tensor counts as read when programs have asked for a sixteenth of it, and for 2 MiB at least: the kernel reads ahead
up to 1 MiB around a page fault, so that the neighbours of a tensor are touched too. Smaller tensors do not count. When
the tensor before it has been read as well, a reader in order is recognized. Bytes may be asked for in any size and by
any number of threads, with gaps, as page faults of a mapped file do.

Readers follow the order of the offsets, or that of the names, as safetensors sorts its keys. A reader is forgotten when
``PATIENCE`` tensors were read elsewhere since its last one. There is no I/O here. Threading: one thread at a time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from kitfs.formats.header import Tensor

LARGE: Final = 2 << 20  # bytes; a smaller tensor does not count as read
SHARE: Final = 16  # a tensor counts as read when one part in SHARE of it was asked for
NEAR: Final = 4  # places by which a reader may skip tensors
READERS: Final = 4  # readers that are remembered for each file
PATIENCE: Final = 8  # tensors read elsewhere after which a reader is forgotten
WINDOW: Final = 64 << 20  # bytes ahead of a reader, at most

Span = tuple[int, int]  # [start, stop) of a file, in bytes


@dataclass(slots=True, eq=False)
class Reader:
    """A program that reads tensors in order.

    ``place``: the place in the order of the last tensor that it has read, -1 before the first of a file. ``read``: the
    bytes of the tensors that it has read. ``latest``: how many tensors of the file had been read then.
    """

    names: bool  # whether it follows the order of the names
    place: int
    read: int
    latest: int = 0

    @property
    def window(self) -> int:
        """Bytes that may be fetched ahead: half of what was read in order."""
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
        self._orders: Final = (list(range(len(large))), by_name)  # of the offsets, of the names: numbers of tensors
        self._places: Final = tuple(dict(zip(order, range(len(order)), strict=True)) for order in self._orders)
        self._all: Final = (found, sorted(found, key=lambda one: one.name))
        self._readers: list[Reader] = []

    def resume(self, reader: Reader) -> None:
        """Expect a reader to go on with the first tensor of this file, after it has read another file to its end."""
        if not self._readers:
            self._readers = [Reader(reader.names, -1, reader.read)]

    def feed(self, offset: int, size: int) -> None:
        """Take note that a program has read ``size`` bytes at ``offset``."""
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
        """Take note that a tensor counts as read."""
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
        """The reader that has read a tensor last; None if programs do not read in order."""
        return self._readers[0] if self._readers else None

    def ahead(self) -> Iterator[Span]:
        """Yield what the readers will read next, as far as their windows reach, the latest reader first."""
        for reader in tuple(self._readers):
            room = reader.window
            for tensor in self._after(reader):
                if room <= 0:
                    break
                yield tensor.offset, tensor.offset + min(room, tensor.size)
                room -= tensor.size

    def beyond(self) -> Reader | None:
        """Return the latest reader if its window reaches beyond its last tensor of the file, else None."""
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
        """Yield the tensors that follow the last one of a reader in its order."""
        tensors, first = self._all[reader.names], 0
        if reader.place >= 0:
            last = self._large[self._orders[reader.names][reader.place]]
            if reader.names:
                first = bisect_right(tensors, last.name, key=lambda one: one.name)
            else:
                first = bisect_right(tensors, last.offset, key=lambda one: one.offset)
        for number in range(first, len(tensors)):
            yield tensors[number]
