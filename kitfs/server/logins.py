"""Schedule the checks of logins, because bcrypt occupies a core for every password that was not checked before.

Passwords are checked on a few threads with low priority, so that clients that guess passwords do not slow down pulls
and pushes. A login that succeeded once is remembered (``htpasswd``) and is not scheduled. The other logins wait in a
queue. A login has priority if fewer logins with its name from its address have failed recently. If the numbers are
equal, the addresses take turns. So a client that guesses waits behind other clients. Known and unknown names are
treated alike, so that waiting times do not reveal which names exist. Threading: only the event loop's thread may use
this module.
"""

from __future__ import annotations

import asyncio
import functools
import heapq
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from kitfs.server.api_errors import ApiError
from kitfs.server.htpasswd import Htpasswd, Login

PATIENCE: Final = 60.0  # seconds that a login waits for its turn
MAX_FAILURES: Final = 16  # further failures do not change the order
MAX_FAILED: Final = 10_000  # pairs of a name and an address whose failures are remembered
FORGIVEN: Final = 600.0  # seconds for which a failure counts
NICE: Final = 10  # the priority of the threads that check passwords (setpriority(2))


@dataclass(order=True, slots=True)
class _Waiting:
    """A login in the queue. The first three fields determine its position."""

    failures: int
    turn: int
    number: int
    peer: str = field(compare=False)
    login: Login = field(compare=False)
    gone: Callable[[], bool] = field(compare=False)
    right: asyncio.Future[bool] = field(compare=False)


class Logins:
    """The queue of logins of ``users``. ``pool`` looks up remembered logins. ``threads`` defaults to half the cores."""

    def __init__(
        self, users: Htpasswd, pool: Executor, *, threads: int | None = None, patience: float = PATIENCE
    ) -> None:
        self._users = users
        self._pool = pool
        self._patience = patience
        self._free = max(1, (os.cpu_count() or 1) // 2) if threads is None else threads
        self._checkers = ThreadPoolExecutor(self._free, thread_name_prefix="kitfs-logins", initializer=_yield_to_others)
        self._queue: list[_Waiting] = []
        self._turn = 0  # the turn of the login that was checked last; the logins of an address have successive turns
        self._last: dict[str, tuple[int, int]] = {}  # address → its last turn, and how many of its logins wait
        self._failed: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()
        self._number = 0
        self._closed = False

    async def user(self, authorization: str, *, peer: str, gone: Callable[[], bool]) -> str | None:
        """Return the user whose credentials are in an Authorization header, or None for missing or wrong credentials.

        ``peer``: the address of the client. ``gone``: returns whether the client has disconnected; if so, the password
        is not checked. Raises ApiError if too many other logins wait.
        """
        login = self._users.login(authorization)
        if login is None:
            return None
        loop = asyncio.get_running_loop()
        if await loop.run_in_executor(self._pool, self._users.remembered, login):
            return login.user
        if self._closed:
            raise _ending()
        self._number += 1
        last, count = self._last.get(peer, (0, 0))
        turn = max(last, self._turn) + 1
        self._last[peer] = turn, count + 1
        waiting = _Waiting(
            self._failures(peer, login.user), turn, self._number, peer, login, gone, loop.create_future()
        )
        heapq.heappush(self._queue, waiting)
        self._next()
        try:
            async with asyncio.timeout(self._patience):
                right = await waiting.right
        except TimeoutError:
            raise ApiError(
                429,
                "TOOMANYREQUESTS",
                "too many logins are waiting to be checked; try again later",
                headers={"Retry-After": "5"},
            )
        return login.user if right else None

    def close(self) -> None:
        """End the threads. Logins that still wait fail with an error and are not checked."""
        self._closed = True
        for waiting in self._queue:
            if not waiting.right.done():
                waiting.right.set_exception(_ending())
        self._queue.clear()
        self._checkers.shutdown(wait=False, cancel_futures=True)

    def _next(self) -> None:
        """Start the checks of the next logins on free threads."""
        while self._free and self._queue:
            waiting = heapq.heappop(self._queue)
            self._turn = max(self._turn, waiting.turn)
            last, count = self._last.pop(waiting.peer)
            if count > 1:
                self._last[waiting.peer] = last, count - 1
            if waiting.right.done():
                continue
            if waiting.gone():
                waiting.right.set_exception(ConnectionResetError("the client has disconnected"))
                continue
            self._free -= 1
            check = asyncio.get_running_loop().run_in_executor(self._checkers, self._users.check, waiting.login)
            check.add_done_callback(functools.partial(self._checked, waiting))

    def _checked(self, waiting: _Waiting, done: asyncio.Future[bool]) -> None:
        self._free += 1
        key = waiting.peer, waiting.login.user
        if done.cancelled():
            waiting.right.cancel()
        elif (error := done.exception()) is not None:
            if not waiting.right.done():
                waiting.right.set_exception(error)
        else:
            if done.result():
                self._failed.pop(key, None)
            else:
                self._failed[key] = (min(self._failures(*key) + 1, MAX_FAILURES), time.monotonic())
                self._failed.move_to_end(key)
                if len(self._failed) > MAX_FAILED:
                    self._failed.popitem(last=False)
            if not waiting.right.done():
                waiting.right.set_result(done.result())
        self._next()

    def _failures(self, peer: str, user: str) -> int:
        times, last = self._failed.get((peer, user), (0, 0.0))
        return times if time.monotonic() - last < FORGIVEN else 0


def _ending() -> ApiError:
    return ApiError(503, "UNAVAILABLE", "this registry is shutting down; try again", headers={"Retry-After": "5"})


def _yield_to_others() -> None:
    """Lower the priority of this thread. On Linux each thread has its own priority."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
