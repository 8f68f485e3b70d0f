"""Serve the registry over HTTP: route each request to its handler, and log the request in one line.

aiohttp implements HTTP, and its event loop is used only in this package. Bodies are streamed (``bodies``). All disk
access runs on the threads of ``pool``. If a request still waits for bytes of a chunk, the next request for the same
upload interrupts it. So a client that reconnects after a broken connection need not wait until the server notices that
the old connection is broken.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Executor
from typing import Any, Final, TypeVar

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from kitfs.errors import KitfsError, StoreFull
from kitfs.oci.manifest import IMAGE_INDEX, MAX_MANIFEST
from kitfs.server import ranges
from kitfs.server.access import Access, Right
from kitfs.server.api_errors import UNSUPPORTED, ApiError, of_error, out_of_descriptors
from kitfs.server.bodies import await_to_end, pieces, receive, send
from kitfs.server.htpasswd import Htpasswd
from kitfs.server.logins import Logins
from kitfs.server.manifests import too_big
from kitfs.server.names import digest_of, repository_name
from kitfs.server.registry import Registry
from kitfs.server.replies import (
    VERSION,
    answer,
    counted,
    created,
    listed,
    log_text,
    matches,
    next_link,
    pending,
    refusal,
    unchanged,
)
from kitfs.server.uploads import MAX_OPEN, REST, OpenUploads, UploadQueue, UploadTurn
from kitfs.store.ingest import Ingest

PATIENCE: Final = 60.0


ROUTES: Final = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"/v2/?", "base"),
        (r"/v2/_catalog", "catalog"),
        (r"/v2/(?P<name>.+)/tags/list", "tags"),
        (r"/v2/(?P<name>.+)/manifests/(?P<ident>[^/]+)", "manifest"),
        (r"/v2/(?P<name>.+)/referrers/(?P<ident>[^/]+)", "referrers"),
        (r"/v2/(?P<name>.+)/blobs/uploads/?", "uploads"),
        (r"/v2/(?P<name>.+)/blobs/uploads/(?P<ident>[^/]+)", "upload"),
        (r"/v2/(?P<name>.+)/blobs/(?P<ident>[^/]+)", "blob"),
    )
)
USER: Final = web.RequestKey("user", str)  # the key under which a request has its user
RIGHTS_OF: Final[Mapping[tuple[str, str], Right]] = {  # all other requests need the right to push
    **{(kind, "GET"): "pull" for kind in ("tags", "manifest", "referrers", "blob")},
    ("manifest", "DELETE"): "delete",
    ("blob", "DELETE"): "delete",
}
WRITES: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})


T = TypeVar("T")
Handler = Callable[[web.BaseRequest, str, str], Awaitable[web.StreamResponse]]


class App:
    """The request handler for aiohttp's low-level server.

    ``access``: the rights of the users; None means that every user may do everything. ``patience``: a request or
    response fails if no byte of its body is received or sent for this many seconds. ``uploads``: the most uploads that
    stay open between two chunks.
    """

    def __init__(
        self,
        registry: Registry,
        pool: Executor,
        *,
        log: logging.Logger,
        htpasswd: Htpasswd | None = None,
        access: Access | None = None,
        read_only: bool = False,
        patience: float = PATIENCE,
        uploads: int = MAX_OPEN,
    ) -> None:
        self._registry = registry
        self._pool = pool
        self._log = log
        self._logins = None if htpasswd is None else Logins(htpasswd, pool)
        self._access = access
        self._read_only = read_only
        self._patience = patience
        self._uploads = OpenUploads(uploads)
        self._running = 0
        self._handlers: Mapping[str, Mapping[str, Handler]] = {
            "base": {"GET": self._base},
            "catalog": {"GET": self._catalog},
            "tags": {"GET": self._tags},
            "manifest": {"GET": self._manifest, "PUT": self._put_manifest, "DELETE": self._delete_manifest},
            "referrers": {"GET": self._referrers},
            "uploads": {"POST": self._begin},
            "upload": {"GET": self._progress, "PATCH": self._chunk, "PUT": self._finish, "DELETE": self._cancel},
            "blob": {"GET": self._blob, "DELETE": self._delete_blob},
        }

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Respond to a request, and log the request in one line."""
        began = time.monotonic()
        user = "-"
        status: int | str = "broken off"
        size = 0
        self._running += 1
        try:
            try:
                user = request[USER] = await self._admitted(request)
                response = await self._routed(request)
            except (ConnectionError, TimeoutError):
                raise
            except Exception as e:  # noqa: BLE001 - every error gets a response
                response = self._refused(request, e)
            async with asyncio.timeout(self._patience):
                await response.prepare(request)
                await response.write_eof()
            status, size = response.status, response.content_length or 0
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()  # close() would wait for a client that no longer reads
            # aiohttp finds that this response cannot be sent, and ignores it. An exception would log a traceback.
            response = web.Response()
        finally:
            self._running -= 1
            line = (
                request.remote or "-",
                user,
                request.method,
                request.path_qs,
                status,
                size,
                time.monotonic() - began,
            )
            self._log.info('%s %s "%s %s" %s %d %.3fs', *(log_text(x) if isinstance(x, str) else x for x in line))
        return response

    def _refused(self, request: web.BaseRequest, error: Exception) -> web.StreamResponse:
        """Return the response to a request that failed.

        Failures of the registry itself are logged. A bug is logged with its traceback.
        """
        if isinstance(error, RequestPayloadError):
            error = ApiError(400, "UNKNOWN", "the body is malformed: its chunks are not valid HTTP")
        elif out_of_descriptors(error):
            error = ApiError(
                503, "UNAVAILABLE", "this registry has too many files open; try again", headers={"Retry-After": "1"}
            )
        elif isinstance(error, KitfsError):
            cause, error = error, of_error(error)
            if error.status >= 500:
                self._log.warning("%s %s: %s", request.method, log_text(request.path), cause)
        elif not isinstance(error, ApiError):
            self._log.error(
                "an internal error (a bug in kitfs) in %s %s", request.method, log_text(request.path), exc_info=error
            )
            error = ApiError(500, "UNKNOWN", "a bug in this registry (see its log)")
        return refusal(request, error)

    def end_logins(self) -> None:
        """Stop checking passwords. Requests that wait for a check get an error."""
        if self._logins is not None:
            self._logins.close()

    async def wait_idle(self) -> None:
        """Wait until no request is in progress."""
        while self._running:
            await asyncio.sleep(REST / 2)

    async def close(self) -> None:
        """Close all open uploads."""
        for ingest in self._uploads.taken():
            await self._run(ingest.close)

    async def _run(self, do: Callable[..., T], *args: Any) -> T:
        """Run a blocking call on a thread. The call runs to its end even if the request is cancelled."""
        return await await_to_end(asyncio.get_running_loop().run_in_executor(self._pool, do, *args))

    async def _admitted(self, request: web.BaseRequest) -> str:
        if self._logins is None:
            return "-"
        header = request.headers.get("Authorization", "")
        user = await self._logins.user(header, peer=request.remote or "-", gone=lambda: request.transport is None)
        if user is None:
            challenge = {"WWW-Authenticate": 'Basic realm="kitfs"'}
            raise ApiError(401, "UNAUTHORIZED", "authentication required", headers=challenge)
        return user

    async def _routed(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Transfer-Encoding", "chunked").strip().lower() != "chunked":  # RFC 9112, 6.1
            raise ApiError(501, UNSUPPORTED, "the only supported transfer coding of a body is chunked")
        for pattern, kind in ROUTES:
            match = pattern.fullmatch(request.path)
            if match is None:
                continue
            handlers = self._handlers[kind]
            method = "GET" if request.method == "HEAD" and "GET" in handlers else request.method
            if method not in handlers or (self._read_only and request.method in WRITES):
                allowed = {m for m in handlers if not (self._read_only and m in WRITES)} | (
                    {"HEAD"} if "GET" in handlers else set()
                )
                if request.method == "OPTIONS":
                    return answer(200, headers={"Allow": ", ".join(sorted(allowed))})
                reason = (
                    "this registry is read-only"
                    if self._read_only and method in handlers
                    else "the operation is unsupported"
                )
                raise ApiError(405, UNSUPPORTED, reason, headers={"Allow": ", ".join(sorted(allowed))})
            found = match.groupdict()
            name = repository_name(found["name"]) if "name" in found else ""
            if name:
                await self._check_access(request, name, RIGHTS_OF.get((kind, method), "push"))
            return await handlers[method](request, name, found.get("ident", ""))
        raise ApiError(404, "NAME_UNKNOWN", "this resource does not exist: the API of this OCI registry begins at /v2/")

    def _may_read(self, request: web.BaseRequest) -> Callable[[str], bool]:
        """Return a function that returns whether the user of a request may pull from a repository."""
        access, user = self._access, request[USER]
        return lambda name: access is None or access.may(user, name, "pull")

    async def _check_access(self, request: web.BaseRequest, name: str, right: Right) -> None:
        """Raise ApiError if the user of a request does not have a right in a repository."""
        if self._access is not None and not await self._run(self._access.may, request[USER], name, right):
            raise ApiError(403, "DENIED", f"{request[USER]} may not {right} in {name}")

    # Reading

    async def _base(self, request: web.BaseRequest, _: str, __: str) -> web.StreamResponse:
        return answer(200, b"{}", content_type="application/json")

    async def _blob(self, request: web.BaseRequest, name: str, ident: str) -> web.StreamResponse:
        digest, file = await self._run(
            functools.partial(self._registry.blob, name, ident, promised=request.method == "HEAD")
        )
        with contextlib.closing(file):
            size = os.fstat(file.fileno()).st_size
            headers = {"Docker-Content-Digest": str(digest), "ETag": f'"{digest}"', "Cache-Control": "max-age=31536000"}
            if not unchanged(request.headers.get("If-Match"), digest):
                raise ApiError(412, "UNKNOWN", "If-Match does not name the content of the blob")
            if matches(request.headers.get("If-None-Match"), digest):
                return answer(304, headers=headers)
            headers["Accept-Ranges"] = "bytes"
            span = ranges.Span(0, size)
            status = 200
            if (request.headers.get("If-Range") or headers["ETag"]) == headers["ETag"]:
                try:
                    asked = ranges.requested(request.headers.get("Range"), size)
                except ranges.Unsatisfiable:
                    raise ApiError(
                        416,
                        "RANGE_INVALID",
                        "the range does not contain any byte of the blob",
                        headers={"Content-Range": f"bytes */{size}"},
                    )
                if asked is not None:
                    span, status = asked, 206
                    headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
            response = web.StreamResponse(status=status, headers=VERSION | headers)
            response.content_type = "application/octet-stream"
            response.content_length = span.stop - span.start
            await response.prepare(request)
            if request.method == "GET":
                await send(request, response, file, span, run=self._run, patience=self._patience)
                await response.write_eof()
            return response

    async def _manifest(self, request: web.BaseRequest, name: str, ident: str) -> web.StreamResponse:
        found = await self._run(self._registry.manifest, name, ident)
        headers = {"Docker-Content-Digest": str(found.digest), "ETag": f'"{found.digest}"'}
        if matches(request.headers.get("If-None-Match"), found.digest):
            return answer(304, headers=headers)
        return answer(200, found.data, content_type=found.media_type, headers=headers)

    async def _tags(self, request: web.BaseRequest, name: str, _: str) -> web.StreamResponse:
        page = await self._run(self._registry.tags, name, counted(request), request.query.get("last"))
        return listed(request, page, {"name": name, "tags": page.names})

    async def _catalog(self, request: web.BaseRequest, _: str, __: str) -> web.StreamResponse:
        last, may_read = request.query.get("last"), self._may_read(request)
        page = await self._run(self._registry.catalog, counted(request), last, may_read)
        return listed(request, page, {"repositories": page.names})

    async def _referrers(self, request: web.BaseRequest, name: str, ident: str) -> web.StreamResponse:
        wanted = request.query.get("artifactType")
        found = await self._run(self._registry.referrers, name, ident, wanted, request.query.get("last"))
        headers = {} if wanted is None else {"OCI-Filters-Applied": "artifactType"}
        if found.next is not None:
            headers["Link"] = next_link(request, found.next, None)
        return answer(200, found.data, content_type=IMAGE_INDEX, headers=headers)

    # Writing

    async def _put_manifest(self, request: web.BaseRequest, name: str, ident: str) -> web.StreamResponse:
        if (request.content_length or 0) > MAX_MANIFEST:
            raise too_big()
        data = bytearray()
        async for piece in pieces(request, self._patience):
            data += piece
            if len(data) > MAX_MANIFEST:
                raise too_big()
        content_type = request.headers.get("Content-Type", "")
        done = await self._run(
            self._registry.put_manifest, name, ident, bytes(data), content_type, tuple(request.query.getall("tag", ()))
        )
        headers = {"Location": f"/v2/{name}/manifests/{done.digest}", "Docker-Content-Digest": str(done.digest)}
        if done.subject is not None:
            headers["OCI-Subject"] = str(done.subject)
        if request.query.getall("tag", ()):
            headers["OCI-Tag"] = ", ".join(done.tags)
        return answer(201, headers=headers)

    async def _delete_manifest(self, request: web.BaseRequest, name: str, ident: str) -> web.StreamResponse:
        await self._run(self._registry.delete_manifest, name, ident)
        return answer(202)

    async def _delete_blob(self, request: web.BaseRequest, name: str, ident: str) -> web.StreamResponse:
        await self._run(self._registry.delete_blob, name, ident)
        return answer(202)

    async def _begin(self, request: web.BaseRequest, name: str, _: str) -> web.StreamResponse:
        mount = request.query.get("mount")
        if mount is not None:
            source, may_read = request.query.get("from"), self._may_read(request)
            digest = await self._run(self._registry.mount, name, mount, source, may_read)
            if digest is not None:
                return created(name, str(digest))
        digest_text = request.query.get("digest")
        if digest_text is not None:
            digest_of(digest_text)
            await self._run(self._registry.expect, request.content_length or 0)
        ingest = await self._run(self._registry.begin, name)
        if digest_text is None or mount is not None:
            self._keep(ingest)
            return pending(name, ingest.name, 0)
        try:
            await self._receive(request, ingest, UploadTurn(UploadQueue(), 0))
            return created(name, str(await self._run(self._registry.finish, name, ingest, digest_text)))
        finally:
            await self._run(ingest.discard)

    async def _progress(self, request: web.BaseRequest, name: str, ident: str) -> web.StreamResponse:
        await self._uploads.wait_idle(ident)
        size = await self._run(self._registry.progress, name, ident)
        response = pending(name, ident, size)
        response.set_status(204)
        return response

    async def _chunk(self, request: web.BaseRequest, name: str, ident: str) -> web.StreamResponse:
        async with self._working(name, ident) as (ingest, turn):
            await self._receive(request, ingest, turn)
            size = ingest.size
        return pending(name, ident, size)

    async def _finish(self, request: web.BaseRequest, name: str, ident: str) -> web.StreamResponse:
        digest_text = request.query.get("digest")
        if digest_text is None:
            raise ApiError(400, "DIGEST_INVALID", "the digest parameter is missing")
        digest_of(digest_text)
        async with self._working(name, ident) as (ingest, turn):
            await self._run(self._registry.expect, request.content_length or 0)
            await self._receive(request, ingest, turn)
            return created(name, str(await self._run(self._registry.finish, name, ingest, digest_text)))

    async def _cancel(self, request: web.BaseRequest, name: str, ident: str) -> web.StreamResponse:
        async with self._working(name, ident) as (ingest, _):
            await self._run(ingest.discard)
        return answer(204, headers={"Docker-Upload-UUID": ident})

    @contextlib.asynccontextmanager
    async def _working(self, name: str, ident: str) -> AsyncIterator[tuple[Ingest, UploadTurn]]:
        """Yield an upload that only this request may use during the block.

        Afterwards, an unfinished upload is kept open.
        """
        async with self._uploads.alone(ident) as turn:
            await self._run(self._registry.progress, name, ident)
            ingest = self._uploads.take(ident)
            if ingest is None:
                ingest = await self._run(self._registry.resume, name, ident)
            try:
                yield ingest, turn
            except StoreFull:
                await self._run(ingest.give_way)
                raise
            finally:
                self._keep(ingest)

    def _keep(self, ingest: Ingest) -> None:
        for old in self._uploads.keep(ingest):
            self._pool.submit(old.close)

    async def _receive(self, request: web.BaseRequest, ingest: Ingest, turn: UploadTurn) -> None:
        await receive(request, ingest, turn, pool=self._pool, patience=self._patience)
