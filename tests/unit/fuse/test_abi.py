"""The structs in kitfs.fuse.abi match those of <linux/fuse.h>. The tests compare them with ctypes structs."""

from __future__ import annotations

import ctypes
import stat
from ctypes import c_char, c_int32, c_uint16, c_uint32, c_uint64

import pytest

from kitfs.fuse import abi
from kitfs.fuse.abi import BadRequestError, InitFlag, Op, OpenFlag
from kitfs.fuse.replies import Attr, DirEntry, StatFS
from kitfs.kit.inode import Inode


class FuseAttr(ctypes.Structure):
    _fields_ = [
        *[(name, c_uint64) for name in ("ino", "size", "blocks", "atime", "mtime", "ctime")],
        *[
            (name, c_uint32)
            for name in (
                "atimensec",
                "mtimensec",
                "ctimensec",
                "mode",
                "nlink",
                "uid",
                "gid",
                "rdev",
                "blksize",
                "flags",
            )
        ],
    ]


class FuseEntryOut(ctypes.Structure):
    _fields_ = [
        *[(name, c_uint64) for name in ("nodeid", "generation", "entry_valid", "attr_valid")],
        ("entry_valid_nsec", c_uint32), ("attr_valid_nsec", c_uint32), ("attr", FuseAttr),
    ]  # fmt: skip


class FuseAttrOut(ctypes.Structure):
    _fields_ = [("attr_valid", c_uint64), ("attr_valid_nsec", c_uint32), ("dummy", c_uint32), ("attr", FuseAttr)]


class FuseOpenOut(ctypes.Structure):
    _fields_ = [("fh", c_uint64), ("open_flags", c_uint32), ("backing_id", c_int32)]


class FuseKstatfs(ctypes.Structure):
    _fields_ = [
        *[(name, c_uint64) for name in ("blocks", "bfree", "bavail", "files", "ffree")],
        *[(name, c_uint32) for name in ("bsize", "namelen", "frsize", "padding")],
        ("spare", c_uint32 * 6),
    ]


class FuseInHeader(ctypes.Structure):
    _fields_ = [
        ("len", c_uint32), ("opcode", c_uint32), ("unique", c_uint64), ("nodeid", c_uint64),
        ("uid", c_uint32), ("gid", c_uint32), ("pid", c_uint32), ("total_extlen", c_uint16), ("padding", c_uint16),
    ]  # fmt: skip


class FuseOutHeader(ctypes.Structure):
    _fields_ = [("len", c_uint32), ("error", c_int32), ("unique", c_uint64)]


class FuseInitIn(ctypes.Structure):
    _fields_ = [
        *[(name, c_uint32) for name in ("major", "minor", "max_readahead", "flags", "flags2")],
        ("unused", c_uint32 * 11),
    ]


class FuseInitOut(ctypes.Structure):
    _fields_ = [
        *[(name, c_uint32) for name in ("major", "minor", "max_readahead", "flags")],
        ("max_background", c_uint16), ("congestion_threshold", c_uint16), ("max_write", c_uint32),
        ("time_gran", c_uint32), ("max_pages", c_uint16), ("map_alignment", c_uint16), ("flags2", c_uint32),
        ("max_stack_depth", c_uint32), ("unused", c_uint32 * 6),
    ]  # fmt: skip


class FuseReadIn(ctypes.Structure):
    _fields_ = [
        ("fh", c_uint64), ("offset", c_uint64), ("size", c_uint32), ("read_flags", c_uint32), ("lock_owner", c_uint64),
        ("flags", c_uint32), ("padding", c_uint32),
    ]  # fmt: skip


class FuseDirent(ctypes.Structure):
    _fields_ = [("ino", c_uint64), ("off", c_uint64), ("namelen", c_uint32), ("type", c_uint32), ("name", c_char * 0)]


ATTR = Attr(ino=77, size=1025, mode=stat.S_IFREG | 0o640, nlink=2, uid=1000, gid=100, mtime=1_700_000_000)


def fields(value: ctypes.Structure) -> dict[str, int]:
    return {name: getattr(value, name) for name, *_ in value._fields_}


