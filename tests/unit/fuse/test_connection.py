"""Tests of a connection of the kernel transport. A test plays the kernel at the other end of a socketpair."""

from __future__ import annotations

import errno
import logging
import os
import struct
import subprocess
import threading
from collections.abc import Iterator
from typing import cast

import pytest

from kitfs.errors import IntegrityError, MountError, Unauthorized
from kitfs.fuse import abi
from kitfs.fuse.abi import InitFlag
from kitfs.fuse.blocking import dying
from kitfs.fuse.connection import Connection, Continued
from kitfs.fuse.filesystem import FileSystem
from kitfs.kit.inode import Inode
from kitfs.metrics import Counters
from tests.fakes import fusewire as wires
from tests.fakes.filesystem import Link, MemoryFileSystem
from tests.fakes.fusewire import FuseWire
from tests.host import wait_until

FILES = {"file": b"0123456789", "dir/inner": b"inner", "dir/cold": b"cold", "link": Link("dir/inner"), "empty": None}
KEEP_CACHE, CACHE_DIR, NOFLUSH = 1 << 1, 1 << 3, 1 << 5


class Doomed:
    """A fake of the function ``dying``. ``pids`` contains the dying threads. ``asked`` counts the calls."""

    def __init__(self) -> None:
        self.pids: set[int] = set()
        self.asked = threading.Semaphore(0)

    def __call__(self, pid: int) -> bool:
        self.asked.release()
        return pid in self.pids


@pytest.fixture
def fs() -> MemoryFileSystem:
    return MemoryFileSystem(FILES)


@pytest.fixture
def counters() -> Counters:
    return Counters()


@pytest.fixture
def doomed() -> Doomed:
    return Doomed()


@pytest.fixture
def socket() -> Iterator[FuseWire]:
    """Yield the kernel's end of a socketpair that no Connection uses yet."""
    with FuseWire() as wire:
        yield wire


@pytest.fixture
def table() -> Iterator[int]:
    """Yield the descriptor of an empty backing table."""
    fd = os.memfd_create("backings")
    yield fd
    os.close(fd)


@pytest.fixture
def connection(socket: FuseWire, fs: MemoryFileSystem, counters: Counters, doomed: Doomed, table: int) -> Connection:
    """Return a connection with two workers. It is not running yet."""
    log = logging.getLogger("kitfs.test")
    fds = [socket.fd, socket.fd]
    return Connection(cast(FileSystem, fs), fds, counters=counters, log=log, table=table, is_dying=doomed)


@pytest.fixture
def fresh(socket: FuseWire, connection: Connection, fs: MemoryFileSystem) -> Iterator[FuseWire]:
    """Yield the kernel's end of a running connection. INIT has not been sent yet."""
    socket.serve(connection)
    yield socket
    for gate in fs.cold.values():
        gate.set()


@pytest.fixture
def wire(fresh: FuseWire) -> FuseWire:
    """Return the kernel's end of a running connection, after INIT."""
    fresh.init()
    return fresh


def cold_read(wire: FuseWire, fs: MemoryFileSystem, *, pid: int = 0) -> tuple[int, threading.Event]:
    """Send a read of dir/cold, which has to wait. Return its unique number, and an event that ends the wait."""
    node = wire.lookup(b"dir", b"cold")
    handle, _ = wire.open(node)
    gate = fs.cold["read", "dir/cold"] = threading.Event()
    return wire.send(wires.READ, node=node, body=wire.read_body(handle, 0, 4096), pid=pid), gate


# -- INIT


def test_init_is_answered_and_then_it_is_ready(fresh: FuseWire) -> None:
    """The reply has version 7.40 and some flags, and ``ready`` is called once."""
    assert not fresh.ready.is_set()
    answer = fresh.init()
    major, minor, readahead, flags = struct.unpack_from("=IIII", answer.body)
    assert (answer.error, major, minor, readahead) == (0, 7, 40, 131072)
    assert flags == 1 << 0 | 1 << 13 | 1 << 14 | 1 << 18 | 1 << 22 | 1 << 23
    assert fresh.ready.wait(wires.PATIENCE)


