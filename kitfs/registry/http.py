"""Send a request to an endpoint of a registry: follow permitted redirects, and detect TLS on loopback hosts.

``HttpClient`` contains one httpx.Client for all threads. A request passes first through the auth flow, then through the
retries, then through the routed connections. The client caches only the scopes of addresses and the loopback hosts that
use TLS. Threading: any thread may call every method.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from http.cookiejar import CookieJar
from typing import Any, Final

import httpx

from kitfs.buffers import Buffers
from kitfs.content import ReadFrom
from kitfs.errors import IntegrityError, KitfsError, RegistryError, StoreError, UsageError
from kitfs.metrics import Counters
from kitfs.redaction import public
from kitfs.registry.addresses import AddressScope, answered_from, scope_of_name
from kitfs.registry.auth import RegistryAuth, TokenAuth
from kitfs.registry.breaker import Breakers
from kitfs.registry.early_answer import DuplexTransport, NoResponse, TlsAlert
from kitfs.registry.http_errors import (
    Broken,
    SpeaksTls,
    asks_for_tls,
    failure,
    host_of,
    mapped,
    read_error,
    shown,
)
from kitfs.registry.options import ClientOptions
from kitfs.registry.proxies import is_loopback
from kitfs.registry.retry import RESTART_BUDGET, RETRIES, RetryPolicy, RetryTransport
from kitfs.registry.tls_probe import speaks_tls

MAX_REDIRECTS: Final = 5
LAST_PORT: Final = 65_535
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server of a repository: the registry itself, or a mirror.

    ``base`` is a URL that ends in the repository's name; ``host`` is the name that messages and credential files use.
    ``patience``: the seconds in which a refused connection is retried; the endpoints of a repository share them.
    ``restart``: the same for an endpoint that has responded before and may be restarting. A mirror has fewer seconds,
    because another endpoint can respond. ``led_from``: the address scope of the registry whose content names this
    endpoint, or None if the user named it (see ``addresses``). ``resolves``: whether this endpoint may resolve tags.
    """

    base: str
    host: str
    auth: RegistryAuth | TokenAuth
    patience: float
    led_from: AddressScope | None = None
    resolves: bool = True
    restart: float = RESTART_BUDGET

    def scoped(self, scope: str) -> Endpoint:
        """Return this endpoint with an auth flow for another token scope."""
        return replace(self, auth=self.auth.scoped(scope))


