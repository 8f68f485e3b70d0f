"""A URL that comes from a registry, a kit or a repository is followed only to allowed addresses."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpcore
import pytest
from httpcore._backends.sync import SyncBackend

from kitfs.errors import RegistryError
from kitfs.oci.names import Digest, LayoutReference, Reference
from kitfs.ops.events import quiet
from kitfs.ops.imports import lfs
from kitfs.ops.imports.hub import Hub
from kitfs.registry.addresses import AddressScope, Forbidden, GuardedBackend, scope_of, scope_of_name
from kitfs.registry.client import RegistryClient, Repository
from tests.fakes.faults import Headers, Status
from tests.fakes.huggingface import FakeHub
from tests.fakes.huggingface import lfs as lfs_file
from tests.fakes.registry import INDEX, FakeRegistry
from tests.unit.registry.conftest import TLS, descriptor, server_context

Clients = Callable[..., RegistryClient]
BODY = b'{"schemaVersion":2,"config":{},"layers":[]}'
DATA = b"x" * 100


@pytest.mark.parametrize(
    ("address", "scope"),
    [
        ("127.0.0.1", "host"),
        ("127.255.255.254", "host"),
        ("0.0.0.0", "host"),
        ("0.1.2.3", "host"),
        ("::", "host"),
        ("::1", "host"),
        ("::ffff:127.0.0.1", "host"),
        ("::127.0.0.1", "host"),
        ("64:ff9b::7f00:1", "host"),
        ("2002:7f00:1::", "host"),
        ("2001:0:7f00:1::", "host"),
        ("169.254.0.1", "link"),
        ("169.254.169.254", "link"),
        ("fe80::1", "link"),
        ("fe80::1%lo", "link"),
        ("febf::1", "link"),
        ("::ffff:169.254.169.254", "link"),
        ("64:ff9b::a9fe:a9fe", "link"),
        ("fd00:ec2::254", "link"),
        ("100.100.100.200", "link"),
        ("168.63.129.16", "link"),
        ("10.0.0.1", "global"),
        ("192.168.0.1", "global"),
        ("fec0::1", "global"),
        ("8.8.8.8", "global"),
        ("2606:4700::1111", "global"),
        ("::ffff:8.8.8.8", "global"),
        ("128.0.0.1", "global"),
    ],
)
def test_the_scope_of_an_address(address: str, scope: AddressScope) -> None:
    """Loopback and unspecified addresses have the scope "host".

    Link-local and metadata addresses have the scope "link". An IPv6 address that contains an IPv4 address has the scope
    of the IPv4 address.
    """
    assert scope_of(address) == scope


@pytest.mark.parametrize(
    ("host", "scope"),
    [
        ("localhost", "host"),
        ("LOCALHOST.", "host"),
        ("a.localhost", "host"),
        ("2130706433", "host"),
        ("0x7f000001", "host"),
        ("0177.0.0.1", "host"),
        ("127.1", "host"),
        ("0", "host"),
        ("[::1]", "host"),
        ("[::ffff:7f00:1]", "host"),
        ("127.0.0.1.", "host"),
        ("0xa9fea9fe", "link"),
        ("2852039166", "link"),
        ("metadata.google.internal", "link"),
        ("[fe80::1%25eth0]", "link"),
        ("registry.test", None),
        ("localhost.test", None),
        ("8.8.8.8", "global"),
    ],
)
def test_the_scope_of_a_host_as_it_is_written(host: str, scope: AddressScope | None) -> None:
    """Addresses are recognized in every spelling of inet_aton(3).

    A name has no scope before it is resolved, except names such as localhost.
    """
    assert scope_of_name(host) == scope


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Yield a port on which a socket listens on loopback, over IPv4 and IPv6."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        server.setblocking(False)
        yield server


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1"]
)
def test_a_server_elsewhere_causes_no_connection_to_loopback(listener: socket.socket, host: str) -> None:
    """If a server elsewhere names a URL on loopback, no connection is opened, however the host is spelled."""
    with pytest.raises(Forbidden):
        GuardedBackend(SyncBackend(), "global").connect_tcp(host, listener.getsockname()[1], 5.0)
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize("led_from", [None, "host"])
def test_who_may_lead_to_loopback(listener: socket.socket, led_from: AddressScope | None) -> None:
    """A URL on loopback may come from the user or from a registry on loopback."""
    stream = GuardedBackend(SyncBackend(), led_from).connect_tcp("localhost", listener.getsockname()[1], 5.0)
    assert scope_of(stream.get_extra_info("server_addr")[0]) == "host"
    stream.close()


def test_a_name_without_an_address(listener: socket.socket) -> None:
    with pytest.raises(httpcore.ConnectError):
        GuardedBackend(SyncBackend(), None).connect_tcp("nobody.invalid", 1, 5.0)


# -- every kind of URL that a server or a kit names


@pytest.fixture
def elsewhere() -> str:
    """Return an address of this machine that is not a loopback address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect(("198.51.100.1", 9))  # sends no packet
            address = str(one.getsockname()[0])
        except OSError:
            address = "127.0.0.1"
    if scope_of(address) != "global":
        pytest.skip("not here: this machine has only loopback addresses")
    return address


