"""Hints that can be rebuilt: tags as last seen, layer indexes. diskcache over SQLite, JSON values, never pickle.

Every failure is a miss, said once: a catalog may be damaged, locked or gone, and no read fails for it. Never on the warm read path.
Threading: diskcache keeps a connection per thread.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

Key = tuple[str, str]


class Catalog:
    """A persistent mapping of (kind, name) to JSON values in ``directory``, opened at first use."""

    def __init__(self, directory: str, log: logging.Logger) -> None:
        self._directory = directory
        self._log = log
        self._lock = threading.Lock()
        self._cache: Any = None
        self._broken = False

    def _open(self) -> Any:
        with self._lock:
            if self._cache is None:
                import diskcache

                # Nothing mapped: whoever truncates a mapped database, or a disk that cannot read it, kills the process (SIGBUS).
                options = {"eviction_policy": "none", "statistics": 0, "sqlite_mmap_size": 0}
                self._cache = diskcache.Cache(self._directory, disk=diskcache.JSONDisk, timeout=5, **options)
            return self._cache

    def get(self, key: Key) -> Any:
        """The value, None when there is none or it cannot be had."""
        try:
            return self._open().get(":".join(key), None, retry=False)
        except Exception as e:  # noqa: BLE001 - sqlite, zlib, json, OS: whatever breaks a hint, the hint is a miss
            self._miss(e)
            return None

    def set(self, key: Key, value: Any) -> None:
        """Keep a JSON value, if that can be done."""
        try:
            self._open().set(":".join(key), value, retry=False)
        except Exception as e:  # noqa: BLE001 - as in get
            self._miss(e)

    def delete(self, key: Key) -> None:
        """Forget a value."""
        try:
            self._open().delete(":".join(key), retry=False)
        except Exception as e:  # noqa: BLE001 - as in get
            self._miss(e)

    def _miss(self, e: Exception) -> None:
        if not self._broken:
            self._broken = True
            self._log.warning("the catalog in %s cannot be used, going on without: %s: %s", self._directory, type(e).__name__, e)

    def close(self) -> None:
        """Close this thread's connection; others close with their threads."""
        with self._lock:
            if self._cache is not None:
                self._cache.close()
                self._cache = None
