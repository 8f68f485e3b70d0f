"""Read the storage in kit's home directory as a second source of blobs.

kitfs never writes to the storage, and verifies all digests.

    <home>/storage/blobs/sha256/<hex>                            every blob
                   <base64url(registry/repository)>-tags.json    {tag: descriptor}

A file is used instead of the registry's blob once the whole file was read and matches its digest. That check runs on
its own thread, so that a reader of a few bytes need not wait until gigabytes are hashed. Until the check has ended, a
large blob is fetched from its registry. For later processes, the result of the check is stored with the file's inode,
size and times. A file with a wrong digest is neither used nor changed, and one warning is logged. Threading: any thread
may call every method; ``close`` ends the checks.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import threading
from collections.abc import Callable, Generator
from typing import Final

from kitfs.content import Hints, RemoteOrigin, Source
from kitfs.errors import IntegrityError, KitfsError, NotFound, RateLimited, Unauthorized, Unavailable
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import LOCAL, Digest, Reference
from kitfs.openfile import OpenFile
from kitfs.ownership import open_below
from kitfs.registry.layout import FileRange

MAX_SMALL: Final = 8 << 20  # bytes of a manifest, a config, a list of tags
WAIT_LIMIT: Final = 64 << 20  # bytes that are hashed while the reader waits, because most registries are slower
# Errors of a registry after which kit's copy is used: it may be unreachable, or may not have (or not show) the kit
UNREACHABLE: Final = (Unavailable, RateLimited, NotFound, Unauthorized)


class StoredFile(FileRange):
    """An open file of kit's storage."""

    @classmethod
    def open(cls, storage: str, name: str) -> StoredFile | None:
        """Open a file. Return None if it does not exist or cannot be read. No link below ``storage`` is followed."""
        path = os.path.join(storage, name)
        try:
            file = OpenFile(path, os.O_RDONLY, opener=lambda: open_below(storage, name))
        except OSError:
            return None
        return cls(file, 0, file.stat().st_size, path)

    def identity(self) -> list[int]:
        """Return the identity of the file, which changes when the file is replaced or modified."""
        about = self._file.stat()
        return [about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]


