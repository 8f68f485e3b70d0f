"""Let the kernel read files directly from the store, without requests (FUSE passthrough).

This works for a file that is a whole, verified blob (``FileSystem.backing``). The kernel does not allow passthrough
handles and cached handles on the same node. So such a file has a second node id with the same st_ino. The second node
id is the inode number with the highest bit set, which no inode number of a tree has. Handles of the first node id stay
cached, and the next lookup of the name returns the second node id. The kernel sends this lookup soon, because a name is
valid for only ``SOON`` seconds while its file may still become verified. Opening the second node id either uses
passthrough or fails with ESTALE. After ESTALE, the kernel looks the name up again, and the lookup returns the first
node id.

The ids of backing files belong to the connection, and outlive this process. So the open backing files are also stored
in the *backing table*, a file of slots with the inode, the backing id and the number of handles. The next process that
serves the connection reads the table. A slot is written before the kernel gets the backing id, and cleared before the
kernel closes the backing file, so the table never has an id that the kernel does not know. If the process is killed
between the two, the kernel keeps a backing file until the end of the mount.

Source: FUSE_PASSTHROUGH in <linux/fuse.h> and Documentation/filesystems/fuse-passthrough.rst; Linux 6.9. Threading: any
thread may call the methods. A lock guards the table of open files, and is held during two short ioctls.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kitfs.fuse.abi import Place
from kitfs.fuse.replies import Backing
from kitfs.kit.inode import Inode

if TYPE_CHECKING:
    from kitfs.fuse.filesystem import FileSystem

SOON: Final = 1  # seconds for which a name is valid while its file is not verified yet
_NATIVE: Final = 1 << 63
_BACKING_OPEN: Final = 0x4010E501  # FUSE_DEV_IOC_BACKING_OPEN = _IOW(229, 1, struct fuse_backing_map)
_BACKING_CLOSE: Final = 0x4004E502  # FUSE_DEV_IOC_BACKING_CLOSE = _IOW(229, 2, uint32_t)
_BACKING_MAP: Final = struct.Struct("=iIQ")  # fuse_backing_map: fd flags padding
_SLOT: Final = struct.Struct("=QII")  # a slot of the backing table: inode, backing id, handles; all zero if free


def inode_of(nodeid: int) -> Inode:
    """Return the inode of a first or second node id."""
    return Inode(nodeid & ~_NATIVE)


def is_native(nodeid: int) -> bool:
    """Return whether a node id is a second node id, whose handles use passthrough."""
    return bool(nodeid & _NATIVE)


@dataclass(slots=True)
class _Backed:
    """An open file: the id that the kernel has assigned to its backing file, and how many handles use it.

    ``slot`` is the number of the file's slot in the backing table.
    """

    slot: int
    backing_id: int
    handles: int


class NativeFiles:
    """The passthrough files of a connection. ``fd`` is any descriptor of the connection.

    ``table`` is a descriptor of the connection's backing table. ``enabled`` is set to True after the kernel has
    accepted passthrough in INIT.
    """

    def __init__(self, filesystem: FileSystem, fd: int, log: logging.Logger, *, table: int) -> None:
        self.enabled = False
        self._fs = filesystem
        self._fd = fd
        self._log = log
        self._possible = filesystem.may_have_backings
        self._lock = threading.Lock()
        self._table = table
        self._open: dict[Inode, _Backed] = {}
        self._free: list[int] = []  # free slots of the backing table before its end
        self._slots = os.fstat(table).st_size // _SLOT.size
        for slot, (inode, backing_id, handles) in enumerate(
            _SLOT.iter_unpack(os.pread(table, self._slots * _SLOT.size, 0))
        ):
            if handles:
                self._open[Inode(inode)] = _Backed(slot, backing_id, handles)
            else:
                self._free.append(slot)
        self._refused: set[Inode] = set()  # inodes whose backing files the kernel has refused

    def __repr__(self) -> str:
        return f"<NativeFiles {len(self._open)} open, {len(self._refused)} refused>"

    def __len__(self) -> int:
        return len(self._open)

    def place(self, inode: Inode) -> Place:
        """Return the node id that a lookup of an inode returns now, and for how long it is valid."""
        if not (self.enabled and self._possible) or inode in self._refused:
            return Place(inode)
        backing = self._fs.backing(inode)
        if backing is Backing.NEVER:
            return Place(inode)
        return Place(inode | _NATIVE) if backing is Backing.NOW else Place(inode, SOON)

    def open(self, inode: Inode) -> int:
        """Return the backing id for a new handle. Raises OSError (ESTALE) if passthrough is no longer possible."""
        with self._lock:
            backed = self._open.get(inode)
            if backed is None:
                backing_id = self._backing_id(inode)
                backed = self._open[inode] = _Backed(self._new_slot(), backing_id, 0)
            backed.handles += 1
            self._write(backed.slot, inode, backed.backing_id, backed.handles)
            return backed.backing_id

    def _new_slot(self) -> int:
        if self._free:
            return self._free.pop()
        self._slots += 1
        return self._slots - 1

    def _write(self, slot: int, inode: int, backing_id: int, handles: int) -> None:
        os.pwrite(self._table, _SLOT.pack(inode, backing_id, handles), slot * _SLOT.size)

    def _backing_id(self, inode: Inode) -> int:
        file = self._fs.open_backing(inode)
        if file is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        with file:
            try:
                # The buffer is a bytearray, because ioctl returns the id as its result only for a mutable buffer.
                request = bytearray(_BACKING_MAP.pack(file.fileno(), 0, 0))
                number: int = fcntl.ioctl(self._fd, _BACKING_OPEN, request)
                return number
            except OSError as e:
                self._refuse(inode, e)
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from e

    def _refuse(self, inode: Inode, error: OSError) -> None:
        if error.errno == errno.EPERM:
            self.enabled = False  # the process lacks CAP_SYS_ADMIN in the initial user namespace
        self._refused.add(inode)
        self._log.info("the kernel cannot read inode %d directly from the store: %s", inode, error.strerror)

    def release(self, inode: Inode) -> None:
        """Remove a handle of an inode's second node id, and close the backing file after its last handle."""
        with self._lock:
            backed = self._open.get(inode)
            if backed is None:
                return
            backed.handles -= 1
            if backed.handles:
                self._write(backed.slot, inode, backed.backing_id, backed.handles)
                return
            del self._open[inode]
            self._write(backed.slot, 0, 0, 0)
            self._free.append(backed.slot)
            try:
                fcntl.ioctl(self._fd, _BACKING_CLOSE, struct.pack("=I", backed.backing_id))
            except OSError as e:
                self._log.error("the kernel cannot close the backing file %d: %s", backed.backing_id, e)
