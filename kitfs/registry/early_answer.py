"""Make connections that read while they send a body, and so notice a response before the body has ended.

RFC 9112 §9.5 recommends that a client that sends a body watches for a response, and stops sending when a response
arrives. ``httpcore`` reads the response after a failed write, so this module turns an early response into a failed
write. Without this module, an early response (401, 413) of a server that no longer reads would be found only after the
write times out, and would be lost if the server resets the connection. Threading: as in httpcore, only one thread at a
time may use a connection.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import httpcore

from kitfs.registry.options import ClientOptions
from kitfs.registry.pace import Pace
from kitfs.registry.routes import RoutedTransport
from kitfs.registry.sockets import Sockets

MIN_BODY: Final = 4 << 10  # bytes: the connection listens only during larger writes; writes of heads are smaller
BLIND_WRITE: Final = 64 << 10  # bytes of one write on a connection that cannot listen
MAX_EARLY: Final = 64 << 10  # bytes of an early response that are read while a body is sent
GATHER: Final = 0.02  # most seconds that a read waits for ``at_least`` bytes
BODY_READ: Final = 64 << 10  # bytes that httpcore requests when it reads a body
# Bytes that are read instead of BODY_READ. A pull takes a quarter less CPU time than with 64 KiB; 1 MiB is not faster.
SYSTEM_READ: Final = 256 << 10
TLS_ALERT: Final = b"\x15\x03"  # the first bytes of a TLS alert: its type and the major version (RFC 8446 §5.1)


class TlsAlert(httpcore.RemoteProtocolError):
    """A server sent a TLS alert instead of a response to plain HTTP."""


class NoResponse(httpcore.RemoteProtocolError):
    """A server closed a connection without sending a byte."""


class DuplexStream(httpcore.NetworkStream):
    """A connection whose large writes fail with WriteError when a response arrives.

    ``inner``: the plain or TLS socket. A timeout limits each read and write. A timeout that is a ``Pace`` limits the
    time of a whole head and the speed of a body instead. ``listens``: False for TLS within TLS, which has no socket of
    its own. ``plain``: the connection does not use TLS, so a TLS alert on it means that the server expects TLS.
    """

    def __init__(
        self, inner: httpcore.NetworkStream, sockets: Sockets, *, listens: bool = True, plain: bool = False
    ) -> None:
        self._inner = inner
        self._sockets = sockets
        self._listens = listens
        self._plain = plain
        self._received = False
        self._early = b""
        self._gathered = 1
        self._poll: select.poll | None = None  # waits for the socket, while a body is received into a buffer
        try:
            self._peer = inner.get_extra_info("server_addr")  # not available after the server closes the connection
        except OSError:
            self._peer = None
        sockets.add(inner.get_extra_info("socket"))

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Return the bytes of an early response, or the bytes that arrive next.

        An early response may have more than ``max_bytes`` bytes. Raises ReadTimeout (or its subclass TooSlow). For the
        first bytes of a connection, also raises TlsAlert and NoResponse.
        """
        data = self._read(max_bytes, timeout)
        if not self._received:
            self._received = True
            if not data:
                raise NoResponse("it was closed without a response")
            if self._plain and data.startswith(TLS_ALERT):
                raise TlsAlert("a TLS alert arrived")
        return data

    def _read(self, max_bytes: int, timeout: float | None) -> bytes:
        if self._early:
            data, self._early = self._early[:max_bytes], self._early[max_bytes:]
            return data
        size = SYSTEM_READ if max_bytes == BODY_READ else max_bytes
        if not isinstance(timeout, Pace):
            return self._inner.read(size, timeout)
        left = timeout.left()
        if left <= 0:
            raise timeout.too_slow()
        try:
            data = self._inner.read(size, left)
        except httpcore.ReadTimeout:
            raise timeout.too_slow()
        timeout.count_head(len(data))
        return data

    @property
    def can_receive_into(self) -> bool:
        """Return whether ``receive_into`` can be used. TLS within TLS has no socket of its own."""
        return self._listens and not self._early

    def receive_into(self, view: memoryview, timeout: float | None, *, at_least: int = 1) -> int:
        """Receive the next bytes of a body into a buffer. Return their number, or 0 at the end of the connection.

        Waits a moment (``GATHER``) for ``at_least`` bytes, so that a fast body arrives in few pieces. Raises ReadError,
        and ReadTimeout or its subclass TooSlow.
        """
        sock: socket.socket = self._inner.get_extra_info("socket")
        left = timeout.left() if isinstance(timeout, Pace) else timeout
        if left is not None and left <= 0:
            raise timeout.too_slow() if isinstance(timeout, Pace) else httpcore.ReadTimeout("timed out")
        try:
            if isinstance(sock, ssl.SSLSocket):
                return _receive_records(sock, view, left, at_least)
            if self._poll is None:
                sock.settimeout(0)  # setting a timeout would cost a further system call each time
                self._poll = select.poll()
                self._poll.register(sock, select.POLLIN)
            self._gather(sock, at_least)
            if at_least > 1 and not self._poll.poll(_milliseconds(GATHER if left is None else min(left, GATHER))):
                self._gather(sock, 1)
            if self._gathered == 1 and not self._poll.poll(_milliseconds(left)):
                raise TimeoutError
            return sock.recv_into(view)
        except BlockingIOError:  # the packet that woke poll(2) was dropped, because its checksum was wrong
            return self.receive_into(view, timeout, at_least=at_least)
        except TimeoutError as e:
            raise timeout.too_slow() if isinstance(timeout, Pace) else httpcore.ReadTimeout(str(e)) from e
        except OSError as e:
            raise httpcore.ReadError(e) from e

    def _gather(self, sock: socket.socket, size: int) -> None:
        """Let poll(2) report the socket as readable only after ``size`` bytes have arrived (socket(7), SO_RCVLOWAT)."""
        if size != self._gathered:
            with suppress(OSError):  # without this option, a read returns the bytes that have arrived
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            self._gathered = size

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send the whole buffer, unless a response arrives first.

        Raises WriteError if a response arrives, and WriteTimeout if the server accepts too few bytes within the
        timeout.
        """
        pace = timeout if isinstance(timeout, Pace) else None if timeout is None else Pace(timeout)
        if pace is not None:
            pace.resume()
        try:
            if self._listens:
                sock: socket.socket = self._inner.get_extra_info("socket")
                sock.setblocking(False)  # each read and write of httpcore sets it again
                self._send(sock, memoryview(buffer), pace)
            else:
                for at in range(0, len(buffer), BLIND_WRITE):
                    part = buffer[at : at + BLIND_WRITE]
                    self._inner.write(part, _left(pace))
                    _moved(pace, len(part))
        except OSError as e:
            raise httpcore.WriteError(e) from e

    def _send(self, sock: socket.socket, view: memoryview, pace: Pace | None) -> None:
        listens = len(view) >= MIN_BODY and not self._early
        poll = select.poll()
        usual = select.POLLOUT | (select.POLLIN if listens else 0)
        events = usual
        while view:
            poll.register(sock, events)
            left = _left(pace)
            ready = poll.poll(None if left is None else left * 1000)
            if not ready:
                raise httpcore.WriteTimeout("timed out")
            if listens and ready[0][1] & ~select.POLLOUT and self._answered(sock):
                if not self._early.startswith(b"HTTP/1.1 1"):
                    raise httpcore.WriteError("the server answered before the body was sent")
                listens, usual = False, select.POLLOUT  # an interim response; the final response follows the body
            events = usual
            try:
                sent = sock.send(view)
            except ssl.SSLWantReadError:
                events = select.POLLIN
            except (BlockingIOError, ssl.SSLWantWriteError):
                pass
            else:
                view = view[sent:]
                _moved(pace, sent)

    def _answered(self, sock: socket.socket) -> bool:
        """Read the bytes that have arrived.

        Returns True for bytes of a response, and at the end of the connection. TLS session tickets are not a response.
        """
        try:
            self._early = sock.recv(MAX_EARLY)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        return True

    def close(self) -> None:
        """Close the connection."""
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """Start TLS on the connection, and return a new stream that also listens while it sends."""
        nested = isinstance(self._inner.get_extra_info("socket"), ssl.SSLSocket)
        return DuplexStream(
            self._inner.start_tls(ssl_context, server_hostname, timeout), self._sockets, listens=not nested
        )

    def get_extra_info(self, info: str) -> Any:
        """Return an attribute of the inner connection."""
        return self._peer if info == "server_addr" else self._inner.get_extra_info(info)


class DuplexBackend(httpcore.NetworkBackend):
    """A network backend whose connections listen while they send. ``inner`` makes the connections."""

    def __init__(self, inner: httpcore.NetworkBackend, sockets: Sockets) -> None:
        self._inner = inner
        self._sockets = sockets

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        """Connect to a host, and wrap the connection in a DuplexStream."""
        stream = self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return DuplexStream(stream, self._sockets, plain=True)

    def sleep(self, seconds: float) -> None:
        """Sleep with the inner backend."""
        self._inner.sleep(seconds)


class DuplexTransport(RoutedTransport):
    """A RoutedTransport whose connections listen while they send."""

    def __init__(self, options: ClientOptions) -> None:
        self._sockets = Sockets()
        super().__init__(options, DuplexBackend(httpcore.SyncBackend(), self._sockets))

    def close(self) -> None:
        """Close every connection. Threads that wait on a connection fail at once."""
        self._sockets.shut()
        super().close()


def _receive_records(sock: ssl.SSLSocket, view: memoryview, timeout: float | None, at_least: int) -> int:
    """Receive TLS records until there are ``at_least`` bytes, or until no record has arrived for a moment.

    A record has at most 16 KiB. Return the number of bytes, or 0 at the end of the connection. Raises OSError, and
    TimeoutError if nothing arrives within ``timeout`` seconds.
    """
    sock.settimeout(timeout)
    count = more = sock.recv_into(view)
    if count < at_least:
        sock.settimeout(GATHER if timeout is None else min(timeout, GATHER))
    while more and count < at_least:
        try:
            more = sock.recv_into(view[count:])
        except TimeoutError:
            break
        count += more
    return count


def _left(pace: Pace | None) -> float | None:
    """Return the seconds that a write may still wait. Raises WriteTimeout if no time is left."""
    if pace is None:
        return None
    left = pace.left()
    if left <= 0:
        raise httpcore.WriteTimeout("timed out")
    return left


def _moved(pace: Pace | None, size: int) -> None:
    if pace is not None:
        pace.pause(size)
        pace.resume()


def _milliseconds(seconds: float | None) -> float | None:
    """Return a timeout for poll(2) in milliseconds, rounded up, so that a short timeout is not 0.

    None means no timeout.
    """
    return None if seconds is None else max(1.0, seconds * 1000)
