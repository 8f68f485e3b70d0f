"""Stores for tests: in a temporary directory, with enough room, and closed at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kitfs.metrics import Counters
from kitfs.store.room import Room
from kitfs.store.store import Store

Opener = Callable[..., Store]


@contextlib.contextmanager
def opener(directory: Path) -> Iterator[Opener]:
    """Provide a function that opens another Store on ``directory`` at each call. Each Store has its own counters.

    The function passes its keyword arguments to ``Store.open``. All stores are closed when the block ends.
    """
    with contextlib.ExitStack() as stack:

        def open_one(**options: Any) -> Store:
            log = logging.getLogger("kitfs.test")
            options = {"free_share": 0.0, "counters": Counters(), "log": log, **options}
            store = Store.open(str(directory), **options)
            stack.callback(store.close)
            return store

        yield open_one


@contextlib.contextmanager
def unverified(store: Store) -> Iterator[None]:
    """Block the thread on which a store verifies blobs, for the duration of a ``with`` block.

    Otherwise, a blob may be verified before a read of its last byte returns.
    """
    gate = threading.Event()
    store.prove(gate.wait)
    try:
        yield
    finally:
        gate.set()


def room_of(store: Store, **collaborators: Any) -> Room:
    """Return a Room without limits for a store. The given functions list its blobs or measure its disk."""
    return Room(
        store.root,
        store.pins,
        size_limit=None,
        free_share=0.0,
        counters=store.counters,
        log=store.log,
        later=store.later,
        **collaborators,
    )


def rot(store: str | os.PathLike[str], digest: str, *, form: str = "blobs", at: int = 0) -> None:
    """Change bytes of a blob in a store, as a failing disk does."""
    algorithm, _, name = digest.partition(":")
    with Path(store, form, algorithm, name[:2], name, "rest").open("r+b") as f:
        f.seek(at)
        before = f.read(3)
        f.seek(at)
        f.write(bytes(byte ^ 0xFF for byte in before))
