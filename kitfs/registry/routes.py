"""Choose the transport for a URL, and make it when it is first needed. The choice depends on TLS and on the proxy.

The proxy variables of the environment are read as Go reads them (see ``proxies``). An explicit proxy is used for every
request. No other environment variables are used, and ~/.netrc is not read. TLS trusts the certificates of the system,
those of certifi, and those in the files of ``--tls-cert``.

Threading: all threads share the transports.
"""

from __future__ import annotations

import os
import ssl
import threading
from typing import Final

import httpcore
import httpx

from kitfs.errors import RegistryError, UsageError
from kitfs.redaction import public
from kitfs.registry.addresses import AddressScope, Forbidden, GuardedBackend, permitted, scope_of, scope_of_name
from kitfs.registry.options import ClientOptions
from kitfs.registry.pace import Pace, PacedBody
from kitfs.registry.pool import PoolTransport, pool_of
from kitfs.registry.proxies import proxy_for

MAX_HEADERS: Final = 200  # most headers of a response; registries send about twenty
MAX_HEADER_BYTES: Final = 64 << 10  # most bytes of all headers; a challenge with many repositories takes a few KiB


class RoutedTransport(httpx.BaseTransport):
    """A transport that sends each request over the transport for its URL, and only to permitted addresses.

    ``backend`` makes the connections. A Pace measures each request (see ``pace`` and ``addresses``). If the user did
    not name the URL of a request, the request has the extension "led_from": the address scope of the server that named
    the URL. A response has the extensions "address_scope", the scope of the address that sent it, and "pace", the Pace
    of its body. Raises Forbidden for a URL that leads to an address that is not permitted, and RegistryError for a
    response with too many headers.
    """

    def __init__(self, options: ClientOptions, backend: httpcore.NetworkBackend | None = None) -> None:
        self._options = options
        self._backend = httpcore.SyncBackend() if backend is None else backend
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._transports: dict[tuple[str, str | None, AddressScope | None], PoolTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return a response whose body has not been read."""
        proxy = self._options.proxy or proxy_for(request.url, os.environ)
        led_from: AddressScope | None = request.extensions.get("led_from")
        written = scope_of_name(request.url.raw_host.decode("ascii", "replace"))
        if proxy is not None and written is not None and not permitted(written, led_from):
            raise Forbidden("", written, _netloc(request.url))
        timeouts = request.extensions.get("timeout") or {}
        paces = {name: Pace(timeouts[name]) for name in ("read", "write") if timeouts.get(name) is not None}
        request.extensions = {**request.extensions, "timeout": {**timeouts, **paces}}
        if "write" in paces:
            paces["write"].begin_body()  # the head of a request is not measured separately: it counts as body
        try:
            response = self._transport(request.url.scheme, proxy, led_from).handle_request(request)
        except Forbidden as e:
            e.host = _netloc(request.url)
            raise
        except httpx.TransportError as e:
            if proxy is not None:
                e.add_note(f"through the proxy {public(proxy)}")
            raise
        _check_head(response, request.url)
        if "read" in paces:
            paces["read"].begin_body()
            response.stream = PacedBody(response.stream, paces["read"])
            response.extensions["pace"] = paces["read"]
        scope = written if proxy is not None else _peer(response)
        if scope is not None:
            response.extensions["address_scope"] = scope
        return response

    def _transport(self, scheme: str, proxy: str | None, led_from: AddressScope | None) -> PoolTransport:
        if proxy is not None:
            led_from = None  # the user chose the proxy
        with self._lock:
            if (scheme, proxy, led_from) not in self._transports:
                self._transports[scheme, proxy, led_from] = self._new_transport(scheme, proxy, led_from)
            return self._transports[scheme, proxy, led_from]

    def _new_transport(self, scheme: str, proxy: str | None, led_from: AddressScope | None) -> PoolTransport:
        over_tls = (proxy or "").startswith("https:")
        if (scheme == "https" or over_tls) and self._context is None:
            self._context = tls_context(self._options)
        try:
            # httpcore refuses a context for a proxy that does not speak TLS
            over = None if proxy is None else httpx.Proxy(proxy, ssl_context=self._context if over_tls else None)
            return PoolTransport(pool_of(GuardedBackend(self._backend, led_from), self._context, over))
        except (ValueError, httpx.InvalidURL):
            raise UsageError(
                f"cannot use the proxy {public(proxy or '')}: it is not the URL of a proxy (write http://HOST:PORT)"
            )
        except RuntimeError:
            raise UsageError(f"cannot use the proxy {public(proxy or '')}: install the Python package socksio")

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for transport in self._transports.values():
                transport.close()
            self._transports.clear()


def _netloc(url: httpx.URL) -> str:
    """Return host[:port], without the port that the scheme implies."""
    return url.netloc.decode("ascii", "replace")


def _peer(response: httpx.Response) -> AddressScope | None:
    """Return the scope of the address that sent a response, or None if the response has no connection."""
    stream = response.extensions.get("network_stream")
    try:
        return scope_of(str(stream.get_extra_info("server_addr")[0])) if stream is not None else None
    except (OSError, ValueError, TypeError):
        return None  # the server has closed the connection


def _check_head(response: httpx.Response, url: httpx.URL) -> None:
    """Raise RegistryError for a response with too many headers, or too long ones."""
    raw = response.headers.raw
    size = sum(len(name) + len(value) for name, value in raw)
    if len(raw) <= MAX_HEADERS and size <= MAX_HEADER_BYTES:
        return
    response.close()
    text = (
        f"{_netloc(url)} sent {len(raw)} headers of {size} bytes: "
        f"the limits are {MAX_HEADERS} headers and {MAX_HEADER_BYTES} bytes"
    )
    raise RegistryError(text, status=response.status_code)


def tls_context(options: ClientOptions) -> ssl.SSLContext:
    """Make the TLS settings: the trusted certificates and kitfs's client certificate.

    Raises UsageError for a file that is not a certificate or key.
    """
    # This context trusts certifi's certificates. OpenSSL's own certificates honour SSL_CERT_FILE and SSL_CERT_DIR.
    context = httpx.create_ssl_context(trust_env=False)
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
        raise UsageError(f"cannot use {name} for TLS: {e.strerror or e}")
    return context
