"""A TCP relay in front of a registry. Each connection has two threads, which end with the connection."""

from __future__ import annotations

import socket
import threading
import time


class Relay:
    """A TCP relay in front of a registry. It counts, holds or breaks the bytes that it relays.

    It counts and holds the responses, or the requests with ``requests=True``. ``moved`` is the number of bytes that it
    relayed in that direction. ``hold(n)`` relays n more bytes in that direction and then none until ``release()``.
    ``held`` is set while bytes wait. ``cut(n)`` relays n more bytes in the other direction and then breaks the
    connection that carried the last of them. Other connections are not broken. With ``rate``, each connection relays at
    most that many bytes a second in the counted direction. ``connections`` lists the number of bytes that each
    connection relayed in the counted direction.
    """

    def __init__(self, port: int, *, requests: bool = False, rate: int = 0) -> None:
        self._target = port
        self._requests = requests
        self._rate = rate
        self.connections: list[int] = []
        self.moved = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.host}"
        self.held = threading.Event()
        self._open = threading.Event()
        self._closed = threading.Event()
        self._open.set()
        self._budget: int | None = None
        self._fuse: int | None = None
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._spawn(self._accept)

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._open.set()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            for one in list(self._sockets):
                _shut(one)
        for thread in list(self._threads):
            thread.join(10)

    def hold(self, after: int) -> None:
        with self._lock:
            self._budget = after
            self.held.clear()
            self._open.clear()

    def release(self) -> None:
        with self._lock:
            self._budget = None
        self._open.set()

    def cut(self, after: int) -> None:
        with self._lock:
            self._fuse = after

    def _spawn(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            server = self._connect()
            if server is None:
                client.close()
                continue
            with self._lock:
                self._sockets |= {client, server}
            pair = _Pair(client, server)
            self._spawn(self._pump, pair, client, server, self._requests)
            self._spawn(self._pump, pair, server, client, not self._requests)

    def _connect(self) -> socket.socket | None:
        """Connect to the registry. Retry for up to a minute, because the registry may be restarting."""
        deadline = time.monotonic() + 60
        while True:
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=10)
            except OSError:
                if time.monotonic() > deadline or self._closed.wait(0.05):
                    return None
            else:
                server.settimeout(None)
                return server

    def _pump(self, pair: _Pair, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        free = 0.0  # when the next byte may be relayed
        if counted:
            with self._lock:
                number = len(self.connections)
                self.connections.append(0)
        try:
            while data := source.recv(16384):
                if not counted and (left := self._burn(len(data))) is not None:
                    sink.sendall(data[:left])
                    break
                if counted and self._rate:
                    free = max(free, time.monotonic() - 0.1) + len(data) / self._rate
                    self._closed.wait(max(0.0, free - time.monotonic()))
                if counted:
                    self.connections[number] += len(data)
                while data:
                    share = self._share(len(data)) if counted else len(data)
                    if share:
                        sink.sendall(data[:share])
                        data = data[share:]
                    else:
                        self.held.set()
                        self._open.wait()
        except OSError:
            pass
        _shut(source)
        _shut(sink)
        if pair.last():
            with self._lock:
                self._sockets -= {pair.client, pair.server}
            pair.client.close()
            pair.server.close()

    def _burn(self, amount: int) -> int | None:
        """Return how many bytes of ``amount`` pass before the connection breaks, or None if it does not break."""
        with self._lock:
            if self._fuse is None:
                return None
            left, self._fuse = self._fuse, self._fuse - amount
            if left > amount:
                return None
            self._fuse = None
            return left

    def _share(self, wanted: int) -> int:
        with self._lock:
            share = wanted
            if self._budget is not None:
                share = min(wanted, self._budget)
                self._budget -= share
            self.moved += share
            return share


class _Pair:
    """The two sockets of a relayed connection. The thread that ends last closes both."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self._left = 2
        self._lock = threading.Lock()

    def last(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left == 0


def _shut(one: socket.socket) -> None:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
