"""What a layer holds: members by path, each with where its bytes lie in the blob.

A ``LayerIndex`` is a finished, immutable value: the winners of one layer by the rules of README's *Semantics*, and
what was left out. ``IndexBuilder`` applies the rules entry by entry, whatever the archive format. It reads nothing
and knows no tar. Paths are str, UTF-8 with surrogateescape, without leading "./", trailing "/", empty or "."
components; "" is the root. Threading: a builder belongs to one thread, an index to everybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from kitfs.errors import LayerLimit

VERSION: Final = 2  # of the JSON form, and of the rules by which members win
NAME_MAX: Final = 255  # bytes of one component, as Linux has it
PATH_MAX: Final = 4095  # bytes of a path: no system call takes a longer one
SIZE_MAX: Final = (1 << 63) - 1  # bytes of a file, and of a blob: what off_t holds
SHOWN_MAX: Final = 1024  # characters of a left-out entry's name that are kept
IMPLIED_COST: Final = 128  # characters that a directory without an entry counts for, besides its path
ROOT_MODE: Final = 0o755
KINDS: Final = ("file", "dir", "symlink")


class Extent(NamedTuple):
    """``length`` bytes of a file from ``file_offset`` on lie at ``blob_offset`` of the (decoded) blob. Bytes in no
    extent are zero.
    """

    file_offset: int
    blob_offset: int
    length: int


class Member(NamedTuple):
    """One entry that won its name.

    ``mode`` permission bits only; ``size`` in bytes; ``target`` of a symlink; ``link`` the first of the names that
    are one file by hard links ("" for that name itself), so that they can share an inode. It is the path of a member
    of the same index: a name that a later entry took away from the file is not among its names any more.
    """

    path: str
    kind: str
    mode: int
    size: int = 0
    extents: tuple[Extent, ...] = ()
    target: str = ""
    link: str = ""


class Skipped(NamedTuple):
    """An entry that was left out, and why."""

    name: str
    reason: str


class LayerIndex:
    """The members of one layer.

    ``members`` maps path to winner, explicit entries only; ``get`` knows implied directories too; ``children`` are
    names below a directory. ``total`` is the sum of file sizes in bytes.
    """

    def __init__(self, members: Mapping[str, Member], skipped: Iterable[Skipped] = ()) -> None:
        self.members: Final = MappingProxyType(dict(members))
        self.skipped: Final = tuple(skipped)
        self.total: Final = sum(m.size for m in self.members.values())
        self._children: Final = _children_of(self.members)

    def __repr__(self) -> str:
        return f"<LayerIndex {len(self.members)} members, {len(self.skipped)} skipped, {self.total} bytes>"

    def get(self, path: str) -> Member | None:
        """The member at a path; a directory that has no entry of its own but something below it is one of mode 0755."""
        found = self.members.get(path)
        if found is None and path in self._children:
            return Member(path, "dir", ROOT_MODE)
        return found

    def explicit(self, path: str) -> bool:
        """Whether the path has an entry of its own."""
        return path in self.members

    def children(self, path: str) -> Sequence[str]:
        """Names directly below a directory, in the order of the archive."""
        return self._children.get(path, ())

    def has_children(self, path: str) -> bool:
        """Whether something is below a directory."""
        return bool(self._children.get(path))

    def paths(self) -> Iterable[str]:
        """Every path, implied directories and the root included."""
        return {**self._children, **self.members}

    def to_json(self) -> dict[str, Any]:
        """A compact JSON value: columns, one row per member."""
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
            "skipped": [[s.name, s.reason] for s in self.skipped],
        }

    @classmethod
    def from_json(cls, value: Any) -> LayerIndex:
        """The index behind ``to_json``. Raises ValueError for anything that ``to_json`` does not give: a cache may be
        damaged.
        """
        try:
            return _from_json(value)
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as e:
            raise ValueError(f"not a layer index: {type(e).__name__}: {e}")


def raw_index(path: str, size: int, mode: int) -> LayerIndex:
    """The index of a layer whose blob is one file. A path that leaves the root is left out."""
    builder = IndexBuilder(max_entries=1)
    builder.add_file(path, size, mode, (Extent(0, 0, size),) if size else ())
    return builder.finish()


class IndexBuilder:
    """Takes entries in the order of the archive and keeps the winners.

    The order of the archive decides as with GNU tar: of two files (or symlinks) of one name the later wins; a
    directory replaces a file; a file replaces a directory that is empty, and is left out where something is below it;
    an entry below a file or symlink is left out. Of two directories the first one's mode stands. Raises LayerError
    above ``max_entries`` entries, and above 256 characters of names for each of them (16 Mi at least): short entries
    can imply long chains of directories.
    """

    def __init__(self, *, max_entries: int) -> None:
        self._max_entries = max_entries
        self._count = 0
        self._name_bytes = max(16 << 20, 256 * max_entries)  # that names may still take
        self._members: dict[str, Member] = {}
        self._implied: set[str] = {""}  # directories: those that have an entry, and those that something is below
        self._filled: set[str] = set()  # directories that something is below
        self._files: dict[str, int] = {}  # names that hard links joined → number of their file
        self._skipped: list[Skipped] = []

    def skip(self, name: str, reason: str) -> None:
        """Leave an entry out."""
        self.skip_data()
        self._leave_out(name, reason)

    def skip_data(self) -> None:
        """An entry that is nothing to show and nothing to miss, such as a volume label."""
        self._count += 1
        if self._count > self._max_entries:
            raise LayerLimit(f"more than {self._max_entries} entries; raise the limit with --max-entries")

    def add_file(self, name: str, size: int, mode: int, extents: tuple[Extent, ...]) -> None:
        """A regular file."""
        self._add(name, Member("", "file", mode & 0o777, size, extents))

    def add_directory(self, name: str, mode: int) -> None:
        """A directory; the root's own entry is passed over."""
        self._add(name, Member("", "dir", mode & 0o777))

    def add_symlink(self, name: str, target: str) -> None:
        """A symbolic link, shown as what it is wherever it points."""
        if not target or "\0" in target or len(_raw(target)) > PATH_MAX:
            self.skip(name, "a symbolic link without a usable target")
        else:
            self._add(name, Member("", "symlink", 0o777, len(_raw(target)), (), target))

    def add_hard_link(self, name: str, target: str) -> None:
        """Another name of an earlier file or symlink. A link of a file to itself, which GNU tar writes for a file
        named twice, is no news.
        """
        first, reason = clean(target)
        found = self._members.get(first)
        if reason:
            self.skip(name, f"a hard link to {_short(target)!r}: {reason}")
            return
        if found is None or found.kind == "dir":
            self.skip(name, f"a hard link to {_short(target)!r}, which is not a file of this layer")
            return
        path = clean(name)[0]
        file = self._files.setdefault(first, self._count)
        if path == first or self._files.get(path) == file:
            self.skip_data()
        elif self._add(name, found):
            self._files[path] = file

    def _leave_out(self, name: str, reason: str) -> None:
        name = _short(name)
        self._spend(len(name) + len(reason))
        self._skipped.append(Skipped(name, reason))

    def _spend(self, letters: int) -> None:
        self._name_bytes -= letters
        if self._name_bytes < 0:
            raise LayerLimit("the file names use too much memory; raise the limit with --max-entries")

    def _add(self, name: str, member: Member) -> bool:
        """Whether the member now has the name."""
        path, reason = clean(name)
        if reason:
            self.skip(name, reason)
            return False
        self.skip_data()
        if not path:
            if member.kind != "dir":
                self._leave_out(name, "a file in place of the root")
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
                self._leave_out(name, "a file where an earlier entry is a directory with something in it")
                return False
            self._implied.discard(path)
        if earlier is not None:
            del self._members[path]  # so that the order of the archive stays the order of the mapping
            self._files.pop(path, None)
        self._filled.add(parent)
        self._spend(len(path))
        self._members[path] = member._replace(path=path)
        return True

    def _enter(self, name: str, parent: str) -> bool:
        """Make the directories down to ``parent`` exist; False when one of them is a file or a symlink."""
        missing, above = [], []
        while parent not in self._implied:
            found = self._members.get(parent)
            if found is not None and found.kind != "dir":
                self._leave_out(name, f"below {_short(parent)!r}, which is a {found.kind}")
                return False
            missing.append(parent)
            parent = parent.rpartition("/")[0]
            above.append(parent)
        self._spend(sum(map(len, missing)) + IMPLIED_COST * len(missing))
        self._implied.update(missing)
        self._filled.update(above)
        return True

    def finish(self) -> LayerIndex:
        """The index of what was added."""
        firsts: dict[int, str] = {}
        for path, file in self._files.items():
            first = firsts.setdefault(file, path)
            if first != path:
                self._members[path] = self._members[path]._replace(link=first)
        return LayerIndex(self._members, self._skipped)