def header(body: bytes, *, opcode: int = Op.GETATTR, extensions: int = 0, length: int | None = None) -> bytes:
    head = FuseInHeader(
        len=40 + len(body) if length is None else length,
        opcode=opcode,
        unique=8,
        nodeid=1,
        pid=99,
        total_extlen=extensions,
    )
    return bytes(head) + body


def expected_attr() -> dict[str, int]:
    zero = dict.fromkeys(("atimensec", "mtimensec", "ctimensec", "rdev", "flags"), 0)
    times = dict.fromkeys(("atime", "mtime", "ctime"), 1_700_000_000)
    told = {
        "ino": 77,
        "size": 1025,
        "blocks": 3,
        "mode": stat.S_IFREG | 0o640,
        "nlink": 2,
        "uid": 1000,
        "gid": 100,
        "blksize": 131072,
    }
    return {**told, **zero, **times}


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (abi.IN_HEADER_SIZE, FuseInHeader), (abi.OUT_HEADER_SIZE, FuseOutHeader),
        (len(abi.attr_out(ATTR)), FuseAttrOut),
        (len(abi.entry_out(abi.Place(5), ATTR)), FuseEntryOut), (len(abi.no_entry_out()), FuseEntryOut),
        (len(abi.open_out(1, OpenFlag.KEEP_CACHE)), FuseOpenOut), (len(abi.version_out()), FuseInitOut),
    ],
)  # fmt: skip
def test_replies_have_the_size_of_their_struct(mine: int, theirs: type[ctypes.Structure]) -> None:
    """The kernel refuses a reply of another size."""
    assert mine == ctypes.sizeof(theirs)


def test_a_request_is_its_header_and_body() -> None:
    """A request contains an opcode, a unique number, a node, a thread id, and the body after the header."""
    request = abi.request(header(b"name\0", opcode=Op.LOOKUP))
    assert request == (Op.LOOKUP, 8, 1, 99, b"name\0")
    assert (request.name(), request.operation) == (b"name", "lookup")


def test_extensions_behind_the_body_are_cut_off() -> None:
    """total_extlen (7.38) is the length of the extensions after the body. Its unit is eight bytes."""
    assert abi.request(header(b"name\0\0\0\0" + bytes(8), opcode=Op.LOOKUP, extensions=1)).body == b"name\0\0\0\0"


@pytest.mark.parametrize("data", [b"", b"short", header(b"", length=41), header(b"1234", length=40)])
def test_what_is_no_request_is_refused(data: bytes) -> None:
    """A message is refused if its length is not the length in its header."""
    with pytest.raises(BadRequestError):
        abi.request(data)


def test_bodies_that_are_too_short_are_refused() -> None:
    """Methods that parse a body check its length. If the body contains a name, the name must end with a NUL."""
    request = abi.request(header(b"abc"))
    for read in (
        request.name,
        request.init,
        request.open_flags,
        request.read,
        request.handle,
        request.xattr,
        request.interrupted,
    ):
        with pytest.raises(BadRequestError):
            read()


def test_an_unknown_opcode_has_a_name() -> None:
    assert abi.request(header(b"", opcode=4711)).operation == "op 4711"


def test_read_has_handle_offset_and_size() -> None:
    """READ has the body struct fuse_read_in."""
    body = bytes(FuseReadIn(fh=3, offset=1 << 40, size=131072, read_flags=2, lock_owner=9, flags=0o100000))
    assert abi.request(header(body, opcode=Op.READ)).read() == (3, 1 << 40, 131072)


def test_getxattr_has_size_and_name_and_listxattr_a_size() -> None:
    """Both bodies begin with struct fuse_getxattr_in. The body of GETXATTR then contains the name."""
    size = (256).to_bytes(4, "little") + bytes(4)
    assert abi.request(header(size + b"user.x\0", opcode=Op.GETXATTR)).xattr() == (256, b"user.x")
    assert abi.request(header(size, opcode=Op.LISTXATTR)).xattr() == (256, b"")


