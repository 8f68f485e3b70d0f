"""Transfer kits to and from registries, export them to OCI layouts, and convert them to ordinary images."""

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

    ``digest``: the digest of the image's manifest, or of its index if it has several platforms. ``uploaded``: the bytes
    of layers that were sent. ``mounted``: the bytes that the registry mounted from another of its repositories.
    ``existed``: the bytes that the repository already had.
    """

    reference: str
    digest: str
    uploaded: int
    mounted: int
    existed: int


@dataclass(frozen=True, slots=True)
class ChunkTables:
    """The result of ``chunk_table``, for the kit with the manifest ``digest``.

    ``made``: the digests of the layers whose tables were made now. ``kept``: the layers whose tables this host had made
    before. ``named``: the layers whose tables the manifest names. ``pushed``: the digest of the manifest that lists the
    tables at the registry, or None if it was not pushed.
    """

    digest: str
    made: tuple[str, ...]
    kept: tuple[str, ...]
    named: tuple[str, ...]
    pushed: str | None


def push(
    reference: str,
    destination: str | None = None,
    *,
    with_referrers: bool = False,
    progress: Progress = False,
    **options: Unpack[TransferOptions],
) -> str:
    """Push a kit of the store to its registry or to ``destination``, and return the digest of its manifest.

    ``destination``: registry/repository:tag, or registry/repository:tag1,tag2 for several tags. Blobs that the registry
    has are not sent, and an interrupted push resumes when the same call is made again. ``with_referrers``: also push
    the signatures and other manifests that refer to the kit, if the store has them. ``progress``: see
    ``kitfs.sdk.progress``. Raises RegistryError or StoreError, NotFound if the kit is not in the store, and UsageError
    if the reference has no registry.
    """
    from kitfs.ops.transfer.push import push as push_alone
    from kitfs.ops.transfer.referrers import push_kit

    run = push_kit if with_referrers else push_alone
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
    with_referrers: bool = False,
    progress: Progress = False,
    **options: Unpack[PullOptions],
) -> str:
    """Pull a kit and its parent kits into the store, and return the digest of its manifest.

    The kit is verified, and stays in the store until it is removed. ``labels``: labels that select one kit of an index;
    in the store that kit gets the tag of the index. Bytes that a mount has fetched are not fetched again, and an
    interrupted pull resumes when the same call is made again. ``with_referrers``: also pull the signatures and other
    manifests that refer to the kit. ``progress``: see ``kitfs.sdk.progress``. Raises SignatureError, NotFound,
    RegistryError, IntegrityError, ManifestError, KitfileError, StoreFull, StoreError, UsageError.
    """
    from kitfs.ops.transfer.pull import pull as run

    settings = settings_of(options, PullOptions)
    source = Reference.parse(reference).or_latest()
    with workspace_of(settings) as workspace, reporting(progress, f"pull {source.display}") as report:
        digest = run(
            workspace,
            source,
            labels=labels,
            concurrency=settings["concurrency"],
            with_referrers=with_referrers,
            report=report,
        )
    return str(digest)


def warm(
    reference: str,
    *,
    only: Filters = (),
    labels: Mapping[str, str] | None = None,
    progress: Progress = False,
    **options: Unpack[CopyOptions],
) -> str:
    """Fetch and verify layers of a kit before it is mounted, and return the digest of its manifest.

    A mount of these layers fetches nothing more, and can be sealed at once. The kit is not tagged in the store, and its
    layers may be evicted when the store needs space. ``reference``, ``only`` and ``labels``: see ``open``.
    ``progress``: see ``kitfs.sdk.progress``. Raises the errors of ``open``, and StoreFull if the layers do not all fit
    into the store.
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


def chunk_table(
    reference: str,
    *,
    labels: Mapping[str, str] | None = None,
    push: bool = False,
    progress: Progress = False,
    **options: Unpack[CopyOptions],
) -> ChunkTables:
    """Make the missing chunk tables of a kit, so that parts of its layers can be verified.

    Each layer that has no table is fetched and verified as a whole first. The store keeps the tables, also when the
    layers are evicted, and uses them for every later reader and mount. ``push``: also write the tables to the registry
    of ``reference``, in a manifest that refers to the kit. ``labels``: select one kit of an index. ``progress``: see
    ``kitfs.sdk.progress``. Raises the errors of ``warm``, LayerError for a layer that is not a readable archive, and
    with ``push`` the errors of ``kitfs.push``.
    """
    from kitfs.ops.transfer.host_tables import make_tables

    settings = settings_of(options, CopyOptions)
    target = remote_reference(reference, "push the chunk tables of") if push else None
    with (
        workspace_of(settings) as workspace,
        _opened(workspace, reference, (), labels, remote=settings["remote"]) as kit,
        reporting(progress, f"chunk-table {reference}") as report,
    ):
        done = make_tables(workspace, kit, push_to=target, concurrency=settings["concurrency"], report=report)
    made, kept, named = (tuple(map(str, digests)) for digests in (done.made, done.kept, done.named))
    return ChunkTables(str(done.digest), made, kept, named, None if done.pushed is None else str(done.pushed))


def export(
    reference: str,
    target: StrPath,
    *,
    remote: bool = False,
    with_referrers: bool = False,
    progress: Progress = False,
    **options: Unpack[Options],
) -> str:
    """Write a kit to an OCI layout, and return the digest of its manifest.

    ``reference``: a kit, which is looked up in the store and then at its registry, or a layout. ``target``:
    oci:DIR[:tag], oci-archive:FILE[:tag], or the path of a directory. An existing layout keeps its other manifests.
    ``remote``: ask the registry even for a kit that is in the store. ``with_referrers``: also write the signatures and
    other manifests that refer to the kit. Raises NotFound, RegistryError or IntegrityError, UsageError for any other
    target or an archive that exists, and ContextError if the target cannot be written.
    """
    from kitfs.ops.transfer.export import export as run

    settings = settings_of(options, Options)
    to = parse_any(target if isinstance(target, str) else f"oci:{target.__fspath__()}")
    if not isinstance(to, LayoutReference):
        raise UsageError(f"{target!r} is not an OCI layout (write oci:DIR[:tag] or oci-archive:FILE[:tag])")
    with workspace_of(settings) as workspace, reporting(progress, f"export {reference}") as report:
        return str(
            run(workspace, kit_reference(reference), to, remote=remote, with_referrers=with_referrers, report=report)
        )


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
    """Push a kit as an ordinary OCI image that uses the same layers.

    ``image``: registry/repository:tag, or registry/repository:tag1,tag2 for several tags. ``platforms``: strings
    OS/ARCHITECTURE[/VARIANT]; for several platforms, an index of images that share all layers is pushed. ``reference``,
    ``only`` and ``labels``: see ``open``. Raises UsageError, the errors of ``open`` and ``push``, and UnsupportedLayer
    for a layer that is not a tar archive.
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
    """Open the selected layers of a kit, for a ``with`` block."""
    filters = [Filter.parse(text) for text in filters_of(only)]
    return closing(workspace.resolver.open(kit_reference(reference), filters=filters, labels=labels, remote=remote))
