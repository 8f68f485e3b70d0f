"""Hints that can be rebuilt: tags as last seen, layer indexes. diskcache over SQLite, JSON values, never pickle.

Every failure is a miss, said once: a catalog may be damaged, locked or gone, and no read fails for it. One that is damaged is begun
anew. Never on the warm read path.
Threading: diskcache keeps a connection per thread.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import threading
import uuid
from typing import Any, Final

Key = tuple[str, str]
DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class Catalog:
    """A persistent mapping of (kind, name) to JSON values in ``directory``, opened at first use."""

    def __init__(self, directory: str, log: logging.Logger) -> None:
        self._directory = directory
        self._log = log
        self._lock = threading.Lock()
        self._cache: Any = None
        self._broken = False
        self._renewed = False

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
        if isinstance(e, sqlite3.DatabaseError) and getattr(e, "sqlite_errorcode", 0) & 0xFF in DAMAGED and self._begin_anew():
            self._log.warning("the catalog in %s was damaged, and is begun anew: %s", self._directory, e)
            return
        if not self._broken:
            self._broken = True
            self._log.warning("the catalog in %s cannot be used, going on without: %s: %s", self._directory, type(e).__name__, e)

    def _begin_anew(self) -> bool:
        """Put a damaged catalog away, once. Whoever has it open goes on with what he has until he notices too."""
        with self._lock:
            if self._renewed:
                return False
            self._renewed = True
            grave = os.path.join(os.path.dirname(self._directory), "ingest", f"dead-{uuid.uuid4().hex}")
            try:
                os.rename(self._directory, grave)
            except OSError:
                return False
            self._cache = None
        shutil.rmtree(grave, ignore_errors=True)
        return True

    def close(self) -> None:
        """Close this thread's connection; others close with their threads."""
        with self._lock:
            if self._cache is not None:
                self._cache.close()
                self._cache = None
