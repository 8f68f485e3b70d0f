"""Serve a file system over a connection of /dev/fuse: read requests, call the file system, and write replies.

``kernel`` makes the mount and the descriptors. A connection outlives this process if another process keeps the
descriptors open: ``Continued`` is what the next process needs to serve the connection. Requests that the earlier
process has read and not answered are then sent again by the kernel (``abi.resend``), or fail with an error if the
kernel is too old for that. Threading: each descriptor has a worker. Descriptors are cloned if
possible, because the workers of one descriptor would wait for the same lock. Workers never block: they call the file
system with ``wait=False``, and pass a request that would block to the blocking pool. So a getattr or a cached read
never waits for the network. A reply is written to the descriptor of its request, where the kernel expects it.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from kitfs.errors import KitfsError, MountError, WouldBlock
from kitfs.fuse import abi
from kitfs.fuse.abi import InitFlag, Negotiated, Op, OpenFlag, Request
from kitfs.fuse.blocking import BlockingPool, Reply, Waiting, dying
from kitfs.fuse.errno_policy import ErrnoPolicy
from kitfs.fuse.invalidation import Invalidation
from kitfs.fuse.passthrough import NativeFiles, inode_of, is_native
from kitfs.fuse.replies import Handle
from kitfs.kit.inode import Inode, NoEntry
from kitfs.metrics import Counters

if TYPE_CHECKING:
    from kitfs.fuse.filesystem import FileSystem

_TALLY: Final = 64  # requests that a worker counts before it takes the lock of the counters
_WRITES: Final = frozenset({
    Op.SETATTR, Op.SYMLINK, Op.MKNOD, Op.MKDIR, Op.UNLINK, Op.RMDIR, Op.RENAME, Op.RENAME2, Op.LINK, Op.WRITE,
    Op.SETXATTR, Op.REMOVEXATTR, Op.CREATE, Op.FALLOCATE, Op.COPY_FILE_RANGE, Op.TMPFILE,
})  # fmt: skip
# Requests without a reply. NOTIFY_REPLY is the answer to notifications that kitfs does not send.
_SILENT: Final = frozenset({Op.FORGET, Op.BATCH_FORGET, Op.NOTIFY_REPLY})


class Continued(NamedTuple):
    """A connection that an earlier process has served: the result of its INIT.

    If ``refuse`` is True, the requests of the earlier process fail with EIO, because one of them may have ended the
    process.
    """

    agreed: Negotiated
    refuse: bool = False


class Connection:
    """A connection to the kernel, from INIT to its end.

    INIT is read from the first descriptor in ``fds``, unless the connection is ``continued``. ``table`` is a descriptor
    of the connection's backing table (``passthrough``). With ``resend=False``, the connection behaves as with a kernel
    that cannot send requests again. The caller closes the descriptors.
    """

    def __init__(
        self,
        filesystem: FileSystem,
        fds: Sequence[int],
        *,
        counters: Counters,
        log: logging.Logger,
        table: int,
        passthrough: bool = False,
        resend: bool = True,
        continued: Continued | None = None,
        is_dying: Callable[[int], bool] = dying,
    ) -> None:
        self._fs = filesystem
        self._fds = tuple(fds)
        self._counters = counters
        self._log = log
        self._failures = ErrnoPolicy(counters, log)
        self._blocking = BlockingPool(eintr=(errno.EINTR, b""), is_dying=is_dying)
        self._invalidation = Invalidation(self._fds[0], log)
        self._native = NativeFiles(filesystem, self._fds[0], log, table=table)
        self._wants_passthrough = passthrough
        self._wants_resend = resend
        self._continued = continued
        self.agreed: Negotiated | None = None if continued is None else continued.agreed
        self._dir_flags = OpenFlag(0)
        self._operations: dict[int, Callable[[Request, bool], bytes | memoryview]] = {
            Op.LOOKUP: self._lookup,
            Op.GETATTR: self._getattr,
            Op.READLINK: self._readlink,
            Op.OPEN: self._open,
            Op.READ: self._read,
            Op.STATFS: self._statfs,
            Op.RELEASE: self._release,
            Op.GETXATTR: self._getxattr,
            Op.LISTXATTR: self._listxattr,
            Op.OPENDIR: self._opendir,
            Op.READDIR: partial(self._readdir, plus=False),
            Op.READDIRPLUS: partial(self._readdir, plus=True),
            Op.RELEASEDIR: self._releasedir,
            Op.DESTROY: lambda request, wait: b"",
        }

    def run(self, ready: Callable[[], None]) -> None:
        """Serve requests until the mount has ended. ``ready`` is called after the reply to INIT.

        Raises MountError if the kernel's protocol is too old.
        """
        if self.agreed is None:
            self.agreed = self._handshake()
        if self.agreed is None:
            return
        self._native.enabled = bool(self.agreed.flags & InitFlag.PASSTHROUGH)
        if self.agreed.minor >= abi.CACHE_DIR_MINOR:
            self._dir_flags = OpenFlag.KEEP_CACHE | OpenFlag.CACHE_DIR
        ready()
        if self._continued is not None and self.agreed.flags & InitFlag.HAS_RESEND:
            self._ask_again()
        served = self._served()
        others = [
            threading.Thread(target=self._work, args=(fd,), name=f"kitfs-fuse-{n}", daemon=True)
            for n, fd in enumerate(served[1:], 1)
        ]
        for thread in others:
            thread.start()
        try:
            self._work(served[0])
            for thread in others:
                thread.join()
        finally:
            self._blocking.close()
            self._invalidation.close()

    @property
    def kept(self) -> tuple[int, ...]:
        """Return the descriptors that must stay open after this process, so that the next process can continue.

        The requests that were read from a descriptor end with an error when the descriptor is closed. So if the kernel
        cannot send them again, only the first descriptor is kept, and no requests are read from it. The result is empty
        if the connection cannot be continued.
        """
        if self.agreed is None:
            return ()
        if self.agreed.flags & InitFlag.HAS_RESEND:
            return tuple(dict.fromkeys(self._fds))
        return () if self._fds[0] in self._served() else self._fds[:1]

    def _served(self) -> tuple[int, ...]:
        """Return the descriptors from which requests are read, one for each worker."""
        if self.agreed is not None and self.agreed.flags & InitFlag.HAS_RESEND:
            return self._fds
        clones = tuple(fd for fd in self._fds if fd != self._fds[0])
        return (*clones, clones[0])[: len(self._fds)] if clones else self._fds

    def _ask_again(self) -> None:
        """Ask the kernel to send the requests again that the earlier process did not answer."""
        try:
            os.write(self._fds[0], abi.resend())
        except OSError as e:
            if e.errno not in (errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED):  # the mount has ended
                self._log.error("cannot ask for the requests of the earlier process again: %s", e)

    @property
    def native_files(self) -> int:
        """Return how many open files the kernel reads directly from the store (FUSE passthrough)."""
        return len(self._native)

    def invalidate(self, inodes: Collection[Inode]) -> None:
        """Ask the kernel to drop the cached pages of files, even if they are mapped. Returns at once, on any thread."""
        self._invalidation.submit(inodes)

    # -- messages

    def _handshake(self) -> Negotiated | None:
        """Answer INIT, and return its result. Returns None if the mount ended before INIT arrived."""
        fd = self._fds[0]
        while data := self._receive(fd):
            request = abi.request(data)
            if request.opcode != Op.INIT:
                self._reply(fd, request.unique, (errno.EIO, b""))
                continue
            init = request.init()
            if init.major > abi.MAJOR:
                self._reply(fd, request.unique, (0, abi.version_out()))
                continue
            if init.major < abi.MAJOR or init.minor < abi.OLDEST_MINOR:
                self._reply(fd, request.unique, (errno.EPROTO, b""))
                needed = f"{abi.MAJOR}.{abi.OLDEST_MINOR}"
                raise MountError(
                    f"this kernel has FUSE {init.major}.{init.minor}, but kitfs needs {needed} (Linux 3.15)",
                    errno=errno.EPROTO,
                )
            agreed = abi.negotiate(init, passthrough=self._wants_passthrough, resend=self._wants_resend)
            self._reply(fd, request.unique, (0, abi.init_out(agreed)))
            return agreed
        return None

    def _receive(self, fd: int) -> bytes:
        """Read the next request; return b"" if the connection has ended."""
        while True:
            try:
                return os.read(fd, abi.READ_BUFFER)
            except OSError as e:
                if e.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue  # ENOENT: the request was interrupted before it was read
                if e.errno not in (errno.ENODEV, errno.ECONNABORTED):
                    self._log.error("cannot read requests from /dev/fuse: %s", e)
                return b""

    def _reply(self, fd: int, unique: int, reply: Reply) -> None:
        number, payload = reply
        try:
            if payload:
                os.writev(fd, (abi.out_header(unique, length=len(payload)), payload))
            else:
                os.write(fd, abi.out_header(unique, error=number))
        except OSError as e:
            if e.errno in (errno.ENOENT, errno.ENODEV, errno.EPIPE, errno.ECONNRESET):
                return  # the request was interrupted, or the mount has ended: no task waits for the reply
            self._log.error("cannot write a reply of %d bytes to /dev/fuse: %s", len(payload), e)
            self._counters.add("bugs")
            if payload:
                self._reply(fd, unique, (errno.EIO, b""))

    def _work(self, fd: int) -> None:
        tally: Counter[str] = Counter()
        while data := self._receive(fd):
            try:
                request = abi.request(data)
                tally[request.operation] += 1
                if request.opcode != Op.READ or tally["read"] >= _TALLY:
                    self._count(tally)
                self._take(fd, request)
            except Exception as e:  # noqa: BLE001 - the requests of a worker that ended would get no reply
                self._failures.errno_of("request", e)
        self._count(tally)

    def _count(self, tally: Counter[str]) -> None:
        for operation, count in tally.items():
            self._counters.add("fuse_requests", count, operation)
        tally.clear()

    def _take(self, fd: int, request: Request) -> None:
        """Answer a request at once, or pass it to the blocking pool."""
        if request.opcode == Op.INTERRUPT:
            self._blocking.interrupt(request.interrupted())
        elif request.opcode not in _SILENT:
            if request.unique & abi.RESENT_BIT and self._continued is not None and self._continued.refuse:
                self._reply(fd, request.unique, (errno.EIO, b""))
                return
            try:
                reply = self._answer(request, False)
            except WouldBlock as e:
                reply_later = partial(self._reply, fd, request.unique)
                waiting = Waiting(request.unique, request.pid, partial(self._answer, request, True), reply_later)
                self._blocking.park(waiting)
                self._park(request, waiting, e)
            else:
                self._reply(fd, request.unique, reply)

    def _park(self, request: Request, waiting: Waiting, block: WouldBlock) -> None:
        """Let the blocking pool answer a request: when a fetch has brought its bytes, or now if no fetch will."""
        if block.when_ready is None or not block.when_ready(partial(self._ready, request, waiting)):
            self._blocking.resume(waiting)

    def _ready(self, request: Request, waiting: Waiting, error: KitfsError | None) -> None:
        """Let the blocking pool answer a request whose bytes have arrived, or answer it at once with an error.

        The thread that has fetched the bytes calls this, and receives the next bytes while the pool writes the reply.
        """
        if error is None:
            self._blocking.resume(waiting)
        else:
            self._blocking.finish(waiting, (self._failures.errno_of(request.operation, error), b""))

    def _answer(self, request: Request, wait: bool) -> Reply:
        """Run the operation of a request, and turn an error into an errno. Raises WouldBlock if ``wait`` is False."""
        operation = self._operations.get(request.opcode)
        if operation is None:
            if request.opcode == Op.IOCTL:
                return errno.ENOTTY, b""
            return (errno.EROFS if request.opcode in _WRITES else errno.ENOSYS), b""
        try:
            return 0, operation(request, wait)
        except WouldBlock as e:
            if not wait:
                raise
            return self._failures.errno_of(request.operation, e), b""
        except Exception as e:  # noqa: BLE001 - the kernel waits for a reply to every request
            return self._failures.errno_of(request.operation, e), b""

    # -- operations

    def _lookup(self, request: Request, wait: bool) -> bytes:
        try:
            entry = self._fs.lookup(inode_of(request.nodeid), request.name(), wait=wait)
            return abi.entry_out(self._native.place(entry.inode), entry.attr)
        except NoEntry as e:
            if e.final:
                return abi.no_entry_out()
            raise

    def _getattr(self, request: Request, wait: bool) -> bytes:
        return abi.attr_out(self._fs.getattr(inode_of(request.nodeid)))

    def _readlink(self, request: Request, wait: bool) -> bytes:
        return self._fs.readlink(inode_of(request.nodeid), wait=wait)

    def _open(self, request: Request, wait: bool) -> bytes:
        opened = self._fs.open(inode_of(request.nodeid), request.open_flags(), wait=wait)
        if is_native(request.nodeid):
            try:
                backing_id = self._native.open(inode_of(request.nodeid))
            except OSError:
                self._fs.release(opened.handle)
                raise
            return abi.open_out(opened.handle, OpenFlag.PASSTHROUGH | OpenFlag.NOFLUSH, backing_id=backing_id)
        flags = OpenFlag.NOFLUSH | (OpenFlag.KEEP_CACHE if opened.keep_cache else OpenFlag(0))
        return abi.open_out(opened.handle, flags)

    def _read(self, request: Request, wait: bool) -> bytes | memoryview:
        handle, offset, size = request.read()
        try:
            return self._fs.read(Handle(handle), offset, size, wait=wait)
        except OSError as e:
            if e.errno != errno.EBADF or self._continued is None:
                raise
        self._fs.reopen(Handle(handle), inode_of(request.nodeid))
        return self._fs.read(Handle(handle), offset, size, wait=wait)

    def _release(self, request: Request, wait: bool) -> bytes:
        self._fs.release(Handle(request.handle()))
        if is_native(request.nodeid):
            self._native.release(inode_of(request.nodeid))
        return b""

    def _statfs(self, request: Request, wait: bool) -> bytes:
        return abi.statfs_out(self._fs.statfs(wait=wait))

    def _opendir(self, request: Request, wait: bool) -> bytes:
        return abi.open_out(self._fs.opendir(inode_of(request.nodeid), wait=wait), self._dir_flags)

    def _readdir(self, request: Request, wait: bool, *, plus: bool) -> bytes:
        handle, offset, size = request.read()
        try:
            entries = self._fs.readdir(Handle(handle), offset)
        except OSError as e:
            if e.errno != errno.EBADF or self._continued is None:
                raise
            self._fs.reopen_directory(Handle(handle), inode_of(request.nodeid), wait=wait)
            entries = self._fs.readdir(Handle(handle), offset)
        return abi.dirents(entries, size, place=self._native.place if plus else None)

    def _releasedir(self, request: Request, wait: bool) -> bytes:
        self._fs.releasedir(Handle(request.handle()))
        return b""

    def _getxattr(self, request: Request, wait: bool) -> bytes:
        size, name = request.xattr()
        return _sized(self._fs.getxattr(inode_of(request.nodeid), name), size)

    def _listxattr(self, request: Request, wait: bool) -> bytes:
        size, _ = request.xattr()
        return _sized(b"".join(name + b"\0" for name in self._fs.listxattr(inode_of(request.nodeid))), size)


def _sized(value: bytes, size: int) -> bytes:
    """Encode a value for a buffer of ``size`` bytes. If ``size`` is 0, encode the length of the value instead."""
    if size == 0:
        return abi.xattr_size_out(len(value))
    if len(value) > size:
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value
