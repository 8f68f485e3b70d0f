"""Define the index of a layer: its members by path, and where the bytes of each member lie in the blob.

A ``LayerIndex`` is an immutable file in memory, or mapped from the store. It has the entries of one layer that are in
the tree by the rules of the manual's *Semantics*, and the entries that were skipped. ``builder`` makes an index, and
``index_file`` defines the file around its sections. A member takes about 30 bytes besides its name. Opening an index
parses nothing; a ``Member`` is made when its row is read. Paths are in the normal form of ``names``. Threading: any
thread may use an index.

Every path of the layer is a row, including directories that exist only because an entry is below them. The root is row
0. Rows are in breadth-first order, and the names in a directory are sorted by their bytes. So the children of a
directory are a range of rows, and a name is found by bisection.

    counts   ``COUNTS``
    parent   u32 a row: the row of the directory above; that of the root is 0
    flags    u16 a row: permission bits (9), kind (2), EXPLICIT, LINKED, SPREAD
    a        u64 a row: for a file or the target of a symbolic link, its size; for a directory, the row of its first
             child
    b        u64 a row: for a file, its offset in the blob, or with SPREAD its first extent << 32 | number of extents;
             for a symbolic link, the offset of its target in "targets"; for a directory, its number of children
    name_at  u32 a row, and one more at the end: the offset of the row's name in "names"
    names    the last component of every path
    order    u32: the rows with an entry of their own, in the order of the archive
    linked   u32: the rows of files with several names, ascending
    first    u32: for each row in "linked", the row of the file's first name
    nlink    u32: for each row in "linked", how many names the file has
    extents  u64: file offset, blob offset and length, for the pieces of files that are not contiguous in the blob
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

SIZE_MAX: Final = (1 << 63) - 1  # bytes of a file or a blob: the largest off_t
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
    """A piece of a file: its ``length`` bytes at ``file_offset`` lie at ``blob_offset`` of the (decoded) blob.

    Bytes of a file that are in no extent are zeros.
    """

    file_offset: int
    blob_offset: int
    length: int


class Member(NamedTuple):
    """A file, directory or symbolic link in the index of a layer.

    ``kind`` is "file", "dir" or "symlink". ``mode`` has the permission bits only, and ``size`` is in bytes. ``target``
    is the target of a symbolic link. If a file has several names (hard links), ``link`` is the path of the file's first
    name in the index; the member with the first name has the ``link`` "".
    """

    path: str
    kind: str
    mode: int
    size: int = 0
    extents: tuple[Extent, ...] = ()
    target: str = ""
    link: str = ""


class Counts(NamedTuple):
    """The numbers at the beginning of an index.

    ``total_low`` and ``total_high`` are the two words of ``LayerIndex.total``. ``blocks`` is the number of blocks of 4
    KiB that the files take, and ``end`` is the offset in the blob at which the last extent ends. ``closed_files`` and
    ``closed_directories`` count the members that other users cannot use (``access``). The last two fields are the row
    of one such file and of one such directory.
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
    """The members of one layer, by row.

    ``data`` has the bytes of the index file. ``members`` maps the path of each entry to its member, in the order of the
    archive. ``skipped`` has the entries that are not in the tree. ``total`` is the sum of all sizes in bytes. Raises
    ValueError if ``data`` is incomplete.
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
            raise ValueError(f"a section of the index is missing or incomplete: {e}")
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
        """Raise ValueError for columns that contradict each other. A walk over such rows could loop or fail."""
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
            raise ValueError("the columns of the index do not match")

    def __repr__(self) -> str:
        return f"<LayerIndex {len(self.members)} members, {len(self.skipped)} skipped, {self.total} bytes>"

    def __eq__(self, other: object) -> bool:
        """Return whether two indexes have the same bytes. All indexes of one archive are equal."""
        return isinstance(other, LayerIndex) and memoryview(self.data) == memoryview(other.data)

    __hash__ = None  # type: ignore[assignment]

    def kind(self, row: int) -> str:
        """Return "file", "dir" or "symlink"."""
        return KINDS[self._flags[row] >> KIND & 3]

    def mode(self, row: int) -> int:
        """Return the permission bits; those of a directory without an entry are 0755."""
        return self._flags[row] & PERMISSIONS

    def size(self, row: int) -> int:
        """Return the size in bytes of a file, or of the target of a symbolic link."""
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
        """Return whether a directory has entries below it."""
        return not self._flags[row] & KIND_BITS and self._b[row] > 0

    def name_bytes(self, row: int) -> bytes:
        """Return the last component of the path as the archive stores it."""
        names, name_at = self._names, self._name_at
        return self.data[names + name_at[row] : names + name_at[row + 1]]

    def name(self, row: int) -> str:
        """Return the last component of the path."""
        return self.name_bytes(row).decode("utf-8", "surrogateescape")

    def path_bytes(self, row: int) -> bytes:
        """Return the path as the archive stores it."""
        parts = []
        while row:
            parts.append(self.name_bytes(row))
            row = self._parent[row]
        return b"/".join(reversed(parts))

    def path(self, row: int) -> str:
        """Return the path."""
        return self.path_bytes(row).decode("utf-8", "surrogateescape")

    def child(self, row: int, name: bytes) -> int:
        """Return the row of the entry ``name`` in the directory of ``row``; -1 if the name does not exist."""
        rows = self.children(row)
        at = bisect_left(rows, name, key=self.name_bytes)
        return rows[at] if at < len(rows) and self.name_bytes(rows[at]) == name else -1

    def find(self, path: str) -> int:
        """Return the row of a path; -1 if the path does not exist."""
        row = 0
        for name in encoded(path).split(b"/") if path else ():
            row = self.child(row, name)
            if row < 0:
                break
        return row

    def get(self, path: str) -> Member | None:
        """Return the member at a path; None if the path does not exist.

        A directory that exists only because an entry is below it has mode 0755.
        """
        row = self.find(path)
        return None if row < 0 else self.member(row)

    def offset(self, row: int) -> int:
        """Return the offset in the blob of a file's first extent; -1 if the file has no extents."""
        flags = self._flags[row]
        if flags & SPREAD:
            first, count = self._b[row] >> 32, self._b[row] & 0xFFFFFFFF
            return self._extents[3 * first + 1] if count else -1
        return self._b[row] if flags & KIND_BITS == FILE and self._a[row] else -1

    def extents(self, row: int) -> tuple[Extent, ...]:
        """Return the extents of a file."""
        flags, size = self._flags[row], self._a[row]
        if flags & SPREAD:
            first, count = self._b[row] >> 32, self._b[row] & 0xFFFFFFFF
            found = self._extents[3 * first : 3 * (first + count)]
            return tuple(Extent(*found[at : at + 3]) for at in range(0, len(found), 3))
        return (Extent(0, self._b[row], size),) if flags & KIND_BITS == FILE and size else ()

    def target(self, row: int) -> str:
        """Return the target of a symbolic link; "" for other kinds."""
        if self._flags[row] & KIND_BITS != SYMLINK:
            return ""
        start = self._targets + self._b[row]
        return self.data[start : start + self._a[row]].decode("utf-8", "surrogateescape")

    def first(self, row: int) -> int:
        """Return the row of a file's first name. It differs from ``row`` only for hard links."""
        return self._first[bisect_left(self._linked, row)] if self._flags[row] & LINKED else row

    def nlink(self, row: int) -> int:
        """Return how many names a file has."""
        return self._nlink[bisect_left(self._linked, row)] if self._flags[row] & LINKED else 1

    def member(self, row: int) -> Member:
        """Return the member in a row."""
        first = self.first(row)
        link = "" if first == row else self.path(first)
        values = self.kind(row), self.mode(row), self.size(row), self.extents(row), self.target(row)
        return Member(self.path(row), *values, link)


class Members(Mapping[str, Member]):
    """A map from paths to members, in the order of the archive. Paths without an entry of their own are left out."""

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
        """Yield the rows of the members."""
        return iter(self._order)


class Skips(Collection[Skipped]):
    """The entries of an archive that were skipped, in the order of the archive."""

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
