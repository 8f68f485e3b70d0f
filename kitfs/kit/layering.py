"""How the layers of a kit lie over each other, and where symbolic links lead: the one place that has these rules.

A kit looks as if GNU tar had unpacked one layer after the other. Of two files of one name the later one wins. A
directory with an entry of its own replaces a file; a file replaces an empty directory. Otherwise the earlier one
stands, and the later one is left out with everything below it. Of two directories of one name, the first entry's mode
counts. A layer that has a name within its declared path comes before every layer that has it outside.
``layers.index.IndexBuilder`` follows the same rules between the entries of one layer.

``kit.tree`` asks name by name, while layers are still being fetched; ``merge`` has all names at once, for verbs that
write a kit's files. Pure. Threading: none; one call, one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from kitfs.errors import UnsafePath
from kitfs.layers.index import LayerIndex, Member
from kitfs.layers.names import Skipped, SkipReason, clean
from kitfs.system import MAX_LINKS

MAX_NAMED: Final = 100  # left-out entries of a merge that are named


class Names(Protocol):
    """The names of one layer; a ``LayerIndex`` has them."""

    def get(self, path: str) -> Member | None: ...

    def explicit(self, path: str) -> bool: ...

    def has_children(self, path: str) -> bool: ...

    def children(self, path: str) -> Sequence[str]: ...


class Numbered(NamedTuple):
    """A layer with its number, from 0 for the lowest one, and the path that it declares ("" may hold anything)."""

    number: int
    names: Names
    declared: str


class Winner(NamedTuple):
    """The member that has a name, and the number of its layer.

    ``since`` is the lowest layer whose entries below the directory count: a file had the name before that. ``left_out``
    are (number, member) of the layers whose member gave way.
    """

    member: Member
    number: int
    since: int
    left_out: tuple[tuple[int, Member], ...]


def winner(path: str, layers: Iterable[Numbered]) -> Winner | None:
    """Return the winner of a name among layers in ascending order; None if no layer has the name."""
    found: Member | None = None
    number = since = 0
    is_explicit = is_filled = False
    left_out: list[tuple[int, Member]] = []
    for candidate, names, _ in layers:
        member = names.get(path)
        if member is None:
            continue
        explicit = names.explicit(path)
        if member.kind == "dir" and found is not None and found.kind == "dir":
            is_filled = is_filled or names.has_children(path)
            if explicit and not is_explicit:
                found, number, is_explicit = member, candidate, True
        elif found is None or member.kind != "dir" or explicit:
            if member.kind != "dir" and is_filled:
                left_out.append((candidate, member))
                continue
            if member.kind == "dir":
                since = since if found is None else candidate
                is_filled = names.has_children(path)
            found, number, is_explicit = member, candidate, explicit
        else:
            left_out.append((candidate, member))
    return None if found is None else Winner(found, number, since, tuple(left_out))


def winners(
    directory: str, layers: Iterable[Numbered], *, without: Collection[str] = ()
) -> Iterator[tuple[str, str, Winner]]:
    """Yield (name, path, winner) for every name in a directory but those in ``without``.

    Layers come in ascending order; those that count below the directory are given.
    """
    here = [layer for layer in layers if layer.names.has_children(directory)]
    declaring = _declaring(directory, here)
    for name in dict.fromkeys(name for layer in here for name in layer.names.children(directory)):
        if name in without:
            continue
        path = joined(directory, name)
        found = winner(path, declaring(name)) or winner(path, here)
        if found is not None:
            yield name, path, found


def _declaring(directory: str, here: Sequence[Numbered]) -> Callable[[str], list[Numbered]]:
    """Return a function from a name in a directory to the layers whose declared path overlaps the name's.

    A kit may have thousands of layers with one name each; comparing each name with each layer would take too long.
    """
    prefix = f"{directory}/" if directory else ""
    everywhere: list[int] = []
    by_name: dict[str, list[int]] = {}
    for place, (_, _, declared) in enumerate(here):
        if not declared or declared == directory or directory.startswith(declared + "/"):
            everywhere.append(place)
        elif declared.startswith(prefix):
            by_name.setdefault(declared[len(prefix) :].partition("/")[0], []).append(place)
    return lambda name: [here[place] for place in sorted(everywhere + by_name.get(name, []))]


def gave_way(path: str, member: Member) -> Skipped:
    """Return why a member of ``Winner.left_out`` is not in the tree."""
    return Skipped(path, SkipReason.OTHER_KIND, member.kind)


def joined(directory: str, path: str) -> str:
    """Return a path below a directory; either may be the root, ""."""
    return f"{directory}/{path}" if directory and path else directory or path


@dataclass(frozen=True, slots=True)
class PlacedLayer:
    """A layer that is written somewhere.

    ``name`` is for messages. ``path`` is the path that the layer declares: "" may hold anything, None says nothing.
    ``below`` is the directory of the target that its tree goes to, "" for the target itself.
    """

    name: str
    index: LayerIndex
    path: str | None
    below: str = ""


class _PlacedNames:
    """The names of a layer in the target; directories above its place exist because something is below them."""

    def __init__(self, index: LayerIndex, below: str) -> None:
        self._index = index
        self._below = below
        self._inside = f"{below}/" if below else ""

    def get(self, path: str) -> Member | None:
        inner = self._inner(path)
        if inner is not None:
            found = self._index.get(inner)
            return found._replace(path=path) if inner == "" and found is not None else found
        return Member(path, "dir", 0o755) if self._inside.startswith(f"{path}/") else None

    def explicit(self, path: str) -> bool:
        inner = self._inner(path)
        return bool(inner) and self._index.explicit(inner or "")

    def has_children(self, path: str) -> bool:
        return bool(self.children(path))

    def children(self, path: str) -> Sequence[str]:
        inner = self._inner(path)
        if inner is not None:
            return self._index.children(inner)
        above = f"{path}/" if path else ""
        return (self._below[len(above) :].partition("/")[0],) if self._inside.startswith(above) else ()

    def _inner(self, path: str) -> str | None:
        """Return a path of the target as the layer has it; None outside the layer's place."""
        if path == self._below:
            return ""
        return path[len(self._inside) :] if path.startswith(self._inside) else None


