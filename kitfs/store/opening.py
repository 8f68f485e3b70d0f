"""Prepare a directory to be a store: whose it is, its format, its parts, and whether it can be written.

Threading: no state. Several processes may open one store at the same time.
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
OLD_VERSION: Final = "1"  # unverified blobs were shared by everybody who named their digest


def prepare(root: str, option: str) -> None:
    """Check and make the parts of the store in ``root``, sweep what crashes left, and try a write.

    ``option`` is the option by which messages tell to choose another directory. Raises StoreError for a store of
    another format, OSError (``Unsafe`` among them) for a directory that cannot be used or written.
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
    """Tell whether a directory was a store before."""
    return os.path.exists(os.path.join(root, "VERSION"))


def try_write(root: str) -> None:
    """Raise OSError when a file of 64 KiB cannot be written into the store."""
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
        return  # an older kitfs uses it: both work side by side, and a later opening converts it
    if found == OLD_VERSION:
        write_durably(path, f"{VERSION}\n".encode())
    elif found != VERSION:
        raise StoreError(
            f"cache directory {root} has format {found[:20]!r}, but this kitfs knows only {OLD_VERSION} and {VERSION}: "
            f"update kitfs, or choose another directory with {option}"
        )


def _convert(root: str) -> bool:
    """Remove the unverified blobs of format 1, which do not say who sent their bytes; the verified ones are the same in
    format 2, and so are all tags.

    Returns False, and may have removed some, while another process uses a blob of the store. Every step is a rename, so
    that a crash leaves a store of format 1.
    """
    for entry in list(evict.entries(root)):
        try:
            lease = OwnFile(os.path.join(entry.directory, "lease"), os.O_RDWR)
        except FileNotFoundError:
            continue  # it was removed meanwhile
        try:
            if not exclusive(lease):
                return False
            evict.remove_entry(root, entry.directory, lease=lease, spare_sealed=True)
        finally:
            release(lease)
    return True
