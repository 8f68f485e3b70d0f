"""What registries and connections do wrong, as errors of kitfs: one line each, naming host, what was asked, and what
to do.

httpx's exceptions cross the border of this package through ``mapped`` only. Threading: pure functions.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import parse_qs

import httpx

from kitfs.errors import NotFound, RateLimited, RegistryError, Unauthorized, Unavailable
from kitfs.redaction import public, redacted, without
from kitfs.registry.addresses import Forbidden
from kitfs.registry.pace import TooSlow

MAX_ERROR_BODY: Final = 8 << 10  # bytes of an error body that are read
LONGEST_CAUSE: Final = 200  # characters of a cause that somebody else worded
TLS_ALERT: Final = "x15\\x03"  # how a TLS alert looks to h11
TLS_ADVICE: Final = "speaks TLS, not plain HTTP (leave out --plain-http, or write https://)"
UNKNOWN: Final = {
    "NAME_UNKNOWN": "there is no such repository",
    "MANIFEST_UNKNOWN": "there is no such tag or digest",
    "BLOB_UNKNOWN": "there is no such blob",
}


class Broken(Unavailable):
    """A connection that ended before the answer did; what has come so far stands."""


class SpeaksTls(Unavailable):
    """A server that was spoken to in plain HTTP, and speaks TLS."""


class Stalled(Unavailable):
    """Nothing came for as long as somebody was willing to wait."""


def shown(url: httpx.URL | str) -> str:
    """A URL without credentials and without the signature of a CDN."""
    return public(str(url))


def host_of(url: httpx.URL | str) -> str:
    """host[:port], without the port that the scheme implies."""
    return httpx.URL(url).netloc.decode("ascii", "replace")


@contextmanager
def mapped(url: httpx.URL | str, what: str) -> Iterator[None]:
    """Turn what httpx raises into Unavailable with its cause in words."""
    try:
        yield
    except httpx.HTTPError as e:
        if str(e).startswith(
            "Invalid URL in location header"
        ):  # httpx looks at redirects that nobody asked it to follow
            raise RegistryError(f"{what}: {host_of(url)} redirects to an invalid URL", url=shown(url))
        raise unavailable(e, url, what)
    except Forbidden as e:
        raise forbidden(e, url, what)
    except httpx.InvalidURL:
        raise RegistryError(f"{what}: it is at an invalid URL", url=str(url))
    except (UnicodeError, OverflowError):
        raise RegistryError(
            f"{what}: {host_of(url)}: no such host or port", url=shown(url)
        )  # idna and the socket module say it so
    except (ssl.SSLError, OSError) as e:
        raise Unavailable(f"{what}: {host_of(url)}: {e}", url=shown(url))


def forbidden(e: Forbidden, url: httpx.URL | str, what: str) -> RegistryError:
    """Why a URL that a registry or a kit names is not followed."""
    asked = host_of(url)
    where = "this machine itself" if e.scope == "host" else "a link-local or metadata address"
    address = f" ({e.address})" if e.address and e.address != e.host.partition(":")[0].strip("[]") else ""
    if e.host == asked:
        told = f"{e.host} is {where}{address}, and what refers to it comes from elsewhere: kitfs does not connect there (a kit can be pulled first)"
    else:
        told = (
            f"{asked} leads to {e.host}, which is {where}{address}: only a registry on such an address may lead there"
        )
    return RegistryError(f"{what}: {told}", url=shown(url))


def unavailable(e: httpx.HTTPError, url: httpx.URL | str, what: str) -> Unavailable:
    """Why there was no answer, or only a part of one."""
    patience: object = None
    asked = host_of(url)
    try:
        url = e.request.url  # a token server or a redirect's target, where that is what failed
        patience = e.request.extensions.get("timeout", {}).get("read")
    except RuntimeError:
        pass  # the exception knows no request
    host = host_of(url)
    cause = _root(e)
    text = _text_of(cause)
    kind: type[Unavailable] = Unavailable
    if isinstance(e, httpx.ConnectTimeout):
        told = f"{host} cannot be reached: no connection in time"
    elif isinstance(e, httpx.TimeoutException):
        kind = Stalled
        verb = "took" if isinstance(e, httpx.WriteTimeout) else "sent"
        did = f"{verb} nothing for {f'{patience:g} s' if isinstance(patience, (int, float)) else 'too long'}"
        if isinstance(e.__cause__, TooSlow):
            did = str(e.__cause__)
        told = f"{host} {did} (--read-timeout)"
    elif isinstance(cause, ssl.SSLError):
        told = f"{host}: {_tls(cause, text)}"
    elif isinstance(e, httpx.ConnectError):
        told = f"{host} cannot be reached: {_words(text)}"
    elif isinstance(e, httpx.RemoteProtocolError) and text.endswith("(TLS)"):
        kind = SpeaksTls
        told = f"{host} {TLS_ADVICE}"
    else:
        kind = Broken
        told = f"{host} broke the connection: {_words(text)}"
    notes = "".join(f" ({note})" for note in getattr(e, "__notes__", ()))
    if asked != host:
        notes += f", which {asked} names as its token server"
    return kind(f"{what}: {told}{notes}", url=shown(url))


def _root(e: BaseException) -> BaseException:
    """The innermost cause: httpx wraps httpcore, which wraps the socket's own."""
    seen: list[BaseException] = []
    while (below := e.__cause__ or e.__context__) is not None and below not in seen:
        seen.append(below)
        if not str(below):
            break
        e = below
    return e