def test_a_newer_major_is_asked_to_come_down(fresh: FuseWire) -> None:
    """The reply contains only the major version 7. Then the kernel sends INIT again with version 7."""
    assert struct.unpack_from("=I", fresh.init(major=8, minor=0).body) == (7,)
    assert not fresh.ready.is_set()
    assert struct.unpack_from("=II", fresh.init().body) == (7, 40)


@pytest.mark.parametrize(("major", "minor"), [(6, 40), (7, 22)])
def test_a_kernel_that_is_too_old_is_refused(fresh: FuseWire, major: int, minor: int) -> None:
    """The kernel gets EPROTO, and the caller of the connection gets MountError."""
    assert fresh.init(major=major, minor=minor).error == errno.EPROTO
    fresh.wait()
    assert isinstance(fresh.failure, MountError)
    assert str(fresh.failure) == f"this kernel has FUSE {major}.{minor}, but kitfs needs 7.23 (Linux 3.15)"


def test_an_unmount_before_init_is_not_an_error(fresh: FuseWire) -> None:
    fresh.hang_up()
    assert (fresh.failure, fresh.ready.is_set()) == (None, False)


def test_directories_are_not_cached_by_kernels_that_cannot(fresh: FuseWire) -> None:
    """FOPEN_CACHE_DIR is set only for kernels with version 7.28 or newer."""
    fresh.init(minor=27)
    assert fresh.open(1, opcode=wires.OPENDIR)[1] == 0


# -- a connection that another process has served


def test_the_next_process_serves_without_init(
    socket: FuseWire, fs: MemoryFileSystem, counters: Counters, table: int
) -> None:
    """The next process asks the kernel for the unanswered requests.

    With ``refuse``, they fail with EIO, and later requests do not.
    """
    agreed = abi.Negotiated(40, InitFlag.HAS_RESEND, 0)
    connection = Connection(
        cast(FileSystem, fs), [socket.fd], counters=counters, log=logging.getLogger("kitfs.test"), table=table,
        continued=Continued(agreed, refuse=True),
    )  # fmt: skip
    socket.serve(connection)
    assert socket.notification() == (7, b"")
    assert connection.kept == (socket.fd,)
    again = abi.RESENT_BIT | 2
    socket.send_raw(struct.pack("=IIQQIIIHH", 40, wires.STATFS, again, 1, 0, 0, 0, 0, 0))
    assert socket.answer(again).error == errno.EIO
    assert socket.call(wires.STATFS).error == 0
    socket.hang_up()


def test_requests_are_not_read_from_the_descriptor_that_is_kept(
    socket: FuseWire, fs: MemoryFileSystem, counters: Counters, table: int
) -> None:
    """If the kernel cannot send requests again, only the descriptor of INIT is kept, and others serve the requests."""
    clone = os.dup(socket.fd)
    try:
        connection = Connection(
            cast(FileSystem, fs), [socket.fd, clone], counters=counters, log=logging.getLogger("kitfs.test"),
            table=table, resend=False,
        )  # fmt: skip
        socket.serve(connection)
        socket.init()
        assert socket.call(wires.STATFS).error == 0
        assert connection.kept == (socket.fd,)
    finally:
        socket.hang_up()
        os.close(clone)


# -- operations


def test_lookup_getattr_open_read_release(wire: FuseWire, fs: MemoryFileSystem) -> None:
    node = wire.lookup(b"file")
    attr = wire.call(wires.GETATTR, node=node, body=bytes(16)).body
    assert struct.unpack_from("=QIIQQ", attr)[3:] == (node, 10)
    handle, flags = wire.open(node)
    assert flags == KEEP_CACHE | NOFLUSH
    assert wire.call(wires.READ, node=node, body=wire.read_body(handle, 3, 4)) == (0, b"3456")
    assert wire.call(wires.READ, node=node, body=wire.read_body(handle, 8, 4)) == (0, b"89")
    assert wire.call(wires.READ, node=node, body=wire.read_body(handle, 10, 4)) == (0, b"")
    assert wire.call(wires.RELEASE, node=node, body=struct.pack("=QIIQ", handle, 0, 0, 0)) == (0, b"")
    assert fs.open_handles == {}