def clean(name: str) -> tuple[str, str]:
    """(normalised path, ""), or ("", why it cannot be in the tree)."""
    if name.startswith("/"):
        return "", "an absolute path"
    if "\0" in name:
        return "", "a NUL in its name"
    short = len(name) <= (NAME_MAX if name.isascii() else NAME_MAX // 4)
    if short and "/." not in name and "//" not in name and name[:1] != ".":
        return name.removesuffix("/"), ""
    parts = [p for p in name.split("/") if p not in ("", ".")]
    if ".." in parts:
        return "", "a path that leaves the root"
    if any(len(p) > NAME_MAX // 4 and len(_raw(p)) > NAME_MAX for p in parts):
        return "", f"a name of more than {NAME_MAX} bytes"
    path = "/".join(parts)
    if len(path) > PATH_MAX // 4 and len(_raw(path)) > PATH_MAX:
        return "", f"a path of more than {PATH_MAX} bytes"
    return path, ""


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


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "…"


def _from_json(value: Any) -> LayerIndex:
    if value["version"] != VERSION:
        raise ValueError("a layer index of another version")
    paths, kinds = _all(value["paths"], str), value["kinds"]
    modes = _numbers(value["modes"], 0, 0o777)
    sizes, offsets = _numbers(value["sizes"], 0, SIZE_MAX), _numbers(value["offsets"], -1, SIZE_MAX)
    spread, targets, links = ({_row(k): v for k, v in value[key].items()} for key in ("extents", "targets", "links"))
    names = {"f": "file", "d": "dir", "s": "symlink"}
    members: dict[str, Member] = {}
    for i, (path, kind, mode, size, offset) in enumerate(
        zip(paths, _all(list(kinds), str), modes, sizes, offsets, strict=True)
    ):
        if clean(path) != (path, "") or not path:
            raise ValueError(f"a layer index with a path {_short(path)!r}")
        extents = (Extent(0, offset, size),) if offset >= 0 else _extents(spread.pop(i, ()))
        members[path] = Member(path, names[kind], mode, size, extents, targets.pop(i, ""), links.pop(i, ""))
    if len(members) < len(paths) or spread or targets or links:
        raise ValueError("a layer index whose columns do not fit each other")
    "/".join(paths).encode("utf-8", "surrogateescape")  # else UnicodeEncodeError, a ValueError
    for member in members.values():
        _check(member, members)
    index = LayerIndex(members, [Skipped(*_all(pair, str)) for pair in value["skipped"]])
    for path in index.paths():
        if index.children(path) and path in members and members[path].kind != "dir":
            raise ValueError(f"a layer index with entries below the {members[path].kind} {_short(path)!r}")
    return index


def _check(member: Member, members: Mapping[str, Member]) -> None:
    """Raises ValueError for a member that no builder makes."""
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
    if (kind == "symlink") != bool(target) or (target and ("\0" in target or len(_raw(target)) != size)):
        raise ValueError("a layer index with a damaged symbolic link")
    if link and (members[link].link or members[link][1:6] != member[1:6]):
        raise ValueError("a layer index with a hard link to another file")


def _all(values: Any, kind: type) -> list[Any]:
    """The values of a list; TypeError unless each is exactly of that type (bool is no int, float no size)."""
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
