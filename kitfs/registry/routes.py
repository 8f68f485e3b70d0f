"""Connections: which transport a URL takes (TLS or not, through which proxy), made when first needed.

The proxy environment is read as Go reads it (see ``proxies``); an explicit proxy is for everything. Nothing else of
the environment counts, and no ~/.netrc. TLS trusts what the system and certifi trust, and the files of
``--tls-cert``.

Threading: transports are shared by all threads.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import httpcore
import httpx

from kitfs.errors import RegistryError, UsageError
from kitfs.redaction import public
from kitfs.registry.addresses import AddressScope, Forbidden, GuardedBackend, permitted, scope_of, scope_of_name
from kitfs.registry.pace import Pace, PacedBody
from kitfs.registry.proxies import is_loopback as is_loopback  # where it is looked for
from kitfs.registry.proxies import proxy_for
from kitfs.version import __version__

MAX_HEADERS: Final = 200  # of one answer; registries send about twenty
MAX_HEADER_BYTES: Final = 64 << 10  # of all of them: a challenge that names many repositories takes a few KiB


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How to reach registries.

    ``plain_http`` None: plain HTTP to loopback hosts only. ``mirrors``: host → base URLs that are asked before it, in
    order. Timeouts in seconds; ``read_timeout`` is for the head of an answer, and for each window of its body
    (``pace``).
    """

    plain_http: bool | None = None
    tls_verify: bool = True
    tls_certs: tuple[str, ...] = ()
    cert: str | None = None
    key: str | None = None
    proxy: str | None = None
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    read_timeout: float = 60.0
    connect_timeout: float = 5.0
    user_agent: str = f"kitfs/{__version__}"


class RoutedTransport(httpx.BaseTransport):
    """Sends each request over the transport that its URL takes, at its pace (``pace``), to addresses that are
    permitted (``addresses``).

    Extension "led_from" of a request: the address scope of what named its URL; absent, the user did. Extensions of an
    answer: "address_scope", that of the address that it came from, and "pace", that of its body. Raises Forbidden for
    a URL that leads where it may not, RegistryError for an answer with more headers than any registry sends.
    """

    def __init__(self, options: ClientOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._transports: dict[tuple[str, str | None, AddressScope | None], httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The answer of whatever the URL leads to."""
        proxy = self._proxy(request.url)
        led_from: AddressScope | None = request.extensions.get("led_from")
        written = scope_of_name(request.url.raw_host.decode("ascii", "replace"))
        if proxy is not None and written is not None and not permitted(written, led_from):
            raise Forbidden("", written, _host(request.url))
        timeouts = request.extensions.get("timeout") or {}
        paces = {name: Pace(timeouts[name]) for name in ("read", "write") if timeouts.get(name) is not None}
        request.extensions = {**request.extensions, "timeout": {**timeouts, **paces}}
        if "write" in paces:
            paces["write"].body()  # of a request, what counts is that it moves
        try:
            response = self._through(request.url.scheme, proxy, led_from).handle_request(request)
        except Forbidden as e:
            e.host = _host(request.url)
            raise
        except httpx.TransportError as e:
            if proxy is not None:
                e.add_note(f"through the proxy {public(proxy)}")
            raise
        _check_head(response, request.url)
        if "read" in paces:
            paces["read"].body()
            response.stream = PacedBody(response.stream, paces["read"])
            response.extensions["pace"] = paces["read"]
        scope = written if proxy is not None else _peer(response)
        if scope is not None:
            response.extensions["address_scope"] = scope
        return response

    def _through(self, scheme: str, proxy: str | None, led_from: AddressScope | None) -> httpx.HTTPTransport:
        if proxy is not None:
            led_from = None  # the proxy is the user's choice
        with self._lock:
            if (scheme, proxy, led_from) not in self._transports:
                self._transports[scheme, proxy, led_from] = self._made(scheme, proxy, led_from)
            return self._transports[scheme, proxy, led_from]

    def _made(self, scheme: str, proxy: str | None, led_from: AddressScope | None) -> httpx.HTTPTransport:
        secure = scheme == "https" or (proxy or "").startswith("https:")
        if secure and self._context is None:
            self._context = tls_context(self._options)
        verify: ssl.SSLContext | bool = self._context if secure and self._context is not None else False
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30.0)
        try:
            context = (
                verify if isinstance(verify, ssl.SSLContext) and (proxy or "").startswith("https:") else None
            )  # httpcore refuses another
            over = None if proxy is None else httpx.Proxy(proxy, ssl_context=context)
            made = httpx.HTTPTransport(verify=verify, proxy=over, limits=limits, trust_env=False)
        except (ValueError, httpx.InvalidURL):
            raise UsageError(
                f"the proxy {public(proxy or '')} cannot be used: it is not a URL of a proxy (http://proxy:3128)"
            )
        except ImportError:
            raise UsageError(f"the proxy {public(proxy or '')} needs the Python package socksio")
        pool = made._pool  # noqa: SLF001 - httpx has no public way to give httpcore a network backend
        pool._network_backend = self._backend(pool._network_backend, led_from)  # noqa: SLF001 - as above
        return made

    def _backend(self, inner: httpcore.NetworkBackend, led_from: AddressScope | None) -> httpcore.NetworkBackend:
        """What makes the connections for URLs that were named from ``led_from``."""
        return GuardedBackend(inner, led_from)

    def _proxy(self, url: httpx.URL) -> str | None:
        if self._options.proxy:
            return self._options.proxy
        return proxy_for(url, os.environ)

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for transport in self._transports.values():
                transport.close()
            self._transports.clear()


def _host(url: httpx.URL) -> str:
    """host[:port], without the port that the scheme implies."""
    return url.netloc.decode("ascii", "replace")


def _peer(response: httpx.Response) -> AddressScope | None:
    """The scope of the address that an answer came from, None where no connection says."""
    stream = response.extensions.get("network_stream")
    try:
        return scope_of(str(stream.get_extra_info("server_addr")[0])) if stream is not None else None
    except (OSError, ValueError, TypeError):
        return None  # the other side has closed it already


def _check_head(response: httpx.Response, url: httpx.URL) -> None:
    """Raise RegistryError for an answer with too many headers, or too long ones."""
    raw = response.headers.raw
    size = sum(len(name) + len(value) for name, value in raw)
    if len(raw) <= MAX_HEADERS and size <= MAX_HEADER_BYTES:
        return
    response.close()
    told = f"{_host(url)} sends {len(raw)} headers of {size} bytes: more than {MAX_HEADERS} headers or {MAX_HEADER_BYTES} bytes are refused"
    raise RegistryError(told, status=response.status_code)


def tls_context(options: ClientOptions) -> ssl.SSLContext:
    """What TLS trusts and shows. Raises UsageError for a file that is no certificate or key."""
    context = httpx.create_ssl_context(
        trust_env=False
    )  # certifi's; OpenSSL's own honour SSL_CERT_FILE and SSL_CERT_DIR
    context.load_default_certs()
    name = ""
    try:
        for name in options.tls_certs:
            context.load_verify_locations(cafile=name)
        if not options.tls_verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if options.cert and options.key:
            name = options.cert
            context.load_cert_chain(options.cert, options.key)
    except (ssl.SSLError, OSError) as e:
        raise UsageError(f"{name} cannot be used for TLS: {e.strerror or e}")
    return context
