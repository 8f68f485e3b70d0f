"""Provide a registry whose store is in tmp_path."""

from __future__ import annotations

import pytest

from kitfs.server.registry import Registry
from kitfs.store.store import Store


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(store)
