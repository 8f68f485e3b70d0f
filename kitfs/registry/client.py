"""A client of OCI registries: repositories with their manifests, blobs and referrers.

Follows distribution-spec v1.1. ``RegistryClient`` holds one httpx.Client for all threads, composed here: auth flow →
retry → routed connections. ``Repository`` asks the mirrors of its registry in order and then the registry itself;
when all fail, one error names each cause. Nothing is cached but tokens and redirect targets. Threading: every method
from any thread.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from http.cookiejar import CookieJar
from typing import Any, Final, TypeVar

import httpx

from kitfs.content import Hints
from kitfs.errors import (
    IntegrityError,
    InvalidReference,
    KitfsError,
    ManifestError,
    NotFound,
    RegistryError,
    UsageError,
)
from kitfs.metrics import Counters
from kitfs.oci.manifest import ACCEPT, IMAGE_INDEX, MAX_MANIFEST, Descriptor, IndexManifest, check_media_type
from kitfs.oci.names import LOCAL, TAG, Digest, Reference, api_host
from kitfs.oci.referrers import EMPTY, entry_of, listing, omitting, subject_of, tag_of
from kitfs.registry.addresses import AddressScope, answered_from, scope_of_name
from kitfs.registry.auth import RegistryAuth, Tokens
from kitfs.registry.blob import RemoteBlob
from kitfs.registry.credentials import Credential, Credentials, Given
from kitfs.registry.early_answer import DuplexTransport
from kitfs.registry.http import LAST_PORT, MAX_REDIRECTS, REDIRECTS, Endpoint, _url, combined
from kitfs.registry.http_errors import (
    Broken,
    SpeaksTls,
    asks_for_tls,
    check_encoding,
    failure,
    host_of,
    mapped,
    read_capped,
    read_error,
    shown,
)
from kitfs.registry.options import ClientOptions
from kitfs.registry.proxies import is_loopback
from kitfs.registry.refusals import manifest_refusal
from kitfs.registry.retry import CONNECT_BUDGET, RetryTransport
from kitfs.registry.tls_probe import speaks_tls
from kitfs.registry.upload import CHUNK, Upload
from kitfs.registry.upload_body import Body, Read
from kitfs.registry.upload_methods import Lessons

MAX_PAGES: Final = 64  # of referrers
MAX_TAG_PAGES: Final = 1000
MAX_TAGS: Final = 1_000_000
IDLE_PAGES: Final = 16  # that may bring no new tag, one after the other


BODY_ATTEMPTS: Final = 3  # of a small body that breaks off
T = TypeVar("T")


class RegistryClient:
    """Makes Repositories; see the module."""

    def __init__(
        self,
        options: ClientOptions,
        credentials: Credentials,
        *,
        counters: Counters,
        log: logging.Logger,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.options: Final = options
        self.counters: Final = counters
        self.log: Final = log
        self._credentials = credentials
        self._tokens = Tokens()
        self.lessons: Final = Lessons()
        self._secure: set[bytes] = set()  # netlocs on loopback that turned out to speak TLS
        self._probed: set[bytes] = set()  # netlocs that were asked whether they do
        self._scopes: dict[str, AddressScope] = {}  # of the addresses of endpoints, by scheme and host
        timeout = httpx.Timeout(
            options.read_timeout, connect=min(options.connect_timeout, options.read_timeout), pool=None
        )
        self._http = httpx.Client(
            transport=RetryTransport(transport or DuplexTransport(options), counters),
            timeout=timeout,
            headers={"User-Agent": options.user_agent, "Accept-Encoding": "identity"},
            cookies=_NoCookies(),
            follow_redirects=False,
            trust_env=False,
        )

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def repository(self, reference: Reference) -> Repository:
        """The repository of a reference.

        One that a kit names (``Reference.held_by``) leads to addresses of this machine or this link only from a
        registry that is on one too; mirrors are the user's choice. Raises NotFound when it names no registry,
        UsageError for one that no URL can hold.
        """
        if reference.registry == LOCAL:
            raise NotFound(
                f"{reference.display} is not in the store, and names no registry to ask (write registry/repository:tag)"
            )
        name, registry = reference.repository, reference.registry
        mirrors = self.options.mirrors.get(registry, ())
        patience = CONNECT_BUDGET / (len(mirrors) + 1)
        endpoints = [self._endpoint(url.rstrip("/"), name, patience=patience) for url in mirrors]
        endpoint = self._endpoint(self._home(registry), name, patience=patience, host=api_host(registry))
        if reference.named_by not in ("", registry):
            endpoint = replace(endpoint, led_from=self.address_scope(self._home(reference.named_by)))
        return Repository(self, name, (*endpoints, endpoint))

    def _home(self, registry: str) -> str:
        """The URL of a registry."""
        host = api_host(registry)
        plain = is_loopback(_url(f"http://{host}").host) if self.options.plain_http is None else self.options.plain_http
        return f"{'http' if plain else 'https'}://{host}"

    def address_scope(self, base: str) -> AddressScope:
        """The scope of the addresses that the host of a URL has answered from; before it did, what the URL itself says.

        A host that answers from addresses of several scopes is taken for an ordinary one: its name is not to be
        relied on.
        """
        url = _url(base)
        return self._scopes.get(_origin(url)) or scope_of_name(url.raw_host.decode("ascii", "replace")) or "global"

    def _endpoint(self, url: str, name: str, *, patience: float, host: str = "") -> Endpoint:
        """``host`` as the reference spells it, with a port that the scheme implies: so it stands in credential
        files.
        """
        parsed = _url(url)
        host = host or host_of(parsed)
        credentials = self._credentials
        if parsed.userinfo:
            credentials = Given(Credential(parsed.username, parsed.password))
            url = str(parsed.copy_with(userinfo=b"")).rstrip("/")  # so that it stands in no message
        auth = RegistryAuth(
            host, f"repository:{name}:pull", credentials, self._tokens, plain_http=bool(self.options.plain_http)
        )
        return Endpoint(f"{url}/v2/{name}", host, auth, patience)

    def send(
        self, endpoint: Endpoint, method: str, url: str | httpx.URL, headers: dict[str, str], what: str,
        *, body: bytes | Body | None = None, repeat: bool = True,
    ) -> httpx.Response:  # fmt: skip
        """An answer whose body is still to be read, after redirects. Credentials stay with the endpoint's own host.

        A ``Body`` goes out once, but for redirects and refused tokens; ``repeat`` False: so does everything else. A
        registry on loopback that turns out to speak TLS is spoken to over TLS from then on, unless ``plain_http`` was
        given. Raises Unavailable when there is none, Unauthorized when no token can be had.
        """
        home, at = self._spoken(httpx.URL(endpoint.base)), self._spoken(httpx.URL(url))
        try:
            return self._followed(endpoint, home, method, at, headers, what, body, repeat)
        except (SpeaksTls, Broken) as e:
            if self._spoken(home) == home and not (isinstance(e, SpeaksTls) and self._secured(home)):
                raise
        return self._followed(endpoint, self._spoken(home), method, self._spoken(at), headers, what, body, repeat)

    def _spoken(self, url: httpx.URL) -> httpx.URL:
        """A URL with the scheme that its server turned out to speak."""
        return url.copy_with(scheme="https") if url.scheme == "http" and url.netloc in self._secure else url

    def _secured(self, home: httpx.URL) -> bool:
        """Speak TLS to a server on loopback from now on, and say whether that may be: plain HTTP was the default
        there.
        """
        if home.scheme != "http" or self.options.plain_http is not None or not is_loopback(home.host):
            return False
        self._secure.add(home.netloc)
        return True

    def _probe(self, home: httpx.URL, error: httpx.TransportError) -> bool:
        """Whether a server that closed the connection and never said a word speaks TLS; it is asked once."""
        if (
            isinstance(error, httpx.RemoteProtocolError)
            and "disconnected" not in str(error)
            and "TLS" not in str(error)
        ):
            return False
        if self.options.proxy or home.netloc in self._probed or _origin(home) in self._scopes:
            return False
        self._probed.add(home.netloc)
        may = home.scheme == "http" and self.options.plain_http is None and is_loopback(home.host)
        return may and speaks_tls(home.host, home.port or 80) and self._secured(home)

    def _followed(
        self, endpoint: Endpoint, home: httpx.URL, method: str, at: httpx.URL, headers: dict[str, str], what: str,
        body: bytes | Body | None, repeat: bool,
    ) -> httpx.Response:  # fmt: skip
        """``send``, after redirects. Raises SpeaksTls, Broken beside what it raises."""
        extensions: dict[str, Any] = {"connect_budget": endpoint.patience, "hopeless": lambda e: self._probe(home, e)}
        extensions |= {} if repeat else {"repeat": False}
        led_from = self.address_scope(str(home))  # for a URL that an earlier answer named
        if isinstance(body, Body):
            headers = headers | {"Content-Length": str(body.size)}
        leads = "leads"
        for _ in range(MAX_REDIRECTS + 1):
            if (at.port or 0) > LAST_PORT:  # getaddrinfo would take it modulo 65536
                raise RegistryError(f"{what}: {host_of(at)}: no such host or port", url=shown(at))
            same = _origin(at) == _origin(home)
            if at.scheme not in ("http", "https") or (home.scheme == "https" and at.scheme == "http"):
                raise RegistryError(f"{what}: {endpoint.host} {leads} to {at.scheme}:, away from TLS", url=shown(at))
            limit = endpoint.led_from if same else led_from
            try:
                with mapped(at, what):
                    request = self._http.build_request(
                        method,
                        at,
                        headers=headers,
                        content=body,
                        extensions=extensions | ({} if limit is None else {"led_from": limit}),
                    )
                    response = self._http.send(request, auth=endpoint.auth if same else None, stream=True)
            except Broken as e:
                if at.scheme == "http" and self.options.plain_http:
                    raise Broken(f"{e}; if it speaks TLS, leave out --plain-http", url=e.url)
                raise
            if response.status_code == 400 and at.scheme == "http":
                read_error(response)
                if asks_for_tls(response):
                    raise failure(response, what)
            led_from = answered_from(response)
            if same and self._scopes.setdefault(_origin(home), led_from) != led_from:
                self._scopes[_origin(home)] = "global"
            if response.status_code not in REDIRECTS or "Location" not in response.headers:
                return response
            response.close()
            leads = "redirects"
            with mapped(at, what):
                at = at.join(response.headers["Location"])
        raise RegistryError(f"{what}: {endpoint.host} redirects more than {MAX_REDIRECTS} times", url=endpoint.base)


class Repository:
    """One repository, by way of its mirrors and its registry. An Origin: resolve, manifest, blob, blob_bytes,
    referrers, exists.

    What changes it, and the list of its tags, passes the mirrors by: upload, put_manifest, delete_manifest, tags.
    """

    def __init__(self, client: RegistryClient, name: str, endpoints: tuple[Endpoint, ...]) -> None:
        self._client = client
        self._name = name
        self.endpoints: Final = endpoints

    def __repr__(self) -> str:
        return f"<Repository {self._name} at {', '.join(e.host for e in self.endpoints)}>"

    def resolve(self, identifier: str) -> Descriptor:
        """The descriptor that a tag or digest means now."""
        return self.manifest(identifier)[0]

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]:
        """A manifest or index by tag or digest, its digest checked. Raises NotFound, ManifestError, IntegrityError,
        RegistryError.
        """
        return self.each(lambda e: self._manifest(e, identifier))

    def _manifest(self, endpoint: Endpoint, identifier: str) -> tuple[Descriptor, bytes]:
        what = f"{self._name}{'@' if ':' in identifier else ':'}{identifier}"
        response, data = self._small(
            endpoint, f"{endpoint.base}/manifests/{identifier}", {"Accept": ", ".join(ACCEPT)}, MAX_MANIFEST, what
        )
        if len(data) > MAX_MANIFEST:
            raise ManifestError(f"{what}: {endpoint.host} sends a manifest of more than {MAX_MANIFEST} bytes")
        claimed = identifier if ":" in identifier else response.headers.get("Docker-Content-Digest", "")
        try:
            digest = Digest.parse(claimed)
        except InvalidReference:
            digest = Digest.of(data)
        _check(digest, data, f"{what}: the manifest that {endpoint.host} sends")
        media_type = media_type_of(response)
        check_media_type(data, media_type, f"{what}: the manifest that {endpoint.host} sends")
        return Descriptor(media_type, digest, len(data)), data

    def blob(self, descriptor: Descriptor) -> RemoteBlob:
        """A blob as a Source; nothing is asked until it is read."""
        return RemoteBlob(self._client, self.endpoints, descriptor)

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes:
        """A small blob, whole, its digest and size checked. Raises ManifestError when its descriptor says more than
        ``limit`` bytes.
        """
        if descriptor.size > limit:
            raise ManifestError(
                f"{descriptor.digest} is said to have {descriptor.size} bytes: more than {limit} is no config"
            )
        return self.each(lambda e: self._blob_bytes(e, descriptor))

    def _blob_bytes(self, endpoint: Endpoint, descriptor: Descriptor) -> bytes:
        what = f"{self._name}: blob {descriptor.digest}"
        _, data = self._small(endpoint, f"{endpoint.base}/blobs/{descriptor.digest}", {}, descriptor.size, what)
        if len(data) != descriptor.size:
            raise IntegrityError(
                f"{what} from {endpoint.host} does not have the {descriptor.size} bytes of its descriptor"
            )
        _check(descriptor.digest, data, f"{what} from {endpoint.host}")
        return data

    def exists(self, descriptor: Descriptor) -> bool:
        """Whether the repository has a blob (HEAD)."""

        def ask(endpoint: Endpoint) -> bool:
            what = f"{self._name}: blob {descriptor.digest}"
            response = self._client.send(endpoint, "HEAD", f"{endpoint.base}/blobs/{descriptor.digest}", {}, what)
            response.close()
            if not response.is_success and response.status_code != 404:
                response._content = b""  # noqa: SLF001 - the body of a HEAD
                raise failure(response, what)
            return response.is_success

        return self.each(ask)

    def referrers(self, digest: Digest, artifact_type: str | None = None) -> tuple[Descriptor, ...]:
        """What refers to a manifest: the referrers API with its pages, or the tag that stands in for it where there
        is none.
        """
        what = f"{self._name}: referrers of {digest}"

        def ask(endpoint: Endpoint) -> tuple[Descriptor, ...]:
            found: list[Descriptor] = []
            url: httpx.URL | None = httpx.URL(f"{endpoint.base}/referrers/{digest}")
            for _ in range(MAX_PAGES):
                if url is None:
                    break
                try:
                    response, data = self._small(endpoint, url, {"Accept": IMAGE_INDEX}, MAX_MANIFEST, what)
                except (NotFound, RegistryError) as e:
                    if not lacks(e):
                        raise
                    return _of_type(self._fallback(endpoint, digest), artifact_type)
                if media_type_of(response) not in (
                    IMAGE_INDEX,
                    "application/json",
                    "",
                ):  # 200 and a page for people: there is no such API
                    return _of_type(self._fallback(endpoint, digest), artifact_type)
                if len(data) > MAX_MANIFEST:
                    raise ManifestError(f"{what}: {endpoint.host} answers with more than {MAX_MANIFEST} bytes")
                found += IndexManifest.parse(data).manifests
                after = response.links.get("next", {}).get("url")
                with mapped(url, what):
                    url = url.join(after) if after else None
            return _of_type(found, artifact_type)

        return self.each(ask)

    def _fallback(self, endpoint: Endpoint, digest: Digest) -> tuple[Descriptor, ...]:
        """The index under the tag that distribution-spec's "Referrers Tag Schema" makes of a digest."""
        try:
            found, data = self._manifest(endpoint, tag_of(digest))
            # GitLab takes the tag for the digest, and returns the subject.
            return () if found.digest == digest else IndexManifest.parse(data).manifests
        except NotFound:
            return ()

    def upload(
        self, descriptor: Descriptor, read: Read, *, mount_from: Sequence[str] = (), hints: Hints | None = None,
        progress: Callable[[int], None] | None = None, chunk: int = CHUNK,
    ) -> str:  # fmt: skip
        """Bring a blob to the registry itself: "exists" there, "mounted" from one of ``mount_from`` (repositories of
        it), or "uploaded".

        ``read(offset)`` gives the blob's bytes from an offset on, in pieces, as often as it is asked. ``progress`` is
        told how many bytes more the registry has been sent, less than none when some must go again. ``hints`` lets
        a later call, of another process too, go on where this one broke off. Raises Unauthorized, RateLimited,
        Unavailable, RegistryError, IntegrityError when the bytes do not have their digest or are too few, StoreError
        when they cannot be read.
        """
        upload = Upload(
            self._client, self._pushing(), self._name, descriptor, read, chunk=chunk, hints=hints, progress=progress
        )
        return upload.run(mount_from)

    def put_manifest(self, identifier: str, media_type: str, data: bytes) -> Digest:
        """Bring a manifest or index to the registry itself, under a tag or its digest; returns the digest.

        Where the registry does not list the referrers of its subject itself, the tag that stands in for that is kept
        up (distribution-spec "Pushing Manifests with Subject"). Raises IntegrityError when the registry finds another
        digest, ManifestError for bytes that are no manifest, RegistryError (of which Unauthorized).
        """
        subject = subject_of(data)
        endpoint = self._pushing()
        digest, lists = self._put_manifest(endpoint, identifier, media_type, data)
        if subject is not None and not lists:
            self._relist(endpoint, subject, lambda index: listing(index, entry_of(media_type, digest, data)))
        return digest

    def _put_manifest(self, endpoint: Endpoint, identifier: str, media_type: str, data: bytes) -> tuple[Digest, bool]:
        """(digest, whether the registry lists it among the referrers of its subject)."""
        digest = Digest.parse(identifier) if ":" in identifier else Digest.of(data)
        what = f"{self._name}{'@' if ':' in identifier else ':'}{identifier}"
        _check(digest, data, f"{what}: the manifest to push")
        response = self._client.send(
            endpoint, "PUT", f"{endpoint.base}/manifests/{identifier}", {"Content-Type": media_type}, what, body=data
        )
        read_error(response)
        if not response.is_success:
            raise manifest_refusal(response, what)
        if not {"Docker-Content-Digest", "Location"} & {name.title() for name in response.headers}:
            self._look_again(endpoint, identifier, digest, what)
        try:
            stored = Digest.parse(response.headers.get("Docker-Content-Digest", digest))
        except InvalidReference as e:
            raise IntegrityError(f"{what}: {endpoint.host} has stored it as something else: {e}")
        _check(stored, data, f"{what}: the manifest that {endpoint.host} has stored")
        return digest, "OCI-Subject" in response.headers

    def _look_again(self, endpoint: Endpoint, identifier: str, digest: Digest, what: str) -> None:
        """Raise RegistryError when a manifest is not there although its PUT was answered with 2xx, but without a
        registry's headers.
        """
        try:
            found = self._manifest(endpoint, identifier)[0].digest
        except NotFound:
            found = None
        if found != digest:
            told = f"{what}: {endpoint.host} took the manifest and does not have it: it may not be a registry"
            raise RegistryError(told, url=shown(endpoint.base))

    def delete_manifest(self, identifier: str) -> None:
        """Delete a tag, or a manifest with all its tags by digest. Raises NotFound, RegistryError when the registry
        deletes none.
        """
        what = f"{self._name}{'@' if ':' in identifier else ':'}{identifier}"
        endpoint = self.endpoints[-1].scoped(f"repository:{self._name}:pull,delete")
        try:
            subject = subject_of(self._manifest(endpoint, identifier)[1]) if ":" in identifier else None
        except (ManifestError, IntegrityError):
            subject = None  # a manifest that cannot be read may be deleted all the same
        response = self._client.send(endpoint, "DELETE", f"{endpoint.base}/manifests/{identifier}", {}, what)
        read_error(response)
        if not response.is_success:
            raise failure(response, what)
        if subject is not None:
            self._relist(self._pushing(), subject, lambda index: omitting(index, Digest.parse(identifier)))

    def _relist(self, endpoint: Endpoint, subject: Digest, change: Callable[[bytes], bytes | None]) -> None:
        """Change the index that stands in for the referrers API, if there is one to change."""
        tag = tag_of(subject)
        try:
            found, index = self._manifest(endpoint, tag)
            index = EMPTY if found.digest == subject else index  # GitLab takes the tag for the digest
        except NotFound:
            index = EMPTY
        try:
            changed = change(index)
        except ManifestError as e:
            raise ManifestError(f"{self._name}:{tag}: {e}")
        if changed is not None:
            self._put_manifest(endpoint, tag, IMAGE_INDEX, changed)

    def tags(self) -> Iterator[str]:
        """The tags that the registry itself lists, page by page, each once.

        Raises NotFound, RegistryError, also for a list that has no end: too many tags or pages, or too many pages
        that bring nothing new.
        """
        what = f"{self._name}: tags"
        endpoint = self.endpoints[-1]
        seen: set[str] = set()
        idle = 0  # pages in a row without a new tag
        url: httpx.URL | None = httpx.URL(f"{endpoint.base}/tags/list")
        for _ in range(MAX_TAG_PAGES):
            if url is None:
                return
            response, data = self._small(endpoint, url, {}, MAX_MANIFEST, what)
            try:
                listed = json.loads(data)["tags"] or [] if len(data) <= MAX_MANIFEST else None
            except (ValueError, KeyError, TypeError, RecursionError):
                listed = None
            if not isinstance(listed, list):
                raise RegistryError(
                    f"{what}: {endpoint.host} answers with something else than tags", status=200, url=shown(url)
                )
            before = len(seen)
            for tag in listed:
                if isinstance(tag, str) and TAG.fullmatch(tag) and tag not in seen:
                    seen.add(tag)
                    yield tag
            idle = 0 if len(seen) > before else idle + 1
            if len(seen) > MAX_TAGS or idle == IDLE_PAGES:
                raise RegistryError(f"{what}: {endpoint.host} does not come to the end of its list", status=200)
            after = response.links.get("next", {}).get("url")
            with mapped(url, what):
                url = url.join(after) if after else None
        raise RegistryError(f"{what}: {endpoint.host} has more than {MAX_TAG_PAGES} pages of them", status=200)

    def _pushing(self) -> Endpoint:
        """The registry itself: mirrors are for pulling."""
        return self.endpoints[-1].scoped(f"repository:{self._name}:pull,push")

    def _small(
        self, endpoint: Endpoint, url: str | httpx.URL, headers: dict[str, str], limit: int, what: str
    ) -> tuple[httpx.Response, bytes]:
        """(response, body of at most ``limit`` + 1 bytes) of a GET that must answer 200; a body that breaks off is
        asked for again.
        """
        for attempt in range(1, BODY_ATTEMPTS + 1):
            response = self._client.send(endpoint, "GET", url, headers, what)
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

    def each(self, attempt: Callable[[Endpoint], T]) -> T:
        """The first endpoint's answer that is none of an error; when all fail the registry's own error, with every
        cause.
        """
        causes: list[KitfsError] = []
        for endpoint in self.endpoints:
            try:
                return attempt(endpoint)
            except UsageError:
                raise  # a certificate or a credential file that cannot be read: no endpoint mends it
            except KitfsError as e:
                causes.append(e)
        raise combined(causes, [e.host for e in self.endpoints])


