"""What registries and connections do wrong, as errors of kitfs: each is one line that names the host, what was
requested, and what to do.

httpx's exceptions leave this package through ``mapped`` only. Threading: pure functions.
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
from kitfs.registry.addresses import Forbidden
from kitfs.registry.early_answer import TlsAlert
from kitfs.registry.pace import TooSlow

MAX_ERROR_BODY: Final = 8 << 10  # bytes of an error body that are read
MAX_CAUSE: Final = 200  # characters of a cause whose text comes from elsewhere
TLS_ADVICE: Final = "speaks TLS, not plain HTTP (omit --plain-http, or write https://)"
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
    """A connection that ended before the response did; the bytes received so far are valid."""


class SpeaksTls(Unavailable):
    """A server that received plain HTTP and speaks TLS."""


class Stalled(Unavailable):
    """A server that sent nothing, or took nothing, for a whole timeout."""


def shown(url: httpx.URL | str) -> str:
    """Return a URL without credentials, and without its query, which may hold a signature."""
    return public(str(url))


def host_of(url: httpx.URL | str) -> str:
    """Return host[:port] of a URL, without the port that the scheme implies."""
    return httpx.URL(url).netloc.decode("ascii", "replace")


@contextmanager
def mapped(url: httpx.URL | str, what: str) -> Iterator[None]:
    """Raise an error of kitfs for what httpx raises while ``what`` is requested from ``url``."""
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
    """Return the error for a URL that a registry or a kit names, and that kitfs does not follow."""
    asked = host_of(url)
    where = "this machine itself" if e.scope == "host" else "a link-local or metadata address"
    address = f" ({e.address})" if e.address and e.address != e.host.partition(":")[0].strip("[]") else ""
    if e.host == asked:
        text = (
            f"{e.host} is {where}{address}, but was named by another server: "
            "kitfs does not connect to it (pull the kit from there yourself)"
        )
    else:
        text = (
            f"{asked} leads to {e.host}, which is {where}{address}: only a registry on such an address may lead there"
        )
    return RegistryError(f"{what}: {text}", url=shown(url))


def unavailable(e: httpx.HTTPError, url: httpx.URL | str, what: str) -> Unavailable:
    """Return the error for a request that got no response, or only a part of one."""
    timeout: object = None
    asked = host_of(url)
    try:
        url = e.request.url  # the URL that failed: of a token server, or of a redirect's target
        timeout = e.request.extensions.get("timeout", {}).get("read")
    except RuntimeError:
        pass  # the exception belongs to no request
    host = host_of(url)
    cause = root_cause(e)
    kind: type[Unavailable] = Unavailable
    if isinstance(e, httpx.ConnectTimeout):
        text = f"cannot reach {host}: no connection in time"
    elif isinstance(e, httpx.TimeoutException):
        kind = Stalled
        verb = "took" if isinstance(e, httpx.WriteTimeout) else "sent"
        did = f"{verb} nothing for {f'{timeout:g} s' if isinstance(timeout, (int, float)) else 'too long'}"
        if isinstance(e.__cause__, TooSlow):
            did = str(e.__cause__)
        text = f"{host} {did} (--read-timeout)"
    elif isinstance(cause, ssl.SSLError):
        text = f"{host}: {_tls_text(cause)}"
    elif isinstance(e, httpx.ConnectError):
        text = f"cannot reach {host}: {_cause_text(cause)}"
    elif isinstance(e.__cause__, TlsAlert):
        kind = SpeaksTls
        text = f"{host} {TLS_ADVICE}"
    else:
        kind = Broken
        text = f"{host} broke the connection: {_cause_text(cause)}"
    notes = "".join(f" ({note})" for note in getattr(e, "__notes__", ()))
    if asked != host:
        notes += f", which {asked} names as its token server"
    return kind(f"{what}: {text}{notes}", url=shown(url))


def root_cause(e: BaseException) -> BaseException:
    """Return the innermost cause of an exception: httpx wraps httpcore's, which wraps the socket's own."""
    seen: list[BaseException] = []
    while (below := e.__cause__ or e.__context__) is not None and below not in seen:
        seen.append(below)
        if not str(below):
            break
        e = below
    return e


def is_permanent(e: httpx.TransportError) -> bool:
    """Return whether a connection failed for a reason that another attempt does not change: an unknown name, a
    certificate that is not trusted, a server that does not speak TLS.
    """
    cause = root_cause(e)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return True
    if isinstance(cause, ssl.SSLError):
        return "CERTIFICATE" in (cause.reason or "") or speaks_no_tls(cause)
    return isinstance(cause, socket.gaierror) and cause.errno in (socket.EAI_NONAME, socket.EAI_NODATA)


def speaks_no_tls(e: ssl.SSLError) -> bool:
    """Return whether OpenSSL found that the other side does not speak TLS."""
    return (e.reason or "").startswith(("WRONG_VERSION_NUMBER", "RECORD_LAYER", "PACKET_LENGTH_TOO_LONG"))


def _cause_text(cause: BaseException) -> str:
    """Return what an exception says about its cause, without the headers that httpx and h11 quote."""
    kind = type(cause).__name__
    if kind == "LocalProtocolError":
        return "a header of the request contains characters that are not allowed"
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
            "name its CA with --tls-cert, or use --tls-verify=false"
        )
    if speaks_no_tls(e):
        return "it does not speak TLS; for plain HTTP use --plain-http"
    return f"TLS failed: {redacted(str(e))[:MAX_CAUSE]}"


def failure(response: httpx.Response, what: str) -> RegistryError | NotFound:
    """Return the error for a response that is one, in the class that fits. The body must have been read
    (``read_error``).
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
    """Return whether a response over plain HTTP says that the server speaks TLS, in the words of nginx or of Go. The
    body must have been read.
    """
    return response.status_code == 400 and (
        "HTTP request was sent to HTTPS port" in response.text or "HTTPS server" in response.text
    )


