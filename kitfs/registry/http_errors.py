"""Turn failures of registries and connections into errors of kitfs.

Each message is one line that names the host, the subject of the request, and what to do. Exceptions of httpx leave this
package only through ``mapped``. Threading: the functions have no state.
"""

from __future__ import annotations

import base64
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import parse_qs

import httpx

from kitfs.errors import NotFound, RateLimited, RegistryError, Unauthorized, Unavailable
from kitfs.redaction import public, redacted, without
from kitfs.registry.addresses import Forbidden, UnresolvedError
from kitfs.registry.breaker import CircuitOpen
from kitfs.registry.early_answer import TlsAlert
from kitfs.registry.pace import TooSlow

MAX_ERROR_BODY: Final = 8 << 10  # bytes of an error body that are read
MAX_CAUSE: Final = 200  # characters of a cause whose text comes from a server or a library
TLS_ADVICE: Final = "speaks TLS, not plain HTTP (omit --plain-http, or write https://)"
UNRESOLVED: Final = "the DNS servers of this machine do not answer a query for its name"
NO_SUCH_NAME: Final = (socket.EAI_NONAME, socket.EAI_NODATA)
UNKNOWN: Final = {
    "NAME_UNKNOWN": "the repository does not exist",
    "MANIFEST_UNKNOWN": "the tag or digest does not exist",
    "BLOB_UNKNOWN": "the blob does not exist",
}
ACCESS_DENIED: Final = {
    401: "wrong or missing credentials, or the repository does not exist",
    403: "no permission, or the repository does not exist",
}


class Broken(Unavailable):
    """A connection ended before the response was complete. The bytes that arrived are valid."""


class SpeaksTls(Unavailable):
    """A server received plain HTTP but uses TLS."""


class Stalled(Unavailable):
    """A server neither sent nor accepted any byte for a whole timeout."""


def shown(url: httpx.URL | str) -> str:
    """Return a URL without credentials, and without its query, which may contain a signature."""
    return public(str(url))


def host_of(url: httpx.URL | str) -> str:
    """Return host[:port] of a URL, without the port that the scheme implies."""
    return httpx.URL(url).netloc.decode("ascii", "replace")


@contextmanager
def mapped(url: httpx.URL | str, what: str) -> Iterator[None]:
    """Translate an exception of httpx in the block into an error of kitfs, for a request for ``what`` to ``url``."""
    try:
        yield
    except httpx.HTTPError as e:
        # httpx parses the Location of a redirect although it does not follow it
        if isinstance(e.__context__, httpx.InvalidURL):
            raise RegistryError(f"{what}: {host_of(url)} redirects to an invalid URL", url=shown(url))
        raise unavailable(e, url, what)
    except Forbidden as e:
        raise forbidden(e, url, what)
    except httpx.InvalidURL:
        raise RegistryError(f"{what}: invalid URL", url=str(url))
    except (UnicodeError, OverflowError):  # raised by idna and the socket module for a name that no host can have
        raise RegistryError(f"{what}: {host_of(url)}: no such host or port", url=shown(url))
    except (ssl.SSLError, OSError) as e:
        raise Unavailable(f"{what}: {host_of(url)}: {e}", url=shown(url))


def forbidden(e: Forbidden, url: httpx.URL | str, what: str) -> RegistryError:
    """Return the error for a URL that leads to a forbidden address. A registry or a kit has named the URL."""
    asked = host_of(url)
    where = "this machine itself" if e.scope == "host" else "a link-local or metadata address"
    address = f" ({e.address})" if e.address and e.address != e.host.partition(":")[0].strip("[]") else ""
    if e.host == asked:
        text = (
            f"{e.host} is {where}{address}, but another server named it, so kitfs does not connect to it "
            "(pull the kit from there yourself)"
        )
    else:
        text = f"{asked} leads to {e.host}, which is {where}{address}: only a registry at such an address may do that"
    return RegistryError(f"{what}: {text}", url=shown(url))


def unavailable(e: httpx.HTTPError, url: httpx.URL | str, what: str) -> Unavailable:
    """Return the error for a request that got no response or only a part of a response."""
    timeout: object = None
    asked = host_of(url)
    try:
        url = e.request.url  # the URL that failed, which may be that of a token server or a redirect's target
        timeout = e.request.extensions.get("timeout", {}).get("read")
    except RuntimeError:
        pass  # the exception does not belong to a request
    host = host_of(url)
    kind, text = explained(e, host, timeout)
    notes = "".join(f" ({note})" for note in getattr(e, "__notes__", ()))
    if asked != host:
        notes += f", which {asked} names as its token server"
    return kind(f"{what}: {text}{notes}", url=shown(url))