def _text_of(cause: BaseException) -> str:
    """What an exception says, where it says no more than what went wrong. httpx and h11 quote headers, ours and those
    of the answer.
    """
    kind = type(cause).__name__  # httpx's, httpcore's or h11's
    if kind == "LocalProtocolError":
        return "a header of the request holds characters that no header may have"
    text = str(cause)
    if kind == "RemoteProtocolError" and "bytearray(" in text:
        text = text.partition("bytearray(")[0].rstrip(": ") + (" (TLS)" if TLS_ALERT in text else "")
    return redacted(text or kind)[:LONGEST_CAUSE]


def _tls(e: ssl.SSLError, text: str) -> str:
    if isinstance(e, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({e.verify_message}); name its CA with --tls-cert, or use --tls-verify=false"
    if "WRONG_VERSION_NUMBER" in text or "record layer" in text or "RECORD_LAYER" in text:
        return "it does not speak TLS; for plain HTTP use --plain-http"
    return f"TLS failed: {text}"


def _words(text: str) -> str:
    """An OSError's text without its number."""
    return text.split("] ", 1)[-1].lower() if text.startswith("[Errno") else text


def failure(response: httpx.Response, what: str) -> RegistryError | NotFound:
    """An answer that is an error, as the class that fits. The body must have been read (``read_error``)."""
    url = shown(response.request.url)
    host = host_of(response.request.url)
    status = response.status_code
    code, message = told(response)
    detail = f" ({message})" if message else ""
    if status == 404:
        return NotFound(f"{what}: {host}: not found{': ' + UNKNOWN[code] if code in UNKNOWN else detail}")
    if status in (401, 403):
        hint = (
            "no credentials that it accepts, or no such repository"
            if status == 401
            else "not allowed, or no such repository"
        )
        return Unauthorized(
            f"{what}: {host} answers {status}: {hint}{detail}; log in with kitfs login {host}",
            status=status,
            code=code,
            url=url,
        )
    if status == 429:
        return RateLimited(
            f"{what}: {host} answers 429: too many requests{detail}; try again later", status=status, code=code, url=url
        )
    if asks_for_tls(response):
        return SpeaksTls(f"{what}: {host} {TLS_ADVICE}", status=status, code=code, url=url)
    if status >= 500 or status == 408:
        return Unavailable(f"{what}: {host} answers {status}{detail}", status=status, code=code, url=url)
    return RegistryError(f"{what}: {host} answers {status}{detail}", status=status, code=code, url=url)


def asks_for_tls(response: httpx.Response) -> bool:
    """Whether an answer over plain HTTP says that the server speaks TLS, in the words of nginx or of Go. The body
    must have been read.
    """
    return response.status_code == 400 and (
        "HTTP request was sent to HTTPS port" in response.text or "HTTPS server" in response.text
    )


def check_encoding(response: httpx.Response, what: str) -> None:
    """Raise RegistryError for a body that is packed although ``identity`` was asked for: no digest and no offset
    would fit it.
    """
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() not in ("identity", ""):
        told = f"{what}: {host_of(response.request.url)} sends it {encoding[:40]} encoded, which nobody asked for"
        raise RegistryError(told, status=response.status_code)


def secrets_of(request: httpx.Request) -> list[str]:
    """What a request shows to whoever answers it, and an answer may repeat: its Authorization, as it is and decoded,
    and its refresh token.
    """
    header = request.headers.get("Authorization", "")
    scheme, _, value = header.partition(" ")
    found = [header, value]
    if scheme.lower() == "basic":
        try:
            pair = base64.b64decode(value).decode()
            found += [pair, pair.partition(":")[2]]
        except ValueError:
            pass  # it was not made here
    try:
        form = (
            parse_qs(request.content.decode())
            if "x-www-form-urlencoded" in request.headers.get("Content-Type", "")
            else {}
        )
    except (httpx.RequestNotRead, ValueError):
        form = {}
    return found + [secret for name in ("refresh_token", "password") for secret in form.get(name, ())]


def read_capped(response: httpx.Response, limit: int = MAX_ERROR_BODY) -> bytes:
    """A body, no more of it than ``limit`` bytes, and close it. One byte more is kept, so that the caller can see
    that there was more.
    """
    if response.is_stream_consumed:
        return response.content  # the auth flow has read it already
    body = bytearray()
    try:
        for piece in response.iter_raw():
            body += piece
            if len(body) > limit:
                break
    finally:
        response.close()
    del body[limit + 1 :]
    response._content = bytes(body)  # noqa: SLF001 - httpx has no public way to cap a body, and its auth flow reads it again
    return bytes(body)


def read_error(response: httpx.Response) -> None:
    """Read what is worth reading of an error's body; the status counts even when the body breaks off."""
    try:
        read_capped(response)
    except httpx.HTTPError:
        response._content = b""  # noqa: SLF001 - as above


def told(response: httpx.Response) -> tuple[str, str]:
    """(code, message) of a distribution-spec error body; ("", "") where there is none."""
    try:
        error = json.loads(response.content)["errors"][0]
        secrets = secrets_of(response.request)
        return without(str(error.get("code", "")), secrets)[:64], without(str(error.get("message", "")), secrets)[
            :LONGEST_CAUSE
        ]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return "", ""
