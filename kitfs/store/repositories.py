"""Store the repositories of the embedded registry as links: small files that are written by rename and fsynced.

    served/<repository, "/" as "+">/blobs/<algorithm>-<hex>       {}; its time is the last use of the blob there
                                    manifests/<algorithm>-<hex>   {"mediaType", "size"}
                                    tags/<tag>                    {"digest"}
                                    referrers/<algorithm>-<hex of the subject>/<algorithm>-<hex>    a descriptor

A link means that a repository has a blob. It pins the blob, whose bytes are in the store. The link of a blob is made
once and never replaced, so a flock on the link serializes ``use_blob`` and ``unlink_unused``: a blob is not removed
just after a client was informed that the blob exists. The caller must have checked all names (``oci.names``), because a
name could otherwise lead out of the directory.

Threading: readers never see a partial link. A caller must hold ``locked`` while it changes manifests or removes blobs
from a repository, because it changes several links.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from typing import Any, Final

from kitfs.errors import StoreError
from kitfs.gocompat.json import own_json
from kitfs.oci.names import Digest
from kitfs.openfile import OpenFile
from kitfs.ownership import check_below, make_directory, open_file
from kitfs.store.durable import fsync_directory, write_durably, write_error
from kitfs.store.lease import exclusive, release, same

BLOBS: Final = "blobs"
MANIFESTS: Final = "manifests"
TAGS: Final = "tags"
REFERRERS: Final = "referrers"
LINK: Final = b"{}"  # the content of a blob's link


class Repositories:
    """The links in ``directory``, which may be missing."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def _path(self, repository: str, *parts: str) -> str:
        return os.path.join(self._directory, repository.replace("/", "+"), *parts)

    def names(self) -> list[str]:
        """Return the names of all repositories, sorted."""
        return sorted(name.replace("+", "/") for name in _listed(self._directory))

    def exists(self, repository: str) -> bool:
        """Return whether anything was ever pushed to a repository."""
        return os.path.isdir(self._path(repository))

    def link(self, repository: str, kind: str, name: str, value: dict[str, Any], *, below: str = "") -> None:
        """Make or replace a link, durably. For a referrer, ``below`` is its subject. Raises StoreError."""
        path = self._path(repository, kind, *filter(None, (below,)), name)
        try:
            check_below(self._directory, os.path.dirname(path))
            if not os.path.isdir(os.path.dirname(path)):
                _make_durably(self._directory, os.path.dirname(path))
            write_durably(path, json.dumps(value).encode())
        except OSError as e:
            raise write_error(path, e) from e

    def add_blob(self, repository: str, digest: Digest) -> None:
        """Link a blob durably. If it is linked already, record the current time as its last use. Raises StoreError."""
        path = self._path(repository, BLOBS, link_name(digest))
        try:
            while not self.use_blob(repository, digest, repair=True):
                if not os.path.isdir(os.path.dirname(path)):
                    _make_durably(self._directory, os.path.dirname(path))
                with contextlib.suppress(FileExistsError):
                    _write_new(path, LINK)
            fsync_directory(os.path.dirname(path))
        except OSError as e:
            raise write_error(path, e) from e

    def use_blob(self, repository: str, digest: Digest, *, within: float = 0.0, repair: bool = False) -> bool:
        """Return whether a repository has a blob; if it does, record the current time as the blob's last use.

        The recorded time is not changed if it is less than ``within`` seconds ago or in the future. A damaged link is
        repaired if ``repair`` is True; otherwise, StoreError is raised.
        """
        path = self._path(repository, BLOBS, link_name(digest))
        while True:
            try:
                link = OpenFile(path, os.O_RDWR if repair else os.O_RDONLY)
            except FileNotFoundError:
                return False
            except OSError as e:
                raise StoreError(f"cannot read the link {path}: {e.strerror}") from e
            try:
                link.flock(fcntl.LOCK_SH)  # only ``unlink_unused`` takes an exclusive lock, for a moment
                if link.pread(64, 0) not in (LINK, b""):  # a link is empty while it is being made, or after a crash
                    if not repair:
                        raise StoreError(f"the link {path} is damaged; push the blob again to repair it")
                    link.pwrite(LINK, 0)
                    with link.number() as fd:
                        os.ftruncate(fd, len(LINK))
                        os.fsync(fd)
                now = time.time_ns()
                if link.stat().st_mtime_ns < now - int(within * 1e9):
                    # A read-only disk cannot record a use, but no blob is collected from it, either.
                    with contextlib.suppress(OSError), link.number() as fd:
                        os.utime(fd, ns=(now, now))
                if same(link, path):
                    return True
            finally:
                release(link)

    def last_use(self, repository: str, name: str) -> float | None:
        """Return when a blob was last used in a repository, in seconds since the epoch; None if it has no link."""
        try:
            return os.stat(self._path(repository, BLOBS, name)).st_mtime
        except FileNotFoundError:
            return None

    def unlink_unused(self, repository: str, name: str, *, before: float) -> bool:
        """Remove the link of a blob whose last use was at or before ``before``; return whether it was removed.

        ``before`` is in seconds since the epoch. The caller must hold ``locked``, so that no manifest is pushed
        meanwhile. A link that is used meanwhile stays. The removal is not fsynced: if a crash restores the link, it is
        collected later.
        """
        path = self._path(repository, BLOBS, name)
        try:
            link = OpenFile(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            if not exclusive(link) or link.stat().st_mtime > before or not same(link, path):
                return False
            os.unlink(path)
            return True
        finally:
            release(link)

    def get(self, repository: str, kind: str, name: str) -> dict[str, Any] | None:
        """Return the value of a link; None if the link does not exist. Raises StoreError for a damaged link."""
        path = self._path(repository, kind, name)
        try:
            check_below(self._directory, os.path.dirname(path))
            with open(open_file(path), "rb") as f:
                loaded = own_json(f.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as e:
            raise StoreError(f"cannot read the link {path}: {getattr(e, 'strerror', None) or e}") from e
        return loaded if isinstance(loaded, dict) else {}

    def unlink(self, repository: str, kind: str, name: str, *, below: str = "") -> bool:
        """Remove a link, and return whether it existed."""
        path = self._path(repository, kind, *filter(None, (below,)), name)
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
        except OSError as e:
            raise StoreError(f"cannot remove {path}: {e.strerror}")
        fsync_directory(os.path.dirname(path))
        return True

    def listed(self, repository: str, kind: str) -> list[str]:
        """Return the names of all links of a kind, sorted by their bytes."""
        return sorted(_listed(self._path(repository, kind)))

    def referrers(self, repository: str, subject: Digest) -> Iterator[dict[str, Any]]:
        """Yield the descriptors of the manifests that refer to a manifest, in the order of their digests."""
        kind = os.path.join(REFERRERS, link_name(subject))
        for name in self.listed(repository, kind):
            found = self.get(repository, kind, name)
            if found:
                yield found

    def linked(self) -> Iterator[str]:
        """Yield the digest of every blob and manifest that any repository has."""
        for repository in _listed(self._directory):
            for kind in (BLOBS, MANIFESTS):
                for name in _listed(os.path.join(self._directory, repository, kind)):
                    yield name.replace("-", ":", 1)

    @contextlib.contextmanager
    def locked(self, repository: str) -> Iterator[None]:
        """Prevent other changes to a repository's manifests, tags and referrers during a ``with`` block."""
        path = self._path(repository)
        try:
            _make_durably(self._directory, path)
            held = OpenFile(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as e:
            raise write_error(path, e) from e
        try:
            held.flock(fcntl.LOCK_EX)
            yield
        finally:
            release(held)


def link_name(digest: Digest) -> str:
    """Return a digest as a file name."""
    return digest.replace(":", "-", 1)


def _listed(directory: str) -> list[str]:
    try:
        return [name for name in os.listdir(directory) if not name.endswith("~")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _write_new(path: str, data: bytes) -> None:
    """Write and fsync a new file. The caller must fsync the directory. Raises FileExistsError and OSError."""
    fd = open_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with open(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def _make_durably(root: str, directory: str) -> None:
    """Make a directory and its parents below ``root`` durably."""
    missing = []
    while not os.path.isdir(directory):
        missing.append(directory)
        if directory == root:
            break
        directory = os.path.dirname(directory)
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            make_directory(path)
        fsync_directory(os.path.dirname(path))
