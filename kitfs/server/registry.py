"""What the registry does, without HTTP: blobs, manifests, tags, referrers and uploads of repositories, over a Store.

Follows distribution-spec v1.1. Everything raises ApiError for what cannot be done, with the specification's codes, or
what the store raises (``answers.of_error`` makes an answer of it). A repository has a blob when it links it *and* the
store has it whole and verified. Order makes it durable: a blob's link, its bytes, then what names it, each fsynced
before the next, and all before the caller answers. Threading: every method from any thread; an upload by one thread
at a time.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from kitfs.errors import IntegrityError, InvalidReference, ManifestError, StoreError, StoreFull
from kitfs.gocompat.json import loads
from kitfs.oci.manifest import ACCEPT, DOCKER_LIST, IMAGE_INDEX, IMAGE_MANIFEST, MAX_MANIFEST, check_fields
from kitfs.oci.names import REPOSITORY, TAG, Digest
from kitfs.server.api_errors import ApiError, unknown_blob, unknown_manifest, unknown_name, unknown_upload
from kitfs.server.collect import MIN_AGE, SteadyClock, collect
from kitfs.store.ingest import Ingest
from kitfs.store.lease import release
from kitfs.store.repositories import BLOBS, MANIFESTS, REFERRERS, TAGS, link_name
from kitfs.store.store import Store

MAX_NAME: Final = 255
NOTED: Final = 60.0  # seconds within which a blob that is read again is not noted as used again
COLLECT_EVERY: Final = 60.0  # seconds between two collections for want of room, unless something was deleted since
PAGE: Final = 1000  # tags or repositories of one answer
INDEXES: Final = (IMAGE_INDEX, DOCKER_LIST)
NOT_DISTRIBUTED: Final = (
    "application/vnd.oci.image.layer.nondistributable.v1.",
    "application/vnd.docker.image.rootfs.foreign.diff.",
)  # layers whose bytes are elsewhere by their very type


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored:
    """A manifest as it is served."""

    digest: Digest
    media_type: str
    data: bytes


class Page(NamedTuple):
    """Some names, in order, and whether there are more."""

    names: list[str]
    more: bool


class Referrers(NamedTuple):
    """An index of referrers, and the digest after which the next one begins, if it is not all."""

    data: bytes
    next: str | None


class Accepted(NamedTuple):
    """A manifest that was pushed: its digest, the subject that it refers to, the tags that it got."""

    digest: Digest
    subject: Digest | None
    tags: tuple[str, ...]


class Registry:
    """The registry over a store; nothing outside the store is ever read or written."""

    def __init__(
        self,
        store: Store,
        *,
        log: logging.Logger | None = None,
        min_age: float = MIN_AGE,
        collect_every: float = COLLECT_EVERY,
    ) -> None:
        self._store = store
        self._links = store.repositories
        self._log = log or store.log
        self._min_age = min_age
        self._collect_every = collect_every
        self._clock = SteadyClock()
        self._collecting = threading.Lock()
        self._collect_next = 0.0  # of time.monotonic()
        self._something_went = False  # since the last collection

    # Room

    def make_room(self) -> bool:
        """Free what nobody needs, since the disk is full; whether anything went.

        First the blobs that nothing has any more, then those of removed kits, last the parts of uploads that found no
        room before. Not to be called while a repository is locked.
        """
        return self._store.room.make() or self._collect() or self._store.ingests.drop_starved() > 0

    def expect(self, size: int) -> None:
        """Make room for a body of ``size`` bytes that ends its upload. Raises StoreFull when that cannot be, before
        anything was given up.
        """
        root = self._store.root
        while size > _free_bytes(root) + self._store.ingests.starved_bytes():
            if not self._store.room.make() and not self._collect():
                raise StoreFull(f"a body of {size} bytes finds no room on the disk of the store")

    def _collect(self) -> bool:
        """Collect garbage, if some may have come since the last time; whether anything went."""
        with self._collecting:
            if time.monotonic() < self._collect_next and not self._something_went:
                return False
            self._something_went = False
            try:
                found = collect(self._store, log=self._log, min_age=self._min_age, now=self._clock())
                self._store.ingests.sweep()
            except StoreError as e:
                self._log.warning("no room can be made: %s", e)
                return False
            finally:
                self._collect_next = time.monotonic() + self._collect_every
            if found.blobs:
                self._log.info("the disk was full: freed %d blobs of removed kits, %d bytes", found.blobs, found.freed)
            return found.blobs > 0 or self._store.room.make()  # what lost its last link is free whatever its age

    def _with_room(self, do: Callable[[], T]) -> T:
        """Do what writes, again whenever room could be made for it. Raises StoreFull, and what ``do`` raises."""
        while True:
            try:
                return do()
            except StoreFull:
                if not self.make_room():
                    raise

    # Blobs

    def blob(self, repository: str, digest_text: str, *, promised: bool = False) -> tuple[Digest, io.FileIO]:
        """A blob's file, to be closed by the caller. ``promised``: whoever asks may go on to push a manifest of it
        (HEAD).
        """
        name, digest = checked(repository), parsed(digest_text)
        file = self._open(name, digest, promised)
        if file is None:
            raise unknown_blob(digest_text)
        return digest, file

    def _open(self, name: str, digest: Digest, promised: bool) -> io.FileIO | None:
        if not self._links.use_blob(name, digest, within=0.0 if promised else NOTED):
            return None
        return self._store.open_sealed(digest)

    def delete_blob(self, repository: str, digest_text: str) -> None:
        """Take a blob out of a repository; its bytes go when the store needs room and nothing else has them."""
        name, digest = checked(repository), parsed(digest_text)
        if not self._links.exists(name):
            raise unknown_blob(digest_text)
        with self._links.locked(name):
            if not self._links.unlink(name, BLOBS, link_name(digest)):
                raise unknown_blob(digest_text)
        self._something_went = True

    def mount(self, repository: str, digest_text: str, source: str | None) -> Digest | None:
        """Link a blob that another repository has (any, when ``source`` is None); None when it has not, and it must
        be uploaded.
        """
        name = checked(repository)
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
                if valid(other) and self._links.use_blob(other, digest):
                    self._with_room(lambda: self._links.add_blob(name, digest))
                    return digest
        finally:
            release(lease)
        return None

    # Uploads

    def begin(self, repository: str) -> Ingest:
        """A new upload."""
        name = checked(repository)
        return self._with_room(
            lambda: self._store.ingest(resumable=True, note={"repository": name}, make_room=self.make_room)
        )

    def resume(self, repository: str, upload: str) -> Ingest:
        """An upload that was begun, by this process or another."""
        self._check_upload(repository, upload)
        return self._store.resume(upload, make_room=self.make_room)

    def progress(self, repository: str, upload: str) -> int:
        """Bytes that an upload has."""
        self._check_upload(repository, upload)
        size = self._store.ingests.size(upload)
        if size is None:
            raise unknown_upload()
        return size

    def _check_upload(self, repository: str, upload: str) -> None:
        note = self._store.ingests.note(upload)
        if not isinstance(note, dict) or note.get("repository") != checked(repository):
            raise unknown_upload()

    def finish(self, repository: str, ingest: Ingest, digest_text: str) -> Digest:
        """The upload's bytes become a blob of the repository; durable when this returns. Wrong bytes are dropped."""
        name = checked(repository)
        digest = parsed(digest_text)

        def commit() -> None:
            if ingest.ended:
                raise StoreError(f"the upload {ingest.name} was lost when the disk was full")
            ingest.commit(digest, verified=lambda: self._links.add_blob(name, digest))

        try:
            self._with_room(commit)
        except IntegrityError:
            ingest.discard()
            raise
        ingest.close()
        return digest

    # Manifests

    def manifest(self, repository: str, reference: str) -> Stored:
        """A manifest by tag or digest."""
        name = checked(repository)
        digest = self._resolved(name, reference)
        link = self._links.get(name, MANIFESTS, link_name(digest))
        data = None if link is None else self._store.get(digest)
        if link is None or data is None:
            raise unknown_manifest(reference)
        return Stored(digest, str(link.get("mediaType", IMAGE_MANIFEST)), data)

    def _resolved(self, name: str, reference: str) -> Digest:
        if ":" in reference:
            return parsed(reference)
        tag = None if not TAG.fullmatch(reference) else self._links.get(name, TAGS, reference)
        if tag is None:
            raise unknown_manifest(reference)
        try:
            return Digest.parse(tag.get("digest"))
        except InvalidReference as e:
            raise StoreError(f"the tag {name}:{reference} is damaged: {e}")

    def put_manifest(
        self, repository: str, reference: str, data: bytes, content_type: str, more_tags: tuple[str, ...] = ()
    ) -> Accepted:
        """Take a manifest under a tag or its digest, with every blob that it names in the repository already."""
        name = checked(repository)
        by_digest = ":" in reference
        digest = parsed(reference) if by_digest else Digest.of(data)
        tags = more_tags if by_digest else (reference, *more_tags)
        for tag in tags:
            if not TAG.fullmatch(tag):
                raise ApiError(400, "TAG_INVALID", "manifest tag is not a tag", detail={"tag": tag[:200]})
        if len(data) > MAX_MANIFEST:
            raise too_big()
        manifest, media_type = _read_manifest(data, content_type)
        if not digest.matches(data):
            raise ApiError(
                400, "DIGEST_INVALID", "provided digest did not match uploaded content", detail={"digest": reference}
            )
        subject = _subject(manifest)
        descriptor = _referrer(manifest, media_type, digest, len(data))
        if not self._links.exists(name):
            self._check_parts(name, manifest, media_type)  # what is refused makes no repository

        def put() -> None:
            with self._links.locked(name):
                self._check_parts(name, manifest, media_type)
                ingest = self._store.ingest(make_room=lambda: False)  # room is made when the lock is given back
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

        self._with_room(put)
        return Accepted(digest, subject, tags)

    def _check_parts(self, name: str, manifest: dict[str, Any], media_type: str) -> None:
        """Raises ApiError unless the repository has all that a manifest names. A subject may be missing, by the
        specification.
        """
        missing = []
        for descriptor, kind in _parts(manifest, media_type):
            digest = parsed(str(descriptor.get("digest")), code="MANIFEST_INVALID")
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

    def delete_manifest(self, repository: str, reference: str) -> None:
        """Forget a tag; or, by digest, a manifest with every tag that means it."""
        name = checked(repository)
        if not self._links.exists(name):
            raise unknown_name(name)
        with self._links.locked(name):
            if ":" not in reference:
                if not TAG.fullmatch(reference) or not self._links.unlink(name, TAGS, reference):
                    raise unknown_manifest(reference)
                return
            digest = parsed(reference)
            if link_name(digest) not in self._links.listed(name, MANIFESTS):
                raise unknown_manifest(reference)
            for tag in self._links.listed(name, TAGS):
                meant = None
                with contextlib.suppress(StoreError):  # whatever a damaged tag meant, it is not in the way
                    meant = self._links.get(name, TAGS, tag)
                if meant is not None and meant.get("digest") == digest:
                    self._links.unlink(name, TAGS, tag)
            with contextlib.suppress(ApiError):
                subject = _subject(_read_manifest(self._store.get(digest) or b"{}", "")[0])
                if subject is not None:
                    self._links.unlink(name, REFERRERS, link_name(digest), below=link_name(subject))
            self._links.unlink(name, MANIFESTS, link_name(digest))
        self._something_went = True

    # Lists

    def tags(self, repository: str, count: int | None, last: str | None) -> Page:
        """Tags after ``last``, at most ``count`` of them, in the order of their bytes."""
        name = checked(repository)
        if not self._links.exists(name):
            raise unknown_name(name)
        return _page(self._links.listed(name, TAGS), count, last)

    def catalog(self, count: int | None, last: str | None) -> Page:
        """Repositories after ``last``."""
        return _page(self._links.names(), count, last)

    def referrers(
        self, repository: str, digest_text: str, artifact_type: str | None, last: str | None = None
    ) -> Referrers:
        """What refers to a manifest, after the digest ``last``: as many as clients read at once, one at least if
        there is one.
        """
        name, digest = checked(repository), parsed(digest_text)
        page: list[bytes] = []
        end = ""
        size = len(_index_of(page))
        for found in self._links.referrers(name, digest):
            at = str(found.get("digest"))
            if (artifact_type is not None and found.get("artifactType") != artifact_type) or (
                last is not None and at <= last
            ):
                continue
            data = _compact(found)
            size += len(data) + 1
            if page and size > MAX_MANIFEST:
                return Referrers(_index_of(page), end)
            page.append(data)
            end = at
        return Referrers(_index_of(page), None)


