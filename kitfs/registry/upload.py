"""Upload a blob, unless the registry has it or can mount it from another repository. Uploads in chunks can resume.

Follows distribution-spec v1.1 "Pushing blobs". Responses show what a registry supports: any 2xx means success, and
after a method of sending is refused, the next method is tried (``upload_methods``). The headers Range, Location and
Docker-Upload-UUID of a registry are only hints, because the digest in the closing request decides. After a failed
attempt, kitfs asks the registry how many bytes the upload session has (GET). If the registry has lost the session, a
new session is begun. Failed attempts are retried within a budget, which is renewed whenever the registry acknowledges
more bytes than before. Threading: only one thread may use an Upload; several uploads may share a client.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Final
from urllib.parse import quote

import httpx

from kitfs.content import Hints, ReadFrom
from kitfs.errors import IntegrityError, KitfsError, RateLimited, RegistryError, Unavailable
from kitfs.oci.manifest import Descriptor
from kitfs.registry.http import Endpoint, HttpClient, StreamedBody
from kitfs.registry.http_errors import Broken, Stalled, failure, mapped, read_error, shown
from kitfs.registry.refusals import code_of, refusal
from kitfs.registry.retry import MAX_WAIT, RETRYABLE, retry_after
from kitfs.registry.upload_methods import PATCH, PUT, Lessons, MethodPlan
from kitfs.registry.upload_session import Refused, Retryable, UploadSession

CHUNK: Final = 32 << 20  # bytes of one PATCH; a smaller blob is sent in one PUT
MAX_FAILURES: Final = 5  # failed attempts in a row in which the registry received no further bytes
PERMANENT: Final = frozenset({501, 505, 507})  # 5xx statuses that are not retried
RANGE: Final = re.compile(r"(?:bytes[= ])?0-(-1|\d{1,19})(?:/.*)?")
LOST: Final = frozenset({"BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"})
CLOSED: Final = frozenset({"DENIED", "UNAUTHORIZED"})  # error codes after which no other method is tried
OCTETS: Final = "application/octet-stream"


class Upload:
    """The upload of one blob to the repository ``name`` at ``endpoint``. The endpoint's tokens allow pushing."""

    def __init__(
        self,
        http: HttpClient,
        endpoint: Endpoint,
        name: str,
        descriptor: Descriptor,
        read: ReadFrom,
        lessons: Lessons,
        *,
        chunk: int = CHUNK,
        hints: Hints | None = None,
        progress: Callable[[int], None] | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._http = http
        self._lessons = lessons
        self._endpoint = endpoint
        self._name = name
        self._digest = descriptor.digest
        self._size = descriptor.size
        self._read = read
        self._plan = MethodPlan(descriptor.size, chunk, lessons.of(endpoint.host, hints))
        self._refusal: KitfsError | None = None  # the first refusal, which is raised if no method is left
        self._hints = hints
        self._key = ("upload", f"{endpoint.base}@{self._digest}")
        self._progress = progress
        self._sleep = sleep
        self._reported = 0  # bytes that were reported to ``progress``
        self._most = 0  # the most bytes that the registry has acknowledged
        self._failures = 0  # failed attempts since ``_most`` last grew
        self._waited = 0.0  # seconds of pauses since ``_most`` last grew
        self._resuming = False  # whether the session is from an earlier call and the registry has not confirmed it
        self._closing = False  # whether the closing request has been sent, so that the registry may have the blob
        self._mistrusted = False  # whether a digest was already wrong, possibly because of a resumed session

    def __repr__(self) -> str:
        return f"<Upload {self._digest} to {self._endpoint.host}, {self._most} of {self._size} bytes>"

    def run(self, mount_from: Sequence[str] = ()) -> str:
        """Upload the blob. Return "exists", "mounted" or "uploaded". Raises the errors of ``Repository.upload``."""
        if self._exists():
            self._delete_hint()
            return "exists"
        session = self._saved_session()
        self._resuming = session is not None
        if session is None:
            mounted, session = self._mount(mount_from)
            if mounted:
                return "mounted"
        while True:
            try:
                try:
                    if self._closing and self._exists():
                        self._refusal = None
                        break  # the response was lost or wrong, but the registry has the blob
                    self._closing = False
                    session = session or self._begin()
                    self._send(session)
                    break
                except Retryable as failed:
                    session = self._recovered(session, failed)
            except Refused as refused:
                self._change_method(session, refused)
                session = None
        self._delete_hint()
        if self._refusal is not None:
            self._lessons.learn(self._endpoint.host, self._plan.lesson, self._hints)
        self._report(self._size)
        return "uploaded"

    # -- one request each

    @property
    def _what(self) -> str:
        return f"{self._name}: blob {self._digest}"

    def _exists(self) -> bool:
        """Return whether the registry reports that it has the blob.

        A refused HEAD counts as False, because the following requests will find the reason.
        """
        url = f"{self._endpoint.base}/blobs/{self._digest}"
        response = self._http.head(self._endpoint, url, self._what)
        if response.status_code in RETRYABLE or (response.status_code >= 500 and response.status_code not in PERMANENT):
            raise failure(response, self._what)
        return response.is_success

    def _mount(self, sources: Sequence[str]) -> tuple[bool, UploadSession | None]:
        """Try to mount the blob from a repository in ``sources``.

        Returns (whether the blob was mounted, the upload session that the registry began instead).
        """
        session: UploadSession | None = None
        for source in dict.fromkeys(sources):
            if source == self._name:
                continue
            scope = f"repository:{self._name}:pull,push repository:{source}:pull"
            query = f"mount={quote(self._digest, safe='')}&from={quote(source, safe='')}"
            try:
                response = self._http.send(self._endpoint.scoped(scope), "POST", self._uploads(query), {}, self._what)
                read_error(response)
                if response.status_code == 201 or (
                    response.is_success and response.status_code != 202 and self._exists()
                ):
                    if session is not None:
                        self._cancel(session)
                    return True, None
                begun = self._begun(response) if response.is_success else None
            except RegistryError:
                continue  # the source does not exist or may not be read, so the blob is sent instead
            if session is not None and begun is not None:
                self._cancel(begun)
            session = session or begun
        return False, session

    def _begin(self) -> UploadSession:
        response = self._request("POST", self._uploads(""), {}, self._body(0, 0))
        if not response.is_success:
            raise refusal(response, self._what)
        return self._begun(response)

    def _begun(self, response: httpx.Response) -> UploadSession:
        least = response.headers.get("OCI-Chunk-Min-Length", "")
        return UploadSession(self._location(response), least=int(least) if re.fullmatch(r"[0-9]{1,18}", least) else 0)

    def _uploads(self, query: str) -> str:
        algorithm = "" if self._digest.algorithm == "sha256" else f"digest-algorithm={self._digest.algorithm}"
        query = "&".join(part for part in (query, algorithm) if part)
        return f"{self._endpoint.base}/blobs/uploads/{'?' if query else ''}{query}"

    def _send(self, session: UploadSession) -> None:
        """Send the bytes that the session lacks, and close the session."""
        if not session.sure:
            self._ask(session)
        method = self._plan.method
        if method == PATCH:
            self._patch(session, self._size, {})
        while method.chunk and session.at < self._size:
            stop = min(self._size, session.at + max(method.chunk, session.least))
            self._patch(session, stop, {"Content-Range": f"{session.at}-{stop - 1}"})
        self._close(session, self._body(0 if method == PUT else self._size, self._size))

    def _ask(self, session: UploadSession) -> None:
        """Ask the registry how many bytes of the blob the session has."""
        response = self._request("GET", session.location, {}, None)
        if not response.is_success:
            raise self._unknown_session(response)
        found = RANGE.fullmatch(response.headers.get("Range", ""))
        at = int(found[1]) + 1 if found else self._size + 1
        if at == 1:
            at = 0  # most registries also return 0-0 for an empty session
        if at > self._size:
            raise Retryable(self._lost(), pause=0, lost=True, other=True)
        if "Location" in response.headers:
            session.location = self._location(response)
        session.sure, session.exact = True, False
        self._acknowledged(session, at)

    def _patch(self, session: UploadSession, stop: int, headers: dict[str, str]) -> None:
        """Send the bytes up to ``stop``.

        Any 2xx means that the registry has these bytes, unless the Range of the response covers only a part of them.
        """
        body = self._body(session.at, stop)
        response = self._request("PATCH", session.location, {"Content-Type": OCTETS, **headers}, body)
        if not response.is_success:
            raise self._refused(response, session, body.size)
        if "Location" in response.headers:
            session.location = self._location(response)
        found = RANGE.fullmatch(response.headers.get("Range", ""))
        has = int(found[1]) + 1 if found else stop
        session.odd = session.odd or has != stop
        # Some registries return a Range relative to this chunk, the Range of the first chunk, or a byte too many.
        # If such a Range hides a loss, the next request or the digest reveals it.
        self._acknowledged(session, has if session.at < has <= stop and self._plan.method.chunk else stop)

    def _close(self, session: UploadSession, body: StreamedBody) -> None:
        """Send the closing request. If the method is a single PUT, this request contains the whole blob."""
        query = (
            session.location.query
            + (b"&" if session.location.query else b"")
            + f"digest={quote(self._digest, safe='')}".encode()
        )
        self._closing = True
        response = self._request("PUT", session.location.copy_with(query=query), {"Content-Type": OCTETS}, body)
        if not response.is_success:
            raise self._refused(response, session, body.size)
        claimed = response.headers.get("Docker-Content-Digest", "")
        if claimed.partition(":")[0] == self._digest.algorithm and claimed != self._digest:
            raise IntegrityError(f"{self._what}: {self._endpoint.host} stored it under another digest: {claimed[:150]}")

    def _cancel(self, session: UploadSession) -> None:
        """Cancel a session. Errors are ignored."""
        try:
            self._http.send(self._endpoint, "DELETE", session.location, {}, self._what).close()
        except KitfsError:
            pass  # the registry deletes the session after some time

    def _body(self, start: int, stop: int) -> StreamedBody:
        return StreamedBody(self._read, start, stop, self._what, self._report)

    def _request(
        self, method: str, url: str | httpx.URL, headers: dict[str, str], body: StreamedBody | None
    ) -> httpx.Response:
        """Send a request, and return the response with the useful part of its body already read.

        Raises Retryable if no response arrives, or if the response has a status after which the request is retried.
        """
        try:
            response = self._http.send(self._endpoint, method, url, headers, self._what, body=body, repeat=False)
        except (Unavailable, RateLimited) as e:
            # Some registries close the connection instead of refusing a request. If no byte has been acknowledged, the
            # method of sending may be the reason.
            raise Retryable(e, other=isinstance(e, Broken) and body is not None and body.size > 0 and not self._most)
        read_error(response)
        status = response.status_code
        if status in RETRYABLE or (status >= 500 and status not in PERMANENT):
            raise Retryable(
                failure(response, self._what), pause=retry_after(response), other=status == 500 and body is not None
            )
        return response

    def _location(self, response: httpx.Response) -> httpx.URL:
        """Return the URL for the next request of a session.

        Raises RegistryError for a response without a Location, and for a Location without TLS if the previous URL used
        TLS.
        """
        host = self._endpoint.host
        text = response.headers.get("Location", "")
        if not text and (number := response.headers.get("Docker-Upload-UUID", "")):
            text = f"{self._endpoint.base}/blobs/uploads/{quote(number, safe='')}"
        if not text:
            raise RegistryError(
                f"{self._what}: {host} returned {response.status_code} without a Location", status=response.status_code
            )
        with mapped(response.request.url, self._what):
            return self._allowed(response.request.url.join(text))

    def _allowed(self, url: httpx.URL) -> httpx.URL:
        home = httpx.URL(self._endpoint.base)
        if (url.scheme, home.scheme, url.host) == ("http", "https", home.host):
            return url.copy_with(scheme=home.scheme, port=home.port)  # a proxy terminates TLS
        if url.scheme not in ("http", "https") or (url.scheme, home.scheme) == ("http", "https"):
            raise RegistryError(
                f"{self._what}: {self._endpoint.host} leads the upload to {url.scheme}:, away from TLS", url=shown(url)
            )
        return url

    # -- failures and progress

    def _refused(self, response: httpx.Response, session: UploadSession, sent: int) -> Retryable | Refused | KitfsError:
        """Return the error for a response that is not 2xx.

        ``sent``: the bytes in the body of the request, which was a PATCH or the closing request.
        """
        error: KitfsError = refusal(response, self._what)
        status, code = response.status_code, code_of(response)
        if status in (401, 403, 507) or code in CLOSED:
            if status == 507:
                self._give_up(session)
            return error  # the session is kept, because the upload may resume after a login
        if code == "DIGEST_INVALID":
            return self._digest_refused(session)
        fresh = session.exact and session.at == 0 and not session.odd
        if code in LOST or (status in (404, 410) and not fresh):
            return Retryable(self._lost(), pause=0, lost=True, other=True)
        if status == 416 and not fresh and session.doubted != session.at:
            session.doubted = session.at
            # The session may have one byte, which ``_ask`` cannot distinguish from an empty session.
            return Retryable(error, pause=0, lost=session.at == 0, other=True)
        return Refused(error, too_large=sent if status == 413 else None)

    def _digest_refused(self, session: UploadSession) -> Retryable | Refused | KitfsError:
        """Return the error for a wrong digest. The local copy, a resumed session, or the registry may be the cause."""
        host = self._endpoint.host
        if not self._intact():
            self._give_up(session)
            return IntegrityError(
                f"{self._what}: {host} computed another digest, because the local copy is damaged "
                "(pack or pull it again)"
            )
        error = RegistryError(
            f"{self._what}: {host} computed another digest, although the local copy is right (push again)",
            status=400,
        )
        if session.exact or session.odd or self._mistrusted:
            return Refused(error)
        self._mistrusted = True
        return Retryable(error, pause=0, lost=True)

    def _intact(self) -> bool:
        """Return whether the local copy matches its digest. Raises IntegrityError if it is too short."""
        hasher = self._digest.hasher()
        for piece in StreamedBody(self._read, 0, self._size, self._what, lambda _: None):
            hasher.update(piece)
        return bool(hasher.hexdigest() == self._digest.hex)

    def _unknown_session(self, response: httpx.Response) -> Retryable | KitfsError:
        """Return the error for a response that does not state how many bytes a session has."""
        if response.status_code in (401, 403):
            return refusal(response, self._what)
        return Retryable(self._lost(), pause=0, lost=True, other=True)

    def _change_method(self, session: UploadSession | None, refused: Refused) -> None:
        """Switch to the next method of sending. Raises the error of the first refusal if no method is left."""
        self._refusal = self._refusal or refused.error
        method = self._plan.method
        if session is not None:
            self._give_up(session)
        if not self._plan.refuse(refused.too_large):
            raise self._refusal
        self._http.log.debug("%s; trying method %s instead of %s", refused.error, self._plan.method.name, method.name)
        self._failures, self._waited, self._mistrusted, self._resuming = 0, 0.0, False, False

    def _give_up(self, session: UploadSession) -> None:
        self._delete_hint()
        self._cancel(session)

    def _lost(self) -> Unavailable:
        return Unavailable(f"{self._what}: {self._endpoint.host} has lost the upload session (push again)")

    def _recovered(self, session: UploadSession | None, failed: Retryable) -> UploadSession | None:
        """Pause after a failed attempt. Return the session to continue with, or None to begin a new session.

        Raises the error of the attempt if the budget is used up.
        """
        self._failures += 2 if isinstance(failed.error, Stalled) else 1  # a timeout has already taken a long time
        pause = self._http.retries.pause_after(self._failures) if failed.pause is None else failed.pause
        if self._failures >= MAX_FAILURES or self._waited + pause > MAX_WAIT:
            if not self._resuming and failed.other:
                raise Refused(failed.error)
            if not self._resuming:
                raise failed.error
            # The session of the earlier call may no longer exist, so begin a new session with a new budget.
            session, self._resuming, self._failures, self._waited, pause = None, False, 0, 0.0, 0.0
        self._http.counters.add("retries")
        self._http.log.debug("%s; retrying in %.1f s", failed.error, pause)
        self._waited += pause
        self._sleep(pause)
        if session is None or failed.lost or not self._plan.method.chunk:
            self._delete_hint()
            return None
        session.sure = False
        return session

    def _acknowledged(self, session: UploadSession, at: int) -> None:
        """Record that the registry has ``at`` bytes."""
        session.at = at
        self._resuming = False
        self._report(at)
        if at > self._most:
            self._most, self._failures, self._waited = at, 0, 0.0
        if self._hints is not None and at and self._plan.method.chunk:
            self._hints.set(self._key, {"location": str(session.location), "at": at, "least": session.least})

    def _report(self, at: int) -> None:
        """Report to ``progress`` that exactly the bytes up to ``at`` have been sent."""
        if self._progress is not None and at != self._reported:
            self._progress(at - self._reported)
        self._reported = at

    def _saved_session(self) -> UploadSession | None:
        """Return the session that an earlier call left unfinished, or None."""
        saved: Any = self._hints.get(self._key) if self._hints is not None and self._plan.method.chunk else None
        try:
            location, at, least = saved["location"], int(saved["at"]), int(saved["least"])
            return UploadSession(self._allowed(httpx.URL(location)), at, least, sure=False, exact=False)
        except (KeyError, TypeError, ValueError, httpx.InvalidURL, RegistryError):
            return None  # the hint does not exist or is invalid

    def _delete_hint(self) -> None:
        if self._hints is not None:
            self._hints.delete(self._key)