def check_encoding(response: httpx.Response, what: str) -> None:
    """Raise RegistryError for a body that is encoded although ``identity`` was requested: no digest and no offset
    would fit it.
    """
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() not in ("identity", ""):
        host = host_of(response.request.url)
        text = f"{what}: {host} sent a body with Content-Encoding {encoding[:40]}, which was not requested"
        raise RegistryError(text, status=response.status_code)


def secrets_of(request: httpx.Request) -> list[str]:
    """Return the secrets that a request sends, and that a response may repeat: its Authorization, as it is and
    decoded, and its refresh token.
    """
    header = request.headers.get("Authorization", "")
    scheme, _, value = header.partition(" ")
    found = [header, value]
    if scheme.lower() == "basic":
        try:
            pair = base64.b64decode(value).decode()
            found += [pair, pair.partition(":")[2]]
        except ValueError:
            pass  # the header comes from elsewhere and is not valid
    is_form = "x-www-form-urlencoded" in request.headers.get("Content-Type", "")
    try:
        form = parse_qs(request.content.decode()) if is_form else {}
    except (httpx.RequestNotRead, ValueError):
        form = {}
    return found + [secret for name in ("refresh_token", "password") for secret in form.get(name, ())]


class CappedBody(httpx.SyncByteStream):
    """At most ``limit`` + 1 bytes of a body: the last one shows the reader that there are more.

    ``lenient``: a body that breaks off ends there, without an error.
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
    """Read a body, but at most ``limit`` + 1 bytes of it, and close the response.

    With ``lenient`` True a body that breaks off is returned as far as it came, else httpx's error is raised.
    """
    if not response.is_stream_consumed:
        response.headers.pop("Content-Encoding", None)  # the body is kept as it came: a part of it cannot be decoded
        response.stream = CappedBody(response.stream, limit, lenient=lenient)
    return response.read()  # returns what was read before, for example by the auth flow


def read_error(response: httpx.Response) -> None:
    """Read the useful part of an error's body; the status counts even if the body breaks off."""
    read_capped(response, lenient=True)


def error_of(response: httpx.Response) -> tuple[str, str]:
    """Return (code, message) of a distribution-spec error body; ("", "") if the body is not one."""
    try:
        error = json.loads(response.content)["errors"][0]
        secrets = secrets_of(response.request)
        code, message = (without(str(error.get(key, "")), secrets) for key in ("code", "message"))
        return code[:64], message[:MAX_CAUSE]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return "", ""
