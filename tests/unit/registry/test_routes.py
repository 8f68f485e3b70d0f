"""Connections are tested with TLS, client certificates, proxies from the environment, and ~/.netrc."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kitfs.errors import RegistryError, UsageError
from kitfs.oci.names import Reference
from kitfs.registry.client import RegistryClient, Repository
from tests.fakes.faults import Deaf, Status
from tests.fakes.registry import FakeRegistry
from tests.unit.registry.conftest import TLS, descriptor, server_context

Repositories = Callable[..., Repository]
BODY = b'{"schemaVersion":2,"config":{},"layers":[]}'


@pytest.fixture
def secure() -> Iterator[FakeRegistry]:
    """Yield a running registry behind TLS."""
    with FakeRegistry(tls=server_context()) as running:
        running.put_manifest("team/kit", BODY, tag="v1")
        yield running


def test_a_certificate_of_a_named_ca_is_trusted(secure: FakeRegistry, repository: Repositories) -> None:
    """The CA in --tls-cert is trusted in addition to the CAs of the system."""
    assert (
        repository(registry=secure.host, plain_http=False, tls_certs=(str(TLS / "ca.pem"),)).manifest("v1")[1] == BODY
    )


def test_an_unknown_certificate_names_the_way_out(secure: FakeRegistry, repository: Repositories) -> None:
    """The error for an untrusted certificate names the two options that help. The request is not retried."""
    words = rf"{secure.host}: its certificate is not trusted \(.*\); trust its CA with --tls-cert, or use --tls-verify"
    with pytest.raises(RegistryError, match=words):
        repository(registry=secure.host, plain_http=False).manifest("v1")


def test_tls_without_verification(secure: FakeRegistry, repository: Repositories) -> None:
    """With --tls-verify=false, any certificate is accepted."""
    assert repository(registry=secure.host, plain_http=False, tls_verify=False).manifest("v1")[1] == BODY


def test_a_client_certificate_is_shown(repository: Repositories) -> None:
    """--cert and --key are used if a server requires a client certificate.

    Without them, the server refuses the connection.
    """
    with FakeRegistry(tls=server_context(wants_client=True)) as strict:
        strict.put_manifest("team/kit", BODY, tag="v1")
        trust = {"registry": strict.host, "plain_http": False, "tls_certs": (str(TLS / "ca.pem"),)}
        mine = str(TLS / "client.pem")
        assert repository(**trust, cert=mine, key=mine).manifest("v1")[1] == BODY
        with pytest.raises(RegistryError, match=strict.host):
            repository(**trust).manifest("v1")


def test_tls_to_a_plain_server_hints_at_plain_http(fake: FakeRegistry, repository: Repositories) -> None:
    """If a server does not use TLS, the error suggests --plain-http."""
    with pytest.raises(RegistryError, match=f"{fake.host}: it does not speak TLS; for plain HTTP use --plain-http"):
        repository(plain_http=False).manifest("v1")


@pytest.mark.parametrize("option", ["tls_certs", "cert"])
def test_a_file_that_is_not_a_certificate(repository: Repositories, tmp_path: Path, option: str) -> None:
    """A certificate file that cannot be parsed raises UsageError with its path. No other mirror is tried."""
    bad = tmp_path / "bad.pem"
    bad.write_text("nothing")
    options = {"tls_certs": (str(bad),)} if option == "tls_certs" else {"cert": str(bad), "key": str(bad)}
    with pytest.raises(UsageError, match=r"cannot use .*bad\.pem for TLS"):
        repository(registry="registry.test", mirrors={"registry.test": ("https://mirror.test",)}, **options).manifest(
            "v1"
        )


def test_an_explicit_proxy_is_for_everything(fake: FakeRegistry, repository: Repositories) -> None:
    """The proxy in --proxy is used for every host, including loopback."""
    fake.put_manifest("team/kit", BODY, tag="v1")
    assert repository(registry="127.0.0.1:1", proxy=fake.url).manifest("v1")[1] == BODY
    assert fake.served()[0].path == "http://127.0.0.1:1/v2/team/kit/manifests/v1"


def test_the_proxy_environment(fake: FakeRegistry, repository: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy in HTTP_PROXY is not used for loopback. A proxy without a scheme is an HTTP proxy."""
    fake.put_manifest("team/kit", BODY, tag="v1")
    monkeypatch.setenv("HTTP_PROXY", fake.host)
    assert repository(registry="registry.test", plain_http=True).manifest("v1")[1] == BODY
    assert repository().manifest("v1")[1] == BODY
    assert [s.path for s in fake.served()] == [
        "http://registry.test/v2/team/kit/manifests/v1",
        "/v2/team/kit/manifests/v1",
    ]


