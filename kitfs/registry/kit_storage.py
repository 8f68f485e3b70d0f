"""kit's own storage (KITOPS §4.1) as a second place where blobs are: read, never written, and believed only by digest.

    <home>/storage/blobs/sha256/<hex>                            every blob
                   <base64url(registry/repository)>-tags.json    {tag: descriptor}

A file counts once it was read from end to end and has its digest; then it is read instead of the network. That check
runs on a thread of its own, so that a reader of a few bytes does not wait for the hash of gigabytes: until it has
ended a big blob is asked of its registry. What the check found is noted by the file's inode, size and times, for
later processes. A file that is wrong is left alone, with one warning. Threading: every method from any thread;
``close`` ends the checks.
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
AT_ONCE: Final = 64 << 20  # bytes that are hashed while the reader waits: sooner than most registries send them
UNREACHABLE: Final = (
    Unavailable,
    RateLimited,
    NotFound,
    Unauthorized,
)  # what a kit that only kit has looks like to its registry


class StoredFile(FileRange):
    """A file of kit's storage, open."""

    @classmethod
    def open(cls, storage: str, name: str) -> StoredFile | None:
        """None when there is none that can be read; no link below ``storage`` is followed."""
        path = os.path.join(storage, name)
        try:
            file = OpenFile(path, os.O_RDONLY, opener=lambda: open_below(storage, name))
        except OSError:
            return None
        return cls(file, 0, file.stat().st_size, path)

    def identity(self) -> list[int]:
        """What is another when the file is, or was written to."""
        about = self._file.stat()
        return [about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns]


class DigestCheck:
    """Whether a file has its digest: found out on a thread, begun by ``begin``. ``right`` counts when ``done`` is
    set.
    """

    def __init__(
        self, file: StoredFile, digest: Digest, notes: Hints, closing: threading.Event, told: Callable[[str], None]
    ) -> None:
        self.file: Final = file
        self.done: Final = threading.Event()
        self.right = False
        self._digest = digest
        self._notes = notes
        self._closing = closing
        self._told = told
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Look at the notes, else begin to read. Only the first call does."""
        with self._lock:
            if self._thread is not None or self.done.is_set():
                return
            if self._notes.get(("kit", self._digest)) == self.file.identity():
                self.right = True
                self.done.set()
            else:
                self._thread = threading.Thread(target=self._read, name="kitfs-kit", daemon=True)
                self._thread.start()

    def end(self) -> None:
        """Wait for what was begun."""
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
                self._notes.set(("kit", self._digest), identity)
            else:
                self._told("it does not have its digest")
        except (KitfsError, OSError) as e:
            self._told(str(e))
        finally:
            self.done.set()

    def fail(self, error: Exception) -> None:
        """The file changed after it was checked."""
        if self.right:
            self.right = False
            self._told(str(error))


class KitStorage:
    """kit's home directory; nothing need be there."""

    def __init__(self, home: str, notes: Hints, log: logging.Logger) -> None:
        self._storage = os.path.join(home, "storage")
        self._notes = notes
        self._log = log
        self._lock = threading.Lock()
        self._checks: dict[Digest, DigestCheck] = {}
        self._closing = threading.Event()

    def __repr__(self) -> str:
        return f"<KitHome {self._storage}>"

    def close(self) -> None:
        """End the checks."""
        self._closing.set()
        for check in self._checks.values():
            check.end()

    def origin(
        self, reference: Reference, repository: Callable[[Reference], RemoteOrigin], *, whole: bool = False
    ) -> LocalFirstRepository:
        """Where a reference's bytes come from. ``whole``: all of them are wanted, so that checks are waited for, and
        tags of kit count.
        """
        return LocalFirstRepository(self, reference, repository, whole=whole)

    def tagged(self, reference: Reference) -> tuple[Descriptor, bytes] | None:
        """The manifest that a tag means to kit, None when it knows none that is right."""
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
        """A small blob whose digest was checked just now."""
        file = self._file(digest)
        if file is None or (file.size or 0) > MAX_SMALL:
            return None
        data = bytearray()
        try:
            for _, view in file.read_range(0, None):
                data += view
        except (KitfsError, OSError) as e:
            self._wrong(digest, str(e))
            return None
        if not digest.matches(data):
            self._wrong(digest, "it does not have its digest")
            return None
        return bytes(data)

    def check(self, descriptor: Descriptor) -> DigestCheck | None:
        """The check of a blob, which need not have begun; None when kit has none of this size."""
        with self._lock:
            found = self._checks.get(descriptor.digest)
            if found is None:
                file = self._file(descriptor.digest)
                if file is None or file.size != descriptor.size:
                    return None
                digest = descriptor.digest
                found = DigestCheck(file, digest, self._notes, self._closing, lambda why: self._wrong(digest, why))
                self._checks[digest] = found
        return found

    def _file(self, digest: Digest) -> StoredFile | None:
        return StoredFile.open(self._storage, f"blobs/{digest.algorithm}/{digest.hex}")

    def _wrong(self, digest: Digest, why: str) -> None:
        self._log.warning("kit's copy of %s in %s is not used: %s", digest, self._storage, why)

    def fallback(self, reference: Reference, cause: KitfsError) -> tuple[Descriptor, bytes] | None:
        """``tagged``, where a registry gave ``cause`` for an answer; told, unless nobody was to be asked."""
        found = self.tagged(reference)
        if found is not None and reference.registry != LOCAL:
            self._log.warning("%s: using %s, which is what kit has here: %s", reference.display, found[0].digest, cause)
        return found


