"""The cache (``kitfs.cache``): blobs in the store that mounts and open kits fetched, besides packed and pulled kits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from kitfs.sdk.options import Options, settings_of
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
