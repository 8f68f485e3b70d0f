"""A TCP relay on loopback that emulates a long or narrow link.

    python -m benchmarks.link TARGET_PORT --rtt 0.02 --rate 125000000

It prints the port on which it listens and runs until SIGTERM. The bytes of each direction arrive half a round trip
after they were sent, and the handshake takes a round trip. All connections share ``--rate`` bytes a second towards the
client. Each connection has TCP's slow start, its window shrinks while it is idle, and at most ``--window`` bytes are in
flight (6 MiB, which is Linux's default maximum for a receive buffer). Loss and the upstream's rate are not emulated.

The relay moves bytes from socket to pipe to socket by splice(2), which does not copy them, because the peers need the
CPU: a link of 10 Gbit/s takes about a seventh of a core. The process has one thread. It uses select(2), because the
timeouts of epoll(7) are whole milliseconds.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

PIECE = 256 << 10
WINDOW = 6 << 20
FIRST_WINDOW = 10 * 1448  # RFC 6928
SEGMENTS = 64 << 10  # minimum bytes to read at a time, as Linux sends and receives them (GSO, GRO)
IDLE = 0.2  # seconds: Linux's minimum retransmission timeout, after each of which an idle connection's window is halved
ROOM = 8 << 20  # capacity of a pipe where the system permits it (the default counts fragments of 4 KiB)
FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Link(NamedTuple):
    """The seconds of a round trip, and the bytes a second towards the client (0 means no limit)."""

    name: str
    rtt: float
    rate: int


LINKS = (
    Link("1 Gbit/s 20 ms", 0.020, 125_000_000),
    Link("10 Gbit/s 5 ms", 0.005, 1_250_000_000),
    Link("400 Mbit/s 80 ms", 0.080, 50_000_000),
)


class Shared:
    """The rate that all connections share, and the time at which the next byte may leave."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._free = 0.0

    def leave(self, size: int, now: float) -> float:
        """Book ``size`` bytes and return the time at which the last of them leaves."""
        if not self._rate:
            return now
        self._free = max(self._free, now) + size / self._rate
        return self._free