def _free_bytes(root: str) -> int:
    """Bytes that are free on a disk for root, which others may not have: what does not fit into these fits for
    nobody.
    """
    found = os.statvfs(root)
    return found.f_bfree * found.f_frsize


def valid(name: str) -> bool:
    """Whether a text is a repository's name."""
    return len(name) <= MAX_NAME and REPOSITORY.fullmatch(name) is not None


def checked(name: str) -> str:
    """A repository's name. Raises ApiError for anything that is none."""
    if not valid(name):
        raise ApiError(400, "NAME_INVALID", "invalid repository name", detail={"name": name[:MAX_NAME]})
    return name


def parsed(text: str, *, code: str = "DIGEST_INVALID") -> Digest:
    """A digest. Raises ApiError for anything that is none."""
    try:
        return Digest.parse(text)
    except InvalidReference as e:
        raise ApiError(400, code, str(e))


def too_big() -> ApiError:
    """413 of a manifest."""
    return ApiError(413, "MANIFEST_INVALID", f"a manifest has at most {MAX_MANIFEST} bytes")


def _read_manifest(data: bytes, content_type: str) -> tuple[dict[str, Any], str]:
    """(manifest, media type). Raises ApiError for what is no manifest, or not what its header says."""
    try:
        manifest = loads(data)
    except ValueError as e:
        raise _invalid(f"not JSON: {e}")
    if not isinstance(manifest, dict):
        raise _invalid("a manifest is an object")
    inside = manifest.get("mediaType")
    named = content_type.partition(";")[0].strip().lower()
    if named and isinstance(inside, str) and inside and inside != named:
        raise _invalid(f"the Content-Type is {named[:100]}, the mediaType {inside[:100]}")
    media_type = (
        named
        or (inside if isinstance(inside, str) else "")
        or (IMAGE_INDEX if "manifests" in manifest else IMAGE_MANIFEST)
    )
    if media_type not in ACCEPT:
        raise _invalid(f"media type {media_type[:100]!r} is none of {', '.join(ACCEPT)}")
    if manifest.get("schemaVersion") != 2:
        raise _invalid("schemaVersion must be 2")
    try:
        check_fields(manifest, is_index=media_type in INDEXES)
    except ManifestError as e:
        raise _invalid(str(e))
    return manifest, media_type