class DigestCheck:
    """A check, on its own thread, whether a file matches its digest.

    ``right``: the result once ``done`` is set. ``warn`` is called with the reason if the file cannot be used.
    """

    def __init__(
        self, file: StoredFile, digest: Digest, hints: Hints, closing: threading.Event, warn: Callable[[str], None]
    ) -> None:
        self.file: Final = file
        self.done: Final = threading.Event()
        self.right = False
        self._digest = digest
        self._hints = hints
        self._closing = closing
        self._warn = warn
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Use the result of an earlier process, or start the check. Only the first call has an effect."""
        with self._lock:
            if self._thread is not None or self.done.is_set():
                return
            if self._hints.get(("kit", self._digest)) == self.file.identity():
                self.right = True
                self.done.set()
            else:
                self._thread = threading.Thread(target=self._read, name="kitfs-kit", daemon=True)
                self._thread.start()

    def end(self) -> None:
        """Wait until the check has ended, if it was started."""
        if self._thread is not None:
            self._thread.join()

    def _read(self) -> None:
        try:
            identity = self.file.identity()
            hasher = self._digest.hasher()
            for _, view in self.file.read_range(0, None):
                if self._closing.is_set():
                    return
                hasher.update(view)
            self.right = hasher.hexdigest() == self._digest.hex and self.file.identity() == identity
            if self.right:
                self._hints.set(("kit", self._digest), identity)
            else:
                self._warn("it does not match its digest")
        except (KitfsError, OSError) as e:
            self._warn(str(e))
        finally:
            self.done.set()

    def fail(self, error: Exception) -> None:
        """Record that the file cannot be used, because it has changed since the check."""
        if self.right:
            self.right = False
            self._warn(str(error))


class KitStorage:
    """The storage in kit's home directory, which need not exist.

    ``hints``: where the results of checks are stored. ``wait_limit``: readers wait for the check of a blob only if the
    blob has at most this many bytes. ``open_file``: opens a file below the storage's directory, like
    ``StoredFile.open``.
    """

    def __init__(
        self,
        home: str,
        hints: Hints,
        log: logging.Logger,
        *,
        wait_limit: int = WAIT_LIMIT,
        open_file: Callable[[str, str], StoredFile | None] = StoredFile.open,
    ) -> None:
        self.wait_limit: Final = wait_limit
        self._storage = os.path.join(home, "storage")
        self._hints = hints
        self._open_file = open_file
        self._log = log
        self._lock = threading.Lock()
        self._checks: dict[Digest, DigestCheck] = {}
        self._closing = threading.Event()

    def __repr__(self) -> str:
        return f"<KitStorage {self._storage}>"

    def close(self) -> None:
        """End the checks."""
        self._closing.set()
        for check in self._checks.values():
            check.end()

    def origin(
        self, reference: Reference, repository: Callable[[Reference], RemoteOrigin], *, whole: bool = False
    ) -> LocalFirstRepository:
        """Return the Origin of a reference.

        ``whole``: whether the caller reads all bytes. Reads then wait for checks, and a tag that only kit has is
        accepted.
        """
        return LocalFirstRepository(self, reference, repository, whole=whole)

    def tagged(self, reference: Reference) -> tuple[Descriptor, bytes] | None:
        """Return the manifest that kit has under a tag, or None if kit has none or its digest is wrong."""
        name = base64.urlsafe_b64encode(reference.name.encode()).decode()
        try:
            with open(open_below(self._storage, f"{name}-tags.json"), "rb") as f:
                tags = json.loads(f.read(MAX_SMALL))
            descriptor = Descriptor.from_json(tags[reference.tag or "latest"], "tags")
        except (OSError, ValueError, LookupError, TypeError, RecursionError, KitfsError):
            return None
        data = self.small(descriptor.digest)
        return None if data is None else (descriptor, data)

    def small(self, digest: Digest) -> bytes | None:
        """Read a small blob and verify its digest. Return None if kit does not have it or its copy is wrong."""
        file = self._file(digest)
        if file is None or (file.size or 0) > MAX_SMALL:
            return None
        data = bytearray()
        try:
            for _, view in file.read_range(0, None):
                data += view
        except (KitfsError, OSError) as e:
            self._warn(digest, str(e))
            return None
        if not digest.matches(data):
            self._warn(digest, "it does not match its digest")
            return None
        return bytes(data)

    def check(self, descriptor: Descriptor) -> DigestCheck | None:
        """Return the check of a blob, or None if kit has no blob with this digest and size.

        The check is not started here.
        """
        with self._lock:
            found = self._checks.get(descriptor.digest)
            if found is None:
                file = self._file(descriptor.digest)
                if file is None or file.size != descriptor.size:
                    return None
                digest = descriptor.digest
                found = DigestCheck(file, digest, self._hints, self._closing, lambda why: self._warn(digest, why))
                self._checks[digest] = found
        return found

    def _file(self, digest: Digest) -> StoredFile | None:
        return self._open_file(self._storage, f"blobs/{digest.algorithm}/{digest.hex}")

    def _warn(self, digest: Digest, why: str) -> None:
        self._log.warning("kit's copy of %s in %s is not used: %s", digest, self._storage, why)

    def fallback(self, reference: Reference, cause: KitfsError) -> tuple[Descriptor, bytes] | None:
        """Return the result of ``tagged``, after the registry failed with ``cause``.

        A warning is logged if the reference has a registry.
        """
        found = self.tagged(reference)
        if found is not None and reference.registry != LOCAL:
            self._log.warning("%s: using %s from kit's local storage: %s", reference.display, found[0].digest, cause)
        return found


class LocalFirstRepository:
    """An Origin that looks up digests in kit's storage first, and then in the repository."""

    def __init__(
        self, storage: KitStorage, reference: Reference, repository: Callable[[Reference], RemoteOrigin], *, whole: bool
    ) -> None:
        self._storage = storage
        self._reference = reference
        self._repository = repository
        self._whole = whole

    def __repr__(self) -> str:
        return f"<LocalFirstRepository {self._reference}>"

    def known(self) -> bool:
        """Return whether kit has the manifest of the reference and its digest is right."""
        digest = self._reference.digest
        return (self._storage.tagged(self._reference) if digest is None else self._storage.small(digest)) is not None

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]:
        """Return a manifest. A tag is looked up at the registry; a digest is looked up in kit's storage first.

        Raises the errors of the registry.
        """
        if ":" in identifier:
            digest = Digest.parse(identifier)
            data = self._storage.small(digest)
            if data is None:
                return self._repository(self._reference).manifest(identifier)
            return Descriptor("", digest, len(data)), data
        try:
            return self._repository(self._reference).manifest(identifier)
        except UNREACHABLE as e:
            found = self._storage.fallback(self._reference.with_tag(identifier), e) if self._whole else None
            if found is None:
                raise
            return found

    def blob(self, descriptor: Descriptor) -> Source:
        """Return a blob as a Source; no request is sent until it is read."""
        check = self._storage.check(descriptor)
        if check is None:
            return self._repository(self._reference).blob(descriptor)
        waits = self._whole or descriptor.size <= self._storage.wait_limit
        return LocalFirstBlob(check, lambda: self._repository(self._reference).blob(descriptor), waits=waits)

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes:
        """Read a whole small blob. Raises the errors of the registry."""
        data = self._storage.small(descriptor.digest) if descriptor.size <= limit else None
        if data is None or len(data) != descriptor.size:
            return self._repository(self._reference).blob_bytes(descriptor, limit)
        return data


