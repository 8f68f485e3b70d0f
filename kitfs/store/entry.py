"""The files of one blob on disk, open: in which directory they are, and how they get to their final place.

    meta.json   size and chunk size (``meta``)
    present     which chunks are stored (``chunk_map``); a blob that came whole has none
    synced      the marks of chunks that are fsynced
    sealed      exists when the digest of every byte was right, and all of it is fsynced
    lease       held by every process that has the blob open (``lease``)
    rest        the bytes (``data_file``)

A blob whose digest is proven is in ``blobs/`` (its decoded form in ``decoded/``) and is shared by everybody who names
the digest. Until then it is below ``unproven/``, in a directory of the origin that sends its bytes and of the size that
the manifest declares, so that nobody reads what an origin of somebody else has sent. It moves by one rename when it is
sealed. Threading: ``directory`` changes with that rename, in this process or in another; ``in_place`` finds it.
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
from kitfs.store.lease import Lease, locked
from kitfs.store.meta import load_meta, load_or_reset, save_meta
from kitfs.store.paths import entry_path, unproven_path


class OpenEntry:
    """The entry of a blob of ``size`` bytes (None: not known yet), opened or made; a proven one is preferred.

    ``form`` is "blobs" or "decoded", ``origin`` the key of who sends the bytes (``paths.origin_key``), ``name`` the
    blob's name for messages. Raises OSError, IntegrityError when a proven blob of this digest has another size.
    """

    def __init__(self, root: str, digest: Digest, *, form: str, origin: str, size: int | None, name: str) -> None:
        self._root: Final = root
        self._name: Final = name
        self.place: Final = entry_path(root, digest, form)
        self._own: Final = unproven_path(root, digest, form, origin)
        check_below(os.path.join(root, form), self.place)
        self.directory = self.place
        while not (self._open(self.place, size, make=False) or self._open(self._own, size, make=True)):
            pass  # it was removed or moved between two looks
        self.chunk: Final[int] = self.meta["chunk"]
        if self.sealed and self.directory != self.place:
            self._move()  # a crash came before the rename

    meta: dict[str, Any]
    lease: Lease
    body: DataFile
    present: ChunkMap | None
    sealed: bool

    def _open(self, directory: str, size: int | None, *, make: bool) -> bool:
        """Lease and open the files in a directory, all of one entry; returns False when there is no such entry."""
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
        """Lock the entry's directory for a block, wherever it is now; yields False when the entry was removed."""
        for directory in dict.fromkeys((self.directory, self.place)):
            with locked(directory, self.lease.file) as live:
                if live:
                    self.directory = directory
                    yield True
                    return
        yield False

    def save_size(self, size: int, sha256: str) -> bool:
        """Record the size and digest of a decoded form; returns False when the entry was removed. Raises OSError."""
        meta = {**self.meta, "size": size, "sha256": sha256}
        with self.in_place() as live:
            if live:
                save_meta(self.directory, meta)
        self.meta = meta
        return live

    def load_size(self) -> int | None:
        """Return the size that another process has recorded; None when it is unknown."""
        with self.in_place() as live:
            if live:
                with suppress(OSError, ValueError):
                    self.meta = load_meta(self.directory)
        size = self.meta.get("size")
        return size if isinstance(size, int) else None

    def save_marks(self) -> None:
        """Make the chunks that are stored now survive a reboot. Raises SyncFailedError, OSError."""
        if self.present is None:
            return
        marks = self.present.marks()  # chunks that arrive while the disk syncs are not covered
        self.body.sync()
        with self.in_place() as live:
            if live:
                self.present.save(self.directory, marks)

    def seal(self, size: int, digest: str) -> bool:
        """Record durably that the digest of every byte is right, and move the entry to its place.

        Returns False when the entry was removed and no other one is in its place. Raises OSError: see ``save_marks``.
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
        """Rename the sealed entry to its place, durably, unless a sealed one is there already: then this one is
        removed.

        Its index was made from bytes that were not proven then, and is dropped. Raises OSError.
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
        """Remove the entry from the store; its open files can still be read. An entry in its place stays. Raises
        OSError.
        """
        for directory in dict.fromkeys((self.directory, self.place)):
            if remove_entry(self._root, directory, lease=self.lease.file):
                return

    def close(self) -> None:
        """Close the files when nothing uses them any more, and release the lease."""
        if self.present is not None:
            self.present.close()
        self.body.close()
        self.lease.close()
