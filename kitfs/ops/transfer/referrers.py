"""Transfer the referrers of a kit: signatures, attestations, and every other manifest whose subject is the kit.

Referrers are found by the referrers API, by the referrers tag (at registries without the API), and by the tags of
cosign before version 3 (``sha256-HEX.sig``, ``.att``, ``.sbom``). Referrers of referrers are included. The store lists
the referrers of a kit in an image index. The index has the tag ``sha256-HEX`` in the kit's repository, which is the
referrers tag of distribution-spec. An annotation of the index contains the tags of those referrers that have a tag.
Threading: ``keep`` and ``push`` start threads, and return when they have ended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple, Protocol

from kitfs.content import Origin
from kitfs.errors import ManifestError, NotFound, StoreError
from kitfs.kit.workspace import Workspace
from kitfs.oci.manifest import IMAGE_INDEX, IMAGE_MANIFEST, Descriptor, IndexManifest, Manifest, is_index
from kitfs.oci.names import Digest, Reference
from kitfs.oci.referrers import EMPTY, entry_of, tag_of, with_entry
from kitfs.ops.events import Noted, Report, Sent, Warned
from kitfs.ops.transfer import push as pushing
from kitfs.ops.transfer.filling import fill_all
from kitfs.ops.transfer.push import CONCURRENCY, upload_all
from kitfs.registry.layout import REF_NAME
from kitfs.store.store import Store
from kitfs.trust.bundle import FAMILY
from kitfs.trust.publish import Document, Repository, add_layers
from kitfs.trust.signatures import SignatureSource
from kitfs.trust.statement import PAYLOAD_TYPE

MAX_REFERRERS: Final = (
    200  # referrers of one kit, so that a client that may push cannot make other clients fetch without limit
)
ATTACHED_HERE: Final = "kitfs.attached-here"  # annotation in the store's index: this store has added the referrer
REPLACED: Final = ".sbom"  # the suffix of a tag with one document; the tags with other suffixes can have several
SUFFIXES: Final = (".sig", ".att", REPLACED)  # suffixes of the tags of cosign before version 3


class Attached(NamedTuple):
    """A manifest that refers to a kit.

    ``tag``: the tag of this manifest, or "" if the manifest names the kit as its subject.
    """

    descriptor: Descriptor
    data: bytes
    tag: str

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """The descriptors of its blobs. An index has none."""
        return () if is_index(self.data) else Manifest.parse(self.data).blobs


class Source(SignatureSource, Origin, Protocol):
    """A repository or a layout with referrers."""


def attached_to(source: SignatureSource, digest: Digest, report: Report) -> list[Attached]:
    """Return the direct and indirect referrers of a manifest. Raises the errors of ``source``.

    Unreadable manifests, and referrers beyond MAX_REFERRERS, are omitted with a warning.
    """
    found: dict[tuple[Digest, str], Attached] = {}
    pending = [digest]
    while pending:
        subject = pending.pop(0)
        for entry, tag in _named(source, subject):
            if (entry.digest, tag) in found:
                continue
            if len(found) == MAX_REFERRERS:
                report(Warned(f"{digest} has more than {MAX_REFERRERS} referrers; the others are left out"))
                return list(found.values())
            with contextlib.suppress(ManifestError, NotFound):
                data = source.manifest(entry.digest)[1]
                one = Attached(entry_of(entry.media_type or IMAGE_MANIFEST, entry.digest, data), data, tag)
                _ = one.blobs  # raises ManifestError
                found[entry.digest, tag] = one
                pending.append(entry.digest)
    return list(found.values())


def keep(store: Store, name: str, digest: Digest, source: Source, concurrency: int, report: Report) -> int:
    """Fetch the referrers of a kit of the repository ``name`` into the store, and return the number of manifests.

    They stay in the store as long as the kit. Referrers that ``attach`` has added stay, too: the registry may not have
    them yet. Raises IntegrityError, StoreFull, or the errors of ``source``.
    """
    found = attached_to(source, digest, report)
    own = [one.descriptor for one in _listed(store, name, digest) if ATTACHED_HERE in one.descriptor.annotations]
    index = EMPTY
    for entry in own:
        index = with_entry(index, entry) or index
    for one in found:
        annotations = {**one.descriptor.annotations, REF_NAME: one.tag} if one.tag else one.descriptor.annotations
        index = with_entry(index, replace(one.descriptor, annotations=annotations)) or index
    blobs = list({blob.digest: blob for one in found for blob in one.blobs}.values())
    listed = Descriptor(IMAGE_INDEX, Digest.of(index), len(index))
    with store.pin([listed.digest, *(one.descriptor.digest for one in found), *(blob.digest for blob in blobs)]):
        fill_all(blobs, source, store, concurrency, report)
        for one in found:
            store.put(one.descriptor.digest, one.data)
        store.put(listed.digest, index)
        if found or own:
            store.refs.set(name, tag_of(digest), listed.to_json())
        else:
            store.refs.delete(name, tag_of(digest))
    return len(found)


def attach(store: Store, name: str, subject: Digest, document: Document) -> None:
    """Add a referrer to a kit of the repository ``name`` in the store. Raises StoreError.

    If two processes add a referrer to the same kit at the same time, one of the two may be lost.
    """
    value = store.refs.get(name, tag_of(subject))
    before = EMPTY if value is None else _data(store, Digest.parse(value["digest"]))
    entry = entry_of(IMAGE_MANIFEST, document.digest, document.manifest)
    entry = replace(entry, annotations={**entry.annotations, ATTACHED_HERE: "true"})
    index = with_entry(before, entry) or before
    listed = Descriptor(IMAGE_INDEX, Digest.of(index), len(index))
    contents = [(blob.digest, data) for blob, data in document.blobs]
    contents += [(document.digest, document.manifest), (listed.digest, index)]
    with store.pin([digest for digest, _ in contents]):
        for digest, data in contents:
            store.put(digest, data)
        store.refs.set(name, tag_of(subject), listed.to_json())


def kept(store: Store, name: str, digest: Digest) -> list[Attached]:
    """Return the referrers of a kit that are in the store. Raises StoreError if the store has lost one of them.

    If the store has none for the repository ``name``, those of the same kit in another repository are returned: a kit
    can be tagged with a new name before it is pushed.
    """
    tag = tag_of(digest)
    names = (other for other, found, _ in store.refs.items() if found == tag)
    return _listed(store, name if store.refs.get(name, tag) is not None else next(names, name), digest)


def _listed(store: Store, name: str, digest: Digest) -> list[Attached]:
    """Return the referrers of a kit of the repository ``name``. Raises StoreError."""
    value = store.refs.get(name, tag_of(digest))
    if value is None:
        return []
    entries = IndexManifest.parse(_data(store, Digest.parse(value["digest"]))).manifests
    return [Attached(one, _data(store, one.digest), one.annotations.get(REF_NAME, "")) for one in entries]


class KeptReferrers:
    """The referrers of a kit that are in the store, as a SignatureSource. Raises the errors of ``kept``."""

    def __init__(self, store: Store, name: str, digest: Digest) -> None:
        self._store = store
        self._digest = digest
        self._found = kept(store, name, digest)

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]:
        """Return the kit's manifest by its digest, or a referrer by its tag or digest. Raises NotFound."""
        for one in self._found:
            if identifier in (one.tag, one.descriptor.digest):
                return one.descriptor, one.data
        data = self._store.get(self._digest) if identifier == self._digest else None
        if data is None:
            raise NotFound(f"the store has no referrer {identifier}")
        return Descriptor(IMAGE_MANIFEST, self._digest, len(data)), data

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes:
        """Return the bytes of a blob of a referrer. Raises ManifestError for more than ``limit`` bytes."""
        if descriptor.size > limit:
            raise ManifestError(f"blob {descriptor.digest} has {descriptor.size} bytes; the limit is {limit}")
        return _data(self._store, descriptor.digest)

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        """Return the descriptors of the referrers whose subject is a manifest."""
        return tuple(one.descriptor for one in self._found if not one.tag and _subject(one) == digest)


