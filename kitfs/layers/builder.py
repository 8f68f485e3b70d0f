"""Build the index of a layer entry by entry, for any archive format.

``IndexBuilder`` applies the rules of the manual's *Semantics* to the entries of one layer, and ``finish`` writes the
columns that ``index`` describes. This module reads no files. The entries are collected in arrays. An entry takes about
60 bytes of memory besides its path, and twice as many while ``finish`` runs. Threading: a builder belongs to one
thread.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from typing import Final

from kitfs.errors import LayerLimit
from kitfs.layers.access import READ, SEARCH
from kitfs.layers.index import (
    COUNTS,
    DIRECTORY,
    EXPLICIT,
    FILE,
    KIND_BITS,
    LINKED,
    PERMISSIONS,
    ROOT_MODE,
    SPREAD,
    SYMLINK,
    Counts,
    Extent,
    LayerIndex,
)
from kitfs.layers.index_file import pack
from kitfs.layers.names import PATH_MAX, Skipped, SkipReason, clean, encoded, shortened

IMPLIED_COST: Final = 128  # characters charged for a directory without an entry, besides its path
MAX_BYTES: Final = (1 << 32) - 1  # bytes of all paths together, because "name_at" has 32 bits
BLOCK: Final = 4096  # bytes of a block of statfs(2)
FILLED: Final = 1 << 14  # a flag: the directory has entries below it; used only while an index is built


class IndexBuilder:
    """A builder of a layer's index, to which the entries of an archive are added in their order.

    If several entries have the same name, the rules of GNU tar apply. If two files or symbolic links have the same
    name, the later entry wins. A directory replaces a file. A file replaces an empty directory, but is skipped if the
    directory has entries below it. An entry below a file or a symbolic link is skipped. If two directories have the
    same name, the first entry sets the mode.

    Raises LayerLimit for more than ``max_entries`` entries. Also raises LayerLimit if the names and targets have more
    than 256 * ``max_entries`` characters together; 16 Mi characters are always allowed. The second limit is needed
    because a small archive can imply long chains of directories.
    """

    def __init__(self, *, max_entries: int) -> None:
        self._max_entries = max_entries
        self._count = 0
        self._name_budget = max(16 << 20, 256 * max_entries)  # characters that names and targets may still have
        self._paths = bytearray()
        self._path_at = array("I", (0, 0))
        self._parent = array("I", (0,))
        self._flags = array("H", (DIRECTORY | ROOT_MODE,))
        self._a = array("Q", (0,))
        self._b = array("Q", (0,))
        self._seq = array("I", (0,))  # the number of the entry that won the row
        self._file = array("I", (0,))  # the number of the file, for files that have hard links
        self._in_order = True  # whether rows with an entry are in the order of the archive
        self._slots = array("I", bytes(4 << 10))  # hash table of rows by path, with open addressing; 0 is a free slot
        self._last_parent = (b"", 0)
        self._extents = array("Q")
        self._targets = bytearray()
        self._skipped = bytearray()
        self._skips = 0

    def skip(self, name: str, reason: SkipReason, detail: str = "", *, link: str = "") -> None:
        """Count an entry, and record why it is not in the tree. ``Skipped`` explains ``detail`` and ``link``."""
        self.skip_data()
        self._leave_out(name, reason, detail, link)

    def skip_data(self) -> None:
        """Count an entry that is neither in the tree nor reported as skipped, such as a volume label."""
        self._count += 1
        if self._count > self._max_entries:
            raise LayerLimit(f"more than {self._max_entries} entries; raise the limit with --max-entries")

    def add_file(self, name: str, size: int, mode: int, extents: tuple[Extent, ...]) -> None:
        """Add a regular file of ``size`` bytes."""
        flags = FILE | mode & PERMISSIONS
        if len(extents) == 1 and extents[0][0] == 0 and extents[0][2] == size:
            self._add(name, flags, size, extents[0][1])
        elif not size and not extents:
            self._add(name, flags, 0, 0)
        else:
            first = len(self._extents) // 3
            for extent in extents:
                self._extents.extend(extent)
            self._add(name, flags | SPREAD, size, first << 32 | len(extents))

    def add_directory(self, name: str, mode: int) -> None:
        """Add a directory. An entry for the root is counted, but its mode is ignored."""
        self._add(name, DIRECTORY | mode & PERMISSIONS, 0, 0)

    def add_symlink(self, name: str, target: str) -> None:
        """Add a symbolic link. Its target is stored unchanged, even if it points out of the tree."""
        raw = encoded(target)
        if not target or "\0" in target or len(raw) > PATH_MAX:
            self.skip(name, SkipReason.UNUSABLE_TARGET)
        elif self._add(name, SYMLINK | 0o777, len(raw), len(self._targets)) >= 0:
            self._spend(len(target))
            self._targets += raw

    def add_hard_link(self, name: str, target: str) -> None:
        """Add another name of an earlier file or symbolic link.

        A link from a file to itself changes nothing. GNU tar writes such a link if it is given a file twice.
        """
        first, reason = clean(target)
        if reason is not None:
            self.skip(name, reason, link=shortened(target))
            return
        found = self._find(encoded(first))
        if found < 0 or not self._flags[found] & KIND_BITS:
            self.skip(name, SkipReason.MISSING_TARGET, shortened(target))
            return
        if not self._file[found]:
            self._file[found] = self._count + 1
        file = self._file[found]
        row = self._find(encoded(clean(name)[0]))
        if row >= 0 and self._file[row] == file:
            self.skip_data()
            return
        row = self._add(name, self._flags[found] & ~EXPLICIT, self._a[found], self._b[found])
        if row >= 0:
            self._file[row] = file

    def _leave_out(self, name: str, reason: SkipReason, detail: str = "", link: str = "") -> None:
        skipped = Skipped(shortened(name), reason, detail, link)
        self._spend(len(skipped.name) + len(skipped.text))
        self._skipped += json.dumps([skipped.name, reason.value, detail, link]).encode() + b"\n"
        self._skips += 1

    def _spend(self, characters: int) -> None:
        self._name_budget -= characters
        if self._name_budget < 0:
            raise LayerLimit("the file names use too much memory; raise the limit with --max-entries")

    def _add(self, name: str, flags: int, a: int, b: int) -> int:
        """Add an entry; return its row, or -1 if an earlier entry of that name stays."""
        path, reason = clean(name)
        if reason is not None:
            self.skip(name, reason)
            return -1
        self.skip_data()
        if not path:
            if flags & KIND_BITS:
                self._leave_out(name, SkipReason.REPLACES_ROOT)
            return -1
        key = encoded(path)
        parent = self._enter(name, key.rpartition(b"/")[0])
        if parent < 0:
            return -1
        row = self._find(key)
        if row < 0:
            row = self._new(key, parent, flags | EXPLICIT, a, b)
        else:
            earlier = self._flags[row]
            if not flags & KIND_BITS:
                if not earlier & KIND_BITS and earlier & EXPLICIT:
                    return -1
            elif not earlier & KIND_BITS and earlier & FILLED:
                self._leave_out(name, SkipReason.FILLED_DIRECTORY)
                return -1
            self._in_order = False
            self._flags[row] = flags | EXPLICIT | earlier & FILLED
            self._a[row], self._b[row] = a, b
            self._file[row] = 0
        self._spend(len(path))
        self._flags[parent] |= FILLED
        self._seq[row] = self._count
        return row

    def _enter(self, name: str, path: bytes) -> int:
        """Return the row of a directory. Add rows for the directory and its parents where they are missing.

        Returns -1 if the path, or a path above it, is a file or a symbolic link.
        """
        known, row = self._last_parent
        if path == known and not self._flags[row] & KIND_BITS:
            return row
        missing = []
        above = path
        while (row := self._find(above)) < 0:
            missing.append(above)
            above = above.rpartition(b"/")[0]
        kind = self._flags[row] & KIND_BITS
        if kind:
            reason = SkipReason.BELOW_FILE if kind == FILE else SkipReason.BELOW_SYMLINK
            self._leave_out(name, reason, shortened(above.decode("utf-8", "surrogateescape")))
            return -1
        for implied in reversed(missing):
            self._spend(len(implied.decode("utf-8", "surrogateescape")) + IMPLIED_COST)
            self._flags[row] |= FILLED
            row = self._new(implied, row, DIRECTORY | ROOT_MODE, 0, 0)
        self._last_parent = path, row
        return row

    def _find(self, path: bytes) -> int:
        """Return the row of a path; -1 if the path does not exist."""
        if not path:
            return 0
        slots, path_at, paths = self._slots, self._path_at, self._paths
        mask = len(slots) - 1
        slot = hash(path) & mask
        while row := slots[slot]:
            if paths[path_at[row] : path_at[row + 1]] == path:
                return row
            slot = slot + 1 & mask
        return -1

    def _new(self, path: bytes, parent: int, flags: int, a: int, b: int) -> int:
        """Add a row for a path that has no row yet."""
        if len(self._paths) + len(path) > MAX_BYTES:
            raise LayerLimit(f"the paths of its entries add up to more than {MAX_BYTES} bytes")
        row = len(self._parent)
        self._paths += path
        self._path_at.append(len(self._paths))
        self._parent.append(parent)
        self._flags.append(flags)
        self._a.append(a)
        self._b.append(b)
        self._seq.append(0)
        self._file.append(0)
        if 2 * row > len(self._slots):
            self._slots = array("I", bytes(8 * len(self._slots)))
            for known in range(1, row):
                self._place(self._paths[self._path_at[known] : self._path_at[known + 1]], known)
        self._place(path, row)
        return row

    def _place(self, path: bytes | bytearray, row: int) -> None:
        slots = self._slots
        mask = len(slots) - 1
        slot = hash(bytes(path)) & mask
        while slots[slot]:
            slot = slot + 1 & mask
        slots[slot] = row

    def finish(self) -> LayerIndex:
        """Return the index of the entries that were added. The builder cannot be used after that."""
        self._slots = array("I")
        members = self._in_archive_order()
        rows, new = self._breadth_first()
        names, name_at = self._names(rows)
        linked, first, nlink = self._links(members, new)
        data = pack({
            "counts": COUNTS.pack(*self._counts(members, new)),
            "parent": memoryview(array("I", map(new.__getitem__, map(self._parent.__getitem__, rows)))),
            "flags": memoryview(array("H", (self._flags[row] & ~FILLED for row in rows))),
            "a": memoryview(array("Q", map(self._a.__getitem__, rows))),
            "b": memoryview(array("Q", map(self._b.__getitem__, rows))),
            "name_at": memoryview(name_at),
            "names": names,
            "order": memoryview(array("I", map(new.__getitem__, members))),
            "linked": memoryview(linked),
            "first": memoryview(first),
            "nlink": memoryview(nlink),
            "extents": memoryview(self._extents),
            "targets": self._targets,
            "skipped": self._skipped,
        })  # fmt: skip
        return LayerIndex(data)

    def _in_archive_order(self) -> array[int]:
        """Return the rows that have an entry, in the order of the archive."""
        flags = self._flags
        found = array("I", (row for row in range(len(flags)) if flags[row] & EXPLICIT))
        return found if self._in_order else array("I", sorted(found, key=self._seq.__getitem__))

    def _breadth_first(self) -> tuple[array[int], array[int]]:
        """Return the rows in the order of the index, and the number of each row in that order.

        The method also writes the children of each directory into ``a`` and ``b``.
        """
        parent, path_at, paths = self._parent, self._path_at, self._paths
        count = len(parent)
        start = array("I", bytes(4 * count + 4))
        for row in range(1, count):
            start[parent[row] + 1] += 1
        for row in range(count):
            start[row + 1] += start[row]
        at = start[:]
        below = array("I", bytes(4 * count))
        for row in range(1, count):
            above = parent[row]
            below[at[above]] = row
            at[above] += 1
        rows, new = array("I", (0,)), array("I", bytes(4 * count))
        for number in range(count):
            row = rows[number]
            new[row] = number
            if self._flags[row] & KIND_BITS:
                continue
            children = below[start[row] : start[row + 1]]
            self._a[row], self._b[row] = len(rows), len(children)
            if len(children) > 1:
                children = array("I", sorted(children, key=lambda child: paths[path_at[child] : path_at[child + 1]]))
            rows += children
        return rows, new

    def _names(self, rows: array[int]) -> tuple[bytearray, array[int]]:
        """Return the last components of the paths in one string, and where each component begins in it."""
        parent, path_at, paths = self._parent, self._path_at, self._paths
        names, name_at = bytearray(), array("I", (0, 0))
        for number in range(1, len(rows)):
            row = rows[number]
            above = parent[row]
            skipped = path_at[above + 1] - path_at[above] + 1 if above else 0
            names += paths[path_at[row] + skipped : path_at[row + 1]]
            name_at.append(len(names))
        return names, name_at

    def _links(self, members: array[int], new: array[int]) -> tuple[array[int], array[int], array[int]]:
        """Return the columns "linked", "first" and "nlink", and mark the rows of files with several names."""
        file, flags = self._file, self._flags
        ordered = sorted((file[row] << 32 | place for place, row in enumerate(members) if file[row]))
        found: list[tuple[int, int, int]] = []
        for first, stop in _runs(ordered):
            rows = [members[key & 0xFFFFFFFF] for key in ordered[first:stop]]
            if len(rows) > 1:
                found += [(new[row], new[rows[0]], len(rows)) for row in rows]
                for row in rows:
                    flags[row] |= LINKED
        found.sort()
        return (
            array("I", (linked for linked, _, _ in found)),
            array("I", (first for _, first, _ in found)),
            array("I", (names for _, _, names in found)),
        )

    def _counts(self, members: array[int], new: array[int]) -> Counts:
        flags, a, b, extents = self._flags, self._a, self._b, self._extents
        total = blocks = end = closed_files = closed_directories = closed_file = closed_directory = 0
        for row in members:
            word = flags[row]
            kind = word & KIND_BITS
            if kind == DIRECTORY:
                if word & SEARCH != SEARCH:
                    closed_directories += 1
                    closed_directory = closed_directory or new[row]
                continue
            size = a[row]
            total += size
            if kind != FILE:
                continue
            blocks += -(-size // BLOCK)
            if not word & SPREAD:
                end = max(end, b[row] + size)
            if not word & READ:
                closed_files += 1
                closed_file = closed_file or new[row]
        for at in range(0, len(extents), 3):
            end = max(end, extents[at + 1] + extents[at + 2])
        return Counts(
            rows=len(flags),
            members=len(members),
            skipped=self._skips,
            total_low=total & (1 << 64) - 1,
            total_high=total >> 64,
            blocks=min(blocks, (1 << 64) - 1),
            end=end,
            closed_files=closed_files,
            closed_directories=closed_directories,
            closed_file=closed_file,
            closed_directory=closed_directory,
        )


def _runs(keys: list[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) for each run of keys with the same value of ``key >> 32``."""
    start = 0
    for stop in range(1, len(keys) + 1):
        if stop == len(keys) or keys[stop] >> 32 != keys[start] >> 32:
            yield start, stop
            start = stop


def raw_index(path: str, size: int, mode: int) -> LayerIndex:
    """Return the index of a layer whose blob is a single file. A file whose path leaves the root is skipped."""
    builder = IndexBuilder(max_entries=1)
    builder.add_file(path, size, mode, (Extent(0, 0, size),) if size else ())
    return builder.finish()


def unnamed_index() -> LayerIndex:
    """Return the index of a layer whose blob is a single file without a name. The file is skipped."""
    builder = IndexBuilder(max_entries=1)
    builder.skip("", SkipReason.UNNAMED_FILE)
    return builder.finish()
