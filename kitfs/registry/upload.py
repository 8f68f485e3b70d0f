"""Pushing a blob: looked for first, mounted from a repository beside it, else sent; chunks are taken up where they broke off.

Follows distribution-spec v1.1 "Pushing blobs" and, for what goes in one piece and what in chunks, KITOPS §7. The registry's word counts
for how much of a blob it has: after every setback it is asked (GET of the session), and a session that it has lost is begun anew. Setbacks
are borne within a budget that each byte more which the registry acknowledges renews. Not a source of digests: the registry checks them.
Threading: an Upload is of one thread; several blobs go up at once over the client that they share.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote

import httpx

from kitfs.errors import IntegrityError, KitfsError, RateLimited, RegistryError, StoreError, Unavailable
from kitfs.oci.manifest import Descriptor
from kitfs.registry.failures import Stalled, failure, host_of, mapped, read_error, shown
from kitfs.registry.retry import AGAIN, MAX_WAIT, pause_after, retry_after

if TYPE_CHECKING:
    from kitfs.registry.client import Endpoint, RegistryClient

CHUNK: Final = 32 << 20  # bytes of one PATCH; what is smaller goes in one PUT
FRUITLESS: Final = 5  # setbacks in a row, none of which brought the registry a byte more
IN_ONE_PIECE: Final = re.compile(r"ghcr\.io|.*\.pkg\.dev|.*gcr\.io|.*\.amazonaws\.com(?:\.cn)?")  # hosts that want no chunks
FOREVER: Final = frozenset({501, 505, 507})  # of 5xx: what no second attempt changes
RANGE: Final = re.compile(r"(?:bytes[= ])?0-(-1|\d{1,19})")
OCTETS: Final = "application/octet-stream"
REFUSALS: Final = {
    405: "it takes no pushes (it may be read-only)",
    413: "too much for one request (a limit of the registry, or of a proxy before it)",
    507: "it has no space left",
}
Read = Callable[[int], Iterator[bytes]]


class Journal(Protocol):
    """Where unfinished sessions are noted: a hint between processes, which may forget. The store's catalog is one."""

    def get(self, key: tuple[str, str], /) -> Any: ...

    def set(self, key: tuple[str, str], value: Any, /) -> None: ...

    def delete(self, key: tuple[str, str], /) -> None: ...


class Setback(Exception):  # noqa: N818 - not an error yet
    """An attempt that may be made again after ``pause`` seconds (None: the usual); ``error`` is what it is when there is no other.

    ``lost``: the registry has no such session any more.
    """

    def __init__(self, error: KitfsError, *, pause: float | None = None, lost: bool = False) -> None:
        super().__init__(error)
        self.error = error
        self.pause = pause
        self.lost = lost


@dataclass(slots=True)
class Session:
    """An upload session. ``at``: bytes that the registry has, where it is ``sure``; ``least``: bytes of every chunk but the last.

    ``exact``: each byte was sent by this process and acknowledged in order, so that a wrong digest cannot be the session's fault.
    """

    location: httpx.URL
    at: int = 0
    least: int = 0
    sure: bool = True
    exact: bool = True


class Body(httpx.SyncByteStream):
    """The bytes [start, stop) of a blob, read anew each time they are sent; ``sent`` is told the place up to which they went out."""

    def __init__(self, read: Read, start: int, stop: int, what: str, sent: Callable[[int], None]) -> None:
        self._read = read
        self._start = start
        self._stop = stop
        self._what = what
        self._sent = sent

    @property
    def size(self) -> int:
        """Bytes."""
        return self._stop - self._start

    def __iter__(self) -> Iterator[bytes]:
        """Pieces. Raises StoreError when they cannot be read, IntegrityError when there are too few."""
        at = self._start
        self._sent(at)
        pieces = self._pieces()
        while at < self._stop:
            piece = next(pieces, b"")[: self._stop - at]
            if not piece:
                raise IntegrityError(f"{self._what}: the local copy ends at byte {at}, before the end that its descriptor says")
            yield piece
            at += len(piece)
            self._sent(at)

    def _pieces(self) -> Iterator[bytes]:
        try:
            yield from (piece for piece in self._read(self._start) if piece)
        except OSError as e:
            raise StoreError(f"{self._what}: the local copy cannot be read: {e}")