def push_kit(
    workspace: Workspace, source: Reference, destination: Reference, *, concurrency: int = CONCURRENCY, report: Report
) -> Digest:
    """Push a kit of the store as ``push.push`` does, and then its referrers that are in the store."""
    digest = pushing.push(workspace, source, destination, concurrency=concurrency, report=report)
    found = kept(workspace.store, source.name, digest)
    if not found:
        report(Warned(f"the store has nothing that refers to {source.display}; pull it with --with-referrers first"))
    push(workspace.push_to(destination), workspace.store, found, concurrency, report)
    return digest


def push_alone(
    workspace: Workspace, source: Reference, destination: Reference, *, concurrency: int = CONCURRENCY, report: Report
) -> Digest:
    """Push a kit of the store as ``push.push`` does. Report whether statements about the kit stay in the store."""
    digest = pushing.push(workspace, source, destination, concurrency=concurrency, report=report)
    if any(map(_states, kept(workspace.store, source.name, digest))):
        report(Noted(f"Statements about {source.display} stay in the store; --with-referrers pushes them, too"))
    return digest


def _states(one: Attached) -> bool:
    """Return whether a referrer is a signature or another statement."""
    kind = one.descriptor.artifact_type
    return bool(one.tag) or kind.startswith(FAMILY) or kind == PAYLOAD_TYPE


