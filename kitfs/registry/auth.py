"""Who asks: anonymous, Basic, or the bearer token flow, as an ``httpx.Auth``.

Follows distribution's "Token Authentication Specification" and its OAuth2 form: 401 with ``WWW-Authenticate: Bearer`` → a token from
the realm (GET with Basic, or POST with a refresh token) → the request again. Tokens are kept per (host, scope) until shortly before
they expire; a 401 in between gets a new one once. Threading: the flow runs on whatever thread sends; the cache has a lock.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Generator
from typing import Final, NamedTuple

import httpx

from kitfs.errors import RegistryError, Unauthorized
from kitfs.registry.credentials import Credential, Credentials
from kitfs.registry.failures import read_capped, read_error, shown

CLIENT_ID: Final = "kitfs"
MIN_LIFE: Final = 60.0  # seconds: what a token lives that does not say (the specification's default)
MARGIN: Final = 0.1  # part of a token's life that is not used, lest it expire on the way
MAX_TOKEN: Final = 1 << 20
PARAMETER: Final = re.compile(r'([a-zA-Z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


class Token(NamedTuple):
    """An Authorization header's value, and when it stops being of use (monotonic seconds)."""

    header: str
    until: float


def challenges(header: str) -> dict[str, dict[str, str]]:
    """``WWW-Authenticate`` as scheme (lower case) → parameters."""
    found: dict[str, dict[str, str]] = {}
    for match in re.finditer(r"(?:^|,\s*|\s)(bearer|basic)(?=\s|,|$)", header, re.IGNORECASE):
        rest = header[match.end() :]
        stop = re.search(r",\s*(?:bearer|basic)(?=\s|,|$)", rest, re.IGNORECASE)
        part = rest[: stop.start()] if stop else rest
        found.setdefault(match[1].lower(), {k.lower(): quoted or bare for k, quoted, bare in PARAMETER.findall(part)})
    return found


class Tokens:
    """The tokens of one client, by (host, scope)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: dict[tuple[str, str], Token] = {}

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


class RegistryAuth(httpx.Auth):
    """The auth flow of one repository: ``scope`` such as repository:name:pull. Raises Unauthorized when no token can be had.

    ``host`` is the registry whose credentials count; ``insecure`` allows them on plain HTTP to another host than the registry.
    """

    requires_response_body = False

    def __init__(self, host: str, scope: str, credentials: Credentials, tokens: Tokens, *, insecure: bool) -> None:
        self._host = host
        self._scope = scope
        self._credentials = credentials
        self._tokens = tokens
        self._insecure = insecure

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send, and on 401 once more with what the challenge asks for."""
        held = self._tokens.get(self._host, self._scope)
        if held is not None:
            request.headers["Authorization"] = held
        response = yield request
        if response.status_code != 401:
            return
        if held is not None:
            self._tokens.forget(self._host, self._scope, held)
        read_error(response)
        asked = challenges(response.headers.get("WWW-Authenticate", ""))
        credential = self._credentials.of(self._host)
        if "bearer" in asked:
            header = yield from self._bearer(asked["bearer"], credential, request)
        elif "basic" in asked and credential:
            header = _basic(credential)
            if held == header:
                return  # it was refused
            self._tokens.keep(self._host, self._scope, header, 86_400)
        else:
            return
        request.headers["Authorization"] = header
        yield request

    def _bearer(
        self, challenge: dict[str, str], credential: Credential | None, request: httpx.Request
    ) -> Generator[httpx.Request, httpx.Response, str]:
        """A token from the realm of a challenge."""
        if credential and credential.registry_token:
            return f"Bearer {credential.registry_token}"
        try:
            realm = request.url.join(challenge.get("realm", ""))
        except httpx.InvalidURL:
            raise RegistryError(f"{self._host} names an invalid token realm {challenge.get('realm', '')[:100]!r}")
        if not challenge.get("realm") or realm.scheme not in ("http", "https"):
            raise RegistryError(f"{self._host} asks for a token and names no realm")
        response = yield self._token_request(realm, challenge, credential)
        body = read_capped(response, MAX_TOKEN)
        if response.status_code in (400, 401, 403, 404):
            who = f"the credentials of {credential.username or 'its token'}" if credential else "anonymous access"
            raise Unauthorized(
                f"{shown(realm)} refuses {who} for {self._host} ({response.status_code}); log in with kit login {self._host}",
                status=response.status_code,
                url=shown(realm),
            )
        try:
            answer = json.loads(body) if response.status_code == 200 else {}
            token = answer.get("token") or answer.get("access_token")
            life = float(answer.get("expires_in") or MIN_LIFE)
        except (ValueError, TypeError, AttributeError, RecursionError):
            token, life = None, MIN_LIFE
        if not isinstance(token, str) or not token or not token.isprintable():
            told = f"{shown(realm)} answers {response.status_code} and no token for {self._host}"
            raise RegistryError(told, status=response.status_code, url=shown(realm))
        header = f"Bearer {token}"
        self._tokens.keep(self._host, self._scope, header, max(1.0, life))
        return header

    def _token_request(self, realm: httpx.URL, challenge: dict[str, str], credential: Credential | None) -> httpx.Request:
        """GET with Basic, or the OAuth2 POST for a refresh token. Credentials never go over plain HTTP that nobody asked for."""
        service, scope = challenge.get("service", ""), challenge.get("scope") or self._scope
        if credential and realm.scheme == "http" and not self._insecure:
            raise Unauthorized(f"{self._host} wants the credentials sent to {shown(realm)} without TLS; allow it with --plain-http", url=shown(realm))
        if credential and credential.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": credential.identity_token, "client_id": CLIENT_ID}
            form |= {"service": service, "scope": scope}
            return httpx.Request("POST", realm, data=form)
        query = {k: v for k, v in (("service", service), ("scope", scope)) if v}
        headers = {"Authorization": _basic(credential)} if credential else {}
        return httpx.Request("GET", realm.copy_merge_params(query), headers=headers)


def _basic(credential: Credential) -> str:
    return "Basic " + base64.b64encode(f"{credential.username}:{credential.password}".encode()).decode()
