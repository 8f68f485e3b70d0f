"""Unpacking: the tree that a mount of the kit would show, written to a directory; KITOPS §5 has kit's rules for what
is there already.

All indexes are read, and everything unsafe or in the way is found, before anything is written. Then layers are
copied, several at once, each file under its final name only when it is whole, from bytes whose digest is right
(``supply``). A journal in the directory lets the same command go on where a killed one was (``journal``). Threading:
one call, with threads of its own; ``report`` is called from any of them. Two unpacks into one directory exclude each
other.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Final, NamedTuple

from kitfs.errors import ContextError, KitfsError, UnsafePath
from kitfs.kit.kit import Kit
from kitfs.kit.resolver import Resolver
from kitfs.layers.tar import MAX_ENTRIES
from kitfs.modelkit.filters import Filter
from kitfs.ops.events import Moved, Noted, Report, Total, Warned, quiet
from kitfs.ops.unpack.content import ContentSource, Stopped, free_bytes
from kitfs.ops.unpack.journal import NAME as JOURNAL
from kitfs.ops.unpack.journal import Journal
from kitfs.ops.unpack.plan import Item, PlacedLayer, UnpackPlan, outline
from kitfs.ops.unpack.safe_directory import SafeDirectory, Written, put
from kitfs.ops.unpack.steps import KITFILE, Step, StepContext, steps_of
from kitfs.store.store import Store

AT_ONCE: Final = 4  # layers


class UnpackedLayer(NamedTuple):
    """A layer that was unpacked: ``path`` as its Kitfile entry has it, ``files`` with links, ``bytes`` of their
    content.
    """

    kind: str
    path: str
    digest: str
    files: int
    bytes: int


class Unpacked(NamedTuple):
    """What an unpack has done: digest of the manifest, the directory, the layers in kit's order."""

    digest: str
    directory: str
    layers: tuple[UnpackedLayer, ...]


def unpack(
    kit: Kit,
    directory: str,
    store: Store,
    resolver: Resolver,
    *,
    filters: Sequence[Filter] = (),
    overwrite: bool = False,
    ignore_existing: bool = False,
    include_remote: bool = False,
    remote: bool = False,
    max_entries: int = MAX_ENTRIES,
    concurrency: int = AT_ONCE,
    last: ExitStack | None = None,
    report: Report = quiet,
) -> Unpacked:
    """Unpack a kit that was opened with ``filters`` into ``directory``, which is made when missing.

    A file that is there already is an error, unless ``overwrite`` replaces it or ``ignore_existing`` keeps it;
    directories are shared. ``include_remote`` unpacks remote datasets too; ``remote`` asks registries for kits that
    are here. The journal goes when ``last`` is closed, or at the end without one: a process that is killed after that
    finds its files in its way when it is run again. Raises UnsafePath for what would lead out of the directory,
    ContextError for what is in the way or cannot be written, IntegrityError when a layer does not have its digest
    (none of its files is left then), LayerError, and what the registries raise.
    """
    check_directory(directory)
    with ExitStack() as stack:
        sources = StepContext(
            store, resolver, stack, max_entries=max_entries, remote=remote, include_remote=include_remote, report=report
        )
        steps = steps_of(kit, directory, filters, sources)
        run = _Run(
            kit,
            directory,
            steps,
            overwrite=overwrite,
            ignore_existing=ignore_existing,
            concurrency=concurrency,
            report=report,
        )
        run.look()
        what = [str(kit.digest), *map(str, filters), *(step.supply.digest for step in steps if step.supply is not None)]
        stack.enter_context(run.open(what))
        run.check()
        run.write()
        with ExitStack() as now:
            (last or now).callback(run.place.clone().forget, JOURNAL)
        return run.result()


def check_directory(directory: str) -> None:
    """Raises ContextError when a directory's name is taken by something else."""
    if os.path.lexists(directory) and not os.path.isdir(directory):
        raise ContextError(f"{directory} is not a directory")


