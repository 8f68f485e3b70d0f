"""Write an EROFS image: the directories and inodes of a tree. The contents of the files stay on other devices.

    0      zeros; at 1024 the super block (128 bytes)
    1152   a slot of 128 bytes for each device
    then   extended attributes, inodes, directories, targets of symbolic links, and blocks of files that cannot stay on
           their device (``chunks``); all in the order in which the tree is walked

An inode has 64 bytes. The numbers of its extended attributes follow. In the inode of a file, the addresses of its
chunks are next. The number of an inode is its position in units of 32 bytes. Blocks have 512 bytes. Source:
fs/erofs/erofs_fs.h of Linux.

The tree is walked once. Only the entries of the directories on the path from the root to the current directory are in
memory, so memory does not grow with the number of files. Threading: a writer belongs to one thread.
"""

from __future__ import annotations

import stat
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import BinaryIO, Final, NamedTuple

from kitfs.erofs.chunks import (
    BLOCK,
    BLOCK_BITS,
    COPY,
    HOLE,
    IMAGE,
    MAX_BITS,
    MAX_BLOCKS,
    Chunk,
    Extent,
    chunk_bits,
    chunks_of,
    runs_of,
)
from kitfs.erofs.refusal import Reason, Refusal

MAX_DEVICES: Final = 16_000  # the root's inode follows the slots of the devices, and its number must fit into 16 bits
MAX_IMAGE: Final = 1 << 30  # bytes of an image: a hundred times the image of a tree of 100,000 files

_SUPER: Final = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQB23x")
_SLOT: Final = struct.Struct("<64sII56x")
_INODE: Final = struct.Struct("<HHHHQIIIIQII16x")
_ENTRY: Final = struct.Struct("<QHBB")
_ADDRESS: Final = struct.Struct("<HHI")
_ATTRIBUTES: Final = struct.Struct("<IB7x")
_SUPER_AT: Final = 1024
_SLOTS_AT: Final = 1152
_MAGIC: Final = 0xE0F5E1E2
_CHUNKED, _DEVICES = 0x4, 0x8  # feature_incompat
_MTIME: Final = 0x2  # feature_compat
_EXTENDED: Final = 1  # inode versions and layouts (i_format)
_PLAIN, _CHUNKS = 0 << 1, 4 << 1
_WITH_DEVICES: Final = 0x20  # EROFS_CHUNK_FORMAT_INDEXES
_NO_ADDRESS: Final = 0xFFFFFFFF
_USER: Final = 1  # the name index of "user."
_TYPES: Final = {"file": (1, stat.S_IFREG), "dir": (2, stat.S_IFDIR), "symlink": (7, stat.S_IFLNK)}


class Device(NamedTuple):
    """A device: a file of ``size`` bytes with contents of files in the tree.

    ``tag`` identifies the device in the image.
    """

    size: int
    tag: str


class Inode(NamedTuple):
    """A file, directory or symbolic link of the image.

    All names of a file have the same ``key``, and different files have different keys. ``kind`` is "file", "dir" or
    "symlink", ``mode`` has permission bits, and ``mtime`` is in seconds since the epoch. The bytes of a file are either
    on devices (``extents``), or in ``data``, which is written into the image. ``attributes`` are the extended
    attributes as pairs (name without "user.", value).
    """

    key: int
    kind: str
    mode: int
    nlink: int
    uid: int
    gid: int
    mtime: int
    size: int = 0
    target: bytes = b""
    extents: Sequence[Extent] = ()
    data: bytes | None = None
    attributes: Sequence[tuple[bytes, bytes]] = ()


Children = Callable[[Inode], Iterable[tuple[bytes, Inode]]]  # returns the names in a directory, in any order
Read = Callable[[int, int, int], bytes]  # (device, offset, length) → bytes of the device


class _Open(NamedTuple):
    """A directory whose children are being written."""

    inode: Inode
    at: int  # the position of its inode
    number: int
    pending: Iterator[tuple[bytes, Inode]]
    entries: list[tuple[bytes, int, int]]  # name, number, type


def write_image(
    out: BinaryIO, root: Inode, children: Children, devices: Sequence[Device], read: Read, *, uuid: bytes
) -> None:
    """Write the image of the tree below ``root`` into ``out``, an empty file.

    Raises OSError, the errors of ``children`` and ``read``, and Refusal if an image cannot describe the tree.
    """
    _Writer(out, devices, read, uuid).write(root, children)


