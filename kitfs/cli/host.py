"""What verbs without a daemon work with: the store and the registries of the settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kitfs.config import Settings

if TYPE_CHECKING:
    from kitfs.kit import Host


@contextmanager
def host_of(settings: Settings, **more: Any) -> Iterator[Host]:
    """The store of --cache-dir and the registries of the network options, for the time of the block.

    Warnings go to stderr; with --log-level, or -v, what it says.
    """
    from kitfs.kit import open_host
    from kitfs.metrics import Counters
    from kitfs.registry.client import ClientOptions

    options = ClientOptions(**settings.client_fields())
    log = logging.getLogger("kitfs")
    log.setLevel(settings["log-level"].upper() if settings.given("log-level") else logging.WARNING)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("kitfs: %(message)s"))
    log.addHandler(handler)
    try:
        with open_host(
            settings["cache-dir"], client_options=options, kit_home=settings["config"], counters=Counters(), log=log, **more
        ) as host:
            yield host
    finally:
        log.removeHandler(handler)
