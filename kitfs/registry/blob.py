"""Read a blob of a registry as a Source, by ranges. A body that breaks off is resumed at the next byte.

The registry is not trusted. A response to a range request must be 206 with a matching Content-Range. A 200 means that
the registry ignores Range; its body is then read as a stream of the whole blob. The target of a redirect is used until
it fails, for example because its signature has expired. Then the registry is asked once for a new target. Bodies are
read only in ``_pieces``. Threading: any number of threads may read at the same time, each on its own connection.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Final, Protocol

import httpx

from kitfs.errors import IntegrityError, KitfsError, RangeIgnored, RegistryError
from kitfs.oci.manifest import Descriptor
from kitfs.registry.direct_body import body_pieces
from kitfs.registry.http import Endpoint, HttpClient, combined
from kitfs.registry.http_errors import Broken, Stalled, check_encoding, host_of, mapped, shown
from kitfs.registry.pace import LEAST

LOG: Final = logging.getLogger("kitfs")
MAX_FRUITLESS: Final = 3  # attempts in a row without progress after which an endpoint is abandoned
PROGRESS: Final = (
    LEAST  # fewest bytes of an attempt that count as progress; with one byte per request, a read would never end
)
PAUSE: Final = 0.2  # seconds to wait after an attempt without progress
CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


class BlobRequest(Protocol):
    """A function that requests a blob, or the range in ``headers``. It returns a response with status 200 or 206.

    It raises KitfsError for any other response.
    """

    def __call__(self, endpoint: Endpoint, headers: dict[str, str]) -> httpx.Response: ...

    def forget(self, endpoint: Endpoint) -> None:
        """Forget the redirect of an endpoint, because its response was unusable."""


class PlainRequest:
    """A BlobRequest that does not remember redirects."""

    def __init__(self, request: Callable[[Endpoint, dict[str, str]], httpx.Response]) -> None:
        self._request = request

    def __call__(self, endpoint: Endpoint, headers: dict[str, str]) -> httpx.Response:
        """Send the request."""
        return self._request(endpoint, headers)

    def forget(self, endpoint: Endpoint) -> None:
        """Do nothing."""


class RequestAtRedirect:
    """A BlobRequest that remembers the target of a redirect, and sends the next request directly to the target.

    If the target fails, for example because its signature has expired, the next request goes to the registry again.
    """

    def __init__(
        self, http: HttpClient, request: Callable[[Endpoint, dict[str, str]], httpx.Response], what: str
    ) -> None:
        self._http = http
        self._request = request
        self._what = what
        self._targets: dict[str, httpx.URL] = {}  # base of an endpoint → the target of its redirect

    def __call__(self, endpoint: Endpoint, headers: dict[str, str]) -> httpx.Response:
        """Send the request."""
        target = self._targets.get(endpoint.base)
        if target is not None:
            try:
                response = self._http.send(endpoint, "GET", target, headers, self._what)
                if response.status_code in (200, 206):
                    return response
                response.close()
            except Stalled:
                raise  # the reader has already waited for a whole timeout
            except RegistryError:
                pass  # the target's host is unreachable; the registry may name another one
            self.forget(endpoint)
        response = self._request(endpoint, headers)
        if response.history:
            self._targets[endpoint.base] = response.request.url
        return response

    def forget(self, endpoint: Endpoint) -> None:
        """Forget the target of an endpoint's redirect."""
        self._targets.pop(endpoint.base, None)


class Speed:
    """The speed of a read, measured over all attempts together.

    Otherwise a series of quick attempts that bring few bytes would not be noticed. ``waited``: seconds spent waiting,
    including for the heads of responses.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._came = 0
        self.waited = 0.0

    def too_slow(self, response: httpx.Response, came: int) -> bool:
        """Return whether kitfs has waited for a whole timeout, and fewer than ``LEAST`` bytes per second arrived.

        ``came``: the bytes that arrived in the last attempt.
        """
        pace = response.extensions.get("pace")
        self.waited += pace.waited if pace is not None else 0.0
        self._came += came
        if self._came >= LEAST * self._timeout:
            self._came, self.waited = 0, 0.0
        return self.waited > self._timeout


@dataclass(slots=True)
class Remaining:
    """The bytes [at, stop) that a read still needs.

    ``given``: how many bytes the read has yielded. ``whole``: whether the registry ignored the range. The response then
    begins at byte 0.
    """

    at: int
    stop: int
    whole: bool
    given: int = 0

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request for these bytes."""
        return {} if self.whole else {"Range": f"bytes={self.at}-{self.stop - 1}"}


