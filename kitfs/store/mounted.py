"""Whether the kernel reads a blob for a sealed mount, which no process has to serve.

An EROFS mount keeps the files of its blobs open, also where nobody can see it: in another mount namespace, or detached
with files that are still read. The file system tells it: a write lease (fcntl(2), "Leases") is granted only for a file
that nobody else has open. So no record can be wrong after a crash, and nothing has to be released. A process that
mounts blobs holds their leases (``lease``) until the mount exists. Threading: no state.
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
    """Tell whether a file that is open for reading as ``fd`` is open a second time, by a process or by the kernel.

    Raises OSError if the file system has no leases.
    """
    # Another process that opens the file during these lines waits until they end, and the kernel sends this process a
    # signal because of it. The default one, SIGIO, would kill it; SIGURG is ignored by default.
    fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except BlockingIOError:
        return True
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def is_mounted(directory: str) -> bool:
    """Tell whether a mount uses the bytes of the blob in ``directory``. The caller must hold its lease exclusively.

    A program that reads the file by its name looks like a mount. On a file system without leases nothing is mounted.
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
    """Return a new file without a name on the file system of the store in ``root``: EROFS images must be on a real one.

    Raises OSError.
    """
    directory = ingest_path(root)
    make_directories(directory)
    return tempfile.TemporaryFile(dir=directory, prefix=TRASH)
