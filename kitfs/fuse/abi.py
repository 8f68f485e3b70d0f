"""Encode and decode the messages of /dev/fuse, protocol version 7.x.

This module does no I/O. Every layout is a struct of <linux/fuse.h>. A comment beside the layout names the struct.
Fields are in native byte order, because both ends are on one machine.

In INIT, the kernel offers a version and flags. The reply (``negotiate``) has the older of the two versions, and those
offered flags that are in ``WANTED``. After that, only this version and these flags may be used.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from kitfs.fuse.replies import Attr, DirEntry, StatFS
    from kitfs.kit.inode import Inode

MAJOR: Final = 7
MINOR: Final = 40  # the newest minor version whose structs are defined here
OLDEST_MINOR: Final = 23  # the minor version of Linux 3.15, in which init_out got its present size
CACHE_DIR_MINOR: Final = 28  # the first minor version in which FOPEN_CACHE_DIR has an effect
ROOT_ID: Final = 1
INT_REQ_BIT: Final = 1  # the bit of ``unique`` that is set only in the header of an INTERRUPT itself
RESENT_BIT: Final = 1 << 63  # set in ``unique`` of a request that was sent again after ``resend``

MAX_PAGES: Final = 256  # 1 MiB with pages of 4 KiB; the kernel's own limit, unless its sysctl was raised
# Background requests (read-ahead) that the kernel sends without waiting for replies. With the default of 12, a dozen
# reads from a registry that hangs would delay every cached read. The number must exceed the pool's 64 threads.
MAX_BACKGROUND: Final = 512
CONGESTION: Final = 384
# The mount is read-only, so this is the smallest max_write that the kernel accepts. It refuses (EINVAL) read
# buffers that are smaller than max_write and the headers together.
MAX_WRITE: Final = max(4096, os.sysconf("SC_PAGE_SIZE"))
READ_BUFFER: Final = MAX_WRITE + 4096  # at least FUSE_MIN_READ_BUFFER (8192), with room for the headers
STACK_DEPTH: Final = 1  # for passthrough: backing files are on a file system that is not stacked itself
FOREVER: Final = 365 * 86400  # seconds for which names and attributes are valid, because content never changes


class Op(IntEnum):
    """The operations of a request (enum fuse_opcode)."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


_OPERATIONS: Final = {int(op): op.name.lower() for op in Op}


class InitFlag(IntFlag):
    """The FUSE_* flags that kitfs uses in INIT."""

    ASYNC_READ = 1 << 0
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    INIT_EXT = 1 << 30  # 32 more flags follow
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39  # Linux 6.9: the notification ``resend`` exists
    ALLOW_IDMAP = 1 << 40  # Linux 6.12: the mount may be id-mapped, if it has the option default_permissions


WANTED: Final = (
    InitFlag.ASYNC_READ | InitFlag.DO_READDIRPLUS | InitFlag.READDIRPLUS_AUTO
    | InitFlag.PARALLEL_DIROPS | InitFlag.MAX_PAGES | InitFlag.CACHE_SYMLINKS
    | InitFlag.HAS_RESEND | InitFlag.ALLOW_IDMAP
)  # fmt: skip
_UPPER: Final = ~((1 << 32) - 1)  # the flags that need INIT_EXT


class OpenFlag(IntFlag):
    """The FOPEN_* flags that kitfs uses in replies to OPEN and OPENDIR."""

    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3
    NOFLUSH = 1 << 5
    PASSTHROUGH = 1 << 7


# -- requests

