"""What a layer holds: its members by path, each with where its bytes lie in the blob.

A ``LayerIndex`` is an immutable file in memory, or mapped from the store: the winners of one layer by the rules of the
manual's *Semantics*, and the entries that were skipped. ``builder`` makes it, ``index_file`` has the layout around its
sections. A member costs some 30 bytes besides its name; nothing is parsed when an index is opened, and a ``Member`` is
made when somebody asks for it. Paths are in the normal form of ``names``. Threading: any thread may use an index.

Every path of the layer is a row, also a directory that has no entry but something below it. The root is row 0. Rows are
in breadth-first order, and the names of a directory in the order of their bytes: the children of a directory are
neighbours, a name is found by bisection, and a listing is a range.

    counts   ``COUNTS``
    parent   u32 a row: the row of the directory above; that of the root is 0
    flags    u16 a row: permission bits (9), kind (2), EXPLICIT, LINKED, SPREAD
    a        u64 a row: bytes of a file or of a symbolic link's target; of a directory its first child
    b        u64 a row: where a file begins in the blob; with SPREAD its first extent << 32 | number of extents; where
             the target of a symbolic link begins in "targets"; of a directory its number of children
    name_at  u32 a row and one more: where its name begins in "names"
    names    the last component of every path
    order    u32: the rows with an entry of their own, in the order of the archive
    linked   u32: the rows of files with several names, ascending; "first" and "nlink" (u32) have for each of them the
             row of the file's first name, and how many names there are
    extents  u64: file offset, blob offset and length, of files that are not one piece
    targets  the targets of symbolic links
    skipped  JSON lists, one a line: the fields of ``Skipped``
"""

from __future__ import annotations

import json
import operator
import struct
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from typing import Final, Literal, NamedTuple

from kitfs.layers.index_file import Buffer, unpack
from kitfs.layers.names import Skipped, SkipReason, encoded

SIZE_MAX: Final = (1 << 63) - 1  # bytes of a file, and of a blob: what off_t holds
ROOT_MODE: Final = 0o755
KINDS: Final = ("dir", "file", "symlink")
PERMISSIONS: Final = 0o777
KIND: Final = 9  # the lowest bit of the kind in "flags"
DIRECTORY, FILE, SYMLINK = (number << KIND for number in range(3))
KIND_BITS: Final = 3 << KIND
EXPLICIT: Final = 1 << 11  # the row has an entry of its own
LINKED: Final = 1 << 12  # the file has more than one name
SPREAD: Final = 1 << 13  # the file's extents are in "extents"
COLUMNS: Final[Mapping[str, Literal["H", "I", "Q"]]] = {
    "parent": "I", "flags": "H", "a": "Q", "b": "Q", "name_at": "I", "order": "I", "linked": "I", "first": "I",
    "nlink": "I", "extents": "Q",
}  # fmt: skip
TEXTS: Final = ("names", "targets", "skipped")


class Extent(NamedTuple):
    """The ``length`` bytes of a file at ``file_offset`` lie at ``blob_offset`` of the (decoded) blob. Bytes of a file
    that are in no extent are zero.
    """

    file_offset: int
    blob_offset: int
    length: int


class Member(NamedTuple):
    """One entry that won its name.

    ``kind`` is file, dir or symlink; ``mode`` has permission bits only; ``size`` is in bytes; ``target`` is a symbolic
    link's. Hard links to one file share an inode: ``link`` is the first of their names ("" for that name itself). It
    is the path of a member of the same index; a name that a later entry replaced is not one of the file's names.
    """

    path: str
    kind: str
    mode: int
    size: int = 0
    extents: tuple[Extent, ...] = ()
    target: str = ""
    link: str = ""


class Counts(NamedTuple):
    """The numbers at the head of an index.

    ``total_low`` and ``total_high`` are the two words of ``LayerIndex.total``. ``blocks`` are those of 4 KiB that the
    files take, and ``end`` is where the last extent ends in the blob. ``closed_files`` and ``closed_directories`` count
    the members that other users cannot use (``access``), of which the last two rows are examples.
    """

    rows: int
    members: int
    skipped: int
    total_low: int
    total_high: int
    blocks: int
    end: int
    closed_files: int
    closed_directories: int
    closed_file: int
    closed_directory: int


