"""What a layer holds: members by path, each with where its bytes lie in the blob.

A ``LayerIndex`` is a finished, immutable value: the winners of one layer by the rules of README's *Semantics*, and what was left out.
``IndexBuilder`` applies the rules entry by entry, whatever the archive format. It reads nothing and knows no tar.
Paths are str, UTF-8 with surrogateescape, without leading "./", trailing "/", empty or "." components; "" is the root.
Threading: a builder belongs to one thread, an index to everybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from kitfs.errors import LayerError

VERSION: Final = 1  # of the JSON form
NAME_MAX: Final = 255  # bytes of one component, as Linux has it
ROOT_MODE: Final = 0o755
KINDS: Final = ("file", "dir", "symlink")


class Extent(NamedTuple):
    """``length`` bytes of a file from ``file_offset`` on lie at ``blob_offset`` of the (decoded) blob. Bytes in no extent are zero."""

    file_offset: int
    blob_offset: int
    length: int


class Member(NamedTuple):
    """One entry that won its name.

    ``mode`` permission bits only; ``size`` in bytes; ``target`` of a symlink; ``link`` the first name of a hard link ("" for that
    name itself), so that links can share an inode: an identity, not something to look up, since a later entry may have that name.
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

    ``members`` maps path to winner, explicit entries only; ``get`` knows implied directories too; ``children`` are names below a
    directory. ``total`` is the sum of file sizes in bytes.
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

    def paths(self) -> Iterable[str]:
        """Every path, implied directories and the root included."""
        return {**self._children, **self.members}

    def to_json(self) -> dict[str, Any]:
        """A compact JSON value: columns, one row per member."""
        members = list(self.members.values())
        plain = [len(m.extents) == 1 and m.extents[0].file_offset == 0 and m.extents[0].length == m.size for m in members]
        return {
            "version": VERSION,
            "paths": [m.path for m in members],
            "kinds": "".join(m.kind[0] for m in members),
            "modes": [m.mode for m in members],
            "sizes": [m.size for m in members],
            "offsets": [m.extents[0].blob_offset if p else -1 for m, p in zip(members, plain, strict=True)],
            "extents": {str(i): [list(e) for e in m.extents] for i, m in enumerate(members) if m.extents and not plain[i]},
            "targets": {str(i): m.target for i, m in enumerate(members) if m.kind == "symlink"},
            "links": {str(i): m.link for i, m in enumerate(members) if m.link},
            "skipped": [[s.name, s.reason] for s in self.skipped],
        }

    @classmethod
    def from_json(cls, value: Any) -> LayerIndex:
        """The index behind ``to_json``. Raises ValueError for anything else: a hint from a cache may be damaged."""
        try:
            if value["version"] != VERSION:
                raise ValueError("another version")
            kinds = {"f": "file", "d": "dir", "s": "symlink"}
            extents, targets, links = value["extents"], value["targets"], value["links"]
            members: dict[str, Member] = {}
            columns = zip(value["paths"], value["kinds"], value["modes"], value["sizes"], value["offsets"], strict=True)
            for i, (text, kind, mode, size, offset) in enumerate(columns):
                key = str(i)
                path = _from_text(text)
                if offset >= 0:
                    spread: tuple[Extent, ...] = (Extent(0, offset, size),)
                else:
                    spread = tuple(Extent(*map(int, e)) for e in extents.get(key, ()))
                if not 0 <= mode <= 0o777 or size < 0 or any(min(e) < 0 or e.file_offset + e.length > size for e in spread):
                    raise ValueError("numbers out of range")
                target, link = _from_text(targets.get(key, "")), _from_text(links.get(key, ""))
                members[path] = Member(path, kinds[kind], int(mode), int(size), spread, target, link)
            skipped = [Skipped(_from_text(name), str(reason)) for name, reason in value["skipped"]]
        except (KeyError, TypeError, AttributeError, IndexError) as e:
            raise ValueError(f"not a layer index: {type(e).__name__}: {e}")
        return cls(members, skipped)


def raw_index(path: str, size: int, mode: int) -> LayerIndex:
    """The index of a layer whose blob is one file. A path that leaves the root is left out."""
    builder = IndexBuilder(max_entries=1)
    builder.add_file(path, size, mode, (Extent(0, 0, size),) if size else ())
    return builder.finish()


