"""Which repositories a served store has, and what belongs to them: links, one small file each, by rename and fsynced.

    served/<repository, "/" as "+">/blobs/<algorithm>-<hex>                     {}
                                    manifests/<algorithm>-<hex>                 {"mediaType", "size"}
                                    tags/<tag>                                  {"digest"}
                                    referrers/<algorithm>-<hex of the subject>/<algorithm>-<hex>    a descriptor

A link says that a repository has a blob, and pins it; the bytes are the store's. Names must have been checked (``oci.names``): then
no name leads anywhere else. Threading and processes: links appear whole or not at all; whoever changes what manifests mean takes
``locked`` first, since that is several links.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from typing import Any, Final

from kitfs.errors import StoreError
from kitfs.oci.names import Digest
from kitfs.openfile import OpenFile
from kitfs.store.lease import release
from kitfs.store.refs import fsync_directory, unwritten, write_durably

BLOBS: Final = "blobs"
MANIFESTS: Final = "manifests"
TAGS: Final = "tags"
REFERRERS: Final = "referrers"


class Repositories:
    """The links in ``directory``, which need not exist."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def _path(self, repository: str, *parts: str) -> str:
        return os.path.join(self._directory, repository.replace("/", "+"), *parts)

    def names(self) -> list[str]:
        """Every repository, sorted."""
        return sorted(name.replace("+", "/") for name in _listed(self._directory))

    def exists(self, repository: str) -> bool:
        """Whether anything was ever pushed there."""
        return os.path.isdir(self._path(repository))

    def link(self, repository: str, kind: str, name: str, value: dict[str, Any], *, below: str = "") -> None:
        """Make or replace a link; durable when this returns. ``below``: the subject of a referrer. Raises StoreError."""
        path = self._path(repository, kind, *filter(None, (below,)), name)
        try:
            if not os.path.isdir(os.path.dirname(path)):
                _make_durably(self._directory, os.path.dirname(path))
            write_durably(path, json.dumps(value).encode())
        except OSError as e:
            raise unwritten(path, e)

    def get(self, repository: str, kind: str, name: str) -> dict[str, Any] | None:
        """A link's value, None when there is none. Raises StoreError for one that is damaged."""
        path = self._path(repository, kind, name)
        try:
            with open(path, "rb") as f:
                loaded = json.load(f)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as e:
            raise StoreError(f"the link {path} cannot be read: {e}")
        return loaded if isinstance(loaded, dict) else {}

    def unlink(self, repository: str, kind: str, name: str, *, below: str = "") -> bool:
        """Forget a link; whether there was one."""
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
        """The names of a kind of link, sorted bytewise."""
        return sorted(_listed(self._path(repository, kind)))

    def referrers(self, repository: str, subject: Digest) -> Iterator[dict[str, Any]]:
        """Descriptors of what refers to a manifest, in the order of their digests."""
        kind = os.path.join(REFERRERS, link_name(subject))
        for name in self.listed(repository, kind):
            found = self.get(repository, kind, name)
            if found:
                yield found

    def linked(self) -> Iterator[str]:
        """The digest of every blob and manifest that some repository has."""
        for repository in _listed(self._directory):
            for kind in (BLOBS, MANIFESTS):
                for name in _listed(os.path.join(self._directory, repository, kind)):
                    yield name.replace("-", ":", 1)

    @contextlib.contextmanager
    def locked(self, repository: str) -> Iterator[None]:
        """Alone among those who change a repository's manifests, tags and referrers."""
        path = self._path(repository)
        try:
            _make_durably(self._directory, path)
            held = OpenFile(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as e:
            raise unwritten(path, e)
        try:
            held.flock(fcntl.LOCK_EX)
            yield
        finally:
            release(held)


def link_name(digest: Digest) -> str:
    """A digest as a file name."""
    return digest.replace(":", "-", 1)


def _listed(directory: str) -> list[str]:
    try:
        return [name for name in os.listdir(directory) if not name.endswith("~")]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _make_durably(root: str, directory: str) -> None:
    """Make a directory and those above it, from ``root`` down, so that they survive a crash."""
    missing = []
    while not os.path.isdir(directory):
        missing.append(directory)
        if directory == root:
            break
        directory = os.path.dirname(directory)
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        fsync_directory(os.path.dirname(path))
