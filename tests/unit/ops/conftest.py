"""What the tests of verbs share: a client that knows no credentials. The stores come from tests/conftest.py."""

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
    """A client without credentials that gives a silent registry ten seconds."""
    log = logging.getLogger("kitfs.test")
    client = RegistryClient(ClientOptions(read_timeout=10.0), Credentials(()), counters=Counters(), log=log)
    yield client
    client.close()
