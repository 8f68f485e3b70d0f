"""Repositories: manifests, small blobs, referrers, mirrors, and error messages."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable

import pytest

from kitfs.errors import (
    IntegrityError,
    KitfsError,
    ManifestError,
    NotFound,
    RateLimited,
    RegistryError,
    Unauthorized,
    Unavailable,
    UsageError,
)
from kitfs.metrics import Counters
from kitfs.oci.names import Digest, Reference
from kitfs.registry.client import RegistryClient, Repository
from kitfs.registry.retry import CONNECT_BUDGET
from tests.fakes.faults import Chunked, Cut, Fault, Headers, Lie, Resize, Stall, Status
from tests.fakes.registry import INDEX, MANIFEST, FakeRegistry
from tests.kits import build
from tests.unit.registry.conftest import descriptor

Repositories = Callable[..., Repository]
Clients = Callable[..., RegistryClient]
BODY = json.dumps({"schemaVersion": 2, "config": {}, "layers": []}).encode()


def test_a_tag_is_resolved_to_its_manifest(fake: FakeRegistry, repository: Repositories, counters: Counters) -> None:
    """Resolving a tag returns the manifest's bytes, and a descriptor with the response's media type.

    Manifests and indexes are accepted.
    """
    digest = fake.put_manifest("team/kit", BODY, tag="v1")
    found, data = repository().manifest("v1")
    assert (found.digest, found.size, found.media_type, data) == (digest, len(BODY), MANIFEST, BODY)
    assert repository().resolve("v1") == found
    accept = fake.served()[0].headers["accept"]
    assert (MANIFEST in accept, INDEX in accept) == (True, True)
    assert counters.get("bytes_fetched") == fake.moved() == 2 * len(BODY)


def test_a_manifest_by_digest_is_checked(fake: FakeRegistry, repository: Repositories) -> None:
    """A manifest that does not have the requested digest raises IntegrityError."""
    digest = fake.put_manifest("team/kit", BODY)
    assert repository().manifest(digest)[1] == BODY
    fake.fail("/manifests/", Lie(3))
    with pytest.raises(IntegrityError, match=f"{fake.host} does not match its digest {digest}"):
        repository().manifest(digest)


def test_a_manifest_by_tag_must_have_the_digest_that_its_registry_claims(
    fake: FakeRegistry, repository: Repositories
) -> None:
    """If the header Docker-Content-Digest is valid, the manifest must have that digest."""
    fake.put_manifest("team/kit", BODY, tag="v1")
    fake.fail("/manifests/", Headers({"Docker-Content-Digest": "nonsense"}), times=1)
    assert repository().manifest("v1")[1] == BODY
    fake.fail("/manifests/", Resize(-10))
    with pytest.raises(IntegrityError):
        repository().manifest("v1")
    fake.fail("/manifests/", Headers({"Docker-Content-Digest": None}))
    assert repository().manifest("v1")[0].digest == Digest.of(BODY[:-10])


def test_a_manifest_must_be_what_its_content_type_says(fake: FakeRegistry, repository: Repositories) -> None:
    """A manifest whose Content-Type is that of an index is refused (CVE-2021-41190)."""
    kit = build([])
    index = "application/vnd.oci.image.index.v1+json"
    fake.put_manifest("team/kit", kit.manifest, tag="v1", media_type=index)
    with pytest.raises(ManifestError, match="is ambiguous: it was served as " + re.escape(index)):
        repository("team/kit").manifest("v1")


def test_manifests_are_capped(fake: FakeRegistry, repository: Repositories) -> None:
    """A manifest above 4 MiB raises an error. The bytes above the limit are not read."""
    fake.put_manifest("team/kit", b" " * (32 << 20), tag="v1")
    with pytest.raises(ManifestError, match="larger than 4194304 bytes"):
        repository().manifest("v1")
    assert fake.moved() < 16 << 20


def test_a_manifest_that_breaks_off_is_asked_for_again(fake: FakeRegistry, repository: Repositories) -> None:
    """If a manifest always breaks off, it is requested three times. Then an error names the registry."""
    fake.put_manifest("team/kit", BODY, tag="v1")
    fake.fail("/manifests/", Cut(20), times=2)
    assert repository().manifest("v1")[1] == BODY
    fake.fail("/manifests/", Cut(20))
    with pytest.raises(Unavailable, match="broke the connection"):
        repository().manifest("v1")


def test_small_blobs_are_checked_and_capped(fake: FakeRegistry, repository: Repositories) -> None:
    """A small blob must match the size and digest in its descriptor.

    If the size in the descriptor is above the limit, the blob is not requested.
    """
    fake.put_blob("team/kit", BODY)
    assert repository().blob_bytes(descriptor(BODY), 1000) == BODY
    with pytest.raises(ManifestError, match="the limit for a config is 10"):
        repository().blob_bytes(descriptor(BODY), 10)
    for fault, size in ((Lie(0), -1), (Resize(1), -1), (Chunked(), len(BODY) - 1), (Chunked(), len(BODY) + 1)):
        fake.heal()
        fake.fail("/blobs/", fault)
        with pytest.raises(IntegrityError, match=fake.host):
            repository().blob_bytes(descriptor(BODY, size), 1000)


def test_exists_is_a_head(fake: FakeRegistry, repository: Repositories) -> None:
    """``exists`` sends a HEAD request. It returns True or False, or raises an error."""
    fake.put_blob("team/kit", BODY)
    assert repository().exists(descriptor(BODY))
    assert not repository().exists(descriptor(b"other"))
    fake.fail("/blobs/", Status(403))
    with pytest.raises(Unauthorized):
        repository().exists(descriptor(BODY))
    assert {s.method for s in fake.served()} == {"HEAD"}


@pytest.mark.parametrize("api", [True, False])
def test_referrers(fake: FakeRegistry, repository: Repositories, api: bool) -> None:
    """Referrers come from the API, or from the tag sha256-<hex> if the registry has no such API.

    Referrers can be filtered by artifact type.
    """
    fake.referrers_api = api
    subject = fake.put_manifest("team/kit", BODY, tag="v1")
    rows = []
    for kind in ("a/sig", "a/sbom"):
        data = json.dumps(
            {"schemaVersion": 2, "artifactType": kind, "config": {}, "subject": {"digest": subject}}
        ).encode()
        rows.append(
            {
                "mediaType": MANIFEST,
                "digest": fake.put_manifest("team/kit", data),
                "size": len(data),
                "artifactType": kind,
            }
        )
    if not api:
        index = json.dumps({"schemaVersion": 2, "manifests": rows}).encode()
        fake.put_manifest("team/kit", index, tag=subject.replace(":", "-"), media_type=INDEX)
    assert [str(d.digest) for d in repository().referrers(Digest(subject))] == [r["digest"] for r in rows]
    assert [str(d.digest) for d in repository().referrers(Digest(subject), "a/sig")] == [rows[0]["digest"]]
    assert repository().referrers(Digest.of(b"none")) == ()


def test_referrers_go_on_to_the_next_page(fake: FakeRegistry, repository: Repositories) -> None:
    """A Link header leads to the next page, up to a limit of pages."""
    fake.put_manifest("team/kit", BODY)
    page = {"schemaVersion": 2, "manifests": [{"mediaType": MANIFEST, "digest": Digest.of(b"x"), "size": 1}]}
    link = {"Link": f'</v2/team/kit/referrers/{Digest.of(BODY)}?page=2>; rel="next"'}
    fake.fail("/referrers/", Status(200, link, body=json.dumps(page).encode()))
    fake.fail("page=2", Status(200, {}, body=json.dumps(page).encode()))
    assert len(repository().referrers(Digest.of(BODY))) == 2
    fake.fail("/referrers/", Status(200, link, body=json.dumps(page).encode()))
    assert len(repository().referrers(Digest.of(BODY))) == 64


SAID: list[tuple[Fault | None, str, type[KitfsError], str]] = [
    (None, "team/kit:none", NotFound, "team/kit:none: HOST: not found: the tag or digest does not exist"),
    (None, "team/none:v1", NotFound, "team/none:v1: HOST: not found: the repository does not exist"),
    (Status(404, body=b"<html>"), "team/kit:v1", NotFound, "team/kit:v1: HOST: not found"),
    (
        Status(401),
        "team/kit:v1",
        Unauthorized,
        "wrong or missing credentials, or the repository does not exist; log in with kitfs login HOST",
    ),
    (
        Status(403, code="DENIED", message="go away"),
        "team/kit:v1",
        Unauthorized,
        "(403): no permission, or the repository does not exist (go away)",
    ),
    (Status(429, {"Retry-After": "0"}), "team/kit:v1", RateLimited, "429: too many requests"),
    (Status(501, code="X", message="a\nb"), "team/kit:v1", Unavailable, "returned 501 (a b)"),
    (Status(418), "team/kit:v1", RegistryError, "returned 418"),
    (Status(200, {"Content-Encoding": "zstd"}, body=b"x"), "team/kit:v1", RegistryError, "Content-Encoding zstd"),
]


@pytest.mark.parametrize(("fault", "what", "kind", "words"), SAID, ids=lambda x: str(x)[:30])
def test_errors_say_what_and_where(
    fake: FakeRegistry, repository: Repositories, fault: Fault | None, what: str, kind: type[KitfsError], words: str
) -> None:
    """An error states in one line what was requested from which host, what the host returned, and what to do."""
    fake.put_manifest("team/kit", BODY, tag="v1")
    if fault:
        fake.fail("/manifests/", fault)
    name, _, tag = what.partition(":")
    with pytest.raises(KitfsError) as caught:
        repository(name).manifest(tag)
    assert type(caught.value) is kind
    assert words.replace("HOST", fake.host) in str(caught.value)
    assert str(caught.value).startswith(what)
    assert "\n" not in str(caught.value)


def test_error_bodies_are_capped(fake: FakeRegistry, repository: Repositories) -> None:
    """At most 8 KiB of the body of an error are read."""
    fake.fail("/manifests/", Status(403, body=b"x" * (64 << 20)))
    with pytest.raises(Unauthorized):
        repository().manifest("v1")
    assert fake.moved() < 16 << 20


def test_an_error_body_that_breaks_off_is_still_that_error(fake: FakeRegistry, repository: Repositories) -> None:
    """The class of an error depends on the status, even if the body of the response breaks off."""
    fake.fail("/manifests/", Cut(5))
    with pytest.raises(NotFound):
        repository().manifest("v1")


def test_a_refused_connection_is_retried_within_one_budget(fake: FakeRegistry, repository: Repositories) -> None:
    """If no endpoint can be reached, a request raises Unavailable.

    The registry and its mirrors share a budget of retries.
    """
    fake.stop()
    mirrored = repository(mirrors={fake.host: (fake.url, fake.url)}, mirror_tags=True)
    assert sum(endpoint.patience for endpoint in mirrored.endpoints) == pytest.approx(CONNECT_BUDGET)
    with pytest.raises(Unavailable, match=r"cannot reach .*: connection refused"):
        mirrored.manifest("v1")
    with pytest.raises(Unavailable, match=r"cannot reach .*: connection refused"):
        list(repository().blob(descriptor(BODY)).read_range(0, None))


def test_a_registry_that_comes_back_is_not_missed(fake: FakeRegistry, repository: Repositories) -> None:
    """After a restart of the registry, requests succeed although the pooled connections are closed."""
    fake.put_manifest("team/kit", BODY, tag="v1")
    one = repository()
    assert one.manifest("v1")[1] == BODY
    fake.stop()
    fake.start()
    assert one.manifest("v1")[1] == BODY


def test_an_unknown_host_fails_at_once(repository: Repositories) -> None:
    with pytest.raises(Unavailable, match=r"cannot reach no-such-host\.invalid"):
        repository(registry="no-such-host.invalid").manifest("v1")


def test_a_manifest_that_stalls_fails_after_the_read_timeout(fake: FakeRegistry, repository: Repositories) -> None:
    """A stall before or within the response raises Unavailable."""
    fake.put_manifest("team/kit", BODY, tag="v1")
    for at in (None, 10):
        fake.heal()
        fake.fail("/manifests/", Stall(at))
        with pytest.raises(Unavailable, match=rf"team/kit:v1: {fake.host} sent nothing for 0.2 s"):
            repository(read_timeout=0.2).manifest("v1")


def test_a_server_that_speaks_something_else(repository: Repositories) -> None:
    """A server that does not speak HTTP causes an error of one line."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"

        def speak() -> None:
            while True:
                try:
                    one, _ = server.accept()
                except OSError:
                    return  # the test has ended
                with one:
                    one.recv(1000)
                    one.sendall(b"220 smtp.example.test ESMTP\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        with pytest.raises(Unavailable, match=f"{host} broke the connection"):
            repository(registry=host).manifest("v1")
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_mirrors_are_asked_in_order_before_the_host(fake: FakeRegistry, repository: Repositories) -> None:
    """Mirrors are tried in their order before the host. The URL of a mirror may have a path."""
    with FakeRegistry(prefix="/proxy/up") as first, FakeRegistry() as second:
        second.put_manifest("team/kit", BODY, tag="v1")
        one = repository(mirrors={fake.host: (f"{first.url}/", second.url)}, mirror_tags=True)
        assert one.manifest("v1")[1] == BODY
        assert [s.path for s in first.served()] == ["/proxy/up/v2/team/kit/manifests/v1"]
        assert fake.served() == []


def test_a_mirror_does_not_say_what_a_tag_means(fake: FakeRegistry, repository: Repositories) -> None:
    """A tag is resolved by the registry itself. A mirror delivers only manifests and blobs whose digest is known."""
    digest = fake.put_manifest("team/kit", BODY, tag="v1")
    with FakeRegistry() as mirror:
        mirror.put_manifest("team/kit", b"{}", tag="v1")
        mirror.put_manifest("team/kit", BODY)
        mirror.put_blob("team/kit", BODY)
        one = repository(mirrors={fake.host: (mirror.url,)})
        assert one.manifest("v1")[1] == BODY
        assert mirror.served() == []
        fake.forget()
        assert one.manifest(digest)[1] == BODY
        assert one.blob_bytes(descriptor(BODY), 1 << 20) == BODY
        assert fake.served() == []


def test_a_tag_is_not_resolved_by_a_mirror_if_the_registry_is_away(
    fake: FakeRegistry, repository: Repositories
) -> None:
    """If the registry cannot be reached, a mirror may resolve the tag only if that was allowed."""
    fake.stop()
    with FakeRegistry() as mirror:
        mirror.put_manifest("team/kit", BODY, tag="v1")
        with pytest.raises(Unavailable, match="connection refused"):
            repository(mirrors={fake.host: (mirror.url,)}).manifest("v1")
        assert repository(mirrors={fake.host: (mirror.url,)}, mirror_tags=True).manifest("v1")[1] == BODY


def test_a_mirror_that_lies_is_passed_over(fake: FakeRegistry, repository: Repositories) -> None:
    """If a mirror returns bytes with a wrong digest, the next endpoint is tried."""
    digest = fake.put_manifest("team/kit", BODY)
    with FakeRegistry() as mirror:
        mirror.put_manifest("team/kit", BODY)
        mirror.fail("/manifests/", Lie(0))
        assert repository(mirrors={fake.host: (mirror.url,)}).manifest(digest)[1] == BODY


def test_when_all_fail_each_is_named(fake: FakeRegistry, repository: Repositories) -> None:
    """If all endpoints fail, the error has the class of the registry's own error.

    Only the registry can decide, for example, that a tag does not exist.
    """
    with FakeRegistry() as mirror:
        mirror.stop()
        with pytest.raises(NotFound) as caught:
            repository(mirrors={fake.host: (mirror.url,)}, mirror_tags=True).manifest("v1")
    assert f"mirror {mirror.host}: team/kit:v1: cannot reach {mirror.host}: connection refused" in str(caught.value)
    assert f"; {fake.host}: team/kit:v1: {fake.host}: not found" in str(caught.value)


@pytest.mark.parametrize("registry", ["127.0.0.1:99999", "a..b:5000", "x" * 64 + ".test"])
def test_a_registry_that_no_connection_can_reach(repository: Repositories, registry: str) -> None:
    """An invalid port or host name raises an error of one line."""
    with pytest.raises(RegistryError, match=f"{registry}: no such host or port"):
        repository(registry=registry, plain_http=True).manifest("v1")


def test_a_mirror_that_is_not_a_url(repository: Repositories, fake: FakeRegistry) -> None:
    """A mirror that is not a URL raises UsageError, whose message quotes the mirror."""
    with pytest.raises(UsageError, match="is not the URL of a registry"):
        repository(mirrors={fake.host: ("http://[::bad",)})


def test_a_reference_without_a_registry_has_no_repository(client: Clients) -> None:
    """A reference to localhost means the local store, which is not a registry."""
    with pytest.raises(NotFound, match="does not name a registry"):
        client().repository(Reference.parse("team/kit:v1"))


def test_docker_io_is_asked_at_its_registry(client: Clients) -> None:
    """Requests for docker.io are sent to registry-1.docker.io."""
    repository = client().repository(Reference.parse("docker.io/team/kit:v1"))
    assert [e.base for e in repository.endpoints] == ["https://registry-1.docker.io/v2/team/kit"]


@pytest.mark.parametrize(
    ("registry", "plain", "scheme"),
    [
        ("127.0.0.1:5000", None, "http"),
        ("localhost:5000", None, "http"),
        ("[::1]:5000", None, "http"),
        ("127.9.9.9:1", None, "http"),
        ("10.0.0.1:5000", None, "https"),
        ("localhost.example.test", None, "https"),
        ("127.0.0.1:5000", False, "https"),
        ("registry.test", True, "http"),
    ],
)
def test_plain_http_is_for_loopback_unless_asked(
    client: Clients, registry: str, plain: bool | None, scheme: str
) -> None:
    """By default, plain HTTP is used only for localhost, 127.0.0.0/8 and ::1."""
    repository = client(plain_http=plain).repository(Reference.parse(f"{registry}/team/kit:v1"))
    assert repository.endpoints[-1].base == f"{scheme}://{registry}/v2/team/kit"
