"""A registry over a store under tmp_path."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from kitfs.metrics import Counters
from kitfs.server.registry import Registry
from kitfs.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(
        str(tmp_path / "store"), counters=Counters(), log=logging.getLogger("kitfs.test"), free_share=0.0
    )
    yield store
    store.close()


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(store)
