"""Authenticate requests with an ``httpx.Auth``: anonymously, with Basic, or with bearer tokens.

Follows distribution's "Token Authentication Specification" and its OAuth2 form. After a 401 with ``WWW-Authenticate:
Bearer``, kitfs requests a token from the realm (GET with Basic, or POST with a refresh token), and sends the request
again. Tokens are cached per (host, scope) until shortly before they expire. If the registry returns 401 although a
token has not expired, the token is replaced once. Before a body is streamed, an expired token is replaced without
waiting for a 401, so that the body need not be sent twice. Threading: the flow runs on the thread that sends the
request. If several threads need a token for the same scope, one thread requests the token and the others wait for the
result.
"""

from __future__ import annotations

import base64
import copy
import json
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Final, NamedTuple

import httpx

from kitfs.errors import KitfsError, RegistryError, Unauthorized, Unavailable
from kitfs.registry.addresses import AddressScope, answered_from
from kitfs.registry.credentials import Credential, Credentials
from kitfs.registry.http_errors import failure, read_capped, read_error, shown
from kitfs.registry.proxies import is_loopback

CLIENT_ID: Final = "kitfs"
MIN_LIFE: Final = 60.0  # seconds that a token without ``expires_in`` is valid (the specification's default)
MARGIN: Final = 0.1  # the end of a token's lifetime is not used, because a request could outlast it
MAX_TOKEN: Final = 128 << 10  # bytes of a token server's response
ATTEMPTS: Final = 5  # attempts to send a request, each with another token
MAX_CHALLENGE: Final = 16 << 10  # characters of one header that are parsed
# A token, and its value if it has one: a quoted string, or anything up to a blank or comma. The expression never
# backtracks. "/" occurs in the base64 data of schemes that kitfs does not support.
CHALLENGE_PART: Final = re.compile(
    r"""[\s,;]*+(?P<token>[!#$%&'*+./^_`|~0-9A-Za-z-]++)(?:\s*+=\s*+(?:"(?P<quoted>(?:[^"\\]|\\.)*+)"|(?P<bare>[^\s,"]*+)))?+[\s,;]*+""",
    re.DOTALL,
)
SCHEMES: Final = ("basic", "bearer")
ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


class Token(NamedTuple):
    """The value of an Authorization header, and the time (in monotonic seconds) after which the value is not used."""

    header: str
    until: float


class Challenge(NamedTuple):
    """The parameters of a host's Bearer challenge.

    ``scope``: the scope of the address that sent the challenge (see ``addresses``).
    """

    parameters: dict[str, str]
    led_from: AddressScope


def challenges(*headers: str) -> dict[str, dict[str, str]]:
    """Parse ``WWW-Authenticate`` headers into a mapping from "basic" or "bearer" to parameters.

    Names of parameters are in lower case, and values have no quotes. Follows RFC 9110 §11.6.1, and also accepts what
    servers send in practice: any case and spacing, parameters without commas between them, and unquoted URLs. If a
    scheme has several challenges, the first challenge that has a realm is used, or the first if none has a realm. A
    header is parsed once from left to right, up to ``MAX_CHALLENGE`` characters or the first invalid character.
    """
    found: dict[str, dict[str, str]] = {}
    for header in headers:
        for scheme, parameters in _challenges(header[:MAX_CHALLENGE]):
            if scheme in SCHEMES and (scheme not in found or ("realm" in parameters and "realm" not in found[scheme])):
                found[scheme] = parameters
    return found