class LocalFirstBlob:
    """A Source of a blob that kit has.

    ``open_remote`` returns the registry's blob, which is read until ``check`` has verified kit's file. ``waits``:
    whether reads wait until the check has ended.
    """

    def __init__(self, check: DigestCheck, open_remote: Callable[[], Source], *, waits: bool) -> None:
        self._check = check
        self._open_remote = open_remote
        self._waits = waits
        self._remote: Source | None = None

    @property
    def size(self) -> int | None:
        """The size in bytes."""
        return self._check.file.size

    @property
    def ranged(self) -> bool:
        """Return whether ranges are available. It is False once the registry has ignored a range."""
        return self._remote is None or self._remote.ranged

    @property
    def sender(self) -> str:
        """Return the registry.

        Wrong bytes cannot come from kit's file, which is used only after its digest was verified.
        """
        try:
            return self._registry().sender
        except KitfsError:
            return self._check.file.sender

    def distrust(self) -> bool:
        """Stop using those mirrors of the registry that sent wrong bytes."""
        return self._remote is not None and self._remote.distrust()

    def _registry(self) -> Source:
        if self._remote is None:
            self._remote = self._open_remote()
        return self._remote

    def read_range(self, start: int, stop: int | None, /) -> Generator[tuple[int, memoryview], None, None]:
        """Yield (offset, bytes) of [start, stop); see ``content.Source``.

        If the registry fails, the remaining bytes are read from kit's file after the check of that file has ended. If
        the file cannot be used, raises the error of the registry.
        """
        at, stop = (start, stop) if self.ranged else (0, None)
        check = self._check
        check.begin()
        if self._waits:
            check.done.wait()
        if not (check.done.is_set() and check.right):
            try:
                if self._remote is None:
                    self._remote = self._open_remote()
                for offset, view in self._remote.read_range(at, stop):
                    yield offset, view
                    at = offset + len(view)
                return
            except UNREACHABLE:
                check.done.wait()
                if not check.right:
                    raise
                stop = stop if self.ranged else None
        try:
            for offset, view in check.file.read_range(at, stop):
                yield offset, view
                at = offset + len(view)
        except (IntegrityError, OSError) as e:
            check.fail(e)
            if self._remote is None:
                self._remote = self._open_remote()
            yield from self._remote.read_range(at, stop)
