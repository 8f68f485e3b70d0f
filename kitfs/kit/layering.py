"""Merge the layers of a kit into one tree, and follow the tree's symbolic links.

The result is the tree that GNU tar would make if it extracted the layers one after the other. If two layers have a file
of the same name, the later file wins. A directory that has an entry of its own replaces a file, and a file replaces an
empty directory. In every other conflict the earlier entry stays, and the later entry is left out with everything below
it. If two layers have the same directory, it has the mode of the first entry. A layer whose declared path contains a
name takes precedence over layers whose declared path does not contain the name. ``layers.builder.IndexBuilder`` applies
the same rules to the entries of one layer.

``kit.tree`` looks up single names while layers are still being fetched. ``merge`` handles all names at once, for verbs
that write the files of a kit. This module does no I/O.
"""

from __future__ import annotations

import heapq
import itertools
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from kitfs.errors import UnsafePath
from kitfs.layers.index import LayerIndex, Member
from kitfs.layers.names import Skipped, SkipReason, clean, encoded
from kitfs.system import MAX_LINKS

MAX_NAMED: Final = 100  # left-out entries that a merge reports one by one


class Names(Protocol):
    """The names in one layer, by row. Row 0 is the root. ``LayerIndex`` has these methods."""

    def find(self, path: str) -> int: ...

    def child(self, row: int, name: bytes) -> int: ...

    def children(self, row: int) -> range: ...

    def has_children(self, row: int) -> bool: ...

    def name_bytes(self, row: int) -> bytes: ...

    def kind(self, row: int) -> str: ...

    def explicit(self, row: int) -> bool: ...

    def member(self, row: int) -> Member: ...


class Numbered(NamedTuple):
    """A layer with its number, which is 0 for the lowest layer, and its declared path ("" contains every name)."""

    number: int
    names: Names
    declared: str


class Candidate(NamedTuple):
    """An entry of a layer with a certain name. The tree shows one candidate for each name."""

    number: int
    names: Names
    row: int

    @property
    def member(self) -> Member:
        """Return the member in the row."""
        return self.names.member(self.row)


class Winner(NamedTuple):
    """The entry that the tree shows for a name: its row, and the number of its layer.

    If the entry is a directory that replaced a file, entries below the directory are in the tree only from layer
    ``since`` on. ``left_out`` are the entries of this name that are not in the tree.
    """

    number: int
    names: Names
    row: int
    since: int = 0
    left_out: tuple[Candidate, ...] = ()

    @property
    def member(self) -> Member:
        """Return the member in the row."""
        return self.names.member(self.row)

    @property
    def kind(self) -> str:
        """Return the kind of the entry: "file", "dir" or "symlink"."""
        return self.names.kind(self.row)


def winner(candidates: Iterable[Candidate]) -> Winner | None:
    """Return the winner among the entries of one name, or None without entries.

    The entries must be in ascending order of their layers.
    """
    found: Candidate | None = None
    found_dir = is_explicit = is_filled = False
    since = 0
    left_out: list[Candidate] = []
    for candidate in candidates:
        number, names, row = candidate
        is_dir, explicit = names.kind(row) == "dir", names.explicit(row)
        if is_dir and found_dir:
            is_filled = is_filled or names.has_children(row)
            if explicit and not is_explicit:
                found, is_explicit = candidate, True
        elif found is None or not is_dir or explicit:
            if not is_dir and is_filled:
                left_out.append(candidate)
                continue
            if is_dir:
                since = since if found is None else number
                is_filled = names.has_children(row)
            found, found_dir, is_explicit = candidate, is_dir, explicit
        else:
            left_out.append(candidate)
    return None if found is None else Winner(*found, since, tuple(left_out))


class Here(NamedTuple):
    """A layer that has entries in a certain directory; ``row`` is the directory's row in that layer."""

    number: int
    names: Names
    declared: str
    row: int


def here(directory: str, layers: Iterable[Numbered]) -> list[Here]:
    """Return the layers that have entries in a directory."""
    rows = ((number, names, declared, names.find(directory)) for number, names, declared in layers)
    return [Here(*found) for found in rows if found[3] >= 0 and found[1].has_children(found[3])]


def winners(
    directory: str, layers: Sequence[Here], *, without: Collection[str] = ()
) -> Iterator[tuple[str, str, Winner]]:
    """Yield (name, path, winner) for every name in a directory, sorted by the bytes of the name.

    Names in ``without`` are left out. ``layers`` is in ascending order and contains only the layers whose entries are
    visible below the directory.
    """
    declaring = _declaring(directory, layers)
    kept = {encoded(name) for name in without}
    rows = heapq.merge(*(_rows(layer) for layer in layers))
    for raw, group in itertools.groupby(rows, key=operator.itemgetter(0)):
        if raw in kept:
            continue
        name = raw.decode("utf-8", "surrogateescape")
        path = joined(directory, name)
        having = {number: Candidate(number, names, row) for _, number, names, row in group}
        found = winner(having[number] for number in declaring(name) if number in having) or winner(having.values())
        if found is not None:
            yield name, path, found