def explained(e: httpx.HTTPError, host: str, timeout: object) -> tuple[type[Unavailable], str]:
    """Return the class of kitfs's error for an exception of httpx, and a text that says what happened at ``host``.

    ``timeout``: the read timeout of the request in seconds, if it is known.
    """
    cause = root_cause(e)
    if isinstance(e, CircuitOpen):
        return Unavailable, str(e)
    if isinstance(e, httpx.ConnectTimeout):
        unresolved = isinstance(e.__cause__, UnresolvedError)
        return Unavailable, f"cannot reach {host}: {UNRESOLVED if unresolved else 'the connection timed out'}"
    if isinstance(e, httpx.TimeoutException):
        verb = "took" if isinstance(e, httpx.WriteTimeout) else "sent"
        did = f"{verb} nothing for {f'{timeout:g} s' if isinstance(timeout, (int, float)) else 'too long'}"
        if isinstance(e.__cause__, TooSlow):
            did = str(e.__cause__)
        return Stalled, f"{host} {did} (--read-timeout)"
    if isinstance(cause, ssl.SSLError):
        return Unavailable, f"{host}: {_tls_text(cause)}"
    if isinstance(e, httpx.ConnectError):
        return Unavailable, f"cannot reach {host}: {_cause_text(cause)}"
    if isinstance(e.__cause__, TlsAlert):
        return SpeaksTls, f"{host} {TLS_ADVICE}"
    return Broken, f"{host} broke the connection: {_cause_text(cause)}"


def root_cause(e: BaseException) -> BaseException:
    """Return the innermost cause of an exception.

    httpx wraps the exceptions of httpcore, and httpcore wraps the exceptions of sockets.
    """
    seen: list[BaseException] = []
    while (below := e.__cause__ or e.__context__) is not None and below not in seen:
        seen.append(below)
        if not str(below):
            break
        e = below
    return e


def is_permanent(e: httpx.TransportError) -> bool:
    """Return whether a connection failed for a permanent reason. Such a connection is not retried.

    Permanent reasons are an unknown name, an untrusted certificate, and a server that does not use TLS.
    """
    cause = root_cause(e)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return True
    if isinstance(cause, ssl.SSLError):
        return "CERTIFICATE" in (cause.reason or "") or speaks_no_tls(cause)
    return isinstance(cause, socket.gaierror) and cause.errno in NO_SUCH_NAME


def speaks_no_tls(e: ssl.SSLError) -> bool:
    """Return whether OpenSSL found that the server does not use TLS."""
    return (e.reason or "").startswith(("WRONG_VERSION_NUMBER", "RECORD_LAYER", "PACKET_LENGTH_TOO_LONG"))


def _cause_text(cause: BaseException) -> str:
    """Return the message of an exception without the headers that httpx and h11 quote."""
    kind = type(cause).__name__
    if kind == "LocalProtocolError":
        return "a header of the request contains characters that are not allowed"
    if isinstance(cause, socket.gaierror):
        if cause.errno in NO_SUCH_NAME:
            return "its name has no address (check the name, and the DNS settings of this machine)"
        return f"{UNRESOLVED} ({redacted(str(cause.strerror).lower())[:MAX_CAUSE]})"
    if isinstance(cause, OSError) and cause.strerror and cause.errno is not None:
        return redacted(cause.strerror.lower())[:MAX_CAUSE]
    text = str(cause)
    if kind == "RemoteProtocolError":
        text = text.partition("bytearray(")[0].rstrip(": ")
    return redacted(text or kind)[:MAX_CAUSE]


def _tls_text(e: ssl.SSLError) -> str:
    if isinstance(e, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({e.verify_message}); "
            "trust its CA with --tls-cert, or use --tls-verify=false"
        )
    if speaks_no_tls(e):
        return "it does not speak TLS; for plain HTTP use --plain-http"
    return f"TLS failed: {redacted(str(e))[:MAX_CAUSE]}"


