"""The rules by which the layers of a kit are merged into one tree, and by which symbolic links are followed.

The tree is the one that GNU tar would make of the layers, one after the other. If two layers have a file of one name,
the later file wins. A directory that has an entry of its own replaces a file, and a file replaces an empty directory.
In every other conflict the earlier entry stays, and the later one is left out with everything below it. If two layers
have one directory, the mode of the first entry counts. A layer whose declared path contains a name takes precedence
over layers whose declared path does not. ``layers.index.IndexBuilder`` applies the same rules to the entries of one
layer.

``kit.tree`` looks up single names, while layers are still being fetched. ``merge`` handles all names at once, for verbs
that write the files of a kit. Pure. Threading: none; each call uses one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from kitfs.errors import UnsafePath
from kitfs.layers.index import LayerIndex, Member
from kitfs.layers.names import Skipped, SkipReason, clean
from kitfs.system import MAX_LINKS

MAX_NAMED: Final = 100  # left-out entries that a merge reports one by one


class Names(Protocol):
    """The names of one layer, as a ``LayerIndex`` gives them."""

    def get(self, path: str) -> Member | None: ...

    def explicit(self, path: str) -> bool: ...

    def has_children(self, path: str) -> bool: ...

    def children(self, path: str) -> Sequence[str]: ...


class Numbered(NamedTuple):
    """A layer with its number, which is 0 for the lowest layer, and its declared path ("" contains every name)."""

    number: int
    names: Names
    declared: str


class Winner(NamedTuple):
    """The member that a name has in the tree, and the number of its layer.

    For a directory, ``since`` is the lowest layer whose entries below it count: in lower layers a file had the name.
    ``left_out`` are (number, member) of the layers whose member is left out.
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
    """Yield (name, path, winner) for every name in a directory except those in ``without``.

    ``layers`` are those whose entries below the directory count, in ascending order.
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
    for position, (_, _, declared) in enumerate(here):
        if not declared or declared == directory or directory.startswith(declared + "/"):
            everywhere.append(position)
        elif declared.startswith(prefix):
            by_name.setdefault(declared[len(prefix) :].partition("/")[0], []).append(position)
    return lambda name: [here[position] for position in sorted(everywhere + by_name.get(name, []))]


def left_out_entry(path: str, member: Member) -> Skipped:
    """Return a member of ``Winner.left_out`` with the reason why it is not in the tree."""
    return Skipped(path, SkipReason.OTHER_KIND, member.kind)


def joined(directory: str, path: str) -> str:
    """Return a path below a directory; either may be the root, ""."""
    return f"{directory}/{path}" if directory and path else directory or path


@dataclass(frozen=True, slots=True)
class PlacedLayer:
    """A layer that is written to a target directory.

    ``name`` is for messages. ``path`` is the path that the layer declares: "" contains every name, None if it declares
    none. ``below`` is the directory of the target that its tree goes to, "" for the target itself.
    """

    name: str
    index: LayerIndex
    path: str | None
    below: str = ""


class _PlacedNames:
    """The names of a layer in the target, with the directories above the one that its tree goes to."""

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
        """Return a path of the target as the layer has it; None for a path outside ``below``."""
        if path == self._below:
            return ""
        return path[len(self._inside) :] if path.startswith(self._inside) else None


class Merged(NamedTuple):
    """The result of a merge.

    ``winners`` has every path of the tree, directories before their contents, subtree by subtree. ``left_out`` are
    lines for people, at most ``MAX_NAMED``.
    """

    winners: dict[str, Winner]
    left_out: tuple[str, ...]


def merge(sources: Sequence[PlacedLayer], *, reserved: Collection[str] = ()) -> Merged:
    """Lay layers over each other, the first one lowest. Names at the root that are ``reserved`` are left out.

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
        """Find the winners in a directory; yield (path, lowest layer that counts below it) for its directories."""
        here = [layer for layer in layers[since:] if layer.names.has_children(directory)]
        for _, path, found in winners(directory, here, without=without):
            won[path] = found
            for number, member in found.left_out:
                note(number, left_out_entry(path, member))
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

    pending = [iter(merge_directory("", 0, reserved))]
    while pending:
        path, since = next(pending[-1], ("", 0))
        if path:
            pending.append(iter(merge_directory(path, since)))
        else:
            pending.pop()
    return Merged(won, tuple(left_out))


def in_order(sources: Sequence[PlacedLayer], won: dict[str, Winner]) -> Iterator[tuple[str, int]]:
    """Yield (path, number of the layer) of every winner except directories, by layer, in the order of its archive."""
    for number, source in enumerate(sources):
        below = _directory(source)
        for inner, member in source.index.members.items():
            path = joined(below, inner)
            if member.kind != "dir" and path in won and won[path].number == number:
                yield path, number


def _directory(source: PlacedLayer) -> str:
    """Return the directory that a layer's tree goes to, in normal form. Raises UnsafePath."""
    below, reason = clean(source.below)
    if reason is not None:
        why = Skipped(source.below, reason).text
        raise UnsafePath(f"cannot write {source.name} to {source.below!r}: {why}; nothing was unpacked")
    return below


class BadLink(Exception):  # noqa: N818 - its callers decide whether it is an error
    """The symbolic link ``path`` leads out of the tree, or (``circular``) through more links than Linux follows."""

    def __init__(self, path: str, *, circular: bool) -> None:
        super().__init__(path)
        self.path = path
        self.circular = circular


class End(NamedTuple):
    """The end of a path. ``missing``: the tree lacks a name on the way. ``followed``: how many links were followed."""

    path: str
    missing: bool
    followed: int


class Links:
    """Follows the symbolic links of a tree. Each is followed once, even if many other links lead through it.

    ``look`` returns the member at a path, or None if the path does not exist; an error that it raises ends the walk. If
    ``confined`` is True, ".." at the root stays at the root, as after chroot(2); otherwise it raises BadLink.
    """

    def __init__(self, look: Callable[[str], Member | None], *, confined: bool) -> None:
        self._look = look
        self._confined = confined
        self._ends: dict[str, End] = {}

    def end(self, path: str) -> End:
        """Return where a path from the root ends, with every link on the way followed. Raises BadLink."""
        return self._walk("", path, 0, "")

    def _walk(self, at: str, path: str, depth: int, link: str) -> End:
        """Follow ``path`` from the directory ``at``.

        ``link`` is the symbolic link that has it as target, "" if none.
        """
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
