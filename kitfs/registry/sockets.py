"""The sockets of one client: which are open, so that a forked child can close its copies and closing the client wakes
those who wait.

Nothing is sent on them here: a TLS connection that a child took leave of properly would be over for the parent too.
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
        """Know of a socket; of anything else nothing needs to be known.

        Raises RuntimeError, as httpx does, when the client was closed while it was being connected: nobody would
        close it. It is closed.
        """
        if isinstance(one, socket.socket):
            with forks.guard:
                self._open.add(one)
            if self._shut:
                one.close()
                raise RuntimeError("the client was closed")

    def shut(self) -> None:
        """End every connection, so that threads which wait for one go on. The sockets are for their owners to close."""
        self._shut = True
        with forks.guard:
            found = list(self._open)
        for one in found:
            with suppress(OSError):
                socket.socket.shutdown(
                    one, socket.SHUT_RDWR
                )  # not SSLSocket's, after which bytes would be read that are still encrypted

    def after_fork_in_child(self) -> None:
        """Close the child's copies."""
        for one in list(self._open):
            with suppress(OSError):
                number = one.detach()
                if number >= 0:
                    os.close(number)
