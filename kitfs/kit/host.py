"""What every verb works with: the store, the registries and the resolver."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, NamedTuple

from kitfs.content import Origin
from kitfs.kit.resolver import Resolver
from kitfs.layers.tar import MAX_ENTRIES
from kitfs.metrics import Counters
from kitfs.oci.names import LayoutReference, Reference
from kitfs.registry.client import ClientOptions, RegistryClient
from kitfs.registry.credentials import Credentials
from kitfs.registry.kit_storage import KitStorage, LocalFirstRepository
from kitfs.registry.layout import open_layout
from kitfs.store.store import Store


class Workspace(NamedTuple):
    """What verbs work with: the store, the registries, what resolves references with both, and what whole kits are
    pulled from.
    """

    store: Store
    client: RegistryClient
    resolver: Resolver
    pull_from: Callable[[Reference], LocalFirstRepository]


def host_on(
    stack: ExitStack,
    cache_dir: str,
    *,
    client_options: ClientOptions,
    kit_home: str,
    counters: Counters,
    log: logging.Logger,
    cache_size: int | None = None,
    max_entries: int = MAX_ENTRIES,
) -> Workspace:
    """The store in ``cache_dir`` and the registries that ``client_options`` reach, closed with ``stack``.

    ``kit_home`` is kit's home, where credentials.json is, and what kit has pulled: that is read there, not asked of
    registries, when it has its digest. ``cache_size`` in bytes. Raises StoreError when the store cannot be used.
    """
    store = Store.open(cache_dir, size_limit=cache_size, counters=counters, log=log)
    stack.callback(store.close)
    client = RegistryClient(client_options, Credentials.load(kit_home), counters=counters, log=log)
    stack.callback(client.close)
    home = KitStorage(kit_home, store.catalog, log)
    stack.callback(home.close)
    layouts: dict[str, Origin] = {}

    def origin_of(reference: Reference | LayoutReference) -> Origin:
        if isinstance(reference, Reference):
            return home.origin(reference, client.repository)
        if reference.path not in layouts:
            layouts[reference.path] = stack.enter_context(closing(open_layout(reference)))
        return layouts[reference.path]

    resolver = Resolver(store, origin_of, log=log, max_entries=max_entries, fallback=home.fallback)
    return Workspace(store, client, resolver, lambda reference: home.origin(reference, client.repository, whole=True))


@contextmanager
def open_workspace(cache_dir: str, **options: Any) -> Iterator[Workspace]:
    """``host_on`` for the time of a block; its options and errors."""
    with ExitStack() as stack:
        yield host_on(stack, cache_dir, **options)
