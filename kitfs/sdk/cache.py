"""Measure, clear and verify the cache (``kitfs.cache``): the blobs that mounts and open kits fetched into the store.

Packed and pulled kits are in the same store, but they are not part of the cache. ``verify`` reads their blobs too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from kitfs.sdk.options import Options, settings_of
from kitfs.sdk.progress import Progress, reporting
from kitfs.sdk.session import store_of


@dataclass(frozen=True, slots=True)
class CacheUsage:
    """The disk space of the cache, in bytes.

    ``blobs``: the blobs as registries store them. ``decoded``: the decompressed forms of compressed blobs.
    """

    blobs: int
    decoded: int


@dataclass(frozen=True, slots=True)
class CacheCleared:
    """The result of ``clear``. ``freed``: the bytes on disk that were freed.

    ``in_use``: the bytes that stay because mounts or open kits use them.
    """

    freed: int
    in_use: int


@dataclass(frozen=True, slots=True)
class ChangedBlob:
    """A blob that was removed from the store because its bytes had changed on the disk.

    ``form``: "blobs", or "decoded" for the decompressed form of the blob. ``reason``: what is wrong with the bytes.
    ``is_pinned``: whether a kit that was packed, pulled or pushed to this store needs the blob. Such a kit must be
    packed, pulled or pushed again. Other blobs are fetched again when they are read.
    """

    digest: str
    form: str
    reason: str
    is_pinned: bool


@dataclass(frozen=True, slots=True)
class CacheVerified:
    """The result of ``verify``: how many ``blobs`` were read, their ``size`` in bytes, and the ``changed`` blobs."""

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
    """Read every verified blob of the store back from the disk, and remove the blobs whose bytes have changed.

    A mount that uses a removed blob continues to serve the changed bytes until it is mounted again. ``progress``: see
    ``kitfs.sdk.progress``; each changed blob is reported as a Warned event. Raises StoreError if a blob cannot be read
    or removed.
    """
    from kitfs.ops.library.cache import verify as run

    with store_of(settings_of(options, Options)) as store, reporting(progress, "verify") as report:
        done = run(store, report=report)
    return CacheVerified(done.blobs, done.size, tuple(ChangedBlob(*blob) for blob in done.changed))
