"""A store under tmp_path, closed at the end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kitfs.metrics import Counters
from kitfs.store.store import Store

Opener = Callable[..., Store]


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Opener]:
    """Opens Stores on one directory, as often as it is called, each with counters of its own."""
    opened: list[Store] = []

    def open_one(**options: int | float | None) -> Store:
        store = Store.open(
            str(tmp_path / "store"), counters=Counters(), log=logging.getLogger("kitfs.test"), free_share=0.0, **options
        )  # type: ignore[arg-type]
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Opener) -> Store:
    return open_store()