def test_pages_of_a_wrong_file_are_dropped(connection: Connection, wire: FuseWire, fs: MemoryFileSystem) -> None:
    """The kernel is notified to drop all cached pages of each inode.

    When the file is next opened, its cached pages are dropped. Later openings keep them.
    """
    node = wire.lookup(b"file")
    fs.by_layer["sha256:1"] = [Inode(node), Inode(7)]
    connection.invalidate(fs.failed("sha256:1"))
    assert [wire.notification() for _ in range(2)] == [(2, struct.pack("=Qqq", n, 0, 0)) for n in (node, 7)]
    assert [wire.open(node)[1] for _ in range(2)] == [NOFLUSH, KEEP_CACHE | NOFLUSH]


def test_an_opening_that_waits_keeps_nothing_waiting(wire: FuseWire, fs: MemoryFileSystem) -> None:
    """While an OPEN waits in the thread pool, another request is answered."""
    node = wire.lookup(b"file")
    gate = fs.cold["open", "file"] = threading.Event()
    unique = wire.send(wires.OPEN, node=node, body=struct.pack("=II", os.O_RDONLY, 0))
    assert wire.call(wires.STATFS).error == 0
    gate.set()
    assert wire.answer(unique).error == 0


def test_directories_are_listed_with_both_operations(wire: FuseWire) -> None:
    """A listing starts at the requested offset, contains complete entries only, and is empty at the end."""
    handle, flags = wire.open(1, opcode=wires.OPENDIR)
    assert flags == KEEP_CACHE | CACHE_DIR
    for opcode, size in ((wires.READDIR, 32), (wires.READDIRPLUS, 160)):
        names = []
        offset = 0
        while body := wire.call(opcode, body=wire.read_body(handle, offset, size)).body:
            assert len(body) == size
            _, offset, length, _ = struct.unpack_from("=QQII", body, size - 32)
            names.append(body[size - 8 : size - 8 + length])
        assert names == [b".", b"..", b"file", b"dir", b"link", b"empty"]
    assert wire.call(wires.RELEASEDIR, body=struct.pack("=QIIQ", handle, 0, 0, 0)) == (0, b"")


def test_readlink_statfs_and_destroy(wire: FuseWire) -> None:
    """The target of a link is sent without a NUL, and statfs reports no free blocks. DESTROY is answered too."""
    assert wire.call(wires.READLINK, node=wire.lookup(b"link")) == (0, b"dir/inner")
    assert struct.unpack_from("=QQQ", wire.call(wires.STATFS).body) == (12345, 0, 12345)
    assert wire.call(wires.DESTROY) == (0, b"")


def test_extended_attributes_come_whole_or_with_their_size(wire: FuseWire) -> None:
    """A request with size 0 returns the size of the value. If the size is not 0 but too small, ERANGE is returned."""
    node = wire.lookup(b"dir")

    def get(size: int, name: bytes) -> tuple[int, bytes]:
        return wire.call(wires.GETXATTR, node=node, body=struct.pack("=II", size, 0) + name + b"\0")

    def names(size: int) -> tuple[int, bytes]:
        return wire.call(wires.LISTXATTR, node=node, body=struct.pack("=II", size, 0))

    assert get(0, b"user.kitfs.path") == (0, struct.pack("=II", 3, 0))
    assert get(3, b"user.kitfs.path") == (0, b"dir")
    assert get(2, b"user.kitfs.path") == (errno.ERANGE, b"")
    assert get(9, b"user.nothing") == (errno.ENODATA, b"")
    assert names(0) == (0, struct.pack("=II", 16, 0))
    assert names(16) == (0, b"user.kitfs.path\0")
    assert names(15) == (errno.ERANGE, b"")


def test_a_name_that_is_final_is_cached_as_missing(wire: FuseWire, fs: MemoryFileSystem) -> None:
    """If a name can never exist, the reply has node 0 and a timeout. If it may exist later, the reply is ENOENT."""
    fs.passing.add("later")
    final = wire.call(wires.LOOKUP, body=b"never\0")
    assert final.error == 0
    assert struct.unpack_from("=QQQ", final.body) == (0, 0, 365 * 86400)
    assert wire.call(wires.LOOKUP, body=b"later\0") == (errno.ENOENT, b"")


