"""Count the files and directories of a layer whose mode keeps other users out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from kitfs.layers.index import LayerIndex

READ: Final = 0o004  # the mode bit that lets others read a file
SEARCH: Final = 0o005  # the mode bits that let others list and enter a directory


class Closed(NamedTuple):
    """How many files other users cannot read, and how many directories they cannot list or enter.

    ``file`` and ``directory`` are examples: the path and the mode of one such file and one such directory.
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
        """Return a copy that counts files only if ``files`` is True, and directories if ``directories`` is True."""
        return Closed(self.files if files else 0, self.directories if directories else 0, self.file, self.directory)


def closed_to_others(index: LayerIndex) -> Closed:
    """Count the files and directories of one layer that other users cannot use."""
    counts = index.counts
    examples = (
        f"{index.path(row)}, mode {index.mode(row):04o}" if count else ""
        for count, row in (
            (counts.closed_files, counts.closed_file),
            (counts.closed_directories, counts.closed_directory),
        )
    )
    return Closed(counts.closed_files, counts.closed_directories, *examples)


def summed(counts: Iterable[Closed]) -> Closed:
    """Add up the counts of several layers. The examples are those of the first layer that has examples."""
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
