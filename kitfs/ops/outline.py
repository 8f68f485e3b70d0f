"""What an unpack writes: the layers of a kit laid over each other, to the tree that a mount shows. Pure.

The rules are README's *Semantics*: of two files the later layer's wins, of two directories the first one's mode stands, where a file and a
directory have one name the earlier stands, and a layer that has a name within its declared path comes before one that has it outside.
What a mount leaves out because it would lead out of the tree is refused here: ``UnsafePath``, before anything is written.
Threading: none; one call, one thread.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from kitfs.errors import UnsafePath
from kitfs.kit import related
from kitfs.layers.index import LayerIndex, Member, Skipped, clean

UNSAFE: Final = re.compile(
    r"(a hard link to .*: )?(an absolute path|a path that leaves the root)|a (character|block) device|a fifo|below .*, which is a symlink", re.DOTALL
)
MAX_LINKS: Final = 40  # symbolic links that one path may follow, as Linux
MAX_TOLD: Final = 100  # left-out entries of a layer that are named


@dataclass(frozen=True, slots=True)
class Sourced:
    """A layer as the outline sees it: ``name`` for messages, ``path`` that it declares ("" anything, None nothing), ``below`` which
    directory of the target its tree goes ("" the target itself)."""

    name: str
    index: LayerIndex
    path: str | None
    below: str = ""


class Item(NamedTuple):
    """A name that is written: ``member`` of the layer ``source`` (its number)."""

    path: str
    member: Member
    source: int


class Outline(NamedTuple):
    """``directories`` parents first; ``files`` by layer, each in the order of its archive; ``links`` are further names of files, of
    which ``targets`` has the first; ``left_out`` are lines for people."""

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


class _Won(NamedTuple):
    member: Member
    source: int
    explicit: bool


def outline(sources: Sequence[Sourced], *, reserved: Collection[str] = ()) -> Outline:
    """The tree of ``sources``, in the order in which they lie over each other. ``reserved`` names at the root are left to the caller.

    Raises UnsafePath for what would lead out of the target: absolute paths, "..", names below symbolic links, symbolic links that lead
    out, devices and fifos.
    """
    left_out: list[str] = []
    for sourced in sources:
        left_out += _refused(sourced.name, sourced.index.skipped)
    won = _winners(sources, left_out)
    for path in [p for p in won if p.partition("/")[0] in reserved]:
        del won[path]
    _prune(sources, won, left_out)
    files: list[list[Item]] = [[] for _ in sources]
    directories: dict[str, Item] = {}
    links: dict[str, Item] = {}
    targets: dict[str, str] = {}
    linked = {(w.source, w.member.link) for w in won.values() if w.member.link}
    firsts: dict[tuple[int, str], str] = {}
    symlinks: list[Item] = []
    for path, (member, source, _) in won.items():
        item = Item(path, member, source)
        if member.kind == "dir":
            directories[path] = item
        elif member.kind == "symlink":
            _follow(path, won)
            symlinks.append(item)
        elif (file := (source, member.link or member.path)) in linked and (first := firsts.setdefault(file, path)) != path:
            links[path], targets[path] = item, first
        else:
            files[source].append(item)
    ordered = {path: directories[path] for path in sorted(directories, key=lambda p: p.count("/"))}
    return Outline(ordered, tuple(map(tuple, files)), links, targets, tuple(symlinks), tuple(left_out))


def _refused(name: str, skipped: Sequence[Skipped]) -> Iterator[str]:
    """Lines for entries that are left out. Raises UnsafePath for those that are no accident."""
    for entry in skipped:
        if UNSAFE.fullmatch(entry.reason):
            raise UnsafePath(f"{name} holds {entry.name[:200]!r}: {entry.reason[:400]}; nothing was unpacked")
    for entry in skipped[:MAX_TOLD]:
        yield f"{name}: left out {entry.name!r}: {entry.reason}"
    if len(skipped) > MAX_TOLD:
        yield f"{name}: left out {len(skipped) - MAX_TOLD} more"


def _winners(sources: Sequence[Sourced], left_out: list[str]) -> dict[str, _Won]:
    """Name → winner: of the layers that declare it, else of those that have it all the same."""
    declared: dict[str, _Won] = {}
    strays: dict[str, _Won] = {}
    for number, source in enumerate(sources):
        below = _below(source)
        place = _joined(below, source.path or "")
        for path in _ancestors(below):
            _lay(declared, path, _Won(Member(path, "dir", 0o755), number, False), source, left_out)
        for inner in source.index.paths():
            if not inner:
                continue
            path = _joined(below, inner)
            member = source.index.get(inner)
            assert member is not None
            _lay(declared if related(path, place) else strays, path, _Won(member, number, source.index.explicit(inner)), source, left_out)
    for path, stray in strays.items():
        declared.setdefault(path, stray)
    return declared


def _below(source: Sourced) -> str:
    below, reason = clean(source.below)
    if reason:
        raise UnsafePath(f"{source.name} is to go to {source.below!r}: {reason}; nothing was unpacked")
    return below


def _joined(directory: str, path: str) -> str:
    return f"{directory}/{path}" if directory and path else directory or path


def _ancestors(path: str) -> list[str]:
    """The path itself and all above it, outermost first; none of ""."""
    parts = path.split("/") if path else []
    return ["/".join(parts[:n]) for n in range(1, len(parts) + 1)]


def _lay(won: dict[str, _Won], path: str, new: _Won, source: Sourced, left_out: list[str]) -> None:
    """Lay a name over what is there."""
    old = won.get(path)
    if old is None or (old.member.kind != "dir" and new.member.kind != "dir"):
        won[path] = new
    elif old.member.kind == "dir" and new.member.kind == "dir":
        if not old.explicit and new.explicit:
            won[path] = new
    elif len(left_out) < MAX_TOLD:
        left_out.append(f"{source.name}: left out {path!r}: a {new.member.kind} where an earlier layer has something else")


def _prune(sources: Sequence[Sourced], won: dict[str, _Won], left_out: list[str]) -> None:
    """Take away names below what is no directory. Raises UnsafePath where that is a symbolic link."""
    sound: dict[str, bool] = {"": True}

    def is_sound(path: str) -> bool:
        """Whether a directory and all above it are directories."""
        unknown = []
        while path not in sound:
            unknown.append(path)
            path = path.rpartition("/")[0]
        known = sound[path]
        for at in reversed(unknown):
            found = won.get(at)
            if known and found is not None and found.member.kind == "symlink":
                told = f"{sources[found.source].name} has a symbolic link at {at!r}, and another layer has files below it"
                raise UnsafePath(f"{told}; nothing was unpacked")
            known = sound[at] = known and found is not None and found.member.kind == "dir"
        return known

    for path in list(won):
        if not is_sound(path.rpartition("/")[0]):
            found = won.pop(path)
            if len(left_out) < MAX_TOLD:
                left_out.append(f"{sources[found.source].name}: left out {path!r}: above it an earlier layer has a file")


def _follow(path: str, won: Mapping[str, _Won]) -> None:
    """Raises UnsafePath unless a symbolic link, resolved in the tree as far as that goes, stays in it."""
    pending = won[path].member.target.split("/")[::-1]
    at = path.split("/")[:-1]
    followed = 0
    lost = False  # behind a name that the tree does not have
    refusal = UnsafePath(f"the symbolic link {path!r} leads to {won[path].member.target[:200]!r}, out of the directory; nothing was unpacked")
    if won[path].member.target.startswith("/"):
        raise refusal
    while pending:
        name = pending.pop()
        if name in ("", "."):
            continue
        if name == "..":
            if not at or lost:
                raise refusal
            at.pop()
            continue
        at.append(name)
        found = won.get("/".join(at))
        if found is None:
            lost = True
        elif found.member.kind == "symlink":
            followed += 1
            if followed > MAX_LINKS or found.member.target.startswith("/"):
                raise refusal
            at.pop()
            pending += found.member.target.split("/")[::-1]
