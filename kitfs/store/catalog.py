"""Store hints that can be rebuilt, such as the last known digests of tags, and upload sessions.

The hints are JSON values, never pickles, in a diskcache over SQLite. If the catalog is damaged, locked or missing, a
hint is treated as missing and the failure is logged once, but no read fails. A damaged catalog is replaced by an empty
catalog. Reads of stored bytes do not use the catalog.

Threading: any thread may call every method. SQLite runs on a thread of its own, because only the thread that opened a
connection may close it. No connection may be open across a fork, because SQLite in the child would rely on locks that
only the parent has (https://www.sqlite.org/howtocorrupt.html, section 2.6). So the connection is closed before a fork,
and opened again at the next use.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from kitfs import forks
from kitfs.ownership import check_directory, make_directory, make_private, open_file

Key = tuple[str, str]
# The file of diskcache, and the files that SQLite makes beside it with the same mode.
DATABASE: Final = ("cache.db", "cache.db-wal", "cache.db-shm")
DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
MAX_VALUE: Final = 1 << 30  # bytes of a value; SQLite accepts a little less

Reply = queue.SimpleQueue[tuple[Any, Exception | None]]


class Worker:
    """A thread that runs tasks one after the other."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], Reply] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="kitfs-catalog", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            task, reply = asked
            try:
                reply.put((task(), None))
            except Exception as e:  # noqa: BLE001 - ``ask`` raises it again
                reply.put((None, e))
            del asked, task, reply

    def ask(self, task: Callable[[], Any]) -> Any:
        """Run a task on the thread, and return its result or raise its error."""
        if sys.is_finalizing():
            raise RuntimeError("the interpreter ends")  # the interpreter has stopped the thread
        reply: Reply = queue.SimpleQueue()
        self._asked.put((task, reply))
        value, error = reply.get()
        if error is not None:
            raise error
        return value

    def end(self) -> None:
        """End the thread after its last task."""
        self._asked.put(None)


class Catalog:
    """A persistent map from (kind, name) to JSON values.

    Its database in ``directory`` is opened at the first use. ``trash`` returns a new path, to which a damaged catalog
    is moved.
    """

    def __init__(self, directory: str, log: logging.Logger, *, trash: Callable[[], str]) -> None:
        self._directory = directory
        self._trash = trash
        self._log = log
        self._lock = threading.RLock()  # allows one task at a time, and is held during a fork
        self._worker: Worker | None = None
        self._cache: Any = None
        self._broken = False
        self._replaced = False
        forks.watch(self)

    def before_fork(self) -> None:
        """Close the connection, and keep other threads from opening one."""
        self._lock.acquire()
        if self._worker is not None and self._cache is not None:
            try:
                self._worker.ask(self._cache.close)
            except Exception as e:  # noqa: BLE001 - a damaged catalog must not prevent a fork
                self._log.warning("the catalog in %s cannot be closed: %s", self._directory, e)

    def after_fork_in_parent(self) -> None:
        """Allow threads to use the catalog again."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Reset the catalog, because its thread does not exist in the child."""
        self._lock = threading.RLock()
        self._worker = self._cache = None

    def _do(self, what: Callable[[Any], Any]) -> Any:
        """Call a function with the cache, on the only thread that may use the cache."""
        with self._lock:
            if self._worker is None:
                self._worker = Worker()
            return self._worker.ask(lambda: what(self._open()))

    def _open(self) -> Any:
        if self._cache is None:
            import diskcache

            _make_private(self._directory)
            # No mmap: a mapped database that is truncated, or that the disk cannot read, kills the process (SIGBUS).
            # Every value is stored in the database: for other files, diskcache would use a mode that depends on umask.
            options = {
                "eviction_policy": "none",
                "statistics": 0,
                "sqlite_mmap_size": 0,
                "disk_min_file_size": MAX_VALUE,
            }
            self._cache = diskcache.Cache(self._directory, disk=diskcache.JSONDisk, timeout=5, **options)
        return self._cache

    def get(self, key: Key) -> Any:
        """Return a value; None if it does not exist or cannot be read."""
        try:
            return self._do(lambda cache: cache.get(":".join(key), None, retry=False))
        except Exception as e:  # noqa: BLE001 - any error of sqlite, zlib, json or the OS counts as a miss
            self._miss(e)
            return None

    def set(self, key: Key, value: Any) -> None:
        """Store a JSON value. Does nothing if the catalog cannot be written."""
        try:
            self._do(lambda cache: cache.set(":".join(key), value, retry=False))
        except Exception as e:  # noqa: BLE001 - as in get
            self._miss(e)

    def delete(self, key: Key) -> None:
        """Remove a value. Does nothing if the catalog cannot be written."""
        try:
            self._do(lambda cache: cache.delete(":".join(key), retry=False))
        except Exception as e:  # noqa: BLE001 - as in get
            self._miss(e)

    def names(self, kind: str) -> list[str]:
        """Return the names of all values of a kind, or an empty list if the catalog cannot be read."""
        try:
            keys = self._do(lambda cache: [str(key) for key in cache.iterkeys()])
        except Exception as e:  # noqa: BLE001 - as in get
            self._miss(e)
            return []
        return [key.removeprefix(f"{kind}:") for key in keys if key.startswith(f"{kind}:")]

    def _miss(self, e: Exception) -> None:
        if (
            isinstance(e, sqlite3.DatabaseError)
            and getattr(e, "sqlite_errorcode", 0) & 0xFF in DAMAGED
            and self._replace()
        ):
            self._log.warning(
                "the catalog in %s was damaged and has been replaced by an empty catalog: %s", self._directory, e
            )
            return
        if not self._broken:
            self._broken = True
            self._log.warning(
                "the catalog in %s cannot be used; continuing without it: %s: %s", self._directory, type(e).__name__, e
            )

    def _replace(self) -> bool:
        """Replace a damaged catalog by an empty catalog, but only once; return whether it was replaced.

        Other processes that have the catalog open use the old files until they detect the damage themselves.
        """
        with self._lock:
            if self._replaced:
                return False
            self._replaced = True
            trash = self._trash()
            try:
                os.rename(self._directory, trash)
            except OSError:
                return False
            if self._worker is not None:
                self._worker.ask(self._forget)
        shutil.rmtree(trash, ignore_errors=True)
        return True

    def _forget(self) -> None:
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def close(self) -> None:
        """Close the connection and end the thread. The next use opens the catalog again."""
        with self._lock:
            if self._worker is None:
                return
            try:
                self._worker.ask(self._forget)
            finally:
                self._worker.end()
                self._worker = self._cache = None


def _make_private(directory: str) -> None:
    """Make the directory and the database with private modes, and correct the modes that older versions have used.

    SQLite would make the files with a mode that depends on the umask. Files of an existing database must not be opened
    here, because closing them would release SQLite's locks in this process (fcntl(2)). So an empty file is made under
    another name and linked. Raises OSError, and Unsafe for a database that is a link or belongs to another user.
    """
    with suppress(FileExistsError):
        make_directory(directory)
    check_directory(directory)
    database = os.path.join(directory, DATABASE[0])
    if not os.path.lexists(database):
        temporary = f"{database}.{os.getpid()}.{threading.get_ident()}~"
        try:
            os.close(open_file(temporary, os.O_WRONLY | os.O_CREAT))
            os.link(temporary, database)
        except FileExistsError:
            pass  # another process was first
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    for name in DATABASE:
        with suppress(FileNotFoundError):
            make_private(os.path.join(directory, name))
