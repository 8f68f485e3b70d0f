"""Connections that listen while they send: a registry that answers before it has heard the whole body is heard at once.

RFC 9112 §9.5: whoever sends a body should watch for an answer meanwhile, and stop. ``httpcore`` reads the answer after any failed write,
so that is what an early answer becomes here. Without it an answer (401, 413) of a server that no longer reads would be found when the
write times out, and lost when a reset follows it. Threading: as httpcore's, one thread per connection at a time.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any, Final

import httpcore
import httpx

from kitfs.registry.sockets import Sockets
from kitfs.registry.transport import ClientOptions, RoutedTransport

BODY: Final = 4 << 10  # bytes of one write from which on it is worth listening: heads are smaller
EARLY: Final = 64 << 10  # bytes of an early answer that are read here
ASKED: Final = 64 << 10  # bytes that httpcore asks for when it reads a body
READ: Final = 256 << 10  # what is asked of the system then: a quarter less CPU time for a pull than with 64 KiB; 1 MiB is no better


class DuplexStream(httpcore.NetworkStream):
    """A connection (``inner``, a plain or TLS socket) whose big writes end with WriteError when an answer comes."""

    def __init__(self, inner: httpcore.NetworkStream, sockets: Sockets) -> None:
        self._inner = inner
        self._sockets = sockets
        self._early = b""
        sockets.add(inner.get_extra_info("socket"))

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """What came early, then what comes; of a body more than httpcore asks for."""
        if self._early:
            data, self._early = self._early[:max_bytes], self._early[max_bytes:]
            return data
        return self._inner.read(READ if max_bytes == ASKED else max_bytes, timeout)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Everything, unless there is an answer. Raises WriteError, and WriteTimeout when the other side takes nothing for so long."""
        if len(buffer) < BODY or self._early:
            self._inner.write(buffer, timeout)
            return
        one: socket.socket = self._inner.get_extra_info("socket")
        one.setblocking(False)  # each read and write of httpcore sets it anew
        try:
            self._pour(one, memoryview(buffer), timeout)
        except OSError as e:
            raise httpcore.WriteError(e) from e

    def _pour(self, one: socket.socket, view: memoryview, timeout: float | None) -> None:
        poll = select.poll()
        events = select.POLLIN | select.POLLOUT
        until = None if timeout is None else time.monotonic() + timeout
        while view:
            poll.register(one, events)
            ready = poll.poll(None if until is None else max(0.0, until - time.monotonic()) * 1000)
            if not ready:
                raise httpcore.WriteTimeout("timed out")
            if ready[0][1] & ~select.POLLOUT and self._answered(one):
                if not self._early.startswith(b"HTTP/1.1 1"):
                    raise httpcore.WriteError("it answers before it has heard everything")
                self._inner.write(view.tobytes(), timeout)  # an interim answer: the other one follows the body
                return
            events = select.POLLIN | select.POLLOUT
            try:
                view = view[one.send(view) :]
                until = None if timeout is None else time.monotonic() + timeout
            except ssl.SSLWantReadError:
                events = select.POLLIN
            except (BlockingIOError, ssl.SSLWantWriteError):
                pass

    def _answered(self, one: socket.socket) -> bool:
        """Whether bytes of an answer have come, or the end; what else a TLS connection brings (session tickets) is none."""
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
        """The same through TLS; TLS within TLS (an https: proxy) has no socket of its own to listen on."""
        nested = isinstance(self._inner.get_extra_info("socket"), ssl.SSLSocket)
        secure = self._inner.start_tls(ssl_context, server_hostname, timeout)
        return secure if nested else DuplexStream(secure, self._sockets)

    def get_extra_info(self, info: str) -> Any:
        """The inner connection's."""
        return self._inner.get_extra_info(info)


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

    def _made(self, scheme: str, proxy: str | None) -> httpx.HTTPTransport:
        made = super()._made(scheme, proxy)
        pool = made._pool  # noqa: SLF001 - httpx has no public way to give httpcore a network backend
        pool._network_backend = DuplexBackend(pool._network_backend, self._sockets)  # noqa: SLF001 - as above
        return made
