"""Connections: which transport a URL takes (TLS or not, through which proxy), made when first needed.

The proxy environment is read as Go reads it: HTTP_PROXY, HTTPS_PROXY, NO_PROXY, and never for loopback hosts; an explicit proxy is for
everything. TLS trusts what the system and certifi trust, and the files of ``--tls-cert``. Threading: transports are shared by all threads.
"""

from __future__ import annotations

import ipaddress
import ssl
import threading
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from kitfs import __version__
from kitfs.errors import UsageError


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How to reach registries.

    ``plain_http`` None: plain HTTP to loopback hosts only. ``mirrors``: host → base URLs that are asked before it, in order. Timeouts
    in seconds; ``read_timeout`` counts since the last byte.
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


def is_loopback(host: str) -> bool:
    """localhost, 127.0.0.0/8 or ::1."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class RoutedTransport(httpx.BaseTransport):
    """Sends each request over the transport that its URL takes."""

    def __init__(self, options: ClientOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._transports: dict[tuple[str, str | None], httpx.HTTPTransport] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The answer of whatever the URL leads to."""
        return self._for(request.url).handle_request(request)

    def _for(self, url: httpx.URL) -> httpx.HTTPTransport:
        key = (url.scheme, self._proxy(url))
        with self._lock:
            if key not in self._transports:
                self._transports[key] = self._made(*key)
            return self._transports[key]

    def _made(self, scheme: str, proxy: str | None) -> httpx.HTTPTransport:
        secure = scheme == "https" or (proxy or "").startswith("https:")
        verify: ssl.SSLContext | bool = tls_context(self._options) if secure else False
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30.0)
        return httpx.HTTPTransport(verify=verify, proxy=proxy, limits=limits, trust_env=False)

    def _proxy(self, url: httpx.URL) -> str | None:
        if self._options.proxy:
            return self._options.proxy
        host = url.netloc.decode("ascii", "replace")
        if is_loopback(url.host) or urllib.request.proxy_bypass_environment(host):  # type: ignore[attr-defined]  # typeshed lacks it
            return None
        return urllib.request.getproxies_environment().get(url.scheme)

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for transport in self._transports.values():
                transport.close()
            self._transports.clear()


def tls_context(options: ClientOptions) -> ssl.SSLContext:
    """What TLS trusts and shows. Raises UsageError for a file that is no certificate or key."""
    context = httpx.create_ssl_context(trust_env=True)
    context.load_default_certs()
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
