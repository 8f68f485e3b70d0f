"""Pack a directory into a ModelKit. Its layers, config and manifest are byte for byte those that kit writes.

The only difference is that the descriptors of the layers name their chunk tables, if the format has chunk tables.
Follows KitOps' pkg/lib/kitfile. A kit is packed into the store (``pack_to_store``) or directly into a repository of a
registry (``pack_to_registry``); ``pack`` calls one of them. A kit is tagged only after all its blobs are durable.
Threading: each function starts threads, and returns when they have ended.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence
from dataclasses import replace

from kitfs.content import Destination, Hints
from kitfs.errors import UsageError
from kitfs.kit.workspace import Workspace
from kitfs.modelkit.kitfile import Kitfile
from kitfs.modelkit.writer import KitFormat, PackedKit
from kitfs.oci.names import LOCAL, UNNAMED, Reference
from kitfs.ops.events import Report, Saved, Sent
from kitfs.ops.library.tags import assign, check_whole, find
from kitfs.ops.pack.kitfiles import parent_paths
from kitfs.ops.pack.layer_jobs import LayerJob, plan_jobs, run_jobs, store_blob, upload_layer, write_layer
from kitfs.ops.transfer.tables import push_table_list
from kitfs.store.store import Store


def references_of(tag: str | None) -> list[Reference]:
    """Return the references in the value of ``--tag``, one for each tag. Return [] for None.

    Raises InvalidReference, and UsageError for a digest.
    """
    if tag is None:
        return [Reference(LOCAL, UNNAMED)]
    first = Reference.parse(tag, multiple_tags=True)
    if first.digest is not None:
        raise UsageError(f"--tag: {tag!r} is a digest, but the digest of a kit is computed when it is packed")
    return first.or_latest().tagged()


def pack(
    workspace: Workspace,
    directory: str,
    kitfile: Kitfile,
    references: Sequence[Reference],
    *,
    kit_format: KitFormat,
    push: bool = False,
    concurrency: int | None = None,
    report: Report,
) -> PackedKit:
    """Pack ``directory`` as ``kitfile`` describes, and tag the kit with ``references`` (see ``references_of``).

    ``push``: send the kit directly to the registry of the first reference, without a copy in the store.
    ``concurrency``: how many layers are packed at once; None means that the number of CPUs decides. Raises the errors
    of ``parent_paths``, ``pack_to_store`` and ``pack_to_registry``, and UsageError if ``push`` is True and the
    references have no registry.
    """
    if push and references[0].registry == LOCAL:
        raise UsageError("--push: registry is required when pushing (name it with --tag registry/repository:tag)")
    context, parents = os.path.realpath(directory), parent_paths(workspace.resolver, kitfile)
    if not push:
        return pack_to_store(
            context,
            kitfile,
            workspace.store,
            references,
            kit_format=kit_format,
            parent_paths=parents,
            concurrency=concurrency,
            report=report,
        )
    return pack_to_registry(
        context,
        kitfile,
        workspace.push_to(references[0]),
        [reference.tag or "latest" for reference in references],
        kit_format=kit_format,
        parent_paths=parents,
        hints=workspace.store.catalog,
        concurrency=concurrency,
        report=report,
    )


def pack_to_store(
    context: str,
    kitfile: Kitfile,
    store: Store,
    references: Sequence[Reference],
    *,
    kit_format: KitFormat,
    parent_paths: Collection[str] = (),
    concurrency: int | None = None,
    report: Report,
) -> PackedKit:
    """Pack the files below ``context`` into the store, and tag the kit with ``references``.

    A kit without a tag is stored under its digest. ``parent_paths``: the layer paths of parent kits, whose files are
    omitted. Raises KitfileError, StoreError or StoreFull, and ContextError if a file cannot be read or changes during
    the pack. A pack that fails leaves only complete, unpinned layers in the store.
    """
    jobs = plan_jobs(context, kitfile, parent_paths, kit_format, report)
    with contextlib.ExitStack() as leases:
        run_jobs(
            jobs,
            lambda job, stop: write_layer(job, store, leases, kit_format, report, stop),
            report,
            concurrency=concurrency,
        )
        kit = _assembled(kitfile, jobs, kit_format)
        report(Saved("config", "config", kit.config.digest, store_blob(store, leases, kit.config_bytes)))
        added = store_blob(store, leases, kit.manifest_bytes)
        if references:  # kit reports whether the repository had the manifest
            added = find(store, replace(references[0], tag=None, digest=kit.descriptor.digest)) is None
        report(Saved("manifest", "manifest", kit.descriptor.digest, added))
        for reference in references:
            assign(store, reference, kit.descriptor)
            everything = (kit.descriptor.digest, *(blob.digest for blob in kit.manifest.blobs))
            check_whole(store, everything, reference.display)
    return kit


def pack_to_registry(
    context: str,
    kitfile: Kitfile,
    target: Destination,
    tags: Sequence[str],
    *,
    kit_format: KitFormat,
    parent_paths: Collection[str] = (),
    hints: Hints | None = None,
    concurrency: int | None = None,
    report: Report,
) -> PackedKit:
    """Pack the files below ``context`` directly into a repository of a registry, without writing to a disk.

    Each layer is read once for its digest. It is read again, and sent, only if the registry does not have it. Raises
    the errors of ``pack_to_store`` and of the registry. After an error, nothing is tagged.
    """
    jobs = plan_jobs(context, kitfile, parent_paths, kit_format, report)
    run_jobs(
        jobs,
        lambda job, stop: upload_layer(job, target, kit_format, hints, report, stop),
        report,
        concurrency=concurrency,
        patient=False,
    )
    kit = _assembled(kitfile, jobs, kit_format)
    upload_manifest(kit, target, tags, hints=hints, report=report)
    return kit


def upload_manifest(
    kit: PackedKit, target: Destination, tags: Sequence[str], *, hints: Hints | None, report: Report
) -> None:
    """Upload the config and the manifest of a kit whose layers are in the repository, and tag it."""
    how = target.upload(kit.config, lambda offset: iter([kit.config_bytes[offset:]]), hints=hints)
    report(Sent("config", kit.config.digest, kit.config.size, how))
    for tag in tags:
        target.put_manifest(tag, kit.descriptor.media_type, kit.manifest_bytes)
    push_table_list(target, kit.descriptor, kit.manifest, hints=hints, report=report)
    report(Sent("manifest", kit.descriptor.digest, kit.descriptor.size, "uploaded"))


def _assembled(kitfile: Kitfile, jobs: Sequence[LayerJob], kit_format: KitFormat) -> PackedKit:
    return kit_format.assemble(kitfile, [job.done for job in jobs])
