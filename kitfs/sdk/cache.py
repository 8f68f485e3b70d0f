"""Measure, clear, verify and collect the cache, and pin kits in it (``kitfs.cache``).

The cache consists of the blobs that mounts and open kits fetched into the store. Packed and pulled kits are in the same
store, but they are not part of the cache. ``verify`` reads their blobs too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

from kitfs.oci.names import Reference
from kitfs.sdk.options import Options, settings_of
from kitfs.sdk.progress import Progress, reporting
from kitfs.sdk.session import store_of, workspace_of


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
    ``is_pinned``: whether a kit in the store needs the blob. ``is_healed``: whether the blob was fetched again. If a
    pinned blob was not fetched again, one of the ``kits`` that need it must be packed, pulled or pushed again; other
    blobs are fetched again when they are read. ``mounts``: the directories of sealed mounts that still show the changed
    bytes.
    """

    digest: str
    form: str
    reason: str
    is_pinned: bool
    is_healed: bool
    kits: tuple[str, ...]
    mounts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CacheCollected:
    """The result of ``gc``: how many ``blobs`` and temporary ``files`` were removed, and the ``freed`` disk space."""

    blobs: int
    files: int
    freed: int


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


def pins(**options: Unpack[Options]) -> list[str]:
    """Return the references of the pinned kits. Raises StoreError."""
    from kitfs.ops.library.cache import pins as run

    with store_of(settings_of(options, Options)) as store:
        return run(store)


def pin(reference: str, **options: Unpack[Options]) -> str:
    """Keep the blobs that were or will be fetched for a kit from being evicted. Return the digest of the kit.

    Only the manifest and the config are fetched. Raises NotFound, RegistryError, ManifestError and StoreError.
    """
    from kitfs.ops.library.cache import pin as run

    with workspace_of(settings_of(options, Options)) as workspace:
        return str(run(workspace, Reference.parse(reference).or_latest()))


def unpin(reference: str, **options: Unpack[Options]) -> None:
    """Remove the pin of a kit. Raises NotFound if the kit is not pinned under this reference, and StoreError."""
    from kitfs.ops.library.cache import unpin as run

    with store_of(settings_of(options, Options)) as store:
        run(store, Reference.parse(reference).or_latest())


def gc(**options: Unpack[Options]) -> CacheCollected:
    """Remove the blobs that no known kit needs, and temporary files that crashes have left behind.

    The known kits are the packed, pulled and pinned kits, and the kits that tags named when they were last resolved.
    Blobs that a process or a mount uses stay. Raises StoreError.
    """
    from kitfs.ops.library.cache import collect

    with store_of(settings_of(options, Options)) as store:
        return CacheCollected(*collect(store))


def verify(*, progress: Progress = False, **options: Unpack[Options]) -> CacheVerified:
    """Read every verified blob of the store back from the disk, and fetch the blobs again whose bytes have changed.

    A blob is fetched again if the registry of a kit that needs it is known; otherwise it is only removed. A sealed
    mount continues to serve the changed bytes until it is mounted again. ``progress``: see ``kitfs.sdk.progress``; each
    changed blob is reported as a Warned event. Raises StoreError if a blob cannot be read or removed.
    """
    from kitfs.daemon.mounted import mounted_kits
    from kitfs.ops.library.cache import verify as run

    settings = settings_of(options, Options)
    with workspace_of(settings) as workspace, reporting(progress, "verify") as report:
        mounted = mounted_kits(settings["run-dir"], settings["cache-dir"])
        done = run(workspace, mounted=mounted, report=report)
    return CacheVerified(done.blobs, done.size, tuple(ChangedBlob(*blob) for blob in done.changed))