def _rows(layer: Here) -> Iterator[tuple[bytes, int, Names, int]]:
    """Yield (name, number of the layer, names of the layer, row of the entry) for each entry in a layer's directory."""
    number, names, _, row = layer
    for child in names.children(row):
        yield names.name_bytes(child), number, names, child


def _declaring(directory: str, layers: Sequence[Here]) -> Callable[[str], list[int]]:
    """Return a function from a name in a directory to the numbers of the layers whose declared path overlaps the name.

    A kit may have thousands of layers with one name each, so comparing each name with each layer would take too long.
    """
    prefix = f"{directory}/" if directory else ""
    everywhere: list[int] = []
    by_name: dict[str, list[int]] = {}
    for number, _, declared, _ in layers:
        if not declared or declared == directory or directory.startswith(declared + "/"):
            everywhere.append(number)
        elif declared.startswith(prefix):
            by_name.setdefault(declared[len(prefix) :].partition("/")[0], []).append(number)
    return lambda name: sorted(everywhere + by_name[name]) if name in by_name else everywhere


def left_out_entry(path: str, candidate: Candidate) -> Skipped:
    """Return the ``Skipped`` for an entry of ``Winner.left_out``, with the reason."""
    return Skipped(path, SkipReason.OTHER_KIND, candidate.names.kind(candidate.row))


def joined(directory: str, path: str) -> str:
    """Join a directory and a path below it. Either may be "", the root."""
    return f"{directory}/{path}" if directory and path else directory or path


@dataclass(frozen=True, slots=True)
class PlacedLayer:
    """A layer that is written to a target directory.

    ``name`` is for messages. ``path`` is the path that the layer declares: "" contains every name, and None means that
    no path is declared. The layer's tree is written to the directory ``below`` of the target; "" is the target itself.
    """

    name: str
    index: LayerIndex
    path: str | None
    below: str = ""


class _PlacedNames:
    """The names of a layer that is placed in a directory of the target.

    The target and the directories above the layer's tree are extra rows, after the rows of the index; the first of
    these rows is the target itself.
    """

    def __init__(self, index: LayerIndex, below: str) -> None:
        self._index = index
        self._above = encoded(below).split(b"/") if below else []
        self._rows = index.counts.rows
        self._trail: list[tuple[str, int]] = []  # the last path that was found, below paths above it

    def find(self, path: str) -> int:
        """Return the row of a path of the target; -1 if the path does not exist.

        A path below the path of the last call is searched from that path on, because a search from the root for each
        directory would make the merge of a deep tree slow. Threading: only one thread may use this object.
        """
        while self._trail and not f"{path}/".startswith(f"{self._trail[-1][0]}/"):
            self._trail.pop()
        above, row = self._trail[-1] if self._trail else ("", self._rows if self._above else 0)
        rest = path[len(above) :].removeprefix("/")
        for name in encoded(rest).split(b"/") if rest else ():
            row = self.child(row, name)
            if row < 0:
                return row
        if rest:
            self._trail.append((path, row))
        return row

    def child(self, row: int, name: bytes) -> int:
        """Return the row of a name in a directory; -1 if the name does not exist."""
        if row < self._rows:
            return self._index.child(row, name)
        below = self.children(row)[0]
        return below if self.name_bytes(below) == name else -1

    def children(self, row: int) -> range:
        """Return the rows directly below a directory."""
        if row < self._rows:
            return self._index.children(row)
        below = row + 1 if row + 1 - self._rows < len(self._above) else 0
        return range(below, below + 1)

    def has_children(self, row: int) -> bool:
        """Return whether a directory has entries below it."""
        return row >= self._rows or self._index.has_children(row)

    def name_bytes(self, row: int) -> bytes:
        """Return the last component of the path."""
        if 0 < row < self._rows:
            return self._index.name_bytes(row)
        return self._above[row - self._rows - 1] if row else self._above[-1] if self._above else b""

    def kind(self, row: int) -> str:
        """Return the kind of a row."""
        return self._index.kind(row) if row < self._rows else "dir"

    def explicit(self, row: int) -> bool:
        """Return whether the path has an entry of its own."""
        return row < self._rows and self._index.explicit(row)

    def member(self, row: int) -> Member:
        """Return the member in a row. Its path is relative to the layer's own root."""
        return self._index.member(row if row < self._rows else 0)


class Merged(NamedTuple):
    """The result of a merge.

    ``winners`` has every path of the tree, subtree by subtree, each directory before its contents. ``left_out`` has at
    most ``MAX_NAMED`` messages for people.
    """

    winners: dict[str, Winner]
    left_out: tuple[str, ...]


