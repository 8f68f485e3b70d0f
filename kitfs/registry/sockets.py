"""The open sockets of one client: a forked child closes its copies, and closing the client wakes threads that wait.

Nothing is sent on the sockets here: if a child closed a TLS connection properly, it would end for the parent too.
Threading: any thread.
"""

from __future__ import annotations

import os
import socket
import weakref
from contextlib import suppress

from kitfs import forks


class Sockets:
    """Sockets, plain and TLS, for as long as they are open."""

    def __init__(self) -> None:
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._shut = False
        forks.watch_child(self)

    def add(self, one: object) -> None:
        """Add a socket; anything else is ignored.

        If the client was closed while the socket was being connected, the socket is closed, and RuntimeError is raised,
        as httpx does.
        """
        if isinstance(one, socket.socket):
            with forks.guard:
                self._open.add(one)
            if self._shut:
                one.close()
                raise RuntimeError("the client was closed")

    def shut(self) -> None:
        """Shut every connection down, so that threads which wait for it wake. Its owner closes the socket."""
        self._shut = True
        with forks.guard:
            found = list(self._open)
        for one in found:
            with suppress(OSError):
                # not SSLSocket.shutdown, after which a read would return bytes that are still encrypted
                socket.socket.shutdown(one, socket.SHUT_RDWR)

    def after_fork_in_child(self) -> None:
        """Close the child's copies."""
        for one in list(self._open):
            with suppress(OSError):
                number = one.detach()
                if number >= 0:
                    os.close(number)
