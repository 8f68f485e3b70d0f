"""Accept the connections of the server, and close idle connections when file descriptors run out.

When asyncio reaches the limit of descriptors, it logs a traceback for each waiting connection, hundreds per second.
Therefore no more than ``most`` connections are open, which leaves descriptors for the files that requests open. When
``most`` connections are open, the connection that has been idle longest is closed to accept a new connection. If no
connection has been idle for ``SPARED`` seconds, new connections wait in the kernel's queue. When the whole system has
no descriptors left, an idle connection is closed, if there is one, and new connections wait. At most one warning is
logged per ``SAID_EVERY`` seconds.

Threading: only the event loop's thread may use this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import resource
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from aiohttp import web

from kitfs.server.uploads import MAX_OPEN

SPARED: Final = 1.0  # seconds for which an idle connection is not closed
PAUSE: Final = 0.1  # seconds until connections are accepted again
BATCH: Final = 16  # connections that are accepted before other callbacks of the loop run
SAID_EVERY: Final = 60.0
RESERVED: Final = 64  # descriptors for the server itself and the threads of its pool
FEWEST: Final = 8
SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Budget(NamedTuple):
    """The most connections that may be open, and the most uploads that stay open between two chunks."""

    connections: int
    uploads: int


def budget(limit: int | None = None) -> Budget:
    """Return how many connections and uploads a limit of descriptors allows. Each needs two descriptors.

    ``limit``: the default is the limit of this process.
    """
    if limit is None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit == resource.RLIM_INFINITY:
            limit = 1 << 20
    uploads = min(MAX_OPEN, limit // 16)
    return Budget(max(FEWEST, (limit - RESERVED) // 2 - uploads), uploads)


class Connections(web.Server):
    """A factory of the connections' protocols. It also tracks which connections are idle."""

    def __init__(self, handler: Any, **options: Any) -> None:
        super().__init__(self._handle, **options)
        self._answer = handler
        # Idle connections and the times at which they became idle, the longest idle first.
        self._since: OrderedDict[asyncio.BaseTransport, float] = OrderedDict()
        self._busy: set[asyncio.BaseTransport] = set()
        self._transports: dict[web.RequestHandler, asyncio.BaseTransport] = {}

    def __len__(self) -> int:
        return len(self._since) + len(self._busy)

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Register a new connection. It is idle until its first request."""
        super().connection_made(handler, transport)
        self._transports[handler] = transport
        self._since[transport] = time.monotonic()

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Unregister a connection that has ended."""
        super().connection_lost(handler, exc)
        transport = self._transports.pop(handler, None)
        if transport is not None:
            self._since.pop(transport, None)
            self._busy.discard(transport)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        with self._busy_with(request):
            response: web.StreamResponse = await self._answer(request)
            return response

    @contextlib.contextmanager
    def _busy_with(self, request: web.BaseRequest) -> Iterator[None]:
        transport = request.transport
        if transport is None or self._since.pop(transport, None) is None:
            yield
            return
        self._busy.add(transport)
        try:
            yield
        finally:
            if transport in self._busy:
                self._busy.discard(transport)
                self._since[transport] = time.monotonic()

    def shed(self) -> bool:
        """Close the connection that has been idle longest.

        Returns False if no connection has been idle for ``SPARED`` seconds.
        """
        transport, since = next(iter(self._since.items()), (None, 0.0))
        if transport is None or time.monotonic() - since < SPARED:
            return False
        del self._since[transport]
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()
        return True


class Acceptor:
    """An acceptor of connections on the socket ``listening``. At most ``most`` connections are open at a time."""

    def __init__(
        self,
        connections: Connections,
        listening: socket.socket,
        *,
        most: int,
        log: logging.Logger,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self._connections = connections
        self._listening = listening
        self._most = most
        self._log = log
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._opening: dict[asyncio.Task[None], float] = {}  # TLS handshakes and their start times, the oldest first
        self._resume: asyncio.TimerHandle | None = None
        self._said = -SAID_EVERY

    def start(self) -> None:
        """Start accepting connections."""
        self._resume = None
        self._loop.add_reader(self._listening, self._accept)

    def stop(self) -> None:
        """Stop accepting, and close the listening socket. Open connections stay open."""
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._listening)
        self._listening.close()
        for task in self._opening:
            task.cancel()

    def _accept(self) -> None:
        for _ in range(BATCH):
            if len(self._connections) + len(self._opening) >= self._most and not self._shed():
                self._pause()
                return
            try:
                accepted, _address = self._listening.accept()
            except OSError as e:
                if e.errno in SHORTAGE:
                    self._shed()
                    self._pause()
                return  # any other error means that no connection is waiting
            accepted.setblocking(False)
            task = self._loop.create_task(self._open(accepted))
            self._opening[task] = time.monotonic()
            task.add_done_callback(lambda done: self._opening.pop(done, None))

    def _shed(self) -> bool:
        """Abort a TLS handshake that takes too long, or close an idle connection. Returns False if neither exists."""
        task, since = next(iter(self._opening.items()), (None, 0.0))
        if task is None or time.monotonic() - since < SPARED:
            return self._connections.shed()
        del self._opening[task]
        task.cancel()
        return True

    def _pause(self) -> None:
        """Leave new connections in the kernel's queue for ``PAUSE`` seconds."""
        now = time.monotonic()
        if now - self._said >= SAID_EVERY:
            self._said = now
            self._log.warning(
                "%d connections are open, and new connections wait because no file descriptors are left "
                "(raise the limit with ulimit -n or LimitNOFILE=)",
                len(self._connections) + len(self._opening),
            )
        self._loop.remove_reader(self._listening)
        self._resume = self._loop.call_later(PAUSE, self.start)

    async def _open(self, accepted: socket.socket) -> None:
        with contextlib.suppress(OSError):  # a failed handshake is not logged; asyncio closes the socket
            await self._loop.connect_accepted_socket(self._connections, accepted, ssl=self._context)
