"""Manifests are pushed and deleted, tags are listed, and a tag lists referrers if the registry has no API for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from kitfs.errors import (
    IntegrityError,
    InvalidReference,
    KitfsError,
    ManifestError,
    NotFound,
    RegistryError,
    Unauthorized,
)
from kitfs.oci import referrers
from kitfs.oci.manifest import IMAGE_INDEX, IMAGE_MANIFEST
from kitfs.oci.names import Digest
from kitfs.registry.repository import Repository
from tests.fakes.faults import Headers, Status
from tests.fakes.registry import FakeRegistry

Repositories = Callable[..., Repository]
CONFIG = {"mediaType": "application/vnd.test.config", "digest": Digest.of(b"{}"), "size": 2}
SUBJECT = {"mediaType": IMAGE_MANIFEST, "digest": Digest.of(b"the subject"), "size": 11}
TAG = SUBJECT["digest"].replace(":", "-")  # type: ignore[attr-defined]


def manifest(**more: Any) -> bytes:
    return json.dumps(
        {"schemaVersion": 2, "mediaType": IMAGE_MANIFEST, "config": CONFIG, "layers": [], **more}
    ).encode()


PLAIN = manifest()
SIGNATURE = manifest(subject=SUBJECT, artifactType="application/vnd.test.signature", annotations={"by": "me"})


def listed(fake: FakeRegistry) -> list[dict[str, Any]]:
    data, media_type = fake.manifest("team/kit", TAG)
    assert media_type == IMAGE_INDEX
    return json.loads(data)["manifests"]  # type: ignore[no-any-return]


# -- pushing


@pytest.mark.parametrize("identifier", ["v1", Digest.of(PLAIN)])
def test_a_manifest_is_stored_byte_for_byte(fake: FakeRegistry, repository: Repositories, identifier: str) -> None:
    """A manifest is pushed in one request, under a tag or its digest, with its media type."""
    assert repository().put_manifest(identifier, IMAGE_MANIFEST, PLAIN) == Digest.of(PLAIN)
    assert fake.manifest("team/kit", identifier) == (PLAIN, IMAGE_MANIFEST)
    assert [s.method for s in fake.served()] == ["PUT"]


def test_a_wrong_digest_is_not_sent(fake: FakeRegistry, repository: Repositories) -> None:
    """A manifest that does not have the given digest is not sent."""
    with pytest.raises(IntegrityError):
        repository().put_manifest(Digest.of(b"else"), IMAGE_MANIFEST, PLAIN)
    with pytest.raises(InvalidReference):
        repository().put_manifest("sha256:1", IMAGE_MANIFEST, PLAIN)
    assert fake.served() == []


@pytest.mark.parametrize("claimed", [Digest.of(b"else"), "junk", f"sha512:{'0' * 128}"])
def test_the_registrys_digest_is_checked(fake: FakeRegistry, repository: Repositories, claimed: str) -> None:
    """If the registry returns a digest, it must be that of the manifest."""
    fake.fail("/manifests/", Headers({"Docker-Content-Digest": claimed}))
    with pytest.raises(IntegrityError, match=f"team/kit:v1: .*{fake.host} stored"):
        repository().put_manifest("v1", IMAGE_MANIFEST, PLAIN)


@pytest.mark.parametrize("claimed", [None, f"sha512:{hashlib.sha512(PLAIN).hexdigest()}"])
def test_another_digest_or_none_is_as_good(fake: FakeRegistry, repository: Repositories, claimed: str | None) -> None:
    """The registry may return a digest of another algorithm, or no digest."""
    fake.fail("/manifests/", Headers({"Docker-Content-Digest": claimed}))
    assert repository().put_manifest("v1", IMAGE_MANIFEST, PLAIN) == Digest.of(PLAIN)


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (400, "DIGEST_INVALID", IntegrityError, "computed another digest"),
        (400, "MANIFEST_BLOB_UNKNOWN", RegistryError, "(words)"),
        (401, "UNAUTHORIZED", Unauthorized, "log in"),
        (403, "DENIED", Unauthorized, "log in"),
        (404, "NAME_UNKNOWN", NotFound, "the repository does not exist"),
        (
            400,
            "MANIFEST_INVALID",
            RegistryError,
            "does not accept a manifest of this kind (words); push to a registry that accepts OCI artifacts",
        ),
        (415, "", RegistryError, "does not accept a manifest of this kind"),
        (405, "UNSUPPORTED", RegistryError, "it does not accept pushes"),
        (413, "SIZE_INVALID", RegistryError, "the request is too large"),
        (507, "", RegistryError, "it has no space left"),
    ],
)
def test_refusals(
    fake: FakeRegistry, repository: Repositories, status: int, code: str, kind: type[KitfsError], words: str
) -> None:
    """If a registry refuses a manifest, an error of the right class is raised, with a message of one line."""
    fake.fail("/manifests/", Status(status, code=code, message="words"))
    with pytest.raises(kind, match=r"^team/kit:v1: ") as caught:
        repository().put_manifest("v1", IMAGE_MANIFEST, PLAIN)
    assert words in str(caught.value)
    assert type(caught.value) is kind


def test_a_manifest_is_tried_again(fake: FakeRegistry, repository: Repositories) -> None:
    fake.fail("/manifests/", Status(503, refuses=True), times=2)
    repository().put_manifest("v1", IMAGE_MANIFEST, PLAIN)
    assert fake.manifest("team/kit", "v1")[0] == PLAIN


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"subject": 7}', b'{"subject": {"digest": "x"}}'])
def test_bytes_that_are_not_a_manifest_are_not_sent(fake: FakeRegistry, repository: Repositories, data: bytes) -> None:
    """Bytes that are not a manifest raise ManifestError without a request."""
    with pytest.raises(ManifestError):
        repository().put_manifest("v1", IMAGE_MANIFEST, data)
    assert fake.served() == []


def test_pushes_pass_mirrors_by(fake: FakeRegistry, repository: Repositories) -> None:
    """Pushes, deletions and lists of tags are sent to the registry itself, not to its mirrors."""
    with FakeRegistry() as mirror:
        team = repository(mirrors={fake.host: (mirror.url,)})
        team.put_manifest("v1", IMAGE_MANIFEST, PLAIN)
        assert list(team.tags()) == ["v1"]
        team.delete_manifest("v1")
        assert mirror.served() == []


# -- subjects


def test_a_registry_that_knows_subjects_keeps_the_list(fake: FakeRegistry, repository: Repositories) -> None:
    """If the registry returns OCI-Subject, kitfs does not write the index under the tag of referrers."""
    repository().put_manifest("v1", IMAGE_MANIFEST, SIGNATURE)
    assert [s.method for s in fake.served()] == ["PUT"]


def test_for_others_the_tag_is_kept_up(fake: FakeRegistry, repository: Repositories) -> None:
    """If the registry does not return OCI-Subject, kitfs adds each referrer to the index under the tag of referrers.

    The entry has the referrer's type and annotations.
    """
    fake.referrers_api = False
    team = repository()
    second = manifest(subject=SUBJECT)
    for data in (SIGNATURE, second, SIGNATURE):
        team.put_manifest(Digest.of(data), IMAGE_MANIFEST, data)
    one, two = listed(fake)
    assert one == {
        "mediaType": IMAGE_MANIFEST, "digest": Digest.of(SIGNATURE), "size": len(SIGNATURE),
        "annotations": {"by": "me"}, "artifactType": "application/vnd.test.signature",
    }  # fmt: skip
    assert (two["artifactType"], two["digest"]) == ("application/vnd.test.config", Digest.of(second))
    found = team.referrers(SUBJECT["digest"])  # type: ignore[arg-type]
    assert [d.digest for d in found] == [Digest.of(SIGNATURE), Digest.of(second)]


def test_what_others_wrote_into_the_list_stays(fake: FakeRegistry, repository: Repositories) -> None:
    """Entries and fields that other clients wrote into the index of referrers are kept."""
    fake.referrers_api = False
    other = {"mediaType": "x/y", "digest": Digest.of(b"other"), "size": 5, "new": [1]}
    fake.put_manifest(
        "team/kit",
        json.dumps({"schemaVersion": 2, "manifests": [other], "more": 1}).encode(),
        tag=TAG,
        media_type=IMAGE_INDEX,
    )
    repository().put_manifest("v1", IMAGE_MANIFEST, SIGNATURE)
    assert listed(fake)[0] == other
    assert json.loads(fake.manifest("team/kit", TAG)[0])["more"] == 1


@pytest.mark.parametrize(
    "there", [b"{}", b"[]", b'{"manifests": 7}', PLAIN, json.dumps({"mediaType": "x/y", "manifests": []}).encode()]
)
def test_something_else_under_the_tag_is_left_alone(fake: FakeRegistry, repository: Repositories, there: bytes) -> None:
    """If the tag of referrers does not name an index, the push fails. The error is one line that names the tag."""
    fake.referrers_api = False
    fake.put_manifest("team/kit", there, tag=TAG)
    with pytest.raises(ManifestError, match=f"team/kit:{TAG}: "):
        repository().put_manifest("v1", IMAGE_MANIFEST, SIGNATURE)
    assert fake.manifest("team/kit", TAG)[0] == there


def test_a_list_with_a_subject_of_its_own_ends_there(fake: FakeRegistry, repository: Repositories) -> None:
    """If the index of referrers itself has a subject, no index of referrers is written for that subject."""
    fake.referrers_api = False
    strange = json.dumps(
        {"schemaVersion": 2, "manifests": [], "subject": {**SUBJECT, "digest": Digest.of(b"next")}}
    ).encode()
    fake.put_manifest("team/kit", strange, tag=TAG, media_type=IMAGE_INDEX)
    repository().put_manifest("v1", IMAGE_MANIFEST, SIGNATURE)
    assert len(fake.served()) == 3


def test_an_index_may_refer_too() -> None:
    """If an index has a subject, it is listed as a referrer without an artifact type."""
    data = json.dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [], "subject": SUBJECT}).encode()
    entry = referrers.entry_of(IMAGE_INDEX, Digest.of(data), data)
    assert (referrers.subject_of(data), entry.artifact_type) == (SUBJECT["digest"], "")


# -- deleting


def test_a_tag_is_deleted(fake: FakeRegistry, repository: Repositories) -> None:
    """If a tag is deleted, its manifest is kept."""
    team = repository()
    digest = team.put_manifest("v1", IMAGE_MANIFEST, PLAIN)
    team.delete_manifest("v1")
    with pytest.raises(NotFound):
        team.manifest("v1")
    assert team.manifest(digest)[1] == PLAIN


def test_a_referrer_that_is_deleted_leaves_the_list(fake: FakeRegistry, repository: Repositories) -> None:
    """If a referrer is deleted, its entry is removed from the index under the tag of referrers."""
    fake.referrers_api = False
    team = repository()
    digests = [
        team.put_manifest(f"v{i}", IMAGE_MANIFEST, data)
        for i, data in enumerate((SIGNATURE, manifest(subject=SUBJECT)))
    ]
    team.delete_manifest(digests[0])
    assert [row["digest"] for row in listed(fake)] == digests[1:]


def test_damaged_manifests_can_be_deleted(fake: FakeRegistry, repository: Repositories) -> None:
    """A manifest can be deleted even if it cannot be parsed."""
    digest = fake.put_manifest("team/kit", b"junk")
    repository().delete_manifest(digest)
    with pytest.raises(NotFound):
        repository().delete_manifest(digest)


@pytest.mark.parametrize(("status", "code"), [(400, "UNSUPPORTED"), (405, "UNSUPPORTED"), (405, "")])
def test_registries_that_delete_nothing(fake: FakeRegistry, repository: Repositories, status: int, code: str) -> None:
    """If a registry refuses a deletion, the error contains the status of the response."""
    fake.fail("/manifests/", Status(status, code=code, message="no"), method="DELETE")
    with pytest.raises(RegistryError, match=f"returned {status}") as caught:
        repository().delete_manifest("v1")
    assert caught.value.status == status


def test_deleting_asks_for_a_token_for_it(fake: FakeRegistry, repository: Repositories) -> None:
    """A deletion requests a token with the action "delete"."""
    fake.put_manifest("team/kit", PLAIN, tag="v1")
    fake.require_token()
    repository().delete_manifest("v1")
    assert [s.path for s in fake.served("/token")] == [
        "/token?service=fake&scope=repository%3Ateam%2Fkit%3Apull%2Cdelete"
    ]


# -- tags


@pytest.mark.parametrize("page", [0, 1, 3, 7])
def test_tags_come_page_by_page(fake: FakeRegistry, repository: Repositories, page: int) -> None:
    """Tags are listed page by page, by Link headers."""
    fake.tags_per_page = page
    names = [f"v{i}" for i in range(7)]
    for name in names:
        fake.put_manifest("team/kit", PLAIN, tag=name)
    assert list(repository().tags()) == names


def test_a_repository_without_tags(fake: FakeRegistry, repository: Repositories) -> None:
    """If the registry returns null as the list of tags, the list is empty.

    If the repository does not exist, NotFound is raised.
    """
    fake.put_manifest("team/kit", PLAIN)
    assert list(repository().tags()) == []
    with pytest.raises(NotFound, match="no/such: tags: "):
        list(repository("no/such").tags())


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"tags": 7}', b'{"tags": {"a": 1}}', b"[" * 100_000])
def test_a_response_that_is_not_a_list_of_tags(fake: FakeRegistry, repository: Repositories, body: bytes) -> None:
    """A response that is not a list of tags causes an error of one line."""
    fake.fail("/tags/", Status(200, body=body))
    with pytest.raises(RegistryError, match="did not return a list of tags"):
        list(repository().tags())


def test_invalid_tags_are_left_out(fake: FakeRegistry, repository: Repositories) -> None:
    """An invalid tag is left out of the list, because it could send an escape sequence to a terminal."""
    fake.fail("/tags/", Status(200, body=b'{"tags": ["v1", 7, null, "\\u001b[31m", "a/b", "", "v2"]}'))
    assert list(repository().tags()) == ["v1", "v2"]


def test_pages_without_end_end(fake: FakeRegistry, repository: Repositories) -> None:
    """A list with more pages than the limit raises an error."""
    fake.put_manifest("team/kit", PLAIN, tag="v1")
    fake.fail("/tags/", Headers({"Link": '</v2/team/kit/tags/list>; rel="next"'}))
    with pytest.raises(RegistryError, match="more than 5 pages of tags"):
        list(repository().tags(max_pages=5))
    assert len(fake.served()) == 5


def test_a_list_of_tags_that_goes_round_ends(fake: FakeRegistry, repository: Repositories) -> None:
    """If a page links to itself, each tag is yielded once, and then an error is raised."""
    fake.fail(
        "/tags/", Status(200, {"Link": '</v2/team/kit/tags/list?n=1>; rel="next"'}, body=b'{"tags": ["v1", "v2"]}')
    )
    tags = repository().tags()
    assert [next(tags), next(tags)] == ["v1", "v2"]
    with pytest.raises(RegistryError, match="endless list of tags"):
        next(tags)
    assert len(fake.served()) < 30
