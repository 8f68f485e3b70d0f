"""The cache (``kitfs.cache``): blobs in the store that mounts and open kits fetched, besides packed and pulled kits.

``verify`` reads the blobs of packed and pulled kits too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from kitfs.sdk.options import Options, settings_of
from kitfs.sdk.progress import Progress, reporting
from kitfs.sdk.session import store_of


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """Bytes on disk: ``blobs`` as registries have them, ``decoded`` the decoded forms of compressed blobs."""

    blobs: int
    decoded: int


@dataclass(frozen=True, slots=True)
class CacheCleared:
    """Bytes on disk: ``freed``, and ``in_use`` by mounts or open kits, which stay."""

    freed: int
    in_use: int


@dataclass(frozen=True, slots=True)
class ChangedBlob:
    """A blob whose bytes had changed on the disk, and which was removed.

    ``form``: "blobs", or "decoded" for the decoded form of the blob. ``reason``: what is wrong with it. ``is_pinned``:
    a kit that was packed, pulled or pushed to this store needs it, so that kit must be pulled, packed or pushed again;
    other blobs are fetched again when they are read.
    """

    digest: str
    form: str
    reason: str
    is_pinned: bool


@dataclass(frozen=True, slots=True)
class CacheVerified:
    """How many ``blobs`` were read back, their ``size`` in bytes, and those that had ``changed``."""

    blobs: int
    size: int
    changed: tuple[ChangedBlob, ...]


def info(**options: Unpack[Options]) -> CacheUsage:
    """Measure the cache. Raises StoreError."""
    from kitfs.ops.library.cache import usage

    with store_of(settings_of(options, Options)) as store:
        return CacheUsage(**usage(store))


def clear(**options: Unpack[Options]) -> CacheCleared:
    """Evict every blob of the cache that is not in use. Raises StoreError."""
    from kitfs.ops.library.cache import clear as run

    with store_of(settings_of(options, Options)) as store:
        return CacheCleared(*run(store))


def verify(*, progress: Progress = False, **options: Unpack[Options]) -> CacheVerified:
    """Read every verified blob of the store back from the disk, and remove those whose bytes have changed.

    A mount that uses a removed blob goes on with the bytes that it has open, and must be mounted again. ``progress``:
    see ``kitfs.sdk.progress``; each changed blob is a Warned. Raises StoreError when a blob cannot be read or removed.
    """
    from kitfs.ops.library.cache import verify as run

    with store_of(settings_of(options, Options)) as store, reporting(progress, "verify") as report:
        done = run(store, report=report)
    return CacheVerified(done.blobs, done.size, tuple(ChangedBlob(*blob) for blob in done.changed))