@pytest.mark.parametrize(
    ("opcode", "expected"),
    [
        *[(number, errno.EROFS) for number in (4, 6, 8, 9, 10, 11, 12, 13, 16, 21, 24, 35, 43, 45, 47, 51)],
        *[(number, errno.ENOSYS) for number in (20, wires.FLUSH, 30, 31, 34, 37, 40, wires.LSEEK, 50, 52, 4711)],
        (wires.IOCTL, errno.ENOTTY),
    ],
)
def test_what_writes_is_erofs_and_the_rest_unknown(wire: FuseWire, opcode: int, expected: int) -> None:
    """Operations that write return EROFS. FLUSH, FSYNC, LSEEK, STATX and unknown operations return ENOSYS."""
    assert wire.call(opcode, body=bytes(64)) == (expected, b"")


def test_forgets_have_no_reply(wire: FuseWire) -> None:
    wire.send(wires.FORGET, body=bytes(8))
    wire.send(wires.BATCH_FORGET, body=struct.pack("=IIQQ", 1, 0, 5, 1))
    assert wire.call(wires.STATFS).error == 0
    assert wire.replies == {}


def test_requests_are_counted_by_operation(wire: FuseWire, counters: Counters) -> None:
    """When the connection has ended, the counters include every request."""
    node = wire.lookup(b"file")
    handle, _ = wire.open(node)
    for _ in range(100):
        wire.call(wires.READ, node=node, body=wire.read_body(handle, 0, 1))
    wire.hang_up()
    assert [counters.get("fuse_requests", name) for name in ("lookup", "open", "read")] == [1, 1, 100]


# -- errors


def test_a_read_fails_with_eio_whatever_happened(
    wire: FuseWire, fs: MemoryFileSystem, counters: Counters, caplog: pytest.LogCaptureFixture
) -> None:
    """If the registry refuses access, a read returns EIO, and the log contains the cause."""
    fs.fails["lookup", "dir"] = fs.fails["read", "file"] = Unauthorized("registry.example: 401")
    assert wire.call(wires.LOOKUP, body=b"dir\0").error == errno.EACCES
    node = wire.lookup(b"file")
    handle, _ = wire.open(node)
    assert wire.call(wires.READ, node=node, body=wire.read_body(handle, 0, 1)) == (errno.EIO, b"")
    assert counters.get("errors") == 1
    assert [r.getMessage() for r in caplog.records] == ["read: registry.example: 401"]


def test_a_bug_is_eio_and_the_session_goes_on(wire: FuseWire, fs: MemoryFileSystem, counters: Counters) -> None:
    """An unexpected exception is counted and returned as EIO. The next request is answered."""
    assert wire.call(wires.GETATTR, node=4711, body=bytes(16)).error == errno.EIO
    assert counters.get("bugs") == 1
    assert wire.call(wires.STATFS).error == 0


def test_garbage_does_not_end_the_session(wire: FuseWire, counters: Counters) -> None:
    """A message that is not a valid request gets no reply."""
    wire.send_raw(b"garbage")
    assert wire.call(wires.LOOKUP, body=b"no terminator").error == errno.EIO
    assert counters.get("bugs") == 2


# -- waiting


def test_what_waits_does_not_keep_the_rest_waiting(wire: FuseWire, fs: MemoryFileSystem) -> None:
    """While a hundred reads wait for missing bytes, a getattr and a read of stored bytes are answered."""
    node = wire.lookup(b"dir", b"cold")
    handle, _ = wire.open(node)
    warm = wire.lookup(b"file")
    warm_handle, _ = wire.open(warm)
    gate = fs.cold["read", "dir/cold"] = threading.Event()
    waiting = [wire.send(wires.READ, node=node, body=wire.read_body(handle, 0, 4)) for _ in range(100)]
    assert wire.call(wires.GETATTR, node=node, body=bytes(16)).error == 0
    assert wire.call(wires.READ, node=warm, body=wire.read_body(warm_handle, 0, 4)).body == b"0123"
    gate.set()
    assert {wire.answer(unique) for unique in waiting} == {(0, b"cold")}