def failure(response: httpx.Response, what: str) -> RegistryError | NotFound:
    """Return the error for an error response. Its class depends on the status and code of the response.

    ``read_error`` must have read the body.
    """
    url = shown(response.request.url)
    host = host_of(response.request.url)
    status = response.status_code
    code, message = error_of(response)
    detail = f" ({message})" if message else ""
    if status == 404:
        return NotFound(f"{what}: {host}: not found{': ' + UNKNOWN[code] if code in UNKNOWN else detail}")
    if status in ACCESS_DENIED:
        text = f"access denied ({status}): {ACCESS_DENIED[status]}{detail}; log in with kitfs login {host}"
        return Unauthorized(f"{what}: {host}: {text}", status=status, code=code, url=url)
    if status == 429:
        text = f"{what}: {host} returned 429: too many requests{detail}; try again later"
        return RateLimited(text, status=status, code=code, url=url)
    if asks_for_tls(response):
        return SpeaksTls(f"{what}: {host} {TLS_ADVICE}", status=status, code=code, url=url)
    kind = Unavailable if status >= 500 or status == 408 else RegistryError
    return kind(f"{what}: {host} returned {status}{detail}", status=status, code=code, url=url)


def asks_for_tls(response: httpx.Response) -> bool:
    """Return whether a response over plain HTTP states, in the words of nginx or Go, that the server uses TLS.

    The body must have been read.
    """
    return response.status_code == 400 and (
        "HTTP request was sent to HTTPS port" in response.text or "HTTPS server" in response.text
    )


def check_encoding(response: httpx.Response, what: str) -> None:
    """Raise RegistryError for a body that is encoded although ``identity`` was requested.

    Digests and offsets do not apply to an encoded body.
    """
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() not in ("identity", ""):
        host = host_of(response.request.url)
        text = f"{what}: {host} sent a body with Content-Encoding {encoding[:40]}, which was not requested"
        raise RegistryError(text, status=response.status_code)


def secrets_of(request: httpx.Request) -> list[str]:
    """Return the secrets in a request, which a response may repeat.

    They are the value of the Authorization header, also decoded, and the refresh token.
    """
    header = request.headers.get("Authorization", "")
    scheme, _, value = header.partition(" ")
    found = [header, value]
    if scheme.lower() == "basic":
        try:
            pair = base64.b64decode(value).decode()
            found += [pair, pair.partition(":")[2]]
        except ValueError:
            pass  # the user may have set an invalid header
    is_form = "x-www-form-urlencoded" in request.headers.get("Content-Type", "")
    try:
        form = parse_qs(request.content.decode()) if is_form else {}
    except (httpx.RequestNotRead, ValueError):
        form = {}
    return found + [secret for name in ("refresh_token", "password") for secret in form.get(name, ())]


class CappedBody(httpx.SyncByteStream):
    """The first ``limit`` + 1 bytes of a body. The last of these bytes shows that the body exceeds the limit.

    ``lenient``: do not raise an error if the body breaks off.
    """

    def __init__(self, inner: object, limit: int, *, lenient: bool) -> None:
        assert isinstance(inner, httpx.SyncByteStream)
        self._inner = inner
        self._limit = limit
        self._lenient = lenient

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body in pieces."""
        left = self._limit + 1
        try:
            for piece in self._inner:
                yield piece[:left]
                left -= len(piece)
                if left <= 0:
                    return
        except httpx.HTTPError:
            if not self._lenient:
                raise

    def close(self) -> None:
        """Close the body."""
        self._inner.close()


def read_capped(response: httpx.Response, limit: int = MAX_ERROR_BODY, *, lenient: bool = False) -> bytes:
    """Read at most ``limit`` + 1 bytes of a body, and close the response.

    ``lenient``: if the body breaks off, return the bytes that arrived instead of raising httpx's error.
    """
    if not response.is_stream_consumed:
        response.headers.pop("Content-Encoding", None)  # the body is not decoded, because a part cannot be decoded
        response.stream = CappedBody(response.stream, limit, lenient=lenient)
    return response.read()  # if the body was read before, for example by the auth flow, returns the same bytes


def read_error(response: httpx.Response) -> None:
    """Read the useful part of an error response's body.

    A body that breaks off is not an error, because the status suffices.
    """
    read_capped(response, lenient=True)


def error_of(response: httpx.Response) -> tuple[str, str]:
    """Return (code, message) of an error body as distribution-spec defines it, or ("", "") for any other body."""
    try:
        error = json.loads(response.content)["errors"][0]
        secrets = secrets_of(response.request)
        code, message = (without(str(error.get(key, "")), secrets) for key in ("code", "message"))
        return code[:64], message[:MAX_CAUSE]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return "", ""
