"""Call hooks around fork(2), and number the forked children.

A forked child copies state that it cannot use: locks that are never released, because the threads that hold them exist
only in the parent; sockets and descriptors that it shares with the parent; and SQLite's record of file locks, although
only the parent holds these locks. ``generation`` is a different number in each forked child, so that the child can
detect such copies. An object that belongs to one process compares the number at the start of an operation, and reopens
its files and connections if the number differs. An object that must act during the fork itself registers with
``watch``.

Threading: the hooks run on the thread that forks. ``guard`` is held during the fork, so in the child, an action under
``guard`` is either complete or not begun. Hold ``guard`` only for short actions that do not wait.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Final, Protocol

generation = 0  # differs in each forked child, unlike a process id, which may be reused
guard: Final = threading.RLock()


class Watched(Protocol):
    """An object whose methods are called at every fork. The methods must not raise."""

    def before_fork(self) -> None: ...

    def after_fork_in_parent(self) -> None: ...

    def after_fork_in_child(self) -> None: ...


class Lock:
    """A lock that is free in a forked child even if a thread of the parent held it.

    It is for objects that are used both before and after a fork.
    """

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        with guard:
            _renewed.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Replace the lock with a free one."""
        self._lock = threading.Lock()


_forking: Any = threading.Lock()  # one fork at a time, since the hooks share the lists below
_prepared: list[Watched] = []
_watched: weakref.WeakSet[Any] = weakref.WeakSet()
_renewed: weakref.WeakSet[Any] = weakref.WeakSet()


def watch(one: Watched) -> None:
    """Call the hooks of ``one`` at every fork. ``one`` is referenced weakly, so it can be garbage collected."""
    with guard:
        _watched.add(one)


def watch_child(one: Any) -> None:
    """Call ``one.after_fork_in_child`` in every forked child. ``one`` is referenced weakly."""
    with guard:
        _renewed.add(one)


def _before() -> None:
    _forking.acquire()
    while True:
        guard.acquire()
        new = [one for one in _watched if one not in _prepared]
        if not new:
            return  # ``guard`` stays locked; the hooks after the fork release it
        guard.release()
        for one in new:
            _prepared.append(one)
            one.before_fork()


def _in_parent() -> None:
    guard.release()
    for one in reversed(_prepared):
        one.after_fork_in_parent()
    _prepared.clear()
    _forking.release()


def _in_child() -> None:
    global generation, _forking  # noqa: PLW0603 - the only state, and the purpose, of this module
    generation += 1
    guard.release()  # the thread that forked holds ``guard``, and is the only thread of the child
    for one in list(_renewed):
        one.after_fork_in_child()
    for one in reversed(_prepared):
        one.after_fork_in_child()
    _prepared.clear()
    _forking = threading.Lock()


os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
