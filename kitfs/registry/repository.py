"""Read and write a repository of a registry: its manifests, blobs, tags and referrers.

Follows distribution-spec v1.1. Reads try the mirrors of the registry in order, and then the registry itself. If all
fail, one error names every cause. Writes and the list of tags use only the registry. Threading: any thread may call
every method.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final, TypeVar

import httpx

from kitfs.content import Hints, ReadFrom
from kitfs.errors import (
    IntegrityError,
    InvalidReference,
    KitfsError,
    ManifestError,
    NotFound,
    RegistryError,
    UsageError,
)
from kitfs.oci.manifest import ACCEPT, IMAGE_INDEX, MAX_MANIFEST, Descriptor, IndexManifest, check_media_type
from kitfs.oci.names import TAG, Digest
from kitfs.oci.referrers import EMPTY, entry_of, subject_of, tag_of, with_entry, without_entry
from kitfs.registry.blob import BlobRequest, RemoteBlob, RequestAtRedirect
from kitfs.registry.http import Endpoint, HttpClient, combined, next_page
from kitfs.registry.http_errors import Broken, check_encoding, failure, mapped, read_capped, read_error, shown
from kitfs.registry.refusals import manifest_refusal
from kitfs.registry.upload import CHUNK, Upload
from kitfs.registry.upload_methods import Lessons

MAX_PAGES: Final = 64  # most pages of a list of referrers
MAX_TAG_PAGES: Final = 1000
MAX_TAGS: Final = 1_000_000
MAX_IDLE_PAGES: Final = 16  # pages in a row without a new tag
BODY_ATTEMPTS: Final = 3  # attempts to read a small body that breaks off
T = TypeVar("T")


class Repository:
    """A repository with its mirrors. It is a ``content.Repository`` and a ``content.Destination``."""

    def __init__(self, http: HttpClient, name: str, endpoints: tuple[Endpoint, ...], lessons: Lessons) -> None:
        self._http = http
        self._name = name
        self._lessons = lessons
        self.endpoints: Final = endpoints

    def __repr__(self) -> str:
        return f"<Repository {self._name} at {', '.join(e.host for e in self.endpoints)}>"

    def without_mirrors(self) -> Repository:
        """Return this repository without its mirrors."""
        return Repository(self._http, self._name, self.endpoints[-1:], self._lessons)

    def apart(self) -> tuple[Repository, ...]:
        """Return one repository for each endpoint: for each mirror in order, and last for the registry.

        These repositories return what their endpoint has under a tag, so the caller must verify it.
        """
        each = (replace(one, resolves=True) for one in self.endpoints)
        return tuple(Repository(self._http, self._name, (one,), self._lessons) for one in each)

    def resolve(self, identifier: str) -> Descriptor:
        """Return the descriptor of a tag or digest. Raises the errors of ``manifest``."""
        return self.manifest(identifier)[0]

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]:
        """Fetch a manifest or index by tag or digest, and verify its digest.

        A tag is resolved only by the registry itself, and by mirrors that may do so (``Endpoint.resolves``).

        Raises NotFound, ManifestError, IntegrityError or RegistryError.
        """
        may_answer = tuple(e for e in self.endpoints if ":" in identifier or e.resolves)
        return self._first(lambda e: self._manifest(e, identifier), may_answer)

    def _manifest(self, endpoint: Endpoint, identifier: str) -> tuple[Descriptor, bytes]:
        what = self._named(identifier)
        response, data = self._small(
            endpoint, f"{endpoint.base}/manifests/{identifier}", {"Accept": ", ".join(ACCEPT)}, MAX_MANIFEST, what
        )
        if len(data) > MAX_MANIFEST:
            raise ManifestError(f"{what}: the manifest from {endpoint.host} is larger than {MAX_MANIFEST} bytes")
        claimed = identifier if ":" in identifier else response.headers.get("Docker-Content-Digest", "")
        try:
            digest = Digest.parse(claimed)
        except InvalidReference:
            digest = Digest.of(data)
        _verify(digest, data, f"{what}: the manifest from {endpoint.host}")
        media_type = media_type_of(response)
        check_media_type(data, media_type, f"{what}: the manifest from {endpoint.host}")
        return Descriptor(media_type, digest, len(data)), data

    def blob(self, descriptor: Descriptor) -> RemoteBlob:
        """Return a blob as a Source. No request is sent until it is read."""
        what = f"blob {descriptor.digest}"

        def request(endpoint: Endpoint, headers: dict[str, str]) -> httpx.Response:
            url = f"{endpoint.base}/blobs/{descriptor.digest}"
            response = self._http.send(endpoint, "GET", url, headers, what)
            if response.status_code in (200, 206):
                return response
            read_error(response)
            if response.status_code == 416:
                raise IntegrityError(f"{what}: {endpoint.host} has fewer than the declared {descriptor.size} bytes")
            raise failure(response, what)

        known: BlobRequest = RequestAtRedirect(self._http, request, what)
        timeout, log = self._http.options.read_timeout, self._http.log
        return RemoteBlob(known, self.endpoints, descriptor, what=what, timeout=timeout, log=log)

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes:
        """Fetch a small blob, and verify its digest and size.

        Raises ManifestError if its descriptor declares more than ``limit`` bytes, and the errors of ``manifest``.
        """
        if descriptor.size > limit:
            raise ManifestError(
                f"{descriptor.digest} declares {descriptor.size} bytes; the limit for a config is {limit}"
            )
        return self._first(lambda e: self._blob_bytes(e, descriptor))

    def _blob_bytes(self, endpoint: Endpoint, descriptor: Descriptor) -> bytes:
        what = f"{self._name}: blob {descriptor.digest}"
        _, data = self._small(endpoint, f"{endpoint.base}/blobs/{descriptor.digest}", {}, descriptor.size, what)
        if len(data) != descriptor.size:
            raise IntegrityError(f"{what} from {endpoint.host} does not have the declared {descriptor.size} bytes")
        _verify(descriptor.digest, data, f"{what} from {endpoint.host}")
        return data

    def exists(self, descriptor: Descriptor) -> bool:
        """Return whether the repository has a blob. Raises RegistryError."""
        what = f"{self._name}: blob {descriptor.digest}"

        def ask(endpoint: Endpoint) -> bool:
            response = self._http.head(endpoint, f"{endpoint.base}/blobs/{descriptor.digest}", what)
            if not response.is_success and response.status_code != 404:
                raise failure(response, what)
            return response.is_success

        return self._first(ask)

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> tuple[Descriptor, ...]:
        """Return the manifests whose subject is ``digest``, optionally only those of one artifact type.

        They are read from the referrers API, or from the referrers tag if the registry does not have that API. Raises
        ManifestError, IntegrityError or RegistryError.
        """
        found = self._first(lambda e: self._referrers(e, digest))
        return tuple(d for d in found if artifact_type is None or d.artifact_type == artifact_type)

    def _referrers(self, endpoint: Endpoint, digest: Digest) -> tuple[Descriptor, ...]:
        what = f"{self._name}: referrers of {digest}"
        found: list[Descriptor] = []
        url: httpx.URL | None = httpx.URL(f"{endpoint.base}/referrers/{digest}")
        for _ in range(MAX_PAGES):
            if url is None:
                break
            try:
                response, data = self._small(endpoint, url, {"Accept": IMAGE_INDEX}, MAX_MANIFEST, what)
            except (NotFound, RegistryError) as e:
                if not is_unsupported(e):
                    raise
                return self._tagged_referrers(endpoint, digest)
            if media_type_of(response) not in (IMAGE_INDEX, "application/json", ""):
                return self._tagged_referrers(endpoint, digest)  # 200 with a web page: the registry lacks this API
            if len(data) > MAX_MANIFEST:
                raise ManifestError(f"{what}: the list from {endpoint.host} is larger than {MAX_MANIFEST} bytes")
            found += IndexManifest.parse(data).manifests
            url = next_page(response, url, what)
        return tuple(found)

    def _tagged_referrers(self, endpoint: Endpoint, digest: Digest) -> tuple[Descriptor, ...]:
        """Return the referrers in the index that has the referrers tag of a digest ("Referrers Tag Schema")."""
        try:
            found, data = self._manifest(endpoint, tag_of(digest))
            # GitLab interprets this tag as the digest, and returns the subject.
            return () if found.digest == digest else IndexManifest.parse(data).manifests
        except NotFound:
            return ()

    def upload(
        self, descriptor: Descriptor, read: ReadFrom, *, mount_from: Sequence[str] = (), hints: Hints | None = None,
        progress: Callable[[int], None] | None = None, chunk: int = CHUNK,
    ) -> str:  # fmt: skip
        """Upload a blob to the registry itself.

        Returns "exists" if the registry already has the blob, "mounted" if the registry mounted it from a repository in
        ``mount_from`` (other repositories of this registry), otherwise "uploaded". ``read(offset)`` yields the blob's
        bytes from an offset on; it may be called several times. ``progress`` is called with the number of bytes that
        were sent since the last call. The number is negative if bytes must be sent again. ``hints``: records by which a
        later call, even in another process, resumes an interrupted upload.

        Raises Unauthorized, RateLimited, Unavailable or RegistryError, IntegrityError if the bytes do not match their
        digest or are too few, and StoreError if they cannot be read.
        """
        upload = Upload(
            self._http, self._pushing(), self._name, descriptor, read, self._lessons,
            chunk=chunk, hints=hints, progress=progress,
        )  # fmt: skip
        return upload.run(mount_from)

    def put_manifest(self, identifier: str, media_type: str, data: bytes) -> Digest:
        """Push a manifest or index to the registry itself, under a tag or its digest, and return the digest.

        If the manifest has a subject and the registry has no referrers API, the subject's referrers tag is updated
        (distribution-spec "Pushing Manifests with Subject"). Raises RegistryError or Unauthorized, IntegrityError if
        the registry computes another digest, and ManifestError for bytes that are not a manifest.
        """
        subject = subject_of(data)
        endpoint = self._pushing()
        digest, lists = self._put_manifest(endpoint, identifier, media_type, data)
        if subject is not None and not lists:
            self._change_tagged_referrers(
                endpoint, subject, lambda index: with_entry(index, entry_of(media_type, digest, data))
            )
        return digest

    def _put_manifest(self, endpoint: Endpoint, identifier: str, media_type: str, data: bytes) -> tuple[Digest, bool]:
        """Push a manifest. Return its digest, and whether the registry lists it among its subject's referrers."""
        digest = Digest.parse(identifier) if ":" in identifier else Digest.of(data)
        what = self._named(identifier)
        _verify(digest, data, f"{what}: the manifest to push")
        response = self._http.send(
            endpoint, "PUT", f"{endpoint.base}/manifests/{identifier}", {"Content-Type": media_type}, what, body=data
        )
        read_error(response)
        if not response.is_success:
            raise manifest_refusal(response, what)
        if not {"Docker-Content-Digest", "Location"} & {name.title() for name in response.headers}:
            self._check_pushed(endpoint, identifier, digest, what)
        try:
            stored = Digest.parse(response.headers.get("Docker-Content-Digest", digest))
        except InvalidReference as e:
            raise IntegrityError(f"{what}: {endpoint.host} stored the manifest under an invalid digest: {e}")
        _verify(stored, data, f"{what}: the manifest that {endpoint.host} stored")
        return digest, "OCI-Subject" in response.headers

    def _check_pushed(self, endpoint: Endpoint, identifier: str, digest: Digest, what: str) -> None:
        """Raise RegistryError if a manifest does not exist although its PUT returned 2xx.

        This check is for servers whose response lacks the headers of a registry.
        """
        try:
            found = self._manifest(endpoint, identifier)[0].digest
        except NotFound:
            found = None
        if found != digest:
            text = f"{what}: {endpoint.host} accepted the manifest but does not have it: it may not be a registry"
            raise RegistryError(text, url=shown(endpoint.base))

    def delete_manifest(self, identifier: str) -> None:
        """Delete a tag, or delete a manifest by its digest together with all its tags.

        Raises NotFound, and RegistryError if the registry does not support deletion.
        """
        what = self._named(identifier)
        endpoint = self.endpoints[-1].scoped(f"repository:{self._name}:pull,delete")
        try:
            subject = subject_of(self._manifest(endpoint, identifier)[1]) if ":" in identifier else None
        except (ManifestError, IntegrityError):
            subject = None  # a manifest that cannot be read can still be deleted
        response = self._http.send(endpoint, "DELETE", f"{endpoint.base}/manifests/{identifier}", {}, what)
        read_error(response)
        if not response.is_success:
            raise failure(response, what)
        if subject is not None:
            self._change_tagged_referrers(
                self._pushing(), subject, lambda index: without_entry(index, Digest.parse(identifier))
            )

    def _change_tagged_referrers(
        self, endpoint: Endpoint, subject: Digest, change: Callable[[bytes], bytes | None]
    ) -> None:
        """Change the index under a subject's referrers tag. If ``change`` returns None, the index is not changed."""
        tag = tag_of(subject)
        try:
            found, index = self._manifest(endpoint, tag)
            index = EMPTY if found.digest == subject else index  # GitLab interprets this tag as the digest
        except NotFound:
            index = EMPTY
        try:
            changed = change(index)
        except ManifestError as e:
            raise ManifestError(f"{self._name}:{tag}: {e}")
        if changed is not None:
            self._put_manifest(endpoint, tag, IMAGE_INDEX, changed)

    def tags(self, *, max_pages: int = MAX_TAG_PAGES) -> Iterator[str]:
        """Yield the tags that the registry itself lists, page by page. Each tag is yielded once.

        Raises NotFound or RegistryError. RegistryError is also raised for a list that seems endless: too many tags, too
        many pages, or too many pages in a row without a new tag.
        """
        what = f"{self._name}: tags"
        endpoint = self.endpoints[-1]
        seen: set[str] = set()
        idle = 0  # pages in a row without a new tag
        url: httpx.URL | None = httpx.URL(f"{endpoint.base}/tags/list")
        for _ in range(max_pages):
            if url is None:
                return
            response, data = self._small(endpoint, url, {}, MAX_MANIFEST, what)
            before = len(seen)
            for tag in _tags_in(data, f"{what}: {endpoint.host}", url):
                if tag not in seen:
                    seen.add(tag)
                    yield tag
            idle = 0 if len(seen) > before else idle + 1
            if len(seen) > MAX_TAGS or idle == MAX_IDLE_PAGES:
                raise RegistryError(f"{what}: {endpoint.host} returns an endless list of tags", status=200)
            url = next_page(response, url, what)
        raise RegistryError(f"{what}: {endpoint.host} returns more than {max_pages} pages of tags", status=200)

    def _pushing(self) -> Endpoint:
        """Return the endpoint of the registry itself, with tokens that allow pushing. Mirrors are only for pulling."""
        return self.endpoints[-1].scoped(f"repository:{self._name}:pull,push")

    def _named(self, identifier: str) -> str:
        return f"{self._name}{'@' if ':' in identifier else ':'}{identifier}"

    def _small(
        self, endpoint: Endpoint, url: str | httpx.URL, headers: dict[str, str], limit: int, what: str
    ) -> tuple[httpx.Response, bytes]:
        """GET a small body, and return the response and at most ``limit`` + 1 bytes of its body.

        A body that breaks off is requested again. Raises an error for any status except 200.
        """
        for attempt in range(1, BODY_ATTEMPTS + 1):
            response = self._http.send(endpoint, "GET", url, headers, what)
            if response.status_code != 200:
                read_error(response)
                raise failure(response, what)
            try:
                check_encoding(response, what)
                with mapped(response.request.url, what):
                    return response, read_capped(response, limit)
            except Broken:
                if attempt == BODY_ATTEMPTS:
                    raise
            finally:
                response.close()
        raise AssertionError("unreachable")

    def _first(self, attempt: Callable[[Endpoint], T], endpoints: tuple[Endpoint, ...] = ()) -> T:
        """Return the result of the first endpoint that succeeds, of all endpoints or of ``endpoints``.

        If all fail, raises the registry's own error with the cause of every endpoint.
        """
        causes: list[KitfsError] = []
        asked = endpoints or self.endpoints
        for endpoint in asked:
            try:
                return attempt(endpoint)
            except UsageError:
                raise  # a certificate or credential file cannot be read, so every endpoint would fail
            except KitfsError as e:
                causes.append(e)
        raise combined(causes, asked)


def media_type_of(response: httpx.Response) -> str:
    """Return the Content-Type without its parameters."""
    return str(response.headers.get("Content-Type", "")).partition(";")[0].strip()


def is_unsupported(error: NotFound | RegistryError) -> bool:
    """Return whether an error means that the registry lacks a feature.

    Its status is then 501, or any 4xx except those for timeouts and rate limits.
    """
    status = error.status if isinstance(error, RegistryError) else 404
    return status == 501 or (400 <= status < 500 and status not in (408, 429))


def _tags_in(data: bytes, where: str, url: httpx.URL) -> list[str]:
    """Return the valid tags of one page. Raises RegistryError for a page that is not a list of tags."""
    try:
        listed = json.loads(data)["tags"] or [] if len(data) <= MAX_MANIFEST else None
    except (ValueError, KeyError, TypeError, RecursionError):
        listed = None
    if not isinstance(listed, list):
        raise RegistryError(f"{where} did not return a list of tags", status=200, url=shown(url))
    return [tag for tag in listed if isinstance(tag, str) and TAG.fullmatch(tag)]


def _verify(digest: Digest, data: bytes, what: str) -> None:
    if not digest.matches(data):
        raise IntegrityError(f"{what} does not match its digest {digest}")