class IndexBuilder:
    """Takes entries in the order of the archive and keeps the winners.

    Of two files (or symlinks) of one name the later wins; of two directories the first one's mode; where a file and a directory have
    one name the earlier stands; an entry below a file or symlink is left out. Raises LayerError above ``max_entries``.
    """

    def __init__(self, *, max_entries: int) -> None:
        self._max_entries = max_entries
        self._count = 0
        self._members: dict[str, Member] = {}
        self._implied: set[str] = {""}  # directories that exist because something is below them
        self._skipped: list[Skipped] = []

    def skip(self, name: str, reason: str) -> None:
        """Leave an entry out."""
        self._counted()
        self._skipped.append(Skipped(name, reason))

    def add_file(self, name: str, size: int, mode: int, extents: tuple[Extent, ...]) -> None:
        """A regular file."""
        self._add(name, Member("", "file", mode & 0o777, size, extents))

    def add_directory(self, name: str, mode: int) -> None:
        """A directory; the root's own entry is passed over."""
        self._add(name, Member("", "dir", mode & 0o777))

    def add_symlink(self, name: str, target: str) -> None:
        """A symbolic link, shown as what it is wherever it points."""
        if not target or "\0" in target or len(_raw(target)) > 4095:
            self.skip(name, "a symbolic link without a usable target")
        else:
            self._add(name, Member("", "symlink", 0o777, len(_raw(target)), (), target))

    def add_hard_link(self, name: str, target: str) -> None:
        """Another name of an earlier file or symlink."""
        path, reason = clean(target)
        if reason:
            self.skip(name, f"a hard link to {target!r}: {reason}")
            return
        found = self._members.get(path)
        if found is None or found.kind == "dir":
            self.skip(name, f"a hard link to {target!r}, which is not a file of this layer")
            return
        if clean(name)[0] == path:
            self.skip(name, "a hard link to itself")
            return
        self._add(name, found._replace(link=found.link or found.path))

    def _counted(self) -> None:
        self._count += 1
        if self._count > self._max_entries:
            raise LayerError(f"more than {self._max_entries} entries (--max-entries)")

    def _add(self, name: str, member: Member) -> None:
        path, reason = clean(name)
        if reason:
            self.skip(name, reason)
            return
        self._counted()
        if not path:
            if member.kind != "dir":
                self._skipped.append(Skipped(name, "a file in place of the root"))
            return
        parent = path.rpartition("/")[0]
        if parent not in self._implied and not self._enter(name, parent):
            return
        earlier = self._members.get(path)
        if member.kind == "dir":
            if earlier is None:
                self._members[path] = member._replace(path=path)
                self._implied.add(path)
            elif earlier.kind != "dir":
                self._skipped.append(Skipped(name, "a directory where an earlier entry is a file"))
        elif path in self._implied:
            self._skipped.append(Skipped(name, "a file where an earlier entry is a directory"))
        else:
            if earlier is not None:
                del self._members[path]  # so that the order of the archive stays the order of the mapping
            self._members[path] = member._replace(path=path)

    def _enter(self, name: str, parent: str) -> bool:
        """Make the directories down to ``parent`` exist; False when one of them is a file or a symlink."""
        missing = []
        while parent not in self._implied:
            found = self._members.get(parent)
            if found is not None and found.kind != "dir":
                self._skipped.append(Skipped(name, f"below {parent!r}, which is a {found.kind}"))
                return False
            missing.append(parent)
            parent = parent.rpartition("/")[0]
        self._implied.update(missing)
        return True

    def finish(self) -> LayerIndex:
        """The index of what was added."""
        return LayerIndex(self._members, self._skipped)


def clean(name: str) -> tuple[str, str]:
    """(normalised path, ""), or ("", why it cannot be in the tree)."""
    if name.startswith("/"):
        return "", "an absolute path"
    if "\0" in name:
        return "", "a NUL in its name"
    if "//" not in name and "." not in name and len(name) <= NAME_MAX // 4:
        return name.removesuffix("/"), ""
    parts = [p for p in name.split("/") if p not in ("", ".")]
    if ".." in parts:
        return "", "a path that leaves the root"
    if any(len(p) > NAME_MAX // 4 and len(_raw(p)) > NAME_MAX for p in parts):
        return "", f"a name of more than {NAME_MAX} bytes"
    return "/".join(parts), ""


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


def _from_text(text: Any) -> str:
    if not isinstance(text, str):
        raise TypeError("a path that is no text")
    return text