@pytest.fixture
def outer(elsewhere: str) -> Iterator[FakeRegistry]:
    """Yield a running registry at an address that is not on loopback."""
    registry = FakeRegistry()
    registry.address = elsewhere
    with registry:
        yield registry


@pytest.fixture
def hub(elsewhere: str) -> Iterator[FakeHub]:
    """Yield a running hub at an address that is not on loopback. The hub also implements the LFS API."""
    hub = FakeHub()
    hub.address = elsewhere
    with hub:
        yield hub


@pytest.fixture
def inner() -> Iterator[FakeRegistry]:
    """Yield a running server on loopback. URLs of servers elsewhere must not lead to this server."""
    with FakeRegistry() as running:
        running.put_manifest("team/kit", BODY, tag="v1")
        running.put_blob("team/kit", DATA)
        yield running


def _realm(outer: FakeRegistry, to: str, client: RegistryClient) -> None:
    outer.fail("/v2/", Status(401, {"WWW-Authenticate": f'Bearer realm="{to}/token"'}))
    _team(outer, client).manifest("v1")


def _realm_of_a_push(outer: FakeRegistry, to: str, client: RegistryClient) -> None:
    outer.fail("/uploads/", Status(401, {"WWW-Authenticate": f'Bearer realm="{to}/token"'}))
    _team(outer, client).upload(descriptor(DATA), lambda at: iter([DATA[at:]]))


def _blob(outer: FakeRegistry, to: str, client: RegistryClient) -> None:
    outer.fail("/blobs/", Status(307, {"Location": f"{to}/v2/team/kit/blobs/{Digest.of(DATA)}"}))
    for _ in _team(outer, client).blob(descriptor(DATA)).read_range(0, None):
        pass


def _manifest(outer: FakeRegistry, to: str, client: RegistryClient) -> None:
    outer.fail("/manifests/", Status(302, {"Location": f"{to}/v2/team/kit/manifests/v1"}))
    _team(outer, client).manifest("v1")


def _second_redirect(outer: FakeRegistry, to: str, client: RegistryClient) -> None:
    outer.fail("/manifests/", Status(302, {"Location": f"{outer.url}/next"}))
    outer.fail("/next", Status(302, {"Location": f"{to}/v2/team/kit/manifests/v1"}))
    _team(outer, client).manifest("v1")


def _upload(outer: FakeRegistry, to: str, client: RegistryClient) -> None:
    outer.fail("/uploads/", Headers({"Location": f"{to}/v2/team/kit/blobs/uploads/1"}), method="POST")
    _team(outer, client).upload(descriptor(DATA), lambda at: iter([DATA[at:]]))


def _tags(outer: FakeRegistry, to: str, client: RegistryClient) -> None:
    outer.fail("/tags/", Status(200, {"Link": f'<{to}/v2/team/kit/tags/list>; rel="next"'}, body=b'{"tags": ["v1"]}'))
    list(_team(outer, client).tags())


def _referrers(outer: FakeRegistry, to: str, client: RegistryClient) -> None:
    link = {"Link": f'<{to}/v2/team/kit/referrers/{Digest.of(BODY)}>; rel="next"', "Content-Type": INDEX}
    outer.fail("/referrers/", Status(200, link, body=b'{"schemaVersion": 2, "manifests": []}'))
    _team(outer, client).referrers(Digest.of(BODY))


def _parent(outer: FakeRegistry, to: str, client: RegistryClient) -> None:
    parent = Reference.parse(f"{to.removeprefix('http://')}/team/kit:v1").held_by(
        Reference.parse(f"{outer.host}/team/child:v1")
    )
    client.repository(parent).manifest("v1")


