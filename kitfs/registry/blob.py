"""A registry's blob as a Source: single ranges, checked; bodies that break off are taken up where they stand.

DESIGN of this client: the registry is hostile. 206 is required and its Content-Range checked; 200 to a range means that this registry has no
ranges for it, and the whole body becomes the one stream that fills the store. A redirect's target is kept, and asked for anew once
when it answers 401 or 403 (it expired). Threading: any number of threads read at once, each on a connection of its own.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Final

import httpx

from kitfs.errors import IntegrityError, KitfsError, RangeIgnored, RegistryError, Unavailable
from kitfs.oci.manifest import Descriptor
from kitfs.registry.failures import failure, mapped, read_error, shown

if TYPE_CHECKING:
    from kitfs.registry.client import Endpoint, RegistryClient

PIECE: Final = 256 << 10  # bytes of a piece
FRUITLESS: Final = 3  # attempts in a row that bring nothing before an endpoint is given up
PAUSE: Final = 0.2  # seconds before an attempt after one that brought nothing
CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
EXPIRED: Final = frozenset({400, 401, 403, 404, 410})  # what object stores answer for a signed URL of yesterday


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
        """(offset, bytes) of [start, stop), or of everything from 0 when there are no ranges. See ``store.source.Source``."""
        stop = self._descriptor.size if stop is None else min(stop, self._descriptor.size)
        streaming = not self._ranged
        at = 0 if streaming else start
        causes: list[KitfsError] = []
        for endpoint in self._endpoints:
            fruitless = 0
            while fruitless < FRUITLESS:
                before = at
                try:
                    for offset, view in self._attempt(endpoint, at, stop):
                        if not self._ranged and not streaming:
                            streaming, at, stop = True, 0, self._descriptor.size
                        piece = view[max(0, at - offset) :]  # a stream that began again brings what was given already
                        if len(piece):
                            at = max(at, offset) + len(piece)
                            yield at - len(piece), piece
                    if at >= stop:
                        return
                    cause: KitfsError = Unavailable(f"{self._what}: {endpoint.host} cut the body at byte {at}")
                except Unavailable as e:
                    cause = e
                    if "--read-timeout" in str(e) or e.status:
                        break
                except KitfsError as e:
                    cause = e
                    break
                fruitless = 0 if at > before else fruitless + 1
                if fruitless:
                    time.sleep(PAUSE * fruitless)
            causes.append(cause)
        from kitfs.registry.client import combined

        raise combined(causes, [e.host for e in self._endpoints])

    @property
    def _what(self) -> str:
        return f"blob {self._descriptor.digest}"

    def _attempt(self, endpoint: Endpoint, start: int, stop: int) -> Generator[tuple[int, memoryview], None, None]:
        """One request, and what its body brings before it ends or breaks."""
        whole = not self._ranged
        response = self._request(endpoint, {} if whole else {"Range": f"bytes={start}-{stop - 1}"})
        try:
            at, end = self._span(endpoint, response, start, stop, whole)
            with mapped(response.request.url, self._what):
                for piece in response.iter_raw(PIECE):
                    view = memoryview(piece)[: end - at]
                    if len(view) < len(piece) and response.status_code == 200:
                        raise IntegrityError(f"{self._what}: {endpoint.host} sends more than the {self._descriptor.size} bytes of its descriptor")
                    if len(view):
                        yield at, view
                    at += len(view)
                    if at >= end:
                        break
            if at < end and response.status_code == 200:
                raise Unavailable(f"{self._what}: {endpoint.host} cut the body at byte {at}")
        finally:
            response.close()

    def _request(self, endpoint: Endpoint, headers: dict[str, str]) -> httpx.Response:
        """The answer of the redirect's target if there is one, of the registry if there is none or it has expired."""
        known = self._locations.get(endpoint.host)
        home = f"{endpoint.base}/blobs/{self._descriptor.digest}"
        response = self._client.send(endpoint, "GET", known or home, headers, self._what)
        if known is not None and response.status_code in EXPIRED:
            response.close()
            self._locations.pop(endpoint.host, None)
            response = self._client.send(endpoint, "GET", home, headers, self._what)
        if response.status_code in (200, 206):
            if shown(response.request.url) != shown(home):
                self._locations[endpoint.host] = response.request.url
            return response
        read_error(response)
        if response.status_code == 416:
            raise IntegrityError(f"{self._what}: {endpoint.host} has fewer than the {self._descriptor.size} bytes of its descriptor")
        raise failure(response, self._what)

    def _span(self, endpoint: Endpoint, response: httpx.Response, start: int, stop: int, whole: bool) -> tuple[int, int]:
        """[first byte, end) of the body that comes. Raises RegistryError or IntegrityError when it is not what was asked for."""
        size = self._descriptor.size
        if response.status_code == 200:
            length = response.headers.get("Content-Length", str(size))
            if length != str(size):
                raise IntegrityError(f"{self._what}: {endpoint.host} has {length} bytes, its descriptor says {size}")
            if not whole and (start, stop) != (0, size):
                self._ranged = False
            return 0, size
        match = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if whole or not match:
            raise RangeIgnored(f"{self._what}: {endpoint.host} answers 206 without a usable Content-Range", status=206)
        first, last, total = int(match[1]), int(match[2]), match[3]
        if total not in ("*", str(size)):
            raise IntegrityError(f"{self._what}: {endpoint.host} has {total} bytes, its descriptor says {size}")
        if first != start or not start <= last < stop:
            raise RegistryError(f"{self._what}: {endpoint.host} sends bytes {first}-{last} where {start}-{stop - 1} were asked for", status=206)
        return first, last + 1
