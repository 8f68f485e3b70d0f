"""Serve a mount with libfuse 2 and fusepy, on systems other than Linux or with ``--transport libfuse``.

This transport is slower than the kernel transport. libfuse identifies files by path, so every operation resolves its
path from the root. libfuse starts a thread for every request that finds no idle thread, so operations may wait. libfuse
does not report INTERRUPT, so a killed process whose lookup waits for the network ends only when the lookup ends. (A
process that waits for a read can be killed, because it waits in the page cache.)

Names are bytes, but fusepy accepts only str. So names are decoded as latin-1, which maps each byte to one character and
back.

The module ``fuse`` of fusepy loads libfuse when it is imported, so it is imported only when a mount is made. Threading:
``serve`` runs libfuse's loop on a thread of its own; operations run on libfuse's threads.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from kitfs.errors import MountError
from kitfs.fuse.abi import FOREVER
from kitfs.fuse.errno_policy import ErrnoPolicy
from kitfs.fuse.mounting import DEVICE, MountOptions, check_allow_other, device_error, end_mount, escaped, fusermount
from kitfs.fuse.replies import Attr, Handle
from kitfs.kit.inode import ROOT, Inode
from kitfs.metrics import Counters

if TYPE_CHECKING:
    from kitfs.fuse.filesystem import FileSystem

_ENCODING: Final = "latin-1"
_BLOCK: Final = 512


class Operations:
    """The operations that fusepy calls, with libfuse's names and arguments. A missing operation fails with ENOSYS.

    No operation for writing is needed, because the mount is ``ro``, and the kernel itself returns EROFS.
    """

    use_ns = True  # times are integers in nanoseconds

    def __init__(
        self, filesystem: FileSystem, *, ready: Callable[[], None], counters: Counters, failures: ErrnoPolicy
    ) -> None:
        self._fs = filesystem
        self._ready = ready
        self._counters = counters
        self._failures = failures

    def __call__(self, operation: str, *args: Any) -> Any:
        """Run an operation for fusepy. If it fails, raise OSError with the errno of the failure."""
        try:
            if operation not in ("init", "destroy"):
                self._counters.add("fuse_requests", 1, operation)
            return getattr(self, operation)(*args)
        except Exception as e:  # noqa: BLE001 - the kernel waits for a reply to every request
            number = self._failures.errno_of(operation, e)
            raise OSError(number, os.strerror(number))

    def _inode(self, path: str) -> Inode:
        inode = ROOT
        for name in path.encode(_ENCODING).split(b"/"):
            if name:
                inode = self._fs.lookup(inode, name).inode
        return inode

    def init(self, path: str) -> None:
        self._ready()

    def destroy(self, path: str) -> None:
        """Do nothing when the mount ends, because the transport closes its files itself."""

    def getattr(self, path: str, fi: Any = None) -> dict[str, int]:
        return _stat(self._fs.getattr(self._inode(path)))

    def readlink(self, path: str) -> str:
        return self._fs.readlink(self._inode(path)).decode(_ENCODING)

    def open(self, path: str, fi: Any) -> None:
        opened = self._fs.open(self._inode(path), fi.flags)
        fi.fh, fi.keep_cache = opened

    def read(self, path: str, size: int, offset: int, fi: Any) -> bytes:
        return bytes(self._fs.read(Handle(fi.fh), offset, size))

    def release(self, path: str, fi: Any) -> None:
        self._fs.release(Handle(fi.fh))

    def opendir(self, path: str) -> int:
        return self._fs.opendir(self._inode(path))

    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
        # fusepy does not report where a second call begins. Offset 0 makes libfuse buffer the whole listing instead.
        return [(e.name.decode(_ENCODING), _stat(e.attr), 0) for e in self._fs.readdir(Handle(fh), 0)]

    def releasedir(self, path: str, fh: int) -> None:
        self._fs.releasedir(Handle(fh))

    def statfs(self, path: str) -> dict[str, int]:
        about = self._fs.statfs()
        return {
            "f_bsize": about.block_size, "f_frsize": about.block_size,
            "f_blocks": about.blocks, "f_bfree": 0, "f_bavail": about.available,
            "f_files": about.files, "f_ffree": 0, "f_favail": 0, "f_namemax": about.name_max,
        }  # fmt: skip

    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        return self._fs.getxattr(self._inode(path), name.encode(_ENCODING))

    def listxattr(self, path: str) -> list[str]:
        return [name.decode(_ENCODING) for name in self._fs.listxattr(self._inode(path))]


def _stat(attr: Attr) -> dict[str, int]:
    when = max(0, int(attr.mtime)) * 10**9
    return {
        "st_ino": attr.ino, "st_mode": attr.mode, "st_nlink": attr.nlink, "st_uid": attr.uid, "st_gid": attr.gid,
        "st_size": attr.size, "st_blocks": -(-attr.size // _BLOCK), "st_blksize": 128 << 10,
        "st_atime": when, "st_mtime": when, "st_ctime": when,
    }  # fmt: skip


class LibfuseTransport:
    """A mount that libfuse serves."""

    name: Final = "libfuse"

    def __init__(
        self, filesystem: FileSystem, options: MountOptions, *, counters: Counters, log: logging.Logger
    ) -> None:
        self._filesystem = filesystem
        self._options = options
        self._counters = counters
        self._log = log
        self._fuse: Any = None

    def __repr__(self) -> str:
        return f"<LibfuseTransport {self._options.source} on {self._options.mountpoint}>"

    def mount(self) -> None:
        """Check the requirements of a mount, because libfuse reports errors only on stderr. Raises MountError.

        ``serve`` makes the mount itself.
        """
        if sys.platform == "linux":
            if os.geteuid() != 0:
                fusermount()
                if self._options.allow_other:
                    check_allow_other()
            try:
                os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
            except OSError as e:
                raise device_error(e)
        where = self._options.mountpoint
        if not os.path.isdir(where):
            raise MountError(
                f"cannot mount at {where}: it is not a directory",
                errno=errno.ENOTDIR if os.path.lexists(where) else errno.ENOENT,
            )
        if not os.access(where, os.W_OK):
            raise MountError(
                f"cannot mount at {where}: this user has no permission to write to it (use another directory)",
                errno=errno.EACCES,
            )
        self._fuse = _load()

    def serve(self, ready: Callable[[], None]) -> None:
        """Mount, and serve requests until the mount has ended. ``ready`` is called when the mount is ready.

        Raises MountError.
        """
        if self._fuse is None:
            raise MountError(f"{self._options.mountpoint} is not mounted", errno=errno.EINVAL)
        failure: list[Exception] = []
        # libfuse runs on a thread of its own, so that fusepy cannot replace the SIGINT handler of the main thread.
        thread = threading.Thread(target=self._run, args=(ready, failure), name="kitfs-libfuse", daemon=True)
        thread.start()
        thread.join()
        if failure:
            raise MountError(
                f"libfuse cannot mount at {self._options.mountpoint}; its message is on stderr or in the log",
                errno=errno.EIO,
            )

    def _run(self, ready: Callable[[], None], failure: list[Exception]) -> None:
        failures = ErrnoPolicy(self._counters, self._log)
        operations = Operations(self._filesystem, ready=ready, counters=self._counters, failures=failures)
        options: dict[str, Any] = {
            "fsname": _latin(escaped(self._options.source)), "subtype": "kitfs",
            "ro": True, "nosuid": True, "nodev": True, "default_permissions": True, "use_ino": True, "raw_fi": True,
            "entry_timeout": FOREVER, "attr_timeout": FOREVER,
        }  # fmt: skip
        if self._options.allow_other:
            options["allow_other"] = True
        try:
            self._fuse.FUSE(
                operations, _latin(self._options.mountpoint), encoding=_ENCODING, foreground=True, **options
            )
        except RuntimeError as e:  # its argument is the exit code of fuse_main
            failure.append(e)
        finally:
            # fuse_remove_signal_handlers sets SIGPIPE to SIG_DFL, so the next write to a closed socket would end this
            # process. ctypes is used because Python can set signal handlers only on the main thread.
            ctypes.CDLL(None).signal(signal.SIGPIPE, 1)  # SIG_IGN

    @property
    def native_files(self) -> int:
        """Return 0: libfuse 2 does not support passthrough, so the kernel reads no file directly from the store."""
        return 0

    @property
    def kept(self) -> None:
        """Return None: libfuse 2 cannot continue the connection of an earlier process."""
        return None

    def known_wrong(self, digest: str) -> None:
        """Let the kernel drop the cached pages of a layer with wrong bytes when a file of the layer is next opened.

        While the bytes are wrong, opening a file of the layer fails. libfuse 2 cannot drop pages at once, so the pages
        of files that are already open stay cached.
        """
        self._filesystem.failed(digest)

    def stop(self) -> None:
        """Unmount, or detach the mount if it is in use. ``serve`` returns when the last file is closed."""
        end_mount(self._options.mountpoint)


def _latin(text: str) -> str:
    """Encode a string for fusepy, with a character for each of its bytes."""
    return os.fsencode(text).decode(_ENCODING)


def _load() -> Any:
    """Import fusepy. Raises MountError if fusepy or libfuse is not installed."""
    try:
        return importlib.import_module("fuse")
    except (OSError, ImportError) as e:
        hint = "install libfuse2 (Debian: libfuse2, macOS: macFUSE), or use --transport kernel"
        raise MountError(f"cannot load libfuse ({e}): {hint}", errno=errno.ENOENT)