class LocalFirstRepository:
    """An Origin: a repository, and kit's storage before it for what is named by its digest."""

    def __init__(
        self, home: KitStorage, reference: Reference, repository: Callable[[Reference], RemoteOrigin], *, whole: bool
    ) -> None:
        self._home = home
        self._reference = reference
        self._repository = repository
        self._whole = whole

    def __repr__(self) -> str:
        return f"<Nearby {self._reference}>"

    def known(self) -> bool:
        """Whether kit has what the reference means, as far as it is not wrong."""
        digest = self._reference.digest
        return (self._home.tagged(self._reference) if digest is None else self._home.small(digest)) is not None

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]:
        """A manifest by tag, of the registry; by digest, of kit when it has it. Raises what the registry raises."""
        if ":" in identifier:
            digest = Digest.parse(identifier)
            data = self._home.small(digest)
            return (
                self._repository(self._reference).manifest(identifier)
                if data is None
                else (Descriptor("", digest, len(data)), data)
            )
        try:
            return self._repository(self._reference).manifest(identifier)
        except UNREACHABLE as e:
            found = self._home.fallback(self._reference.with_tag(identifier), e) if self._whole else None
            if found is None:
                raise
            return found

    def blob(self, descriptor: Descriptor) -> Source:
        """A blob as a Source; nothing is asked until it is read."""
        check = self._home.check(descriptor)
        if check is None:
            return self._repository(self._reference).blob(descriptor)
        patient = self._whole or descriptor.size <= AT_ONCE
        return LocalFirstBlob(check, lambda: self._repository(self._reference).blob(descriptor), patient=patient)

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes:
        """A small blob, whole. Raises what the registry raises."""
        data = self._home.small(descriptor.digest) if descriptor.size <= limit else None
        if data is None or len(data) != descriptor.size:
            return self._repository(self._reference).blob_bytes(descriptor, limit)
        return data


class LocalFirstBlob:
    """A blob that kit has, as a Source; ``remote`` makes the registry's, for as long as the file is not known to be
    right.
    """

    def __init__(self, check: DigestCheck, remote: Callable[[], Source], *, patient: bool) -> None:
        self._check = check
        self._make = remote
        self._patient = patient
        self._remote: Source | None = None

    @property
    def size(self) -> int | None:
        """Bytes."""
        return self._check.file.size

    @property
    def ranged(self) -> bool:
        """False once the registry was seen to have no ranges, since what is asked for then begins at 0."""
        return self._remote is None or self._remote.ranged

    def read_range(self, start: int, stop: int | None, /) -> Generator[tuple[int, memoryview], None, None]:
        """See ``content.Source``. Raises what the registry raises, where neither has it."""
        at, stop = (start, stop) if self.ranged else (0, None)
        check = self._check
        check.begin()
        if self._patient:
            check.done.wait()
        if not (check.done.is_set() and check.right):
            try:
                if self._remote is None:
                    self._remote = self._make()
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
                self._remote = self._make()
            yield from self._remote.read_range(at, stop)
