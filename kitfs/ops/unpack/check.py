"""Run the second phase of an unpack: find everything that prevents it, before anything is written."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from kitfs.errors import ContextError
from kitfs.ops.events import Noted, Report
from kitfs.ops.unpack.journal import Journal
from kitfs.ops.unpack.look import Planned, PlannedLayer
from kitfs.ops.unpack.plan import Item
from kitfs.ops.unpack.safe_directory import SafeDirectory
from kitfs.ops.unpack.steps import KITFILE, Step


@dataclass(frozen=True, slots=True)
class Checked:
    """A plan that can be written.

    ``missing``: directories that must be made. ``kept``: existing files that are not replaced. ``done``: files that an
    earlier run of the same command has written. ``has_kitfile``: whether the right Kitfile already exists.
    """

    planned: Planned
    missing: frozenset[str]
    kept: frozenset[str]
    done: frozenset[str]
    has_kitfile: bool

    def stays(self, item: Item) -> bool:
        """Return whether the file of an item is done or kept, and so is not written."""
        return item.path in self.done or item.path in self.kept

    def is_due(self, layer: PlannedLayer) -> bool:
        """Return whether a layer must be read. An empty layer is read too, to verify its digest."""
        return not layer.items or not all(self.stays(item) for item in layer.items)


def check(
    planned: Planned,
    directory: SafeDirectory,
    journal: Journal,
    *,
    overwrite: bool,
    ignore_existing: bool,
    report: Report,
) -> Checked:
    """Check every name that the plan writes, layer by layer in kit's order.

    Raises ContextError for the first name that cannot be written. All earlier steps are reported first, as in kit.
    """
    checker = _Checker(planned, directory, journal, overwrite=overwrite, ignore_existing=ignore_existing)
    problems = checker.layers()
    kitfile_problem = checker.kitfile()
    if problems or kitfile_problem:
        _fail(checker.result(), directory, problems, kitfile_problem, report)
    return checker.result()


def _fail(
    checked: Checked, directory: SafeDirectory, problems: dict[int, str], kitfile_problem: str, report: Report
) -> None:
    """Report the steps before the first problem, and raise an error for the problem."""
    number = 0
    for step, layer in checked.planned.steps:
        if step.kitfile and kitfile_problem:
            name = os.path.join(directory.name, KITFILE)
            raise ContextError(f"Failed to unpack config: path {name} {kitfile_problem}")
        report(Noted(text_of(step, directory, has_kitfile=checked.has_kitfile)))
        if layer is None:
            continue
        if number in problems:
            advice = "--overwrite replaces files, --ignore-existing keeps them"
            raise ContextError(f"Failed to unpack: {problems[number]} ({advice})")
        number += 1


def text_of(step: Step, directory: SafeDirectory, *, has_kitfile: bool) -> str:
    """Return kit's line for a step. If the Kitfile already exists, the step of the Kitfile has another line."""
    found = step.kitfile and has_kitfile
    return f"Found existing Kitfile at {os.path.join(directory.name, KITFILE)}" if found else step.text


class _Checker:
    """A checker of the names of a plan, which collects the fields of ``Checked``."""

    def __init__(
        self,
        planned: Planned,
        directory: SafeDirectory,
        journal: Journal,
        *,
        overwrite: bool,
        ignore_existing: bool,
    ) -> None:
        self._planned = planned
        self._directory = directory
        self._journal = journal
        self._overwrite = overwrite
        self._ignore_existing = ignore_existing
        self._missing: set[str] = set()
        self._kept: set[str] = set()
        self._done: set[str] = set()
        self._has_kitfile = False

    def result(self) -> Checked:
        return Checked(
            self._planned, frozenset(self._missing), frozenset(self._kept), frozenset(self._done), self._has_kitfile
        )

    def layers(self) -> dict[int, str]:
        """Return the first problem, keyed by the number of its layer, or {}.

        Layers after the first problem are not checked.
        """
        problems = self._directories()
        for number, layer in enumerate(self._planned.layers):
            if number in problems:
                break
            problem = next(filter(None, map(self._in_the_way, layer.items)), "")
            if problem:
                problems[number] = problem
                break
        return problems

    def _directories(self) -> dict[int, str]:
        """Find the missing directories.

        Return the problem of the first name that is not a directory, keyed by the number of its layer, or {}.
        """
        for path, item in self._planned.tree.directories.items():
            parent = path.rpartition("/")[0]
            about = None if parent in self._missing else self._directory.lstat(path)
            if about is None:
                self._missing.add(path)
            elif not stat.S_ISDIR(about.st_mode):  # nothing below a file can be checked
                return {item.source: f"path '{path}' already exists and is not a directory"}
            elif path in self._journal.directories and about.st_mode & 0o700 != 0o700:
                self._directory.unlock(path)
        return {}

    def _in_the_way(self, item: Item) -> str:
        """Return why a name cannot be written, or "" if it can be written or need not be written."""
        if item.path.rpartition("/")[0] in self._missing:
            return ""
        about = self._directory.lstat(item.path)
        if about is None:
            return ""
        if self._journal.is_done(item.path, about):
            self._done.add(item.path)
            return ""
        if self._journal.is_ours(item.path, about):
            return ""
        if self._ignore_existing:
            self._kept.add(item.path)
            return ""
        if not self._overwrite:
            return f"path '{item.path}' already exists"
        replaceable = stat.S_ISREG(about.st_mode) or (item.kind == "symlink" and stat.S_ISLNK(about.st_mode))
        return "" if replaceable else f"path '{item.path}' already exists and is not a regular file"

    def kitfile(self) -> str:
        """Return why the Kitfile cannot be written, or "" if it can be written or already exists."""
        data = self._planned.kit.kitfile_bytes
        about = None if data is None else self._directory.lstat(KITFILE)
        if data is None or about is None:
            return ""
        if not stat.S_ISREG(about.st_mode):
            return "exists and is not a regular file"
        if self._overwrite or self._journal.is_ours(KITFILE, about):
            return ""
        self._has_kitfile = self._directory.read(KITFILE, len(data) + 1) == data
        return "" if self._has_kitfile else "already exists"
