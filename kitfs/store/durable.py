"""Write files that exist either completely or not at all after a crash.

``whole_file`` writes a temporary file in the same directory and renames it, so that no reader sees a partial file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Final

from kitfs.errors import StoreError, StoreFull
from kitfs.ownership import open_file

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})  # errno values of a write for which the disk has no room


def fsync_directory(directory: str) -> None:
    """Make completed renames in a directory survive a crash. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def whole_file(path: str, *, private: bool = True, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a file to write, which is renamed to ``path`` when the ``with`` block ends without an error.

    Readers see the old file or the new file, but never a part. A ``private`` file has mode 0600
    (``ownership.open_file``). Without ``private``, the umask determines the mode, and the block may change it. A
    ``durable`` file and its name are fsynced. The name of the temporary file ends with "~", and the file is removed if
    the block fails. Raises OSError.
    """
    temporary = f"{path}.{os.urandom(8).hex()}~"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = open_file(temporary, flags) if private else os.open(temporary, flags, 0o666)
    try:
        with open(fd, "wb") as f:
            yield f
            f.flush()
            if durable:
                os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        fsync_directory(os.path.dirname(path))


def write_durably(path: str, data: bytes) -> None:
    """Write a private file that exists either completely or not at all after a crash. Raises OSError."""
    with whole_file(path) as f:
        f.write(data)


def write_error(path: str, error: OSError) -> StoreError:
    """Return the error for a file that could not be written: StoreFull if the disk is full, otherwise StoreError."""
    kind = StoreFull if error.errno in NO_SPACE else StoreError
    return kind(f"cannot write {path}: {(error.strerror or str(error)).lower()}")
