"""Faults of registries, token servers, redirect targets and proxies, over real sockets.

These tests involve several modules. Other files in this directory test single modules.
"""

from __future__ import annotations

import http.server
import json
import logging
import random
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kitfs.errors import KitfsError, ManifestError, NotFound, RateLimited, RegistryError, Unauthorized, Unavailable
from kitfs.metrics import Counters
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest
from kitfs.registry.repository import Repository
from kitfs.store.store import Store
from tests.fakes.faults import Cut, Fault, IgnoreRange, Stall, Status
from tests.fakes.registry import INDEX, FakeRegistry
from tests.unit.registry.conftest import descriptor

MiB = 1 << 20
DATA = random.Random(7).randbytes(300_000)
BLOB = descriptor(DATA)
MANIFEST = json.dumps({"schemaVersion": 2, "layers": []}).encode()
AUTH = {"auth": "dTpw"}  # u:p
TLS = Path(__file__).parent / "tls"
TRUSTED = {"plain_http": False, "tls_certs": (str(TLS / "ca.pem"),)}
Repositories = Callable[..., Repository]


@pytest.fixture
def fake(fake: FakeRegistry) -> FakeRegistry:
    """Return the fake registry with one manifest and one blob in team/kit."""
    return fill(fake)


def fill(registry: FakeRegistry) -> FakeRegistry:
    registry.put_manifest("team/kit", MANIFEST, tag="v1")
    registry.put_blob("team/kit", DATA)
    return registry


