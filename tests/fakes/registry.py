"""The in-memory OCI registry of the tests, as a server on a socket or as an ``httpx.MockTransport``.

    with FakeRegistry() as registry:                       # listens on 127.0.0.1; registry.host, registry.url
        digest = registry.put_blob("team/kit", b"...")     # bytes, or a Path that is served from disk
        registry.put_manifest("team/kit", manifest, tag="v1")
        registry.put_kit("team/kit", kits.build([...]), "v1")          # returns the reference
        registry.fail("/blobs/", Cut(100_000), times=1)     # a fault of tests.fakes.faults
        ...
        assert registry.moved(digest) <= len(blob)          # body bytes sent; registry.served() has every request

    FakeRegistry().transport()                             # the same without sockets: cut and stalled bodies raise
    httpx errors at once

Downloads: ``redirect_blobs_to(cdn)`` redirects blobs (307) to signed locations on another FakeRegistry. The locations
are valid until ``expire_locations`` is called. ``tags_per_page`` is the number of tags on one page of a list. If
``referrers_api`` is False, there is only the tag that replaces the referrers API.

Credentials: ``require_basic`` and ``require_token`` require credentials. Related settings are ``expire_tokens``,
``identity_tokens`` and another token server.

Address: ``prefix`` moves /v2/ below a path, ``tls`` is a context for TLS, and ``start`` listens on ``address``.
``stop`` and ``start`` keep port and content.

Pushes follow distribution-spec, in one request or in chunks in order. Upload sessions exist until ``lose_uploads`` is
called, even after a connection broke. ``refuse_bodies`` and ``refuse_chunks`` refuse one way of sending. ``body_limit``
is the limit of a proxy (413). If ``stateless`` is False, requests to a session need the query of its location. If
``mounts`` is False, no blob is mounted. ``chunk_min`` is the value of OCI-Chunk-Min-Length.

Any thread may call the methods. Every connection has its own thread, and all threads have ended when ``stop`` returns.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import mmap
import re
import secrets
import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import httpx

from tests import kits
from tests.fakes.faults import Answer, Broken, Deaf, Fault, IgnoreRange, Status, error

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
Content = bytes | Path
_PATH = re.compile(r"/v2/(?P<name>.+)/(?P<kind>manifests|blobs|referrers|tags)/(?P<what>[^/]+)")
_UPLOADS = re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<id>[^/]*)")
_STATE = "_state=a%2Bb+c%3D%3D"  # the query of every session's location, which a client must return unchanged


@dataclass
class Served:
    """A request and its outcome.

    ``range`` is the requested range, or "" if none was requested. ``sent`` is the number of bytes of the response's
    body that were sent, even if the response broke off. ``heard`` is the number of received bytes of the request's
    body. ``connection`` is the number of the connection, in the order of arrival.
    """

    method: str
    path: str
    range: str
    headers: dict[str, str] = field(repr=False)
    connection: int = 0
    status: int = 0
    sent: int = 0
    heard: int = 0


@dataclass
class Rule:
    """A fault and the requests to which it applies. ``hits`` is the number of requests to which it was applied."""

    pattern: re.Pattern[str]
    fault: Fault
    method: str
    times: int | None
    hits: int = 0


@dataclass
class _Repository:
    blobs: dict[str, Content] = field(default_factory=dict)
    manifests: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)


@dataclass
class _Door:
    """The access control of a registry.

    If ``realm`` is None, requests need Basic credentials. Otherwise they need a token. ``users`` (None: everyone) and
    holders of an ``identity`` token can get tokens.
    """

    users: dict[str, str] | None
    realm: Callable[[], str] | None = None
    identity: frozenset[str] = frozenset()
    expires_in: int = 300
    tokens: set[str] = field(default_factory=set)
    granted: dict[str, dict[str, set[str]]] = field(default_factory=dict)  # token → resource → actions

    def knows(self, authorization: str) -> bool:
        scheme, _, rest = authorization.partition(" ")
        if scheme.lower() != "basic" or self.users is None:
            return False
        name, _, password = base64.b64decode(rest).decode().partition(":")
        return self.users.get(name) == password

    def opens(self, authorization: str) -> bool:
        return authorization.removeprefix("Bearer ") in self.tokens if self.realm else self.knows(authorization)

    def allows(self, authorization: str, needed: str) -> bool:
        """Return whether a token's scope permits a change. Every valid token permits reads."""
        granted = self.granted.get(authorization.removeprefix("Bearer "), {})
        return self.realm is None or all(
            actions <= granted.get(resource, set()) for resource, actions in _scopes(needed).items()
        )