def _challenges(header: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (scheme, parameters) for each challenge in a header.

    A word is the name of a parameter if "=" follows it. Otherwise it is a scheme.
    """
    scheme, parameters = "", dict[str, str]()
    at = 0
    while at < len(header):
        match = CHALLENGE_PART.match(header, at)
        if match is None:
            break  # the rest cannot be parsed
        at = match.end()
        token, quoted, bare = match.group("token", "quoted", "bare")
        if quoted is None and bare is None:
            if scheme:
                yield scheme, parameters
            scheme, parameters = token.lower(), {}
        elif scheme:
            parameters[token.lower()] = bare if quoted is None else ESCAPED.sub(r"\1", quoted)
    if scheme:
        yield scheme, parameters


class TokenRequest:
    """A token request in progress, shared by every thread that needs the same token.

    The method ``end`` sets ``header`` or ``error``. If the token server could not be reached, neither is set.
    """

    __slots__ = ("done", "error", "header")

    def __init__(self) -> None:
        self.done = threading.Event()
        self.header = ""
        self.error: KitfsError | None = None


class Tokens:
    """The tokens of one client, by (host, scope)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: dict[tuple[str, str], Token] = {}
        self._requests: dict[tuple[str, str], TokenRequest] = {}
        self._challenges: dict[tuple[str, str], Challenge] = {}
        self._accepted: set[tuple[str, str]] = set()

    def get(self, host: str, scope: str) -> str | None:
        """Return the cached header for a scope, or None if no header is cached or the header has expired."""
        with self._lock:
            token = self._tokens.get((host, scope))
        return token.header if token is not None and token.until > self._clock() else None

    def put(self, host: str, scope: str, header: str, life: float) -> None:
        """Cache a header for ``life`` seconds minus a margin."""
        with self._lock:
            self._tokens[host, scope] = Token(header, self._clock() + life * (1 - MARGIN))

    def discard(self, host: str, scope: str, header: str) -> None:
        """Discard a header that the registry refused, unless another thread has replaced it."""
        with self._lock:
            token = self._tokens.get((host, scope))
            if token is not None and token.header == header:
                del self._tokens[host, scope]

    def accept(self, host: str, scope: str) -> None:
        """Record that a host has accepted a token for a scope."""
        if (host, scope) not in self._accepted:
            with self._lock:
                self._accepted.add((host, scope))

    def accepted(self, host: str, scope: str) -> bool:
        """Return whether a host has ever accepted a token for a scope.

        If such a host refuses a token, the token has expired.
        """
        return (host, scope) in self._accepted

    def remember(self, host: str, scope: str, challenge: Challenge) -> None:
        """Record the latest Bearer challenge of a host."""
        with self._lock:
            self._challenges[host, scope] = challenge

    def challenge(self, host: str, scope: str) -> Challenge | None:
        """Return the latest Bearer challenge of a host, or None if it has not sent any."""
        with self._lock:
            return self._challenges.get((host, scope))

    def begin(self, host: str, scope: str) -> tuple[TokenRequest, bool]:
        """Return the token request for a scope.

        The second result is True if the caller must send the request and call ``end``.
        """
        with self._lock:
            found = self._requests.get((host, scope))
            if found is not None:
                return found, False
            self._requests[host, scope] = new = TokenRequest()
            return new, True

    def end(self, host: str, scope: str, ended: TokenRequest) -> None:
        """End a request, and wake the threads that wait for its result."""
        with self._lock:
            del self._requests[host, scope]
        ended.done.set()


class RegistryAuth(httpx.Auth):
    """The auth flow of one repository.

    ``host``: the registry whose credentials are used. ``plain_http``: whether credentials may be sent to a token server
    without TLS. ``scope``: for example "repository:name:pull"; several scopes are separated by blanks. A scope that
    allows more than pulling is requested in addition to the scopes of the challenge. Raises Unauthorized if no token
    can be obtained.
    """

    requires_response_body = False

    def __init__(self, host: str, scope: str, credentials: Credentials, tokens: Tokens, *, plain_http: bool) -> None:
        self._host = host
        self._scope = scope
        self._credentials = credentials
        self._tokens = tokens
        self._plain_http = plain_http
        self._repository = scope.split(" ")[0].removeprefix("repository:").rpartition(":")[0]
        self._lookup_error = ""  # why the credentials could not be looked up

    def scoped(self, scope: str) -> RegistryAuth:
        """Return the auth flow for another scope."""
        return RegistryAuth(self._host, scope, self._credentials, self._tokens, plain_http=self._plain_http)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send a request. After a 401, send the request once more with the authorization that the challenge requires.

        If the registry has accepted a token for this scope before, a 401 means that the token has expired. The request
        is then sent up to ``ATTEMPTS`` times, because the next token can have expired, too.
        """
        held = self._tokens.get(self._host, self._scope)
        known = self._tokens.challenge(self._host, self._scope)
        if held is None and known is not None and not isinstance(request.stream, httpx.ByteStream):
            held = yield from self._fetched(known, request)
        if held is not None:
            request.headers["Authorization"] = held
        for attempt in range(ATTEMPTS):
            response = yield request
            if response.status_code != 401:
                if held is not None:
                    self._tokens.accept(self._host, self._scope)
                return
            if held is not None:
                self._tokens.discard(self._host, self._scope, held)
            if attempt == ATTEMPTS - 1 or (attempt and not self._tokens.accepted(self._host, self._scope)):
                self._explain(response)
                return
            read_error(response)
            asked = challenges(*response.headers.get_list("WWW-Authenticate"))
            header = self._tokens.get(self._host, self._scope)  # another thread may have obtained a new one
            if header is None and "bearer" in asked:
                challenge = Challenge(asked["bearer"], answered_from(response))
                self._tokens.remember(self._host, self._scope, challenge)
                header = yield from self._fetched(challenge, request)
            elif header is None and "basic" in asked and (credential := self._credential()):
                header = _basic(credential)
                self._tokens.put(self._host, self._scope, header, 86_400)
            if header is None or header == held:
                self._explain(response)
                return  # the registry has refused every header that kitfs can send
            request.headers["Authorization"] = held = header

    def _credential(self) -> Credential | None:
        """Return the credential for the repository, or None if none is stored.

        If the lookup fails, the result is also None, because the repository may be public.
        """
        found, self._lookup_error = self._credentials.find(self._host, self._repository)
        return found

    def _explain(self, response: httpx.Response) -> None:
        """Raise Unauthorized with the reason if the registry refused a request and the credential lookup failed."""
        if self._lookup_error:
            raise Unauthorized(
                f"{self._host} requires credentials, but {self._lookup_error}",
                status=response.status_code,
                url=shown(response.request.url),
            )

    def _fetched(self, challenge: Challenge, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, str]:
        """Return the header of a new token. If another thread is requesting the token, wait for that request."""
        flight, own = self._tokens.begin(self._host, self._scope)
        if not own:
            flight.done.wait()  # needs no timeout, because the timeouts of the sending thread end the request
            if flight.error is not None:
                raise copy.copy(flight.error)
            if not flight.header:
                realm = shown(challenge.parameters.get("realm", ""))
                raise Unavailable(f"{self._host}: its token server {realm} does not respond", url=shown(request.url))
            return flight.header
        try:
            flight.header = yield from self._bearer(challenge, self._credential(), request)
            return flight.header
        except KitfsError as e:
            flight.error = e
            raise
        finally:
            self._tokens.end(self._host, self._scope, flight)

    def _bearer(
        self, challenge: Challenge, credential: Credential | None, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, str]:
        """Request a token from the realm of a challenge, and return its header."""
        if credential and credential.registry_token:
            header = f"Bearer {credential.registry_token}"
            self._tokens.put(self._host, self._scope, header, MIN_LIFE)
            return header
        named = challenge.parameters.get("realm", "")
        try:
            realm = request.url.join(named)
        except httpx.InvalidURL:
            raise RegistryError(f"{self._host} names an invalid token realm {named[:100]!r}")
        if not named or realm.scheme not in ("http", "https") or (realm.port or 0) > 65_535:
            raise RegistryError(f"{self._host} requires a token, but its challenge does not name a realm")
        response = yield self._token_request(realm, challenge, credential, request)
        body = read_capped(response, MAX_TOKEN)
        status = response.status_code
        if status in (400, 401, 403, 404):
            refused = f"the credentials of {credential.username or 'its token'}" if credential else "anonymous access"
            remedy = self._lookup_error or f"log in with kitfs login {self._host}"
            text = f"{shown(realm)} refuses {refused} for {self._host} ({status}); {remedy}"
            raise Unauthorized(text, status=status, url=shown(realm))
        if status in (408, 429) or status >= 500:
            raise failure(response, f"a token for {self._host}")
        try:
            answer = json.loads(body) if response.is_success else {}
            token = answer.get("token") or answer.get("access_token")
            token = token.strip() if isinstance(token, str) else ""
            life = float(answer.get("expires_in") or MIN_LIFE)
        except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
            token, life = "", MIN_LIFE
        if not token or not token.isascii() or not token.isprintable():
            raise RegistryError(
                f"{shown(realm)} returned {status} but no token for {self._host}", status=status, url=shown(realm)
            )
        header = f"Bearer {token}"
        self._tokens.put(self._host, self._scope, header, max(1.0, life))
        return header

    def _token_request(
        self, realm: httpx.URL, challenge: Challenge, credential: Credential | None, request: httpx.Request
    ) -> httpx.Request:
        """Return the request for a token: GET with Basic, or the OAuth2 POST with a refresh token.

        The token request has the timeouts of ``request``, which needs the token. Credentials are sent over plain HTTP
        only in three cases: with --plain-http, to a loopback address, or if ``request`` goes over plain HTTP to the
        same host.
        """
        service = challenge.parameters.get("service", "")
        scope = widened(challenge.parameters.get("scope", ""), self._scope)
        home = (request.url.scheme, request.url.host)
        if (
            credential
            and realm.scheme == "http"
            and not (self._plain_http or is_loopback(realm.host) or (realm.scheme, realm.host) == home)
        ):
            raise Unauthorized(
                f"{self._host} requires the credentials at {shown(realm)}, without TLS; allow that with --plain-http",
                url=shown(realm),
            )
        if request.url.scheme == "https" and realm.scheme == "http" and not self._plain_http:
            raise RegistryError(
                f"{self._host} uses TLS but names a token server without TLS: {shown(realm)} is not contacted",
                url=shown(realm),
            )
        headers = {name: request.headers[name] for name in ("User-Agent", "Accept-Encoding") if name in request.headers}
        extensions = {k: v for k, v in request.extensions.items() if k != "repeat"}
        if (realm.scheme, realm.netloc) != (request.url.scheme, request.url.netloc):
            extensions["led_from"] = challenge.led_from
        if credential and credential.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": credential.identity_token, "client_id": CLIENT_ID}
            form |= {"service": service, "scope": scope}
            return httpx.Request("POST", realm, data=form, headers=headers, extensions=extensions)
        query: dict[str, str | list[str]] = {"service": service} if service else {}
        query |= {"scope": scope.split(" ")} if scope else {}
        if credential:
            headers["Authorization"] = _basic(credential)
        return httpx.Request("GET", realm.copy_merge_params(query), headers=headers, extensions=extensions)


class TokenAuth(httpx.Auth):
    """An auth flow that sends a fixed Authorization header with every request, or none if the header is ""."""

    def __init__(self, header: str) -> None:
        self._header = header

    def scoped(self, scope: str) -> TokenAuth:
        """Return this object, because the header is valid for every scope."""
        return self

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request once, whatever the response is."""
        if self._header:
            request.headers["Authorization"] = self._header
        yield request


def widened(asked: str, own: str) -> str:
    """Return the scopes of a challenge (``asked``), together with the scope ``own`` if it allows more than pulling."""
    if not asked or (own.endswith(":pull") and " " not in own):
        return asked or own
    actions: dict[str, dict[str, None]] = {}
    for scope in f"{own} {asked}".split():
        resource, _, wanted = scope.rpartition(":")
        actions.setdefault(resource, {}).update(dict.fromkeys(wanted.split(",")))
    return " ".join(f"{resource}:{','.join(had)}" for resource, had in actions.items())


def _basic(credential: Credential) -> str:
    return "Basic " + base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()
