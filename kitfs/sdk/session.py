"""Open a kit in one process, and close it.

A ``Session`` contains the store, the connections, the layers and the tree of a kit that is open in one process. It is
made from a ``Recipe``, which contains the reference, the options, and the digest that the reference named. A forked
child does not use the sessions of its parent. It makes its own sessions from the same recipes, and so does a process
that unpickles a kit.

A session is closed by its owner. If the owner is garbage collected, a thread of this module closes the session. At
exit, all open sessions are closed before the interpreter stops the threads. A finalizer does not close a session,
because finalizers run on any thread, even on a thread for which ``close`` would wait. Threading: any thread may use a
session.
"""

from __future__ import annotations

import atexit
import logging
import queue
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from kitfs import forks
from kitfs.config import Settings
from kitfs.escaping import LogFilter
from kitfs.kit.kit import Kit
from kitfs.kit.options import WorkspaceOptions
from kitfs.kit.tensors import KitTensors
from kitfs.kit.tree import Tree, tree_of
from kitfs.kit.workspace import Workspace
from kitfs.metrics import Counters
from kitfs.modelkit.filters import Filter
from kitfs.oci.names import Digest, Reference, parse_any
from kitfs.store.store import Store

logging.getLogger("kitfs").addFilter(LogFilter())  # logging prints warnings to stderr if a program sets no handlers
USERINFO: Final = re.compile(r"//[^/@]*@")  # the user name and password of a URL


@dataclass(frozen=True, slots=True)
class Recipe:
    """The data for opening a kit in any process.

    ``options``: the options that the caller passed; another process can use them. ``settings``: all options as they
    apply in this process. ``pins``: the digests that the references of the kit and its parents named when the kit was
    opened.
    """

    reference: str
    only: tuple[str, ...]
    labels: Mapping[str, str]
    options: Mapping[str, Any]
    settings: Settings
    pins: Mapping[str, str] = field(default_factory=dict)

    def public(self) -> tuple[str, tuple[str, ...], dict[str, str], dict[str, Any], dict[str, str]]:
        """Return the fields to pickle: all except ``settings``, without user names and passwords in URLs."""
        return (
            self.reference,
            self.only,
            dict(self.labels),
            {k: without_secrets(v) for k, v in self.options.items()},
            dict(self.pins),
        )


def without_secrets(value: Any) -> Any:
    """Remove user names and passwords from the URLs in an option's value."""
    if isinstance(value, str):
        return USERINFO.sub("//", value)
    if isinstance(value, Mapping):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(item) for item in value]
    return value


class Session:
    """A kit that is open in this process. The constructor raises the errors of ``Resolver.open``."""

    def __init__(self, recipe: Recipe) -> None:
        self.generation: Final = forks.generation
        self.closed = False
        self._closing = threading.Lock()
        named = parse_any(recipe.reference)
        if isinstance(named, Reference):
            named = named.or_latest()
        with ExitStack() as stack:
            workspace = stack.enter_context(workspace_of(recipe.settings))
            self.workspace: Final[Workspace] = workspace
            self.kit: Final[Kit] = workspace.resolver.open(
                named,
                filters=[Filter.parse(text) for text in recipe.only],
                labels=recipe.labels,
                remote=recipe.settings["remote"],
                pins={reference: Digest.parse(digest) for reference, digest in recipe.pins.items()},
            )
            self.tree: Final[Tree] = tree_of(self.kit, counters=workspace.counters, log=workspace.log)
            self.tensors: Final = KitTensors(self.kit, self.tree)
            self._stack = stack.pop_all()
        _keep(self)

    def close(self) -> None:
        """Stop the reads in progress, and close the store and all connections.

        If another thread is closing the session, waits for that thread. A second call does nothing.
        """
        if self.generation != forks.generation:
            return  # the session of the parent process
        self.closed = True
        with self._closing:
            self.workspace.store.stop()
            self._stack.close()
            _open.discard(self)


class Held:
    """A holder of a Kit's session. It outlives the Kit, so the session can be closed when the Kit is gone."""

    __slots__ = ("session",)

    def __init__(self) -> None:
        self.session: Session | None = None


def workspace_of(settings: Settings) -> Workspace:
    """Open the store and the registries of ``settings`` for the duration of a block. Raises StoreError, UsageError."""
    return Workspace.open(WorkspaceOptions.of(settings))


@contextmanager
def store_of(settings: Settings) -> Iterator[Store]:
    """Open only the store of ``settings`` for the duration of a block. Raises StoreError."""
    store = Store.open(settings["cache-dir"], counters=Counters(), log=logging.getLogger("kitfs"))
    with closing(store):
        yield store


def pinned(recipe: Recipe, kit: Kit) -> Recipe:
    """Return the recipe with the digests of an opened kit. The result opens the same kit even after a tag has moved."""
    return replace(recipe, pins={reference: str(digest) for reference, digest in kit.pins.items()})


_open: set[Session] = set()
_parents: list[set[Session]] = []  # sessions of the processes that this process was forked from; never finalized
_unused: queue.SimpleQueue[Session] = queue.SimpleQueue()
_closer: threading.Thread | None = None
_starting: Final = forks.Lock()
exiting = False


def _keep(session: Session) -> None:
    """Register a session until it is closed, and start the thread that closes unused sessions."""
    global _closer  # noqa: PLW0603 - each process has one such thread
    _open.add(session)
    with _starting:
        if _closer is None and not exiting:
            _closer = threading.Thread(target=_close_unused, args=(_unused,), name="kitfs-close", daemon=True)
            _closer.start()
            _close_with_worker()


def _close_with_worker() -> None:
    """Close all sessions at the end of a multiprocessing worker. A worker runs finalizers but no atexit functions."""
    process, util = sys.modules.get("multiprocessing.process"), sys.modules.get("multiprocessing.util")
    if process is not None and util is not None and process.parent_process() is not None:
        util.Finalize(None, _close_all, exitpriority=0)


def _close_unused(unused: queue.SimpleQueue[Session]) -> None:
    while True:
        session = unused.get()
        try:
            session.close()
        except Exception:
            logging.getLogger("kitfs").exception("cannot close a kit that was garbage collected")
        del session


def let_go(held: Held) -> None:
    """Queue a session for closing because its Kit was garbage collected.

    A finalizer may call this function: it acquires no lock and closes nothing itself.
    """
    session = held.session
    if session is not None and session.generation == forks.generation:
        _unused.put(session)


@atexit.register
def _close_all() -> None:
    """Close every open session before the interpreter stops the threads that closing waits for."""
    global exiting  # noqa: PLW0603
    exiting = True
    for session in list(_open):
        try:
            session.close()
        except Exception:
            logging.getLogger("kitfs").exception("cannot close a kit at the end of the program")


class _Hook:
    def after_fork_in_child(self) -> None:
        """Set the parent's sessions aside, because a forked child must not use or close them."""
        global _open, _unused, _closer
        _parents.append(_open)
        _open, _unused, _closer = set(), queue.SimpleQueue(), None


_hook: Final = _Hook()
forks.watch_child(_hook)