def merge(sources: Sequence[PlacedLayer], *, reserved: Collection[str] = ()) -> Merged:
    """Merge layers into one tree; the first layer is the lowest. Names at the root that are ``reserved`` are left out.

    Raises UnsafePath for a layer whose ``below`` leaves the target, and for names below a symbolic link of another
    layer.
    """
    layers = []
    for number, source in enumerate(sources):
        below = _directory(source)
        layers.append(Numbered(number, _PlacedNames(source.index, below), joined(below, source.path or "")))
    won: dict[str, Winner] = {}
    left_out: list[str] = []

    def note(number: int, skipped: Skipped) -> None:
        if len(left_out) < MAX_NAMED:
            left_out.append(f"{sources[number].name}: {skipped}")

    def merge_directory(directory: str, since: int, without: Collection[str] = ()) -> Iterator[tuple[str, int]]:
        """Find the winners in a directory. For each subdirectory, yield (path, lowest visible layer)."""
        counting = here(directory, layers[since:])
        for name, path, found in winners(directory, counting, without=without):
            won[path] = found
            for candidate in found.left_out:
                note(candidate.number, left_out_entry(path, candidate))
            if found.kind == "dir":
                yield path, max(since, found.since)
                continue
            for number, names, _, above in counting:
                row = names.child(above, encoded(name))
                if row < 0 or not names.has_children(row):
                    continue
                if found.kind == "symlink":
                    raise UnsafePath(
                        f"{sources[found.number].name} has a symbolic link at {path!r}, and another layer has files"
                        " below it; nothing was unpacked"
                    )
                for below in names.children(row):
                    name_below = names.name_bytes(below).decode("utf-8", "surrogateescape")
                    note(number, Skipped(joined(path, name_below), SkipReason.BELOW_FILE, path))

    pending = [iter(merge_directory("", 0, reserved))]
    while pending:
        path, since = next(pending[-1], ("", 0))
        if path:
            pending.append(iter(merge_directory(path, since)))
        else:
            pending.pop()
    return Merged(won, tuple(left_out))


def in_order(sources: Sequence[PlacedLayer], won: dict[str, Winner]) -> Iterator[tuple[str, int]]:
    """Yield (path, number of the layer) for every winner except directories.

    Winners are sorted by layer, and within a layer by their order in its archive.
    """
    for number, source in enumerate(sources):
        below, index = _directory(source), source.index
        for row in index.members.rows():
            path = joined(below, index.path(row))
            if index.kind(row) != "dir" and path in won and won[path].number == number:
                yield path, number


def _directory(source: PlacedLayer) -> str:
    """Return the directory that a layer's tree is written to, in normal form. Raises UnsafePath."""
    below, reason = clean(source.below)
    if reason is not None:
        why = Skipped(source.below, reason).text
        raise UnsafePath(f"cannot write {source.name} to {source.below!r}: {why}; nothing was unpacked")
    return below


class BadLink(Exception):  # noqa: N818 - its callers decide whether it is an error
    """The symbolic link ``path`` leads out of the tree, or through too many links if ``circular`` is True."""

    def __init__(self, path: str, *, circular: bool) -> None:
        super().__init__(path)
        self.path = path
        self.circular = circular


class End(NamedTuple):
    """The path at which a walk along links ends, after ``followed`` links.

    ``missing`` is True if the tree lacks a name on the way.
    """

    path: str
    missing: bool
    followed: int


class Links:
    """A walker that follows the symbolic links of a tree. Each link is followed only once and then remembered.

    ``look`` returns the member at a path, or None if the path does not exist. An error that ``look`` raises ends the
    walk. If ``confined`` is True, ".." at the root stays at the root, as after chroot(2); otherwise ".." at the root
    raises BadLink.
    """

    def __init__(self, look: Callable[[str], Member | None], *, confined: bool) -> None:
        self._look = look
        self._confined = confined
        self._ends: dict[str, End] = {}

    def end(self, path: str) -> End:
        """Return where a path from the root ends, with every link on the way followed. Raises BadLink."""
        return self._walk("", path, 0, "")

    def _walk(self, at: str, path: str, depth: int, link: str) -> End:
        """Follow ``path`` from the directory ``at``. ``path`` is the target of the symbolic link ``link``, if any."""
        missing, followed = False, 0
        for name in path.split("/"):
            if name in ("", "."):
                continue
            if name == "..":
                if (not at or missing) and not self._confined:
                    raise BadLink(link, circular=False)
                at = at.rpartition("/")[0]
                continue
            at = joined(at, name)
            member = self._look(at)
            if member is None:
                missing = True
            elif member.kind == "symlink":
                end = self._follow(at, member.target, depth)
                followed += end.followed
                if followed > MAX_LINKS:
                    raise BadLink(at, circular=True)
                at, missing = end.path, missing or end.missing
        return End(at, missing, followed)

    def _follow(self, path: str, target: str, depth: int) -> End:
        """Return where a symbolic link ends."""
        known = self._ends.get(path)
        if known is not None:
            return known
        if target.startswith("/"):
            raise BadLink(path, circular=False)
        if depth >= MAX_LINKS:
            raise BadLink(path, circular=True)
        end = self._walk(path.rpartition("/")[0], target, depth + 1, path)
        if end.followed >= MAX_LINKS:
            raise BadLink(path, circular=True)
        self._ends[path] = End(end.path, end.missing, end.followed + 1)
        return self._ends[path]
