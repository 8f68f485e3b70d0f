"""Which names of a layer only their owner, or their group, may use. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from kitfs.layers.index import LayerIndex, Member

READ: Final = 0o004  # of others
SEARCH: Final = 0o005


class Closed(NamedTuple):
    """How many files others may not read, and how many directories they may not list or enter; ``file`` and
    ``directory`` name one each.
    """

    files: int = 0
    directories: int = 0
    file: str = ""
    directory: str = ""

    def __bool__(self) -> bool:
        return bool(self.files or self.directories)

    def __str__(self) -> str:
        told = []
        for count, one, many, example in (
            (self.files, "file", "files", self.file),
            (self.directories, "directory", "directories", self.directory),
        ):
            if count:
                told.append(f"{count} {one if count == 1 else many} ({'' if count == 1 else 'such as '}{example})")
        return " and ".join(told)

    def only(self, *, files: bool, directories: bool) -> Closed:
        """The same without its files, or without its directories."""
        return Closed(self.files if files else 0, self.directories if directories else 0, self.file, self.directory)

    @classmethod
    def of_json(cls, value: Any) -> Closed | None:
        """The value of a Closed that became a JSON list; None for anything else: a cache may be damaged."""
        if isinstance(value, list) and [type(x) for x in value] == [int, int, str, str]:
            return cls(*value)
        return None


def closed_to_others(index: LayerIndex) -> Closed:
    """What is closed in a layer."""
    return summed(
        _closed(member)
        for member in index.members.values()
        if member.kind != "symlink" and member.mode & SEARCH != SEARCH
    )


def _closed(member: Member) -> Closed:
    example = f"{member.path}, mode {member.mode:04o}"
    if member.kind == "file" and not member.mode & READ:
        return Closed(files=1, file=example)
    if member.kind == "dir" and member.mode & SEARCH != SEARCH:
        return Closed(directories=1, directory=example)
    return Closed()


def summed(found: Iterable[Closed]) -> Closed:
    """Several counts as one; the first examples stay."""
    total = Closed()
    for one in found:
        if one:
            total = Closed(
                total.files + one.files,
                total.directories + one.directories,
                total.file or one.file,
                total.directory or one.directory,
            )
    return total
