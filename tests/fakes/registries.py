"""Fakes of registry products. Each fake is a FakeRegistry with the quirks of one product, taken from public issues.

A quirk is a difference from distribution-spec v1.1, or a choice that the specification leaves open. Quirks are in the
responses to pushes, pulls, mounts of blobs, deletions and requests for referrers. The docstring of each class names the
issues in which the quirk was observed. Everything else is as in FakeRegistry. ``KINDS`` maps the names of the products
to their classes, for tests of every product.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.faults import Answer, error
from tests.fakes.registry import FakeRegistry, Served, _Repository

MiB = 1 << 20
PAGE = memoryview(b"<html>not found</html>")


class DockerHub(FakeRegistry):
    """Docker Hub requires a token for HEAD of a blob and returns 405 to DELETE.

    It has no referrers API. Sources: hub-feedback 2360 (DELETE), roadmap 724 (referrers).
    """

    def __init__(self) -> None:
        super().__init__()
        self.referrers_api = False
        self.require_token()

    def _delete_manifest(self, repository: _Repository, what: str, served: Served, form: bytes) -> Answer:
        return error(405, "UNSUPPORTED", "The operation is unsupported.")


class GitHub(FakeRegistry):
    """GitHub limits a request with a Content-Range to 4 MiB (416). A request without Content-Range has no limit.

    GitHub has no referrers API and no DELETE. Sources: ocx 237, rust-oci-client 35 (416).
    """

    limit = 4 * MiB

    def __init__(self) -> None:
        super().__init__()
        self.referrers_api = False
        self.require_token()

    def _upload(self, repository: _Repository, name: str, identity: str, served: Served, form: bytes) -> Answer:
        if "content-range" in served.headers and len(form) > self.limit:
            return error(
                416,
                "REQUESTED_RANGE_NOT_SATISFIABLE",
                "the request body is too large and exceeds the maximum permissible limit of 4.00MiB",
            )
        return super()._upload(repository, name, identity, served, form)

    def _delete_manifest(self, repository: _Repository, what: str, served: Served, form: bytes) -> Answer:
        return error(405, "UNSUPPORTED", "The operation is unsupported.")


class Amazon(FakeRegistry):
    """ECR returns 201 to PATCH, with the Range of the first chunk even after later chunks.

    A push does not create repositories (404 NAME_UNKNOWN), only Basic authentication works, and a deletion by tag
    returns 400. Sources: tart 273 (201), containers-roadmap 2831 (Range).
    """

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, str] = {}
        self.made = {"team/kit", "team/base"}

    def _upload(self, repository: _Repository, name: str, identity: str, served: Served, form: bytes) -> Answer:
        if name not in self.made:
            return error(404, "NAME_UNKNOWN", f"The repository with name '{name}' does not exist in the registry")
        answer = super()._upload(repository, name, identity, served, form)
        if served.method == "PATCH" and answer.status == 202:
            answer.status = 201
            answer.headers["Range"] = self._first.setdefault(identity, answer.headers["Range"])
        elif served.method == "GET" and identity in self._first and answer.status == 204:
            answer.headers["Range"] = self._first[identity]
        return answer

    def _delete_manifest(self, repository: _Repository, what: str, served: Served, form: bytes) -> Answer:
        if ":" not in what:
            return error(400, "UNSUPPORTED", "Invalid parameter at 'ImageDigest'")
        return super()._delete_manifest(repository, what, served, form)


class Google(FakeRegistry):
    """Artifact Registry does not accept chunks, and its upload locations are absolute and have a query of their own.

    Sources: kitops 777, skopeo 1101 (chunks).
    """

    def _upload(self, repository: _Repository, name: str, identity: str, served: Served, form: bytes) -> Answer:
        if "content-range" in served.headers:
            return error(404, "UNSUPPORTED", "chunked uploads are not supported")
        return super()._upload(repository, name, identity, served, form)

    def _session(
        self, status: int, name: str, identity: str, repository: _Repository, headers: dict[str, str]
    ) -> Answer:
        answer = super()._session(status, name, identity, repository, headers)
        answer.headers["Location"] = f"{self.url}{answer.headers['Location']}&upload_id=AI27aGCE0z-08w"
        answer.headers.pop("Range")
        return answer


class Artifactory(FakeRegistry):
    """Artifactory returns 404 BLOB_UNKNOWN to a PUT with a body, and 403 where other registries return 404.

    Sources: buildx 196, containerd 3533 (PUT), go-containerregistry 1691 (403).
    """

    def __init__(self) -> None:
        super().__init__()
        self.refuse_bodies("PUT", 404)

    def _get_manifests(self, repository: _Repository, what: str, served: Served, ignore_range: bool) -> Answer:
        answer = super()._get_manifests(repository, what, served, ignore_range)
        return (
            error(403, "DENIED", "The client does not have permission for manifest") if answer.status == 404 else answer
        )

    def _get_blobs(self, repository: _Repository, what: str, served: Served, ignore_range: bool) -> Answer:
        answer = super()._get_blobs(repository, what, served, ignore_range)
        return (
            error(403, "DENIED", "The client does not have permission")
            if answer.status == 404 and served.method == "HEAD"
            else answer
        )


class Quay(FakeRegistry):
    """Quay returns 202 to the PUT of a manifest, and 400 MANIFEST_INVALID for unknown media types.

    Sources: containers/image 381, containerd 3750.
    """

    def __init__(self, known: str = ".*") -> None:
        super().__init__()
        self.known = re.compile(known)
        self.referrers_api = False

    def _put_manifest(self, repository: _Repository, what: str, served: Served, form: bytes) -> Answer:
        manifest: dict[str, Any] = json.loads(form)
        types = [
            manifest.get("artifactType", ""),
            *(d["mediaType"] for d in (manifest.get("config", {}), *manifest.get("layers", ())) if d),
        ]
        strange = next((one for one in types if one and not self.known.fullmatch(one)), None)
        if strange is not None:
            return error(400, "MANIFEST_INVALID", f"manifest data does not match schema: '{strange}' is not one of […]")
        answer = super()._put_manifest(repository, what, served, form)
        answer.status = 202 if answer.status == 201 else answer.status
        return answer


class Pulp(FakeRegistry):
    """Pulp returns 204 to PATCH, with a Range that is one byte too long, or 0--1 for an empty session.

    Sources: pulp_container 2199 (204), 284 and 430 (Range).
    """

    def _session(
        self, status: int, name: str, identity: str, repository: _Repository, headers: dict[str, str]
    ) -> Answer:
        answer = super()._session(
            204 if status == 202 and repository.uploads[identity] else status, name, identity, repository, headers
        )
        at = len(repository.uploads[identity])
        answer.headers["Range"] = f"0-{at}" if at else "0--1"
        return answer


class Zot(FakeRegistry):
    """Zot returns relative locations without a query, and no Range after POST.

    It returns 416 to chunks out of order, and does not accept a manifest before its blobs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stateless = True

    def _session(
        self, status: int, name: str, identity: str, repository: _Repository, headers: dict[str, str]
    ) -> Answer:
        answer = super()._session(status, name, identity, repository, headers)
        answer.headers["Location"] = answer.headers["Location"].partition("?")[0]
        if not repository.uploads[identity]:
            answer.headers.pop("Range")
        return answer

    def _put_manifest(self, repository: _Repository, what: str, served: Served, form: bytes) -> Answer:
        manifest: dict[str, Any] = json.loads(form)
        parts = [manifest.get("config"), *manifest.get("layers", ())]
        if any(d and d["digest"] not in repository.blobs for d in parts):
            return error(400, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry")
        return super()._put_manifest(repository, what, served, form)


class GitLab(FakeRegistry):
    """GitLab has no referrers API. If there is no tag sha256-X, it returns the manifest with the digest sha256:X.

    It returns 404 to DELETE of a tag. Source: oras-go 1396 (tag).
    """

    def __init__(self) -> None:
        super().__init__()
        self.referrers_api = False
        self.require_token()

    def _get_manifests(self, repository: _Repository, what: str, served: Served, ignore_range: bool) -> Answer:
        found = re.fullmatch(r"(sha256)-([0-9a-f]{64})", what)
        named = what if what in repository.tags or not found else f"{found[1]}:{found[2]}"
        return super()._get_manifests(repository, named, served, ignore_range)

    def _delete_manifest(self, repository: _Repository, what: str, served: Served, form: bytes) -> Answer:
        if ":" not in what:
            return Answer(404, {"Content-Type": "text/plain"}, memoryview(b"404 page not found"))
        return super()._delete_manifest(repository, what, served, form)


class Harbor(FakeRegistry):
    """Harbor returns 401 for a mount from a project that does not exist.

    Versions before 2.8 return 401 for referrers too. Behind a proxy that terminates TLS, its locations begin with
    http: (see test_upload). Sources: harbor 17097 (mount), 18305 (referrers).
    """

    def __init__(self) -> None:
        super().__init__()
        self.require_token()

    def _upload(self, repository: _Repository, name: str, identity: str, served: Served, form: bytes) -> Answer:
        source = parse_qs(urlsplit(served.path).query).get("from", [""])[0]
        if source and source not in self._repositories:
            return error(401, "UNAUTHORIZED", f"project {source} not found")
        return super()._upload(repository, name, identity, served, form)

    def _get_referrers(self, repository: _Repository, what: str, served: Served, ignore_range: bool) -> Answer:
        return error(401, "UNAUTHORIZED", "unauthorized: unauthorized to list referrers")


class Aliyun(FakeRegistry):
    """Aliyun returns a Range that counts from the start of each chunk (regclient 627, distribution-spec 580)."""

    def _upload(self, repository: _Repository, name: str, identity: str, served: Served, form: bytes) -> Answer:
        answer = super()._upload(repository, name, identity, served, form)
        if served.method == "PATCH" and answer.status == 202:
            answer.headers["Range"] = f"0-{len(form) - 1}"
        return answer


class Proxy(FakeRegistry):
    """A registry behind a proxy that limits the size of bodies (413), as nginx does by client_max_body_size."""

    def __init__(self, limit: int = 5 * MiB) -> None:
        super().__init__()
        self.body_limit = limit


class Headless(FakeRegistry):
    """A registry, or a proxy in front of it, that refuses HEAD (405)."""

    def _get_blobs(self, repository: _Repository, what: str, served: Served, ignore_range: bool) -> Answer:
        if served.method == "HEAD":
            return Answer(405, {"Allow": "GET, POST, PUT, PATCH, DELETE"}, PAGE)
        return super()._get_blobs(repository, what, served, ignore_range)


KINDS: dict[str, Callable[[], FakeRegistry]] = {
    "CNCF distribution": FakeRegistry,
    "Docker Hub": DockerHub,
    "GitHub": GitHub,
    "Amazon ECR": Amazon,
    "Google": Google,
    "Artifactory": Artifactory,
    "Quay": Quay,
    "Pulp": Pulp,
    "zot": Zot,
    "GitLab": GitLab,
    "Harbor": Harbor,
    "Aliyun": Aliyun,
    "proxy with a limit": Proxy,
    "no HEAD": Headless,
}
