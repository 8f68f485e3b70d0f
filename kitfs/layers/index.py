"""What a layer holds: its members by path, each with where its bytes lie in the blob.

A ``LayerIndex`` is a finished, immutable value: the winners of one layer by the rules of the manual's *Semantics*, and
the entries that were skipped. ``IndexBuilder`` applies the rules entry by entry, whatever the archive format; it reads
nothing and knows no tar. Paths are in the normal form of ``names``. Threading: a builder belongs to one thread; any
thread may use an index.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from kitfs.errors import LayerLimit
from kitfs.layers.names import PATH_MAX, Skipped, SkipReason, clean, encoded, shortened

VERSION: Final = 3  # of the JSON form, and of the rules by which members win; another version is built again
SIZE_MAX: Final = (1 << 63) - 1  # bytes of a file, and of a blob: what off_t holds
IMPLIED_COST: Final = 128  # characters that a directory without an entry counts for, besides its path
ROOT_MODE: Final = 0o755
KINDS: Final = {"f": "file", "d": "dir", "s": "symlink"}  # by their letter in the JSON form


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


class LayerIndex:
    """The members of one layer.

    ``members`` maps the path of each entry to its winner; directories without an entry are known to ``get`` only.
    ``total`` is the sum of file sizes in bytes.
    """

    def __init__(self, members: Mapping[str, Member], skipped: Iterable[Skipped] = ()) -> None:
        self.members: Final = MappingProxyType(dict(members))
        self.skipped: Final = tuple(skipped)
        self.total: Final = sum(m.size for m in self.members.values())
        self._children: Final = _children_of(self.members)

    def __repr__(self) -> str:
        return f"<LayerIndex {len(self.members)} members, {len(self.skipped)} skipped, {self.total} bytes>"

    def get(self, path: str) -> Member | None:
        """Return the member at a path. A directory without an entry that has something below it has mode 0755."""
        found = self.members.get(path)
        if found is None and path in self._children:
            return Member(path, "dir", ROOT_MODE)
        return found

    def explicit(self, path: str) -> bool:
        """Return whether the path has an entry of its own."""
        return path in self.members

    def children(self, path: str) -> Sequence[str]:
        """Return the names directly below a directory, in the order of the archive."""
        return self._children.get(path, ())

    def has_children(self, path: str) -> bool:
        """Return whether something is below a directory."""
        return bool(self._children.get(path))

    def paths(self) -> Iterable[str]:
        """Return every path, with implied directories and the root."""
        return {**self._children, **self.members}

    def to_json(self) -> dict[str, Any]:
        """Return a compact JSON value: columns with one row per member, and the skipped entries."""
        members = list(self.members.values())
        plain = [
            len(m.extents) == 1 and m.extents[0].file_offset == 0 and m.extents[0].length == m.size for m in members
        ]
        return {
            "version": VERSION,
            "paths": [m.path for m in members],
            "kinds": "".join(m.kind[0] for m in members),
            "modes": [m.mode for m in members],
            "sizes": [m.size for m in members],
            "offsets": [m.extents[0].blob_offset if p else -1 for m, p in zip(members, plain, strict=True)],
            "extents": {
                str(i): [list(e) for e in m.extents] for i, m in enumerate(members) if m.extents and not plain[i]
            },
            "targets": {str(i): m.target for i, m in enumerate(members) if m.kind == "symlink"},
            "links": {str(i): m.link for i, m in enumerate(members) if m.link},
            "skipped": [[s.name, s.reason.value, s.detail, s.link] for s in self.skipped],
        }

    @classmethod
    def from_json(cls, value: Any) -> LayerIndex:
        """Return the index that ``to_json`` was called on.

        Raises ValueError for any value that ``to_json`` does not return, because a cache may be damaged.
        """
        try:
            return _from_json(value)
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as e:
            raise ValueError(f"not a layer index: {type(e).__name__}: {e}")


def raw_index(path: str, size: int, mode: int) -> LayerIndex:
    """Return the index of a layer whose blob is one file. A file whose path leaves the root is skipped."""
    builder = IndexBuilder(max_entries=1)
    builder.add_file(path, size, mode, (Extent(0, 0, size),) if size else ())
    return builder.finish()


class IndexBuilder:
    """Takes the entries of an archive in their order and keeps the winners.

    The order decides as with GNU tar. Of two files (or symlinks) of one name the later wins. A directory replaces a
    file; a file replaces an empty directory, and is skipped if something is below the directory. An entry below a
    file or symlink is skipped. Of two directories of one name, the first one's mode counts.

    Raises LayerLimit for more than ``max_entries`` entries, and for more than 256 characters of names for each of them
    (16 Mi at least), because short entries can imply long chains of directories.
    """

    def __init__(self, *, max_entries: int) -> None:
        self._max_entries = max_entries
        self._count = 0
        self._name_budget = max(16 << 20, 256 * max_entries)  # characters that names may still take
        self._members: dict[str, Member] = {}
        self._implied: set[str] = {""}  # directories that have an entry, or something below them
        self._filled: set[str] = set()  # directories that have something below them
        self._files: dict[str, int] = {}  # names that hard links joined, each with the number of its file
        self._skipped: list[Skipped] = []

    def skip(self, name: str, reason: SkipReason, detail: str = "", *, link: str = "") -> None:
        """Count an entry and note why it is not in the tree; ``Skipped`` explains ``detail`` and ``link``."""
        self.skip_data()
        self._leave_out(name, reason, detail, link)

    def skip_data(self) -> None:
        """Count an entry that nobody misses in a tree, such as a volume label."""
        self._count += 1
        if self._count > self._max_entries:
            raise LayerLimit(f"more than {self._max_entries} entries; raise the limit with --max-entries")

    def add_file(self, name: str, size: int, mode: int, extents: tuple[Extent, ...]) -> None:
        """Add a regular file; ``size`` is in bytes."""
        self._add(name, Member("", "file", mode & 0o777, size, extents))

    def add_directory(self, name: str, mode: int) -> None:
        """Add a directory. An entry of the root itself counts, but its mode does not."""
        self._add(name, Member("", "dir", mode & 0o777))

    def add_symlink(self, name: str, target: str) -> None:
        """Add a symbolic link. Its target is kept as it is, wherever it points."""
        if not target or "\0" in target or len(encoded(target)) > PATH_MAX:
            self.skip(name, SkipReason.UNUSABLE_TARGET)
        else:
            self._add(name, Member("", "symlink", 0o777, len(encoded(target)), (), target))

    def add_hard_link(self, name: str, target: str) -> None:
        """Add another name of an earlier file or symlink.

        A link of a file to itself, which GNU tar writes for a file that was named twice, changes nothing.
        """
        first, reason = clean(target)
        found = self._members.get(first)
        if reason is not None:
            self.skip(name, reason, link=shortened(target))
            return
        if found is None or found.kind == "dir":
            self.skip(name, SkipReason.MISSING_TARGET, shortened(target))
            return
        path = clean(name)[0]
        file = self._files.setdefault(first, self._count)
        if path == first or self._files.get(path) == file:
            self.skip_data()
        elif self._add(name, found):
            self._files[path] = file

    def _leave_out(self, name: str, reason: SkipReason, detail: str = "", link: str = "") -> None:
        skipped = Skipped(shortened(name), reason, detail, link)
        self._spend(len(skipped.name) + len(skipped.text))
        self._skipped.append(skipped)

    def _spend(self, characters: int) -> None:
        self._name_budget -= characters
        if self._name_budget < 0:
            raise LayerLimit("the file names use too much memory; raise the limit with --max-entries")

    def _add(self, name: str, member: Member) -> bool:
        """Add a member; return whether it now has the name."""
        path, reason = clean(name)
        if reason is not None:
            self.skip(name, reason)
            return False
        self.skip_data()
        if not path:
            if member.kind != "dir":
                self._leave_out(name, SkipReason.REPLACES_ROOT)
            return False
        parent = path.rpartition("/")[0]
        if parent not in self._implied and not self._enter(name, parent):
            return False
        earlier = self._members.get(path)
        if member.kind == "dir":
            if earlier is not None and earlier.kind == "dir":
                return False
            self._implied.add(path)
        elif path in self._implied:
            if path in self._filled:
                self._leave_out(name, SkipReason.FILLED_DIRECTORY)
                return False
            self._implied.discard(path)
        if earlier is not None:
            del self._members[path]  # keeps the mapping in the order of the archive
            self._files.pop(path, None)
        self._filled.add(parent)
        self._spend(len(path))
        self._members[path] = member._replace(path=path)
        return True

    def _enter(self, name: str, parent: str) -> bool:
        """Imply the directories down to ``parent``; return False if one of them is a file or a symlink."""
        missing, above = [], []
        while parent not in self._implied:
            found = self._members.get(parent)
            if found is not None and found.kind != "dir":
                reason = SkipReason.BELOW_FILE if found.kind == "file" else SkipReason.BELOW_SYMLINK
                self._leave_out(name, reason, shortened(parent))
                return False
            missing.append(parent)
            parent = parent.rpartition("/")[0]
            above.append(parent)
        self._spend(sum(map(len, missing)) + IMPLIED_COST * len(missing))
        self._implied.update(missing)
        self._filled.update(above)
        return True

    def finish(self) -> LayerIndex:
        """Return the index of the entries that were added."""
        firsts: dict[int, str] = {}
        for path, file in self._files.items():
            first = firsts.setdefault(file, path)
            if first != path:
                self._members[path] = self._members[path]._replace(link=first)
        return LayerIndex(self._members, self._skipped)


def _children_of(members: Mapping[str, Member]) -> dict[str, list[str]]:
    children: dict[str, list[str]] = {"": []}
    known: set[str] = {""}
    for path, member in members.items():
        at = path
        while at not in known:
            known.add(at)
            parent, _, name = at.rpartition("/")
            children.setdefault(parent, []).append(name)
            at = parent
        if member.kind == "dir":
            children.setdefault(path, [])
    return children


def _from_json(value: Any) -> LayerIndex:
    if value["version"] != VERSION:
        raise ValueError("a layer index of another version")
    paths, kinds = _all(value["paths"], str), value["kinds"]
    modes = _numbers(value["modes"], 0, 0o777)
    sizes, offsets = _numbers(value["sizes"], 0, SIZE_MAX), _numbers(value["offsets"], -1, SIZE_MAX)
    spread, targets, links = ({_row(k): v for k, v in value[key].items()} for key in ("extents", "targets", "links"))
    members: dict[str, Member] = {}
    for i, (path, kind, mode, size, offset) in enumerate(
        zip(paths, _all(list(kinds), str), modes, sizes, offsets, strict=True)
    ):
        if clean(path) != (path, None) or not path:
            raise ValueError(f"a layer index with a path {shortened(path)!r}")
        extents = (Extent(0, offset, size),) if offset >= 0 else _extents(spread.pop(i, ()))
        members[path] = Member(path, KINDS[kind], mode, size, extents, targets.pop(i, ""), links.pop(i, ""))
    if len(members) < len(paths) or spread or targets or links:
        raise ValueError("a layer index whose columns do not fit each other")
    "/".join(paths).encode("utf-8", "surrogateescape")  # else UnicodeEncodeError, a ValueError
    for member in members.values():
        _check(member, members)
    index = LayerIndex(members, [_skipped(row) for row in value["skipped"]])
    for path in index.paths():
        if index.children(path) and path in members and members[path].kind != "dir":
            raise ValueError(f"a layer index with entries below the {members[path].kind} {shortened(path)!r}")
    return index


def _check(member: Member, members: Mapping[str, Member]) -> None:
    """Raise ValueError for a member that no builder makes."""
    _, kind, _, size, extents, target, link = member
    end = 0
    for start, at, length in extents:
        if start < end or at > SIZE_MAX - length:
            raise ValueError("a layer index with extents that overlap")
        end = start + length
    if (
        type(target) is not str
        or type(link) is not str
        or end > size
        or (kind != "file" and extents)
        or (kind == "dir" and (size or link))
    ):
        raise ValueError("a layer index with a member that contradicts itself")
    if (kind == "symlink") != bool(target) or (target and ("\0" in target or len(encoded(target)) != size)):
        raise ValueError("a layer index with a damaged symbolic link")
    if link and (members[link].link or members[link][1:6] != member[1:6]):
        raise ValueError("a layer index with a hard link to another file")


def _skipped(row: Any) -> Skipped:
    name, reason, detail, link = _all(row, str)
    return Skipped(name, SkipReason(reason), detail, link)


def _all(values: Any, kind: type) -> list[Any]:
    """Return a list; raise TypeError unless each value has exactly this type (a bool is not accepted as an int)."""
    if type(values) is not list or not {kind}.issuperset(map(type, values)):
        raise TypeError(f"a column that is not of {kind.__name__}")
    return values


def _numbers(values: Any, low: int, high: int) -> list[int]:
    numbers = _all(values, int)
    if numbers and not low <= min(numbers) <= max(numbers) <= high:
        raise ValueError("a layer index with numbers out of range")
    return numbers


def _extents(values: Any) -> tuple[Extent, ...]:
    return tuple(Extent(*_numbers(e, 0, SIZE_MAX)) for e in values)


def _row(key: str) -> int:
    row = int(key)
    if str(row) != key:
        raise ValueError("a layer index with a damaged row number")
    return row
