"""Functions that verbs share: open the store and the registries, report progress, and parse references.

A ``Workspace`` or a ``Store`` is open for the duration of a ``with`` block. Threading: only the main thread may use
this module.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING

from kitfs.cli.options import Interrupted
from kitfs.cli.output import flush, say
from kitfs.cli.progress import Reporter, Waiting
from kitfs.config import Settings
from kitfs.errors import KitfsError, UsageError
from kitfs.escaping import LogFormatter

if TYPE_CHECKING:
    from kitfs.kit.workspace import Workspace
    from kitfs.oci.names import LayoutReference, Reference
    from kitfs.store.store import Store


@contextmanager
def workspace_of(settings: Settings, *, waits: bool = False) -> Iterator[Workspace]:
    """Open the store of --cache-dir and the registries of the network options.

    Warnings are logged to stderr; with --log-level or -v, all messages of that level and above. ``waits``: show on a
    terminal that the verb is still working. Only verbs without progress bars set it.
    """
    from kitfs.kit.options import WorkspaceOptions
    from kitfs.kit.workspace import Workspace

    with _log_to_stderr(settings) as log, Workspace.open(WorkspaceOptions.of(settings), log=log) as workspace:
        if not waits:
            yield workspace
            return
        mode = settings["progress"] if settings.takes("progress") else "auto"
        with Waiting(mode, lambda: workspace.counters.get("bytes_fetched")):
            yield workspace


@contextmanager
def store_of(settings: Settings, directory: str | None = None) -> Iterator[Store]:
    """Open only the store of --cache-dir, or the store in ``directory``. Messages are logged as by ``workspace_of``."""
    from kitfs.metrics import Counters
    from kitfs.store.store import Store

    with (
        _log_to_stderr(settings) as log,
        closing(Store.open(directory or settings["cache-dir"], counters=Counters(), log=log)) as store,
    ):
        yield store


@contextmanager
def _log_to_stderr(settings: Settings) -> Iterator[logging.Logger]:
    log = logging.getLogger("kitfs")
    log.setLevel(settings["log-level"].upper() if settings.given("log-level") else logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("kitfs: %(message)s"))
    if not settings.given("log-level"):  # an error in the log would only repeat the failure that the verb reports
        handler.addFilter(lambda record: record.levelno < logging.ERROR or record.exc_info is not None)
    log.addHandler(handler)
    try:
        yield log
    finally:
        log.removeHandler(handler)


def reporter_of(settings: Settings) -> Reporter:
    """Make the reporter of a verb from --progress, --json and --no-trunc."""
    return Reporter(settings["progress"], as_json=settings["json"], full=settings["no-trunc"])


@contextmanager
def exit_on_interrupt(report: Reporter) -> Iterator[None]:
    """Let Ctrl-C end the process at once, without waiting for requests in progress.

    The files are left as after SIGKILL, and the transfer resumes when the same command is run again.
    """
    try:
        yield
    except KeyboardInterrupt:
        report.close()
        say("kitfs: interrupted")
        with suppress(KitfsError, OSError):
            flush()
        os._exit(Interrupted.exit_code)


def with_tag(reference: Reference) -> Reference:
    """If a reference has neither a tag nor a digest, add the tag ``latest`` and print a note."""
    if reference.tag is None and reference.digest is None:
        reference = reference.or_latest()
        say(f"kitfs: no tag given, using latest ({reference.display})")
    return reference


def named(text: str) -> Reference | LayoutReference:
    """Parse a reference, and add ``latest`` as ``with_tag`` does.

    The path of a layout becomes absolute, because the working directory of the daemon is /.
    """
    from dataclasses import replace

    from kitfs.oci.names import LayoutReference, parse_any

    reference = parse_any(text)
    if not isinstance(reference, LayoutReference):
        return with_tag(reference)
    try:
        return replace(reference, path=os.path.abspath(reference.path))
    except OSError:
        raise UsageError(f"cannot resolve the relative path {text}: the current directory no longer exists")


def display(reference: Reference | LayoutReference) -> str:
    """Return a reference as a user writes it."""
    from kitfs.oci.names import LayoutReference

    return str(reference) if isinstance(reference, LayoutReference) else reference.display


def registry_target(text: str | None, source: Reference | None, *, task: str) -> Reference:
    """Return the destination of a verb that writes to a registry: ``text``, or ``source`` if ``text`` is None.

    ``task``: the task of the verb, for the error message. Raises UsageError if the destination has no registry.
    """
    from kitfs.oci.names import LOCAL, Reference

    target = source if text is None else with_tag(Reference.parse(text, multiple_tags=True))
    if target is None or target.registry == LOCAL:
        raise UsageError(f"registry is required when {task} (write registry/repository:tag)")
    return target
