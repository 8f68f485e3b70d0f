"""Ask the kernel to drop the cached pages of files whose bytes turned out to be wrong.

The kernel is asked by a notification. While the kernel handles a notification, it waits for pages that are being read,
and so for replies from kitfs. So notifications are sent on a thread that handles no requests and holds no lock.
Threading: any thread may call every method.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
from collections.abc import Collection

from kitfs.fuse import abi
from kitfs.kit.inode import Inode


class Invalidation:
    """A sender of notifications to the connection of ``fd``. The first notification starts its thread."""

    def __init__(self, fd: int, log: logging.Logger) -> None:
        self._fd = fd
        self._log = log
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Collection[Inode]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, inodes: Collection[Inode]) -> None:
        """Queue files whose pages must be dropped. Does nothing after ``close``."""
        with self._lock:
            if self._closed or not inodes:
                return
            self._queue.put(inodes)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kitfs-invalidation", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End the thread. The connection must have ended, so that no notification waits for a page."""
        with self._lock:
            self._closed = True
            thread = self._thread
        if thread is not None:
            self._queue.put(())
            thread.join()

    def _run(self) -> None:
        while inodes := self._queue.get():
            for inode in inodes:
                if self._closed:
                    return
                self._drop(inode)

    def _drop(self, inode: Inode) -> None:
        try:
            os.write(self._fd, abi.inval_inode(inode))
        except OSError as e:
            # ENOENT means that the kernel has forgotten the inode and its pages. The others mean that the mount ended.
            if e.errno not in (errno.ENOENT, errno.ENODEV, errno.EPIPE, errno.ECONNRESET):
                self._log.error("cannot drop the cached pages of inode %d: %s", inode, e)
