"""Pull kits from registries: fetch all their blobs into the store, and verify them.

Threading: ``pull`` starts threads, and returns when they have ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace

from kitfs.content import Origin
from kitfs.errors import KitfsError, ManifestError
from kitfs.kit.chain import extended
from kitfs.kit.resolver import MAX_CONFIG
from kitfs.kit.workspace import Workspace
from kitfs.modelkit.index import KitIndex, is_kit_index, select
from kitfs.modelkit.layers import kitfile_of
from kitfs.oci.chunk_tables import tables_of
from kitfs.oci.manifest import IMAGE_MANIFEST, Descriptor, Manifest, check_media_type
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import Noted, Report, Warned
from kitfs.ops.library.tags import assign, check_whole
from kitfs.ops.transfer.decoded import decode
from kitfs.ops.transfer.filling import fetch_tables, fill_all
from kitfs.ops.transfer.push import CONCURRENCY
from kitfs.ops.transfer.referrers import keep
from kitfs.store.store import Store


def pull(
    workspace: Workspace,
    reference: Reference,
    *,
    labels: Mapping[str, str] | None = None,
    concurrency: int = CONCURRENCY,
    with_referrers: bool = False,
    report: Report,
) -> Digest:
    """Pull a kit and its parent kits, and return the digest of its manifest.

    The blobs are verified and pinned. Compressed layers are also decoded if the store has room, so that a mount of the
    kit can be sealed at once. ``labels``: select a kit if the reference names an index. In the store, the selected kit
    gets the tag of the index, as in kit. ``with_referrers``: also pull the manifests that refer to the kit, such as
    signatures. Blobs that a mount has fetched are not fetched again, and an interrupted pull resumes.

    Raises NotFound, IntegrityError, StoreFull, ManifestError if the reference does not name a kit, UsageError unless
    the labels select exactly one kit, SignatureError if the kit or a parent lacks a required signature, and the errors
    of the registry. After an error, nothing is tagged.
    """
    digest = pull_from(
        workspace.pull_from,
        workspace.store,
        reference,
        labels=labels,
        concurrency=concurrency,
        report=report,
        admit=workspace.admit,
    )
    if with_referrers:
        keep(workspace.store, reference.name, digest, workspace.client.repository(reference), concurrency, report)
    try:
        with contextlib.closing(workspace.resolver.open(reference)) as kit:
            decode(workspace.store, kit, concurrency=concurrency, log=workspace.log)
    except KitfsError as e:
        workspace.log.info("%s was pulled, but it cannot be mounted: %s", reference.display, e)
    return digest


def pull_from(
    origin_of: Callable[[Reference], Origin],
    store: Store,
    reference: Reference,
    *,
    labels: Mapping[str, str] | None = None,
    concurrency: int = CONCURRENCY,
    report: Report,
    admit: Callable[[Reference, Digest], None] = lambda *_: None,
) -> Digest:
    """Do what ``pull`` does, but read from the origins that ``origin_of`` returns for the kit and for its parents.

    ``admit`` is called for the kit and for each parent before their blobs are fetched. It raises SignatureError for a
    kit without a required signature.
    """
    return _pull(reference, store, origin_of, admit, labels or {}, concurrency, report, ())


def _pull(
    reference: Reference,
    store: Store,
    origin_of: Callable[[Reference], Origin],
    admit: Callable[[Reference, Digest], None],
    labels: Mapping[str, str],
    concurrency: int,
    report: Report,
    chain: tuple[str, ...],
) -> Digest:
    chain = extended(chain, reference)
    origin = origin_of(reference)
    found, data = _choose(reference, origin, labels, report)
    admit(reference, found.digest)
    descriptor = replace(found, media_type=found.media_type or IMAGE_MANIFEST)
    try:
        manifest = Manifest.parse(data)
        manifest.require_kit()
    except ManifestError as e:
        raise ManifestError(f"reference {reference.display} does not refer to a model: {e}")
    if manifest.config.size > MAX_CONFIG:
        raise ManifestError(
            f"{reference.display}: the config is {manifest.config.size} bytes; the limit for a config is {MAX_CONFIG}"
        )
    everything = [found.digest, *(blob.digest for blob in manifest.blobs)]
    with store.pin([*everything, *(table.digest for table in tables_of(manifest.layers))]):
        store.put(found.digest, data)
        fill_all(manifest.blobs, origin, store, concurrency, report)
        fetch_tables(manifest, origin, store)
        config = store.get(manifest.config.digest)
        parent = kitfile_of(manifest, config or b"").parent
        if parent is not None:
            report(Noted(f"Pulling referenced image {parent}"))
            _pull(parent.or_latest().held_by(reference), store, origin_of, admit, {}, concurrency, report, chain)
        check_whole(store, everything, reference.display)
        assign(store, reference, descriptor)
        check_whole(store, everything, reference.display)
    return found.digest


def _choose(
    reference: Reference, origin: Origin, labels: Mapping[str, str], report: Report
) -> tuple[Descriptor, bytes]:
    """Return the manifest that a reference names.

    If the reference names an index, return the manifest that the labels select.
    """
    found, data = origin.manifest(reference.digest or reference.tag or "latest")
    if not is_kit_index(data):
        if labels:
            report(Warned(f"labels are ignored: {reference.display} is a ModelKit, not a ModelKit index"))
        return found, data
    variant = select(KitIndex.parse(data), labels, reference)
    report(Noted(f"Index {reference.display} refers to ModelKit {variant.name(reference) or variant.digest}"))
    found, data = origin.manifest(variant.digest)
    check_media_type(data, variant.descriptor.media_type, f"{reference.display}: {variant.digest}")
    return found, data
