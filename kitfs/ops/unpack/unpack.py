"""Write the files of a kit to a directory, as a mount of the kit would show them.

Existing files are treated as in KitOps' pkg/cmd/unpack. An unpack has three phases: ``look`` reads all indexes and
refuses unsafe kits, ``check`` finds existing files that prevent the unpack, and ``write`` copies layers, several at
once. Nothing is written before the third phase. A journal in the directory lets the same command resume after it was
killed. Only one unpack at a time can run in a directory. Threading: an unpack starts threads, and any of them may call
``report``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Final, NamedTuple

from kitfs.errors import ContextError, NotFound
from kitfs.kit.kit import Kit
from kitfs.kit.workspace import Workspace
from kitfs.modelkit.filters import Filter
from kitfs.oci.names import LayoutReference, Reference
from kitfs.ops.events import Noted, Report, quiet
from kitfs.ops.unpack.check import Checked, check
from kitfs.ops.unpack.journal import NAME as JOURNAL
from kitfs.ops.unpack.journal import Journal
from kitfs.ops.unpack.look import free_space, look
from kitfs.ops.unpack.progress import Workers
from kitfs.ops.unpack.safe_directory import SafeDirectory
from kitfs.ops.unpack.steps import StepContext, steps_of
from kitfs.ops.unpack.write import write

CONCURRENCY: Final = 4  # layers that are written at once


class UnpackedLayer(NamedTuple):
    """A layer that was unpacked.

    ``path``: the path of its Kitfile entry. ``files``: the number of files and links. ``bytes``: the size of its files
    in bytes.
    """

    kind: str
    path: str
    digest: str
    files: int
    bytes: int


class Unpacked(NamedTuple):
    """The result of an unpack. ``layers`` are in kit's order."""

    digest: str
    directory: str
    layers: tuple[UnpackedLayer, ...]


def unpack(
    workspace: Workspace,
    reference: Reference | LayoutReference,
    directory: str,
    *,
    filters: Sequence[Filter] = (),
    labels: Mapping[str, str] | None = None,
    overwrite: bool = False,
    ignore_existing: bool = False,
    include_remote: bool = False,
    remote: bool = False,
    concurrency: int = CONCURRENCY,
    room: int | None = None,
    last: ExitStack | None = None,
    report: Report = quiet,
) -> Unpacked:
    """Unpack the kit that ``reference`` names. If it names an index, ``labels`` select the kit.

    The options are those of ``unpack_kit``. Raises NotFound, the errors of opening a kit, and those of ``unpack_kit``.
    """
    _check_directory(directory)
    report(Noted(f"Unpacking to {directory}"))
    try:
        kit = workspace.resolver.open(reference, filters=filters, labels=labels or {}, remote=remote)
    except NotFound as e:
        if isinstance(reference, LayoutReference):
            raise
        name = reference.display
        raise NotFound(
            f"Failed to find reference {name}: reference {name} is not present in local storage "
            f"and could not be found in remote ({e})"
        )
    with closing(kit):
        return unpack_kit(
            workspace,
            kit,
            directory,
            filters=filters,
            overwrite=overwrite,
            ignore_existing=ignore_existing,
            include_remote=include_remote,
            remote=remote,
            concurrency=concurrency,
            room=room,
            last=last,
            report=report,
        )


def unpack_kit(
    workspace: Workspace,
    kit: Kit,
    directory: str,
    *,
    filters: Sequence[Filter] = (),
    overwrite: bool = False,
    ignore_existing: bool = False,
    include_remote: bool = False,
    remote: bool = False,
    concurrency: int = CONCURRENCY,
    room: int | None = None,
    last: ExitStack | None = None,
    report: Report = quiet,
) -> Unpacked:
    """Unpack a kit that was opened with ``filters`` into ``directory``, which is made if it does not exist.

    An existing file is an error, unless ``overwrite`` replaces it or ``ignore_existing`` keeps it; existing directories
    are used. ``include_remote``: also unpack remote datasets. ``remote``: look up referenced kits at their registries
    even if the store has them. ``concurrency``: the number of layers that are written at once. ``room``: the number of
    bytes to which a layer may decompress; None means the free space on the disk of the directory.

    ``last``: the journal is removed when ``last`` is closed, or at the end if ``last`` is None. Afterwards, a second
    run of the same command finds the files of the first run and refuses to replace them.

    Raises LayerError or RegistryError, UnsafePath for paths and links that lead out of the directory, ContextError for
    existing files and files that cannot be written, and IntegrityError for a layer that does not match its digest (its
    files are then removed).
    """
    _check_directory(directory)
    workers = Workers(concurrency)
    with ExitStack() as stack:
        context = StepContext(
            workspace,
            stack,
            remote=remote,
            include_remote=include_remote,
            report=report,
        )
        steps = steps_of(kit, directory, filters, context)
        room = free_space(directory) if room is None else room
        planned = look(kit, steps, workers, room=room, report=report)
        command = [str(kit.digest), *map(str, filters), *planned.digests]
        opened, journal = stack.enter_context(_open(directory, command))
        checked = check(planned, opened, journal, overwrite=overwrite, ignore_existing=ignore_existing, report=report)
        write(checked, opened, journal, workers, report=report)
        with ExitStack() as now:
            (last or now).callback(opened.clone().remove_and_close, JOURNAL)
        return _result(checked, directory)


def _check_directory(directory: str) -> None:
    """Raise ContextError if ``directory`` exists but is not a directory."""
    if os.path.lexists(directory) and not os.path.isdir(directory):
        raise ContextError(f"{directory} exists and is not a directory (choose another directory with --dir)")


@contextmanager
def _open(directory: str, command: list[str]) -> Iterator[tuple[SafeDirectory, Journal]]:
    """Make and open the directory, and the journal in it, for the duration of a block."""
    try:
        os.makedirs(directory, exist_ok=True)
        opened = SafeDirectory.open(directory)
    except OSError as e:
        raise ContextError(f"cannot make the directory {directory}: {(e.strerror or str(e)).lower()}")
    if opened is None:
        raise ContextError(f"{directory} was removed while it was opened")
    with closing(opened), closing(Journal.open(opened.fileno(), directory, command)) as journal:
        try:
            yield opened, journal
        finally:
            if journal.empty:
                journal.remove(opened)


def _result(checked: Checked, directory: str) -> Unpacked:
    layers = []
    for layer in checked.planned.layers:
        items = [item for item in layer.items if item.path not in checked.kept]
        size = sum(item.size for item in items if item.kind == "file")
        layers.append(UnpackedLayer(layer.source.kind, layer.step.path, layer.source.digest, len(items), size))
    return Unpacked(str(checked.planned.kit.digest), directory, tuple(layers))