def test_init_keeps_to_what_both_sides_know() -> None:
    """The reply has the older minor version and only flags that the kernel offered. max_write fits the read buffer."""
    offered = InitFlag.ASYNC_READ | InitFlag.MAX_PAGES | 1 << 16  # 1 << 16 is writeback, which kitfs does not use
    init = abi.request(
        header(bytes(FuseInitIn(major=7, minor=31, max_readahead=131072, flags=offered)), opcode=Op.INIT)
    ).init()
    out = FuseInitOut.from_buffer_copy(abi.init_out(abi.negotiate(init)))
    assert (out.major, out.minor, out.max_readahead, out.flags) == (
        7,
        31,
        131072,
        InitFlag.ASYNC_READ | InitFlag.MAX_PAGES,
    )
    assert (out.max_pages, out.time_gran, out.flags2) == (256, 1, 0)
    assert out.max_background > 64
    assert max(8192, 40 + 40 + out.max_write) <= abi.READ_BUFFER


@pytest.mark.parametrize(("wanted", "offered"), [(True, True), (True, False), (False, True)])
def test_passthrough_is_agreed_on_where_both_sides_want_it(wanted: bool, offered: bool) -> None:
    """If both sides want passthrough, the reply has a flag in ``flags2`` and a stack depth. Otherwise, both are 0."""
    flags2 = 1 << 5 if offered else 0
    body = bytes(FuseInitIn(major=7, minor=45, max_readahead=0, flags=InitFlag.INIT_EXT, flags2=flags2))
    agreed = abi.negotiate(abi.request(header(body, opcode=Op.INIT)).init(), passthrough=wanted)
    out = FuseInitOut.from_buffer_copy(abi.init_out(agreed))
    expected = (1 << 30, 1 << 5, 1) if wanted and offered else (0, 0, 0)
    assert (out.flags, out.flags2, out.max_stack_depth) == expected


def test_requests_are_sent_again_and_mounts_are_id_mapped_where_the_kernel_can() -> None:
    """The reply has FUSE_HAS_RESEND and FUSE_ALLOW_IDMAP if the kernel offers them. The notification has no body."""
    flags2 = 1 << 7 | 1 << 8
    body = bytes(FuseInitIn(major=7, minor=45, max_readahead=0, flags=InitFlag.INIT_EXT, flags2=flags2))
    init = abi.request(header(body, opcode=Op.INIT)).init()
    out = FuseInitOut.from_buffer_copy(abi.init_out(abi.negotiate(init)))
    assert (out.flags, out.flags2) == (InitFlag.INIT_EXT, flags2)
    assert abi.negotiate(init, resend=False).flags == InitFlag.INIT_EXT | InitFlag.ALLOW_IDMAP
    assert abi.resend() == (16).to_bytes(4, "little") + (7).to_bytes(4, "little") + bytes(8)


def test_max_pages_is_not_said_to_a_kernel_that_did_not_offer_it() -> None:
    """If the kernel has a newer minor version, the reply contains the minor version of kitfs."""
    out = FuseInitOut.from_buffer_copy(abi.init_out(abi.negotiate(abi.Init(7, 99, 0, 0))))
    assert (out.minor, out.flags, out.max_pages) == (abi.MINOR, 0, 0)


def test_attr_out() -> None:
    """The number of 512-byte blocks is rounded up, the three times are equal, and attributes are valid for a year."""
    out = FuseAttrOut.from_buffer_copy(abi.attr_out(ATTR))
    assert (out.attr_valid, out.attr_valid_nsec) == (365 * 86400, 0)
    assert fields(out.attr) == expected_attr()


def test_entry_out() -> None:
    """An entry has its own node id and its own validity. st_ino comes from the attributes."""
    out = FuseEntryOut.from_buffer_copy(abi.entry_out(abi.Place(5), ATTR))
    assert (out.nodeid, out.generation, out.entry_valid, out.attr_valid) == (5, 0, 365 * 86400, 365 * 86400)
    assert fields(out.attr) == expected_attr()
    out = FuseEntryOut.from_buffer_copy(abi.entry_out(abi.Place(1 << 63 | 5, 1), ATTR))
    assert (out.nodeid, out.entry_valid, out.attr_valid) == (1 << 63 | 5, 1, 365 * 86400)


