"""Hints that can be rebuilt: tags as last seen, upload sessions. They are kept by diskcache over SQLite as JSON values,
never as pickles.

Every failure counts as a miss and is logged once: a catalog may be damaged, locked or gone, and no read fails because
of that. A damaged catalog is replaced by an empty one. The catalog is never used on the warm read path.

Threading: every method from any thread. One thread of the catalog's own uses SQLite, because only the thread that
opened a connection may close it, and no connection may be open across a fork: SQLite in the child would believe in
locks that the parent has (https://www.sqlite.org/howtocorrupt.html, section 2.6). So the connection is closed before a
fork and opened again at the next use.
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
# diskcache's file, and the files that SQLite puts beside it with the same mode
DATABASE: Final = ("cache.db", "cache.db-wal", "cache.db-shm")
DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
MAX_VALUE: Final = 1 << 30  # bytes of a value; SQLite takes a little less

Reply = queue.SimpleQueue[tuple[Any, Exception | None]]


class Worker:
    """A thread that runs the tasks it is given, one after the other."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[Callable[[], Any], Reply] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="kitfs-catalog", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            task, reply = asked
            try:
                reply.put((task(), None))
            except Exception as e:  # noqa: BLE001 - raised again by ``ask``
                reply.put((None, e))
            del asked, task, reply

    def ask(self, task: Callable[[], Any]) -> Any:
        """Run a task on the thread; returns what it returns and raises what it raises."""
        if sys.is_finalizing():
            raise RuntimeError("the interpreter ends")  # and has stopped the thread
        reply: Reply = queue.SimpleQueue()
        self._asked.put((task, reply))
        value, error = reply.get()
        if error is not None:
            raise error
        return value

    def end(self) -> None:
        """End the thread when it has run every task."""
        self._asked.put(None)


class Catalog:
    """A persistent mapping of (kind, name) to JSON values in ``directory``, opened at first use. ``trash`` gives a new
    path to move a damaged catalog to.
    """

    def __init__(self, directory: str, log: logging.Logger, *, trash: Callable[[], str]) -> None:
        self._directory = directory
        self._trash = trash
        self._log = log
        self._lock = threading.RLock()  # one task at a time; held over a fork
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
            except Exception as e:  # noqa: BLE001 - a hint must not keep a program from forking
                self._log.warning("the catalog in %s cannot be closed: %s", self._directory, e)

    def after_fork_in_parent(self) -> None:
        """Let threads use the catalog again."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Begin afresh: the thread does not exist in the child."""
        self._lock = threading.RLock()
        self._worker = self._cache = None

    def _do(self, what: Callable[[Any], Any]) -> Any:
        """Run a function on the cache, on the only thread that may use it."""
        with self._lock:
            if self._worker is None:
                self._worker = Worker()
            return self._worker.ask(lambda: what(self._open()))

    def _open(self) -> Any:
        if self._cache is None:
            import diskcache

            _make_private(self._directory)
            # No mmap: a mapped database that is truncated, or that the disk cannot read, kills the process (SIGBUS).
            # Every value in the database: diskcache would make other files with the mode that the umask gives.
            options = {
                "eviction_policy": "none",
                "statistics": 0,
                "sqlite_mmap_size": 0,
                "disk_min_file_size": MAX_VALUE,
            }
            self._cache = diskcache.Cache(self._directory, disk=diskcache.JSONDisk, timeout=5, **options)
        return self._cache

    def get(self, key: Key) -> Any:
        """Return a value; None when there is none or it cannot be read."""
        try:
            return self._do(lambda cache: cache.get(":".join(key), None, retry=False))
        except Exception as e:  # noqa: BLE001 - sqlite, zlib, json, OS: whatever breaks a hint, the hint is a miss
            self._miss(e)
            return None

    def set(self, key: Key, value: Any) -> None:
        """Store a JSON value, if the catalog can be written."""
        try:
            self._do(lambda cache: cache.set(":".join(key), value, retry=False))
        except Exception as e:  # noqa: BLE001 - as in get
            self._miss(e)

    def delete(self, key: Key) -> None:
        """Remove a value."""
        try:
            self._do(lambda cache: cache.delete(":".join(key), retry=False))
        except Exception as e:  # noqa: BLE001 - as in get
            self._miss(e)

    def _miss(self, e: Exception) -> None:
        if (
            isinstance(e, sqlite3.DatabaseError)
            and getattr(e, "sqlite_errorcode", 0) & 0xFF in DAMAGED
            and self._replace()
        ):
            self._log.warning(
                "the catalog in %s was damaged and has been replaced by an empty one: %s", self._directory, e
            )
            return
        if not self._broken:
            self._broken = True
            self._log.warning(
                "the catalog in %s cannot be used; continuing without it: %s: %s", self._directory, type(e).__name__, e
            )

    def _replace(self) -> bool:
        """Replace a damaged catalog, once. Processes that have it open keep using the old file until they detect the
        damage themselves.
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
    """Make the directory and the database with private modes, and tighten those that older versions left open to other
    users.

    SQLite would make the files with the mode that the umask gives. No file of an existing database may be opened here:
    closing it would release the locks that SQLite has on it in this process (fcntl(2)). So an empty file is made under
    another name and linked. Raises OSError; Unsafe for a database that is a link or another user's.
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