class Upload:
    """One blob on its way to the registry of ``endpoint``, whose auth is for pushing to repository ``name``."""

    def __init__(
        self,
        client: RegistryClient,
        endpoint: Endpoint,
        name: str,
        descriptor: Descriptor,
        read: Read,
        *,
        chunk: int = CHUNK,
        journal: Journal | None = None,
        progress: Callable[[int], None] | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._client = client
        self._endpoint = endpoint
        self._name = name
        self._digest = descriptor.digest
        self._size = descriptor.size
        self._read = read
        self._chunk = chunk
        self._whole = self._size < chunk or IN_ONE_PIECE.fullmatch(endpoint.host.partition(":")[0].lower()) is not None
        self._journal = None if self._whole else journal
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
                if self._closing and self._exists():
                    break  # the answer was lost, not the blob
                self._closing = False
                session = session or self._begin()
                self._send(session)
                break
            except Setback as setback:
                session = self._recovered(session, setback)
        self._forget()
        self._tell(self._size)
        return "uploaded"

    # -- one request each ----------------------------------------------------------------------------------------------------

    @property
    def _what(self) -> str:
        return f"{self._name}: blob {self._digest}"

    def _exists(self) -> bool:
        url = f"{self._endpoint.base}/blobs/{self._digest}"
        response = self._client.send(self._endpoint, "HEAD", url, {}, self._what)
        response.close()
        if response.status_code in (200, 404):
            return response.status_code == 200
        response._content = b""  # noqa: SLF001 - the body of a HEAD
        raise failure(response, self._what)

    def _mount(self, sources: Sequence[str]) -> tuple[bool, Session | None]:
        """(whether a repository beside this one has given the blob, else the session that was begun by asking)."""
        session: Session | None = None
        for source in dict.fromkeys(sources):
            if source == self._name:
                continue
            scope = f"repository:{self._name}:pull,push repository:{source}:pull"
            query = f"mount={quote(self._digest, safe='')}&from={quote(source, safe='')}"
            try:
                response = self._client.send(self._endpoint.scoped(scope), "POST", self._uploads(query), {}, self._what)
                read_error(response)
                if response.status_code == 201:
                    if session is not None:
                        self._cancel(session)
                    return True, None
                begun = self._begun(response) if response.status_code == 202 else None
            except RegistryError:
                continue  # a source that may not be pulled from, or is not there, is no reason to fail
            if session is not None and begun is not None:
                self._cancel(begun)
            session = session or begun
        return False, session

    def _begin(self) -> Session:
        response = self._request("POST", self._uploads(""), {}, self._body(0, 0))
        if response.status_code != 202:
            raise self._refused(response, None)
        return self._begun(response)

    def _begun(self, response: httpx.Response) -> Session:
        least = response.headers.get("OCI-Chunk-Min-Length", "")
        return Session(self._location(response), least=int(least) if re.fullmatch(r"[0-9]{1,18}", least) else 0)

    def _uploads(self, query: str) -> str:
        algorithm = "" if self._digest.algorithm == "sha256" else f"digest-algorithm={self._digest.algorithm}"
        query = "&".join(part for part in (query, algorithm) if part)
        return f"{self._endpoint.base}/blobs/uploads/{'?' if query else ''}{query}"

    def _send(self, session: Session) -> None:
        """What the session lacks, and its end."""
        if not session.sure:
            self._ask(session)
        while session.at < self._size and not self._whole:
            self._patch(session)
        self._close(session)

    def _ask(self, session: Session) -> None:
        """How much of the blob the registry has."""
        response = self._request("GET", session.location, {}, None)
        found = RANGE.fullmatch(response.headers.get("Range", ""))
        if response.status_code not in (200, 202, 204):
            raise self._refused(response, session, any_loses=True)
        at = int(found[1]) + 1 if found else self._size + 1
        if at == 1:
            at = 0  # 0-0 is what most registries say of nothing, too
        if at > self._size:
            raise Setback(self._lost(), pause=0, lost=True)
        if "Location" in response.headers:
            session.location = self._location(response)
        session.sure, session.exact = True, False
        self._acknowledged(session, at)

    def _patch(self, session: Session) -> None:
        """One chunk."""
        stop = min(self._size, session.at + max(self._chunk, session.least))
        headers = {"Content-Type": OCTETS, "Content-Range": f"{session.at}-{stop - 1}"}
        response = self._request("PATCH", session.location, headers, self._body(session.at, stop))
        if response.status_code != 202:
            raise self._refused(response, session)
        if "Location" in response.headers:
            session.location = self._location(response)
        said = response.headers.get("Range", f"0-{stop - 1}")
        found = RANGE.fullmatch(said)
        if found is None or not session.at < int(found[1]) + 1 <= stop:
            told = f"{self._what}: {self._endpoint.host} acknowledges bytes {said[:50]!r} where {session.at}-{stop - 1} were sent"
            raise Setback(RegistryError(told, status=202, url=shown(session.location)))
        self._acknowledged(session, int(found[1]) + 1)

    def _close(self, session: Session) -> None:
        """The closing request, with the whole blob if that goes in one piece."""
        body = self._body(0, self._size) if self._whole else self._body(self._size, self._size)
        query = session.location.query + (b"&" if session.location.query else b"") + f"digest={quote(self._digest, safe='')}".encode()
        self._closing = True
        response = self._request("PUT", session.location.copy_with(query=query), {"Content-Type": OCTETS}, body)
        if response.status_code != 201:
            raise self._refused(response, session)
        claimed = response.headers.get("Docker-Content-Digest", "")
        if claimed.partition(":")[0] == self._digest.algorithm and claimed != self._digest:
            raise IntegrityError(f"{self._what}: {self._endpoint.host} has stored it as {claimed[:150]}")

    def _cancel(self, session: Session) -> None:
        """Give a session up; nothing depends on it."""
        try:
            self._client.send(self._endpoint, "DELETE", session.location, {}, self._what).close()
        except KitfsError:
            pass  # the registry ends it some day

    def _body(self, start: int, stop: int) -> Body:
        return Body(self._read, start, stop, self._what, self._tell)

    def _request(self, method: str, url: str | httpx.URL, headers: dict[str, str], body: Body | None) -> httpx.Response:
        """An answer, read as far as it matters. Raises Setback when there is none, or one that says to try again."""
        try:
            response = self._client.send(self._endpoint, method, url, headers, self._what, body=body, repeat=False)
        except (Unavailable, RateLimited) as e:
            raise Setback(e)
        read_error(response)
        status = response.status_code
        if status in AGAIN or (status >= 500 and status not in FOREVER):
            raise Setback(failure(response, self._what), pause=retry_after(response))
        return response

    def _location(self, response: httpx.Response) -> httpx.URL:
        """Where the session goes on. Raises RegistryError when there is no such place, or TLS would be left for it."""
        host = self._endpoint.host
        text = response.headers.get("Location", "")
        if not text:
            raise RegistryError(f"{self._what}: {host} answers {response.status_code} without a Location", status=response.status_code)
        with mapped(response.request.url, self._what):
            return self._allowed(response.request.url.join(text))

    def _allowed(self, url: httpx.URL) -> httpx.URL:
        home = httpx.URL(self._endpoint.base)
        if (url.scheme, home.scheme, url.host) == ("http", "https", home.host):
            return url.copy_with(scheme=home.scheme, port=home.port)  # a proxy ends TLS, and the registry does not know
        if url.scheme not in ("http", "https") or (url.scheme, home.scheme) == ("http", "https"):
            raise RegistryError(f"{self._what}: {self._endpoint.host} wants it sent to {url.scheme}:, away from TLS", url=shown(url))
        return url

    # -- what becomes of it --------------------------------------------------------------------------------------------------

    def _refused(self, response: httpx.Response, session: Session | None, *, any_loses: bool = False) -> Setback | KitfsError:
        """What to make of an answer that is not the one that was due. ``any_loses``: whatever it is, the session is of no use."""
        error: KitfsError = refusal(response, self._what)
        status, code = response.status_code, getattr(error, "code", "")
        if status in (401, 403):
            return error  # whoever logs in may go on
        if session is not None and (any_loses or status in (404, 410) or code in ("BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID")):
            return Setback(self._lost(), pause=0, lost=True)
        if session is not None and status == 416:
            return Setback(error, pause=0, lost=session.at == 0)  # it may have one byte (see _ask), which is not worth asking for again
        if isinstance(error, IntegrityError) and session is not None and not session.exact and not self._mistrusted:
            self._mistrusted = True
            return Setback(error, pause=0, lost=True)
        if session is not None:
            self._forget()
            self._cancel(session)
        return error

    def _lost(self) -> Unavailable:
        return Unavailable(f"{self._what}: {self._endpoint.host} knows nothing of its upload any more; push again")

    def _recovered(self, session: Session | None, setback: Setback) -> Session | None:
        """The session to go on with, after a pause; None to begin anew. Raises the setback's error at the end of the budget."""
        self._failures += 2 if isinstance(setback.error, Stalled) else 1  # whoever waited for a timeout has waited long already
        pause = pause_after(self._failures) if setback.pause is None else setback.pause
        if self._failures >= FRUITLESS or self._waited + pause > MAX_WAIT:
            if not self._resuming:
                raise setback.error
            session, self._resuming, self._failures, self._waited, pause = None, False, 0, 0.0, 0.0  # there may be no such place any more
        self._client.counters.add("retries")
        self._client.log.debug("%s; again in %.1f s", setback.error, pause)
        self._waited += pause
        self._sleep(pause)
        if session is None or setback.lost or self._whole:
            self._forget()
            return None
        session.sure = False
        return session

    def _acknowledged(self, session: Session, at: int) -> None:
        """The registry has ``at`` bytes."""
        session.at = at
        self._resuming = False
        self._tell(at)
        if at > self._most:
            self._most, self._failures, self._waited = at, 0, 0.0
        if self._journal is not None and at:
            self._journal.set(self._key, {"location": str(session.location), "at": at, "least": session.least})

    def _tell(self, at: int) -> None:
        """Tell progress that everything up to ``at`` has been sent, and nothing beyond."""
        if self._progress is not None and at != self._told:
            self._progress(at - self._told)
        self._told = at

    def _noted(self) -> Session | None:
        """The session that an earlier call left unfinished, if the registry may still have it."""
        noted: Any = self._journal.get(self._key) if self._journal is not None else None
        try:
            location, at, least = noted["location"], int(noted["at"]), int(noted["least"])
            return Session(self._allowed(httpx.URL(location)), at, least, sure=False, exact=False)
        except (KeyError, TypeError, ValueError, httpx.InvalidURL, RegistryError):
            return None  # there is no note, or it is nobody's

    def _forget(self) -> None:
        if self._journal is not None:
            self._journal.delete(self._key)


def refusal(response: httpx.Response, what: str) -> KitfsError:
    """``failure``, with what an answer to a push means."""
    status = response.status_code
    error = failure(response, what)
    host = host_of(response.request.url)
    if isinstance(error, RegistryError) and error.code == "DIGEST_INVALID":
        return IntegrityError(f"{what}: {host} finds another digest in what was sent; the local copy may be damaged")
    if status not in REFUSALS or not isinstance(error, RegistryError):
        return error
    told = f"{what}: {host} answers {status}: {REFUSALS[status]}"
    return RegistryError(told, status=status, code=error.code, url=error.url)
