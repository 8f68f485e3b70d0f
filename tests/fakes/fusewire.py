"""The kernel's side of /dev/fuse on a socketpair, for tests of ``kitfs.fuse.connection`` without a kernel.

    with FuseWire() as wire:
        wire.serve(connection)                # runs connection.run on a thread; the connection reads wire.fd
        wire.init()
        reply = wire.call(LOOKUP, node=1, body=b"name\\0")

Messages keep their boundaries (SOCK_SEQPACKET), as on /dev/fuse. The numbers and structs are copied from <linux/fuse.h>
and not imported from kitfs, because the tests would otherwise repeat a mistake in kitfs. ``send`` returns the unique
number of the request, and ``unique`` is the number of the last request. ``answer(unique)`` waits for the reply to a
request, and stores the replies to other requests in ``replies``. Unlike /dev/fuse, a socketpair cannot be cloned, does
not return EINVAL for a small read buffer, and does not return ENOENT for a late reply.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import NamedTuple, Protocol

LOOKUP, FORGET, GETATTR, SETATTR, READLINK, OPEN, READ, WRITE, STATFS = 1, 2, 3, 4, 5, 14, 15, 16, 17
RELEASE, GETXATTR, LISTXATTR, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, INTERRUPT = 18, 22, 23, 25, 26, 27, 28, 29, 36
DESTROY, IOCTL, BATCH_FORGET, READDIRPLUS, LSEEK = 38, 39, 42, 44, 46
EVERY_FLAG = 0x7FFFFFFF
PATIENCE = 60.0  # seconds to wait for a reply


class Answer(NamedTuple):
    """A reply: its errno as a positive number, and the bytes after its header."""

    error: int
    body: bytes


class Runs(Protocol):
    """An object whose ``run`` serves a connection."""

    def run(self, ready: Callable[[], None]) -> None: ...


class FuseWire:
    """The kernel's side of /dev/fuse. The module's docstring explains its use."""

    def __init__(self) -> None:
        self._kernel, self._daemon = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._kernel.settimeout(PATIENCE)
        self.fd = self._daemon.fileno()
        self.ready = threading.Event()
        self.failure: BaseException | None = None
        self.unique = 0
        self.replies: dict[int, Answer] = {}
        self._notifications: list[tuple[int, bytes]] = []
        self._thread: threading.Thread | None = None

    def __enter__(self) -> FuseWire:
        return self

    def __exit__(self, *about: object) -> None:
        self.hang_up()
        self._kernel.close()
        self._daemon.close()

    def serve(self, connection: Runs) -> None:
        """Run the connection on a thread until ``hang_up``.

        ``failure`` is the exception that the connection raises, if any.
        """

        def run() -> None:
            try:
                connection.run(self.ready.set)
            except BaseException as e:  # noqa: BLE001 - the test looks at it
                self.failure = e

        self._thread = threading.Thread(target=run, name="connection")
        self._thread.start()

    def hang_up(self) -> None:
        """Close the wire as an unmount does, and wait until the connection has ended."""
        try:
            self._kernel.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.wait()

    def wait(self) -> None:
        """Wait until the connection has ended."""
        if self._thread is not None:
            self._thread.join(PATIENCE)
            assert not self._thread.is_alive(), "the connection did not end"

    def send_raw(self, data: bytes) -> None:
        """Send one message unchanged."""
        self._kernel.send(data)

    def send(self, opcode: int, *, node: int = 1, body: bytes = b"", pid: int = 0) -> int:
        """Send one request and return its unique number."""
        self.unique += 2  # the kernel sets the lowest bit for INTERRUPT
        self.send_raw(
            struct.pack("=IIQQIIIHH", 40 + len(body), opcode, self.unique, node, os.geteuid(), os.getegid(), pid, 0, 0)
            + body
        )
        return self.unique

    def interrupt(self, unique: int) -> None:
        """Send INTERRUPT for a request."""
        self.send_raw(struct.pack("=IIQQIIIHHQ", 48, INTERRUPT, unique | 1, 0, 0, 0, 0, 0, 0, unique))

    def answer(self, unique: int) -> Answer:
        """Return the reply to a request."""
        while unique not in self.replies:
            self._take()
        return self.replies.pop(unique)

    def notification(self) -> tuple[int, bytes]:
        """Return (code, body) of the next notification, which is a message whose unique number is 0."""
        while not self._notifications:
            self._take()
        return self._notifications.pop(0)

    def _take(self) -> None:
        data = self._kernel.recv(1 << 20)
        assert data, "the connection was closed"
        length, error, about = struct.unpack_from("=IiQ", data)
        assert length == len(data), "the length of a reply is not the length in its header"
        if about == 0:
            self._notifications.append((error, data[16:]))
            return
        assert error <= 0
        assert about not in self.replies, "a request got a second reply"
        self.replies[about] = Answer(-error, data[16:])

    def call(self, opcode: int, *, node: int = 1, body: bytes = b"", pid: int = 0) -> Answer:
        """Send a request and return its reply."""
        return self.answer(self.send(opcode, node=node, body=body, pid=pid))

    def init(self, *, major: int = 7, minor: int = 40, flags: int = EVERY_FLAG) -> Answer:
        """Send INIT as Linux 6.x does."""
        return self.call(INIT, node=0, body=struct.pack("=IIIII44x", major, minor, 131072, flags, 0))

    # -- operations

    def lookup(self, *names: bytes) -> int:
        """Return the node id of a path, which must exist."""
        node = 1
        for name in names:
            answer = self.call(LOOKUP, node=node, body=name + b"\0")
            assert answer.error == 0
            node = struct.unpack_from("=Q", answer.body)[0]
        return node

    def open(self, node: int, *, opcode: int = OPEN) -> tuple[int, int]:
        """Open a node and return (handle, flags of the reply)."""
        answer = self.call(opcode, node=node, body=struct.pack("=II", os.O_RDONLY, 0))
        assert answer.error == 0
        handle, flags, _ = struct.unpack("=QIi", answer.body)
        return handle, flags

    @staticmethod
    def read_body(handle: int, offset: int, size: int) -> bytes:
        """Return the body of a READ (fuse_read_in)."""
        return struct.pack("=QQIIQII", handle, offset, size, 0, 0, 0, 0)
