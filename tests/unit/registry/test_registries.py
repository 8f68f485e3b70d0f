"""Blobs, manifests, referrers and deletions are tested with fakes of registry products (``tests.fakes.registries``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kitfs.errors import NotFound, RegistryError
from kitfs.oci.manifest import IMAGE_INDEX, IMAGE_MANIFEST
from kitfs.oci.names import Digest, Reference
from kitfs.ops.library.remove import remove_remote
from kitfs.registry.client import RegistryClient, Repository
from kitfs.registry.retry import RetryPolicy
from tests import kits
from tests.fakes.registries import KINDS, Amazon, Artifactory, DockerHub, GitHub, GitLab, Google, Quay
from tests.fakes.registry import FakeRegistry
from tests.unit.registry.conftest import descriptor
from tests.unit.registry.test_upload import CHUNK, DATA, asked, reader

Clients = Callable[..., RegistryClient]
KIT = kits.build([kits.part("docs", "README.md", b"# hello\n", format="raw")])


@pytest.fixture
def retries() -> RetryPolicy:
    """Return a policy whose clients retry after a millisecond."""
    return RetryPolicy(backoff=0.001)


@pytest.fixture(autouse=True)
def _small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the request limit of the fake of GitHub to fit the chunks of these tests."""
    monkeypatch.setattr(GitHub, "limit", CHUNK // 2)


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Iterator[FakeRegistry]:
    """Yield a running registry of each kind in turn."""
    with KINDS[request.param]() as running:
        if running.body_limit:
            running.body_limit = CHUNK // 2
        yield running


def team(client: Clients, fake: FakeRegistry) -> Repository:
    return client().repository(Reference.parse(f"{fake.host}/team/kit"))


def put_kit(repository: Repository, kit: kits.Kit, tag: str) -> Digest:
    """Push the blobs and the manifest of a kit."""
    for digest, content in kit.blobs.items():
        assert isinstance(content, bytes)
        assert repository.upload(descriptor(content), reader(content)) == "uploaded", digest
    return repository.put_manifest(tag, IMAGE_MANIFEST, kit.manifest)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, len(DATA)])
def test_a_blob_arrives_and_is_found_again(client: Clients, kind: FakeRegistry, size: int) -> None:
    """Every registry stores a blob of every size.

    A second push finds the blob. If the registry refuses HEAD, the second push sends the blob again.
    """
    data = DATA[:size]
    repository = team(client, kind)
    assert repository.upload(descriptor(data), reader(data), chunk=CHUNK) == "uploaded"
    assert kind.blob("team/kit", kits.sha256(data)) == data
    assert repository.blob_bytes(descriptor(data), len(DATA)) == data
    again = repository.upload(descriptor(data), reader(data), chunk=CHUNK)
    assert again == (
        "exists"
        if asked(kind, "/blobs/sha256")[-1] == "HEAD" and kind is not None and not headless(kind)
        else "uploaded"
    )


def headless(kind: FakeRegistry) -> bool:
    return any(s.method == "HEAD" and s.status == 405 for s in kind.served())


def test_a_blob_is_mounted_or_sent(client: Clients, kind: FakeRegistry) -> None:
    """A blob is mounted from another repository, or sent if the registry does not mount it.

    A mount source that does not exist is ignored.
    """
    kind.put_blob("team/base", DATA)
    repository = team(client, kind)
    assert repository.upload(descriptor(DATA), reader(), chunk=CHUNK, mount_from=["no/such", "team/base"]) == "mounted"
    kind.mounts = False
    data = DATA[1:]
    kind.put_blob("team/base", data)
    assert repository.upload(descriptor(data), reader(data), chunk=CHUNK, mount_from=["team/base"]) == "uploaded"
    assert kind.blob("team/kit", kits.sha256(data)) == data


def test_a_kit_arrives_under_tag_and_digest(client: Clients, kind: FakeRegistry) -> None:
    """A pushed manifest can be read by its tag and by its digest."""
    repository = team(client, kind)
    digest = put_kit(repository, KIT, "v1")
    repository.put_manifest(str(digest), IMAGE_MANIFEST, KIT.manifest)
    assert repository.manifest("v1") == repository.manifest(digest)
    assert repository.manifest("v1")[1] == KIT.manifest
    assert list(repository.tags()) == ["v1"]


def test_a_referrer_is_found(client: Clients, kind: FakeRegistry) -> None:
    """A referrer is found by the API, or by the tag that replaces the API."""
    repository = team(client, kind)
    subject = put_kit(repository, KIT, "v1")
    if not kind_answers_referrers(kind):
        assert repository.referrers(subject) == ()
    note = json.loads(KIT.manifest) | {
        "subject": {"mediaType": IMAGE_MANIFEST, "digest": subject, "size": len(KIT.manifest)}
    }
    data = json.dumps(note).encode()
    put = repository.put_manifest(kits.sha256(data), IMAGE_MANIFEST, data)
    if (
        type(kind).__name__ != "Harbor"
    ):  # the API returns 401 and no tag replaces it, so clients cannot find the referrers
        assert [d.digest for d in repository.referrers(subject)] == [put]


