"""A transport of httpx that uses a connection pool of httpcore with kitfs's own network backend.

``httpx.HTTPTransport`` does the same, but does not accept a network backend. Threading: as with httpcore's pools, any
thread may call every method.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import httpcore
import httpx

MAX_IDLE: Final = 64  # connections that wait for another request
MAX_IDLE_TIME: Final = 30.0  # seconds that a connection waits for another request


class PoolTransport(httpx.BaseTransport):
    """A transport that sends requests over ``pool``.

    Each error of httpcore becomes the error of httpx that has the same name.
    """

    def __init__(self, pool: httpcore.ConnectionPool) -> None:
        self._pool = pool

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request, and return a response whose body has not been read."""
        assert isinstance(request.stream, httpx.SyncByteStream)
        url = request.url
        sent = httpcore.Request(
            request.method,
            httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with translated_errors():
            response = self._pool.handle_request(sent)
        assert isinstance(response.stream, Iterable)
        return httpx.Response(
            response.status, headers=response.headers, stream=PoolBody(response.stream), extensions=response.extensions
        )

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()


class PoolBody(httpx.SyncByteStream):
    """The body of a response of httpcore."""

    def __init__(self, inner: Iterable[bytes]) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body in pieces."""
        with translated_errors():
            yield from self._inner

    def close(self) -> None:
        """Return the connection to the pool, or close it if the body was not read to its end."""
        close = getattr(self._inner, "close", None)
        if close is not None:
            close()


@contextmanager
def translated_errors() -> Iterator[None]:
    """Translate an error of httpcore in the block into the error of httpx with the same class name."""
    try:
        yield
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.ProxyError,
            httpcore.UnsupportedProtocol) as e:  # fmt: skip
        kinds = (getattr(httpx, kind.__name__, None) for kind in type(e).__mro__ if kind.__module__ != "builtins")
        raise next(kind for kind in kinds if kind is not None)(str(e)) from e


def pool_of(
    backend: httpcore.NetworkBackend, context: ssl.SSLContext | None, proxy: httpx.Proxy | None
) -> httpcore.ConnectionPool:
    """Make a pool whose connections come from ``backend``, directly or through a proxy.

    ``context``: None if no request of the pool uses TLS. Raises ValueError for a proxy whose scheme is not http, https
    or socks5. Raises RuntimeError for a SOCKS proxy if the package socksio is not installed.
    """
    if proxy is None:
        return httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=None,
            max_keepalive_connections=MAX_IDLE,
            keepalive_expiry=MAX_IDLE_TIME,
            network_backend=backend,
        )
    url = httpcore.URL(
        scheme=proxy.url.raw_scheme, host=proxy.url.raw_host, port=proxy.url.port, target=proxy.url.raw_path
    )
    if proxy.url.scheme in ("http", "https"):
        return httpcore.HTTPProxy(
            proxy_url=url,
            proxy_auth=proxy.raw_auth,
            proxy_headers=proxy.headers.raw,
            ssl_context=context,
            proxy_ssl_context=proxy.ssl_context,
            max_connections=None,
            max_keepalive_connections=MAX_IDLE,
            keepalive_expiry=MAX_IDLE_TIME,
            network_backend=backend,
        )
    if proxy.url.scheme in ("socks5", "socks5h"):
        return httpcore.SOCKSProxy(
            proxy_url=url,
            proxy_auth=proxy.raw_auth,
            ssl_context=context,
            max_connections=None,
            max_keepalive_connections=MAX_IDLE,
            keepalive_expiry=MAX_IDLE_TIME,
            network_backend=backend,
        )
    raise ValueError(f"{proxy.url.scheme} is not the scheme of a proxy")