class Direction:
    """One direction of a connection. Bytes wait in a pipe until they are due."""

    def __init__(self, source: socket.socket, sink: socket.socket, link: Link, shared: Shared, window: int) -> None:
        self.source, self.sink = source, sink
        self._link, self._shared, self._largest = link, shared, window
        self._out, self._in = os.pipe2(os.O_NONBLOCK)
        try:
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, ROOM)
        except PermissionError:
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, 1 << 20)
        self.opened = time.monotonic()
        self._pieces: deque[tuple[float, int]] = deque()  # (time of arrival, bytes)
        self._unconfirmed: deque[tuple[float, int]] = deque()  # (time at which the acknowledgement arrives, bytes)
        self._under_way = 0
        self._allowed = FIRST_WINDOW
        self._sent = 0.0
        self._full = False  # whether all slots of the pipe are used
        self.ended = self.closed = False

    def wants_input(self) -> bool:
        return not (self.ended or self._full) and self._room() >= min(SEGMENTS, self._allowed // 4)

    def _room(self) -> int:
        """Return the number of bytes that the window allows at this time."""
        return min(self._allowed, self._largest) - self._under_way

    def wants_output(self, now: float) -> bool:
        return not self.closed and bool(self._pieces) and self._pieces[0][0] <= now

    def next_time(self, now: float) -> float:
        """Return the time of the next event: the arrival of a piece or of an acknowledgement."""
        times = [queue[0][0] for queue in (self._pieces, self._unconfirmed) if queue and queue[0][0] > now]
        return min(times, default=now + 3600)

    def acknowledge(self, now: float) -> None:
        while self._unconfirmed and self._unconfirmed[0][0] <= now:
            size = self._unconfirmed.popleft()[1]
            self._under_way -= size
            self._allowed = min(self._allowed + size, self._largest)

    def take(self, now: float) -> None:
        """Move available bytes from the source into the pipe."""
        if not self._under_way and (halvings := int((now - self._sent) / (IDLE + self._link.rtt))):
            self._allowed = max(FIRST_WINDOW, self._allowed >> min(halvings, 64))
        try:
            size = os.splice(self.source.fileno(), self._in, min(self._room(), PIECE), flags=FLAGS)
        except BlockingIOError:
            self._full = bool(self._pieces)
            return
        except OSError:
            size = 0
        if not size:
            self.ended = True
            return
        self._sent = now
        self._under_way += size
        arrives = max(self._shared.leave(size, now), self.opened + self._link.rtt) + self._link.rtt / 2
        self._pieces.append((arrives, size))

    def give(self, now: float) -> None:
        """Move the bytes that are due from the pipe into the sink."""
        while self._pieces and self._pieces[0][0] <= now:
            due, size = self._pieces.popleft()
            try:
                moved = os.splice(self._out, self.sink.fileno(), size, flags=FLAGS)
            except BlockingIOError:
                moved = 0
            except OSError:  # the receiver has closed, so the sender is closed too
                self.ended = self.closed = True
                return
            if moved:
                self._full = False
                self._unconfirmed.append((now + self._link.rtt / 2, moved))
            if moved < size:
                self._pieces.appendleft((due, size - moved))
                return

    def finish(self) -> None:
        """Close the sink for writing once the source has ended and all its bytes have arrived."""
        if self.ended and not self._pieces and not self.closed:
            self.closed = True
            try:
                self.sink.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def close(self) -> None:
        os.close(self._out)
        os.close(self._in)


@dataclass
class Connection:
    """A client, the target, and the two directions between them."""

    up: Direction
    down: Direction

    def close(self) -> None:
        for direction in (self.up, self.down):
            direction.close()
            direction.source.close()


def connect(client: socket.socket, port: int, link: Link, shared: Shared, window: int) -> Connection:
    """Open a connection to the target for a client that has connected."""
    target = socket.create_connection(("127.0.0.1", port))
    for one in (client, target):
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(
        Direction(client, target, link, Shared(0), window), Direction(target, client, link, shared, window)
    )


def relay(server: socket.socket, port: int, link: Link, window: int) -> None:
    """Relay connections until the process ends."""
    shared = Shared(link.rate)
    connections: list[Connection] = []
    while True:
        now = time.monotonic()
        directions = [one for connection in connections for one in (connection.up, connection.down)]
        for one in directions:
            one.acknowledge(now)
        readers = {one.source: one for one in directions if one.wants_input()}
        writers = {one.sink: one for one in directions if one.wants_output(now)}
        wait = min((one.next_time(now) for one in directions), default=now + 3600) - now
        readable, writable, _ = select.select([server, *readers], list(writers), [], wait)
        now = time.monotonic()
        for ready in readable:
            if ready is server:
                connections.append(connect(server.accept()[0], port, link, shared, window))
            else:
                readers[ready].take(now)
        for ready in writable:
            writers[ready].give(now)
        for one in directions:
            one.finish()
        for connection in [one for one in connections if one.down.closed]:
            connections.remove(connection)
            connection.close()


@contextmanager
def slow(port: int, link: Link) -> Iterator[int]:
    """Run a link to a port of loopback as a separate process, and yield the port to which clients connect."""
    command = [sys.executable, "-m", "benchmarks.link", str(port), "--rtt", str(link.rtt), "--rate", str(link.rate)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()


def main() -> None:
    """Relay until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int, help="port on loopback to which to relay")
    parser.add_argument("--rtt", type=float, default=0.0, help="seconds that a round trip takes")
    parser.add_argument("--rate", type=int, default=0, help="bytes a second towards the client (0 means no limit)")
    parser.add_argument("--window", type=int, default=WINDOW, help="maximum bytes in flight on each connection")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        relay(server, options.port, Link("", options.rtt, options.rate), options.window)


if __name__ == "__main__":
    main()
