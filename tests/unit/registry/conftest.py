"""Provide a fake registry on a socket, and clients of that registry. The clients are closed at the end of the test."""

from __future__ import annotations

import json
import logging
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kitfs.buffers import Buffers
from kitfs.metrics import Counters
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest, Reference
from kitfs.registry.client import RegistryClient, Repository
from kitfs.registry.credentials import Credentials
from kitfs.registry.options import ClientOptions
from kitfs.registry.retry import RETRIES, RetryPolicy
from tests.fakes.registry import FakeRegistry

TLS = Path(__file__).parent / "tls"  # the tests' own CA and the certificates that it signed for 127.0.0.1 and localhost


def server_context(*, wants_client: bool = False) -> ssl.SSLContext:
    """Return the TLS settings of a server whose certificate is signed by the CA of the tests.

    With ``wants_client``, the server demands a certificate from its clients.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem")
    if wants_client:
        context.load_verify_locations(TLS / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.fixture
def counters() -> Counters:
    """Return the counters that all clients of a test share."""
    return Counters()


@pytest.fixture
def retries() -> RetryPolicy:
    """Return the retry policy of clients. Modules whose clients retry may override this fixture."""
    return RETRIES


@pytest.fixture
def client(counters: Counters, tmp_path: Path, retries: RetryPolicy) -> Iterator[Callable[..., RegistryClient]]:
    """Return a function that makes clients.

    ``auths`` is a section of a docker config, and ``options`` are fields of ClientOptions.
    """
    made: list[RegistryClient] = []

    def make(
        *,
        auths: dict[str, Any] | None = None,
        transport: Any = None,
        buffers: Buffers | None = None,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> RegistryClient:
        path = tmp_path / "credentials.json"
        path.write_text(json.dumps({"auths": auths or {}}))
        options = ClientOptions(**{"read_timeout": 10.0, **options})
        log = logging.getLogger("kitfs.test")
        credentials = Credentials((str(path),))
        made.append(
            RegistryClient(
                options,
                credentials,
                counters=counters,
                log=log,
                transport=transport,
                clock=clock,
                retries=retries,
                buffers=buffers,
            )
        )
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def repository(client: Callable[..., RegistryClient], fake: FakeRegistry) -> Callable[..., Repository]:
    """Return a function that opens ``team/kit`` of the fake registry, with a client that has the given options."""
    return lambda name="team/kit", registry="", **options: client(**options).repository(
        Reference.parse(f"{registry or fake.host}/{name}")
    )


def descriptor(data: bytes, size: int = -1) -> Descriptor:
    """Return the descriptor of a blob. It declares the given size, or the true size if none is given."""
    return Descriptor("application/octet-stream", Digest.of(data), len(data) if size < 0 else size)
