"""A registry's blob as a Source: single ranges, checked; bodies that break off are taken up where they stand.

The registry is hostile. 206 is required and its Content-Range checked; 200 to a range means that this registry has no
ranges for it, and the whole body becomes the one stream that fills the store. A redirect's target is kept until it
fails, and asked for anew once when it does not answer as it did (it expired). A faster way to read bodies belongs
into ``_pieces``, which alone touches them. Threading: any number of threads read at once, each on a connection of its
own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Final

import httpx

from kitfs.errors import IntegrityError, KitfsError, RangeIgnored, RegistryError
from kitfs.oci.manifest import Descriptor
from kitfs.registry.http_errors import Broken, Stalled, check_encoding, failure, host_of, mapped, read_error, shown
from kitfs.registry.pace import LEAST

if TYPE_CHECKING:
    from kitfs.registry.client import RegistryClient
    from kitfs.registry.http import Endpoint

FRUITLESS: Final = 3  # attempts in a row that bring next to nothing before an endpoint is given up
PROGRESS: Final = (
    LEAST  # bytes that an attempt must bring unless it brings all: one byte for each request would never end
)
PAUSE: Final = 0.2  # seconds before an attempt after one that brought nothing
CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


class Speed:
    """Least speed over the attempts of a range, each of which may be quick to bring too little. ``waited``: seconds,
    for their heads too.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._came = 0
        self.waited = 0.0

    def too_slow(self, response: httpx.Response, came: int) -> bool:
        """Whether less than ``LEAST`` came per second, over one timeout or more, after an attempt that brought
        ``came`` bytes.
        """
        pace = response.extensions.get("pace")
        self.waited += pace.waited if pace is not None else 0.0
        self._came += came
        if self._came >= LEAST * self._timeout:
            self._came, self.waited = 0, 0.0
        return self.waited > self._timeout


