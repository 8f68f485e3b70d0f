"""The head of a response has a deadline, and a body has a minimum speed.

Pauses of the reader do not count as slowness.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator

import httpcore
import httpx
import pytest

from kitfs.errors import RegistryError, Unavailable
from kitfs.oci.names import Reference
from kitfs.registry.blob import Speed
from kitfs.registry.client import RegistryClient, Repository
from kitfs.registry.pace import MAX_HEAD, Pace, TooSlow
from tests.fakes.faults import Drip, Fault, Stall, Status
from tests.fakes.registry import FakeRegistry
from tests.unit.registry.conftest import descriptor

DATA = bytes(range(256)) * 4096  # 1 MiB
Clients = Callable[..., RegistryClient]
Handler = Callable[[socket.socket, bytes], None]
Servers = Callable[[Handler], str]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789"


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_clock_runs_only_while_the_client_waits(clock: Clock) -> None:
    """The clock of a pace stops while the reader pauses."""
    pace = Pace(10.0, least=1, clock=clock)
    pace.begin_body()
    for _ in range(3):
        pace.resume()
        clock.now += 3
        pace.pause(0)
        clock.now += 3600
    pace.resume()
    assert pace.left() == pytest.approx(1.0)


def test_the_least_speed_renews_the_time(clock: Clock) -> None:
    """A time window ends as soon as enough bytes have arrived in it. Then the next window begins."""
    pace = Pace(10.0, least=100, clock=clock)
    pace.begin_body()
    for moved, left in [(500, 8.0), (499, 6.0), (1, 10.0), (5000, 10.0)]:
        pace.resume()
        clock.now += 2
        pace.pause(moved)
        pace.resume()
        assert pace.left() == pytest.approx(left)


def test_a_head_is_not_prolonged_by_what_comes(clock: Clock) -> None:
    """The head of a response has a deadline, which arriving bytes do not extend.

    The error states that the head was slow.
    """
    pace = Pace(10.0, clock=clock)
    assert pace.left() == pytest.approx(10.0)
    for _ in range(10):
        clock.now += 1
        pace.count_head(1)
    assert pace.left() <= 0
    assert isinstance(pace.too_slow(), TooSlow)


def test_a_head_has_an_end() -> None:
    """The total size of a head and the interim responses before it is limited."""
    pace = Pace(10.0)
    pace.count_head(MAX_HEAD)
    with pytest.raises(httpcore.RemoteProtocolError, match=f"more than {MAX_HEAD} bytes"):
        pace.count_head(1)


def test_a_pace_is_its_seconds() -> None:
    """As a float, a pace has the value of its timeout in seconds."""
    assert Pace(2.5) == 2.5
    assert f"{Pace(2.5):g}" == "2.5"


# -- servers that send byte by byte


@pytest.fixture
def serve() -> Iterator[Servers]:
    """Return a function that starts a server and returns its host:port.

    The server passes every request of every connection to a handler.
    """
    closing = threading.Event()
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []
    opened: list[socket.socket] = []

    def talk(one: socket.socket, handler: Handler) -> None:
        with one, contextlib.suppress(OSError):
            while not closing.is_set():
                head = b""
                while b"\r\n\r\n" not in head:
                    data = one.recv(65536)
                    if not data:
                        return
                    head += data
                handler(one, head)

    def make(handler: Handler) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    one = listener.accept()[0]
                    opened.append(one)
                    threads.append(threading.Thread(target=talk, args=(one, handler)))
                    threads[-1].start()

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield make
    closing.set()
    for one in (*listeners, *opened):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
    for thread in threads:
        thread.join(20)


def team(client: RegistryClient, host: str) -> Repository:
    return client.repository(Reference.parse(f"{host}/team/kit"))


def dripping(start: bytes, drop: bytes, *, pause: float = 0.05, times: int = 2000) -> Handler:
    """Return a handler that sends ``start`` once, and then ``drop`` at most ``times`` times.

    The handler stops after ``times``, so a test fails and does not hang.
    """

    def handler(one: socket.socket, _: bytes) -> None:
        one.sendall(start)
        for _ in range(times):
            one.sendall(drop)
            time.sleep(pause)

    return handler


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
LONG = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(DATA)
DRIPS = {
    "interim answers": dripping(b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "early hints": dripping(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "bytes of the status line": dripping(b"HTTP/1.1 200 ", b"O"),
    "bytes of a header": dripping(b"HTTP/1.1 200 OK\r\nX: ", b"a"),
    "headers": dripping(b"HTTP/1.1 200 OK\r\n", b"X: a\r\n"),
    "bytes of a body": dripping(LONG, b"a"),
    "bytes of chunks": dripping(CHUNKED, b"1\r\na\r\n"),
    "an extension of a chunk": dripping(CHUNKED + b"1;", b"a"),
    "trailers": dripping(CHUNKED + b"1\r\na\r\n0\r\n", b"X: a\r\n"),
    "nothing": dripping(b"", b""),
}
ASKS: dict[str, Callable[[Repository], object]] = {
    "manifest": lambda one: one.manifest("v1"),
    "tags": lambda one: list(one.tags()),
    "blob": lambda one: list(one.blob(descriptor(DATA)).read_range(0, None)),
    "config": lambda one: one.blob_bytes(descriptor(DATA), len(DATA)),
    "manifest push": lambda one: one.put_manifest("v1", "application/x", b"{}"),
}


@pytest.mark.parametrize("drip", DRIPS)
def test_no_drip_is_progress(serve: Servers, client: Clients, drip: str) -> None:
    """If a manifest arrives byte by byte, the request fails after the read timeout."""
    host = serve(DRIPS[drip])
    with pytest.raises(Unavailable, match=host):
        team(client(read_timeout=0.5), host).manifest("v1")


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("drip", ["interim answers", "bytes of a body"])
def test_no_request_waits_for_drips(serve: Servers, client: Clients, drip: str, ask: str) -> None:
    """Reads, lists and pushes fail after the read timeout if the response arrives byte by byte."""
    host = serve(DRIPS[drip])
    with pytest.raises(RegistryError, match=host):
        ASKS[ask](team(client(read_timeout=0.3), host))


def test_no_push_waits_for_drips(serve: Servers, client: Clients) -> None:
    """An upload that gets only interim responses fails."""
    host = serve(DRIPS["interim answers"])
    with pytest.raises(Unavailable, match=host):
        team(client(read_timeout=0.3), host).upload(descriptor(DATA), lambda at: iter([DATA[at:]]))


@pytest.mark.parametrize("drip", ["interim answers", "bytes of a header", "bytes of a body", "nothing"])
def test_no_token_is_waited_for_in_drips(serve: Servers, fake: FakeRegistry, client: Clients, drip: str) -> None:
    """A token request has the deadline of the request that needs the token."""
    desk = serve(DRIPS[drip])
    fake.fail("/manifests/", Status(401, {"WWW-Authenticate": f'Bearer realm="http://{desk}/token"'}))
    with pytest.raises(Unavailable, match=desk):
        team(client(read_timeout=0.5), fake.host).manifest("v1")


def test_interim_answers_without_end_are_bounded(serve: Servers, client: Clients) -> None:
    """Interim responses that arrive at full speed are limited by their total size, before the deadline."""
    host = serve(dripping(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 1000, pause=0, times=10_000))
    with pytest.raises(Unavailable, match="bytes of headers and interim responses"):
        team(client(read_timeout=30.0), host).manifest("v1")


@pytest.mark.parametrize("headers", [{f"X-{i}": "a" for i in range(500)}, {"X": "a" * 80_000}], ids=["many", "long"])
def test_headers_are_bounded(fake: FakeRegistry, client: Clients, headers: dict[str, str]) -> None:
    """A response with too many or too long headers raises an error and is not retried."""
    fake.fail("/manifests/", Status(200, headers, body=b"{}"))
    with pytest.raises(RegistryError, match=f"{fake.host} sent .* headers of .* bytes"):
        team(client(), fake.host).manifest("v1")
    assert len(fake.served()) == 1


def test_an_interim_answer_is_not_the_answer(serve: Servers, client: Clients) -> None:
    """Interim responses before the final response are skipped."""
    host = serve(lambda one, _: one.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3 + OK))
    assert team(client(), host).manifest("v1")[1] == b"0123456789"


def test_a_byte_for_each_range_is_given_up(serve: Servers, client: Clients) -> None:
    """If a registry returns only one byte for each range, the read fails, although each response is valid."""

    def handler(one: socket.socket, head: bytes) -> None:
        found = re.search(rb"bytes=(\d+)", head)
        assert found is not None
        at = int(found[1])
        one.sendall(
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %d-%d/%d\r\nContent-Length: 1\r\n\r\n"
            % (at, at, len(DATA))
        )
        one.sendall(DATA[at : at + 1])

    host = serve(handler)
    with pytest.raises(Unavailable, match=f"{host} sent 1 of the .* requested bytes"):
        list(team(client(), host).blob(descriptor(DATA)).read_range(0, 4096))


def test_a_reader_that_pauses_is_not_a_stall(fake: FakeRegistry, client: Clients) -> None:
    """A reader may pause in the middle of a body for longer than the read timeout."""
    fake.put_blob("team/kit", DATA)
    pieces = team(client(read_timeout=0.5), fake.host).blob(descriptor(DATA)).read_range(0, None)
    got = bytes(next(pieces)[1])
    time.sleep(1.0)
    assert got + b"".join(bytes(view) for _, view in pieces) == DATA


def test_attempts_that_bring_too_little_end_together() -> None:
    """A read fails if its attempts are too slow in total, even if each attempt is fast enough."""
    speed = Speed(10.0)
    verdicts = []
    for came in (20_000, 2000, 2000, 2000):
        speed.waited += 4.0
        verdicts.append(speed.too_slow(httpx.Response(206), came))
    assert verdicts == [False, False, False, True]


@pytest.mark.parametrize("fault", [Drip(1, 0.05), Stall(10)], ids=["drips", "stalls"])
def test_a_registry_that_is_slow_for_one_reader_is_well_for_the_next(
    fake: FakeRegistry, client: Clients, fault: Fault
) -> None:
    """A read that failed because of a slow registry does not affect the next read."""
    fake.put_blob("team/kit", DATA)
    blob = team(client(read_timeout=0.3), fake.host).blob(descriptor(DATA))
    fake.fail("/blobs/", fault, times=1)
    with pytest.raises(Unavailable):
        list(blob.read_range(0, None))
    assert b"".join(bytes(view) for _, view in blob.read_range(0, None)) == DATA


# -- servers that read slowly


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"], ids=["silent", "interim"])
def test_a_server_that_hears_a_push_in_drips_is_given_up(serve: Servers, client: Clients, first: bytes) -> None:
    """If a server reads a body more slowly than the minimum speed, the push fails, even after an interim response."""

    def handler(one: socket.socket, head: bytes) -> None:
        if head.startswith(b"HEAD"):
            one.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        elif head.startswith(b"POST"):
            one.sendall(b"HTTP/1.1 202 Accepted\r\nLocation: /v2/team/kit/blobs/uploads/1\r\nContent-Length: 0\r\n\r\n")
        else:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.sendall(first)
            for _ in range(2000):
                if not one.recv(64):
                    return
                time.sleep(0.2)

    host = serve(handler)
    big = DATA * 16
    with pytest.raises(Unavailable, match=f"{host} took"):
        team(client(read_timeout=0.5), host).upload(descriptor(big), lambda at: iter([big[at:]]), chunk=1 << 30)


def test_a_slow_server_may_read_a_push_to_its_end(serve: Servers, client: Clients) -> None:
    """A push may take longer than the timeout if the server reads at the minimum speed."""
    big = DATA * 32
    heard = 0

    def handler(one: socket.socket, head: bytes) -> None:
        nonlocal heard
        if head.startswith(b"PUT"):
            heard = len(head.partition(b"\r\n\r\n")[2])
            while heard < len(big):
                size = len(one.recv(256 << 10))
                heard += size
                time.sleep(size / (16 << 20))
            one.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        elif head.startswith(b"POST"):
            one.sendall(b"HTTP/1.1 202 Accepted\r\nLocation: /v2/team/kit/blobs/uploads/1\r\nContent-Length: 0\r\n\r\n")
        else:
            one.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    host = serve(handler)
    pushed = team(client(read_timeout=1.0), host).upload(descriptor(big), lambda at: iter([big[at:]]), chunk=1 << 30)
    assert (pushed, heard) == ("uploaded", len(big))