def _hub_page(hub: FakeHub, to: str, client: RegistryClient) -> None:
    hub.put("models", "team/net", {"a": b"1"})
    hub.fail("/tree/", Headers({"Link": f'<{to}/x>; rel="next"'}))
    Hub(client, hub.url).snapshot("models", "team/net", "main").files()


def _hub_file(hub: FakeHub, to: str, client: RegistryClient) -> None:
    hub.put("models", "team/net", {"a": lfs_file(DATA)})
    hub.fail("/resolve/", Status(302, {"Location": f"{to}/x"}))
    snapshot = Hub(client, hub.url).snapshot("models", "team/net", "main")
    for _ in snapshot.blob(snapshot.files()[0]).read_range(0, None):
        pass


def _lfs(server: str, client: RegistryClient, path: Path, *, named_by: str = "") -> None:
    oid = hashlib.sha256(DATA).hexdigest()
    pointer = path / "w.bin"
    pointer.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(DATA)}\n")
    found = lfs.pointer_at(str(pointer))
    assert found is not None
    lfs.resolve([found], server, client, login=None, near="", concurrency=1, report=quiet, named_by=named_by)


def _team(outer: FakeRegistry, client: RegistryClient) -> Repository:
    return client.repository(Reference.parse(f"{outer.host}/team/kit"))


REGISTRY = [_realm, _realm_of_a_push, _blob, _manifest, _second_redirect, _upload, _tags, _referrers, _parent]
HUB = [_hub_page, _hub_file]


@pytest.mark.parametrize("spelled", ["127.0.0.1", "localhost", "2130706433"])
@pytest.mark.parametrize("lead", REGISTRY, ids=lambda lead: lead.__name__.strip("_"))
def test_a_registry_elsewhere_does_not_lead_to_loopback(
    outer: FakeRegistry,
    inner: FakeRegistry,
    client: Clients,
    lead: Callable[[FakeRegistry, str, RegistryClient], None],
    spelled: str,
) -> None:
    """If a registry elsewhere names a URL on loopback, the URL is refused and never requested.

    The error is one line that names the registry and the URL.
    """
    port = inner.host.rpartition(":")[2]
    with pytest.raises(RegistryError, match=rf"{spelled}:{port}(, which)? is this machine itself"):
        lead(outer, f"http://{spelled}:{port}", client(plain_http=True, read_timeout=5.0))
    assert inner.served() == []


@pytest.mark.parametrize("lead", HUB, ids=lambda lead: lead.__name__.strip("_"))
def test_a_hub_elsewhere_does_not_lead_to_loopback(
    hub: FakeHub, inner: FakeRegistry, client: Clients, lead: Callable[[FakeHub, str, RegistryClient], None]
) -> None:
    """If a hub elsewhere names a list page or a file on loopback, the URL is refused."""
    with pytest.raises(RegistryError, match="is this machine itself"):
        lead(hub, inner.url, client(plain_http=True, read_timeout=5.0))
    assert inner.served() == []


def test_an_lfs_object_of_a_server_elsewhere_is_not_on_loopback(
    hub: FakeHub, inner: FakeRegistry, client: Clients, tmp_path: Path
) -> None:
    """If a response of the LFS batch API has an href on loopback, the href is refused."""
    oid = hashlib.sha256(DATA).hexdigest()
    batch = {"objects": [{"oid": oid, "size": len(DATA), "actions": {"download": {"href": f"{inner.url}/x"}}}]}
    hub.fail("/batch", Status(200, body=json.dumps(batch).encode()))
    with pytest.raises(RegistryError, match="this machine itself"):
        _lfs(f"{hub.url}/lfs", client(plain_http=True), tmp_path)
    assert inner.served() == []


def test_a_repository_elsewhere_does_not_name_an_lfs_server_on_loopback(
    hub: FakeHub, inner: FakeRegistry, client: Clients, tmp_path: Path
) -> None:
    """The lfs.url in .lfsconfig comes from the repository and not from the user. It is refused if it is on loopback."""
    with pytest.raises(RegistryError, match="this machine itself"):
        _lfs(f"{inner.url}/lfs", client(plain_http=True), tmp_path, named_by=f"{hub.url}/a.git")
    assert inner.served() == []


