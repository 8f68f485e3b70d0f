"""Find out whether the kernel reads a blob for a sealed mount.

A sealed mount is an EROFS mount that needs no process, so no process holds a lease on its blobs. But the kernel has the
files of the blobs open, even if the mount is in another mount namespace, or is detached and in use. So this module asks
the kernel for a write lease (fcntl(2), "Leases"), which is granted only for a file that nobody else has open. The
answer is right even after a crash, and nothing needs to be released. A process that mounts blobs holds their leases
(``lease``) until the mount exists.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import tempfile
from typing import BinaryIO

from kitfs.openfile import OwnFile
from kitfs.ownership import make_directories
from kitfs.store.paths import TRASH, ingest_path


def is_open_elsewhere(fd: int) -> bool:
    """Return whether the file that is open for reading as ``fd`` is also open elsewhere, in a process or the kernel.

    Raises OSError if the file system has no leases.
    """
    # If another process opens the file during these lines, it waits until they end, and the kernel sends a signal to
    # this process. The default signal, SIGIO, would kill this process; SIGURG is ignored by default.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError:
        return True
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def is_mounted(directory: str) -> bool:
    """Return whether a mount uses the bytes of the blob in ``directory``.

    The caller must hold the blob's exclusive lease.

    The result is also True while a program has the file open. On a file system without leases, the result is always
    False, because kitfs makes no sealed mounts there.
    """
    if sys.platform != "linux":
        return False
    try:
        body = OwnFile(os.path.join(directory, "rest"), os.O_RDONLY)
    except OSError:
        return False
    try:
        with body.number() as fd:
            return is_open_elsewhere(fd)
    except OSError:
        return False
    finally:
        body.close()


def new_image(root: str) -> BinaryIO:
    """Return a new file without a name for an EROFS image, on the file system of the store in ``root``.

    The image of a mount must be on a real file system. Raises OSError.
    """
    directory = ingest_path(root)
    make_directories(directory)
    return tempfile.TemporaryFile(dir=directory, prefix=TRASH)