class _Run:
    """One unpack, phase by phase: look (indexes), open (directory and journal), check (what is in the way), write."""

    def __init__(
        self,
        kit: Kit,
        directory: str,
        steps: list[Step],
        *,
        overwrite: bool,
        ignore_existing: bool,
        concurrency: int,
        report: Report,
    ) -> None:
        self.kit = kit
        self.directory = directory
        self.steps = steps
        self.overwrite = overwrite
        self.ignore_existing = ignore_existing
        self.concurrency = concurrency
        self.report = report
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self.supplied = [step for step in steps if step.supply is not None]
        self.numbers = {id(step): number for number, step in enumerate(self.supplied)}
        self.kept: set[str] = set()  # files that were there before and stay
        self.done: set[str] = set()  # files of an earlier run
        self.written: set[str] = set()  # files of this run that have their names
        self.missing: set[str] = set()  # directories
        self.kitfile_found = False
        self.outline: UnpackPlan
        self.place: SafeDirectory
        self.journal: Journal

    def look(self) -> None:
        """Read every index, and lay the layers over each other. Raises UnsafePath, LayerError, IntegrityError."""
        room = _room(self.directory)
        indexes = {}

        def read(step: Step) -> None:
            assert step.supply is not None
            indexes[id(step)] = step.supply.index(self._counting(step), self.stop, room)

        for step in self.supplied:
            assert step.supply is not None
            step.total = step.supply.fetches()
            if step.total:
                self.report(Total(self._name(step), step.total, step.path))
        self._all(self.supplied, read, lambda _: None)
        sources = []
        for step in self.supplied:
            assert step.supply is not None
            sources.append(PlacedLayer(f"layer {step.supply.digest}", indexes[id(step)], step.supply.path, step.below))
        self.outline = outline(sources, reserved=(KITFILE,) if self.kit.kitfile_bytes is not None else ())
        for line in self.outline.left_out:
            self.report(Warned(line))
        for item in self.outline.items():
            if item.path == JOURNAL:
                raise UnsafePath(
                    f"the kit has a file {JOURNAL}, where an unpack keeps its journal; mount it, or leave its layer out with --filter"
                )
            self.supplied[item.source].wanted.append(item)

    @contextmanager
    def open(self, what: list[str]) -> Iterator[None]:
        """The directory and the journal in it, for the time of the block."""
        try:
            os.makedirs(self.directory, exist_ok=True)
            place = SafeDirectory.open(self.directory)
        except OSError as e:
            raise ContextError(f"{self.directory} cannot be made: {(e.strerror or str(e)).lower()}")
        if place is None:
            raise ContextError(f"{self.directory} is not there any more")
        self.place = place
        try:
            self.journal = Journal.open(place.fileno(), self.directory, what)
            try:
                yield
            finally:
                if self.journal.empty:
                    self.journal.remove(place)
                self.journal.close()
        finally:
            place.close()

    def check(self) -> None:
        """Find what is in the way, layer by layer in kit's order; nothing has been written yet. Raises ContextError,
        with kit's lines before it.
        """
        wrong: dict[int, str] = {}
        for path, item in self.outline.directories.items():
            parent = path.rpartition("/")[0]
            about = None if parent in self.missing else self.place.about(path)
            if about is None:
                self.missing.add(path)
            elif not stat.S_ISDIR(about.st_mode):
                wrong.setdefault(item.source, f"path '{path}' already exists and is not a directory")
                break  # what is below it cannot be looked at
            elif path in self.journal.directories and about.st_mode & 0o700 != 0o700:
                self.place.unlock(path)
        for number, step in enumerate(self.supplied):
            if number in wrong:
                break
            for item in step.wanted:
                problem = self._in_the_way(item)
                if problem:
                    wrong[number] = problem
                    break
        kitfile = self._look_at_kitfile()
        for step in self.steps if wrong or kitfile else ():
            if step.kitfile and kitfile:
                raise ContextError(f"Failed to unpack config: path {os.path.join(self.directory, KITFILE)} {kitfile}")
            self._note(step)
            if step.supply is not None and self.numbers[id(step)] in wrong:
                raise ContextError(
                    f"Failed to unpack: {wrong[self.numbers[id(step)]]} (--overwrite replaces files, --ignore-existing keeps them)"
                )

    def _in_the_way(self, item: Item) -> str:
        """Why a name cannot be written, "" when it can or need not be."""
        if item.path.rpartition("/")[0] in self.missing:
            return ""
        about = self.place.about(item.path)
        if about is None:
            return ""
        if self.journal.is_done(item.path, about):
            self.done.add(item.path)
            return ""
        if self.journal.is_ours(item.path, about):
            return ""
        if self.ignore_existing:
            self.kept.add(item.path)
            return ""
        if not self.overwrite:
            return f"path '{item.path}' already exists"
        is_regular = stat.S_ISREG(about.st_mode) or (item.member.kind == "symlink" and stat.S_ISLNK(about.st_mode))
        return "" if is_regular else f"path '{item.path}' already exists and is not a regular file"

    def _look_at_kitfile(self) -> str:
        """Why the Kitfile cannot be written, "" when it can or is there already."""
        data = self.kit.kitfile_bytes
        about = None if data is None else self.place.about(KITFILE)
        if data is None or about is None:
            return ""
        if not stat.S_ISREG(about.st_mode):
            return "exists and is not a regular file"
        if self.overwrite or self.journal.is_ours(KITFILE, about):
            return ""
        self.kitfile_found = self.place.read(KITFILE, len(data) + 1) == data
        return "" if self.kitfile_found else "already exists"

    def write(self) -> None:
        """Everything, from here on with a journal."""
        self.journal.begin()
        self.place.nonce = self.journal.nonce
        there = [p for p in self.outline.directories if p not in self.missing]
        for nonce in filter(None, (self.journal.nonce, self.journal.stale)):
            self.place.sweep(["", *there], nonce)
        for path in self.outline.directories:
            if path in self.missing:
                self.journal.making(path)
                self.place.make_directory(path)
        links = self._links()
        for step in self.supplied:
            if not self._is_due(step):
                step.total = step.done
            elif not step.total:
                step.total = sum(item.member.size for item in self._to_write(step))
            self.report(Total(self._name(step), step.total, step.path))
        self._all(self.steps, self._write_step, self._note)
        for item, first in links:
            self._write_link(item, first)
        for item in self.outline.symlinks:
            if item.path not in self.done | self.kept:
                self._settle(self.place.symlink(item.path, item.member.target), self.place)
        self._confirm()  # before a directory has a mode that keeps us out
        for path in reversed(self.outline.directories):
            if path in self.journal.directories:
                self.place.set_mode(path, self.outline.directories[path].member.mode)
        self.place.sync()

    def _links(self) -> list[tuple[Item, str]]:
        """Further names of files with their first ones. Where what stands there is not ours, the next name becomes a
        file of its own.
        """
        found: list[tuple[Item, str]] = []
        instead: dict[str, str] = {}
        for path, item in self.outline.links.items():
            first = self.outline.targets[path]
            if path in self.done or path in self.kept:
                continue
            if first in self.kept and first not in instead:
                instead[first] = path
            if instead.get(first) != path:
                found.append((item, instead.get(first, first)))
        self._instead = set(instead.values())
        return found

    def _to_write(self, step: Step) -> list[Item]:
        """Files of a layer that are still to be written, in the order of its bytes."""
        items = [
            item
            for item in step.wanted
            if item.member.kind == "file"
            and item.path not in self.done
            and item.path not in self.kept
            and (item.path not in self.outline.links or item.path in self._instead)
        ]
        return sorted(items, key=lambda item: item.member.extents[0].blob_offset if item.member.extents else -1)

    def _write_step(self, step: Step) -> None:
        if step.kitfile and not self.kitfile_found:
            data = self.kit.kitfile_bytes or b""
            with self._cloned() as place:
                self._settle(place.write(KITFILE, 0o644, len(data), lambda fd: put(fd, data, 0)), place)
        elif step.supply is not None and self._is_due(step):
            self._write_layer(step, step.supply, self._to_write(step))

    def _is_due(self, step: Step) -> bool:
        """Whether anything of a layer is still to be written; an empty layer is read all the same, to be verified."""
        return not step.wanted or any(item.path not in self.done | self.kept for item in step.wanted)

    def _counting(self, step: Step) -> Callable[[int], None]:
        """Tells of bytes as they are fetched, or as they are written where nothing is: each byte once, so never more
        than the total.
        """

        def moved(size: int) -> None:
            with self._lock:
                before = min(step.done, step.total)
                step.done += size
                told = min(step.done, step.total) - before
            self.report(Moved(self._name(step), told))

        return moved

    def _write_layer(self, step: Step, supply: ContentSource, items: Sequence[Item]) -> None:
        """The files of a layer. On a failure those that are not known to be right go away again."""
        body = supply.body(self._counting(step), self.stop)
        waiting: list[Written] = []
        with self._cloned() as place:
            try:
                for item in items:
                    if self.stop.is_set():
                        raise Stopped

                    def fill(fd: int, item: Item = item) -> None:
                        for offset, at, size in item.member.extents:
                            body.copy(at, size, fd, offset)

                    written = place.write(item.path, item.member.mode, item.member.size, fill)
                    if body.verified:
                        self._settle(written, place)
                    else:
                        waiting.append(written)
                body.finish()
                while waiting:
                    self._settle(waiting[-1], place)
                    waiting.pop()
            finally:
                for written in waiting:
                    place.discard(written)
                body.close()

    def _write_link(self, item: Item, first: str) -> None:
        written = self.place.link(item.path, first) or self.place.copy(
            item.path, first, item.member.mode, item.member.size
        )
        self._settle(written, self.place)

    def _settle(self, written: Written, place: SafeDirectory) -> None:
        self.journal.settling(written)
        place.publish(written)
        self.written.add(written.path)

    def _confirm(self) -> None:
        """Look whether everything that the kit holds is there at the end. Raises ContextError, which names the first
        thing that is not.
        """
        lost = [path for path in self.outline.directories if not self._has_kind(path, stat.S_IFDIR, None)]
        for item in self.outline.items():
            if item.path in self.kept:
                continue
            kind, size = (stat.S_IFLNK, None) if item.member.kind == "symlink" else (stat.S_IFREG, item.member.size)
            if (item.path not in self.written and item.path not in self.done) or not self._has_kind(
                item.path, kind, size
            ):
                lost.append(item.path)
        if self.kit.kitfile_bytes is not None and not self._has_kind(
            KITFILE, stat.S_IFREG, len(self.kit.kitfile_bytes)
        ):
            lost.append(KITFILE)
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            told = (
                "not there, or not whole, although they were to be written: does something else change this directory?"
            )
            raise ContextError(
                f"Failed to unpack: in {self.directory}, {lost[0]!r}{more}: {told} Run the same command again"
            )

    def _has_kind(self, path: str, kind: int, size: int | None) -> bool:
        about = self.place.about(path)
        return about is not None and stat.S_IFMT(about.st_mode) == kind and size in (None, about.st_size)

    @contextmanager
    def _cloned(self) -> Iterator[SafeDirectory]:
        place = self.place.clone()
        try:
            yield place
        finally:
            place.close()

    def _note(self, step: Step) -> None:
        found = step.kitfile and self.kitfile_found
        self.report(Noted(f"Found existing Kitfile at {os.path.join(self.directory, KITFILE)}" if found else step.text))

    def _name(self, step: Step) -> str:
        return f"{self.numbers[id(step)]} {step.path}"

    def _all(self, steps: Sequence[Step], do: Callable[[Step], None], begin: Callable[[Step], None]) -> None:
        """``do`` every step on threads, ``begin`` it before in order; the first error ends the others, and is raised
        when they have.
        """
        free = threading.Semaphore(self.concurrency)
        errors: list[BaseException] = []

        def run(step: Step) -> None:
            try:
                if not self.stop.is_set():
                    do(step)
            except Stopped:
                pass
            except BaseException as e:
                errors.append(e)
                self.stop.set()
                if not isinstance(e, KitfsError):
                    raise
            finally:
                free.release()

        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="kitfs-unpack") as pool:
            futures: list[Future[None]] = []
            try:
                for step in steps:
                    free.acquire()
                    if self.stop.is_set():
                        break
                    begin(step)
                    futures.append(pool.submit(run, step))
                for future in futures:
                    future.exception()
            except BaseException:
                self.stop.set()
                raise
        if errors:
            raise errors[0]
        if self.stop.is_set():
            raise ContextError(f"the unpack to {self.directory} was stopped before its end; run the same command again")

    def result(self) -> Unpacked:
        """What was done."""
        layers = []
        for step in self.supplied:
            assert step.supply is not None
            items = [item for item in step.wanted if item.path not in self.kept]
            size = sum(item.member.size for item in items if item.member.kind == "file")
            layers.append(UnpackedLayer(step.supply.kind, step.path, step.supply.digest, len(items), size))
        return Unpacked(str(self.kit.digest), self.directory, tuple(layers))


def _room(directory: str) -> int:
    """Bytes that are free where a directory is, or would be."""
    at = os.path.abspath(directory)
    while not os.path.isdir(at) and at != os.path.dirname(at):
        at = os.path.dirname(at)
    try:
        fd = os.open(at, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise ContextError(f"{at} cannot be read: {(e.strerror or str(e)).lower()}")
    try:
        return free_bytes(fd)
    finally:
        os.close(fd)