def test_a_name_that_will_never_be_is_node_0_for_a_year() -> None:
    out = FuseEntryOut.from_buffer_copy(abi.no_entry_out())
    assert (out.nodeid, out.entry_valid, out.attr_valid) == (0, 365 * 86400, 0)


def test_open_out() -> None:
    out = FuseOpenOut.from_buffer_copy(abi.open_out(9, OpenFlag.KEEP_CACHE | OpenFlag.NOFLUSH, backing_id=3))
    assert fields(out) == {"fh": 9, "open_flags": 1 << 1 | 1 << 5, "backing_id": 3}


def test_errors_are_negative_in_the_header() -> None:
    """An error reply consists of a header only."""
    assert fields(FuseOutHeader.from_buffer_copy(abi.out_header(8, error=5))) == {"len": 16, "error": -5, "unique": 8}
    assert fields(FuseOutHeader.from_buffer_copy(abi.out_header(8, length=100))) == {
        "len": 116,
        "error": 0,
        "unique": 8,
    }


def entries(count: int) -> list[DirEntry]:
    names = [b".", b"..", *(f"n{i}".encode() * (i + 1) for i in range(count))]
    return [
        DirEntry(name, Inode(100 + i), ATTR._replace(ino=200 + i) if hasattr(ATTR, "_replace") else ATTR, i + 1)
        for i, name in enumerate(names)
    ]


def unpacked(data: bytes, *, plus: bool) -> list[tuple[int, bytes, int, int]]:
    """Return (node id, name, type, off) for each dirent."""
    found, at = [], 0
    while at < len(data):
        nodeid = 0
        if plus:
            nodeid = FuseEntryOut.from_buffer_copy(data, at).nodeid
            at += ctypes.sizeof(FuseEntryOut)
        dirent = FuseDirent.from_buffer_copy(data, at)
        at += ctypes.sizeof(FuseDirent)
        found.append((nodeid, data[at : at + dirent.namelen], dirent.type, dirent.off))
        at += dirent.namelen
        at += -at % 8
    assert at == len(data)
    return found


def test_dirents_carry_types_and_offsets() -> None:
    """Each dirent is padded to a multiple of eight bytes."""
    listing = entries(5)
    assert unpacked(abi.dirents(listing, 4096, place=None), plus=False) == [
        (0, e.name, stat.S_IFREG >> 12, e.offset) for e in listing
    ]


def test_direntplus_carries_node_ids_but_for_the_dots() -> None:
    """ "." and ".." have node id 0, because the kernel does not count them as lookups."""
    listing = entries(5)
    expected = [(0 if e.name in (b".", b"..") else e.inode, e.name, stat.S_IFREG >> 12, e.offset) for e in listing]
    assert unpacked(abi.dirents(listing, 4096, place=abi.Place), plus=True) == expected


@pytest.mark.parametrize("plus", [False, True])
def test_only_whole_dirents_that_fit_are_sent(plus: bool) -> None:
    """The reply contains as many dirents as fit into the kernel's buffer."""
    listing = entries(20)
    place = abi.Place if plus else None
    whole = abi.dirents(listing, 1 << 20, place=place)
    for size in range(0, len(whole) + 8, 8):
        data = abi.dirents(listing, size, place=place)
        assert whole.startswith(data)
        assert len(data) <= size
        assert len(unpacked(data, plus=plus)) == sum(
            1 for n in range(len(listing)) if len(abi.dirents(listing[: n + 1], 1 << 20, place=place)) <= size
        )


def test_statfs_has_nothing_free() -> None:
    """The reply has the body struct fuse_kstatfs."""
    out = FuseKstatfs.from_buffer_copy(abi.statfs_out(StatFS(blocks=10, files=3, block_size=4096, name_max=255)))
    assert (out.blocks, out.bfree, out.bavail, out.files, out.ffree, out.bsize, out.frsize, out.namelen) == (
        10,
        0,
        10,
        3,
        0,
        4096,
        4096,
        255,
    )
