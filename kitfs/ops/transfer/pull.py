"""Bring kits of registries into the store, whole and verified."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from kitfs.content import Origin
from kitfs.errors import ManifestError
from kitfs.kit.resolver import MAX_CHAIN, MAX_CONFIG
from kitfs.modelkit.index import KitIndex, is_kit_index, select
from kitfs.modelkit.layers import kitfile_of
from kitfs.oci.manifest import IMAGE_MANIFEST, Descriptor, Manifest, check_media_type
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import Moved, Noted, Report, Sent, Total, Warned
from kitfs.ops.library.tags import assign, check_whole
from kitfs.ops.transfer.push import AT_ONCE, label
from kitfs.parallel import each
from kitfs.store.fill import fill
from kitfs.store.store import Store


def pull(
    reference: Reference,
    store: Store,
    repository_of: Callable[[Reference], Origin],
    *,
    labels: Mapping[str, str] | None = None,
    concurrency: int = AT_ONCE,
    report: Report,
) -> Digest:
    """Bring a kit and the kits that its ``model.path`` leads to into the store, verified and pinned; the digest of
    its manifest.

    Of an index the kit that has the ``labels``: here it takes the tag, as with kit. What a mount has fetched is not
    fetched again, and what broke off goes on. Raises NotFound, IntegrityError, ManifestError if it is not a kit,
    UsageError for labels that do not choose one, StoreFull, what the registry raises; nothing is tagged then.
    """
    return _pull(reference, store, repository_of, labels or {}, concurrency, report, ())


def _pull(
    reference: Reference,
    store: Store,
    repository_of: Callable[[Reference], Origin],
    labels: Mapping[str, str],
    concurrency: int,
    report: Report,
    chain: tuple[str, ...],
) -> Digest:
    chain = (*chain, str(reference))
    if len(set(chain)) < len(chain):
        raise ManifestError(f"found cycle in modelkit references: [{'=>'.join(chain)}]")
    if len(chain) > MAX_CHAIN + 1:
        raise ManifestError(f"reached maximum number of model references: [{'=>'.join(chain)}]")
    origin = repository_of(reference)
    found, data = _chosen(reference, origin, labels, report)
    descriptor = replace(found, media_type=found.media_type or IMAGE_MANIFEST)
    try:
        manifest = Manifest.parse(data)
        manifest.require_kit()
    except ManifestError as e:
        raise ManifestError(f"reference {reference.display} does not refer to a model: {e}")
    if manifest.config.size > MAX_CONFIG:
        raise ManifestError(
            f"{reference.display}: a config of {manifest.config.size} bytes: more than {MAX_CONFIG} is too much"
        )
    wanted = {d.digest: d for d in (manifest.config, *manifest.layers)}
    with store.pin([found.digest, *wanted]):
        store.put(found.digest, data)
        _fill_all(list(wanted.values()), origin, store, concurrency, report)
        config = store.get(manifest.config.digest)
        parent = kitfile_of(manifest, config or b"").parent
        if parent is not None:
            report(Noted(f"Pulling referenced image {parent}"))
            _pull(parent.or_latest().held_by(reference), store, repository_of, {}, concurrency, report, chain)
        everything = [found.digest, *wanted]
        check_whole(store, everything, reference.display)
        assign(store, reference, descriptor)
        check_whole(store, everything, reference.display)
    return found.digest


def _chosen(
    reference: Reference, origin: Origin, labels: Mapping[str, str], report: Report
) -> tuple[Descriptor, bytes]:
    """What a reference means, of an index the kit that the labels choose."""
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


def _fill_all(blobs: Sequence[Descriptor], origin: Origin, store: Store, concurrency: int, report: Report) -> None:
    """Fill and verify every blob, several at once."""
    stop = threading.Event()

    def fetch(descriptor: Descriptor) -> None:
        if stop.is_set():
            return
        name = str(descriptor.digest)
        if store.has_sealed(descriptor.digest):
            report(Moved(name, descriptor.size))
            return
        with contextlib.closing(
            store.blob(descriptor.digest, size=descriptor.size, source=origin.blob(descriptor))
        ) as blob:
            fill(blob, descriptor.size, lambda size: report(Moved(name, size)), stop)
            if not stop.is_set():
                blob.verify()
                report(Sent("blob", descriptor.digest, descriptor.size, "pulled"))

    for descriptor in blobs:
        report(Total(str(descriptor.digest), descriptor.size, label(descriptor)))
    each(blobs, fetch, concurrency, stop)