def read(team: Repository, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join(bytes(view) for _, view in team.blob(BLOB).read_range(start, stop))


def error_of(attempt: Callable[[], object], error: type[KitfsError]) -> str:
    """Return the message of the error that ``attempt`` raises.

    The error's class must be ``error`` or a direct subclass.
    """
    with pytest.raises(error) as caught:
        attempt()
    assert error in type(caught.value).__mro__[:2]  # the class itself or a direct subclass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_handshake_that_never_ends_is_no_connection(repository: Repositories) -> None:
    """If a server accepts a connection but does not respond to TLS, the attempt ends after the connect timeout."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        team = repository(registry=f"127.0.0.1:{silent.getsockname()[1]}", plain_http=False, connect_timeout=0.3)
        message = error_of(lambda: team.manifest("v1"), Unavailable)
    assert "the connection timed out" in message


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_waited_for(fake: FakeRegistry, repository: Repositories, status: int) -> None:
    """If Retry-After is 1, the request is sent again after one second."""
    fake.fail("/manifests/", Status(status, {"Retry-After": "1"}), times=1)
    began = time.monotonic()
    assert repository().manifest("v1")[1] == MANIFEST
    assert time.monotonic() - began >= 1.0
    assert [s.status for s in fake.served()] == [status, 200]


def test_the_status_of_an_error_counts_though_its_body_stalls(fake: FakeRegistry, repository: Repositories) -> None:
    """A 404 raises NotFound even if the body of the response stalls."""
    fake.fail("/manifests/", Status(404, body=b"x" * 100))
    fake.fail("/manifests/", Stall(10))
    error_of(lambda: repository(read_timeout=0.5).manifest("v1"), NotFound)


def test_a_registry_cannot_write_the_log(fake: FakeRegistry, repository: Repositories) -> None:
    """An error contains at most a few hundred characters of the registry's message, in one line."""
    fake.fail("/manifests/", Status(403, code="DENIED", message="no\nno\r\n" * 500))
    assert len(error_of(lambda: repository().manifest("v1"), Unauthorized)) < 600


def test_200_to_a_range_becomes_one_stream_for_every_reader(
    fake: FakeRegistry, repository: Repositories, tmp_path: Path
) -> None:
    """If a registry ignores ranges, many readers of a blob that is not in the store share a single request."""
    big = random.Random(8).randbytes(8 * MiB)
    digest = Digest.parse(fake.put_blob("team/kit", big))
    fake.fail("/blobs/", IgnoreRange())
    store = Store.open(
        str(tmp_path / "store"), counters=Counters(), log=logging.getLogger("kitfs.test"), free_share=0.0
    )
    blob = store.blob(digest, size=len(big), source=repository().blob(Descriptor("", digest, len(big))))
    assert bytes(blob.pread(5 * MiB, 4096)) == big[5 * MiB :][:4096]  # the first reader learns that there are no ranges
    wrong: list[int] = []

    def one(n: int) -> None:
        at = n * len(big) // 16
        if bytes(blob.pread(at, 4096)) != big[at : at + 4096]:
            wrong.append(n)

    in_parallel(one, 16)
    blob.close()
    store.close()
    assert wrong == []
    assert len(fake.served()) == 1
    assert fake.moved() == len(big)


def in_parallel(run: Callable[[int], object], count: int) -> None:
    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [thread for thread in threads if thread.is_alive()] == []


def test_locations_that_serve_once_are_resolved_for_every_range(fake: FakeRegistry, repository: Repositories) -> None:
    """If a redirect target serves one request only, the registry is asked for a new target before each range."""
    with FakeRegistry() as cdn:
        fake.redirect_blobs_to(cdn, uses=1)
        blob = repository().blob(BLOB)
        for at in range(0, 50, 10):
            assert b"".join(bytes(v) for _, v in blob.read_range(at, at + 10)) == DATA[at : at + 10]
        assert [s.status for s in fake.served()] == [307] * 5
        assert [s.status for s in cdn.served()] == [206] + [403, 206] * 4


@pytest.mark.parametrize("door", ["basic", "token"])
def test_authorization_stays_with_its_host(fake: FakeRegistry, repository: Repositories, door: str) -> None:
    """Basic credentials and tokens are not sent to a redirect target, to another port, or to a mirror."""
    if door == "basic":
        fake.require_basic({"u": "p"})
    else:
        fake.require_token({"u": "p"})
    with FakeRegistry() as cdn, FakeRegistry() as mirror:
        fake.redirect_blobs_to(cdn)
        mirror.require_basic({"other": "secret"})
        team = repository(auths={fake.host: AUTH}, mirrors={fake.host: (mirror.url,)}, mirror_tags=True)
        assert team.manifest("v1")[1] == MANIFEST
        assert read(team) == DATA
        assert team.blob_bytes(BLOB, MiB) == DATA
        assert len(mirror.served()) >= 3
        assert [s for s in cdn.served() + mirror.served() if "authorization" in s.headers] == []


def test_a_target_that_asks_for_a_password_gets_none(fake: FakeRegistry, repository: Repositories) -> None:
    """A 401 from a redirect target is an error. No credentials are sent to the target."""
    with FakeRegistry() as cdn:
        fake.redirect_blobs_to(cdn)
        cdn.fail("/cdn/", Status(401, {"WWW-Authenticate": 'Basic realm="cdn"'}))
        error_of(lambda: read(repository(auths={cdn.host: AUTH, fake.host: AUTH})), Unauthorized)
        assert [s for s in cdn.served() if "authorization" in s.headers] == []


def test_a_target_that_stalls_is_not_asked_for_ever(fake: FakeRegistry, repository: Repositories) -> None:
    """If a redirect target stalls before or within a body, the next read asks the registry for a new target."""
    for stall in (Stall(), Stall(0), Stall(5)):
        with FakeRegistry() as ill, FakeRegistry() as well:
            fake.redirect_blobs_to(ill)
            blob = repository(read_timeout=0.5).blob(BLOB)
            assert b"".join(bytes(v) for _, v in blob.read_range(0, 10)) == DATA[:10]
            ill.fail("/cdn/", stall)
            fake.redirect_blobs_to(well)
            error_of(lambda blob=blob: list(blob.read_range(10, 20)), Unavailable)
            assert b"".join(bytes(v) for _, v in blob.read_range(10, 20)) == DATA[10:20]


def test_a_target_whose_bodies_break_off_is_not_asked_for_ever(fake: FakeRegistry, repository: Repositories) -> None:
    """If a body breaks off before its first byte, the registry is asked for a new target.

    If a body breaks off later, it is resumed at the same target.
    """
    with FakeRegistry() as ill, FakeRegistry() as well:
        fake.redirect_blobs_to(ill)
        blob = repository().blob(BLOB)
        assert b"".join(bytes(v) for _, v in blob.read_range(0, 10)) == DATA[:10]
        fake.redirect_blobs_to(well)
        ill.fail("/cdn/", Cut(5), times=1)
        assert b"".join(bytes(v) for _, v in blob.read_range(10, 20)) == DATA[10:20]
        assert well.served() == []
        ill.fail("/cdn/", Cut(0))
        assert b"".join(bytes(v) for _, v in blob.read_range(20, 30)) == DATA[20:30]
        assert len(well.served()) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_after_beyond_the_read_timeout_is_not_waited_for(
    fake: FakeRegistry, repository: Repositories, status: int
) -> None:
    """If Retry-After is longer than the read timeout, the request fails at once and is not sent again."""
    fake.fail("/manifests/", Status(status, {"Retry-After": "20"}))
    error_of(lambda: repository(read_timeout=2.0).manifest("v1"), RateLimited if status == 429 else Unavailable)
    assert len(fake.served()) == 1


TOKENS: dict[str, tuple[Fault, type[KitfsError]]] = {
    "not JSON": (Status(200, body=b"<html>"), RegistryError),
    "no token": (Status(200, body=b"{}"), RegistryError),
    "null": (Status(200, body=b"null"), RegistryError),
    "a list": (Status(200, body=b"[1]"), RegistryError),
    "a number": (Status(200, body=b'{"token": 5}'), RegistryError),
    "a header injected": (Status(200, body=b'{"token": "a\\r\\nX: y"}'), RegistryError),
    "nonsense of a life": (Status(200, body=b'{"token": "a", "expires_in": "soon"}'), RegistryError),
    "a life beyond all numbers": (Status(200, body=b'{"token": "a", "expires_in": 1%s}' % (b"0" * 400)), RegistryError),
    "too long": (Status(200, body=b'{"token": "' + b"x" * (32 * MiB) + b'"}'), RegistryError),
    "a redirect": (Status(302, {"Location": "/elsewhere"}), RegistryError),
    "500": (Status(500), Unavailable),
    "429": (Status(429, {"Retry-After": "0"}), RateLimited),
    "403": (Status(403), Unauthorized),
    "a stall": (Stall(), Unavailable),
    "a stalled body": (Stall(5), Unavailable),
    "a cut body": (Cut(5), Unavailable),
}


@pytest.mark.parametrize("name", TOKENS)
def test_faults_of_token_servers(fake: FakeRegistry, repository: Repositories, name: str) -> None:
    """If a token server fails, the error has the right class and names the token server.

    When the token server works again, requests succeed.
    """
    fault, error = TOKENS[name]
    with FakeRegistry() as desk:
        fake.require_token(server=desk)
        desk.fail("/token", fault)
        team = repository(read_timeout=0.5)
        assert desk.host in error_of(lambda: team.manifest("v1"), error)
        desk.heal()
        assert team.manifest("v1")[1] == MANIFEST


def test_a_login_while_mounted_is_seen(fake: FakeRegistry, repository: Repositories, tmp_path: Path) -> None:
    """The credential files are read for each token request, so a new login is used at once."""
    fake.require_token({"u": "p"})
    team = repository()
    error_of(lambda: team.manifest("v1"), Unauthorized)
    (tmp_path / "credentials.json").write_text(json.dumps({"auths": {fake.host: AUTH}}))
    assert team.manifest("v1")[1] == MANIFEST


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b'{"manifests": 5}', b" " * (6 * MiB)], ids=["html", "list", "number", "long"]
)
def test_referrers_that_are_not_an_index(fake: FakeRegistry, repository: Repositories, body: bytes) -> None:
    """If a list of referrers is requested and the body of a 200 is not an index, ManifestError is raised."""
    fake.fail("/referrers/", Status(200, {"Content-Type": INDEX}, body=body))
    error_of(lambda: repository().referrers(Digest.of(MANIFEST)), ManifestError)


