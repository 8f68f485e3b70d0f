"""Find the layers whose declared path overlaps a path, and the names that several layers have."""

from __future__ import annotations

import heapq
import itertools
import operator
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from kitfs.layers.index import LayerIndex


class DeclaredPaths:
    """The declared paths of layers, by the number of the layer. The path "" overlaps every path.

    A kit may have thousands of layers with one name each, so comparing each name with each layer would take too long.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._exact: dict[str, list[int]] = {}
        for number, path in enumerate(paths):
            self._exact.setdefault(path, []).append(number)
        self._sorted = sorted((f"{path}/", number) for number, path in enumerate(paths) if path)
        self._all = range(len(paths))

    def overlapping(self, path: str) -> Sequence[int]:
        """Return the layers whose declared path overlaps ``path`` (``oci.paths.paths_overlap``), in ascending order.

        Two paths overlap if they are equal or if one is above the other.
        """
        if not path:
            return self._all
        found = list(self._exact.get("", ()))
        at = path.find("/")
        while at >= 0:
            found += self._exact.get(path[:at], ())
            at = path.find("/", at + 1)
        start = bisect_left(self._sorted, (f"{path}/",))
        stop = bisect_left(self._sorted, (f"{path}0",), start)  # "0" is the character after "/"
        found += (number for _, number in self._sorted[start:stop])
        return sorted(found)


def surplus(indexes: Iterable[LayerIndex], reserved: Iterable[bytes], block: int) -> tuple[int, int]:
    """Return (blocks, names) to subtract from the sums over several indexes, because indexes share names.

    If several indexes have a file of one name, only the last file is in the tree. No file of a ``reserved`` name at the
    root is in the tree. Only directories that several indexes have are read. A block has ``block`` bytes.
    """
    blocks = names = 0
    kept = set(reserved)
    pending = [[(index, 0) for index in indexes]]
    while pending:
        directories = pending.pop()
        rows = heapq.merge(*(_named(number, index, row) for number, (index, row) in enumerate(directories)))
        for name, group in itertools.groupby(rows, key=operator.itemgetter(0)):
            same = [(index, row) for _, _, index, row in group]
            files = [-(-index.size(row) // block) for index, row in same if index.kind(row) == "file"]
            is_kept = name in kept
            blocks += sum(files if is_kept else files[:-1])
            names += len(same) - (not is_kept)
            below = [(index, row) for index, row in same if index.has_children(row)]
            if len(below) > 1:
                pending.append(below)
        kept = set()
    return blocks, names


def _named(number: int, index: LayerIndex, directory: int) -> Iterator[tuple[bytes, int, LayerIndex, int]]:
    for row in index.children(directory):
        yield index.name_bytes(row), number, index, row
