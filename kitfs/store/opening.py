"""Prepare the directory of a store: check its owner and format, make its parts, and try a write.

Threading: several processes may open a store at the same time.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import Final

from kitfs.errors import StoreError
from kitfs.openfile import OwnFile
from kitfs.ownership import check_directory, make_directory, open_file
from kitfs.store import evict
from kitfs.store.durable import write_durably
from kitfs.store.ingests import Ingests
from kitfs.store.lease import exclusive, release
from kitfs.store.paths import DIRECTORIES, LATER, ingest_path

VERSION: Final = "2"
OLD_VERSION: Final = "1"  # in this format, all users of a digest shared unverified blobs


def prepare(root: str, option: str) -> None:
    """Check and make the parts of the store in ``root``, clean up after crashes, and try a write.

    Messages name ``option``, the command-line option that sets another directory. Raises StoreError for a store of
    another format, and OSError (including ``Unsafe``) for a directory that cannot be used or written.
    """
    for name in (*DIRECTORIES, *LATER):
        with suppress(FileNotFoundError):
            check_directory(os.path.join(root, name))
    _check_version(root, option)
    for name in DIRECTORIES:
        with suppress(FileExistsError):
            make_directory(os.path.join(root, name))
    evict.sweep(root)
    Ingests(root).sweep()
    try_write(root)


def is_store(root: str) -> bool:
    """Return whether a directory has been used as a store."""
    return os.path.exists(os.path.join(root, "VERSION"))


def try_write(root: str) -> None:
    """Raise OSError if a file of 64 KiB cannot be written into the store."""
    probe = ingest_path(root, f"probe-{os.getpid()}-{threading.get_ident()}")
    try:
        with open(open_file(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as f:
            f.write(bytes(64 << 10))
            f.flush()
            os.fsync(f.fileno())
    finally:
        with suppress(FileNotFoundError):
            os.unlink(probe)


def _check_version(root: str, option: str) -> None:
    path = os.path.join(root, "VERSION")
    try:
        with open(open_file(path), encoding="ascii", errors="replace") as f:
            found = f.read(64).strip()
    except FileNotFoundError:
        write_durably(path, f"{VERSION}\n".encode())
        return
    if found == OLD_VERSION and not _convert(root):
        return  # an older version of kitfs is using the store; both can use it, and a later opening converts it
    if found == OLD_VERSION:
        write_durably(path, f"{VERSION}\n".encode())
    elif found != VERSION:
        raise StoreError(
            f"cache directory {root} has format {found[:20]!r}, but this kitfs knows only {OLD_VERSION} and {VERSION}: "
            f"update kitfs, or choose another directory with {option}"
        )


def _convert(root: str) -> bool:
    """Convert a store from format 1 to format 2, by removing its unverified blobs, which have no recorded origin.

    Verified blobs and tags are the same in both formats. If another process uses a blob, the function returns False,
    and may have removed some blobs. Every step is a rename, so a crash leaves a store of format 1.
    """
    for entry in list(evict.entries(root)):
        try:
            lease = OwnFile(os.path.join(entry.directory, "lease"), os.O_RDWR)
        except FileNotFoundError:
            continue  # the blob was removed meanwhile
        try:
            if not exclusive(lease):
                return False
            evict.remove_entry(root, entry.directory, lease=lease, spare_sealed=True)
        finally:
            release(lease)
    return True
