"""What has a name when layers are laid over each other, as if one archive after the other was unpacked by GNU tar.

Of two files the later one has the name. A directory that has an entry of its own replaces a file; a file replaces a
directory that is empty. Otherwise the earlier one stands, and the later one is left out with everything below it. Of
two directories the first entry's mode stands. This is the rule between layers; ``index.IndexBuilder`` follows it
between the entries of one layer. Pure. Threading: none.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from kitfs.layers.index import Member


class Names(Protocol):
    """What a layer has; a ``LayerIndex`` does."""

    def get(self, path: str) -> Member | None: ...

    def explicit(self, path: str) -> bool: ...

    def has_children(self, path: str) -> bool: ...


class Winner(NamedTuple):
    """What has a name: a member of the layer ``number``.

    ``since``: of layers below this number nothing is below the directory, since a file had the name after them.
    ``left_out`` are (number, member) of the layers that gave way.
    """

    member: Member
    number: int
    since: int
    left_out: tuple[tuple[int, Member], ...]


def winner(path: str, layers: Iterable[tuple[int, Names]]) -> Winner | None:
    """What has a name, of layers with ascending numbers, the lowest one lowest; None when no layer has it."""
    found: Member | None = None
    number = since = 0
    is_explicit = is_filled = False
    left_out: list[tuple[int, Member]] = []
    for candidate, names in layers:
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