@pytest.mark.parametrize(
    ("opcode", "operation", "body"), [(wires.LOOKUP, "lookup", b"dir\0"), (wires.OPENDIR, "opendir", bytes(8))]
)
def test_lookups_and_listings_wait_aside_too(
    wire: FuseWire, fs: MemoryFileSystem, opcode: int, operation: str, body: bytes
) -> None:
    """The file system is called with wait=False first. Then a thread of the pool calls it with wait=True."""
    node = 1 if opcode == wires.LOOKUP else wire.lookup(b"dir")
    gate = fs.cold[operation, "dir"] = threading.Event()
    unique = wire.send(opcode, node=node, body=body)
    assert wire.call(wires.STATFS).error == 0
    wait_until(lambda: (operation, "dir", True) in fs.calls, "no thread of the pool called the file system")
    gate.set()
    assert wire.answer(unique).error == 0
    assert [wait for _, path, wait in fs.calls if path == "dir"][-2:] == [False, True]


def test_a_wait_that_fails_is_an_error_of_its_request(wire: FuseWire, fs: MemoryFileSystem, counters: Counters) -> None:
    """The request returns EIO, and the error is counted."""
    unique, gate = cold_read(wire, fs)
    fs.fails["read", "dir/cold"] = IntegrityError("sha256:1")
    gate.set()
    assert wire.answer(unique) == (errno.EIO, b"")
    assert counters.get("errors") == 1


def test_a_signal_does_not_fail_a_read(wire: FuseWire, fs: MemoryFileSystem, doomed: Doomed) -> None:
    """An INTERRUPT for a thread that is not dying is ignored."""
    unique, gate = cold_read(wire, fs, pid=5)
    wire.interrupt(unique)
    assert doomed.asked.acquire(timeout=wires.PATIENCE)
    gate.set()
    assert wire.answer(unique) == (0, b"cold")


def test_the_read_of_a_killed_thread_ends_at_once(wire: FuseWire, fs: MemoryFileSystem, doomed: Doomed) -> None:
    """The read returns EINTR at once. Its later result is discarded."""
    doomed.pids.add(5)
    unique, gate = cold_read(wire, fs, pid=5)
    wire.interrupt(unique)
    assert wire.answer(unique) == (errno.EINTR, b"")
    gate.set()
    assert wire.call(wires.STATFS).error == 0
    wire.hang_up()
    assert wire.replies == {}


def test_a_thread_that_is_killed_after_a_harmless_signal_is_noticed(
    wire: FuseWire, fs: MemoryFileSystem, doomed: Doomed
) -> None:
    """The kernel sends INTERRUPT only once. The connection checks again and again whether the thread is dying."""
    unique, _ = cold_read(wire, fs, pid=5)
    wire.interrupt(unique)
    for _ in range(3):
        assert doomed.asked.acquire(timeout=wires.PATIENCE)
    doomed.pids.add(5)
    assert wire.answer(unique) == (errno.EINTR, b"")


def test_an_interrupt_that_overtakes_its_request_counts(wire: FuseWire, fs: MemoryFileSystem, doomed: Doomed) -> None:
    """If there are several workers, an INTERRUPT may be handled before the request that it refers to."""
    doomed.pids.add(5)
    node = wire.lookup(b"dir", b"cold")
    handle, _ = wire.open(node)
    fs.cold["read", "dir/cold"] = threading.Event()
    wire.interrupt(wire.unique + 2)
    assert wire.call(wires.STATFS).error == 0  # the INTERRUPT names this request, which does not wait and is answered
    wire.interrupt(wire.unique + 4)
    assert wire.call(wires.STATFS).error == 0
    assert wire.call(wires.READ, node=node, body=wire.read_body(handle, 0, 4), pid=5) == (errno.EINTR, b"")


def test_an_unmount_ends_the_session_while_requests_wait(wire: FuseWire, fs: MemoryFileSystem) -> None:
    """A result that arrives after the unmount is discarded."""
    _, gate = cold_read(wire, fs)
    wire.hang_up()
    gate.set()
    assert wire.failure is None


# -- dying processes


def test_a_living_process_is_not_dying() -> None:
    """A process in another pid namespace has the pid 0 in requests. Pid 0 is not regarded as dying."""
    assert not dying(os.getpid())
    assert not dying(0)


def test_a_process_that_is_gone_is_dying() -> None:
    """A zombie is regarded as dying too."""
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert dying(child.pid)
    child.wait()
    assert dying(child.pid)
