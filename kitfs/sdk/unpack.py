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
    """Verify the files of a kit, write them to a directory, and return the digest of its manifest.

    ``reference``, ``only`` and ``labels``: see ``open``. Only the layers that ``only`` selects are fetched. An existing
    file is an error, unless ``overwrite`` replaces it or ``ignore_existing`` keeps it. ``include_remote``: also write
    datasets that are in other kits or in S3. ``progress``: see ``kitfs.sdk.progress``. An unpack that was killed
    resumes when the same call is made again. Raises IntegrityError, LayerError, the errors of ``open``, UnsafePath for
    entries that would leave the directory, and ContextError for existing files and files that cannot be written.
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
