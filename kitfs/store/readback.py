"""Read verified blobs back from the disk, to find bytes that have changed.

The files are only read, so readers and mounts are not disturbed. The time of a blob's last use is not changed.
Threading: any thread may call the functions.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, Protocol

from kitfs.errors import InvalidReference, StoreError
from kitfs.oci.names import Digest
from kitfs.openfile import PIECE, OwnFile
from kitfs.store.evict import entries, remove_entry
from kitfs.store.lease import check_descriptors, condemn, hold_sealed, release
from kitfs.store.meta import load_meta
from kitfs.store.paths import entry_path

ReadInto = Callable[[memoryview, int], int]
UNREADABLE: Final = (errno.EIO, errno.EBADMSG, errno.EUCLEAN)  # the errno values if a disk has lost bytes


class Hasher(Protocol):
    """An object that is updated with the bytes of a file in order."""

    def update(self, data: memoryview, /) -> None: ...


class Hashers:
    """A hash object that also updates other hashers with the bytes that it hashes."""

    def __init__(self, first: Any, *others: Hasher) -> None:
        self._first = first
        self._others = others
        self.name: Final[str] = first.name

    def update(self, data: memoryview, /) -> None:
        """Hash the next bytes."""
        for hasher in (self._first, *self._others):
            hasher.update(data)

    def hexdigest(self) -> str:
        """Return the digest of the first hash object, in hexadecimal."""
        return str(self._first.hexdigest())


class SealedBlob(NamedTuple):
    """A verified blob on disk; ``form`` is "blobs" or "decoded"."""

    digest: Digest
    form: str
    size: int


def ignored(_: int) -> None:
    """Ignore the number of bytes that were read."""


def sealed_blobs(root: str) -> Iterator[SealedBlob]:
    """Yield every verified blob of the store in ``root``. Blobs that are added or removed meanwhile may be left out."""
    for entry in entries(root):
        try:
            digest = Digest.parse(entry.digest)
            if not os.path.exists(os.path.join(entry_path(root, digest, entry.form), "sealed")):
                continue
            size = int(load_meta(entry.directory).get("size") or 0)
        except InvalidReference:
            continue
        except (OSError, ValueError, AttributeError, TypeError):
            size = 0  # the entry is damaged, which ``check_entry`` will report
        if entry.directory == entry_path(root, digest, entry.form):
            yield SealedBlob(digest, entry.form, size)


def wrong_bytes(
    read_into: ReadInto, size: int | None, hasher: Any, expected: str, *, moved: Callable[[int], object] = ignored
) -> str | None:
    """Hash a file. Return None if it has ``size`` bytes with the ``expected`` digest, or else describe the fault.

    ``moved`` is called with the size of each piece in bytes, and may raise an error to stop the work. An OSError with
    an errno in ``UNREADABLE`` counts as a fault; any other OSError is raised.
    """
    buffer = memoryview(bytearray(PIECE))
    at = 0
    try:
        while count := read_into(buffer, at):
            hasher.update(buffer[:count])
            at += count
            moved(count)
    except OSError as e:
        if e.errno not in UNREADABLE:
            raise
        return f"the disk cannot read it ({(e.strerror or str(e)).lower()})"
    if at != size:
        return f"it has {at} bytes instead of {size}"
    found = str(hasher.hexdigest())
    return None if found == expected else f"its bytes have the digest {hasher.name}:{found}"


def check_entry(root: str, digest: Digest, form: str, moved: Callable[[int], object] = ignored) -> str | None:
    """Read a verified blob back, and remove it if its bytes have changed.

    Returns None if the blob is unchanged or is not in the store; otherwise describes the fault. A process that has the
    blob open continues to use the open file. Raises StoreError if the blob cannot be read or removed.
    """
    directory = entry_path(root, digest, form)
    lease = hold_sealed(directory, touch=False)
    if lease is None:
        return None
    try:
        wrong = _wrong(directory, digest, form, moved)
        if wrong is not None:
            condemn(lease)
            remove_entry(root, directory, lease=lease)
        return wrong
    except OSError as e:
        check_descriptors(e)
        raise StoreError(f"the store's entry {directory} cannot be read back: {(e.strerror or str(e)).lower()}")
    finally:
        release(lease)


def _wrong(directory: str, digest: Digest, form: str, moved: Callable[[int], object]) -> str | None:
    try:
        meta = load_meta(directory)
        size, expected = meta["size"], digest.hex if form == "blobs" else meta["sha256"]
        body = OwnFile(os.path.join(directory, "rest"), os.O_RDONLY)
    except (ValueError, KeyError, TypeError, FileNotFoundError):
        return "a file of its entry is missing or damaged"
    hasher = digest.hasher() if form == "blobs" else hashlib.sha256()
    try:
        with body.number() as fd:
            return wrong_bytes(lambda view, at: os.preadv(fd, [view], at), size, hasher, expected, moved=moved)
    finally:
        body.close()
