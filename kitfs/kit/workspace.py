"""Open the workspace of a verb: the store, the client of registries, and the resolver that opens kits with both.

Only ``Workspace.open`` combines these three. The client is made when a registry is first asked, because the HTTP
library takes a tenth of a second to import, and a kit that is in the store does not need a client. Threading: any
thread may use a workspace until ``close`` is called.
"""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from kitfs.buffers import Buffers
from kitfs.content import Origin
from kitfs.kit.options import WorkspaceOptions
from kitfs.kit.resolver import Resolver
from kitfs.layers.growth import Expansion
from kitfs.metrics import Counters
from kitfs.oci.names import Digest, LayoutReference, Reference
from kitfs.registry.kit_storage import KitStorage, LocalFirstRepository
from kitfs.registry.layout import Layout, open_layout
from kitfs.registry.options import ClientOptions
from kitfs.store.store import Store

if TYPE_CHECKING:
    from kitfs.kit.admission import Admission
    from kitfs.registry.client import RegistryClient
    from kitfs.registry.repository import Repository
    from kitfs.trust.policy import Policy

LOG: Final = logging.getLogger("kitfs")


class Workspace:
    """An open store, a client of registries, and a ``Resolver`` that opens kits with both.

    Leaving a ``with`` block closes the store and the client.
    """

    def __init__(self, options: WorkspaceOptions, *, counters: Counters, log: logging.Logger) -> None:
        self.options: Final = options
        self.counters: Final = counters
        self.log: Final = log
        self._layouts: dict[str, Layout] = {}
        self._buffers: Final = Buffers(options.client.memory_budget)
        with ExitStack() as stack:
            self.store: Final = Store.open(
                options.cache_dir,
                size_limit=options.cache_size,
                patience=options.client.read_timeout,
                counters=counters,
                log=log,
                buffers=self._buffers,
            )
            stack.callback(self.store.close)
            self._client: RegistryClient | None = None
            self._client_lock: Final = threading.Lock()
            stack.callback(self._close_client)
            self._admission: Final = self._open_admission()
            self._kit_storage: Final = KitStorage(options.kit_home, self.store.catalog, log)
            stack.callback(self._kit_storage.close)
            self.resolver: Final = Resolver(
                self.store,
                self._origin_of,
                log=log,
                max_entries=options.max_entries,
                expansion=Expansion(options.max_expansion),
                fallback=self._kit_storage.fallback,
                max_tag_age=options.client.max_tag_age,
                admit=self.admit,
                strict=options.strict,
            )
            self._stack = stack.pop_all()

    @property
    def client(self) -> RegistryClient:
        """Return the client of registries. Raises StoreError or UsageError if the client cannot be made."""
        with self._client_lock:
            if self._client is None:
                options = self.options
                self._client = open_client(
                    options.client,
                    kit_home=options.kit_home,
                    counters=self.counters,
                    log=self.log,
                    buffers=self._buffers,
                )
            return self._client

    def paused_hosts(self) -> list[dict[str, Any]]:
        """Return the hosts that are not asked at the moment, because they failed repeatedly (``registry.breaker``)."""
        with self._client_lock:
            return [] if self._client is None else self._client.http.breakers.report()

    def _close_client(self) -> None:
        with self._client_lock:
            if self._client is not None:
                self._client.close()

    @classmethod
    def open(
        cls, options: WorkspaceOptions, *, counters: Counters | None = None, log: logging.Logger = LOG
    ) -> Workspace:
        """Open the store. No registry is asked yet. Raises StoreError if the store cannot be used."""
        return cls(options, counters=Counters() if counters is None else counters, log=log)

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the layouts, the client and the store. A second call does nothing."""
        self._stack.close()

    def pull_from(self, reference: Reference) -> LocalFirstRepository:
        """Return the repository to pull kits from. Blobs that kit has pulled already are read from kit's home."""
        return self._kit_storage.origin(reference, self.client.repository, whole=True)

    def push_to(self, reference: Reference) -> Repository:
        """Return the repository that kits are pushed to: the registry itself, because mirrors do not accept pushes."""
        return self.client.repository(reference).without_mirrors()

    def asked(self, reference: Reference | LayoutReference) -> Repository | Layout:
        """Return the repository of a reference with its mirrors, or the layout of the reference.

        The store and kit's home are not used.
        """
        return self.client.repository(reference) if isinstance(reference, Reference) else self._layout(reference)

    def asked_apart(self, reference: Reference | LayoutReference) -> tuple[Repository | Layout, ...]:
        """Return the places that ``asked`` combines: each mirror and the registry, in order.

        Signatures must be looked up in all of these places, because a mirror may lack signatures that the registry has.
        """
        found = self.asked(reference)
        return (found,) if isinstance(found, Layout) else found.apart()

    def admit(self, reference: Reference | LayoutReference, digest: Digest) -> None:
        """Raise SignatureError unless the kit ``digest`` of a reference may be used.

        Without ``verify_key`` and ``policy``, every kit may be used.
        """
        if self._admission is not None:
            self._admission.check(reference, digest)

    def _open_admission(self) -> Admission | None:
        """Read the key and the policy. Raises UsageError."""
        if self.options.verify_key is None and self.options.policy is None:
            return None
        from kitfs.kit.admission import Admission
        from kitfs.trust.policy_file import read_key_policy, read_policy

        policies: list[Policy] = []
        if self.options.verify_key is not None:
            policies.append(read_key_policy(self.options.verify_key))
        if self.options.policy is not None:
            policies.append(read_policy(self.options.policy))
        return Admission(policies, self.asked_apart, self.store.catalog, log=self.log)

    def _origin_of(self, reference: Reference | LayoutReference) -> Origin:
        if isinstance(reference, Reference):
            return self._kit_storage.origin(reference, self.client.repository)
        return self._layout(reference)

    def _layout(self, reference: LayoutReference) -> Layout:
        if reference.path not in self._layouts:
            layout = open_layout(reference)
            self._stack.callback(layout.close)
            self._layouts[reference.path] = layout
        return self._layouts[reference.path]


def open_client(
    options: ClientOptions,
    *,
    kit_home: str | None,
    counters: Counters | None = None,
    log: logging.Logger = LOG,
    buffers: Buffers | None = None,
) -> RegistryClient:
    """Return a client of registries, for work that needs no store. The caller closes the client.

    The client uses the credentials in ``kit_home``, or no credentials if ``kit_home`` is None.
    """
    from kitfs.registry.client import RegistryClient
    from kitfs.registry.credentials import Credentials

    credentials = Credentials(()) if kit_home is None else Credentials.load(kit_home)
    counters = Counters() if counters is None else counters
    return RegistryClient(options, credentials, counters=counters, log=log, buffers=buffers)