def _scopes(text: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for scope in text.split():
        resource, _, actions = scope.rpartition(":")
        found.setdefault(resource, set()).update(actions.split(","))
    return found


class FakeRegistry:
    """An in-memory registry. The module's docstring explains its use."""

    def __init__(self, *, prefix: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.prefix = prefix
        self.address = "127.0.0.1"
        self.referrers_api = True
        self.mounts = True
        self.chunk_min = 0
        self.tags_per_page = 0
        self.body_limit = 0
        self.stateless = False
        self._tls = tls
        self._lock = threading.Lock()
        self._repositories: dict[str, _Repository] = {}
        self._rules: list[Rule] = []
        self._served: list[Served] = []
        self._cdn: FakeRegistry | None = None
        self._uses: int | None = None
        self._locations: dict[
            str, tuple[Content, int | None]
        ] = {}  # signed path → what a CDN serves there, and how many times more
        self._door: _Door | None = None
        self._desk: _Door | None = None  # the access control whose tokens this server returns
        self._server: _Server | None = None
        self._port = 0
        self._maps: dict[Path, memoryview] = {}
        self._refused: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<FakeRegistry {self.host} {'running' if self._server else 'stopped'}, {len(self._served)} requests>"

    def __enter__(self) -> FakeRegistry:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- address

    @property
    def host(self) -> str:
        """Return host:port, or "registry.test" for a registry without a socket."""
        return f"{self.address}:{self._port}" if self._port else "registry.test"

    @property
    def url(self) -> str:
        """Return scheme://host:port and the prefix, for ``--mirror``."""
        return f"{'https' if self._tls or not self._port else 'http'}://{self.host}{self.prefix}"

    def start(self) -> None:
        """Listen. After ``stop``, the port is the same as before."""
        self._server = _Server((self.address, self._port), self, self._tls)
        self._port = self._server.server_address[1]
        self._server.begin()

    def stop(self) -> None:
        """Close the port and every connection. Later requests are refused."""
        if self._server is not None:
            server, self._server = self._server, None
            server.end()

    def transport(self) -> httpx.MockTransport:
        """Return a transport that serves the registry without a socket, under every host name."""
        return httpx.MockTransport(self._mock)

    # -- content

    def put_blob(self, repository: str, content: Content, *, digest: str = "") -> str:
        """Store a blob under its digest, or under the given false digest, and return the digest."""
        digest = digest or kits.sha256(content)
        with self._lock:
            self._repository(repository).blobs[digest] = content
        return digest

    def put_manifest(self, repository: str, manifest: bytes, *, tag: str = "", media_type: str = MANIFEST) -> str:
        """Store a manifest without checking its content, and return its digest."""
        digest = kits.sha256(manifest)
        with self._lock:
            found = self._repository(repository)
            found.manifests[digest] = manifest, media_type
            if tag:
                found.tags[tag] = digest
        return digest

    def put_kit(self, repository: str, kit: kits.Kit, tag: str) -> str:
        """Store a kit with all its blobs and return its reference."""
        for digest, content in kit.blobs.items():
            self.put_blob(repository, content, digest=digest)
        self.put_manifest(repository, kit.manifest, tag=tag)
        return f"{self.host}/{repository}:{tag}"

    def _repository(self, name: str) -> _Repository:
        return self._repositories.setdefault(name, _Repository())

    # -- behaviour

    def fail(self, path: str, fault: Fault, *, method: str = "", times: int | None = None) -> Rule:
        """Apply a fault to requests whose path and query match the regex ``path``.

        The fault applies to all of these requests, or to the next ``times`` of them.
        """
        rule = Rule(re.compile(path), fault, method, times)
        with self._lock:
            self._rules.append(rule)
        return rule

    def heal(self) -> None:
        """Remove every fault."""
        with self._lock:
            self._rules.clear()

    def redirect_blobs_to(self, cdn: FakeRegistry, *, uses: int | None = None) -> None:
        """Redirect GET of a blob (307) to a signed location on ``cdn``.

        A location is valid for ``uses`` requests, or until ``expire_locations`` is called.
        """
        self._cdn, self._uses = cdn, uses

    def expire_locations(self) -> None:
        """Return 403 for every location that was signed so far, as a CDN does when a signature expires."""
        with self._lock:
            self._locations.clear()

    def require_basic(self, users: dict[str, str]) -> None:
        """Require Basic credentials of these users (name → password)."""
        self._door = _Door(users)

    def require_token(
        self,
        users: dict[str, str] | None = None,
        *,
        identity_tokens: frozenset[str] = frozenset(),
        expires_in: int = 300,
        server: FakeRegistry | None = None,
    ) -> None:
        """Require a token. If ``users`` is None, everyone can get a token.

        ``server`` is another FakeRegistry that returns the tokens.
        """
        desk = server or self
        self._door = desk._desk = _Door(
            users, lambda: f"{desk.url.removesuffix(desk.prefix)}/token", identity_tokens, expires_in
        )

    def accept_token(self, token: str) -> None:
        """Accept this token, although no token server returned it."""
        assert self._door is not None
        self._door.tokens.add(token)

    def expire_tokens(self) -> None:
        """Invalidate every token that was returned so far."""
        with self._lock:
            assert self._door is not None
            self._door.tokens.clear()

    def refuse_bodies(self, method: str, status: int) -> None:
        """Return this status for each request of an upload that has a body and no Content-Range."""
        self._refused[method] = status

    def refuse_chunks(self, status: int) -> None:
        """Return this status for PATCH with a Content-Range."""
        self._refused["chunk"] = status

    def lose_uploads(self) -> None:
        """Delete every upload session."""
        with self._lock:
            for repository in self._repositories.values():
                repository.uploads.clear()

    # -- record of requests

    def served(self, path: str = "", *, method: str = "") -> list[Served]:
        """Return the recorded requests in order. If a regex is given, return only those whose path matches it."""
        with self._lock:
            return [s for s in self._served if re.search(path, s.path) and method in ("", s.method)]

    def moved(self, digest: str = "") -> int:
        """Return the number of body bytes that were sent, in total or for one blob."""
        return sum(s.sent for s in self.served() if digest in s.path)

    def blob(self, repository: str, digest: str) -> bytes | None:
        """Return the stored bytes of a digest."""
        with self._lock:
            content = self._repository(repository).blobs.get(digest)
        return None if content is None else bytes(self._bytes(content))

    def manifest(self, repository: str, identifier: str) -> tuple[bytes, str]:
        """Return (bytes, media type) of the manifest with the given tag or digest."""
        with self._lock:
            found = self._repository(repository)
            return found.manifests[found.tags.get(identifier, identifier)]

    def tags(self, repository: str) -> dict[str, str]:
        """Return the tags of a repository with their digests."""
        with self._lock:
            return dict(self._repository(repository).tags)

    def sessions(self, repository: str) -> dict[str, bytearray]:
        """Return the open upload sessions and their bytes. A test may change both."""
        return self._repository(repository).uploads

    def uploads(self, repository: str) -> dict[str, int]:
        """Return the open upload sessions with the bytes that they have received."""
        with self._lock:
            return {name: len(data) for name, data in self._repository(repository).uploads.items()}

    def forget(self) -> None:
        """Delete the record of requests."""
        with self._lock:
            self._served.clear()

    # -- answers

    def meet(self, served: Served) -> list[Rule]:
        """Record a request that begins, and return the faults that apply to it."""
        with self._lock:
            self._served.append(served)
            met = [
                r
                for r in self._rules
                if r.times != 0 and r.method in ("", served.method) and r.pattern.search(served.path)
            ]
            for rule in met:
                rule.hits += 1
                rule.times = None if rule.times is None else rule.times - 1
        return met

    def keep(self, served: Served, part: bytes) -> None:
        """Append received bytes of an upload to its session."""
        match = _UPLOADS.fullmatch(unquote(urlsplit(served.path).path).removeprefix(self.prefix))
        if match and served.method in ("PATCH", "PUT"):
            with self._lock:
                data = self._repository(match["name"]).uploads.get(match["id"])
                if data is not None:
                    data += part

    def answer(self, served: Served, form: bytes, met: list[Rule]) -> Answer:
        """Return the response to a request, changed by every fault that applies to it."""
        ignore_range = any(isinstance(r.fault, IgnoreRange) for r in met)
        refused = any(isinstance(r.fault, Status) and r.fault.refuses for r in met)
        found = Answer(200, {}, memoryview(b"")) if refused else self._plain(served, form, ignore_range=ignore_range)
        for rule in met:
            found = rule.fault.apply(found)
        served.status = found.status
        return found

    def _plain(self, served: Served, form: bytes, *, ignore_range: bool) -> Answer:
        url = urlsplit(served.path)
        path = unquote(url.path)
        if self.body_limit and len(form) > self.body_limit:
            return Answer(413, {"Content-Type": "text/html"}, memoryview(b"<html>413 Request Entity Too Large</html>"))
        if path == "/token" and self._desk is not None:
            return self._token(
                self._desk, served, parse_qs(url.query) if served.method == "GET" else parse_qs(form.decode())
            )
        if path.startswith("/cdn/"):
            with self._lock:
                content, uses = self._locations.pop(served.path, (b"", 0))
                if uses != 0:
                    self._locations[served.path] = content, None if uses is None else uses - 1
            return (
                error(403, "AccessDenied", "Request has expired")
                if uses == 0
                else self._blob(content, served, ignore_range)
            )
        if not path.startswith(f"{self.prefix}/v2/"):
            return error(404, "NOT_FOUND", "no such page")
        shown = served.headers.get("authorization", "")
        needed = self._needed(served.method, path, parse_qs(url.query))
        if self._door is not None and not (self._door.opens(shown) and self._door.allows(shown, needed)):
            realm = self._door.realm() if self._door.realm else ""
            name = _PATH.search(path)
            scope = f',scope="{needed}"' if needed else f',scope="repository:{name["name"]}:pull"' if name else ""
            asks = f'Bearer realm="{realm}",service="fake"{scope}' if realm else 'Basic realm="fake"'
            return error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": asks})
        match = _UPLOADS.fullmatch(path.removeprefix(self.prefix))
        if match is not None:
            with self._lock:
                return self._upload(self._repository(match["name"]), match["name"], match["id"], served, form)
        match = _PATH.fullmatch(path.removeprefix(self.prefix))
        if match is not None and match["kind"] == "manifests" and served.method in ("PUT", "DELETE"):
            with self._lock:
                return getattr(self, f"_{served.method.lower()}_manifest")(
                    self._repository(match["name"]), match["what"], served, form
                )  # type: ignore[no-any-return]
        if match is None:
            return Answer(200, {"Docker-Distribution-Api-Version": "registry/2.0"}, memoryview(b"{}"))
        with self._lock:
            repository = self._repositories.get(match["name"])
        if repository is None:
            return error(404, "NAME_UNKNOWN", "repository name not known to registry")
        return getattr(self, f"_get_{match['kind']}")(repository, match["what"], served, ignore_range)  # type: ignore[no-any-return]

    def _get_manifests(self, repository: _Repository, what: str, _served: Served, _ignore_range: bool) -> Answer:
        digest = repository.tags.get(what, what)
        if digest not in repository.manifests:
            return error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        data, media_type = repository.manifests[digest]
        return Answer(200, {"Content-Type": media_type, "Docker-Content-Digest": digest}, memoryview(data))

    def _get_blobs(self, repository: _Repository, what: str, served: Served, ignore_range: bool) -> Answer:
        if what not in repository.blobs:
            return error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        content = repository.blobs[what]
        if self._cdn is not None and served.method == "GET":
            path = f"/cdn/{what}?signature={secrets.token_hex(8)}"
            with self._cdn._lock:
                self._cdn._locations[path] = content, self._uses
            return Answer(307, {"Location": f"{self._cdn.url.removesuffix(self._cdn.prefix)}{path}"}, memoryview(b""))
        return self._blob(content, served, ignore_range)

    def _get_referrers(self, repository: _Repository, what: str, _served: Served, _ignore_range: bool) -> Answer:
        if not self.referrers_api:
            return Answer(404, {"Content-Type": "text/plain"}, memoryview(b"404 page not found"))
        rows = []
        for digest, (data, media_type) in repository.manifests.items():
            with contextlib.suppress(ValueError, AttributeError):
                manifest: dict[str, Any] = json.loads(data)
                if manifest.get("subject", {}).get("digest") == what:
                    kind = manifest.get("artifactType") or manifest["config"]["mediaType"]
                    rows.append({"mediaType": media_type, "digest": digest, "size": len(data), "artifactType": kind})
        body = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": rows}).encode()
        return Answer(200, {"Content-Type": INDEX}, memoryview(body))

    def _get_tags(self, repository: _Repository, _what: str, served: Served, _ignore_range: bool) -> Answer:
        url = urlsplit(served.path)
        after = parse_qs(url.query).get("last", [""])[0]
        tags = [tag for tag in sorted(repository.tags) if tag > after]
        page = tags[: self.tags_per_page or None]
        headers = {"Content-Type": "application/json"}
        if len(page) < len(tags):
            headers["Link"] = f'<{url.path}?n={self.tags_per_page}&last={page[-1]}>; rel="next"'
        return Answer(200, headers, memoryview(json.dumps({"tags": page or None}).encode()))

    # -- pushes, for which the caller must hold the lock

    @staticmethod
    def _needed(method: str, path: str, query: dict[str, list[str]]) -> str:
        """Return the scopes that a change requires, or "" for a request that changes nothing."""
        match = _PATH.search(path)
        if match is None or method in ("GET", "HEAD"):
            return ""
        name = match["name"].removesuffix("/blobs")
        if method == "DELETE" and match["kind"] == "manifests":
            return f"repository:{name}:delete"
        return " ".join(
            [f"repository:{name}:pull,push", *(f"repository:{source}:pull" for source in query.get("from", []))]
        )

    def _upload(self, repository: _Repository, name: str, identity: str, served: Served, form: bytes) -> Answer:
        """Handle a request to an upload session."""
        url = urlsplit(served.path)
        query = parse_qs(url.query)
        if served.method == "POST":
            source = self._repositories.get(query.get("from", [""])[0], _Repository())
            digest = query.get("mount", [""])[0]
            if self.mounts and digest in source.blobs:
                repository.blobs[digest] = source.blobs[digest]
                return Answer(
                    201,
                    {"Location": f"{self.prefix}/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest},
                    memoryview(b""),
                )
            identity = secrets.token_hex(8)
            repository.uploads[identity] = bytearray()
            return self._session(
                202, name, identity, repository, {"OCI-Chunk-Min-Length": str(self.chunk_min)} if self.chunk_min else {}
            )
        if identity not in repository.uploads:
            return error(404, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
        refused = self._refused.get("chunk" if "content-range" in served.headers else served.method) if form else None
        if refused is not None:
            return error(refused, "BLOB_UNKNOWN" if refused == 404 else "UNSUPPORTED", "not in this way")
        if _STATE not in url.query and not self.stateless:
            return error(400, "BLOB_UPLOAD_INVALID", "blob upload invalid")
        data = repository.uploads[identity]
        if served.method == "DELETE":
            del repository.uploads[identity]
            return Answer(204, {}, memoryview(b""))
        if served.method == "GET":
            return self._session(204, name, identity, repository, {})
        begin = served.headers.get("content-range", f"{len(data)}-").partition("-")[0]
        if begin != str(len(data)):
            return self._session(416, name, identity, repository, {})
        data += form
        if served.method == "PATCH":
            return self._session(202, name, identity, repository, {})
        digest = query["digest"][0]
        del repository.uploads[identity]
        if hashlib.new(digest.partition(":")[0], data).hexdigest() != digest.partition(":")[2]:
            return error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        repository.blobs[digest] = bytes(data)
        return Answer(
            201,
            {"Location": f"{self.prefix}/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest},
            memoryview(b""),
        )

    def _session(
        self, status: int, name: str, identity: str, repository: _Repository, headers: dict[str, str]
    ) -> Answer:
        at = len(repository.uploads[identity])
        where = f"{self.prefix}/v2/{name}/blobs/uploads/{identity}?{_STATE}{at}"
        return Answer(
            status,
            {"Location": where, "Range": f"0-{max(0, at - 1)}", "Docker-Upload-UUID": identity, **headers},
            memoryview(b""),
        )

    def _put_manifest(self, repository: _Repository, what: str, served: Served, form: bytes) -> Answer:
        digest = kits.sha256(form)
        if ":" in what and what != digest:
            return error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        repository.manifests[digest] = form, served.headers.get("content-type", "")
        if ":" not in what:
            repository.tags[what] = digest
        subject = (json.loads(form).get("subject") or {}).get("digest", "")
        headers = {"Location": f"{served.path.rpartition('/')[0]}/{digest}", "Docker-Content-Digest": digest}
        return Answer(
            201, headers | ({"OCI-Subject": subject} if subject and self.referrers_api else {}), memoryview(b"")
        )

    def _delete_manifest(self, repository: _Repository, what: str, _served: Served, _form: bytes) -> Answer:
        if repository.tags.pop(what, None) is None:
            if repository.manifests.pop(what, None) is None:
                return error(404, "MANIFEST_UNKNOWN", "manifest unknown")
            repository.tags = {tag: digest for tag, digest in repository.tags.items() if digest != what}
        return Answer(202, {}, memoryview(b""))

    def _blob(self, content: Content, served: Served, ignore_range: bool) -> Answer:
        data = self._bytes(content)
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", served.range)
        if not asked or ignore_range:
            return Answer(200, headers, data)
        first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
        if first > last:
            return Answer(416, {"Content-Range": f"bytes */{len(data)}"}, memoryview(b""))
        return Answer(
            206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1], first
        )

    def _bytes(self, content: Content) -> memoryview:
        if isinstance(content, bytes):
            return memoryview(content)
        with self._lock:
            if content not in self._maps:
                with content.open("rb") as file:
                    self._maps[content] = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
            return self._maps[content]

    def _token(self, desk: _Door, served: Served, asked: dict[str, list[str]]) -> Answer:
        authorization = served.headers.get("authorization", "")
        if served.method == "POST":
            allowed = asked.get("grant_type") == ["refresh_token"] and asked["refresh_token"][0] in desk.identity
        else:
            allowed = desk.knows(authorization) if authorization else desk.users is None
        if not allowed:
            return error(401, "UNAUTHORIZED", "incorrect username or password")
        token = secrets.token_hex(8)
        with self._lock:
            desk.tokens.add(token)
            desk.granted[token] = _scopes(" ".join(asked.get("scope", [])))
        name = "access_token" if served.method == "POST" else "token"
        return Answer(
            200,
            {"Content-Type": "application/json"},
            memoryview(json.dumps({name: token, "expires_in": desk.expires_in}).encode()),
        )

    # -- without a socket

    def _mock(self, request: httpx.Request) -> httpx.Response:
        headers = {k.lower(): v for k, v in request.headers.items()}
        served = Served(request.method, request.url.raw_path.decode(), headers.get("range", ""), headers)
        form = request.read()
        served.heard = len(form)
        answer = self.answer(served, form, self.meet(served))
        if answer.stall and answer.stall.at is None:
            raise httpx.ReadTimeout("stalled", request=request)
        length = {} if answer.length is None else {"Content-Length": str(answer.length)}
        stream = httpx.ByteStream(b"") if request.method == "HEAD" else _MockBody(answer, served)
        return httpx.Response(answer.status, headers={**answer.headers, **length}, stream=stream)


class _MockBody(httpx.SyncByteStream):
    """The body of a mocked response. At a cut or a stall, it raises the error that httpx raises."""

    def __init__(self, answer: Answer, served: Served) -> None:
        self._answer = answer
        self._served = served

    def __iter__(self) -> Iterator[bytes]:
        closing = threading.Event()
        closing.set()  # a stall ends immediately
        self._answer.drip = None
        try:
            for piece in self._answer.pieces(closing):
                self._served.sent += len(piece)
                yield bytes(piece)
        except Broken:
            if self._answer.cut is None:
                raise httpx.ReadTimeout("stalled") from None
            if self._answer.reset:
                raise httpx.ReadError("connection reset") from None
            raise httpx.RemoteProtocolError("peer closed connection without sending complete message body") from None


# -- the socket server


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
    request_queue_size = 1024
    daemon_threads = False  # so that server_close joins them
    block_on_close = True

    def __init__(self, address: tuple[str, int], registry: FakeRegistry, tls: ssl.SSLContext | None) -> None:
        super().__init__(address, _Connection)
        self.registry = registry
        self.tls = tls
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._count = 0
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, name="fake-registry")

    def begin(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self.closing.set()
        self.shutdown()
        self.socket.close()
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        self.server_close()
        self._thread.join()

    def enter(self, one: socket.socket) -> int:
        with self._lock:
            if self.closing.is_set():
                one.shutdown(socket.SHUT_RDWR)
            self._open.add(one)
            self._count += 1
            return self._count

    def leave(self, one: socket.socket) -> None:
        with self._lock:
            self._open.discard(one)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that closed its connection."""


class _Connection(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        if self.server.tls is not None:
            self.request = self.server.tls.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False)
        self.number = self.server.enter(self.request)
        super().setup()

    def handle(self) -> None:
        try:
            if isinstance(self.request, ssl.SSLSocket):
                self.request.do_handshake()
            super().handle()
        except (OSError, ValueError):
            self.close_connection = True

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()
        self.server.leave(self.request)
        if isinstance(self.request, ssl.SSLSocket):
            self.request.close()

    def do_GET(self) -> None:
        headers = {k.lower(): v for k, v in self.headers.items()}
        served = Served(self.command, self.path, headers.get("range", ""), headers, self.number)
        met = self.server.registry.meet(served)
        deaf = next((r.fault for r in met if isinstance(r.fault, Deaf)), None)
        length = int(self.headers.get("Content-Length") or 0)
        wanted = length if deaf is None else min(length, deaf.at)
        form = self.rfile.read(wanted)
        served.heard = len(form)
        if len(form) < wanted or (deaf is not None and not deaf.answers):
            self.server.registry.keep(served, form if deaf is None or deaf.keeps else b"")
            self._break(reset=deaf is not None and deaf.reset)
            return
        if deaf is not None:
            self.close_connection = True
        answer = self.server.registry.answer(served, form, met)
        try:
            if answer.stall and answer.stall.at is None:
                answer.stall.wait(self.server.closing)
            self._send(answer, served)
        except Broken:
            self._break(reset=answer.reset)

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - names of http.server

    def _send(self, answer: Answer, served: Served) -> None:
        chunked = answer.length is None
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status == 204:
            pass
        elif chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(answer.length))
        self.end_headers()
        if self.command == "HEAD":
            return
        for piece in answer.pieces(self.server.closing):
            served.sent += len(
                piece
            )  # counted before it is sent, so that a client that received it also sees it counted
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _break(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()  # closing the last reference sends the reset
        else:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Log nothing, because ``served`` records the requests."""