class _Writer:
    def __init__(self, out: BinaryIO, devices: Sequence[Device], read: Read, uuid: bytes) -> None:
        if len(devices) > MAX_DEVICES:
            raise Refusal(Reason.IMAGE, f"the kit has more than {MAX_DEVICES} layers")
        self._out = out
        self._devices = devices
        self._read = read
        self._uuid = uuid
        self._at = 0  # the end of the image
        self._count = 0  # inodes
        self._shared: dict[tuple[bytes, bytes], int] = {}  # the position of each extended attribute
        self._linked: dict[int, int] = {}  # by key: the number of an inode that has several names

    def write(self, root: Inode, children: Children) -> None:
        self._append(bytes(_SLOTS_AT))
        for device in self._devices:
            blocks = -(-device.size // BLOCK)
            if blocks > MAX_BLOCKS:
                raise Refusal(Reason.IMAGE, "a layer has more than 2 TiB")
            self._append(_SLOT.pack(device.tag.encode()[:64], blocks, 0))
        top = self._enter(root, children)
        stack = [top]
        while stack:
            current = stack[-1]
            name, inode = next(current.pending, (b"", None))
            if inode is None:
                stack.pop()
                above = stack[-1] if stack else current
                self._leave(current, above.number)
                continue
            if inode.kind == "dir":
                entered = self._enter(inode, children)
                stack.append(entered)
                number = entered.number
            else:
                number = self._linked.get(inode.key) or self._add(inode)
            current.entries.append((name, number, _TYPES[inode.kind][0]))
        self._align(BLOCK)
        self._out.seek(_SUPER_AT)
        self._out.write(
            _SUPER.pack(
                _MAGIC, 0, _MTIME, BLOCK_BITS, 0, top.number, self._count, max(root.mtime, 0), 0, self._at // BLOCK,
                0, 0, self._uuid, b"kitfs", _CHUNKED | _DEVICES, 0, len(self._devices), _SLOTS_AT // _SLOT.size,
                0, 0, 0, 0, 0,
            )
        )  # fmt: skip
        self._out.flush()

    def _append(self, data: bytes) -> int:
        """Append bytes to the image, and return their position."""
        at = self._at
        if at + len(data) > MAX_IMAGE:
            raise Refusal(Reason.IMAGE, f"the image would have more than {MAX_IMAGE >> 20} MiB")
        self._out.write(data)
        self._at += len(data)
        return at

    def _align(self, unit: int) -> None:
        self._append(bytes(-self._at % unit))

    def _place(self, data: bytes) -> int:
        """Append bytes, padded with zeros to whole blocks, and return the number of the first block."""
        self._align(BLOCK)
        at = self._append(data)
        self._align(BLOCK)
        return at // BLOCK

    def _enter(self, inode: Inode, children: Children) -> _Open:
        """Reserve the space for the inode of a directory. ``_leave`` writes it after the directory's children."""
        shared = self._attributes(inode)
        self._align(32)
        at = self._append(bytes(_INODE.size) + shared)
        self._count += 1
        return _Open(inode, at, at // 32, iter(children(inode)), [])

    def _leave(self, directory: _Open, above: int) -> None:
        """Write the entries and the inode of a directory, after its children."""
        entries = sorted([(b".", directory.number, 2), (b"..", above, 2), *directory.entries])
        self._align(BLOCK)
        block = self._at // BLOCK
        size = 0
        for data in _directory_blocks(entries):
            self._align(BLOCK)
            self._append(data)
            size = self._at - block * BLOCK
        self._align(BLOCK)  # the padding ends the last name with a zero
        shared = self._attributes(directory.inode)
        self._out.seek(directory.at)
        self._out.write(self._packed(directory.inode, _PLAIN, size, block, directory.number, len(shared)))
        self._out.seek(self._at)

    def _add(self, inode: Inode) -> int:
        """Write the inode of a file or a symbolic link, and return its number."""
        shared = self._attributes(inode)
        layout, unit, addresses = _PLAIN, 0, b""
        size = inode.size
        if inode.kind == "symlink":
            size = len(inode.target)
            unit = self._place(inode.target)
        elif inode.data is not None:
            size = len(inode.data)
            unit = self._place(inode.data)
        else:
            layout = _CHUNKS
            bits, addresses = self._contents(inode)
            unit = bits | _WITH_DEVICES
        self._align(32)
        number = self._at // 32
        self._append(self._packed(inode, layout, size, unit, number, len(shared)) + shared)
        if addresses:
            self._align(_ADDRESS.size)
            self._append(addresses)
        self._count += 1
        if inode.nlink > 1:
            self._linked[inode.key] = number
        return number

    def _packed(self, inode: Inode, layout: int, size: int, unit: int, number: int, shared: int) -> bytes:
        count = 1 + (shared - _ATTRIBUTES.size) // 4 if shared else 0
        mode = _TYPES[inode.kind][1] | inode.mode
        seconds = inode.mtime & 0xFFFFFFFFFFFFFFFF
        return _INODE.pack(
            _EXTENDED | layout, count, mode, 0, size, unit, number & 0xFFFFFFFF, inode.uid, inode.gid, seconds, 0,
            inode.nlink,
        )  # fmt: skip

    def _attributes(self, inode: Inode) -> bytes:
        """Return references to the extended attributes of an inode. They follow the inode in the image.

        An attribute is written to the image when the first inode uses it.
        """
        if not inode.attributes:
            return b""
        numbers = []
        for name, value in inode.attributes:
            at = self._shared.get((name, value))
            if at is None:
                entry = struct.pack("<BBH", len(name), _USER, len(value)) + name + value
                self._align(BLOCK if self._at % BLOCK + len(entry) > BLOCK else 4)
                at = self._shared[name, value] = self._append(entry) // 4
            numbers.append(at)
        return _ATTRIBUTES.pack(0, len(numbers)) + struct.pack(f"<{len(numbers)}I", *numbers)

    def _contents(self, inode: Inode) -> tuple[int, bytes]:
        """Copy the chunks that cannot stay on their device.

        Return the chunk bits and the chunk addresses of the file.
        """
        whole_tail = self._has_whole_tail(inode)
        if whole_tail and len(inode.extents) == 1 and inode.extents[0].length == inode.size <= BLOCK << MAX_BITS:
            _, device, offset, _ = inode.extents[0]  # the usual case: the file is one piece, which can stay in place
            if offset % BLOCK == 0:
                return max(0, (inode.size - 1) // BLOCK).bit_length(), _ADDRESS.pack(0, device, offset // BLOCK)
        try:
            runs = runs_of(inode.size, inode.extents, whole_tail=whole_tail)
        except ValueError as e:
            raise Refusal(Reason.IMAGE, f"a file cannot be described: {e}")
        bits, cost = chunk_bits(runs)
        if self._at + cost > MAX_IMAGE:
            raise Refusal(Reason.IMAGE, f"the image would have more than {MAX_IMAGE >> 20} MiB")
        found = bytearray()
        for i, chunk in enumerate(chunks_of(runs, bits)):
            place = chunk
            if chunk.device == COPY:
                start = i << bits + BLOCK_BITS
                piece = self._gathered(inode, start, min(inode.size, start + (BLOCK << bits)))
                place = Chunk(IMAGE, self._place(piece))
            device, address = (IMAGE, _NO_ADDRESS) if place.device == HOLE else place
            found += _ADDRESS.pack(0, device, address)
        return bits, bytes(found)

    def _has_whole_tail(self, inode: Inode) -> bool:
        """Return whether the device has the whole last block of a file, with zeros after the end of the file."""
        rest = -inode.size % BLOCK
        if not rest or not inode.extents:
            return True
        last = inode.extents[-1]
        end = last.offset + last.length
        if end + rest > self._devices[last.device - 1].size:
            return False
        return not any(self._read(last.device, end, rest))

    def _gathered(self, inode: Inode, start: int, stop: int) -> bytes:
        """Return the bytes of a file from ``start`` to ``stop``."""
        piece = bytearray(stop - start)
        first = max(0, bisect_right(inode.extents, start, key=lambda e: e.file_offset) - 1)
        for extent in islice(inode.extents, first, None):
            low, high = max(start, extent.file_offset), min(stop, extent.file_offset + extent.length)
            if extent.file_offset >= stop:
                break
            if low < high:
                data = self._read(extent.device, extent.offset + low - extent.file_offset, high - low)
                if len(data) != high - low:
                    raise Refusal(Reason.SIZE)
                piece[low - start : high - start] = data
        return bytes(piece)


def _directory_blocks(entries: Sequence[tuple[bytes, int, int]]) -> Iterator[bytes]:
    """Yield the blocks of a directory. Its entries must be sorted by the bytes of their names."""
    first = 0
    while first < len(entries):
        used = last = 0
        for last in range(first, len(entries)):
            used += _ENTRY.size + len(entries[last][0])
            if used > BLOCK:
                break
        else:
            last = len(entries)
        head, names = bytearray(), bytearray()
        start = (last - first) * _ENTRY.size
        for name, number, kind in entries[first:last]:
            head += _ENTRY.pack(number, start + len(names), kind, 0)
            names += name
        yield bytes(head + names)
        first = last
