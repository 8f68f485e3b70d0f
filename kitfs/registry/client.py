"""Access the repositories of OCI registries (distribution-spec v1.1) with shared connections and tokens.

The client caches tokens, and the facts about hosts that ``HttpClient`` and ``Lessons`` have learned. Threading: any
thread may call every method.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import httpx

from kitfs.buffers import Buffers
from kitfs.errors import NotFound
from kitfs.metrics import Counters
from kitfs.oci.names import LOCAL, Reference, api_host
from kitfs.registry.auth import RegistryAuth, Tokens
from kitfs.registry.credentials import Credential, Credentials, GivenCredential
from kitfs.registry.http import Endpoint, HttpClient, url_from
from kitfs.registry.http_errors import host_of
from kitfs.registry.options import ClientOptions
from kitfs.registry.repository import Repository
from kitfs.registry.retry import CONNECT_BUDGET, RETRIES, RetryPolicy
from kitfs.registry.upload_methods import Lessons


class RegistryClient:
    """A client that makes the Repository of a reference.

    ``transport``: replaces the connections to registries. ``clock``: returns the seconds by which tokens expire.
    ``retries``: how failed requests are retried. ``buffers``: the memory for bodies, if several clients share it.
    """

    def __init__(
        self,
        options: ClientOptions,
        credentials: Credentials,
        *,
        counters: Counters,
        log: logging.Logger,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        retries: RetryPolicy = RETRIES,
        buffers: Buffers | None = None,
    ) -> None:
        self.options: Final = options
        self.counters: Final = counters
        self.log: Final = log
        self.http: Final = HttpClient(
            options, counters=counters, log=log, transport=transport, retries=retries, buffers=buffers
        )
        self.tokens: Final = Tokens(clock)
        self.lessons: Final = Lessons()
        self._credentials = credentials

    def close(self) -> None:
        """Close every connection."""
        self.http.close()

    def repository(self, reference: Reference) -> Repository:
        """Return the repository of a reference.

        A reference in a kit (``Reference.held_by``) may lead to addresses of this machine or this link only if the
        kit's registry has such an address too. Mirrors are not restricted, because the user chose them. Raises NotFound
        for a reference without a registry, and UsageError for a registry that cannot be part of a URL.
        """
        if reference.registry == LOCAL:
            raise NotFound(
                f"{reference.display} is not in the store and does not name a registry (write registry/repository:tag)"
            )
        name, registry = reference.repository, reference.registry
        mirrors = self.options.mirrors.get(registry, ())
        patience = CONNECT_BUDGET / (len(mirrors) + 1)
        made = (self._endpoint(url.rstrip("/"), name, patience=patience) for url in mirrors)
        endpoints = [replace(mirror, restart=patience, resolves=self.options.mirror_tags) for mirror in made]
        url = self.http.url_of(api_host(registry))
        endpoint = self._endpoint(url, name, patience=patience, host=api_host(registry))
        if reference.named_by not in ("", registry):
            named_by = self.http.url_of(api_host(reference.named_by))
            endpoint = replace(endpoint, led_from=self.http.address_scope(named_by))
        return Repository(self.http, name, (*endpoints, endpoint), self.lessons)

    def _endpoint(self, url: str, name: str, *, patience: float, host: str = "") -> Endpoint:
        """Return the endpoint of a repository at a URL.

        ``host``: the host as written in the reference, with its port even if the scheme implies it. Credential files
        write the host in the same way.
        """
        parsed = url_from(url)
        host = host or host_of(parsed)
        credentials = self._credentials
        if parsed.userinfo:
            credentials = GivenCredential(Credential(parsed.username, parsed.password))
            url = str(parsed.copy_with(userinfo=b"")).rstrip("/")  # messages must not show the password
        auth = RegistryAuth(
            host, f"repository:{name}:pull", credentials, self.tokens, plain_http=bool(self.options.plain_http)
        )
        return Endpoint(f"{url}/v2/{name}", host, auth, patience)
