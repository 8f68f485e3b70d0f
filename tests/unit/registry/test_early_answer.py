"""A server may respond before it has received the whole body of a request.

It then stops reading, but leaves the connection open.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpcore
import httpx
import pytest
from httpcore._backends.sync import SyncStream

from kitfs.registry.early_answer import DuplexStream, DuplexTransport
from kitfs.registry.options import ClientOptions
from kitfs.registry.sockets import Sockets

MiB = 1 << 20
TLS = Path(__file__).parent / "tls"
OPTIONS = ClientOptions(tls_certs=(str(TLS / "ca.pem"),))
Handler = Callable[[socket.socket], None]
Servers = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Servers]:
    """Return a function that starts a server for one connection and returns the server's URL.

    The connection stays open until the end of the test.
    """
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def make(handler: Handler, *, tls: bool = False) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)

        def run() -> None:
            one, _ = listener.accept()
            if tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(TLS / "server.pem")
                one = context.wrap_socket(one, server_side=True)
            sockets.append(one)
            handler(one)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}/"

    yield make
    for thread in threads:
        thread.join(20)
    for one in sockets:
        one.close()


def put(url: str, pieces: int = 64, *, timeout: float = 20.0) -> tuple[int, int]:
    """Send a PUT whose body is made of pieces of 1 MiB.

    Return the status of the response, and the number of pieces that the client took from the body.
    """
    made = 0

    def body() -> Iterator[bytes]:
        nonlocal made
        for _ in range(pieces):
            made += 1
            yield bytes(MiB)

    with httpx.Client(transport=DuplexTransport(OPTIONS), timeout=timeout) as client:
        response = client.put(url, content=body(), headers={"Content-Length": str(pieces * MiB)})
    return response.status_code, made


def head(one: socket.socket) -> bytes:
    """Receive the head of a request. Return the part of the body that arrived with the head."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += one.recv(4096)
    return data.partition(b"\r\n\r\n")[2]


def hear(one: socket.socket, heard: int, size: int) -> int:
    while heard < size:
        heard += len(one.recv(MiB))
    return heard


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("after", [0, 3 * MiB])
def test_an_early_answer_is_heard(serve: Servers, tls: bool, after: int) -> None:
    """After an early response, the client stops sending the body and returns the response.

    The server leaves the connection open.
    """

    def handler(one: socket.socket) -> None:
        hear(one, len(head(one)), after)
        one.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")

    status, made = put(serve(handler, tls=tls))
    assert status == 413
    assert made < 64


@pytest.mark.parametrize("tls", [False, True])
def test_an_early_answer_before_a_reset_is_heard(serve: Servers, tls: bool) -> None:
    """An early response is returned even if the server closes the connection with most of the body unread."""

    def handler(one: socket.socket) -> None:
        hear(one, len(head(one)), MiB)
        one.sendall(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
        one.close()

    assert put(serve(handler, tls=tls))[0] == 401


@pytest.mark.parametrize("tls", [False, True])
def test_a_body_that_is_heard_arrives_whole(serve: Servers, tls: bool) -> None:
    """The body is sent whole to a server that reads slowly, or that sends a TLS session ticket first."""
    heard = []

    def handler(one: socket.socket) -> None:
        heard.append(hear(one, len(head(one)), 64 * MiB))
        one.sendall(b"HTTP/1.1 201 Yes\r\nContent-Length: 0\r\n\r\n")

    assert put(serve(handler, tls=tls)) == (201, 64)
    assert heard == [64 * MiB]


def test_an_interim_response_is_not_final(serve: Servers) -> None:
    """After a 1xx response, the rest of the body is sent, and the final response is returned."""

    def handler(one: socket.socket) -> None:
        heard = hear(one, len(head(one)), MiB)
        one.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
        hear(one, heard, 64 * MiB)
        one.sendall(b"HTTP/1.1 201 Yes\r\nContent-Length: 0\r\n\r\n")

    assert put(serve(handler)) == (201, 64)


def test_a_server_that_reads_nothing_times_out(serve: Servers) -> None:
    """A server that does not read the body causes a WriteTimeout."""
    with pytest.raises(httpx.WriteTimeout):
        put(serve(head), timeout=0.2)


def test_a_close_without_a_response_is_an_error(serve: Servers) -> None:
    def handler(one: socket.socket) -> None:
        head(one)
        one.close()

    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        put(serve(handler))


def test_what_came_early_is_read_first() -> None:
    """A read returns the bytes of an early response first, then those of the socket, and never more than requested."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"HTTP/1.1 413 Too Large\r\n")
        select.select([ours], [], [], 10)
        stream = DuplexStream(SyncStream(ours), Sockets())
        with pytest.raises(httpcore.WriteError):
            stream.write(bytes(8 * MiB), 5.0)
        theirs.sendall(b"more")
        assert [stream.read(8, 5.0), stream.read(65536, 5.0), stream.read(65536, 5.0)] == [
            b"HTTP/1.1",
            b" 413 Too Large\r\n",
            b"more",
        ]
