"""Track the open sockets of a client. A forked child closes its copies, and closing the client wakes waiting threads.

This module sends nothing on the sockets. If a child sent the closing message of TLS, the connection would end for the
parent too. Threading: any thread may use this module.
"""

from __future__ import annotations

import os
import socket
import weakref
from contextlib import suppress

from kitfs import forks


class Sockets:
    """The open plain and TLS sockets of a client."""

    def __init__(self) -> None:
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._shut = False
        forks.watch_child(self)

    def add(self, one: object) -> None:
        """Add a socket. Other objects are ignored.

        If the client was closed while the socket connected, the socket is closed and RuntimeError is raised, as in
        httpx.
        """
        if isinstance(one, socket.socket):
            with forks.guard:
                self._open.add(one)
            if self._shut:
                one.close()
                raise RuntimeError("the client was closed")

    def shut(self) -> None:
        """Shut down every connection, so that the threads that wait on it wake. The owner of a socket closes it."""
        self._shut = True
        with forks.guard:
            found = list(self._open)
        for one in found:
            with suppress(OSError):
                # After SSLSocket.shutdown, a read would return encrypted bytes.
                socket.socket.shutdown(one, socket.SHUT_RDWR)

    def after_fork_in_child(self) -> None:
        """Close the child's copies of the sockets."""
        for one in list(self._open):
            with suppress(OSError):
                number = one.detach()
                if number >= 0:
                    os.close(number)