_IN_HEADER: Final = struct.Struct(
    "=IIQQIIIHH"
)  # fuse_in_header: len opcode unique nodeid uid gid pid total_extlen padding
IN_HEADER_SIZE: Final = _IN_HEADER.size
_INIT_IN: Final = struct.Struct(
    "=IIII"
)  # fuse_init_in: major minor max_readahead flags (flags2 and more follow in newer versions)
_READ_IN: Final = struct.Struct(
    "=QQI"
)  # fuse_read_in, and READDIR's: fh offset size (then read_flags lock_owner flags padding)
_FH: Final = struct.Struct("=Q")  # the beginning of fuse_release_in
_U32: Final = struct.Struct("=I")  # the beginning of fuse_open_in and fuse_getxattr_in
_GETXATTR_IN_SIZE: Final = 8
_U64: Final = struct.Struct("=Q")  # fuse_interrupt_in


class BadRequestError(ValueError):
    """Bytes are not a request of this protocol."""


class Request(NamedTuple):
    """A request: the fields of its fuse_in_header, and the bytes that follow the header.

    ``pid`` is the id of the requesting thread, or 0 if the thread is in another pid namespace.
    """

    opcode: int
    unique: int
    nodeid: int
    pid: int
    body: bytes

    @property
    def operation(self) -> str:
        """Return the name of the opcode in lower case; ``op NN`` if the opcode is unknown."""
        return _OPERATIONS.get(self.opcode) or f"op {self.opcode}"

    def name(self) -> bytes:
        """Return the name in the body of LOOKUP. Raises BadRequestError."""
        return _terminated(self.body)

    def init(self) -> Init:
        """Decode the body of INIT. Its ``flags`` include the upper 32 bits of newer kernels. Raises BadRequestError."""
        major, minor, max_readahead, flags = _unpacked(_INIT_IN, self.body)
        if flags & InitFlag.INIT_EXT and len(self.body) >= _INIT_IN.size + _U32.size:
            flags |= _unpacked(_U32, self.body[_INIT_IN.size :])[0] << 32
        return Init(major, minor, max_readahead, flags)

    def open_flags(self) -> int:
        """Decode the flags of open(2) in OPEN and OPENDIR. Raises BadRequestError."""
        flags: int = _unpacked(_U32, self.body)[0]
        return flags

    def read(self) -> tuple[int, int, int]:
        """Decode (handle, offset, size) of READ, READDIR and READDIRPLUS. Raises BadRequestError."""
        fh, offset, size = _unpacked(_READ_IN, self.body)
        return fh, offset, size

    def handle(self) -> int:
        """Decode the handle of RELEASE and RELEASEDIR. Raises BadRequestError."""
        fh: int = _unpacked(_FH, self.body)[0]
        return fh

    def xattr(self) -> tuple[int, bytes]:
        """Decode (size of the buffer, name) of GETXATTR or LISTXATTR. LISTXATTR has no name. Raises BadRequestError."""
        size: int = _unpacked(_U32, self.body)[0]
        rest = self.body[_GETXATTR_IN_SIZE:]
        return size, _terminated(rest) if rest else b""

    def interrupted(self) -> int:
        """Decode ``unique`` of the request that an INTERRUPT refers to. Raises BadRequestError."""
        unique: int = _unpacked(_U64, self.body)[0]
        return unique


class Init(NamedTuple):
    """The fields of fuse_init_in that kitfs uses."""

    major: int
    minor: int
    max_readahead: int
    flags: int


def request(data: bytes) -> Request:
    """Decode a message from the kernel. Raises BadRequestError if the header states another length."""
    if len(data) < IN_HEADER_SIZE:
        raise BadRequestError(f"{len(data)} bytes are not a FUSE request")
    length, opcode, unique, nodeid, _, _, pid, extensions, _ = _IN_HEADER.unpack_from(data)
    if length != len(data):
        raise BadRequestError(f"a FUSE request has {len(data)} bytes, but its header declares {length}")
    return Request(opcode, unique, nodeid, pid, data[IN_HEADER_SIZE : length - 8 * extensions])


def _unpacked(layout: struct.Struct, body: bytes) -> tuple[int, ...]:
    try:
        return layout.unpack_from(body)
    except struct.error:
        raise BadRequestError(f"the body of a FUSE request has {len(body)} bytes, not {layout.size}")


