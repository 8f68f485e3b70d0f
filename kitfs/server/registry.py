"""Implement the registry without HTTP: blobs, manifests, tags, referrers and uploads of repositories, over a Store.

Follows distribution-spec v1.1. Every failure raises ApiError with the specification's codes, or an error of the store,
for which ``api_errors.of_error`` makes a response. A repository has a blob if it links the blob *and* the store
contains the complete, verified blob. For durability, a blob's link is written first, then the bytes of the blob, then
the manifest or tag that names the blob. Each write is fsynced before the next, and all of them before the call returns.
Threading: any thread may call every method, but only one thread at a time may use an upload.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any, Final

from kitfs.errors import IntegrityError, InvalidReference, StoreError
from kitfs.oci.manifest import IMAGE_MANIFEST, MAX_MANIFEST
from kitfs.oci.names import TAG, Digest
from kitfs.server.api_errors import ApiError, unknown_blob, unknown_manifest, unknown_name, unknown_upload
from kitfs.server.collect import MIN_AGE
from kitfs.server.manifests import (
    PushedManifest,
    ServedManifest,
    parts_of,
    read_manifest,
    referrer_of,
    subject_of,
    too_big,
)
from kitfs.server.names import digest_of, is_repository, repository_name
from kitfs.server.pages import Page, Referrers, compact, index_of, page_of
from kitfs.server.room import COLLECT_EVERY, ServerRoom
from kitfs.store.ingest import Ingest
from kitfs.store.lease import release
from kitfs.store.repositories import BLOBS, MANIFESTS, REFERRERS, TAGS, link_name
from kitfs.store.store import Store

NOTED: Final = 60.0  # seconds after a use of a blob in which further reads are not recorded


class Registry:
    """The registry over a store. It neither reads nor writes files outside the store.

    A tag that matches a pattern of ``immutable_tags`` can be neither moved to another manifest nor deleted.
    """

    def __init__(
        self,
        store: Store,
        *,
        log: logging.Logger | None = None,
        min_age: float = MIN_AGE,
        collect_every: float = COLLECT_EVERY,
        immutable_tags: tuple[str, ...] = (),
    ) -> None:
        self._store = store
        self._links = store.repositories
        self._immutable = immutable_tags
        self._room = ServerRoom(store, log=log or store.log, min_age=min_age, collect_every=collect_every)

    def expect(self, size: int) -> None:
        """Free space for the last request body of an upload. The body has ``size`` bytes.

        Raises StoreFull (see ``ServerRoom.expect``).
        """
        self._room.expect(size)

    # Blobs

    def blob(self, repository: str, digest_text: str, *, promised: bool = False) -> tuple[Digest, io.FileIO]:
        """Return the digest of a blob and its open file, which the caller must close.

        ``promised``: whether the request is a HEAD. The use of the blob is then always recorded, because the client may
        next push a manifest that names the blob.
        """
        name, digest = repository_name(repository), digest_of(digest_text)
        file = self._open(name, digest, promised)
        if file is None:
            raise unknown_blob(digest_text)
        return digest, file

    def _open(self, name: str, digest: Digest, promised: bool) -> io.FileIO | None:
        if not self._links.use_blob(name, digest, within=0.0 if promised else NOTED):
            return None
        return self._store.open_sealed(digest)

    def delete_blob(self, repository: str, digest_text: str) -> None:
        """Remove a blob from a repository.

        Its bytes are deleted when the store needs space and no other repository or kit contains the blob.
        """
        name, digest = repository_name(repository), digest_of(digest_text)
        if not self._links.exists(name):
            raise unknown_blob(digest_text)
        with self._links.locked(name):
            if not self._links.unlink(name, BLOBS, link_name(digest)):
                raise unknown_blob(digest_text)
        self._room.note_removal()

    def mount(
        self, repository: str, digest_text: str, source: str | None, may_read: Callable[[str], bool] = lambda _: True
    ) -> Digest | None:
        """Link a blob of the repository ``source`` (None: any repository) into another repository.

        A blob is taken only from repositories for which ``may_read`` returns True.
        Returns None if ``source`` does not have the blob. The client must then upload the blob.
        """
        name = repository_name(repository)
        try:
            digest = Digest.parse(digest_text)
        except InvalidReference:
            return None
        sources = self._links.names() if source is None else [source]
        lease = self._store.hold(digest)
        if lease is None:
            return None
        try:
            for other in sources:
                if is_repository(other) and may_read(other) and self._links.use_blob(other, digest):
                    self._room.retry(lambda: self._links.add_blob(name, digest))
                    return digest
        finally:
            release(lease)
        return None

    # Uploads

    def begin(self, repository: str) -> Ingest:
        """Begin an upload to a repository."""
        name = repository_name(repository)
        return self._room.retry(
            lambda: self._store.ingest(resumable=True, note={"repository": name}, make_room=self._room.make)
        )

    def resume(self, repository: str, upload: str) -> Ingest:
        """Open an upload that this process or another process began."""
        self._check_upload(repository, upload)
        return self._store.resume(upload, make_room=self._room.make)

    def progress(self, repository: str, upload: str) -> int:
        """Return how many bytes of an upload have been received."""
        self._check_upload(repository, upload)
        size = self._store.ingests.size(upload)
        if size is None:
            raise unknown_upload()
        return size

    def _check_upload(self, repository: str, upload: str) -> None:
        note = self._store.ingests.note(upload)
        if not isinstance(note, dict) or note.get("repository") != repository_name(repository):
            raise unknown_upload()

    def finish(self, repository: str, ingest: Ingest, digest_text: str) -> Digest:
        """Turn an upload into a blob of the repository. The blob is durable when this method returns.

        Bytes with a wrong digest are deleted, and ApiError is raised.
        """
        name = repository_name(repository)
        digest = digest_of(digest_text)

        def commit() -> None:
            if ingest.ended:
                raise StoreError(f"the upload {ingest.name} was deleted because the disk was full")
            ingest.commit(digest, verified=lambda: self._links.add_blob(name, digest))

        try:
            self._room.retry(commit)
        except IntegrityError:
            ingest.discard()
            raise
        ingest.close()
        return digest

    # Manifests

    def manifest(self, repository: str, reference: str) -> ServedManifest:
        """Return a manifest by its tag or digest. Raises ApiError or StoreError."""
        name = repository_name(repository)
        digest = self._resolved(name, reference)
        link = self._links.get(name, MANIFESTS, link_name(digest))
        data = None if link is None else self._store.get(digest)
        if link is None or data is None:
            raise unknown_manifest(reference)
        return ServedManifest(digest, str(link.get("mediaType", IMAGE_MANIFEST)), data)

    def _resolved(self, name: str, reference: str) -> Digest:
        if ":" in reference:
            return digest_of(reference)
        tag = None if not TAG.fullmatch(reference) else self._links.get(name, TAGS, reference)
        if tag is None:
            raise unknown_manifest(reference)
        try:
            return Digest.parse(tag.get("digest"))
        except InvalidReference as e:
            raise StoreError(f"the tag {name}:{reference} is damaged: {e}")

    def put_manifest(
        self, repository: str, reference: str, data: bytes, content_type: str, more_tags: tuple[str, ...] = ()
    ) -> PushedManifest:
        """Store a manifest under a tag or its digest.

        Raises ApiError if the repository lacks a blob that the manifest names.
        """
        name = repository_name(repository)
        by_digest = ":" in reference
        digest = digest_of(reference) if by_digest else Digest.of(data)
        tags = more_tags if by_digest else (reference, *more_tags)
        for tag in tags:
            if not TAG.fullmatch(tag):
                raise ApiError(400, "TAG_INVALID", "manifest tag is not a valid tag", detail={"tag": tag[:200]})
        if len(data) > MAX_MANIFEST:
            raise too_big()
        manifest, media_type = read_manifest(data, content_type)
        if not digest.matches(data):
            raise ApiError(
                400, "DIGEST_INVALID", "provided digest did not match uploaded content", detail={"digest": reference}
            )
        subject = subject_of(manifest)
        descriptor = referrer_of(manifest, media_type, digest, len(data))
        if not self._links.exists(name):
            self._check_parts(name, manifest, media_type)  # a refused manifest must not create the repository

        def put() -> None:
            with self._links.locked(name):
                self._check_parts(name, manifest, media_type)
                for tag in tags:
                    self._check_mutable(name, tag, digest)
                ingest = self._store.ingest(make_room=lambda: False)  # space is freed after the lock is released
                try:
                    ingest.write(data)
                    ingest.commit(digest)
                    self._links.link(name, MANIFESTS, link_name(digest), {"mediaType": media_type, "size": len(data)})
                finally:
                    ingest.close()
                if subject is not None:
                    self._links.link(name, REFERRERS, link_name(digest), descriptor, below=link_name(subject))
                for tag in tags:
                    self._links.link(name, TAGS, tag, {"digest": str(digest)})

        self._room.retry(put)
        return PushedManifest(digest, subject, tags)

    def _check_parts(self, name: str, manifest: dict[str, Any], media_type: str) -> None:
        """Raise ApiError if the repository lacks a blob or manifest that a manifest names.

        A missing subject is permitted by the specification.
        """
        missing = []
        for descriptor, kind in parts_of(manifest, media_type):
            digest = digest_of(str(descriptor.get("digest")), code="MANIFEST_INVALID")
            linked = (
                self._links.use_blob(name, digest)
                if kind == BLOBS
                else self._links.get(name, kind, link_name(digest)) is not None
            )
            if not linked or not self._store.has_sealed(digest):
                missing.append(str(digest))
        if missing:
            errors = [{"digest": d} for d in missing[:100]]
            raise ApiError(
                400, "MANIFEST_BLOB_UNKNOWN", f"blob unknown to registry: {', '.join(missing[:3])}", detail=errors
            )

    def _meant(self, name: str, tag: str) -> str | None:
        """Return the digest of a tag, or None for a tag that does not exist or is damaged."""
        with contextlib.suppress(StoreError):
            return (self._links.get(name, TAGS, tag) or {}).get("digest")
        return None

    def _check_mutable(self, name: str, tag: str, digest: Digest | None) -> None:
        """Raise ApiError if an immutable tag exists and its digest is not ``digest`` (None to delete the tag)."""
        if not any(fnmatchcase(tag, pattern) for pattern in self._immutable):
            return
        meant = self._meant(name, tag)
        if meant is not None and meant != digest:
            advice = "it cannot be deleted" if digest is None else "push under another tag"
            raise ApiError(
                409, "DENIED", f"the tag {tag} is immutable in this registry: {advice}",
                detail={"tag": tag, "digest": meant},
            )  # fmt: skip

    def delete_manifest(self, repository: str, reference: str) -> None:
        """Remove a tag, or remove a manifest by its digest together with every tag that points to it."""
        name = repository_name(repository)
        if not self._links.exists(name):
            raise unknown_name(name)
        with self._links.locked(name):
            if ":" not in reference:
                self._check_mutable(name, reference, None)
                if not TAG.fullmatch(reference) or not self._links.unlink(name, TAGS, reference):
                    raise unknown_manifest(reference)
                return
            digest = digest_of(reference)
            if link_name(digest) not in self._links.listed(name, MANIFESTS):
                raise unknown_manifest(reference)
            tags = [tag for tag in self._links.listed(name, TAGS) if self._meant(name, tag) == digest]
            for tag in tags:
                self._check_mutable(name, tag, None)
            for tag in tags:
                self._links.unlink(name, TAGS, tag)
            with contextlib.suppress(ApiError):
                subject = subject_of(read_manifest(self._store.get(digest) or b"{}", "")[0])
                if subject is not None:
                    self._links.unlink(name, REFERRERS, link_name(digest), below=link_name(subject))
            self._links.unlink(name, MANIFESTS, link_name(digest))
        self._room.note_removal()

    # Lists

    def tags(self, repository: str, count: int | None, last: str | None) -> Page:
        """Return at most ``count`` tags that follow ``last``, sorted by their bytes."""
        name = repository_name(repository)
        if not self._links.exists(name):
            raise unknown_name(name)
        return page_of(self._links.listed(name, TAGS), count, last)

    def catalog(self, count: int | None, last: str | None, may_read: Callable[[str], bool] = lambda _: True) -> Page:
        """Return at most ``count`` repositories that follow ``last`` and for which ``may_read`` returns True."""
        return page_of([name for name in self._links.names() if may_read(name)], count, last)

    def referrers(
        self, repository: str, digest_text: str, artifact_type: str | None, last: str | None = None
    ) -> Referrers:
        """Return an index of the referrers of a manifest, from the referrer after the digest ``last`` on.

        The index is not larger than clients accept. It contains at least one referrer if any follows ``last``.
        """
        name, digest = repository_name(repository), digest_of(digest_text)
        page: list[bytes] = []
        end = ""
        size = len(index_of(page))
        for found in self._links.referrers(name, digest):
            at = str(found.get("digest"))
            if (artifact_type is not None and found.get("artifactType") != artifact_type) or (
                last is not None and at <= last
            ):
                continue
            data = compact(found)
            size += len(data) + 1
            if page and size > MAX_MANIFEST:
                return Referrers(index_of(page), end)
            page.append(data)
            end = at
        return Referrers(index_of(page), None)
