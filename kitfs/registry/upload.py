"""Pushing a blob: it is looked for first, mounted from a repository beside it, or sent; chunks resume where they
broke off.

Follows distribution-spec v1.1 "Pushing blobs". What a registry can do is learned from its answers: statuses are read
by class (any 2xx means done), a way of sending that it refuses is followed by the next one (``upload_methods``), and
its bookkeeping (Range, Location, Docker-Upload-UUID) is a hint, since the digest in the closing request decides.
After a setback the session is asked how much it has (GET), and a session that the registry has lost is replaced by a
new one. Setbacks are tolerated within a budget that is renewed by each byte that the registry acknowledges beyond
what it ever had. Threading: an Upload belongs to one thread; several blobs are sent at once over the client that they
share.
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
from kitfs.registry.retry import MAX_WAIT, RETRYABLE, pause_after, retry_after
from kitfs.registry.upload_methods import PATCH, PUT, Lessons, MethodPlan
from kitfs.registry.upload_session import Refused, Retryable, UploadSession

CHUNK: Final = 32 << 20  # bytes of one PATCH; a smaller blob goes in one PUT
FRUITLESS: Final = 5  # setbacks in a row, none of which brought the registry a byte more
PERMANENT: Final = frozenset({501, 505, 507})  # of 5xx: what no second attempt changes
RANGE: Final = re.compile(r"(?:bytes[= ])?0-(-1|\d{1,19})(?:/.*)?")
LOST: Final = frozenset({"BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"})
CLOSED: Final = frozenset({"DENIED", "UNAUTHORIZED"})  # codes that no other way of sending changes
OCTETS: Final = "application/octet-stream"


class Upload:
    """One blob on its way to the registry of ``endpoint``, whose auth is for pushing to repository ``name``."""

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
        self._refusal: KitfsError | None = None  # the first one: it is raised when no way is left
        self._hints = hints
        self._key = ("upload", f"{endpoint.base}@{self._digest}")
        self._progress = progress
        self._sleep = sleep
        self._told = 0  # bytes, to progress
        self._most = 0  # bytes that were ever acknowledged
        self._failures = 0  # since then
        self._waited = 0.0  # seconds, since then
        self._resuming = False  # whether the session is one that an earlier call left, and nothing was heard of it yet
        self._closing = False  # whether the closing request has been sent, so that the blob may be there
        self._mistrusted = False  # whether a digest was wrong already, maybe by a session's fault

    def __repr__(self) -> str:
        return f"<Upload {self._digest} to {self._endpoint.host}, {self._most} of {self._size} bytes>"

    def run(self, mount_from: Sequence[str] = ()) -> str:
        """exists, mounted or uploaded. Raises what ``Repository.upload`` does."""
        if self._exists():
            self._forget()
            return "exists"
        session = self._noted()
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
                        break  # the answer was lost or wrong, and the blob is there
                    self._closing = False
                    session = session or self._begin()
                    self._send(session)
                    break
                except Retryable as setback:
                    session = self._recovered(session, setback)
            except Refused as refused:
                self._change(session, refused)
                session = None
        self._forget()
        if self._refusal is not None:
            self._lessons.learn(self._endpoint.host, self._plan.lesson, self._hints)
        self._tell(self._size)
        return "uploaded"

    # -- one request each

    @property
    def _what(self) -> str:
        return f"{self._name}: blob {self._digest}"

    def _exists(self) -> bool:
        """Whether the registry says that it has the blob. A HEAD that it refuses is a no: the requests that follow
        tell what is wrong.
        """
        url = f"{self._endpoint.base}/blobs/{self._digest}"
        response = self._http.head(self._endpoint, url, self._what)
        if response.status_code in RETRYABLE or (response.status_code >= 500 and response.status_code not in PERMANENT):
            raise failure(response, self._what)
        return response.is_success

    def _mount(self, sources: Sequence[str]) -> tuple[bool, UploadSession | None]:
        """(whether a repository beside this one has given the blob, else the session that was begun by asking)."""
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
                continue  # a source that may not be pulled from, or is not there, is no reason to fail
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
        """Send what the session lacks, and close it."""
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
        """How much of the blob the registry has."""
        response = self._request("GET", session.location, {}, None)
        if not response.is_success:
            raise self._unanswered(response, session)
        found = RANGE.fullmatch(response.headers.get("Range", ""))
        at = int(found[1]) + 1 if found else self._size + 1
        if at == 1:
            at = 0  # 0-0 is what most registries say of nothing, too
        if at > self._size:
            raise Retryable(self._lost(), pause=0, lost=True, other=True)
        if "Location" in response.headers:
            session.location = self._location(response)
        session.sure, session.exact = True, False
        self._acknowledged(session, at)

    def _patch(self, session: UploadSession, stop: int, headers: dict[str, str]) -> None:
        """Send the bytes up to ``stop``. Any 2xx says that they were taken; a Range counts where it says that a part
        of them was.
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
        # Some say where this chunk ends in itself, where the first one ended, or one byte too much: the next request
        # or the digest tells.
        self._acknowledged(session, has if session.at < has <= stop and self._plan.method.chunk else stop)

    def _close(self, session: UploadSession, body: StreamedBody) -> None:
        """Send the closing request, with the whole blob if that is the method."""
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
            raise IntegrityError(f"{self._what}: {self._endpoint.host} has stored it as {claimed[:150]}")

    def _cancel(self, session: UploadSession) -> None:
        """Give a session up; nothing depends on it."""
        try:
            self._http.send(self._endpoint, "DELETE", session.location, {}, self._what).close()
        except KitfsError:
            pass  # the registry ends it some day

    def _body(self, start: int, stop: int) -> StreamedBody:
        return StreamedBody(self._read, start, stop, self._what, self._tell)

    def _request(
        self, method: str, url: str | httpx.URL, headers: dict[str, str], body: StreamedBody | None
    ) -> httpx.Response:
        """An answer, read as far as it matters. Raises Setback when there is none, or one that says to try again."""
        try:
            response = self._http.send(self._endpoint, method, url, headers, self._what, body=body, repeat=False)
        except (Unavailable, RateLimited) as e:
            # Some hang up on what they do not take: where no byte was ever acknowledged, that may be the way of
            # sending.
            raise Retryable(e, other=isinstance(e, Broken) and body is not None and body.size > 0 and not self._most)
        read_error(response)
        status = response.status_code
        if status in RETRYABLE or (status >= 500 and status not in PERMANENT):
            raise Retryable(
                failure(response, self._what), pause=retry_after(response), other=status == 500 and body is not None
            )
        return response

    def _location(self, response: httpx.Response) -> httpx.URL:
        """Where the session goes on. Raises RegistryError when there is no such place, or TLS would be left for it."""
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
            return url.copy_with(scheme=home.scheme, port=home.port)  # a proxy ends TLS, and the registry does not know
        if url.scheme not in ("http", "https") or (url.scheme, home.scheme) == ("http", "https"):
            raise RegistryError(
                f"{self._what}: {self._endpoint.host} wants it sent to {url.scheme}:, away from TLS", url=shown(url)
            )
        return url

    # -- what becomes of it

    def _refused(self, response: httpx.Response, session: UploadSession, sent: int) -> Retryable | Refused | KitfsError:
        """What follows from an answer that is not 2xx to a request that sent ``sent`` bytes or closed the session."""
        error: KitfsError = refusal(response, self._what)
        status, code = response.status_code, code_of(response)
        if status in (401, 403, 507) or code in CLOSED:
            if status == 507:
                self._give_up(session)
            return error  # an upload goes on in its session after a login
        if code == "DIGEST_INVALID":
            return self._digest_refused(session)
        fresh = session.exact and session.at == 0 and not session.odd
        if code in LOST or (status in (404, 410) and not fresh):
            return Retryable(self._lost(), pause=0, lost=True, other=True)
        if status == 416 and not fresh and session.doubted != session.at:
            session.doubted = session.at
            return Retryable(
                error, pause=0, lost=session.at == 0, other=True
            )  # it may have one byte (see _ask), which nobody can tell
        return Refused(error, too_large=sent if status == 413 else None)

    def _digest_refused(self, session: UploadSession) -> Retryable | Refused | KitfsError:
        """The registry has other bytes than were due: the local copy says whose fault that is."""
        host = self._endpoint.host
        if not self._intact():
            self._give_up(session)
            return IntegrityError(
                f"{self._what}: {host} finds another digest in what was sent: the local copy is damaged; pack or pull it again"
            )
        error = RegistryError(
            f"{self._what}: {host} finds another digest in what was sent, and the local copy has the right one",
            status=400,
        )
        if session.exact or session.odd or self._mistrusted:
            return Refused(error)
        self._mistrusted = True
        return Retryable(error, pause=0, lost=True)

    def _intact(self) -> bool:
        """Whether the local copy has the digest that it should have. Raises IntegrityError when it is too short."""
        hasher = self._digest.hasher()
        for piece in StreamedBody(self._read, 0, self._size, self._what, lambda _: None):
            hasher.update(piece)
        return bool(hasher.hexdigest() == self._digest.hex)

    def _unanswered(self, response: httpx.Response, session: UploadSession) -> Retryable | KitfsError:
        """What follows when a session does not say how much it has."""
        if response.status_code in (401, 403):
            return refusal(response, self._what)
        return Retryable(self._lost(), pause=0, lost=True, other=True)

    def _change(self, session: UploadSession | None, refused: Refused) -> None:
        """Go on to the next way of sending. Raises the first refusal's error when there is none."""
        self._refusal = self._refusal or refused.error
        method = self._plan.method
        if session is not None:
            self._give_up(session)
        if not self._plan.refuse(refused.too_large):
            raise self._refusal
        self._http.log.debug("%s; not by %s but by %s", refused.error, method.name, self._plan.method.name)
        self._failures, self._waited, self._mistrusted, self._resuming = 0, 0.0, False, False

    def _give_up(self, session: UploadSession) -> None:
        self._forget()
        self._cancel(session)

    def _lost(self) -> Unavailable:
        return Unavailable(f"{self._what}: {self._endpoint.host} does not know its upload any more; push again")

    def _recovered(self, session: UploadSession | None, setback: Retryable) -> UploadSession | None:
        """The session to go on with, after a pause; None to begin anew. Raises the setback's error at the end of the
        budget.
        """
        self._failures += (
            2 if isinstance(setback.error, Stalled) else 1
        )  # whoever waited for a timeout has waited long already
        pause = pause_after(self._failures) if setback.pause is None else setback.pause
        if self._failures >= FRUITLESS or self._waited + pause > MAX_WAIT:
            if not self._resuming and setback.other:
                raise Refused(setback.error)
            if not self._resuming:
                raise setback.error
            session, self._resuming, self._failures, self._waited, pause = (
                None,
                False,
                0,
                0.0,
                0.0,
            )  # there may be no such place any more
        self._http.counters.add("retries")
        self._http.log.debug("%s; again in %.1f s", setback.error, pause)
        self._waited += pause
        self._sleep(pause)
        if session is None or setback.lost or not self._plan.method.chunk:
            self._forget()
            return None
        session.sure = False
        return session

    def _acknowledged(self, session: UploadSession, at: int) -> None:
        """The registry has ``at`` bytes."""
        session.at = at
        self._resuming = False
        self._tell(at)
        if at > self._most:
            self._most, self._failures, self._waited = at, 0, 0.0
        if self._hints is not None and at and self._plan.method.chunk:
            self._hints.set(self._key, {"location": str(session.location), "at": at, "least": session.least})

    def _tell(self, at: int) -> None:
        """Tell progress that everything up to ``at`` has been sent, and nothing beyond."""
        if self._progress is not None and at != self._told:
            self._progress(at - self._told)
        self._told = at

    def _noted(self) -> UploadSession | None:
        """The session that an earlier call left unfinished, if the registry may still have it."""
        noted: Any = self._hints.get(self._key) if self._hints is not None and self._plan.method.chunk else None
        try:
            location, at, least = noted["location"], int(noted["at"]), int(noted["least"])
            return UploadSession(self._allowed(httpx.URL(location)), at, least, sure=False, exact=False)
        except (KeyError, TypeError, ValueError, httpx.InvalidURL, RegistryError):
            return None  # there is no note, or it is nobody's

    def _forget(self) -> None:
        if self._hints is not None:
            self._hints.delete(self._key)