def test_no_proxy(fake: FakeRegistry, repository: Repositories, monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_PROXY applies to every connection. test_proxies tests the rules of NO_PROXY."""
    monkeypatch.setenv("HTTP_PROXY", fake.host)
    monkeypatch.setenv("NO_PROXY", "*.test:80")
    with pytest.raises(RegistryError, match=r"cannot reach a\.registry\.test"):
        repository(registry="a.registry.test", plain_http=True).manifest("v1")
    assert fake.served() == []


def test_a_dead_proxy_is_named(fake: FakeRegistry, repository: Repositories) -> None:
    """If a proxy refuses the connection, the error names the proxy without its password."""
    fake.stop()
    with pytest.raises(RegistryError, match=rf"connection refused \(through the proxy http://{fake.host}\)"):
        repository(registry="registry.test", plain_http=True, proxy=f"http://u:secret@{fake.host}").manifest("v1")


@pytest.mark.parametrize("proxy", ["ftp://proxy:21", "http://[::bad"])
def test_a_proxy_that_cannot_be(repository: Repositories, proxy: str) -> None:
    """An invalid URL of a proxy raises UsageError."""
    with pytest.raises(UsageError, match=r"cannot use the proxy"):
        repository(proxy=proxy).manifest("v1")


def test_netrc_does_not_count(
    fake: FakeRegistry, repository: Repositories, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login u password p\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    fake.put_manifest("team/kit", BODY, tag="v1")
    repository().manifest("v1")
    assert "authorization" not in fake.served()[0].headers


def test_plain_http_to_a_tls_server_hints_at_tls(secure: FakeRegistry, repository: Repositories) -> None:
    """If a server closes a plain HTTP connection, the error suggests that the user omit --plain-http."""
    with pytest.raises(
        RegistryError, match=rf"{secure.host} broke the connection: .*; if it speaks TLS, omit --plain-http"
    ):
        repository(registry=secure.host, plain_http=True).manifest("v1")


@pytest.mark.parametrize("says", ["nothing", "Go", "nginx"])
def test_tls_on_loopback_is_found_out(secure: FakeRegistry, client: Callable[..., RegistryClient], says: str) -> None:
    """If a registry on loopback closes plain HTTP connections, or responds that TLS is required, TLS is used."""
    secure.put_manifest("team/kit", BODY, tag="v1")
    words = {
        "Go": b"Client sent an HTTP request to an HTTPS server.\n",
        "nginx": b"<h1>The plain HTTP request was sent to HTTPS port</h1>",
    }
    one = client(tls_certs=(str(TLS / "ca.pem"),))
    team = one.repository(Reference.parse(f"{secure.host}/team/kit"))
    if says == "nothing":
        assert team.manifest("v1")[1] == BODY
        assert team.upload(descriptor(b"x" * 5000), lambda at: iter([(b"x" * 5000)[at:]]), chunk=1000) == "uploaded"
    else:
        with FakeRegistry() as plain:
            plain.fail("", Status(400, body=words[says]))
            with pytest.raises(RegistryError, match=r"TLS|broke") as caught:
                one.repository(Reference.parse(f"{plain.host}/team/kit")).manifest("v1")
            assert "returned 400" not in str(caught.value)
            assert len(plain.served()) == 1


def test_an_untrusted_certificate_on_loopback_is_told(secure: FakeRegistry, repository: Repositories) -> None:
    """The error for a registry on loopback with an untrusted certificate is about the certificate."""
    with pytest.raises(RegistryError, match=r"its certificate is not trusted .*; trust its CA with --tls-cert"):
        repository(registry=secure.host).manifest("v1")


def test_a_plain_server_that_breaks_is_not_taken_for_tls(fake: FakeRegistry, repository: Repositories) -> None:
    """If a plain HTTP request fails and TLS fails too, the error of the plain HTTP request is raised."""
    fake.fail("/manifests/", Deaf(0))
    with pytest.raises(RegistryError, match="broke the connection"):
        repository().manifest("v1")


def test_a_tls_registry_through_a_plain_proxy(
    secure: FakeRegistry, fake: FakeRegistry, repository: Repositories
) -> None:
    """If a proxy refuses CONNECT, the error names the proxy."""
    with pytest.raises(RegistryError, match=rf"\(through the proxy {fake.url}\)"):
        repository(registry=secure.host, plain_http=False, proxy=fake.url).manifest("v1")
