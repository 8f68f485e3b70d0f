"""FUSE passthrough: files that the kernel reads from the store by itself, without a request.

This works for a file that is a whole blob which the store has verified (``FileSystem.backing``). The kernel refuses to
mix passthrough and cached handles on one node. So such a file has a second node id with the same st_ino: its inode with
the highest bit set, which no inode of a tree has. Handles of the first node id stay cached; the next lookup of the name
returns the second node id. For that, the name of a file that may still be verified is valid for ``SOON`` seconds only.
An opening of the second node id is a passthrough or fails with ESTALE. After ESTALE the kernel looks the name up again,
and the lookup returns the first node id.

Source: FUSE_PASSTHROUGH in <linux/fuse.h> and Documentation/filesystems/fuse-passthrough.rst; Linux 6.9. Threading: any
thread; one lock guards the table of open files, and is held over two short ioctls.
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
from kitfs.fuse.replies import Backing, Handle
from kitfs.kit.inode import Inode

if TYPE_CHECKING:
    from kitfs.fuse.filesystem import FileSystem

SOON: Final = 1  # seconds that a name is valid while its file waits for verification
_NATIVE: Final = 1 << 63
_BACKING_OPEN: Final = 0x4010E501  # FUSE_DEV_IOC_BACKING_OPEN = _IOW(229, 1, struct fuse_backing_map)
_BACKING_CLOSE: Final = 0x4004E502  # FUSE_DEV_IOC_BACKING_CLOSE = _IOW(229, 2, uint32_t)
_BACKING_MAP: Final = struct.Struct("=iIQ")  # fuse_backing_map: fd flags padding


def inode_of(nodeid: int) -> Inode:
    """Return the inode of a node id, of either kind."""
    return Inode(nodeid & ~_NATIVE)


def is_native(nodeid: int) -> bool:
    """Return whether a node id is one whose handles are passthrough."""
    return bool(nodeid & _NATIVE)


@dataclass(slots=True)
class _Backed:
    """An open file: the number that the kernel gave its backing file, and how many handles use it."""

    backing_id: int
    handles: int


class NativeFiles:
    """The passthrough files of one connection; ``fd`` is one of its descriptors. ``enabled`` once INIT agreed on it."""

    def __init__(self, filesystem: FileSystem, fd: int, log: logging.Logger) -> None:
        self.enabled = False
        self._fs = filesystem
        self._fd = fd
        self._log = log
        self._possible = filesystem.may_have_backings
        self._lock = threading.Lock()
        self._open: dict[Inode, _Backed] = {}
        self._handles: dict[Handle, Inode] = {}
        self._refused: set[Inode] = set()  # the kernel does not take their backing files

    def __repr__(self) -> str:
        return f"<NativeFiles {len(self._open)} open, {len(self._refused)} refused>"

    def __len__(self) -> int:
        return len(self._open)

    def place(self, inode: Inode) -> Place:
        """Return the node id to which a name of an inode leads now, and for how long."""
        if not (self.enabled and self._possible) or inode in self._refused:
            return Place(inode)
        backing = self._fs.backing(inode)
        if backing is Backing.NEVER:
            return Place(inode)
        return Place(inode | _NATIVE) if backing is Backing.NOW else Place(inode, SOON)

    def open(self, inode: Inode, handle: Handle) -> int:
        """Return the backing id for a new handle. Raises OSError ESTALE if passthrough is not possible any more."""
        with self._lock:
            backed = self._open.get(inode)
            if backed is None:
                backed = self._open[inode] = _Backed(self._backing_id(inode), 0)
            backed.handles += 1
            self._handles[handle] = inode
            return backed.backing_id

    def _backing_id(self, inode: Inode) -> int:
        file = self._fs.open_backing(inode)
        if file is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        with file:
            try:
                # A bytearray: ioctl gives the id back as its result only for a mutable buffer.
                request = bytearray(_BACKING_MAP.pack(file.fileno(), 0, 0))
                number: int = fcntl.ioctl(self._fd, _BACKING_OPEN, request)
                return number
            except OSError as e:
                self._refuse(inode, e)
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from e

    def _refuse(self, inode: Inode, error: OSError) -> None:
        if error.errno == errno.EPERM:
            self.enabled = False  # no CAP_SYS_ADMIN in the first user namespace
        self._refused.add(inode)
        self._log.info("the kernel does not read inode %d from the store by itself: %s", inode, error.strerror)

    def release(self, handle: Handle) -> None:
        """Forget a handle, and close the backing file with its last handle. Cached handles are ignored."""
        if handle not in self._handles:
            return
        with self._lock:
            inode = self._handles.pop(handle)
            backed = self._open[inode]
            backed.handles -= 1
            if backed.handles:
                return
            del self._open[inode]
            try:
                fcntl.ioctl(self._fd, _BACKING_CLOSE, struct.pack("=I", backed.backing_id))
            except OSError as e:
                self._log.error("the kernel does not close backing file %d: %s", backed.backing_id, e)
