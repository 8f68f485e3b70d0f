"""Find the files and directories of a layer that other users may not read or enter. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from kitfs.layers.index import LayerIndex, Member

READ: Final = 0o004  # the mode bit that lets others read a file
SEARCH: Final = 0o005  # the mode bits that let others list and enter a directory


class Closed(NamedTuple):
    """Counts of the files that others may not read, and of the directories that they may not list or enter.

    ``file`` and ``directory`` are an example of each, with its mode.
    """

    files: int = 0
    directories: int = 0
    file: str = ""
    directory: str = ""

    def __bool__(self) -> bool:
        return bool(self.files or self.directories)

    def __str__(self) -> str:
        parts = []
        for count, one, many, example in (
            (self.files, "file", "files", self.file),
            (self.directories, "directory", "directories", self.directory),
        ):
            if count:
                parts.append(f"{count} {one if count == 1 else many} ({'' if count == 1 else 'such as '}{example})")
        return " and ".join(parts)

    def only(self, *, files: bool, directories: bool) -> Closed:
        """Return a copy without the files, or without the directories, unless they are asked for."""
        return Closed(self.files if files else 0, self.directories if directories else 0, self.file, self.directory)

    @classmethod
    def of_json(cls, value: Any) -> Closed | None:
        """Return the value of a JSON list; None for anything else, since a cache may be damaged."""
        if isinstance(value, list) and [type(x) for x in value] == [int, int, str, str]:
            return cls(*value)
        return None


def closed_to_others(index: LayerIndex) -> Closed:
    """Count the files and directories of a layer that are closed to others."""
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


def summed(counts: Iterable[Closed]) -> Closed:
    """Add up counts; the examples are the first ones."""
    total = Closed()
    for count in counts:
        if count:
            total = Closed(
                total.files + count.files,
                total.directories + count.directories,
                total.file or count.file,
                total.directory or count.directory,
            )
    return total