def test_an_open_connection_to_loopback_is_not_used_for_a_redirect_from_elsewhere(
    outer: FakeRegistry, inner: FakeRegistry, client: Clients
) -> None:
    """A redirect from elsewhere to loopback is refused, even if a connection to the registry on loopback is open."""
    one = client(plain_http=True)
    one.repository(Reference.parse(f"{inner.host}/team/kit")).manifest("v1")
    inner.forget()
    with pytest.raises(RegistryError, match="this machine itself"):
        _manifest(outer, inner.url, one)
    assert inner.served() == []


@pytest.mark.parametrize(
    "target", ["http://169.254.169.254/latest/meta-data", "http://[fe80::1]/x", "http://[::ffff:169.254.169.254]/x"]
)
def test_a_registry_on_loopback_does_not_lead_to_the_link(fake: FakeRegistry, client: Clients, target: str) -> None:
    """A registry on loopback may not name a URL with a link-local address."""
    fake.fail("/manifests/", Status(302, {"Location": target}))
    with pytest.raises(RegistryError, match="is a link-local or metadata address"):
        client().repository(Reference.parse(f"{fake.host}/team/kit")).manifest("v1")


def test_a_registry_on_loopback_leads_to_loopback(fake: FakeRegistry, inner: FakeRegistry, client: Clients) -> None:
    """A registry on loopback may name a URL that has another port or another name of this machine."""
    fake.fail(
        "/manifests/",
        Status(302, {"Location": f"http://localhost:{inner.host.rpartition(':')[2]}/v2/team/kit/manifests/v1"}),
    )
    assert client().repository(Reference.parse(f"{fake.host}/team/kit")).manifest("v1")[1] == BODY


@pytest.mark.parametrize(
    "holder",
    [Reference.parse("mine:v1"), LayoutReference("oci", "/srv/kit"), Reference.parse("127.0.0.1:1/team/child:v1")],
)
def test_a_parent_on_loopback_of_a_kit_that_is_here(
    inner: FakeRegistry, client: Clients, holder: Reference | LayoutReference
) -> None:
    """A kit from this machine may name a parent on loopback.

    The kit was packed here, or is in a layout on disk, or is in a registry on loopback.
    """
    parent = Reference.parse(f"{inner.host}/team/kit:v1").held_by(holder)
    assert client().repository(parent).manifest("v1")[1] == BODY


@pytest.mark.parametrize(
    "to", ["http://127.0.0.1:1/x", "http://0x7f.1:1/x", "http://localhost:1/x", "http://169.254.169.254/x"]
)
def test_behind_a_proxy_the_host_is_checked_as_it_is_spelled(fake: FakeRegistry, client: Clients, to: str) -> None:
    """A proxy resolves host names itself, so kitfs checks only the spelling of a host.

    Addresses and names of this machine are refused without a request to the proxy.
    """
    fake.fail("/manifests/", Status(302, {"Location": to}))
    one = client(proxy=fake.url, plain_http=True)
    with pytest.raises(RegistryError, match="kitfs does not connect to it"):
        one.repository(Reference.parse("registry.test/team/kit")).manifest("v1")
    assert [s.path for s in fake.served()] == ["http://registry.test/v2/team/kit/manifests/v1"]


@pytest.mark.parametrize("credentials", [False, True])
def test_a_realm_does_not_lead_away_from_tls(inner: FakeRegistry, client: Clients, credentials: bool) -> None:
    """A registry over TLS may not name a token server without TLS.

    This is also true on loopback, and if there are no credentials.
    """
    with FakeRegistry(tls=server_context()) as secure:
        secure.fail("/manifests/", Status(401, {"WWW-Authenticate": f'Bearer realm="{inner.url}/token"'}))
        auths = {secure.host: {"auth": base64.b64encode(b"u:p").decode()}} if credentials else {}
        one = client(plain_http=False, tls_certs=(str(TLS / "ca.pem"),), auths=auths)
        with pytest.raises(RegistryError, match="without TLS"):
            one.repository(Reference.parse(f"{secure.host}/team/kit")).manifest("v1")
    assert inner.served() == []


def test_cookies_are_not_kept(fake: FakeRegistry, client: Clients) -> None:
    """A cookie from a registry is not sent back."""
    fake.put_manifest("team/kit", BODY, tag="v1")
    fake.fail("/v2/", Headers({"Set-Cookie": "a=b; Path=/"}))
    one = client().repository(Reference.parse(f"{fake.host}/team/kit"))
    for _ in range(3):
        one.manifest("v1")
    assert ["cookie" in s.headers for s in fake.served()] == [False] * 3
