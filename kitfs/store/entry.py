"""Open the entry of a blob, which is the directory with the blob's files, and move it to its final place.

    meta.json   size and chunk size (``meta``)
    present     the marks of the chunks that are stored (``chunk_map``); missing for a blob that an ingest wrote
    synced      the marks of the chunks that are fsynced
    sealed      exists if the blob is verified: all of its bytes are fsynced and have the right digest
    lease       locked by every process that has the blob open (``lease``)
    rest        the bytes (``data_file``)

A verified blob is in ``blobs/`` (its decoded form in ``decoded/``), and all users of the digest share it. Before a blob
is verified, it is in a directory below ``unproven/``, one for each origin. An origin is the endpoint that sends the
bytes, together with the size that the manifest declares. So no user reads unverified bytes that another user's registry
has sent. When the blob is sealed, its entry moves to its final place by one rename. Threading: another process may move
the entry at any time; ``in_place`` finds its current ``directory``.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

from kitfs.oci.names import Digest
from kitfs.ownership import check_below, make_directories
from kitfs.store.chunk_map import ChunkMap
from kitfs.store.data_file import DataFile
from kitfs.store.durable import fsync_directory, write_durably
from kitfs.store.evict import remove_entry
from kitfs.store.lease import Lease, condemn, locked
from kitfs.store.meta import load_meta, load_or_reset, save_meta
from kitfs.store.paths import entry_path, origin_key, unproven_path


class OpenEntry:
    """An open entry of a blob of ``size`` bytes (None if the size is unknown). A missing entry is made.

    A verified entry takes precedence over the entry of the origin. ``form`` is "blobs" or "decoded", ``origin`` is the
    key of the origin (``paths.origin_key``), and ``name`` names the blob in messages. Raises OSError, and
    IntegrityError if a verified blob of this digest has another size.
    """

    def __init__(self, root: str, digest: Digest, *, form: str, origin: str, size: int | None, name: str) -> None:
        self._root: Final = root
        self._name: Final = name
        self._digest: Final = digest
        self.place = entry_path(root, digest, form)
        self._own: Final = unproven_path(root, digest, form, origin)
        check_below(os.path.join(root, form), self.place)
        self.directory = self.place
        while not (self._open(self.place, size, make=False) or self._open(self._own, size, make=True)):
            pass  # the entry was removed or moved between the two attempts
        self.chunk = self.meta["chunk"]
        if self.sealed and self.directory != self.place:
            self._move()  # a crash happened between sealing and the rename

    detached = False  # True for an entry that is not on the disk (``detached``)
    meta: dict[str, Any]
    lease: Lease
    body: DataFile
    present: ChunkMap | None
    sealed: bool
    chunk: int  # bytes of a chunk

    def _open(self, directory: str, size: int | None, *, make: bool) -> bool:
        """Lease and open the files of the entry in a directory. Returns False if the entry does not exist."""
        if not make and not os.path.exists(os.path.join(directory, "sealed")):
            return False
        if make:
            check_below(os.path.join(self._root, "unproven"), directory)
        lease = Lease.take(directory, make=make)
        if lease is None:
            return False
        with ExitStack() as undo:
            undo.callback(lease.close)
            with locked(directory, lease.file) as live:
                if not live:
                    return False
                self.sealed = os.path.exists(os.path.join(directory, "sealed"))
                if not self.sealed and (not make or os.path.exists(os.path.join(self.place, "sealed"))):
                    return False
                self.meta = load_or_reset(directory, size, self._name)
                self.body = DataFile(directory)
                undo.callback(self.body.close)
                chunks = None if size is None else -(-size // self.meta["chunk"])
                self.present = None if self.sealed else ChunkMap(directory, chunks)
            undo.pop_all()
        self.lease, self.directory = lease, directory
        return True

    @contextmanager
    def in_place(self) -> Iterator[bool]:
        """Find and lock the entry's directory for a ``with`` block. Yields False if the entry was removed."""
        for directory in dict.fromkeys((self.directory, self.place)):
            with locked(directory, self.lease.file) as live:
                if live:
                    self.directory = directory
                    yield True
                    return
        yield False

    def save_size(self, size: int, sha256: str) -> bool:
        """Record the size and digest of a decoded blob. Returns False if the entry was removed. Raises OSError."""
        meta = {**self.meta, "size": size, "sha256": sha256}
        with self.in_place() as live:
            if live:
                save_meta(self.directory, meta)
        self.meta = meta
        return live

    def load_size(self) -> int | None:
        """Return the size that another process has recorded; None if the size is unknown."""
        with self.in_place() as live:
            if live:
                with suppress(OSError, ValueError):
                    self.meta = load_meta(self.directory)
        size = self.meta.get("size")
        return size if isinstance(size, int) else None

    def save_marks(self) -> None:
        """Make the chunks that are stored now survive a reboot. Raises SyncFailedError and OSError."""
        if self.present is None:
            return
        marks = self.present.marks()  # chunks that arrive while the disk syncs are not covered
        self.body.sync()
        with self.in_place() as live:
            if live:
                self.present.save(self.directory, marks)

    def seal(self, size: int, digest: str) -> bool:
        """Record durably that the blob is verified, and move the entry to its final place.

        Returns False if the entry was removed and the store has no other verified entry of the blob. Raises
        SyncFailedError and OSError.
        """
        self.body.sync()
        with self.in_place() as live:
            if live:
                sealed = os.path.join(self.directory, "sealed")
                write_durably(sealed, json.dumps({"size": size, "digest": digest}).encode())
        if not live and not os.path.exists(os.path.join(self.place, "sealed")):
            return False
        if live and self.directory != self.place:
            self._move()
        self.sealed = True
        return True

    def _move(self) -> None:
        """Rename the sealed entry to its final place, durably, or remove it if a sealed entry is there already.

        The layer index in the entry is removed, because it was made from unverified bytes. Raises OSError.
        """
        prefix = os.path.dirname(self.place)
        make_directories(prefix)
        with self.in_place() as live:
            if not live or self.directory == self.place:
                return
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self.directory, "members"))
            moved = False
            while not moved and not os.path.exists(os.path.join(self.place, "sealed")):
                try:
                    os.rename(self.directory, self.place)
                    moved = True
                except OSError as e:
                    if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    remove_entry(self._root, self.place, spare_sealed=True)
        if moved:
            self.directory = self.place
            fsync_directory(prefix)
            fsync_directory(os.path.dirname(prefix))
        else:
            self.remove()

    def remove(self) -> None:
        """Remove the entry from the store. Its open files can still be read. Raises OSError.

        If another entry has replaced this entry, the other entry stays.
        """
        for directory in dict.fromkeys((self.directory, self.place)):
            if remove_entry(self._root, directory, lease=self.lease.file):
                return

    def discard(self, *, with_decoded: bool) -> None:
        """Mark the bytes as wrong or lost for the processes that have the entry open, and remove it. Raises OSError.

        With ``with_decoded``, the decoded form that was made from unverified bytes of this entry is removed too.
        """
        condemn(self.lease.file)
        self.remove()
        if with_decoded and not self.sealed:
            origin = origin_key(str(self.meta.get("id")), None)
            remove_entry(self._root, unproven_path(self._root, self._digest, "decoded", origin))

    def close(self) -> None:
        """Close the files as soon as no thread uses them, and release the lease."""
        if self.present is not None:
            self.present.close()
        self.body.close()
        self.lease.close()