class Merged(NamedTuple):
    """``winners`` has every path of the tree, directories before their contents, subtree by subtree.

    ``left_out`` are lines for people, ``MAX_NAMED`` at most.
    """

    winners: dict[str, Winner]
    left_out: tuple[str, ...]


def merge(sources: Sequence[PlacedLayer], *, reserved: Collection[str] = ()) -> Merged:
    """Lay layers over each other, the first one lowest. Names at the root that are ``reserved`` are left out.

    Raises UnsafePath for a layer whose place leaves the target, and for names below a symbolic link of another layer.
    """
    layers = []
    for number, source in enumerate(sources):
        below = _place(source)
        layers.append(Numbered(number, _PlacedNames(source.index, below), joined(below, source.path or "")))
    won: dict[str, Winner] = {}
    left_out: list[str] = []

    def note(number: int, skipped: Skipped) -> None:
        if len(left_out) < MAX_NAMED:
            left_out.append(f"{sources[number].name}: {skipped}")

    def settle(directory: str, since: int, without: Collection[str] = ()) -> Iterator[tuple[str, int]]:
        """Settle the names of a directory; yield (path, lowest layer that counts below it) of its directories."""
        here = [layer for layer in layers[since:] if layer.names.has_children(directory)]
        for _, path, found in winners(directory, here, without=without):
            won[path] = found
            for number, member in found.left_out:
                note(number, gave_way(path, member))
            if found.member.kind == "dir":
                yield path, max(since, found.since)
                continue
            for number, names, _ in here:
                if not names.has_children(path):
                    continue
                if found.member.kind == "symlink":
                    raise UnsafePath(
                        f"{sources[found.number].name} has a symbolic link at {path!r}, and another layer has files"
                        " below it; nothing was unpacked"
                    )
                for name in names.children(path):
                    note(number, Skipped(joined(path, name), SkipReason.BELOW_FILE, path))

    pending = [iter(settle("", 0, reserved))]
    while pending:
        path, since = next(pending[-1], ("", 0))
        if path:
            pending.append(iter(settle(path, since)))
        else:
            pending.pop()
    return Merged(won, tuple(left_out))


def in_order(sources: Sequence[PlacedLayer], won: dict[str, Winner]) -> Iterator[tuple[str, int]]:
    """Yield (path, layer) of every winner but directories, layer by layer in the order of its archive."""
    for number, source in enumerate(sources):
        below = _place(source)
        for inner, member in source.index.members.items():
            path = joined(below, inner)
            if member.kind != "dir" and path in won and won[path].number == number:
                yield path, number


def _place(source: PlacedLayer) -> str:
    below, reason = clean(source.below)
    if reason is not None:
        why = Skipped(source.below, reason).text
        raise UnsafePath(f"{source.name} is to go to {source.below!r}: {why}; nothing was unpacked")
    return below


class BadLink(Exception):  # noqa: N818 - an answer, not a failure
    """The symbolic link ``path`` leads out of the tree, or (``circular``) through more links than Linux follows."""

    def __init__(self, path: str, *, circular: bool) -> None:
        super().__init__(path)
        self.path = path
        self.circular = circular


class End(NamedTuple):
    """Where a path ends: ``missing`` if the tree lacks a name on the way; ``followed`` is the number of links."""

    path: str
    missing: bool
    followed: int


class Links:
    """Follows the symbolic links of a tree, each once, however many others lead through it.

    ``look`` returns the member at a path, None if there is none; an error that it raises ends the walk. ``confined``
    makes ".." at the root stay there, as chroot(2) does; otherwise it leads out.
    """

    def __init__(self, look: Callable[[str], Member | None], *, confined: bool) -> None:
        self._look = look
        self._confined = confined
        self._ends: dict[str, End] = {}

    def end(self, path: str) -> End:
        """Return where a path from the root ends, with every link on the way followed. Raises BadLink."""
        return self._walk("", path, 0, "")

    def _walk(self, at: str, path: str, depth: int, link: str) -> End:
        """Follow ``path`` from the directory ``at``; ``link`` is the symbolic link whose target it is, if any."""
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