class RemoteBlob:
    """A Source for a blob at ``endpoints``, which are tried in order. ``request`` sends the requests.

    ``what``: the name of the blob in messages. ``timeout``: the read timeout in seconds. The minimum speed is measured
    over this time. ``log`` gets a line about each mirror that is not used any more. ``ranged`` becomes False when a
    registry returns the whole blob instead of a range.
    """

    def __init__(
        self,
        request: BlobRequest,
        endpoints: tuple[Endpoint, ...],
        descriptor: Descriptor,
        *,
        what: str,
        timeout: float,
        log: logging.Logger = LOG,
    ) -> None:
        self._log = log
        self._request = request
        self._endpoints = endpoints
        self._size = descriptor.size
        self._what = what
        self._timeout = timeout
        self._ranged = True
        self._used: set[Endpoint] = set()  # endpoints that have sent bytes
        self._passed_by: set[Endpoint] = set()  # endpoints that have sent wrong bytes

    def __repr__(self) -> str:
        return f"<RemoteBlob {self._what} at {', '.join(e.host for e in self._endpoints)}>"

    @property
    def size(self) -> int | None:
        """The size in bytes that the descriptor declares."""
        return self._size

    @property
    def ranged(self) -> bool:
        """Return whether ranges are available. It is True until a registry ignores a range."""
        return self._ranged

    @property
    def sender(self) -> str:
        """The scheme and host of every endpoint, one per line."""
        urls = (httpx.URL(endpoint.base) for endpoint in self._endpoints)
        return "\n".join(f"{url.scheme}://{host_of(url)}" for url in urls)

    def distrust(self) -> bool:
        """Stop using the mirrors that have sent bytes. Return False if only the registry itself has sent bytes."""
        bad = [endpoint for endpoint in self._endpoints[:-1] if endpoint in self._used]
        for endpoint in bad:
            self._drop(endpoint, "it has sent bytes with a wrong digest")
        self._used.clear()
        return bool(bad)

    def _drop(self, mirror: Endpoint, why: str) -> None:
        """Stop using a mirror for this blob, and say so in the log."""
        self._passed_by.add(mirror)
        self._log.warning("%s: the mirror %s is not used for this blob any more: %s", self._what, mirror.host, why)

    def read_range(self, start: int, stop: int | None, /) -> Generator[tuple[int, memoryview], None, None]:
        """Yield (offset, bytes) of [start, stop), or of the whole blob if ranges are not available.

        See ``content.Source``. The endpoints are tried in turn, and each continues where the previous endpoint broke
        off. The last endpoint is the registry itself. If all fail, the registry's error is raised, and the message
        names the causes of all endpoints. The error is NotFound, Unauthorized, RateLimited, Unavailable, RangeIgnored
        or IntegrityError.
        """
        stop = self._size if stop is None else min(stop, self._size)
        rest = Remaining(start, stop, whole=False) if self._ranged else Remaining(0, self._size, whole=True)
        causes: list[KitfsError] = []
        asked: list[Endpoint] = []
        for endpoint in self._endpoints:
            if endpoint in self._passed_by:
                continue
            try:
                yield from self._resumed(endpoint, rest)
                return
            except KitfsError as e:
                causes.append(e)
                asked.append(endpoint)
                if isinstance(e, IntegrityError) and endpoint != self._endpoints[-1]:
                    self._drop(endpoint, str(e))
        raise combined(causes, tuple(asked))

    def _resumed(self, endpoint: Endpoint, rest: Remaining) -> Generator[tuple[int, memoryview], None, None]:
        """Yield the remaining bytes from one endpoint, with as many requests as necessary.

        Raises KitfsError when the endpoint fails or makes no progress.
        """
        fruitless = 0
        speed = Speed(self._timeout)
        while rest.at < rest.stop:
            before, began = rest.given, time.monotonic()
            try:
                response = self._request(endpoint, rest.headers)
            except KitfsError:
                self._request.forget(endpoint)
                raise  # the transport has already retried a request without a response
            speed.waited += time.monotonic() - began
            try:
                first, end = self._span(endpoint, response, rest)
                self._used.add(endpoint)
                yield from self._received(endpoint, response, first, end, rest)
                continue
            except Broken:
                if rest.at >= rest.stop:
                    return  # all bytes arrived, and only the end of the response was cut off
                came = rest.given - before
                fruitless = 0 if came >= PROGRESS else fruitless + 1
                if not came:
                    self._request.forget(endpoint)  # the registry may name a better target
                if fruitless == MAX_FRUITLESS or speed.too_slow(response, came):
                    raise
            except KitfsError:
                self._request.forget(endpoint)
                raise
            time.sleep(PAUSE * fruitless)

    def _received(
        self, endpoint: Endpoint, response: httpx.Response, first: int, end: int, rest: Remaining
    ) -> Generator[tuple[int, memoryview], None, None]:
        """Yield the bytes of a response that are still needed.

        Raises Broken if the response ended early and brought fewer than ``PROGRESS`` bytes.
        """
        if response.status_code == 200 and not rest.whole and (rest.at, rest.stop) != (0, self._size):
            self._ranged = False
            if not rest.given:  # this read becomes a stream; a read that has yielded bytes skips those before ``at``
                rest.at, rest.stop, rest.whole = 0, self._size, True
        before, wanted = rest.given, rest.stop - rest.at
        with closing(self._pieces(response, first, end)) as pieces:
            for offset, view in pieces:
                piece = view[max(0, rest.at - offset) : max(0, rest.stop - offset)]
                if len(piece):
                    rest.at += len(piece)
                    rest.given += len(piece)
                    yield rest.at - len(piece), piece
                if rest.at >= rest.stop and not rest.whole:
                    break
        came = rest.given - before
        if rest.at < rest.stop and came < PROGRESS:
            raise Broken(f"{self._what}: {endpoint.host} sent {came} of the {wanted} requested bytes")

    def _span(self, endpoint: Endpoint, response: httpx.Response, rest: Remaining) -> tuple[int, int]:
        """Return the range [first byte, end) of the blob that the body of a response contains.

        If that is not the requested range, the response is closed, and RegistryError or IntegrityError is raised.
        """
        try:
            check_encoding(response, self._what)
            length = response.headers.get("Content-Length")
            if response.status_code == 200:
                if length not in (None, str(self._size)):
                    raise self._wrong_size(endpoint, length)
                return 0, self._size
            match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if rest.whole or not match:
                raise RangeIgnored(
                    f"{self._what}: {endpoint.host} returned 206 without a usable Content-Range", status=206
                )
            first, last, total = int(match[1]), int(match[2]), match[3]
            if total not in ("*", str(self._size)):
                raise self._wrong_size(endpoint, total)
            if first != rest.at or not first <= last < rest.stop or length not in (None, str(last + 1 - first)):
                text = f"{endpoint.host} sent bytes {first}-{last} instead of the requested {rest.at}-{rest.stop - 1}"
                raise RegistryError(f"{self._what}: {text}", status=206)
            return first, last + 1
        except KitfsError:
            response.close()
            raise

    def _wrong_size(self, endpoint: Endpoint, size: str) -> IntegrityError:
        return IntegrityError(
            f"{self._what}: {endpoint.host} has {size} bytes, but the descriptor declares {self._size}"
        )

    def _pieces(self, response: httpx.Response, at: int, end: int) -> Generator[tuple[int, memoryview], None, None]:
        """Yield the pieces of a body that should be the bytes [at, end) of the blob.

        The last piece is yielded after the response has ended. The connection then returns to the pool, even if the
        reader stops after this piece. Raises Broken or Stalled, and IntegrityError if the body is too long.
        """
        sized = "Content-Length" in response.headers
        host = host_of(response.request.url)
        try:
            with (
                mapped(response.request.url, self._what),
                closing(body_pieces(response, end - at if sized else None)) as body,
            ):
                for view in body:
                    if at + len(view) > end:
                        raise IntegrityError(f"{self._what}: {host} sent bytes after the requested end {end}")
                    if at + len(view) == end and sized:
                        next(body, None)  # ends the response without network access, because Content-Length is reached
                    yield at, view
                    at += len(view)
            if at < end:
                raise Broken(f"{self._what}: {host} ended the body at byte {at}", url=shown(response.request.url))
        finally:
            response.close()
