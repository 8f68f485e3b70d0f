"""Who asks: anonymous, Basic, or the bearer token flow, as an ``httpx.Auth``.

Follows distribution's "Token Authentication Specification" and its OAuth2 form: 401 with ``WWW-Authenticate: Bearer``
→ a token from the realm (GET with Basic, or POST with a refresh token) → the request again. Tokens are kept per
(host, scope) until shortly before they expire; a 401 in between gets a new one once. Before a body is streamed an
expired token is replaced without being refused, lest the body travel in vain. Threading: the flow runs on whatever
thread sends; when many readers need a token for one scope, one of them asks for it and the others wait for what it
gets.
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
MIN_LIFE: Final = 60.0  # seconds: what a token lives that does not say (the specification's default)
MARGIN: Final = 0.1  # part of a token's life that is not used, lest it expire on the way
MAX_TOKEN: Final = 128 << 10  # bytes of a token server's answer
ATTEMPTS: Final = 5  # of one request, each with another token
MAX_CHALLENGE: Final = 16 << 10  # characters of one header that are read
# A token and, if one follows, its value: a quoted string or anything up to a blank or comma. No part of it is tried
# in two ways. The "/" is
# of base64, which follows schemes that kitfs does not speak.
CHALLENGE_PART: Final = re.compile(
    r"""[\s,;]*+(?P<token>[!#$%&'*+./^_`|~0-9A-Za-z-]++)(?:\s*+=\s*+(?:"(?P<quoted>(?:[^"\\]|\\.)*+)"|(?P<bare>[^\s,"]*+)))?+[\s,;]*+""",
    re.DOTALL,
)
SCHEMES: Final = ("basic", "bearer")
ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


class Token(NamedTuple):
    """An Authorization header's value, and when it stops being of use (monotonic seconds)."""

    header: str
    until: float


class Challenge(NamedTuple):
    """What a host asks of bearers, and the scope of the address that asked it (see ``addresses``)."""

    parameters: dict[str, str]
    led_from: AddressScope


def challenges(*headers: str) -> dict[str, dict[str, str]]:
    """Values of ``WWW-Authenticate`` headers as "basic" or "bearer" → parameters (names in lower case, values without
    their quotes).

    RFC 9110 §11.6.1, and what servers make of it: any case and spacing, parameters without commas between them, bare
    URLs. Of several challenges of a scheme the first counts, unless only a later one has a realm. A header is read
    from left to right, once, and no further than ``MAX_CHALLENGE`` characters or to the first that fits nothing.
    """
    found: dict[str, dict[str, str]] = {}
    for header in headers:
        for scheme, parameters in _challenges(header[:MAX_CHALLENGE]):
            if scheme in SCHEMES and (scheme not in found or ("realm" in parameters and "realm" not in found[scheme])):
                found[scheme] = parameters
    return found


def _challenges(header: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(scheme, parameters) of one header. A token is a parameter's name where a "=" follows it, else a scheme."""
    scheme, parameters = "", dict[str, str]()
    at = 0
    while at < len(header):
        match = CHALLENGE_PART.match(header, at)
        if match is None:
            break  # nobody knows what follows
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
    """One thread's way to the token server, which others wait for. ``header`` or ``error`` is what it brought;
    neither: it got no answer.
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
        self._errands: dict[tuple[str, str], TokenRequest] = {}
        self._challenges: dict[tuple[str, str], Challenge] = {}
        self._accepted: set[tuple[str, str]] = set()

    def get(self, host: str, scope: str) -> str | None:
        """A header that still holds, None when there is none."""
        with self._lock:
            token = self._tokens.get((host, scope))
        return token.header if token is not None and token.until > self._clock() else None

    def keep(self, host: str, scope: str, header: str, life: float) -> None:
        """Keep a header for ``life`` seconds, less a margin."""
        with self._lock:
            self._tokens[host, scope] = Token(header, self._clock() + life * (1 - MARGIN))

    def forget(self, host: str, scope: str, header: str) -> None:
        """Drop a header that was refused, unless another thread has a newer one."""
        with self._lock:
            token = self._tokens.get((host, scope))
            if token is not None and token.header == header:
                del self._tokens[host, scope]

    def accept(self, host: str, scope: str) -> None:
        """A token was good."""
        if (host, scope) not in self._accepted:
            with self._lock:
                self._accepted.add((host, scope))

    def accepted(self, host: str, scope: str) -> bool:
        """Whether one ever was, so that one that is refused has expired."""
        return (host, scope) in self._accepted

    def remember(self, host: str, scope: str, challenge: Challenge) -> None:
        """Keep what a host asks of bearers."""
        with self._lock:
            self._challenges[host, scope] = challenge

    def challenge(self, host: str, scope: str) -> Challenge | None:
        """What a host asked of bearers the last time, None when it never did."""
        with self._lock:
            return self._challenges.get((host, scope))

    def begin(self, host: str, scope: str) -> tuple[TokenRequest, bool]:
        """The errand for a token, and whether it is the caller's own: then ``end`` must end it."""
        with self._lock:
            found = self._errands.get((host, scope))
            if found is not None:
                return found, False
            self._errands[host, scope] = errand = TokenRequest()
            return errand, True

    def end(self, host: str, scope: str, errand: TokenRequest) -> None:
        """End an errand; those who wait look at what it brought."""
        with self._lock:
            del self._errands[host, scope]
        errand.done.set()


class RegistryAuth(httpx.Auth):
    """The auth flow of one repository: ``scope`` such as repository:name:pull, several with blanks between them.

    A scope that is for more than pulling is asked for beside what the challenge names. Raises Unauthorized when no
    token can be had.

    ``host`` is the registry whose credentials count; ``plain_http`` allows to send them to a token server without TLS.
    """

    requires_response_body = False

    def __init__(self, host: str, scope: str, credentials: Credentials, tokens: Tokens, *, plain_http: bool) -> None:
        self._host = host
        self._scope = scope
        self._credentials = credentials
        self._tokens = tokens
        self._plain_http = plain_http
        self._repository = scope.split(" ")[0].removeprefix("repository:").rpartition(":")[0]
        self._trouble = ""  # why no credentials could be looked up

    def scoped(self, scope: str) -> RegistryAuth:
        """The same for another scope."""
        return RegistryAuth(self._host, scope, self._credentials, self._tokens, plain_http=self._plain_http)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send, and on 401 once more with what the challenge asks for; a few times more where such tokens have been
        good before.

        A token may expire on the way, while a registry that is busy is waited for, or be one that another thread got
        long ago.
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
                self._tokens.forget(self._host, self._scope, held)
            if attempt == ATTEMPTS - 1 or (attempt and not self._tokens.accepted(self._host, self._scope)):
                self._explain(response)
                return
            read_error(response)
            asked = challenges(*response.headers.get_list("WWW-Authenticate"))
            header = self._tokens.get(self._host, self._scope)  # another thread may have a newer one
            if header is None and "bearer" in asked:
                challenge = Challenge(asked["bearer"], answered_from(response))
                self._tokens.remember(self._host, self._scope, challenge)
                header = yield from self._fetched(challenge, request)
            elif header is None and "basic" in asked and (credential := self._credential()):
                header = _basic(credential)
                self._tokens.keep(self._host, self._scope, header, 86_400)
            if header is None or header == held:
                self._explain(response)
                return  # nothing that was not refused already
            request.headers["Authorization"] = held = header

    def _credential(self) -> Credential | None:
        """What is known for the repository; None, too, where it cannot be looked up, since it may be public."""
        found, self._trouble = self._credentials.find(self._host, self._repository)
        return found

    def _explain(self, response: httpx.Response) -> None:
        """Raise Unauthorized with the reason, when a request is refused for want of credentials that could not be
        looked up.
        """
        if self._trouble:
            raise Unauthorized(
                f"{self._host} wants credentials, and {self._trouble}",
                status=response.status_code,
                url=shown(response.request.url),
            )

    def _fetched(self, challenge: Challenge, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, str]:
        """A new token, or the one that another thread is fetching right now."""
        errand, own = self._tokens.begin(self._host, self._scope)
        if not own:
            errand.done.wait()  # its owner's timeouts end it
            if errand.error is not None:
                raise copy.copy(errand.error)
            if not errand.header:
                raise Unavailable(f"{self._host}: no token, its token server does not answer", url=shown(request.url))
            return errand.header
        try:
            errand.header = yield from self._bearer(challenge, self._credential(), request)
            return errand.header
        except KitfsError as e:
            errand.error = e
            raise
        finally:
            self._tokens.end(self._host, self._scope, errand)

    def _bearer(
        self, challenge: Challenge, credential: Credential | None, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, str]:
        """A token from the realm of a challenge."""
        if credential and credential.registry_token:
            header = f"Bearer {credential.registry_token}"
            self._tokens.keep(self._host, self._scope, header, MIN_LIFE)
            return header
        named = challenge.parameters.get("realm", "")
        try:
            realm = request.url.join(named)
        except httpx.InvalidURL:
            raise RegistryError(f"{self._host} names an invalid token realm {named[:100]!r}")
        if not named or realm.scheme not in ("http", "https") or (realm.port or 0) > 65_535:
            raise RegistryError(f"{self._host} asks for a token and names no realm")
        response = yield self._token_request(realm, challenge, credential, request)
        body = read_capped(response, MAX_TOKEN)
        status = response.status_code
        if status in (400, 401, 403, 404):
            who = f"the credentials of {credential.username or 'its token'}" if credential else "anonymous access"
            remedy = self._trouble or f"log in with kitfs login {self._host}"
            told = f"{shown(realm)} refuses {who} for {self._host} ({status}); {remedy}"
            raise Unauthorized(told, status=status, url=shown(realm))
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
                f"{shown(realm)} returned {status} and no token for {self._host}", status=status, url=shown(realm)
            )
        header = f"Bearer {token}"
        self._tokens.keep(self._host, self._scope, header, max(1.0, life))
        return header

    def _token_request(
        self, realm: httpx.URL, challenge: Challenge, credential: Credential | None, request: httpx.Request
    ) -> httpx.Request:
        """GET with Basic, or the OAuth2 POST for a refresh token; with the timeouts of the request that it is for.

        Credentials go over plain HTTP only when that was asked for: by --plain-http, to this host itself, or to
        loopback.
        """
        service, scope = (
            challenge.parameters.get("service", ""),
            widened(challenge.parameters.get("scope", ""), self._scope),
        )
        home = (request.url.scheme, request.url.host)
        if (
            credential
            and realm.scheme == "http"
            and not (self._plain_http or is_loopback(realm.host) or (realm.scheme, realm.host) == home)
        ):
            raise Unauthorized(
                f"{self._host} wants the credentials sent to {shown(realm)} without TLS; allow it with --plain-http",
                url=shown(realm),
            )
        if request.url.scheme == "https" and realm.scheme == "http" and not self._plain_http:
            raise RegistryError(
                f"{self._host} names a token server without TLS, {shown(realm)}: a registry over TLS may not",
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
    """Sends a fixed Authorization header with every request; "" sends none."""

    def __init__(self, header: str) -> None:
        self._header = header

    def scoped(self, scope: str) -> TokenAuth:
        """Return the same: the header is valid for every scope."""
        return self

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request once, whatever the response."""
        if self._header:
            request.headers["Authorization"] = self._header
        yield request


def widened(asked: str, own: str) -> str:
    """The scope to ask for: what the challenge names, and what is needed beyond pulling, each resource once."""
    if not asked or (own.endswith(":pull") and " " not in own):
        return asked or own
    actions: dict[str, dict[str, None]] = {}
    for scope in f"{own} {asked}".split():
        resource, _, wanted = scope.rpartition(":")
        actions.setdefault(resource, {}).update(dict.fromkeys(wanted.split(",")))
    return " ".join(f"{resource}:{','.join(had)}" for resource, had in actions.items())


def _basic(credential: Credential) -> str:
    return "Basic " + base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()
