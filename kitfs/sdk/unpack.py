"""Write the files of a kit to a directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Unpack

from kitfs.modelkit.filters import Filter
from kitfs.sdk.names import display, kit_reference
from kitfs.sdk.options import CopyOptions, Filters, StrPath, filters_of, settings_of
from kitfs.sdk.progress import Progress, reporting
from kitfs.sdk.session import workspace_of


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
    **options: Unpack[CopyOptions],
) -> str:
    """Write the files of a kit to a directory, verified; return the digest of its manifest.

    ``reference``, ``only`` and ``labels``: see ``open``; of a kit that is not in the store only what ``only`` selects
    is fetched. A file that exists is an error, unless ``overwrite`` replaces it or ``ignore_existing`` keeps it.
    ``include_remote``: also write datasets that the Kitfile takes from other kits or from S3. ``progress``: see
    ``kitfs.sdk.progress``. An unpack that was killed resumes when the same call is made again. Raises UnsafePath for
    entries that would leave the directory, ContextError for files that are in the way or cannot be written,
    IntegrityError, LayerError, and what ``open`` raises.
    """
    from kitfs.ops.unpack.unpack import unpack as run

    settings = settings_of(options, CopyOptions)
    named, filters = kit_reference(reference), [Filter.parse(text) for text in filters_of(only)]
    with workspace_of(settings) as workspace, reporting(progress, f"unpack {display(named)}") as report:
        done = run(
            workspace,
            named,
            os.fspath(directory),
            filters=filters,
            labels=labels,
            overwrite=overwrite,
            ignore_existing=ignore_existing,
            include_remote=include_remote,
            remote=settings["remote"],
            concurrency=settings["concurrency"],
            report=report,
        )
    return str(done.digest)
