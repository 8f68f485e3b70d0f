"""What a process holds while a kit is open in it, and how that ends.

A ``Session`` is one process's own store, connections, layers and tree of one kit, made by a ``Recipe``: what was
asked for, and which digest it meant. A forked child lets its parent's sessions be and makes its own from the same
recipe; so does whoever unpickles one.

Every session is closed: by its owner, by a thread of this module when its owner was garbage (a finalizer may run on
any thread, also on one that closing would wait for), or when the interpreter exits, while its threads still run.
Threading: any thread.
"""

from __future__ import annotations

import atexit
import logging
import queue
import re
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Final

from kitfs import forks
from kitfs.config import Settings
from kitfs.escaping import LogFilter
from kitfs.kit.kit import Kit
from kitfs.kit.options import WorkspaceOptions
from kitfs.kit.tree import Tree, tree_of
from kitfs.kit.workspace import Workspace
from kitfs.modelkit.filters import Filter
from kitfs.oci.names import Digest, Reference, parse_any

logging.getLogger("kitfs").addFilter(LogFilter())  # a program without handlers has its warnings on stderr
USERINFO: Final = re.compile(r"//[^/@]*@")  # of a URL: name and password


@dataclass(frozen=True, slots=True)
class Recipe:
    """What was asked for. ``settings`` is all of it as this process settled it, ``options`` what the caller gave, for
    another process.

    ``pins`` are the digests that references meant when the kit was opened: its own and its parents'.
    """

    reference: str
    only: tuple[str, ...]
    labels: Mapping[str, str]
    options: Mapping[str, Any]
    settings: Settings
    pins: Mapping[str, str] = field(default_factory=dict)

    def public(self) -> tuple[str, tuple[str, ...], dict[str, str], dict[str, Any], dict[str, str]]:
        """What may be pickled: everything but the settings of this process, and no name or password of a URL."""
        return (
            self.reference,
            self.only,
            dict(self.labels),
            {k: without_secrets(v) for k, v in self.options.items()},
            dict(self.pins),
        )


def without_secrets(value: Any) -> Any:
    """An option's value without the names and passwords that its URLs may have."""
    if isinstance(value, str):
        return USERINFO.sub("//", value)
    if isinstance(value, dict):
        return {key: without_secrets(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(one) for one in value]
    return value


class Session:
    """An opened kit in this process. Raises what ``Resolver.open`` raises."""

    def __init__(self, recipe: Recipe) -> None:
        self.generation: Final = forks.generation
        self.closed = False
        self._closing = threading.Lock()
        named = parse_any(recipe.reference)
        if isinstance(named, Reference):
            named = named.or_latest()
        with ExitStack() as stack:
            workspace = stack.enter_context(Workspace.open(WorkspaceOptions.of(recipe.settings)))
            self.kit: Final[Kit] = workspace.resolver.open(
                named,
                filters=[Filter.parse(text) for text in recipe.only],
                labels=recipe.labels,
                remote=recipe.settings["remote"],
                pins={reference: Digest.parse(digest) for reference, digest in recipe.pins.items()},
            )
            self.tree: Final[Tree] = tree_of(self.kit, counters=workspace.counters, log=workspace.log)
            self._store = workspace.store
            self._stack = stack.pop_all()
        _keep(self)

    def close(self) -> None:
        """End what is under way and let go of everything. Waits when another thread closes it; nothing happens the
        second time.
        """
        if self.generation != forks.generation:
            return  # the parent's
        self.closed = True
        with self._closing:
            self._store.stop()
            self._stack.close()
            _open.discard(self)


class Held:
    """What a Kit holds: its session, if there is one. Outlives the Kit, so that its session can be closed then."""

    __slots__ = ("session",)

    def __init__(self) -> None:
        self.session: Session | None = None


def pinned(recipe: Recipe, kit: Kit) -> Recipe:
    """The recipe of an opened kit: whoever follows it opens the same bytes, wherever tags have moved to."""
    return replace(recipe, pins={reference: str(digest) for reference, digest in kit.pins.items()})


_open: set[Session] = set()
_parents: list[set[Session]] = []  # of the processes that this one was forked from: neither used nor finalized
_unused: queue.SimpleQueue[Session] = queue.SimpleQueue()
_closer: threading.Thread | None = None
_starting: Final = forks.Lock()
exiting = False


def _keep(session: Session) -> None:
    """Know of a session until it is closed, and be ready to close it."""
    global _closer  # noqa: PLW0603 - one thread for a process
    _open.add(session)
    with _starting:
        if _closer is None and not exiting:
            _closer = threading.Thread(target=_close_unused, args=(_unused,), name="kitfs-close", daemon=True)
            _closer.start()
            _close_with_worker()


def _close_with_worker() -> None:
    """A worker of multiprocessing ends without atexit, but with finalizers of its own."""
    process, util = sys.modules.get("multiprocessing.process"), sys.modules.get("multiprocessing.util")
    if process is not None and util is not None and process.parent_process() is not None:
        util.Finalize(None, _close_all, exitpriority=0)


def _close_unused(unused: queue.SimpleQueue[Session]) -> None:
    while True:
        session = unused.get()
        try:
            session.close()
        except Exception:
            logging.getLogger("kitfs").exception("a kit that nobody uses any more could not be closed")
        del session


def let_go(held: Held) -> None:
    """Nobody uses what is held any more. May be called by any finalizer: it takes no lock and closes nothing itself."""
    session = held.session
    if session is not None and session.generation == forks.generation:
        _unused.put(session)


@atexit.register
def _close_all() -> None:
    """Close what is still open, while the threads that closing waits for still run."""
    global exiting  # noqa: PLW0603
    exiting = True
    for session in list(_open):
        try:
            session.close()
        except Exception:
            logging.getLogger("kitfs").exception("a kit could not be closed")


class _Hook:
    def after_fork_in_child(self) -> None:
        """Leave what the parent has open alone."""
        global _open, _unused, _closer
        _parents.append(_open)
        _open, _unused, _closer = set(), queue.SimpleQueue(), None


_hook: Final = _Hook()
forks.watch_child(_hook)
