"""A TCP gateway in front of a registry, which can break connections in ways that an HTTP server cannot.

Usually the gateway relays every connection. While it has a ``Misbehaviour``, each new connection is handed to that
function instead, and the connections that were open before are closed. While it is shut, connections are refused. Each
connection has a thread, which ends with the connection.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

PIECE: Final = 64 << 10
LOOK: Final = 0.1  # seconds between two looks at whether a connection should end
Misbehaviour = Callable[[socket.socket, threading.Event], None]


class Gateway:
    """A listener on loopback that relays to ``port``. ``connections`` counts the connections that it accepted."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._behaviour: Misbehaviour = self._relay
        self._ending = threading.Event()  # set when the connections of the current behaviour must end
        self._threads: list[threading.Thread] = []
        self.connections = 0
        self.port = 0
        self.open()

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.shut()

    @property
    def host(self) -> str:
        """Return the address at which the gateway listens."""
        return f"127.0.0.1:{self.port}"

    def open(self) -> None:
        """Accept connections, always at the same port."""
        self._ending = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept, self._listener, self._ending)

    def shut(self) -> None:
        """Refuse connections, and close those that are open."""
        self._ending.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def behave(self, how: Misbehaviour | None) -> None:
        """Treat connections in another way from now on. None relays them."""
        self.shut()
        self._behaviour = how or self._relay
        self.open()

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, ending: threading.Event) -> None:
        while True:
            try:
                client = listener.accept()[0]
            except OSError:
                return
            self.connections += 1
            self._spawn(self._treat, client, ending)

    def _treat(self, client: socket.socket, ending: threading.Event) -> None:
        with client, suppress(OSError):
            self._behaviour(client, ending)

    def _relay(self, client: socket.socket, ending: threading.Event) -> None:
        with socket.create_connection(("127.0.0.1", self._target)) as server:
            while not ending.is_set():
                for source in select.select([client, server], [], [], LOOK)[0]:
                    piece = source.recv(PIECE)
                    if not piece:
                        return
                    (server if source is client else client).sendall(piece)


# -- misbehaviours


def silent(client: socket.socket, ending: threading.Event) -> None:
    """Accept the connection, and neither read nor send. A peer whose machine has vanished looks like this."""
    ending.wait()


def resetting(client: socket.socket, ending: threading.Event) -> None:
    """Reset the connection as soon as it is made."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def closing(client: socket.socket, ending: threading.Event) -> None:
    """Read the request, and close the connection without a response."""
    client.recv(PIECE)


def sending(head: bytes, piece: bytes, pause: float) -> Misbehaviour:
    """Return a misbehaviour that answers each request by ``head``, and then by ``piece`` again and again."""

    def behave(client: socket.socket, ending: threading.Event) -> None:
        client.recv(PIECE)
        client.sendall(head)
        while not ending.wait(pause):
            client.sendall(piece)

    return behave