def kind_answers_referrers(kind: FakeRegistry) -> bool:
    return kind.referrers_api


def test_referrers_of_an_index_are_not_its_children(client: Clients) -> None:
    """Some registries return the index itself when the referrers of an index are requested.

    The children of the index are not treated as referrers.
    """
    with GitLab() as fake:
        repository = team(client, fake)
        child = put_kit(repository, KIT, "v1")
        rows = [{"mediaType": IMAGE_MANIFEST, "digest": child, "size": len(KIT.manifest)}]
        index = json.dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": rows}).encode()
        digest = repository.put_manifest("all", IMAGE_INDEX, index)
        assert repository.referrers(digest) == ()
        note = json.loads(KIT.manifest) | {"subject": {"mediaType": IMAGE_INDEX, "digest": digest, "size": len(index)}}
        data = json.dumps(note).encode()
        put = repository.put_manifest(kits.sha256(data), IMAGE_MANIFEST, data)
        assert [d.digest for d in repository.referrers(digest)] == [put]


@pytest.mark.parametrize("kind", [Amazon, GitLab, FakeRegistry])
def test_the_last_tag_takes_the_kit_where_tags_are_not_deleted(
    client: Clients, kind: Callable[[], FakeRegistry]
) -> None:
    """If a registry returns 400, 404 or 405 to the deletion of a tag, deleting a kit's last tag deletes the kit."""
    with kind() as fake:
        repository = team(client, fake)
        put_kit(repository, KIT, "v1")
        repository.put_manifest("v2", IMAGE_MANIFEST, KIT.manifest)
        reference = Reference.parse(f"{fake.host}/team/kit:v1")
        if kind is FakeRegistry:
            assert remove_remote(repository, reference).kit is False
        else:
            with pytest.raises(
                RegistryError, match="does not support untagging; --force deletes the kit, and with it the tags v2"
            ):
                remove_remote(repository, reference)
            assert remove_remote(repository, reference, force=True).kit is True


@pytest.mark.parametrize("kind", [DockerHub, GitHub])
@pytest.mark.parametrize("force", [False, True])
def test_a_registry_that_deletes_nothing(client: Clients, kind: Callable[[], FakeRegistry], force: bool) -> None:
    """If a registry refuses every deletion, the kit is kept. The error states the refusal in one line."""
    with kind() as fake:
        repository = team(client, fake)
        put_kit(repository, KIT, "v1")
        with pytest.raises(RegistryError, match=f"removing models is unsupported by registry {fake.host}"):
            remove_remote(repository, Reference.parse(f"{fake.host}/team/kit:v1"), force=force)
        assert repository.manifest("v1")[1] == KIT.manifest


def test_a_manifest_of_an_unknown_kind(client: Clients) -> None:
    """If a registry refuses the media type of a manifest, one line states what was refused and what to do."""
    with Quay(known=r"application/vnd\.oci\.image\..*") as fake, pytest.raises(RegistryError) as caught:
        put_kit(team(client, fake), KIT, "v1")
    message = str(caught.value)
    refused = "it does not accept a manifest of this kind (manifest data does not match"
    assert message.startswith(f"team/kit:v1: {fake.host} returned 400: {refused}")
    assert message.endswith("push to a registry that accepts OCI artifacts, or push an image made by kitfs convert")
    assert "\n" not in message


def test_a_repository_that_a_push_does_not_make(client: Clients) -> None:
    """If the POST of an upload returns 404, an error is raised after this one request."""
    with Amazon() as fake, pytest.raises(NotFound, match="the repository does not exist"):
        client().repository(Reference.parse(f"{fake.host}/new/kit")).upload(descriptor(DATA), reader())
    assert asked(fake) == ["HEAD", "POST"]


@pytest.mark.parametrize(
    ("kind", "requests"),
    [
        (Google, ["PATCH", "PUT"]),
        (GitHub, ["PATCH", "PUT"]),
        (Amazon, ["PATCH"] * 5 + ["PUT"]),
        (Artifactory, ["PATCH"] * 5 + ["PUT"]),
    ],
)
def test_no_byte_goes_in_vain_more_than_once(client: Clients, kind: Callable[[], Any], requests: list[str]) -> None:
    """At most one chunk is refused during an upload. An unusual Range header does not cause another request."""
    with kind() as fake:
        team(client, fake).upload(descriptor(DATA), reader(), chunk=CHUNK)
        assert [
            s.method for s in fake.served("/uploads/.") if s.method in ("PATCH", "PUT") and s.status != 401
        ] == requests
