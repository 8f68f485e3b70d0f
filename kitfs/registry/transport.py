"""Connections: which transport a URL takes (TLS or not, through which proxy), made when first needed.

The proxy environment is read as Go reads it: HTTP_PROXY, HTTPS_PROXY, NO_PROXY (names, suffixes, addresses, CIDR blocks), and never for
loopback hosts; an explicit proxy is for everything. Nothing else of the environment counts, and no ~/.netrc. TLS trusts what the
system and certifi trust, and the files of ``--tls-cert``. Threading: transports are shared by all threads.
"""

from __future__ import annotations

import ipaddress
import re
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
        proxy = self._proxy(request.url)
        try:
            return self._through(request.url.scheme, proxy).handle_request(request)
        except httpx.TransportError as e:
            if proxy is not None:
                e.add_note(f"through the proxy {_redacted(proxy)}")
            raise

    def _through(self, scheme: str, proxy: str | None) -> httpx.HTTPTransport:
        with self._lock:
            if (scheme, proxy) not in self._transports:
                self._transports[scheme, proxy] = self._made(scheme, proxy)
            return self._transports[scheme, proxy]

    def _made(self, scheme: str, proxy: str | None) -> httpx.HTTPTransport:
        secure = scheme == "https" or (proxy or "").startswith("https:")
        verify: ssl.SSLContext | bool = tls_context(self._options) if secure else False
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30.0)
        try:
            context = verify if isinstance(verify, ssl.SSLContext) and (proxy or "").startswith("https:") else None  # httpcore refuses another
            over = None if proxy is None else httpx.Proxy(proxy, ssl_context=context)
            return httpx.HTTPTransport(verify=verify, proxy=over, limits=limits, trust_env=False)
        except (ValueError, httpx.InvalidURL) as e:
            raise UsageError(f"the proxy {_redacted(proxy or '')} cannot be used: {e}")
        except ImportError:
            raise UsageError(f"the proxy {_redacted(proxy or '')} needs the Python package socksio")

    def _proxy(self, url: httpx.URL) -> str | None:
        if self._options.proxy:
            return self._options.proxy
        if is_loopback(url.host):
            return None
        set_ = urllib.request.getproxies_environment()
        found = set_.get(url.scheme)
        if not found or _bypassed(url, set_.get("no", "")):
            return None
        return found if "://" in found else f"http://{found}"

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for transport in self._transports.values():
                transport.close()
            self._transports.clear()


def _bypassed(url: httpx.URL, rules: str) -> bool:
    """Whether NO_PROXY names a host: as urllib reads it, and CIDR blocks, as Go does."""
    if urllib.request.proxy_bypass_environment(url.netloc.decode("ascii", "replace"), {"no": rules}):  # type: ignore[attr-defined]  # typeshed lacks it
        return True
    try:
        address = ipaddress.ip_address(url.host)
    except ValueError:
        return False
    for rule in rules.split(","):
        try:
            if address in ipaddress.ip_network(rule.strip(), strict=False):
                return True
        except ValueError:
            pass  # a name
    return False


def _redacted(proxy: str) -> str:
    """A proxy's URL without its user."""
    return re.sub(r"//[^/]*@", "//", proxy)


def tls_context(options: ClientOptions) -> ssl.SSLContext:
    """What TLS trusts and shows. Raises UsageError for a file that is no certificate or key."""
    context = httpx.create_ssl_context(trust_env=False)  # certifi's; OpenSSL's own honour SSL_CERT_FILE and SSL_CERT_DIR
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
