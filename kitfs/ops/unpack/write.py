"""Run the last phase of an unpack: write everything that ``check`` has found to be missing.

A file gets its name only when it is complete and its bytes are verified. Threading: ``write`` uses the threads of its
``Workers``, and returns when they have ended. Threads only add to the set of written names.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing
from typing import Final, NamedTuple

from kitfs.errors import ContextError, IntegrityError, LayerError
from kitfs.ops.events import Noted, Report
from kitfs.ops.unpack.check import Checked, text_of
from kitfs.ops.unpack.content import Content
from kitfs.ops.unpack.journal import Journal
from kitfs.ops.unpack.look import PlannedLayer, PlannedStep
from kitfs.ops.unpack.plan import Item, UnpackPlan
from kitfs.ops.unpack.progress import Stopped, Workers
from kitfs.ops.unpack.safe_directory import PendingFile, SafeDirectory, write_all
from kitfs.ops.unpack.steps import KITFILE

RESUMABLE: Final = 1 << 20  # fewest bytes for which a file is resumed instead of fetched again


class HardLink(NamedTuple):
    """A further name of a file. ``first``: the name of the file that is written before it."""

    item: Item
    first: str


def write(checked: Checked, directory: SafeDirectory, journal: Journal, workers: Workers, *, report: Report) -> None:
    """Write the plan, and check at the end that all names exist. If it is interrupted, the same command can resume.

    Raises LayerError or RegistryError, ContextError for files that cannot be written, and IntegrityError for a layer
    that does not match its digest (its files are then removed).
    """
    _Writer(checked, directory, journal, workers, report).run()


class _Writer:
    """The state of ``write``. ``_written``: the names that this run has published."""

    def __init__(
        self, checked: Checked, directory: SafeDirectory, journal: Journal, workers: Workers, report: Report
    ) -> None:
        self._checked = checked
        self._tree: UnpackPlan = checked.planned.tree
        self._directory = directory
        self._journal = journal
        self._workers = workers
        self._report = report
        self._written: set[str] = set()
        self._links, self._copies = _hard_links(checked)

    def run(self) -> None:
        self._journal.begin()
        kept = {temporary for temporary, _ in self._journal.begun.values()}
        self._directory.name_temporaries(self._journal.nonce, kept)
        self._sweep((path for path in self._tree.directories if path not in self._checked.missing), kept)
        self._make_directories()
        for layer in self._checked.planned.layers:
            self._announce(layer)
        try:
            self._workers.each(self._checked.planned.steps, self._write_step, begin=self._begin)
        except ContextError:  # for example a full disk, whose space should be freed
            self._sweep(self._tree.directories, ())
            raise
        for link in self._links:
            self._write_link(link)
        for item in self._tree.symlinks:
            if not self._checked.stays(item):
                self._publish(self._directory.symlink(item.path, item.target), self._directory)
        self._confirm()  # must run before a directory gets a mode that denies access to this process
        for path in reversed(self._tree.directories):
            if path in self._journal.directories:
                self._directory.set_mode(path, self._tree.directories[path].mode)
        self._directory.sync()

    def _sweep(self, directories: Iterable[str], keep: Collection[str]) -> None:
        """Remove the temporary files of this run and of killed runs, except those that ``keep`` names."""
        places = ["", *directories]
        for nonce in filter(None, (self._journal.nonce, self._journal.stale)):
            self._directory.sweep(places, nonce, keep=keep)

    def _make_directories(self) -> None:
        for path in self._tree.directories:
            if path in self._checked.missing:
                self._journal.making(path)
                self._directory.make_directory(path)

    def _announce(self, layer: PlannedLayer) -> None:
        """Report how many bytes of a layer will be counted."""
        if not self._checked.is_due(layer):
            layer.progress.finish()
        else:
            layer.progress.expect(layer.progress.total or sum(item.size for item in self._files_to_write(layer)))

    def _begin(self, planned: PlannedStep) -> None:
        text = text_of(planned.step, self._directory, has_kitfile=self._checked.has_kitfile)
        self._report(Noted(text))

    def _files_to_write(self, layer: PlannedLayer, *, done: bool = False) -> list[Item]:
        """Return the regular files of a layer to write, in the order of their bytes in the layer.

        ``done``: include the files that an earlier run has written.
        """
        items = [
            item
            for item in layer.items
            if item.kind == "file"
            and ((done and item.path in self._checked.done) or not self._checked.stays(item))
            and (item.path not in self._tree.links or item.path in self._copies)
        ]
        return sorted(items, key=lambda item: item.offset)

    def _write_step(self, planned: PlannedStep) -> None:
        if planned.step.kitfile and not self._checked.has_kitfile:
            data = self._checked.planned.kit.kitfile_bytes or b""
            with closing(self._directory.clone()) as directory:
                file = directory.write(KITFILE, 0o644, len(data), lambda fd: write_all(fd, data, 0))
                self._publish(file, directory)
        elif planned.layer is not None and self._checked.is_due(planned.layer):
            self._write_layer(planned.layer)

    def _write_layer(self, layer: PlannedLayer) -> None:
        """Write the files of a layer. Write them again if they are wrong and the right bytes can be fetched."""
        items = self._files_to_write(layer, done=True)
        with closing(self._directory.clone()) as directory:
            kept = sum(item.path in self._checked.done or self._is_begun(item, directory) for item in items)
            while True:
                with closing(layer.source.open(layer.progress.add, self._workers.stop, kept=kept)) as content:
                    if self._write_files(content, items, directory):
                        return
                kept = 0

    def _write_files(self, content: Content, items: Sequence[Item], directory: SafeDirectory) -> bool:
        """Write the files of a layer. Return False if they were wrong and can be written again.

        After a failure, files that are not verified are removed, except those that a later run can resume.
        """
        pending: list[PendingFile] = []
        try:
            for item in items:
                if self._workers.stop.is_set():
                    raise Stopped
                if item.path in self._checked.done:
                    self._take_file(content, item, directory)
                    continue
                file = self._write_file(content, item, directory)
                if content.verified:
                    self._publish(file, directory)
                else:
                    pending.append(file)
            right = content.finish()
            while right and pending:
                self._publish(pending[-1], directory)
                pending.pop()
        except (ContextError, IntegrityError, LayerError):
            self._discard(items, directory)
            raise
        finally:
            for file in pending:
                if file.path not in self._journal.begun:
                    directory.discard(file.path, file.temporary)
        if not right:
            self._discard(items, directory)
        return right

    def _write_file(self, content: Content, item: Item, directory: SafeDirectory) -> PendingFile:
        """Write one file, or the rest of it if an earlier run has begun it."""

        def fill(fd: int) -> None:
            for offset, at, size in item.extents:
                taken = content.take(fd, offset, at, size)
                content.copy(at + taken, size - taken, fd, offset + taken)

        resumable = content.resumable and item.size >= RESUMABLE
        return directory.write(
            item.path,
            item.mode,
            item.size,
            fill,
            begun=self._journal.begun.get(item.path, ("", 0)) if resumable else ("", 0),
            beginning=self._journal.beginning if resumable else None,
        )

    def _is_begun(self, item: Item, directory: SafeDirectory) -> bool:
        """Return whether an earlier run has begun a file that still exists."""
        begun = self._journal.begun.get(item.path)
        if begun is None:
            return False
        parent, slash, _ = item.path.rpartition("/")
        return directory.lstat(f"{parent}{slash}{begun[0]}") is not None

    def _take_file(self, content: Content, item: Item, directory: SafeDirectory) -> None:
        """Let the content read the bytes that an earlier run has written to a file, so they are not fetched again."""
        fd = directory.open_file(item.path) if content.resumable else None
        if fd is not None:
            try:
                for offset, at, size in item.extents:
                    content.take(fd, offset, at, size)
            finally:
                os.close(fd)

    def _discard(self, items: Sequence[Item], directory: SafeDirectory) -> None:
        """Remove the files of a layer that were begun."""
        for item in items:
            if item.path in self._journal.begun:
                directory.discard(item.path, self._journal.begun.pop(item.path)[0])

    def _write_link(self, link: HardLink) -> None:
        """Write a further name of a file, or a copy if the file system does not support hard links."""
        path, item = link.item.path, link.item
        file = self._directory.link(path, link.first) or self._directory.copy(path, link.first, item.mode, item.size)
        self._publish(file, self._directory)

    def _publish(self, file: PendingFile, directory: SafeDirectory) -> None:
        self._journal.publishing(file)
        directory.publish(file)
        self._written.add(file.path)

    def _confirm(self) -> None:
        """Check that all files of the kit exist. Raises ContextError with the first missing or incomplete name."""
        lost = [path for path in self._tree.directories if not self._has(path, stat.S_IFDIR)]
        for item in self._tree.items():
            if item.path in self._checked.kept:
                continue
            is_link = item.kind == "symlink"
            kind, size = (stat.S_IFLNK, None) if is_link else (stat.S_IFREG, item.size)
            was_written = item.path in self._written or item.path in self._checked.done
            if not was_written or not self._has(item.path, kind, size):
                lost.append(item.path)
        kitfile = self._checked.planned.kit.kitfile_bytes
        if kitfile is not None and not self._has(KITFILE, stat.S_IFREG, len(kitfile)):
            lost.append(KITFILE)
        if lost:
            names = f"{lost[0]!r} is" if len(lost) == 1 else f"{lost[0]!r} and {len(lost) - 1} more are"
            raise ContextError(
                f"Failed to unpack: in {self._directory.name}, {names} missing or incomplete after all files were "
                "written, perhaps because another program changes this directory (run the same command again)"
            )

    def _has(self, path: str, kind: int, size: int | None = None) -> bool:
        about = self._directory.lstat(path)
        return about is not None and stat.S_IFMT(about.st_mode) == kind and size in (None, about.st_size)


def _hard_links(checked: Checked) -> tuple[list[HardLink], set[str]]:
    """Return the hard links to write, and the names that are written as files instead of hard links.

    If an existing file is kept under the first name of a file, further names cannot be links to it, because its content
    may differ. The second name is then written as a file.
    """
    links: list[HardLink] = []
    instead: dict[str, str] = {}  # first name → the name that is written as a file instead
    for path, item in checked.planned.tree.links.items():
        first = checked.planned.tree.targets[path]
        if checked.stays(item):
            continue
        if first in checked.kept and first not in instead:
            instead[first] = path
        if instead.get(first) != path:
            links.append(HardLink(item, instead.get(first, first)))
    return links, set(instead.values())