def _invalid(message: str) -> ApiError:
    return ApiError(400, "MANIFEST_INVALID", f"manifest invalid: {message}")


def _parts(manifest: dict[str, Any], media_type: str) -> Iterator[tuple[dict[str, Any], str]]:
    """(descriptor, kind of link) of everything that must be there before a manifest is."""
    if media_type in INDEXES:
        descriptors, kind = manifest.get("manifests"), MANIFESTS
    else:
        layers = manifest.get("layers")
        if not isinstance(manifest.get("config"), dict) or not isinstance(layers, (list, type(None))):
            raise _invalid("it needs a config and a list of layers")
        descriptors, kind = [manifest["config"], *(layers or ())], BLOBS
    if not isinstance(descriptors, (list, type(None))) or not all(isinstance(d, dict) for d in descriptors or ()):
        raise _invalid("a list of descriptors was expected")
    for descriptor in descriptors or ():
        elsewhere = str(descriptor.get("mediaType", "")).startswith(NOT_DISTRIBUTED) or bool(descriptor.get("urls"))
        if not elsewhere:
            yield descriptor, kind


def _subject(manifest: dict[str, Any]) -> Digest | None:
    subject = manifest.get("subject")
    if subject is None:
        return None
    if not isinstance(subject, dict):
        raise _invalid("subject must be a descriptor")
    return parsed(str(subject.get("digest")), code="MANIFEST_INVALID")