def media_type_of(response: httpx.Response) -> str:
    """The Content-Type without its parameters."""
    return str(response.headers.get("Content-Type", "")).partition(";")[0].strip()


def lacks(error: NotFound | RegistryError) -> bool:
    """Whether an answer says that the registry does not do what was asked for: 501, and 4xx but a limit of time or
    number.
    """
    status = error.status if isinstance(error, RegistryError) else 404
    return status == 501 or (400 <= status < 500 and status not in (408, 429))


def _of_type(found: Sequence[Descriptor], artifact_type: str | None) -> tuple[Descriptor, ...]:
    return tuple(d for d in found if artifact_type is None or d.artifact_type == artifact_type)


class _NoCookies(CookieJar):
    """Keeps no cookie and sends none: a registry's cookies would go to every other one of its host, and grow without
    end.
    """

    def extract_cookies(self, response: object, request: object) -> None:
        """Nothing."""

    def set_cookie(self, cookie: object) -> None:
        """Nothing."""


def _origin(url: httpx.URL) -> str:
    """scheme://host[:port], without a port that the scheme implies."""
    return f"{url.scheme}://{host_of(url)}"


def _check(digest: Digest, data: bytes, what: str) -> None:
    if not digest.matches(data):
        raise IntegrityError(f"{what} does not have its digest {digest}")
