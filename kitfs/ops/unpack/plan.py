"""What an unpack writes: the layers of a kit laid over each other, to the tree that a mount shows. Pure.

The rules are README's *Semantics*: layers lie over each other as ``layers.merge`` has it, and a layer that has a name
within its declared path comes before one that has it outside. What a mount leaves out because it would lead out of
the tree is refused here: ``UnsafePath``, before anything is written. Threading: none; one call, one thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from kitfs.errors import UnsafePath
from kitfs.layers.index import LayerIndex, Member
from kitfs.layers.merge import Winner, winner
from kitfs.layers.names import Skipped, clean
from kitfs.oci.paths import paths_overlap
from kitfs.system import MAX_LINKS

MAX_TOLD: Final = 100  # left-out entries of a layer that are named


@dataclass(frozen=True, slots=True)
class PlacedLayer:
    """A layer as the outline sees it: ``name`` for messages, ``path`` that it declares ("" anything, None nothing),
    ``below`` which directory of the target its tree goes ("" the target itself)."""

    name: str
    index: LayerIndex
    path: str | None
    below: str = ""


class Item(NamedTuple):
    """A name that is written: ``member`` of the layer ``source`` (its number)."""

    path: str
    member: Member
    source: int


class UnpackPlan(NamedTuple):
    """``directories`` parents first; ``files`` by layer, each in the order of its archive; ``links`` are further
    names of files, of which ``targets`` has the first; ``left_out`` are lines for people."""

    directories: dict[str, Item]
    files: tuple[tuple[Item, ...], ...]
    links: dict[str, Item]
    targets: dict[str, str]
    symlinks: tuple[Item, ...]
    left_out: tuple[str, ...]

    def items(self) -> Iterator[Item]:
        """Every file, link and symbolic link, layer by layer."""
        by_source: list[list[Item]] = [list(files) for files in self.files]
        for item in (*self.links.values(), *self.symlinks):
            by_source[item.source].append(item)
        for items in by_source:
            yield from items


def outline(sources: Sequence[PlacedLayer], *, reserved: Collection[str] = ()) -> UnpackPlan:
    """The tree of ``sources``, in the order in which they lie over each other. ``reserved`` names at the root are
    left to the caller.

    Raises UnsafePath for what would lead out of the target: absolute paths, "..", names below symbolic links,
    symbolic links that lead out, devices and fifos.
    """
    left_out: list[str] = []
    for sourced in sources:
        left_out += _refused(sourced.name, sourced.index.skipped)
    won = Layering(sources, reserved, left_out).won
    files: list[list[Item]] = [[] for _ in sources]
    directories: dict[str, Item] = {}
    links: dict[str, Item] = {}
    targets: dict[str, str] = {}
    linked = {(w.number, w.member.link) for w in won.values() if w.member.link}
    firsts: dict[tuple[int, str], str] = {}
    symlinks: list[Item] = []
    follow = _Links(won)
    for path, number in _in_order(sources, won):
        member = won[path].member
        item = Item(path, member, number)
        if member.kind == "symlink":
            follow.check(path)
            symlinks.append(item)
        elif (file := (number, member.link or member.path)) in linked and (
            first := firsts.setdefault(file, path)
        ) != path:
            links[path], targets[path] = item, first
        else:
            files[number].append(item)
    for path, found in won.items():
        if found.member.kind == "dir":
            directories[path] = Item(path, found.member, found.number)
    return UnpackPlan(directories, tuple(map(tuple, files)), links, targets, tuple(symlinks), tuple(left_out))


def _in_order(sources: Sequence[PlacedLayer], won: dict[str, Winner]) -> Iterator[tuple[str, int]]:
    """(path, layer) of everything but directories, layer by layer in the order of its archive."""
    for number, source in enumerate(sources):
        below = _below(source)
        for inner, member in source.index.members.items():
            path = _joined(below, inner)
            if member.kind != "dir" and path in won and won[path].number == number:
                yield path, number


def _refused(name: str, skipped: Sequence[Skipped]) -> Iterator[str]:
    """Lines for entries that are left out. Raises UnsafePath for those that are no accident."""
    for entry in skipped:
        if entry.reason.unsafe:
            raise UnsafePath(f"{name} holds {entry.name[:200]!r}: {entry.text[:400]}; nothing was unpacked")
    for entry in skipped[:MAX_TOLD]:
        yield f"{name}: {entry}"
    if len(skipped) > MAX_TOLD:
        yield f"{name}: left out {len(skipped) - MAX_TOLD} more"


def _below(source: PlacedLayer) -> str:
    below, reason = clean(source.below)
    if reason is not None:
        why = Skipped(source.below, reason).text
        raise UnsafePath(f"{source.name} is to go to {source.below!r}: {why}; nothing was unpacked")
    return below


def _joined(directory: str, path: str) -> str:
    return f"{directory}/{path}" if directory and path else directory or path


class _Placed:
    """A layer whose tree goes to a directory of the target; the directories above that exist because something is
    below them.
    """

    def __init__(self, source: PlacedLayer) -> None:
        self.name: Final = source.name
        self._index = source.index
        self._below = _below(source)
        self._inside = f"{self._below}/" if self._below else ""
        self.path: Final = _joined(self._below, source.path or "")

    def get(self, path: str) -> Member | None:
        """The member at a path of the target."""
        inner = self._inner(path)
        if inner is not None:
            found = self._index.get(inner)
            return found._replace(path=path) if inner == "" and found is not None else found
        return Member(path, "dir", 0o755) if self._inside.startswith(f"{path}/") else None

    def explicit(self, path: str) -> bool:
        """Whether the path has an entry of its own."""
        inner = self._inner(path)
        return bool(inner) and self._index.explicit(inner or "")

    def has_children(self, path: str) -> bool:
        """Whether something is below a directory."""
        return bool(self.children(path))

    def children(self, path: str) -> Sequence[str]:
        """Names directly below a directory."""
        inner = self._inner(path)
        if inner is not None:
            return self._index.children(inner)
        above = f"{path}/" if path else ""
        return (self._below[len(above) :].partition("/")[0],) if self._inside.startswith(above) else ()

    def _inner(self, path: str) -> str | None:
        """A path of the target as the layer has it; None outside of its directory."""
        if path == self._below:
            return ""
        return path[len(self._inside) :] if path.startswith(self._inside) else None


class Layering:
    """The layers laid over each other from the root down. ``won`` has every name, directories before what is in them,
    subtree by subtree.

    Lines about what gives way are added to ``left_out``. Raises UnsafePath for names below a symbolic link of another
    layer.
    """

    def __init__(self, sources: Sequence[PlacedLayer], reserved: Collection[str], left_out: list[str]) -> None:
        self.won: Final[dict[str, Winner]] = {}
        self._layers = tuple(enumerate(_Placed(source) for source in sources))
        self._left_out = left_out
        pending = [iter(self._below("", 0, reserved))]
        while pending:
            path, since = next(pending[-1], ("", 0))
            if path:
                pending.append(iter(self._below(path, since)))
            else:
                pending.pop()

    def _below(self, directory: str, since: int, reserved: Collection[str] = ()) -> Iterator[tuple[str, int]]:
        """Settle the names in a directory; (path, number of the lowest layer that counts below it) of the directories
        among them.
        """
        here = [(number, layer) for number, layer in self._layers[since:] if layer.has_children(directory)]
        for name in dict.fromkeys(name for _, layer in here for name in layer.children(directory)):
            path = _joined(directory, name)
            if path in reserved:
                continue
            found = winner(path, [p for p in here if paths_overlap(path, p[1].path)]) or winner(path, here)
            if found is None:
                continue
            self.won[path] = found
            for number, member in found.left_out:
                self._tell(number, f"left out {path!r}: a {member.kind} where an earlier layer has something else")
            if found.member.kind == "dir":
                yield path, max(since, found.since)
            else:
                self._check_below(path, found, here)

    def _check_below(self, path: str, found: Winner, here: Sequence[tuple[int, _Placed]]) -> None:
        """Tell what is lost below something that is not a directory. Raises UnsafePath where that is a symbolic
        link.
        """
        for number, layer in here:
            if not layer.has_children(path):
                continue
            if found.member.kind == "symlink":
                told = f"{self._layers[found.number][1].name} has a symbolic link at {path!r}, and another layer has files below it"
                raise UnsafePath(f"{told}; nothing was unpacked")
            for name in layer.children(path):
                self._tell(number, f"left out {_joined(path, name)!r}: above it an earlier layer has a file")

    def _tell(self, number: int, line: str) -> None:
        if len(self._left_out) < MAX_TOLD:
            self._left_out.append(f"{self._layers[number][1].name}: {line}")


class _Links:
    """Where the symbolic links of a tree lead, each followed once however many others lead through it."""

    def __init__(self, won: dict[str, Winner]) -> None:
        self._won = won
        self._known: dict[str, _End] = {}

    def check(self, path: str) -> None:
        """Raises UnsafePath unless a symbolic link, resolved in the tree as far as that goes, stays in it."""
        if self._follow(path, 0) is None:
            target = self._won[path].member.target[:200]
            raise UnsafePath(
                f"the symbolic link {path!r} leads to {target!r}, out of the directory; nothing was unpacked"
            )

    def _follow(self, path: str, depth: int) -> _End | None:
        """Where a link ends; None when that is outside, or behind more links than Linux follows."""
        if path in self._known:
            return self._known[path]
        target = self._won[path].member.target
        if target.startswith("/") or depth >= MAX_LINKS:
            return None
        at, lost, followed = path.rpartition("/")[0], False, 1  # the link itself
        for name in target.split("/"):
            if name in ("", "."):
                continue
            if name == "..":
                if not at or lost:
                    return None
                at = at.rpartition("/")[0]
                continue
            at = _joined(at, name)
            found = self._won.get(at)
            if found is None:
                lost = True
            elif found.member.kind == "symlink":
                end = self._follow(at, depth + 1)
                if end is None or followed + end.followed > MAX_LINKS:
                    return None
                at, lost, followed = end.path, lost or end.lost, followed + end.followed
        self._known[path] = _End(at, lost, followed)
        return self._known[path]


class _End(NamedTuple):
    """Where a symbolic link ends: ``lost`` behind a name that the tree does not have; after how many links."""

    path: str
    lost: bool
    followed: int
