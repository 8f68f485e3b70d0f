"""Authentication: Basic, bearer tokens, identity tokens, expiry of tokens, and which hosts get credentials."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from kitfs.errors import KitfsError, RateLimited, RegistryError, Unauthorized, Unavailable
from kitfs.oci.names import Reference
from kitfs.registry.auth import CHALLENGE_PART, MAX_CHALLENGE, RegistryAuth, Tokens, challenges, widened
from kitfs.registry.client import RegistryClient, Repository
from kitfs.registry.credentials import Credential, GivenCredential
from tests.fakes.faults import Fault, Headers, Stall, Status
from tests.fakes.registry import FakeRegistry
from tests.host import wait_until

Repositories = Callable[..., Repository]
BODY = b'{"schemaVersion":2,"config":{},"layers":[]}'
USER = {"auth": base64.b64encode(b"u:p:w").decode()}


@pytest.fixture(autouse=True)
def _kit(fake: FakeRegistry) -> None:
    fake.put_manifest("team/kit", BODY, tag="v1")


def test_basic(fake: FakeRegistry, repository: Repositories) -> None:
    """After the first 401, Basic credentials are sent with every request. A password may contain a colon."""
    fake.require_basic({"u": "p:w"})
    one = repository(auths={fake.host: USER})
    assert [one.manifest("v1")[1] for _ in range(3)] == [BODY] * 3
    assert [s.status for s in fake.served()] == [401, 200, 200, 200]


@pytest.mark.parametrize("auths", [{}, {"HOST": {"auth": base64.b64encode(b"u:wrong").decode()}}])
def test_basic_without_the_right_password(
    fake: FakeRegistry, repository: Repositories, auths: dict[str, object]
) -> None:
    """Wrong or missing Basic credentials raise Unauthorized. Wrong credentials are sent only once."""
    fake.require_basic({"u": "p:w"})
    one = repository(auths={k.replace("HOST", fake.host): v for k, v in auths.items()})
    for _ in range(2):
        with pytest.raises(Unauthorized, match="wrong or missing credentials, or the repository does not exist"):
            one.manifest("v1")
    assert all(s.status == 401 for s in fake.served())
    assert len(fake.served()) <= 4


def test_an_anonymous_token(fake: FakeRegistry, repository: Repositories) -> None:
    """Without credentials, an anonymous token is requested once and used for many requests.

    The token request contains the service and the scope.
    """
    fake.require_token()
    one = repository()
    assert [one.manifest("v1")[1] for _ in range(3)] == [BODY] * 3
    (asked,) = fake.served("/token")
    assert asked.path == "/token?service=fake&scope=repository%3Ateam%2Fkit%3Apull"
    assert "authorization" not in asked.headers


def test_a_token_for_credentials(fake: FakeRegistry, repository: Repositories) -> None:
    """Basic credentials are sent to the token server only. The registry gets the bearer token."""
    with FakeRegistry() as desk:
        fake.require_token({"u": "p:w"}, server=desk)
        assert repository(auths={fake.host: USER}).manifest("v1")[1] == BODY
        assert [s.headers["authorization"].split()[0] for s in desk.served()] == ["Basic"]
    assert [s.headers.get("authorization", "-").split()[0] for s in fake.served()] == ["-", "Bearer"]


def test_an_identity_token(fake: FakeRegistry, repository: Repositories) -> None:
    """A refresh token is sent by POST, as OAuth2 requires. The token is read from access_token in the response."""
    fake.require_token({}, identity_tokens=frozenset({"refresh-me"}))
    assert repository(auths={fake.host: {"identitytoken": "refresh-me"}}).manifest("v1")[1] == BODY
    assert [s.method for s in fake.served("/token")] == ["POST"]


def test_a_registry_token_is_used_as_it_is(fake: FakeRegistry, repository: Repositories) -> None:
    """A registry token is sent as the bearer token, without a request to a token server."""
    fake.require_token({})
    fake.accept_token("ready-made")
    assert repository(auths={fake.host: {"registrytoken": "ready-made"}}).manifest("v1")[1] == BODY
    assert fake.served("/token") == []


def test_an_expired_token_is_replaced(fake: FakeRegistry, repository: Repositories) -> None:
    """After a 401 for an expired token, a new token is requested, and the request is sent once more."""
    fake.require_token()
    one = repository()
    one.manifest("v1")
    fake.expire_tokens()
    fake.forget()
    assert one.manifest("v1")[1] == BODY
    assert [s.path.split("?")[0] for s in fake.served()] == [
        "/v2/team/kit/manifests/v1",
        "/token",
        "/v2/team/kit/manifests/v1",
    ]


def test_a_token_is_not_used_to_its_last_moment() -> None:
    """A token is replaced after nine tenths of its lifetime.

    If the registry refuses a token, only this token is discarded.
    """
    now = [0.0]
    tokens = Tokens(lambda: now[0])
    tokens.put("h", "s", "Bearer a", 100)
    now[0] = 89.9
    assert tokens.get("h", "s") == "Bearer a"
    tokens.discard("h", "s", "Bearer older")
    assert tokens.get("h", "s") == "Bearer a"
    now[0] = 90.1
    assert tokens.get("h", "s") is None
    assert tokens.get("h", "other") is None


def test_many_readers_fetch_one_token(fake: FakeRegistry, repository: Repositories) -> None:
    """While a thread requests a token, the other threads wait for that token."""
    fake.require_token()
    one = repository()
    stall = Stall()
    fake.fail("/token", stall)
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(one.manifest("v1")[1])) for _ in range(16)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(fake.served("/manifests/")) == 16, "not all readers sent a request")
    stall.until.set()
    for thread in threads:
        thread.join()
    assert got == [BODY] * 16
    assert len(fake.served("/token")) <= 2  # a reader whose 401 arrives late may send a token request of its own


def test_readers_do_not_queue_up_behind_a_stalled_token_server(fake: FakeRegistry, repository: Repositories) -> None:
    """If a token request times out, all threads that wait for the token fail at the same time."""
    fake.require_token()
    one = repository(read_timeout=0.5)
    fake.fail("/token", Stall())
    errors: list[str] = []

    def ask() -> None:
        with pytest.raises(Unavailable) as caught:
            one.manifest("v1")
        errors.append(str(caught.value))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 8
    assert any(f"{fake.host} sent nothing for 0.5 s" in e for e in errors)
    assert len(fake.served("/token")) <= 8


def test_a_refused_token_says_who_and_where(fake: FakeRegistry, repository: Repositories) -> None:
    """The Unauthorized error names the realm, the user whose credentials were refused, and the command to log in."""
    fake.require_token({"u": "other"})
    with pytest.raises(
        Unauthorized,
        match=rf"{fake.url}/token refuses the credentials of u for {fake.host} \(401\); log in with kitfs login",
    ):
        repository(auths={fake.host: USER}).manifest("v1")
    with pytest.raises(Unauthorized, match="refuses anonymous access"):
        repository().manifest("v1")


BROKEN: list[tuple[Fault, type[RegistryError], str]] = [
    (Status(503), Unavailable, "returned 503"),
    (Status(429, {"Retry-After": "0"}), RateLimited, "returned 429"),
    (Status(200, body=b"no json"), RegistryError, "no token"),
    (Status(200, body=b"[]"), RegistryError, "no token"),
    (Status(200, body=b"{}"), RegistryError, "no token"),
    (Status(200, body=b'{"token": 5}'), RegistryError, "no token"),
    (Status(200, body=b'{"token": "a\\r\\nX: b"}'), RegistryError, "no token"),
    (Status(200, body=b'{"token": "caf\xc3\xa9"}'), RegistryError, "no token"),
    (Status(200, body=b'{"token": "a", "expires_in": "soon"}'), RegistryError, "no token"),
    (Status(200, body=b"[" * 100_000), RegistryError, "no token"),
    (Status(200, body=b"x" * (8 << 20)), RegistryError, "no token"),
    (Status(302, {"Location": "/elsewhere"}), RegistryError, "no token"),
]


@pytest.mark.parametrize(("fault", "kind", "words"), BROKEN, ids=lambda x: str(x)[:60])
def test_a_token_server_that_answers_nonsense(
    fake: FakeRegistry, repository: Repositories, fault: Fault, kind: type[RegistryError], words: str
) -> None:
    """An invalid response of a token server raises an error of the right class, in one line."""
    fake.require_token()
    fake.fail("/token", fault)
    with pytest.raises(RegistryError, match=words) as caught:
        repository().manifest("v1")
    assert type(caught.value) is kind
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "asks", ["Bearer", 'Bearer realm=""', 'Bearer realm="ftp://x/"', 'Bearer realm="http://[::bad"', "Negotiate", ""]
)
def test_challenges_that_cannot_be_met(fake: FakeRegistry, repository: Repositories, asks: str) -> None:
    """A challenge that kitfs cannot meet raises KitfsError."""
    fake.fail("/manifests/", Status(401, {"WWW-Authenticate": asks} if asks else {}))
    with pytest.raises(RegistryError):
        repository(auths={fake.host: USER}).manifest("v1")


def test_challenges_are_read_as_they_come() -> None:
    """A WWW-Authenticate header may have several schemes, upper-case names, no blanks, quotes, and commas in quotes."""
    assert challenges('Bearer realm="https://a/t",service="r",scope="repository:x:pull,push"') == {
        "bearer": {"realm": "https://a/t", "service": "r", "scope": "repository:x:pull,push"}
    }
    assert challenges('Basic realm="x", BEARER Realm="https://a/t" , service=r') == {
        "basic": {"realm": "x"},
        "bearer": {"realm": "https://a/t", "service": "r"},
    }
    assert challenges("Basic") == {"basic": {}}
    assert challenges("Negotiate abc") == {}


@pytest.mark.parametrize(
    ("headers", "bearer"),
    [
        (
            ['Bearer realm="https://a/t",service="say \\"r\\", \\\\"'],
            {"realm": "https://a/t", "service": 'say "r", \\'},
        ),
        (['bEaReR  \t realm = "https://a/t" ,\tservice\t=\tr'], {"realm": "https://a/t", "service": "r"}),
        ([', , Bearer realm=https://a/t?x=1&y=2,,service="r"'], {"realm": "https://a/t?x=1&y=2", "service": "r"}),
        (['Bearer realm="https://a/t" service="r"'], {"realm": "https://a/t", "service": "r"}),
        (['Negotiate YIIa+/==, Bearer realm="https://a/t"'], {"realm": "https://a/t"}),
        (
            ['Digest realm="Bearer realm=\\"https://evil\\"", nonce="x", Bearer realm="https://a/t"'],
            {"realm": "https://a/t"},
        ),
        (['Bearer error="invalid_token"', 'Bearer realm="https://a/t"'], {"realm": "https://a/t"}),
        (['Basic realm="x', 'Bearer realm="https://a/t"'], {"realm": "https://a/t"}),
        (['Bearer realm="https://a/t"', 'Bearer realm="https://b/t"'], {"realm": "https://a/t"}),
        (['Bearer service=,realm="https://a/t"'], {"service": "", "realm": "https://a/t"}),
    ],
)
def test_challenges_in_every_spelling(headers: list[str], bearer: dict[str, str]) -> None:
    """Challenges are parsed in the spellings of RFC 9110 §11.6.1, and in those of common servers.

    The spellings include escapes, blanks, empty elements and several headers.
    """
    assert challenges(*headers)["bearer"] == bearer


def test_several_challenge_headers(fake: FakeRegistry, repository: Repositories) -> None:
    """If a response has several WWW-Authenticate headers, the bearer challenge is found in any of them."""
    fake.require_token()
    fake.fail(
        "/manifests/",
        Headers({"WWW-Authenticate": f'Negotiate, bearer  Realm = "{fake.url}/t\\oken" , service="fake"'}),
        times=1,
    )
    assert repository().manifest("v1")[1] == BODY


HEAPS = ['a="', "bearer ", "basic,", "a ", " ", ",", "\\", "a=b,", '"', "=", 'a="\\"",', "Bearer a=", "\t=", "a= "]


@pytest.mark.parametrize("heap", HEAPS)
@pytest.mark.parametrize("start", ["", "Bearer ", 'Bearer realm="'])
def test_a_challenge_is_read_in_steps_that_go_forward(start: str, heap: str) -> None:
    """Every step of the parser consumes a character, so parsing takes linear time.

    A challenge after the first MAX_CHALLENGE characters is ignored.
    """
    header = (start + heap * MAX_CHALLENGE)[:MAX_CHALLENGE]
    steps, at = 0, 0
    while (match := CHALLENGE_PART.match(header, at)) is not None:
        assert match.end() > at
        steps, at = steps + 1, match.end()
    assert steps <= len(header)
    assert challenges(header + ', Bearer realm="https://behind"').get("bearer", {}).get("realm") != "https://behind"


def flow(url: str, realm: str, *, plain_http: bool) -> httpx.Request:
    """Return the token request that follows a challenge with this realm."""
    auth = RegistryAuth(
        "r.test", "repository:x:pull", GivenCredential(Credential("u", "p")), Tokens(), plain_http=plain_http
    )
    steps = auth.auth_flow(httpx.Request("GET", url))
    request = next(steps)
    refused = httpx.Response(
        401, headers={"WWW-Authenticate": f'Bearer realm="{realm}"'}, request=request, stream=httpx.ByteStream(b"")
    )
    return steps.send(refused)


@pytest.mark.parametrize(
    ("url", "realm", "plain_http"),
    [
        ("https://r.test/v2/", "https://auth.test/token", False),
        ("https://r.test/v2/", "http://auth.test/token", True),
        ("http://r.test/v2/", "http://127.0.0.1:5001/token", False),
        ("http://r.test/v2/", "http://r.test:5001/token", False),
        ("https://r.test/v2/", "/token", False),
    ],
)
def test_where_credentials_may_go(url: str, realm: str, plain_http: bool) -> None:
    """Credentials are sent to a realm with TLS.

    A realm without TLS gets credentials in three cases: with --plain-http, on loopback, and on the host of a registry
    that uses plain HTTP.
    """
    assert flow(url, realm, plain_http=plain_http).headers["Authorization"].startswith("Basic ")


@pytest.mark.parametrize("url", ["https://r.test/v2/", "http://127.0.0.1:5000/v2/", "http://mirror.test/v2/"])
def test_credentials_do_not_go_to_another_host_without_tls(url: str) -> None:
    """A realm gets no credentials if it has no TLS and is on another host than the registry."""
    with pytest.raises(Unauthorized, match="without TLS; allow that with --plain-http"):
        flow(url, "http://auth.test/token", plain_http=False)


def test_public_content_needs_no_credential_helper(
    fake: FakeRegistry, client: Callable[..., RegistryClient], tmp_path: Path
) -> None:
    """If a credential helper is missing, a warning is logged and anonymous access is tried.

    If anonymous access is refused, the error names the helper.
    """
    fake.require_token()
    made = client()
    (tmp_path / "credentials.json").write_text('{"credsStore": "missing", "auths": {}}')
    assert made.repository(Reference.parse(f"{fake.host}/team/kit:v1")).manifest("v1")[1]


def test_a_refusal_names_the_missing_credential_helper(
    fake: FakeRegistry, client: Callable[..., RegistryClient], tmp_path: Path
) -> None:
    """The Unauthorized error names the missing helper, after a Basic challenge and after a Bearer challenge."""
    made = client()
    (tmp_path / "credentials.json").write_text('{"credsStore": "missing", "auths": {}}')
    for require in (lambda: fake.require_basic({"u": "p"}), lambda: fake.require_token({"u": "p"})):
        require()
        with pytest.raises(Unauthorized, match="docker-credential-missing is not on PATH"):
            made.repository(Reference.parse(f"{fake.host}/team/kit:v1")).manifest("v1")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 500])
def test_a_registry_that_repeats_our_credentials_is_not_quoted(
    fake: FakeRegistry, repository: Repositories, status: int
) -> None:
    """An error does not contain the credentials, even if the response repeats them, encoded or decoded."""
    header = "Basic " + base64.b64encode(b"u:hunter22").decode()
    fake.require_basic({"u": "hunter22"})
    message = f"you sent {header}, that is u:hunter22; hunter22 is wrong"
    one = repository(auths={fake.host: {"username": "u", "password": "hunter22"}}, read_timeout=1)
    one.manifest("v1")
    fake.fail("/manifests/", Status(status, {}, code="DENIED", message=message))
    with pytest.raises(KitfsError) as caught:
        one.manifest("v1")
    assert "hunter22" not in str(caught.value)
    assert header[6:] not in str(caught.value)


def test_a_token_request_has_the_timeouts_of_its_request(fake: FakeRegistry, repository: Repositories) -> None:
    """The read timeout of a request also applies to its token request. A stalled token server raises Unavailable."""
    fake.require_token()
    fake.fail("/token", Stall())
    with pytest.raises(Unavailable, match=r"sent nothing for 0\.2 s"):
        repository(read_timeout=0.2).manifest("v1")


def test_a_token_server_that_is_gone_is_named_with_its_registry(fake: FakeRegistry, repository: Repositories) -> None:
    """If a token server is unreachable, the error names the token server and the registry."""
    with FakeRegistry() as desk:
        fake.require_token(server=desk)
        desk.stop()
        words = f"cannot reach {desk.host}: connection refused, which {fake.host} names as its token server"
        with pytest.raises(Unavailable, match=words):
            repository().manifest("v1")


@pytest.mark.parametrize(
    ("asked", "own", "whole"),
    [
        ("", "repository:a/b:pull", "repository:a/b:pull"),
        ("repository:proxy/a/b:pull", "repository:a/b:pull", "repository:proxy/a/b:pull"),
        ("", "repository:a:pull,push repository:b:pull", "repository:a:pull,push repository:b:pull"),
        ("repository:a:pull", "repository:a:pull,push", "repository:a:pull,push"),
        ("repository:a:delete", "repository:a:pull,push", "repository:a:pull,push,delete"),
        (
            "repository:a:pull,push",
            "repository:a:pull,push repository:b:pull",
            "repository:a:pull,push repository:b:pull",
        ),
        ("registry:catalog:*", "repository:h:1/a:pull,push", "repository:h:1/a:pull,push registry:catalog:*"),
    ],
)
def test_scopes_are_joined_by_resource(asked: str, own: str, whole: str) -> None:
    """The scopes of the request, of the challenge and of the client are merged. Each resource occurs once."""
    assert widened(asked, own) == whole


def test_a_login_in_the_url_of_a_mirror_is_used_and_not_shown(fake: FakeRegistry, repository: Repositories) -> None:
    """A user and password in the URL of a mirror are sent only to that mirror. No message contains them."""
    with FakeRegistry() as mirror:
        mirror.put_manifest("team/kit", BODY, tag="v1")
        mirror.require_basic({"u": "hunter22"})
        url = mirror.url.replace("://", "://u:hunter22@")
        assert repository(mirrors={fake.host: (url,)}).manifest("v1")[1] == BODY
        mirror.require_basic({"u": "another"})
        fake.require_basic({"u": "another"})
        with pytest.raises(Unauthorized) as caught:
            repository(mirrors={fake.host: (url,)}).manifest("v1")
    assert "hunter22" not in str(caught.value)
    assert [s for s in fake.served() if "authorization" in s.headers] == []
