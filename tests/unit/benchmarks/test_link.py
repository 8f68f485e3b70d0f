"""The emulated link of the benchmarks does not change bytes, and delays them at least as long as its settings require.

The tests assert only lower bounds on times, because a slow machine delays everything.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.link import Link, slow


@contextmanager
def server(answer: bytes) -> Iterator[int]:
    """Run a server that reads one byte, sends `answer` and closes the connection. Yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection = listening.accept()[0]
                except OSError:
                    return
                with connection:
                    connection.recv(1)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def ask(port: int) -> tuple[bytes, float]:
    """Send one byte to a port, and read until the connection is closed. Return the received bytes and the seconds."""
    begin = time.monotonic()
    with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rb") as received:
        connection.sendall(b"?")
        return received.read(), time.monotonic() - begin


def test_bytes_arrive_unchanged_and_in_order() -> None:
    answer = os.urandom(20 << 20)
    with server(answer) as target, slow(target, Link("", 0.001, 0)) as port:
        assert ask(port)[0] == answer
        assert ask(port)[0] == answer


def test_an_answer_takes_the_handshake_and_a_round_trip() -> None:
    with server(b"!") as target, slow(target, Link("", 0.1, 0)) as port:
        answer, seconds = ask(port)
    assert answer == b"!"
    assert seconds >= 0.2


def test_the_rate_is_not_exceeded() -> None:
    with server(bytes(1 << 20)) as target, slow(target, Link("", 0.0, 4 << 20)) as port:
        answer, seconds = ask(port)
    assert len(answer) == 1 << 20
    assert seconds >= 0.25


def test_slow_start_takes_round_trips() -> None:
    """A response of 200 KiB takes four round trips, which carry 14, 28, 56 and 102 KiB."""
    with server(bytes(200 << 10)) as target, slow(target, Link("", 0.05, 0)) as port:
        assert ask(port)[1] >= 5 * 0.05
