"""Fixtures for the tests of kitfs.ops. Fixtures for stores are in tests/conftest.py."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from kitfs.metrics import Counters
from kitfs.registry.client import RegistryClient
from kitfs.registry.credentials import Credentials
from kitfs.registry.options import ClientOptions


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    """Return a client without credentials that waits at most ten seconds for a response."""
    log = logging.getLogger("kitfs.test")
    client = RegistryClient(ClientOptions(read_timeout=10.0), Credentials(()), counters=Counters(), log=log)
    yield client
    client.close()