@pytest.fixture
def secure() -> Iterator[FakeRegistry]:
    """Yield the fake registry behind TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem")
    with FakeRegistry(tls=context) as running:
        yield fill(running)


def test_a_redirect_away_from_tls_is_refused(secure: FakeRegistry, repository: Repositories) -> None:
    """A registry over TLS may not redirect a blob to plain HTTP."""
    with FakeRegistry() as cdn:
        secure.redirect_blobs_to(cdn)
        message = error_of(lambda: read(repository(registry=secure.host, **TRUSTED)), RegistryError)
        assert "away from TLS" in message
        assert cdn.served() == []


class Tunnel(http.server.BaseHTTPRequestHandler):
    """A proxy that supports only CONNECT. The proxy connects to ``target``, whatever host a client requests."""

    target: tuple[str, int]
    asked: list[str]

    def do_CONNECT(self) -> None:
        self.asked.append(self.path)
        with socket.create_connection(self.target) as there:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=self.pump, args=(there, self.connection))
            back.start()
            self.pump(self.connection, there)
            back.join()

    @staticmethod
    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # one of the two sides has closed the connection

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.mark.parametrize("environment", [False, True])
def test_tls_goes_through_a_proxy_as_a_tunnel(
    secure: FakeRegistry, repository: Repositories, monkeypatch: pytest.MonkeyPatch, environment: bool
) -> None:
    """A request over TLS is sent by CONNECT through a plain HTTP proxy. The certificate of the registry is verified."""
    handler = type("_Tunnel", (Tunnel,), {"target": ("127.0.0.1", int(secure.host.partition(":")[2])), "asked": []})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as proxy:
        proxy.daemon_threads = True  # a tunnel ends with the client, which may be after this test
        threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02}).start()
        url = f"http://127.0.0.1:{proxy.server_address[1]}"
        try:
            if environment:
                monkeypatch.setenv("HTTPS_PROXY", url)
            options = {"tls_verify": False} if environment else {"proxy": url, **TRUSTED}
            # The environment's proxy is not used for loopback.
            registry = "registry.example.test" if environment else secure.host
            team = repository(registry=registry, **options)
            assert team.manifest("v1")[1] == MANIFEST
            assert read(team) == DATA
            if not environment:
                untrusted = repository(registry=registry, proxy=url, plain_http=False)
                assert "--tls-cert" in error_of(lambda: untrusted.manifest("v1"), Unavailable)
        finally:
            proxy.shutdown()
    assert set(handler.asked) == {registry if ":" in registry else f"{registry}:443"}
