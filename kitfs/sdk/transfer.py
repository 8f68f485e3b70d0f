"""Move kits to and from registries, to OCI layouts, and to ordinary images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Unpack

from kitfs.errors import UsageError
from kitfs.kit.kit import Kit
from kitfs.kit.workspace import Workspace
from kitfs.modelkit.filters import Filter
from kitfs.oci.names import LayoutReference, Reference, parse_any
from kitfs.parsers import platform
from kitfs.sdk.names import kit_reference, remote_reference
from kitfs.sdk.options import (
    CopyOptions,
    Filters,
    Options,
    PullOptions,
    StrPath,
    TransferOptions,
    filters_of,
    settings_of,
)
from kitfs.sdk.progress import Progress, reporting
from kitfs.sdk.session import workspace_of


@dataclass(frozen=True, slots=True)
class ConvertedImage:
    """The result of ``convert``.

    ``digest``: of the image's manifest, or of its index when it has several platforms. ``uploaded``, ``mounted`` and
    ``existed``: bytes of layers that were sent, that the registry took from another of its repositories, and that the
    repository had.
    """

    reference: str
    digest: str
    uploaded: int
    mounted: int
    existed: int


def push(
    reference: str,
    destination: str | None = None,
    *,
    progress: Progress = False,
    **options: Unpack[TransferOptions],
) -> str:
    """Push a kit of the store to its registry, or to ``destination``; return the digest of its manifest.

    ``destination``: registry/repository:tag, with more tags after commas. What the registry has is not sent, and an
    interrupted push resumes when it is called again. ``progress``: see ``kitfs.sdk.progress``. Raises NotFound when the
    kit is not in the store, RegistryError, StoreError, UsageError when no registry is named.
    """
    from kitfs.ops.transfer.push import push as run

    settings = settings_of(options, TransferOptions)
    source = Reference.parse(reference).or_latest()
    target = remote_reference(destination or reference, "push to")
    with workspace_of(settings) as workspace, reporting(progress, f"push {target.display}") as report:
        digest = run(workspace, source, target, concurrency=settings["concurrency"], report=report)
    return str(digest)


def pull(
    reference: str,
    *,
    labels: Mapping[str, str] | None = None,
    progress: Progress = False,
    **options: Unpack[PullOptions],
) -> str:
    """Pull a kit, and the kits that it takes its model from, into the store; return the digest of its manifest.

    The kit is verified, and stays until it is removed. ``labels`` choose one kit of an index, which gets the tag of the
    index in the store. What a mount has fetched is not fetched again, and an interrupted pull resumes when it is
    called again. ``progress``: see ``kitfs.sdk.progress``. Raises NotFound, RegistryError, IntegrityError,
    ManifestError, KitfileError, StoreFull, StoreError, UsageError.
    """
    from kitfs.ops.transfer.pull import pull as run

    settings = settings_of(options, PullOptions)
    source = Reference.parse(reference).or_latest()
    with workspace_of(settings) as workspace, reporting(progress, f"pull {source.display}") as report:
        digest = run(workspace, source, labels=labels, concurrency=settings["concurrency"], report=report)
    return str(digest)


def warm(
    reference: str,
    *,
    only: Filters = (),
    labels: Mapping[str, str] | None = None,
    progress: Progress = False,
    **options: Unpack[CopyOptions],
) -> str:
    """Fetch layers of a kit into the store, and verify them, before it is mounted; return the digest of its manifest.

    A mount of these layers fetches nothing more, and can be sealed at once. Nothing is tagged, and the layers may be
    evicted when the store needs room. ``reference``, ``only`` and ``labels``: see ``open``. ``progress``: see
    ``kitfs.sdk.progress``. Raises StoreFull when the store cannot keep all layers, and what ``open`` raises.
    """
    from kitfs.ops.transfer.warm import warm as run

    settings = settings_of(options, CopyOptions)
    with (
        workspace_of(settings) as workspace,
        _opened(workspace, reference, only, labels, remote=settings["remote"]) as kit,
        reporting(progress, f"warm {reference}") as report,
    ):
        run(workspace.store, kit, concurrency=settings["concurrency"], report=report)
        return str(kit.digest)


def export(
    reference: str,
    target: StrPath,
    *,
    remote: bool = False,
    progress: Progress = False,
    **options: Unpack[Options],
) -> str:
    """Write a kit to an OCI layout; return the digest of its manifest.

    ``reference``: a kit of the store, else of its registry, or a layout. ``target``: oci:DIR[:tag] or
    oci-archive:FILE[:tag]; a path is a directory. A directory that is a layout keeps its other manifests. ``remote``:
    ask the registry also for a kit that is in the store. Raises UsageError for a target that is something else or an
    archive that exists, ContextError when the target cannot be written, NotFound, RegistryError, IntegrityError.
    """
    from kitfs.ops.transfer.export import export as run

    settings = settings_of(options, Options)
    to = parse_any(target if isinstance(target, str) else f"oci:{target.__fspath__()}")
    if not isinstance(to, LayoutReference):
        raise UsageError(f"{target!r} is not an OCI layout (write oci:DIR[:tag] or oci-archive:FILE[:tag])")
    with workspace_of(settings) as workspace, reporting(progress, f"export {reference}") as report:
        return str(run(workspace, kit_reference(reference), to, remote=remote, report=report))


def convert(
    reference: str,
    image: str,
    *,
    only: Filters = (),
    labels: Mapping[str, str] | None = None,
    platforms: Sequence[str] = ("linux/amd64",),
    progress: Progress = False,
    **options: Unpack[CopyOptions],
) -> ConvertedImage:
    """Make an ordinary OCI image of a kit, over the same layers.

    ``image``: registry/repository:tag, with more tags after commas. ``platforms``: OS/ARCHITECTURE[/VARIANT]; several
    make an index whose images share all layers. ``reference``, ``only`` and ``labels``: see ``open``. Raises
    UnsupportedLayer for a layer that is not a tar, UsageError, and what ``open`` and ``push`` raise.
    """
    from kitfs.ops.transfer.image import convert as run

    settings = settings_of(options, CopyOptions)
    target = remote_reference(image, "convert to")
    with (
        workspace_of(settings) as workspace,
        _opened(workspace, reference, only, labels, remote=settings["remote"]) as kit,
        reporting(progress, f"convert {target.display}") as report,
    ):
        done = run(
            workspace,
            kit,
            target,
            platforms=[_platform(text) for text in platforms],
            concurrency=settings["concurrency"],
            report=report,
        )
    return ConvertedImage(target.display, str(done.digest), done.uploaded, done.mounted, done.existed)


def _platform(text: str) -> tuple[str, str, str]:
    """Parse OS/ARCHITECTURE[/VARIANT]. Raises UsageError."""
    try:
        return platform(text)
    except ValueError as e:
        raise UsageError(f"platforms: {e}")


def _opened(
    workspace: Workspace, reference: str, only: Filters, labels: Mapping[str, str] | None, *, remote: bool
) -> closing[Kit]:
    """Open the chosen layers of a kit, for a ``with`` block."""
    filters = [Filter.parse(text) for text in filters_of(only)]
    return closing(workspace.resolver.open(kit_reference(reference), filters=filters, labels=labels, remote=remote))
