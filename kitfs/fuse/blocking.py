"""A pool of threads answers requests that must wait for the network or for a decoder.

A waiting request must not fail because of a signal: EINTR in a page fault would cause SIGBUS, and Go programs and
profilers get signals all the time. So after an INTERRUPT, the pool only checks whether the task that sent the request
is dying, which is the case if SIGKILL is pending. (If another signal ends a process, the kernel sends SIGKILL to its
threads.) The request of a dying task is answered with EINTR at once, and its later result is dropped. The kernel sends
only one INTERRUPT for a request, even if more signals follow, so the task of an interrupted request is checked every
``WATCH`` seconds until the request ends.

Threading: any thread may call every method. One lock guards the table of requests. A request is removed from the table
before its reply is written, so it is answered only once. ``close`` waits for replies that are being written. A thread
is started if a request finds no idle thread. The threads are daemons, because a read may never end.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

THREADS: Final = 64
WATCH: Final = 0.1  # seconds between two checks of the task of an interrupted request
_EARLY: Final = 4096  # most INTERRUPTs that are remembered because their request is not parked yet
_SIGKILL_BIT: Final = 1 << 8

Reply = tuple[int, bytes | memoryview]  # (positive errno or 0, payload)


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in the pool.

    ``pid`` is the id of the requesting thread. ``reply`` writes the reply to the descriptor of the request.
    """

    unique: int
    pid: int
    answer: Callable[[], Reply]
    reply: Callable[[Reply], None]
    interrupted: bool = False


def dying(pid: int) -> bool:
    """Return whether a thread is being killed or has ended.

    Returns False if ``pid`` is 0, because the state of a thread in another pid namespace is unknown.
    """
    if pid <= 0:
        return False
    try:
        with open(f"/proc/{pid}/status", "rb") as f:
            lines = f.read().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False
    for line in lines:
        name, _, value = line.partition(b":")
        if name == b"State" and value.split()[0] in (b"Z", b"X"):
            return True
        if name in (b"SigPnd", b"ShdPnd") and int(value, 16) & _SIGKILL_BIT:
            return True
    return False


class BlockingPool:
    """A pool of at most ``threads`` threads that answers requests. ``eintr`` is the reply for a killed task."""

    def __init__(self, *, eintr: Reply, threads: int = THREADS, is_dying: Callable[[int], bool] = dying) -> None:
        self._limit = threads
        self._is_dying = is_dying
        self._eintr = eintr
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._interruption = threading.Condition(self._lock)
        self._replied = threading.Condition(self._lock)
        self._backlog: deque[Waiting] = deque()
        self._waiting: dict[int, Waiting] = {}
        self._early: OrderedDict[int, None] = OrderedDict()
        self._threads = 0
        self._idle = 0
        self._replying = 0
        self._watcher: threading.Thread | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<BlockingPool {len(self._waiting)} waiting, {self._threads} threads>"

    def park(self, request: Waiting) -> None:
        """Add a request that is answered later, by ``finish`` or by a thread after ``resume``.

        Does nothing after ``close``.
        """
        with self._lock:
            if self._closed:
                return
            self._waiting[request.unique] = request
            interrupted = request.unique in self._early
            self._early.pop(request.unique, None)
        if interrupted:
            self.interrupt(request.unique)

    def resume(self, request: Waiting) -> None:
        """Queue a parked request for a thread, unless its task was killed."""
        with self._lock:
            if self._waiting.get(request.unique) is not request:
                return
            self._backlog.append(request)
            if len(self._backlog) > self._idle and self._threads < self._limit:
                self._threads += 1
                threading.Thread(target=self._run, name=f"kitfs-blocking-{self._threads}", daemon=True).start()
            else:
                self._work.notify()

    def interrupt(self, unique: int) -> None:
        """Handle an INTERRUPT for a request. Possibly the request is not parked yet, or is answered already."""
        with self._lock:
            request = self._waiting.get(unique)
            if request is None:
                self._early[unique] = None
                while len(self._early) > _EARLY:
                    self._early.popitem(last=False)
                return
            request.interrupted = True
        if self._is_dying(request.pid):
            self.finish(request, self._eintr)
            return
        with self._lock:
            if self._watcher is None and not self._closed:
                self._watcher = threading.Thread(target=self._watch, name="kitfs-watch", daemon=True)
                self._watcher.start()
            self._interruption.notify()

    def close(self) -> None:
        """Drop all requests, end the idle threads, and wait until no reply is being written any more."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            self._backlog.clear()
            self._early.clear()
            self._work.notify_all()
            self._interruption.notify()
            watcher = self._watcher
            while self._replying:
                self._replied.wait()
        if watcher is not None:
            watcher.join()

    def finish(self, request: Waiting, reply: Reply) -> None:
        """Write the reply to a request, unless the request is answered already."""
        with self._lock:
            if self._waiting.get(request.unique) is not request:
                return
            del self._waiting[request.unique]
            self._replying += 1
        try:
            request.reply(reply)
        finally:
            with self._lock:
                self._replying -= 1
                if self._closed:
                    self._replied.notify_all()

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._backlog:
                    if self._closed:
                        return
                    self._idle += 1
                    self._work.wait()
                    self._idle -= 1
                request = self._backlog.popleft()
                if self._waiting.get(request.unique) is not request:
                    continue  # its task was killed while the request was in the queue
            self.finish(request, request.answer())

    def _watch(self) -> None:
        while True:
            with self._lock:
                while not self._closed and not any(r.interrupted for r in self._waiting.values()):
                    self._interruption.wait()
                if not self._closed:
                    self._interruption.wait(WATCH)
                if self._closed:
                    return
                interrupted = [r for r in self._waiting.values() if r.interrupted]
            for request in interrupted:
                if self._is_dying(request.pid):
                    self.finish(request, self._eintr)
