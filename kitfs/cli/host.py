"""What verbs without a daemon work with: the store and the registries of the settings."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kitfs.config import Settings
from kitfs.errors import UsageError

if TYPE_CHECKING:
    from kitfs.kit import Host


def client_fields(settings: Settings) -> dict[str, Any]:
    """The fields of registry ClientOptions, from the network options."""
    if bool(settings["cert"]) != bool(settings["key"]):
        raise UsageError("--cert and --key must be given together")
    mirrors: dict[str, tuple[str, ...]] = {}
    for host, url in settings["mirror"]:
        mirrors[host] = (*mirrors.get(host, ()), url)
    return {
        "plain_http": settings["plain-http"],
        "tls_verify": settings["tls-verify"],
        "tls_certs": settings["tls-cert"],
        "cert": settings["cert"],
        "key": settings["key"],
        "proxy": settings["proxy"],
        "mirrors": mirrors,
        "read_timeout": settings["read-timeout"],
    }


@contextmanager
def host_of(settings: Settings, **more: Any) -> Iterator[Host]:
    """The store of --cache-dir and the registries of the network options, for the time of the block; warnings go to stderr."""
    from kitfs.kit import open_host
    from kitfs.metrics import Counters
    from kitfs.registry.client import ClientOptions

    options = ClientOptions(**client_fields(settings))
    log = logging.getLogger("kitfs")
    log.setLevel(logging.WARNING)
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
