"""What verbs without a daemon work with: the store and the registries of the settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from kitfs.config import Settings
from kitfs.escaping import LogFormatter

if TYPE_CHECKING:
    from kitfs.kit.workspace import Workspace
    from kitfs.store.store import Store


@contextmanager
def workspace_of(settings: Settings, *, waits: bool = False) -> Iterator[Workspace]:
    """The store of --cache-dir and the registries of the network options, for the time of the block.

    Warnings go to stderr; with --log-level, or -v, what it says. ``waits``: a terminal is told that work goes on,
    where no bars do.
    """
    from kitfs.cli.progress import Waiting
    from kitfs.kit.options import WorkspaceOptions
    from kitfs.kit.workspace import Workspace

    with _told(settings) as log, Workspace.open(WorkspaceOptions.of(settings), log=log) as workspace:
        if not waits:
            yield workspace
            return
        mode = settings["progress"] if settings.takes("progress") else "auto"
        with Waiting(mode, lambda: workspace.counters.get("bytes_fetched")):
            yield workspace


@contextmanager
def store_of(settings: Settings) -> Iterator[Store]:
    """The store of --cache-dir alone, for the time of the block; messages as with ``workspace_of``."""
    from kitfs.metrics import Counters
    from kitfs.store.store import Store

    with _told(settings) as log, closing(Store.open(settings["cache-dir"], counters=Counters(), log=log)) as store:
        yield store


@contextmanager
def _told(settings: Settings) -> Iterator[logging.Logger]:
    log = logging.getLogger("kitfs")
    log.setLevel(settings["log-level"].upper() if settings.given("log-level") else logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("kitfs: %(message)s"))
    if not settings.given("log-level"):
        handler.addFilter(
            lambda record: record.levelno < logging.ERROR or record.exc_info is not None
        )  # the verb's own error says it
    log.addHandler(handler)
    try:
        yield log
    finally:
        log.removeHandler(handler)
