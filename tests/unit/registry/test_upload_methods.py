"""For each blob, an upload method is tried at most once.

A method that a registry has refused is tried last for later blobs.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest

from kitfs.errors import RegistryError
from kitfs.metrics import Counters
from kitfs.oci.names import Reference
from kitfs.registry.client import RegistryClient
from kitfs.registry.credentials import Credentials
from kitfs.registry.options import ClientOptions
from kitfs.registry.upload_methods import MAX_AGE, Lesson, Lessons, MethodPlan
from tests.fakes.faults import Deaf, Headers, Restatus, Status
from tests.fakes.registry import FakeRegistry
from tests.unit.registry.conftest import descriptor
from tests.unit.registry.test_upload import BLOB, CHUNK, DATA, Notes, Repositories, asked, push, ranges, reader

SIZES = [0, 1, 3000, CHUNK - 1, CHUNK, len(DATA)]


@pytest.mark.parametrize("status", [400, 404, 405, 409, 411, 415, 416, 422, 501, 505])
def test_where_chunks_are_refused_one_put_is_sent(fake: FakeRegistry, repository: Repositories, status: int) -> None:
    """If chunks are refused with any status, the blob is sent in one PUT."""
    fake.fail("/uploads/", Status(status, code="X", message="no chunks", refuses=True), method="PATCH")
    assert push(repository()) == "uploaded"
    assert asked(fake) == ["HEAD", "POST", "PATCH", "DELETE", "POST", "PUT"]
    assert fake.blob("team/kit", BLOB.digest) == DATA
    assert fake.uploads("team/kit") == {}


@pytest.mark.parametrize("reset", [True, False])
def test_a_registry_that_hangs_up_on_chunks(fake: FakeRegistry, repository: Repositories, reset: bool) -> None:
    """If a registry closes the connection during chunks five times, the blob is sent by another method."""
    fake.fail("/uploads/", Deaf(1000, keeps=False, reset=reset), method="PATCH")
    assert push(repository()) == "uploaded"
    assert asked(fake).count("PUT") == 1
    assert fake.blob("team/kit", BLOB.digest) == DATA


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("status", [400, 404, 405, 411, 413, 415, 501])
def test_where_a_put_with_a_body_is_refused_patch_is_sent(
    fake: FakeRegistry, repository: Repositories, status: int, size: int
) -> None:
    """If a PUT with a body is refused, the blob is sent in one PATCH, as docker does.

    If the PUT was refused because of its size, the blob is sent in chunks.
    """
    data = DATA[:size]
    fake.refuse_bodies("PUT", status)
    assert push(repository(), descriptor(data), data) == "uploaded"
    assert fake.blob("team/kit", descriptor(data).digest) == data


@pytest.mark.parametrize("size", SIZES)
def test_a_registry_that_takes_a_plain_patch_only(fake: FakeRegistry, repository: Repositories, size: int) -> None:
    """If a registry refuses Content-Range and a PUT with a body, the blob is sent in one PATCH."""
    data = DATA[:size]
    fake.refuse_bodies("PUT", 404)
    fake.refuse_chunks(400)
    assert push(repository(), descriptor(data), data) == "uploaded"
    assert fake.blob("team/kit", descriptor(data).digest) == data


@pytest.mark.parametrize("limit", [3_500, 13_000, 50_000])
@pytest.mark.parametrize("size", [13_000, 60_000, len(DATA)])
def test_a_proxy_with_a_limit_is_sent_smaller_chunks(
    fake: FakeRegistry, repository: Repositories, limit: int, size: int
) -> None:
    """After a 413, only methods with smaller requests are tried."""
    data = DATA[:size]
    fake.body_limit = limit
    assert push(repository(), descriptor(data), data) == "uploaded"
    assert fake.blob("team/kit", descriptor(data).digest) == data
    refused = [s for s in fake.served() if s.status == 413]
    assert len(refused) <= 3
    assert sorted((int(s.headers["content-length"]) for s in refused), reverse=True) == [
        int(s.headers["content-length"]) for s in refused
    ]


def test_each_method_is_tried_once(fake: FakeRegistry, repository: Repositories) -> None:
    """If all methods are refused, each is tried once, and the error is that of the first method."""
    fake.refuse_chunks(416)
    fake.refuse_bodies("PUT", 404)
    fake.refuse_bodies("PATCH", 400)
    with pytest.raises(RegistryError, match="returned 416"):
        push(repository())
    sent = [(s.method, s.headers.get("content-range")) for s in fake.served() if s.method in ("PATCH", "PUT")]
    assert len(set(sent)) == len(sent) == 5


def test_what_was_refused_is_remembered(fake: FakeRegistry, repository: Repositories) -> None:
    """The accepted method is used for the next blob, also by another process."""
    notes = Notes()
    fake.refuse_chunks(400)
    team = repository()
    push(team, hints=notes)
    for seed, again in enumerate((team, repository())):
        fake.forget()
        data = random.Random(seed).randbytes(2 * CHUNK)
        push(again, descriptor(data), data, hints=notes)
        assert asked(fake) == ["HEAD", "POST", "PUT"]


def test_a_hint_about_methods_is_used_for_a_week() -> None:
    """A hint about methods is used for a week. An invalid hint is ignored."""
    now = 1e9
    lessons = Lessons(lambda: now)
    notes = Notes()
    lessons.learn("h", Lesson(frozenset({"put"}), 7), notes)
    assert Lessons(lambda: now + MAX_AGE - 1).of("h", notes) == Lesson(frozenset({"put"}), 7)
    assert Lessons(lambda: now + MAX_AGE).of("h", notes) == Lesson()
    rubbish: list[Any] = [
        None,
        7,
        "x",
        {},
        {"at": now},
        {"at": "x", "refused": 5, "limit": 1},
        {"at": now, "refused": [], "limit": "x"},
    ]
    for note in rubbish:
        notes["upload-methods", "h"] = note
        assert Lessons(lambda: now).of("h", notes) == Lesson()


def test_no_method_is_ever_excluded() -> None:
    """If a host has refused all methods, all methods are tried again for the next blob, in another order."""
    all_ways = {"chunks", "put", "patch", "chunks/8", "chunks/32"}
    plan = MethodPlan(10_000, 1000, Lesson(frozenset(all_ways), 1))
    seen = set()
    more = True
    while more:
        seen.add(plan.method.name)
        more = plan.refuse(None)
    assert seen == all_ways


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206])
@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
def test_any_2xx_is_done(fake: FakeRegistry, repository: Repositories, method: str, status: int) -> None:
    """Any 2xx status of an upload request is a success."""
    fake.fail("/uploads/", Restatus(status), method=method)
    assert push(repository()) == "uploaded"
    assert asked(fake) == ["HEAD", "POST", *["PATCH"] * 5, "PUT"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 501])
def test_a_head_that_is_refused_is_a_no(fake: FakeRegistry, repository: Repositories, status: int) -> None:
    """If HEAD is refused, the blob is sent."""
    fake.fail("/blobs/sha256:", Status(status), method="HEAD")
    assert push(repository()) == "uploaded"


@pytest.mark.parametrize("status", [200, 204])
def test_a_mount_with_another_2xx_is_looked_at(fake: FakeRegistry, repository: Repositories, status: int) -> None:
    """If a mount returns another 2xx, the registry is asked whether it has the blob.

    If the registry does not have the blob, the blob is sent.
    """
    fake.put_blob("lib/base", DATA)
    fake.fail("mount=", Restatus(status))
    assert push(repository(), mount_from=["lib/base"]) == "mounted"
    data = DATA[:100]
    assert push(repository(), descriptor(data), data, mount_from=["lib/base"]) == "uploaded"


def test_a_session_may_be_named_by_its_number_alone(fake: FakeRegistry, repository: Repositories) -> None:
    """If a response has no Location, its Docker-Upload-UUID is used."""
    fake.stateless = True
    fake.fail("/uploads/", Headers({"Location": None}))
    assert push(repository()) == "uploaded"


def test_a_wrong_digest_of_a_right_copy_is_the_registrys_fault(fake: FakeRegistry, repository: Repositories) -> None:
    """If the local copy is right and a registry has assembled the chunks wrongly, the blob is sent in one request."""
    fake.fail("_state=a%2Bb.c%3D%3D204800", Status(202, {"Range": "0-307199"}, refuses=True), method="PATCH", times=1)
    assert push(repository()) == "uploaded"
    assert fake.blob("team/kit", BLOB.digest) == DATA


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_any_2xx_of_a_manifest_is_done(fake: FakeRegistry, repository: Repositories, status: int) -> None:
    """A push succeeds if the PUT of the manifest returns any 2xx and the manifest exists afterwards."""
    fake.fail("/manifests/", Restatus(status), method="PUT")
    fake.fail("/manifests/", Headers({"Docker-Content-Digest": None, "Location": None}), method="PUT")
    repository().put_manifest("v1", "application/vnd.oci.image.manifest.v1+json", b'{"config": {"mediaType": "x"}}')
    assert fake.manifest("team/kit", "v1")[0] == b'{"config": {"mediaType": "x"}}'


def test_a_page_for_people_is_not_a_manifest(fake: FakeRegistry, repository: Repositories) -> None:
    """If the PUT of a manifest returns a 200 without a registry's headers, an error is raised.

    A login page is such a 200.
    """
    fake.fail("/manifests/", Status(200, body=b"<html>log in", refuses=True), method="PUT")
    with pytest.raises(RegistryError, match="accepted the manifest but does not have it: it may not be a registry"):
        repository().put_manifest("v1", "application/vnd.oci.image.manifest.v1+json", b"{}")


def test_methods_are_remembered_without_hints(fake: FakeRegistry) -> None:
    """A client without hints remembers refused methods in memory."""
    fake.refuse_chunks(501)
    client = RegistryClient(ClientOptions(), Credentials(()), counters=Counters(), log=logging.getLogger("kitfs.test"))
    team = client.repository(Reference.parse(f"{fake.host}/team/kit"))
    team.upload(BLOB, reader(), chunk=CHUNK)
    data = DATA[1:]
    team.upload(descriptor(data), reader(data), chunk=CHUNK)
    client.close()
    assert len(ranges(fake)) == 1