def _terminated(data: bytes) -> bytes:
    end = data.find(b"\0")
    if end < 0:
        raise BadRequestError("the name in a FUSE request has no end")
    return data[:end]


# -- replies

_OUT_HEADER: Final = struct.Struct("=IiQ")  # fuse_out_header: len error unique
OUT_HEADER_SIZE: Final = _OUT_HEADER.size
_INIT_OUT: Final = struct.Struct("=IIIIHHIIHHII24x")  # fuse_init_out
_ATTR: Final = struct.Struct("=QQQQQQIIIIIIIIII")  # fuse_attr
_ENTRY_HEAD: Final = struct.Struct("=QQQQII")  # fuse_entry_out before its attr
_ATTR_HEAD: Final = struct.Struct("=QII")  # fuse_attr_out before its attr
_OPEN_OUT: Final = struct.Struct("=QIi")  # fuse_open_out: fh open_flags backing_id
_STATFS_OUT: Final = struct.Struct("=QQQQQIIII24x")  # fuse_kstatfs
_INVAL_INODE_OUT: Final = struct.Struct("=Qqq")  # fuse_notify_inval_inode_out: ino off len (0: to the end)
_NOTIFY_INVAL_INODE: Final = 2  # FUSE_NOTIFY_INVAL_INODE in enum fuse_notify_code
_NOTIFY_RESEND: Final = 7  # FUSE_NOTIFY_RESEND in enum fuse_notify_code
_GETXATTR_OUT: Final = struct.Struct("=II")  # fuse_getxattr_out
_DIRENT: Final = struct.Struct("=QQII")  # fuse_dirent before its name: ino off namelen type
_U32_MAX: Final = (1 << 32) - 1
_BLOCK: Final = 512  # bytes, the unit of st_blocks
_BLKSIZE: Final = 128 << 10  # st_blksize, which cp and tar use as their buffer size; it must be a power of two


class Place(NamedTuple):
    """The node id that the kernel uses for an inode, and the seconds for which a name refers to this node id."""

    nodeid: int
    seconds: int = FOREVER


class Negotiated(NamedTuple):
    """The result of INIT: the older of the two minor versions, and the flags that both sides support."""

    minor: int
    flags: InitFlag
    max_readahead: int


def negotiate(init: Init, *, passthrough: bool = False, resend: bool = True) -> Negotiated:
    """Choose the version and the flags of a connection, after an INIT of this major version.

    If ``passthrough`` is True, the flag for passthrough may also be chosen. If ``resend`` is False, the connection
    behaves as if the kernel had no ``resend``.
    """
    wanted = WANTED if resend else WANTED & ~InitFlag.HAS_RESEND
    if passthrough:
        wanted |= InitFlag.PASSTHROUGH
    if init.flags & wanted & _UPPER:
        wanted |= InitFlag.INIT_EXT
    return Negotiated(min(init.minor, MINOR), InitFlag(init.flags & wanted), init.max_readahead)


def init_out(agreed: Negotiated) -> bytes:
    """Encode fuse_init_out."""
    pages = MAX_PAGES if agreed.flags & InitFlag.MAX_PAGES else 0
    depth = STACK_DEPTH if agreed.flags & InitFlag.PASSTHROUGH else 0
    return _INIT_OUT.pack(
        MAJOR, agreed.minor, agreed.max_readahead, agreed.flags & _U32_MAX, MAX_BACKGROUND, CONGESTION, MAX_WRITE, 1,
        pages, 0, agreed.flags >> 32, depth,
    )  # fmt: skip