class RemoteBlob:
    """``size`` is the descriptor's; ``ranged`` turns False when the registry answers a range with everything."""

    def __init__(self, client: RegistryClient, endpoints: tuple[Endpoint, ...], descriptor: Descriptor) -> None:
        self._client = client
        self._endpoints = endpoints
        self._descriptor = descriptor
        self._ranged = True
        self._locations: dict[str, httpx.URL] = {}

    def __repr__(self) -> str:
        return f"<RemoteBlob {self._descriptor.digest} at {', '.join(e.host for e in self._endpoints)}>"

    @property
    def size(self) -> int | None:
        """Bytes, as the descriptor says."""
        return self._descriptor.size

    @property
    def ranged(self) -> bool:
        """Whether single ranges can be had, as far as it is known."""
        return self._ranged

    def read_range(self, start: int, stop: int | None, /) -> Generator[tuple[int, memoryview], None, None]:
        """(offset, bytes) of [start, stop), or of everything from 0 when there are no ranges. See
        ``content.Source``.

        Every endpoint is asked in turn, each from where the last one broke off. Raises what the last one, the
        registry itself, did wrong, with the causes of all: NotFound, Unauthorized, RateLimited, Unavailable,
        RangeIgnored, IntegrityError.
        """
        size = self._descriptor.size
        stop = size if stop is None else min(stop, size)
        whole = not self._ranged
        if whole:
            start, stop = 0, size
        at = start
        causes: list[KitfsError] = []
        for endpoint in self._endpoints:
            fruitless = 0
            speed = Speed(self._client.options.read_timeout)
            while at < stop:
                before, response, began = at, None, time.monotonic()
                try:
                    response = self._request(endpoint, {} if whole else {"Range": f"bytes={at}-{stop - 1}"})
                    speed.waited += time.monotonic() - began
                    first, end = self._span(endpoint, response, at, stop, whole)
                    if response.status_code == 200 and not whole and (at, stop) != (0, size):
                        self._ranged = False
                        if (
                            at == start
                        ):  # nothing was given yet, so this call becomes the stream; else what it gave is passed over
                            whole, at, stop, before = True, 0, size, 0
                    with closing(self._pieces(response, first, end)) as pieces:
                        for offset, view in pieces:
                            piece = view[max(0, at - offset) : max(0, stop - offset)]
                            if len(piece):
                                at += len(piece)
                                yield at - len(piece), piece
                            if at >= stop and not whole:
                                break
                    if at < stop and at - before < PROGRESS:
                        raise Broken(
                            f"{self._what}: {endpoint.host} sends {at - before} bytes where {stop - before} were asked for"
                        )
                except Broken as e:
                    cause: KitfsError = e
                    if at >= stop:
                        return  # what was cut off is only the end of the answer
                    fruitless = 0 if at - before >= PROGRESS else fruitless + 1
                    if at == before:
                        self._locations.pop(endpoint.base, None)  # the registry may know a better one
                    if response is None or fruitless == FRUITLESS or speed.too_slow(response, at - before):
                        break  # without any answer it was retried already, below
                    time.sleep(PAUSE * fruitless)
                except KitfsError as e:
                    self._locations.pop(endpoint.base, None)
                    cause = e
                    break
            else:
                return
            causes.append(cause)
        from kitfs.registry.http import combined

        raise combined(causes, [e.host for e in self._endpoints])

    @property
    def _what(self) -> str:
        return f"blob {self._descriptor.digest}"

    def _request(self, endpoint: Endpoint, headers: dict[str, str]) -> httpx.Response:
        """The answer of the redirect's target if there is one, of the registry if there is none or it has expired."""
        home = f"{endpoint.base}/blobs/{self._descriptor.digest}"
        known = self._locations.get(endpoint.base)
        if known is not None:
            try:
                response = self._client.send(endpoint, "GET", known, headers, self._what)
                if response.status_code in (200, 206):
                    return response
                response.close()
            except Stalled:
                raise  # the reader has waited long enough
            except RegistryError:
                pass  # its host is gone; the registry may know another
            self._locations.pop(endpoint.base, None)
        response = self._client.send(endpoint, "GET", home, headers, self._what)
        if response.status_code in (200, 206):
            if shown(response.request.url) != shown(home):
                self._locations[endpoint.base] = response.request.url
            return response
        read_error(response)
        if response.status_code == 416:
            raise IntegrityError(
                f"{self._what}: {endpoint.host} has fewer than the {self._descriptor.size} bytes of its descriptor"
            )
        raise failure(response, self._what)

    def _span(
        self, endpoint: Endpoint, response: httpx.Response, start: int, stop: int, whole: bool
    ) -> tuple[int, int]:
        """[first byte, end) of the body that comes; closes a response that is refused.

        Raises RegistryError or IntegrityError when it is not what was asked for.
        """
        try:
            check_encoding(response, self._what)
            size = self._descriptor.size
            length = response.headers.get("Content-Length")
            if response.status_code == 200:
                if length not in (None, str(size)):
                    raise IntegrityError(
                        f"{self._what}: {endpoint.host} has {length} bytes, its descriptor says {size}"
                    )
                return 0, size
            match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if whole or not match:
                raise RangeIgnored(
                    f"{self._what}: {endpoint.host} answers 206 without a usable Content-Range", status=206
                )
            first, last, total = int(match[1]), int(match[2]), match[3]
            if total not in ("*", str(size)):
                raise IntegrityError(f"{self._what}: {endpoint.host} has {total} bytes, its descriptor says {size}")
            if first != start or not start <= last < stop or length not in (None, str(last + 1 - first)):
                told = (
                    f"{self._what}: {endpoint.host} sends bytes {first}-{last} where {start}-{stop - 1} were asked for"
                )
                raise RegistryError(told, status=206)
            return first, last + 1
        except KitfsError:
            response.close()
            raise

    def _pieces(self, response: httpx.Response, at: int, end: int) -> Generator[tuple[int, memoryview], None, None]:
        """The body, which should be the bytes [at, end) of the blob. Raises Broken, Stalled, and IntegrityError when
        there is more.

        The last piece is given when the response is at its end, so that a reader who stops there leaves a connection
        for the next.
        """
        sized = "Content-Length" in response.headers
        try:
            with mapped(response.request.url, self._what):
                body = response.iter_raw()
                for piece in body:
                    view = memoryview(piece)
                    if at + len(view) > end:
                        raise IntegrityError(
                            f"{self._what}: {host_of(response.request.url)} sends more than the bytes up to {end} that are due"
                        )
                    if at + len(view) == end and sized:
                        next(body, None)  # takes nothing off the wire: the length has told that this is the end
                    yield at, view
                    at += len(view)
            if at < end:
                raise Broken(
                    f"{self._what}: {host_of(response.request.url)} ended the body at byte {at}",
                    url=shown(response.request.url),
                )
        finally:
            response.close()
