"""List the versions of a repository, and what changed between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

from kitfs.errors import UsageError
from kitfs.sdk.diff import FileDifference, TensorDifference, file_difference, tensor_difference
from kitfs.sdk.options import TransferOptions, settings_of
from kitfs.sdk.session import workspace_of

if TYPE_CHECKING:
    from kitfs.ops.diff.history import VersionChange


@dataclass(frozen=True, slots=True)
class KitChange:
    """What has changed since the version before.

    ``files`` and ``tensors``: as in ``KitDifference``, for the layers that could be compared. ``data``: the datasets
    that differ, as (name, digest or place before, digest or place after). ``parameters``: the values of the Kitfile's
    package and model that differ, as (path, value before, value after); a value that does not exist is None.
    ``unread``: the paths of layers that differ and were not compared, each with the reason.
    """

    files: FileDifference
    tensors: TensorDifference
    data: tuple[tuple[str, str | None, str | None], ...]
    parameters: tuple[tuple[str, Any, Any], ...]
    unread: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class KitVersion:
    """A kit of a repository.

    ``created``: seconds since the epoch, or 0 if the kit does not state a time. ``size``: the bytes of its layers.
    ``change`` is None for the first version.
    """

    digest: str
    tags: tuple[str, ...]
    created: int
    size: int
    change: KitChange | None


def history(repository: str, *, last: int | None = None, **options: Unpack[TransferOptions]) -> list[KitVersion]:
    """Return the kits of a repository, the oldest first, with what changed from each kit to the next.

    If ``repository`` has no registry, the kits of the store are returned. ``last``: return only the newest versions.
    Layers are compared by their digests, their indexes and the headers of tensors, so kilobytes are fetched for each
    version. Raises NotFound, RegistryError, StoreError, and UsageError for a name with a tag or digest.
    """
    from kitfs.oci.names import Reference
    from kitfs.ops.diff.history import history as run

    reference = Reference.parse(repository)
    if reference.identifier:
        raise UsageError(f"{repository} names one kit; pass the name of the repository, without a tag or digest")
    if last is not None and last < 1:
        raise UsageError(f"last: {last} is not a positive number")
    settings = settings_of(options, TransferOptions)
    with workspace_of(settings) as workspace:
        found = run(workspace, reference, last=last, concurrency=settings["concurrency"])
    return [
        KitVersion(
            str(one.digest), one.tags, one.created, one.size, None if one.change is None else _change(one.change)
        )
        for one in found
    ]


def _change(change: VersionChange) -> KitChange:
    return KitChange(
        file_difference(change.files),
        tensor_difference(change.tensors),
        tuple((one.name, one.before, one.after) for one in change.data),
        tuple((one.path, one.before, one.after) for one in change.parameters),
        change.unread,
    )