def version_out() -> bytes:
    """Return the reply to an INIT of a newer major version. The kernel then sends INIT again, with our version."""
    return _INIT_OUT.pack(MAJOR, MINOR, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def out_header(unique: int, *, length: int = 0, error: int = 0) -> bytes:
    """Encode the fuse_out_header of a reply: ``length`` bytes follow it, or ``error`` is a positive errno."""
    return _OUT_HEADER.pack(OUT_HEADER_SIZE + length, -error, unique)


def inval_inode(nodeid: int) -> bytes:
    """Return the notification FUSE_NOTIFY_INVAL_INODE for a whole file.

    It consists of a fuse_out_header, in which ``unique`` is 0 and ``error`` is the code of the notification, and of
    fuse_notify_inval_inode_out.
    """
    size = OUT_HEADER_SIZE + _INVAL_INODE_OUT.size
    return _OUT_HEADER.pack(size, _NOTIFY_INVAL_INODE, 0) + _INVAL_INODE_OUT.pack(nodeid, 0, 0)


def resend() -> bytes:
    """Return the notification FUSE_NOTIFY_RESEND.

    The kernel then sends all requests again that a process has read from the connection and has not answered. They
    have ``RESENT_BIT``. The connection must have HAS_RESEND.
    """
    return _OUT_HEADER.pack(OUT_HEADER_SIZE, _NOTIFY_RESEND, 0)


def _attr(attr: Attr) -> bytes:
    time = max(0, int(attr.mtime))
    return _ATTR.pack(
        attr.ino, attr.size, -(-attr.size // _BLOCK), time, time, time, 0, 0, 0,
        attr.mode, attr.nlink, attr.uid, attr.gid, 0, _BLKSIZE, 0,
    )  # fmt: skip


def attr_out(attr: Attr) -> bytes:
    """Encode fuse_attr_out, valid for ``FOREVER``."""
    return _ATTR_HEAD.pack(FOREVER, 0, 0) + _attr(attr)


def entry_out(place: Place, attr: Attr) -> bytes:
    """Encode fuse_entry_out, whose attributes are valid for ``FOREVER``."""
    return _ENTRY_HEAD.pack(place.nodeid, 0, place.seconds, FOREVER, 0, 0) + _attr(attr)


def no_entry_out() -> bytes:
    """Encode the fuse_entry_out, valid for ``FOREVER``, of a name that does not exist."""
    return _ENTRY_HEAD.pack(0, 0, FOREVER, 0, 0, 0) + bytes(_ATTR.size)


def open_out(handle: int, flags: OpenFlag, *, backing_id: int = 0) -> bytes:
    """Encode fuse_open_out."""
    return _OPEN_OUT.pack(handle, flags, backing_id)


def statfs_out(about: StatFS) -> bytes:
    """Encode fuse_statfs_out of a full, read-only file system."""
    return _STATFS_OUT.pack(
        about.blocks, 0, about.available, about.files, 0, about.block_size, about.name_max, about.block_size, 0
    )


def xattr_size_out(size: int) -> bytes:
    """Encode fuse_getxattr_out, the reply to GETXATTR and LISTXATTR with a buffer of size 0."""
    return _GETXATTR_OUT.pack(size, 0)


def dirents(entries: Iterable[DirEntry], size: int, *, place: Callable[[Inode], Place] | None) -> bytes:
    """Encode as many fuse_dirent as fit into ``size`` bytes; with ``place``, fuse_direntplus.

    In a direntplus, each entry except "." and ".." counts as a lookup, and ``place`` returns its node id. The node id
    of "." and ".." must be 0.
    """
    parts: list[bytes] = []
    left = size
    for entry in entries:
        name = entry.name
        kind = entry.attr.mode >> 12 & 15  # DT_* is the file type in the upper bits of the mode
        raw = _DIRENT.pack(entry.attr.ino, entry.offset, len(name), kind) + name
        raw += bytes(-len(raw) % 8)
        if place is not None:
            dots = name in (b".", b"..")
            raw = (bytes(_ENTRY_HEAD.size + _ATTR.size) if dots else entry_out(place(entry.inode), entry.attr)) + raw
        if len(raw) > left:
            break
        parts.append(raw)
        left -= len(raw)
    return b"".join(parts)
