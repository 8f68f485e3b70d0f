"""Exchange messages and descriptors between the supervisor of a mount and its workers.

A message is a JSON object with a field ``type``, in one packet of a Unix socket. This module imports only the standard
library, because the supervisor must stay small. Threading: any thread may send; only one thread may receive.

From a worker to the supervisor:

    prepared   the worker has opened the kit, and waits for ``go``
    ready      the worker serves the mount. The first worker adds the fields of the mount, and the descriptors that
               must stay open (``supervisor``)
    upgrade    a client of the status socket asks for a new worker; the descriptor is the client's connection
    ended      the mount has ended, or has become a sealed mount that needs no process
    failed     the worker ends because of an error, which is in the field ``error`` (``errors.error_to_json``)

From the supervisor to a worker:

    state      the mount that the worker shall serve, and its descriptors
    go         the worker may serve the mount now; no other worker does
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from typing import Any, Final

LONGEST: Final = 1 << 20  # bytes of a message
MOST_FDS: Final = 32  # descriptors of a message


class Channel:
    """One end of a channel. ``receive`` returns an empty message when the process at the other end has ended."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @classmethod
    def of(cls, fd: int) -> Channel:
        """Return the channel of a descriptor."""
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> bool:
        """Send a message. Returns False if the process at the other end has ended."""
        try:
            socket.send_fds(self._socket, [json.dumps(message).encode()], fds)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def receive(self) -> tuple[dict[str, Any], list[int]]:
        """Wait for the next message, and return it with its descriptors, which are closed on exec."""
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, LONGEST, MOST_FDS)
        except ConnectionResetError:
            return {}, []
        for fd in fds:
            os.set_inheritable(fd, False)  # recv_fds of Python 3.11 ignores MSG_CMSG_CLOEXEC
        return (json.loads(data) if data else {}), fds

    def close(self) -> None:
        self._socket.close()


def pair() -> tuple[Channel, Channel]:
    """Return the two ends of a new channel."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST)
    return Channel(ends[0]), Channel(ends[1])