def push(target: Repository, store: Store, found: Sequence[Attached], concurrency: int, report: Report) -> None:
    """Push manifests and their blobs. A manifest is pushed before its referrers. Raises StoreError or RegistryError."""
    for one in found:
        with contextlib.ExitStack() as stack:
            files = {}
            for blob in one.blobs:
                file = store.open_sealed(blob.digest)
                if file is None:
                    raise _lost(blob.digest)
                files[blob.digest] = stack.enter_context(file)
            upload_all(one.blobs, files, store, target, {}, concurrency, report)
        media_type = one.descriptor.media_type or IMAGE_MANIFEST
        if one.tag:
            _push_tagged(target, one, media_type)
        else:
            target.put_manifest(one.descriptor.digest, media_type, one.data)
        report(Sent("manifest", one.descriptor.digest, len(one.data), "uploaded"))


def indexes_of(found: Sequence[Attached]) -> dict[str, bytes]:
    """Return the indexes for the referrers tags of a layout on disk, keyed by tag."""
    indexes: dict[str, bytes] = {}
    for one in found:
        subject = None if one.tag else _subject(one)
        if subject is not None:
            entry = entry_of(one.descriptor.media_type or IMAGE_MANIFEST, one.descriptor.digest, one.data)
            tag = tag_of(subject)
            indexes[tag] = with_entry(indexes.get(tag, EMPTY), entry) or indexes[tag]
    return indexes


def _subject(one: Attached) -> Digest | None:
    """Return the digest of the manifest to which a referrer refers, or None if it names none."""
    subject = None if is_index(one.data) else Manifest.parse(one.data).subject
    return None if subject is None else subject.digest


def _named(source: SignatureSource, digest: Digest) -> list[tuple[Descriptor, str]]:
    """Return the descriptors of the direct referrers of a manifest, each with its tag ("" if it has no tag)."""
    found = [(entry, "") for entry in source.referrers(digest)]
    for suffix in SUFFIXES:
        tag = f"{tag_of(digest)}{suffix}"
        with contextlib.suppress(NotFound):
            found.append((source.manifest(tag)[0], tag))
    return found


def _push_tagged(target: Repository, one: Attached, media_type: str) -> None:
    """Push a manifest under its tag. A manifest that the target already has under this tag is kept."""
    try:
        target.manifest(one.tag)
    except NotFound:
        target.put_manifest(one.tag, media_type, one.data)
        return
    if not one.tag.endswith(REPLACED):
        add_layers(target, one.tag, Manifest.parse(one.data).layers)


def _data(store: Store, digest: Digest) -> bytes:
    data = store.get(digest)
    if data is None:
        raise _lost(digest)
    return data


def _lost(digest: Digest) -> StoreError:
    return StoreError(f"the store has lost {digest}, which refers to a kit; pull the kit again with --with-referrers")