COUNTS: Final = struct.Struct(f"={len(Counts._fields)}Q")


class LayerIndex:
    """The members of one layer, by row. Raises ValueError for bytes that are not a whole index.

    ``data`` are the bytes that it was made of. ``members`` maps the path of each entry to its winner, in the order of
    the archive. ``skipped`` are the entries that are not in the tree. ``total`` is the sum of all sizes in bytes.
    """

    def __init__(self, data: Buffer) -> None:
        self.data: Final = data
        sections = unpack(data)
        view = memoryview(data)
        try:
            self.counts: Final = Counts(*COUNTS.unpack(view[sections["counts"]]))
            columns = {name: view[sections[name]].cast(code) for name, code in COLUMNS.items()}
            self._names, self._targets, self._lines = (sections[name].start for name in TEXTS)
        except (KeyError, TypeError, struct.error) as e:
            raise ValueError(f"an index without a whole section: {e}")
        self._parent: Final = columns["parent"]
        self._flags: Final = columns["flags"]
        self._a: Final = columns["a"]
        self._b: Final = columns["b"]
        self._name_at: Final = columns["name_at"]
        self._order: Final = columns["order"]
        self._linked: Final = columns["linked"]
        self._first: Final = columns["first"]
        self._nlink: Final = columns["nlink"]
        self._extents: Final = columns["extents"]
        self._check(sections["names"])
        self.total: Final = self.counts.total_high << 64 | self.counts.total_low
        self.members: Final = Members(self, self._order)
        self.skipped: Final = Skips(data, sections["skipped"], self.counts.skipped)

    def _check(self, names: slice) -> None:
        """Raise ValueError for columns that do not fit each other: a walk over rows must end, and stay in them."""
        rows, parent, name_at = self.counts.rows, self._parent, self._name_at
        if not (
            rows == len(parent) == len(self._flags) == len(self._a) == len(self._b) == len(name_at) - 1
            and self.counts.members == len(self._order)
            and len(self._linked) == len(self._first) == len(self._nlink)
            and rows > 0 == parent[0] == name_at[0] == name_at[1]
            and name_at[rows] == names.stop - names.start
            and all(map(operator.lt, parent[1:], range(1, rows)))
            and all(map(operator.le, parent, parent[1:]))
            and all(map(operator.le, name_at, name_at[1:]))
            and all(max(column, default=0) < rows for column in (self._order, self._linked, self._first))
        ):
            raise ValueError("an index whose columns do not fit each other")

    def __repr__(self) -> str:
        return f"<LayerIndex {len(self.members)} members, {len(self.skipped)} skipped, {self.total} bytes>"

    def __eq__(self, other: object) -> bool:
        """Return whether both say the same: an archive has one index, byte for byte."""
        return isinstance(other, LayerIndex) and memoryview(self.data) == memoryview(other.data)

    __hash__ = None  # type: ignore[assignment]

    def kind(self, row: int) -> str:
        """Return "file", "dir" or "symlink"."""
        return KINDS[self._flags[row] >> KIND & 3]

    def mode(self, row: int) -> int:
        """Return the permission bits; those of a directory without an entry are 0755."""
        return self._flags[row] & PERMISSIONS

    def size(self, row: int) -> int:
        """Return the bytes of a file, or of a symbolic link's target."""
        return self._a[row] if self._flags[row] & KIND_BITS else 0

    def explicit(self, row: int) -> bool:
        """Return whether the path has an entry of its own."""
        return bool(self._flags[row] & EXPLICIT)

    def children(self, row: int) -> range:
        """Return the rows directly below a directory, in the order of the bytes of their names."""
        if self._flags[row] & KIND_BITS:
            return range(0)
        first, rows = self._a[row], self.counts.rows
        return range(min(first, rows), min(first + self._b[row], rows))

    def has_children(self, row: int) -> bool:
        """Return whether something is below a directory."""
        return not self._flags[row] & KIND_BITS and self._b[row] > 0

    def name_bytes(self, row: int) -> bytes:
        """Return the last component of the path, as an archive has it."""
        names, name_at = self._names, self._name_at
        return self.data[names + name_at[row] : names + name_at[row + 1]]

    def name(self, row: int) -> str:
        """Return the last component of the path."""
        return self.name_bytes(row).decode("utf-8", "surrogateescape")

    def path_bytes(self, row: int) -> bytes:
        """Return the path, as an archive has it."""
        parts = []
        while row:
            parts.append(self.name_bytes(row))
            row = self._parent[row]
        return b"/".join(reversed(parts))

    def path(self, row: int) -> str:
        """Return the path."""
        return self.path_bytes(row).decode("utf-8", "surrogateescape")

    def child(self, row: int, name: bytes) -> int:
        """Return the row of a name in a directory; -1 if there is none."""
        rows = self.children(row)
        at = bisect_left(rows, name, key=self.name_bytes)
        return rows[at] if at < len(rows) and self.name_bytes(rows[at]) == name else -1

    def find(self, path: str) -> int:
        """Return the row of a path; -1 if there is none."""
        row = 0
        for name in encoded(path).split(b"/") if path else ():
            row = self.child(row, name)
            if row < 0:
                break
        return row

    def get(self, path: str) -> Member | None:
        """Return the member at a path. A directory without an entry that has something below it has mode 0755."""
        row = self.find(path)
        return None if row < 0 else self.member(row)

    def offset(self, row: int) -> int:
        """Return where the first extent of a file begins in the blob; -1 if the row has no extents."""
        flags = self._flags[row]
        if flags & SPREAD:
            first, count = self._b[row] >> 32, self._b[row] & 0xFFFFFFFF
            return self._extents[3 * first + 1] if count else -1
        return self._b[row] if flags & KIND_BITS == FILE and self._a[row] else -1

    def extents(self, row: int) -> tuple[Extent, ...]:
        """Return where the bytes of a file are."""
        flags, size = self._flags[row], self._a[row]
        if flags & SPREAD:
            first, count = self._b[row] >> 32, self._b[row] & 0xFFFFFFFF
            found = self._extents[3 * first : 3 * (first + count)]
            return tuple(Extent(*found[at : at + 3]) for at in range(0, len(found), 3))
        return (Extent(0, self._b[row], size),) if flags & KIND_BITS == FILE and size else ()

    def target(self, row: int) -> str:
        """Return the target of a symbolic link, else ""."""
        if self._flags[row] & KIND_BITS != SYMLINK:
            return ""
        start = self._targets + self._b[row]
        return self.data[start : start + self._a[row]].decode("utf-8", "surrogateescape")

    def first(self, row: int) -> int:
        """Return the row of the first name of a file: the row itself, unless hard links gave the file more names."""
        return self._first[bisect_left(self._linked, row)] if self._flags[row] & LINKED else row

    def nlink(self, row: int) -> int:
        """Return how many names a file has."""
        return self._nlink[bisect_left(self._linked, row)] if self._flags[row] & LINKED else 1

    def member(self, row: int) -> Member:
        """Return a row as a value."""
        first = self.first(row)
        link = "" if first == row else self.path(first)
        values = self.kind(row), self.mode(row), self.size(row), self.extents(row), self.target(row)
        return Member(self.path(row), *values, link)


class Members(Mapping[str, Member]):
    """The members of an index that have an entry, by path, in the order of the archive."""

    def __init__(self, index: LayerIndex, order: memoryview[int]) -> None:
        self._index = index
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[str]:
        return map(self._index.path, self._order)

    def __getitem__(self, path: str) -> Member:
        row = self._index.find(path)
        if row < 0 or not self._index.explicit(row):
            raise KeyError(path)
        return self._index.member(row)

    def rows(self) -> Iterator[int]:
        """Yield their rows."""
        return iter(self._order)


class Skips(Collection[Skipped]):
    """The entries of an archive that were skipped, in its order."""

    def __init__(self, data: Buffer, lines: slice, count: int) -> None:
        self._data = data
        self._lines = lines
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Skipped]:
        at, stop = self._lines.start, self._lines.stop
        while at < stop:
            end = self._data.find(b"\n", at, stop)
            name, reason, detail, link = json.loads(self._data[at:end])
            yield Skipped(name, SkipReason(reason), detail, link)
            at = end + 1

    def __contains__(self, entry: object) -> bool:
        return any(found == entry for found in self)
