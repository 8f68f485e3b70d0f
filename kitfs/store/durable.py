"""Files that survive a crash whole or not at all."""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress

from kitfs.errors import StoreError, StoreFull
from kitfs.ownership import open_file


def fsync_directory(directory: str) -> None:
    """Make renames in a directory survive a crash."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: str, data: bytes) -> None:
    """A file that is there whole after a crash, or not at all. Raises OSError."""
    temporary = f"{path}.{os.getpid()}.{threading.get_ident()}~"
    try:
        with open(open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    fsync_directory(os.path.dirname(path))


def unwritten(path: str, error: OSError) -> StoreError:
    """What it is when ``write_durably`` fails: StoreFull where there is no room."""
    kind = StoreFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StoreError
    return kind(f"cannot write {path}: {(error.strerror or str(error)).lower()}")