class StreamedBody(httpx.SyncByteStream):
    """The bytes [start, stop) of a blob as the body of a request.

    They are read from the local copy each time that the request is sent. ``sent`` is called with the offset up to which
    the body has been sent.
    """

    def __init__(self, read: ReadFrom, start: int, stop: int, what: str, sent: Callable[[int], None]) -> None:
        self._read = read
        self._start = start
        self._stop = stop
        self._what = what
        self._sent = sent

    @property
    def size(self) -> int:
        """The length of the body in bytes."""
        return self._stop - self._start

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body in pieces.

        Raises StoreError if the local copy cannot be read, and IntegrityError if the copy is too short.
        """
        at = self._start
        self._sent(at)
        pieces = self._pieces()
        while at < self._stop:
            piece = next(pieces, b"")[: self._stop - at]
            if not piece:
                raise IntegrityError(
                    f"{self._what}: the local copy has only {at} bytes, fewer than its descriptor declares"
                )
            yield piece
            at += len(piece)
            self._sent(at)

    def _pieces(self) -> Iterator[bytes]:
        try:
            yield from (piece for piece in self._read(self._start) if piece)
        except OSError as e:
            raise StoreError(f"{self._what}: cannot read the local copy: {e}")


class HttpClient:
    """A client that sends requests to endpoints of registries. ``retries``: how failed requests are retried."""

    def __init__(
        self,
        options: ClientOptions,
        *,
        counters: Counters,
        log: logging.Logger,
        transport: httpx.BaseTransport | None = None,
        retries: RetryPolicy = RETRIES,
        buffers: Buffers | None = None,
    ) -> None:
        self.options: Final = options
        self._buffers = Buffers(options.memory_budget) if buffers is None else buffers
        self.counters: Final = counters
        self.log: Final = log
        self.retries: Final = retries
        self._secure: set[bytes] = set()  # netlocs on loopback that were found to use TLS
        self._probed: set[bytes] = set()  # netlocs that were probed for TLS
        self._scopes: dict[str, AddressScope] = {}  # scheme and host of a server → the scope of its addresses
        timeout = httpx.Timeout(
            options.read_timeout, connect=min(options.connect_timeout, options.read_timeout), pool=None
        )
        self.breakers: Final = Breakers(
            None if transport is not None else options.connecting, policy=retries.circuit
        )  # a transport that was handed in may connect in another way than those of other clients
        self._http = httpx.Client(
            transport=RetryTransport(transport or DuplexTransport(options), counters, retries, breakers=self.breakers),
            timeout=timeout,
            headers={"User-Agent": options.user_agent, "Accept-Encoding": "identity"},
            cookies=_NoCookies(),
            follow_redirects=False,
            trust_env=False,
        )

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def url_of(self, host: str) -> str:
        """Return the URL of a host ("host[:port]").

        The scheme is http if the option ``plain_http`` is True, or if it is None and the host is loopback. Otherwise
        the scheme is https.
        """
        plain = url_from(f"http://{host}").host
        use_http = is_loopback(plain) if self.options.plain_http is None else self.options.plain_http
        return f"{'http' if use_http else 'https'}://{host}"

    def address_scope(self, base: str) -> AddressScope:
        """Return the scope of the addresses from which the host of a URL has responded.

        Before the first response, the scope of the host as written in the URL is returned. A host that responds from
        addresses of several scopes counts as global, because its name is not reliable.
        """
        url = url_from(base)
        return self._scopes.get(_origin(url)) or scope_of_name(url.raw_host.decode("ascii", "replace")) or "global"

    def head(self, endpoint: Endpoint, url: str, what: str) -> httpx.Response:
        """Send a HEAD request, and return the response. Raises the errors of ``send``."""
        response = self.send(endpoint, "HEAD", url, {}, what)
        read_error(response)
        return response

    def send(
        self, endpoint: Endpoint, method: str, url: str | httpx.URL, headers: dict[str, str], what: str,
        *, body: bytes | StreamedBody | None = None, repeat: bool = True,
    ) -> httpx.Response:  # fmt: skip
        """Send a request, follow redirects, and return a response whose body has not been read.

        Credentials are sent only to the endpoint's own host. A StreamedBody is sent again only after redirects and
        refused tokens. With ``repeat`` False, no request is sent again. After a registry on loopback was found to use
        TLS, it is always contacted over TLS, unless ``plain_http`` was set. ``what``: the subject of the request in
        messages. The redirects are in ``history`` of the response. Raises Unavailable if no response arrives, and
        Unauthorized if no token can be obtained.
        """
        home, at = self._upgraded(httpx.URL(endpoint.base)), self._upgraded(httpx.URL(url))
        try:
            return self._followed(endpoint, home, method, at, headers, what, body, repeat)
        except (SpeaksTls, Broken) as e:
            if self._upgraded(home) == home and not (isinstance(e, SpeaksTls) and self._upgrade(home)):
                raise
        return self._followed(endpoint, self._upgraded(home), method, self._upgraded(at), headers, what, body, repeat)

    def _upgraded(self, url: httpx.URL) -> httpx.URL:
        """Return a URL with the scheme https if its server is known to use TLS. Return any other URL unchanged."""
        return url.copy_with(scheme="https") if url.scheme == "http" and url.netloc in self._secure else url

    def _may_upgrade(self, home: httpx.URL) -> bool:
        """Return whether a server may be contacted over TLS instead of plain HTTP.

        This is permitted if the server is on loopback and plain HTTP is only the default.
        """
        return home.scheme == "http" and self.options.plain_http is None and is_loopback(home.host)

    def _upgrade(self, home: httpx.URL) -> bool:
        """Use TLS with a server from now on, if that is permitted. Return whether it is permitted."""
        if not self._may_upgrade(home):
            return False
        self._secure.add(home.netloc)
        return True

    def _probe(self, home: httpx.URL, error: httpx.TransportError) -> bool:
        """Return whether a server that closed a connection without a response uses TLS.

        A server is probed only once.
        """
        if isinstance(error, httpx.RemoteProtocolError) and not isinstance(error.__cause__, (NoResponse, TlsAlert)):
            return False  # the server sent something that is neither HTTP nor TLS
        if self.options.proxy or home.netloc in self._probed or _origin(home) in self._scopes:
            return False
        self._probed.add(home.netloc)
        return self._may_upgrade(home) and speaks_tls(home.host, home.port or 80) and self._upgrade(home)

    def _followed(
        self, endpoint: Endpoint, home: httpx.URL, method: str, at: httpx.URL, headers: dict[str, str], what: str,
        body: bytes | StreamedBody | None, repeat: bool,
    ) -> httpx.Response:  # fmt: skip
        """Send a request and follow redirects. Raises SpeaksTls, Broken, and the errors of ``send``."""
        extensions: dict[str, Any] = {
            "connect_budget": endpoint.patience,
            "restart_budget": endpoint.restart,
            "would_break_again": lambda e: self._probe(home, e),
        }
        extensions |= {} if repeat else {"repeat": False}
        led_from = self.address_scope(str(home))  # for a URL that an earlier response named
        if isinstance(body, StreamedBody):
            headers = headers | {"Content-Length": str(body.size)}
        history: list[httpx.Response] = []
        for _ in range(MAX_REDIRECTS + 1):
            self._check_url(endpoint, home, at, what, redirected=bool(history))
            same = _origin(at) == _origin(home)
            limit = endpoint.led_from if same else led_from
            request = self._http.build_request(
                method,
                at,
                headers=headers,
                content=body,
                extensions=extensions | ({} if limit is None else {"led_from": limit}),
            )
            response = self._sent(request, endpoint.auth if same else None, what)
            led_from = answered_from(response)
            if same and self._scopes.setdefault(_origin(home), led_from) != led_from:
                self._scopes[_origin(home)] = "global"
            if response.status_code not in REDIRECTS or "Location" not in response.headers:
                response.history = history
                return response
            response.close()
            history.append(response)
            with mapped(at, what):
                at = at.join(response.headers["Location"])
        raise RegistryError(f"{what}: {endpoint.host} redirects more than {MAX_REDIRECTS} times", url=endpoint.base)

    def _check_url(self, endpoint: Endpoint, home: httpx.URL, at: httpx.URL, what: str, *, redirected: bool) -> None:
        """Raise RegistryError for a URL that no request may be sent to."""
        if (at.port or 0) > LAST_PORT:  # getaddrinfo would use the port modulo 65536
            raise RegistryError(f"{what}: {host_of(at)}: no such host or port", url=shown(at))
        if at.scheme not in ("http", "https") or (home.scheme == "https" and at.scheme == "http"):
            verb = "redirects" if redirected else "leads"
            raise RegistryError(f"{what}: {endpoint.host} {verb} to {at.scheme}:, away from TLS", url=shown(at))

    def _sent(self, request: httpx.Request, auth: httpx.Auth | None, what: str) -> httpx.Response:
        """Send one request, without its redirects."""
        try:
            with mapped(request.url, what):
                response = self._http.send(request, auth=auth, stream=True)
        except Broken as e:
            if request.url.scheme == "http" and self.options.plain_http:
                raise Broken(f"{e}; if it speaks TLS, omit --plain-http", url=e.url)
            raise
        response.extensions["buffers"] = self._buffers
        if response.status_code == 400 and request.url.scheme == "http":
            read_error(response)
            if asks_for_tls(response):
                raise failure(response, what)
        return response


class _NoCookies(CookieJar):
    """A cookie jar that stays empty.

    A registry's cookies would also be sent to other registries on the same host, and would accumulate without limit.
    """

    def extract_cookies(self, response: object, request: object) -> None:
        """Ignore the cookies of a response."""

    def set_cookie(self, cookie: object) -> None:
        """Ignore a cookie."""


def combined(causes: list[KitfsError], endpoints: tuple[Endpoint, ...]) -> KitfsError:
    """Combine the errors of several endpoints into one error, which has the class of the last error."""
    last = causes[-1]
    if len(causes) == 1:
        return last
    text = "; ".join(
        f"{'mirror ' if i < len(causes) - 1 else ''}{endpoint.host}: {cause}"
        for i, (endpoint, cause) in enumerate(zip(endpoints, causes, strict=False))
    )
    if isinstance(last, RegistryError):
        return type(last)(text, status=last.status, code=last.code, url=last.url)
    return type(last)(text)


def next_page(response: httpx.Response, at: httpx.URL, what: str) -> httpx.URL | None:
    """Return the URL of the next page of a list, or None after the last page.

    Raises RegistryError for a link that is not a URL.
    """
    after = response.links.get("next", {}).get("url")
    with mapped(at, what):
        return at.join(after) if after else None


def url_from(text: str) -> httpx.URL:
    """Parse the URL of a registry. Raises UsageError if the URL is invalid."""
    try:
        return httpx.URL(text)
    except httpx.InvalidURL:
        raise UsageError(f"{public(text)[:200]!r} is not the URL of a registry (write https://HOST[:PORT])")


def _origin(url: httpx.URL) -> str:
    """Return scheme://host[:port], without a port that the scheme implies."""
    return f"{url.scheme}://{host_of(url)}"
