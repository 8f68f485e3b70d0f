"""Connections that listen while they send: a registry that answers before it has heard the whole body is heard at once.

RFC 9112 §9.5: whoever sends a body should watch for an answer meanwhile, and stop. ``httpcore`` reads the answer
after any failed write, so that is what an early answer becomes here. Without it an answer (401, 413) of a server that
no longer reads would be found when the write times out, and lost when a reset follows it. Threading: as httpcore's,
one thread per connection at a time.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Iterable
from typing import Any, Final

import httpcore

from kitfs.registry.addresses import AddressScope
from kitfs.registry.pace import Pace
from kitfs.registry.routes import ClientOptions, RoutedTransport
from kitfs.registry.sockets import Sockets

BODY: Final = 4 << 10  # bytes of one write from which on it is worth listening: heads are smaller
BLIND: Final = 64 << 10  # bytes of one write where nobody can listen
EARLY: Final = 64 << 10  # bytes of an early answer that are read here
ASKED: Final = 64 << 10  # bytes that httpcore asks for when it reads a body
READ: Final = (
    256 << 10
)  # what is asked of the system then: a quarter less CPU time for a pull than with 64 KiB; 1 MiB is no better


class DuplexStream(httpcore.NetworkStream):
    """A connection (``inner``, a plain or TLS socket) whose big writes end with WriteError when an answer comes.

    Timeouts that are a ``Pace`` bound whole heads and the speed of bodies, not single reads and writes. ``listens``
    False: TLS within TLS, which has no socket of its own to listen on.
    """

    def __init__(self, inner: httpcore.NetworkStream, sockets: Sockets, *, listens: bool = True) -> None:
        self._inner = inner
        self._sockets = sockets
        self._listens = listens
        self._early = b""
        try:
            self._peer = inner.get_extra_info("server_addr")  # the system forgets it when the other side hangs up
        except OSError:
            self._peer = None
        sockets.add(inner.get_extra_info("socket"))

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """What came early, then what comes; of a body more than httpcore asks for. Raises ReadTimeout (of which
        TooSlow).
        """
        if self._early:
            data, self._early = self._early[:max_bytes], self._early[max_bytes:]
            return data
        size = READ if max_bytes == ASKED else max_bytes
        if not isinstance(timeout, Pace):
            return self._inner.read(size, timeout)
        left = timeout.left()
        if left <= 0:
            raise timeout.too_slow()
        try:
            data = self._inner.read(size, left)
        except httpcore.ReadTimeout:
            raise timeout.too_slow()
        timeout.came(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Everything, unless there is an answer. Raises WriteError, and WriteTimeout when the other side takes too
        little for so long.
        """
        pace = timeout if isinstance(timeout, Pace) else None if timeout is None else Pace(timeout)
        if pace is not None:
            pace.ask()
        try:
            if self._listens:
                one: socket.socket = self._inner.get_extra_info("socket")
                one.setblocking(False)  # each read and write of httpcore sets it again
                self._pour(one, memoryview(buffer), pace)
            else:
                for at in range(0, len(buffer), BLIND):
                    part = buffer[at : at + BLIND]
                    self._inner.write(part, _left(pace))
                    _moved(pace, len(part))
        except OSError as e:
            raise httpcore.WriteError(e) from e

    def _pour(self, one: socket.socket, view: memoryview, pace: Pace | None) -> None:
        listens = len(view) >= BODY and not self._early
        poll = select.poll()
        usual = select.POLLOUT | (select.POLLIN if listens else 0)
        events = usual
        while view:
            poll.register(one, events)
            left = _left(pace)
            ready = poll.poll(None if left is None else left * 1000)
            if not ready:
                raise httpcore.WriteTimeout("timed out")
            if listens and ready[0][1] & ~select.POLLOUT and self._answered(one):
                if not self._early.startswith(b"HTTP/1.1 1"):
                    raise httpcore.WriteError("it answers before it has heard everything")
                listens, usual = False, select.POLLOUT  # an interim answer: the other one follows the body
            events = usual
            try:
                sent = one.send(view)
            except ssl.SSLWantReadError:
                events = select.POLLIN
            except (BlockingIOError, ssl.SSLWantWriteError):
                pass
            else:
                view = view[sent:]
                _moved(pace, sent)

    def _answered(self, one: socket.socket) -> bool:
        """Whether bytes of an answer have come, or the end; what else a TLS connection brings (session tickets) is
        none.
        """
        try:
            self._early = one.recv(EARLY)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        return True

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """The same through TLS."""
        nested = isinstance(self._inner.get_extra_info("socket"), ssl.SSLSocket)
        return DuplexStream(
            self._inner.start_tls(ssl_context, server_hostname, timeout), self._sockets, listens=not nested
        )

    def get_extra_info(self, info: str) -> Any:
        """The inner connection's."""
        return self._peer if info == "server_addr" else self._inner.get_extra_info(info)


class DuplexBackend(httpcore.NetworkBackend):
    """Makes such connections by way of ``inner``."""

    def __init__(self, inner: httpcore.NetworkBackend, sockets: Sockets) -> None:
        self._inner = inner
        self._sockets = sockets

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        """A connection."""
        return DuplexStream(self._inner.connect_tcp(host, port, timeout, local_address, socket_options), self._sockets)

    def sleep(self, seconds: float) -> None:
        """As the inner one."""
        self._inner.sleep(seconds)


class DuplexTransport(RoutedTransport):
    """RoutedTransport over such connections."""

    def __init__(self, options: ClientOptions) -> None:
        super().__init__(options)
        self._sockets = Sockets()

    def close(self) -> None:
        """Close every connection; whoever still waits for one is told at once."""
        self._sockets.shut()
        super().close()

    def _backend(self, inner: httpcore.NetworkBackend, led_from: AddressScope | None) -> httpcore.NetworkBackend:
        return DuplexBackend(super()._backend(inner, led_from), self._sockets)


def _left(pace: Pace | None) -> float | None:
    """Seconds that a write may wait now. Raises WriteTimeout when there are none."""
    if pace is None:
        return None
    left = pace.left()
    if left <= 0:
        raise httpcore.WriteTimeout("timed out")
    return left


def _moved(pace: Pace | None, size: int) -> None:
    if pace is not None:
        pace.rest(size)
        pace.ask()