def _referrer(manifest: dict[str, Any], media_type: str, digest: Digest, size: int) -> dict[str, Any]:
    """The descriptor under which a manifest is listed as a referrer (distribution-spec, "Listing Referrers").

    Raises ApiError for types and annotations that no client could read in it.
    """
    config = manifest.get("config")
    config_type = config.get("mediaType") if isinstance(config, dict) and media_type not in INDEXES else None
    artifact_type = manifest.get("artifactType") or config_type
    annotations = manifest.get("annotations") or {}
    if not isinstance(artifact_type, (str, type(None))):
        raise _invalid("artifactType must be a text")
    if not isinstance(annotations, dict) or not all(isinstance(value, str) for value in annotations.values()):
        raise _invalid("annotations must be texts")
    descriptor = {
        "mediaType": media_type,
        "digest": str(digest),
        "size": size,
        "artifactType": artifact_type,
        "annotations": annotations,
    }
    return {key: value for key, value in descriptor.items() if value}


def _page(names: list[str], count: int | None, last: str | None) -> Page:
    after = names if last is None else [name for name in names if name > last]
    count = PAGE if count is None else min(count, PAGE)
    return Page(after[:count], len(after) > count > 0)


def _compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _index_of(descriptors: list[bytes]) -> bytes:
    return (
        _compact({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []})[:-2] + b",".join(descriptors) + b"]}"
    )
