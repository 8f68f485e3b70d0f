"""Unpacking: the files of a kit, written to a directory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Unpack

from kitfs.modelkit.filters import Filter
from kitfs.sdk.names import display, kit_reference
from kitfs.sdk.options import Filters, ReadOptions, StrPath, filters_of, settings_of
from kitfs.sdk.progress import Progress, reporting
from kitfs.sdk.session import workspace_of

if TYPE_CHECKING:
    from kitfs.config import Settings
    from kitfs.kit.kit import Kit
    from kitfs.kit.workspace import Workspace


def unpack(
    reference: str,
    directory: StrPath = ".",
    *,
    only: Filters = (),
    labels: Mapping[str, str] | None = None,
    overwrite: bool = False,
    ignore_existing: bool = False,
    include_remote: bool = False,
    progress: Progress = False,
    **options: Unpack[ReadOptions],
) -> str:
    """Write the files of a kit to a directory, verified; return the digest of its manifest.

    ``reference``, ``only`` and ``labels``: see ``open``; of a kit that is not in the store only what ``only`` selects
    is fetched. A file that exists is an error, unless ``overwrite`` replaces it or ``ignore_existing`` keeps it.
    ``include_remote``: also write datasets that the Kitfile takes from other kits or from S3. ``progress``: see
    ``kitfs.sdk.progress``. An unpack that was killed resumes when the same call is made again. Raises UnsafePath for
    entries that would leave the directory, ContextError for files that are in the way or cannot be written,
    IntegrityError, LayerError, and what ``open`` raises.
    """
    settings = settings_of(options, ReadOptions)
    named, chosen = kit_reference(reference), filters_of(only)
    filters = [Filter.parse(text) for text in chosen]
    with (
        workspace_of(settings) as workspace,
        closing(workspace.resolver.open(named, filters=filters, labels=labels, remote=settings["remote"])) as kit,
    ):
        return write_files(
            workspace,
            kit,
            settings,
            directory,
            only=chosen,
            overwrite=overwrite,
            ignore_existing=ignore_existing,
            include_remote=include_remote,
            progress=progress,
        )


def write_files(
    workspace: Workspace,
    kit: Kit,
    settings: Settings,
    directory: StrPath,
    *,
    only: Sequence[str],
    overwrite: bool,
    ignore_existing: bool,
    include_remote: bool,
    progress: Progress,
) -> str:
    """Unpack a kit that was opened with the filters ``only``; the parameters and errors are those of ``unpack``."""
    from kitfs.ops.unpack.unpack import unpack_kit

    with reporting(progress, f"unpack {display(kit.reference)}") as report:
        done = unpack_kit(
            workspace,
            kit,
            os.fspath(directory),
            filters=[Filter.parse(text) for text in only],
            overwrite=overwrite,
            ignore_existing=ignore_existing,
            include_remote=include_remote,
            remote=settings["remote"],
            report=report,
        )
    return str(done.digest)
