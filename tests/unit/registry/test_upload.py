"""Blobs are uploaded over real sockets: which requests are sent, how an upload resumes, and what responses mean."""

from __future__ import annotations

import hashlib
import random
import re
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kitfs.errors import (
    IntegrityError,
    KitfsError,
    NotFound,
    RateLimited,
    RegistryError,
    StoreError,
    Unauthorized,
    Unavailable,
)
from kitfs.metrics import Counters
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest, Reference
from kitfs.registry import upload as uploads
from kitfs.registry.client import RegistryClient, Repository
from kitfs.registry.http import StreamedBody
from kitfs.registry.retry import RetryPolicy
from tests.fakes.faults import Deaf, Fault, Headers, Restatus, Stall, Status
from tests.fakes.registry import FakeRegistry
from tests.unit.registry.conftest import descriptor

KiB = 1 << 10
CHUNK = 100 * KiB
DATA = random.Random(11).randbytes(450 * KiB)  # four chunks and a half
BLOB = descriptor(DATA)
TLS = Path(__file__).parent / "tls"
Repositories = Callable[..., Repository]
UPLOAD = r"/blobs/uploads/\w"


def reader(data: bytes = DATA, piece: int = 30 * KiB) -> Callable[[int], Iterator[bytes]]:
    """Return a function that reads a local blob from an offset, in pieces of the given size."""

    def read(offset: int) -> Iterator[bytes]:
        for at in range(offset, len(data), piece):
            yield data[at : at + piece]

    return read


class Notes(dict[tuple[str, str], Any]):
    """A store of hints in memory."""

    def set(self, key: tuple[str, str], value: Any) -> None:
        self[key] = value

    def delete(self, key: tuple[str, str]) -> None:
        self.pop(key, None)


@pytest.fixture
def retries() -> RetryPolicy:
    """Return a policy whose clients retry after a millisecond."""
    return RetryPolicy(backoff=0.001)


def push(team: Repository, blob: Descriptor = BLOB, data: bytes = DATA, **options: Any) -> str:
    return team.upload(blob, reader(data), **{"chunk": CHUNK, **options})


def asked(fake: FakeRegistry, path: str = "") -> list[str]:
    return [s.method for s in fake.served(path)]


def ranges(fake: FakeRegistry) -> list[str]:
    return [s.headers["content-range"] for s in fake.served(method="PATCH") if "content-range" in s.headers]


# -- without failures


def test_a_blob_that_is_there_is_not_sent(fake: FakeRegistry, repository: Repositories) -> None:
    """If the registry has the blob, only a HEAD is sent."""
    fake.put_blob("team/kit", DATA)
    reported: list[int] = []
    assert push(repository(), progress=reported.append) == "exists"
    assert (asked(fake), reported) == (["HEAD"], [])


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1])
def test_what_is_smaller_than_a_chunk_goes_in_one_put(fake: FakeRegistry, repository: Repositories, size: int) -> None:
    """A blob that is smaller than a chunk is sent by a POST and one PUT, with its length and digest."""
    blob = descriptor(DATA[:size])
    assert push(repository(), blob, DATA[:size]) == "uploaded"
    put = fake.served(method="PUT")[0]
    assert asked(fake) == ["HEAD", "POST", "PUT"]
    assert (put.headers["content-length"], put.headers["content-type"]) == (str(size), "application/octet-stream")
    assert "transfer-encoding" not in put.headers
    assert fake.blob("team/kit", blob.digest) == DATA[:size]


@pytest.mark.parametrize("chunks", [1, 4, 4.5])
def test_chunks_go_one_after_the_other(fake: FakeRegistry, repository: Repositories, chunks: float) -> None:
    """Each chunk is sent by PATCH with a Content-Range. An empty PUT ends the upload.

    Every request is sent to the Location in the last response, including the query of this URL.
    """
    data = DATA[: int(chunks * CHUNK)]
    blob = descriptor(data)
    reported: list[int] = []
    assert push(repository(), blob, data, progress=reported.append) == "uploaded"
    starts = range(0, len(data), CHUNK)
    assert ranges(fake) == [f"{at}-{min(at + CHUNK, len(data)) - 1}" for at in starts]
    assert asked(fake) == ["HEAD", "POST", *["PATCH"] * len(starts), "PUT"]
    assert fake.served(method="PUT")[0].headers["content-length"] == "0"
    assert sum(reported) == len(data)
    assert fake.blob("team/kit", blob.digest) == data
    assert fake.uploads("team/kit") == {}


def repository_at(client: RegistryClient, host: str, name: str = "team/kit") -> Repository:
    from kitfs.oci.names import Reference

    return client.repository(Reference.parse(f"{host}/{name}"))


def test_the_least_size_of_a_chunk_is_honoured(fake: FakeRegistry, repository: Repositories) -> None:
    """Every chunk except the last has at least OCI-Chunk-Min-Length bytes."""
    fake.chunk_min = 200 * KiB
    push(repository())
    assert ranges(fake) == ["0-204799", "204800-409599", "409600-460799"]


def test_another_digest_algorithm_is_named(fake: FakeRegistry, repository: Repositories) -> None:
    """If the digest is not sha256, the POST has the parameter digest-algorithm.

    Source: end-4c of distribution-spec.
    """
    blob = Descriptor("x", Digest.parse(f"sha512:{hashlib.sha512(DATA).hexdigest()}"), len(DATA))
    assert push(repository(), blob) == "uploaded"
    assert fake.served(method="POST")[0].path == "/v2/team/kit/blobs/uploads/?digest-algorithm=sha512"
    assert fake.blob("team/kit", blob.digest) == DATA


def test_locations_may_be_absolute(
    fake: FakeRegistry, repository: Repositories, client: Callable[..., RegistryClient]
) -> None:
    """A Location on another host is used, but gets no credentials."""
    with FakeRegistry() as storage:
        fake.require_basic({"u": "p"})
        push(repository(name="x/y", auths={fake.host: {"auth": "dTpw"}}), descriptor(b"warm"), b"warm")
        repository_at(client(), storage.host, "team/kit").upload  # noqa: B018 - the repository that the location names
        storage.sessions("team/kit")["1"] = bytearray()
        fake.fail(
            "/uploads/$", Headers({"Location": f"{storage.url}/v2/team/kit/blobs/uploads/1?_state=a%2Bb+c%3D%3D0"})
        )
        assert push(repository(auths={fake.host: {"auth": "dTpw"}})) == "uploaded"
        assert storage.blob("team/kit", BLOB.digest) == DATA
        assert all("authorization" not in s.headers for s in storage.served())
        assert "authorization" in fake.served(method="POST")[-1].headers


def test_a_location_without_tls_is_not_followed(client: Callable[..., RegistryClient]) -> None:
    """If a Location leads from a registry with TLS to another host without TLS, it is refused.

    If a Location differs from the registry's URL only in its scheme, the registry's scheme is used.
    """
    fake = FakeRegistry()
    fake.fail("/uploads/$", Headers({"Location": "http://storage.test/1"}), times=1)
    team = repository_at(client(transport=fake.transport()), "registry.test")
    with pytest.raises(RegistryError, match=r"registry\.test leads the upload to http:, away from TLS"):
        push(team)
    fake.sessions("team/kit")["1"] = bytearray()
    fake.fail(
        "/uploads/$",
        Headers({"Location": "http://registry.test/v2/team/kit/blobs/uploads/1?_state=a%2Bb+c%3D%3D0"}),
        times=1,
    )
    assert push(team) == "uploaded"


def test_pushes_pass_mirrors_by(fake: FakeRegistry, repository: Repositories) -> None:
    """Pushes are sent to the registry, not to its mirrors."""
    with FakeRegistry() as mirror:
        mirror.put_blob("team/kit", DATA)
        assert push(repository(mirrors={fake.host: (mirror.url,)})) == "uploaded"
        assert mirror.served() == []


# -- mounting


def test_a_blob_is_mounted_from_beside(fake: FakeRegistry, repository: Repositories) -> None:
    """A blob is mounted from the first repository that has the blob.

    Mounts from other repositories may begin upload sessions. These sessions are cancelled.
    """
    fake.put_blob("lib/base", DATA)
    assert push(repository(), mount_from=["lib/none", "team/kit", "lib/base", "lib/more"]) == "mounted"
    posts = [s.path for s in fake.served(method="POST")]
    assert posts == [
        f"/v2/team/kit/blobs/uploads/?mount={BLOB.digest.replace(':', '%3A')}&from=lib%2F{n}" for n in ("none", "base")
    ]
    assert (fake.blob("team/kit", BLOB.digest), fake.uploads("team/kit")) == (DATA, {})


def test_the_session_of_a_mount_that_failed_is_used(fake: FakeRegistry, repository: Repositories) -> None:
    """If a mount returns 202, the blob is sent in the session that the registry has opened, without a second POST."""
    assert push(repository(), mount_from=["lib/none"]) == "uploaded"
    assert len(fake.served(method="POST")) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 500])
def test_a_mount_that_is_refused_is_not_an_error(fake: FakeRegistry, repository: Repositories, status: int) -> None:
    """If a mount is refused, the blob is sent."""
    fake.fail("mount=", Status(status))
    assert push(repository(), mount_from=["lib/base"]) == "uploaded"


def test_mounting_asks_for_a_token_for_both(fake: FakeRegistry, repository: Repositories) -> None:
    """The token for a mount permits pushing to one repository and pulling from the other.

    Other requests need a token for one repository.
    """
    fake.put_blob("lib/base", DATA)
    fake.require_token()
    assert push(repository(), mount_from=["lib/base"]) == "mounted"
    scopes = [re.findall(r"scope=([^&]*)", s.path) for s in fake.served("/token")]
    own, source = "repository%3Ateam%2Fkit%3Apull%2Cpush", "repository%3Alib%2Fbase%3Apull"
    assert scopes == [[own], [own, source]]


# -- failures


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_a_broken_chunk_goes_on_where_the_registry_stands(
    fake: FakeRegistry, repository: Repositories, keeps: bool, reset: bool
) -> None:
    """If a chunk breaks off, the registry is asked how many bytes it has. Only the missing bytes are sent."""
    fake.fail("_state=a%2Bb.c%3D%3D102400", Deaf(50_000, keeps=keeps, reset=reset), method="PATCH", times=1)
    reported: list[int] = []
    assert push(repository(), progress=reported.append) == "uploaded"
    at = 102400 + 50_000 * keeps
    assert ranges(fake)[1:3] == ["102400-204799", f"{at}-{at + CHUNK - 1}"]
    assert sum(reported) == len(DATA)
    assert (min(reported) < 0) is (max(reported) > 0)
    assert fake.blob("team/kit", BLOB.digest) == DATA


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 520])
@pytest.mark.parametrize("method", ["POST", "PATCH", "GET", "PUT"])
def test_answers_that_may_pass(
    fake: FakeRegistry, repository: Repositories, counters: Counters, method: str, status: int
) -> None:
    """After a transient status, every request of an upload is retried."""
    if method == "GET":
        fake.fail(UPLOAD, Status(503), method="PATCH", times=1)
    fake.fail("/uploads/", Status(status), method=method, times=2)
    assert push(repository()) == "uploaded"
    assert fake.blob("team/kit", BLOB.digest) == DATA
    assert counters.get("retries") == {"GET": 3, "PUT": 1}.get(
        method, 2
    )  # the first PUT took effect, but its response was lost


def upload_of(client: RegistryClient, fake: FakeRegistry, **options: Any) -> uploads.Upload:
    """Return an upload of BLOB to team/kit."""
    [endpoint] = client.repository(Reference.parse(f"{fake.host}/team/kit")).endpoints
    pushing = endpoint.scoped("repository:team/kit:pull,push")
    return uploads.Upload(client.http, pushing, "team/kit", BLOB, reader(), client.lessons, chunk=CHUNK, **options)


def test_retry_after_is_honoured(fake: FakeRegistry, client: Callable[..., RegistryClient]) -> None:
    """An upload pauses for the time in Retry-After before it sends a request again."""
    slept: list[float] = []
    fake.fail(UPLOAD, Status(429, {"Retry-After": "7"}), method="PATCH", times=1)
    assert (upload_of(client(), fake, sleep=slept.append).run(), slept) == ("uploaded", [7.0])


def test_progress_renews_the_budget(fake: FakeRegistry, repository: Repositories) -> None:
    """If every chunk breaks off but the registry stores a part of each chunk, the upload succeeds."""
    fake.fail(UPLOAD, Deaf(10_000), method="PATCH")
    assert push(repository()) == "uploaded"
    assert len(ranges(fake)) == -(-len(DATA) // 10_000)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Deaf(10_000, keeps=False), Unavailable),
        (Status(503, refuses=True), Unavailable),
        (Status(429, refuses=True), RateLimited),
    ],
)
def test_failed_attempts_without_progress_end(
    fake: FakeRegistry, repository: Repositories, fault: Fault, kind: type[KitfsError]
) -> None:
    """Each upload method fails after five consecutive failures, with an error of one line."""
    for method in ("PATCH", "PUT"):
        fake.fail(UPLOAD, fault, method=method)
    with pytest.raises(kind, match=f"^team/kit: blob {BLOB.digest}: {fake.host} ") as caught:
        push(repository())
    assert "\n" not in str(caught.value)
    assert len([said for said in ranges(fake) if said == f"0-{CHUNK - 1}"]) == uploads.MAX_FAILURES


def test_a_lost_session_is_replaced(fake: FakeRegistry, repository: Repositories) -> None:
    """If the registry returns 404 for a session, the blob is sent in a new session.

    The bytes that were lost are reported as negative progress.
    """
    reported: list[int] = []

    def progress(n: int) -> None:
        reported.append(n)
        if sum(reported) == 300 * KiB and len(fake.served(method="POST")) == 1:
            fake.lose_uploads()

    assert push(repository(), progress=progress) == "uploaded"
    assert asked(fake).count("POST") == 2
    assert (sum(reported), min(reported) <= -200 * KiB) == (len(DATA), True)
    assert fake.blob("team/kit", BLOB.digest) == DATA


def test_a_registry_that_always_loses_its_sessions(fake: FakeRegistry, repository: Repositories) -> None:
    """If a registry loses every session, the upload fails. Bytes that are sent again do not count as progress."""
    fake.fail("_state=a%2Bb.c%3D%3D204800", Status(404), method="PATCH")
    fake.fail(UPLOAD, Status(404, code="BLOB_UPLOAD_UNKNOWN", refuses=True), method="PUT")
    with pytest.raises(Unavailable, match="has lost the upload session"):
        push(repository())
    assert uploads.MAX_FAILURES < asked(fake).count("POST") <= uploads.MAX_FAILURES * 5


def test_416_asks_for_the_place(fake: FakeRegistry, repository: Repositories) -> None:
    """After a 416, the registry is asked how many bytes it has."""
    fake.fail("_state=a%2Bb.c%3D%3D102400", Status(416), method="PATCH", times=1)
    assert push(repository()) == "uploaded"
    assert "GET" in asked(fake, UPLOAD)
    assert asked(fake).count("POST") == 1


@pytest.mark.parametrize("said", ["0-999", "5-9", "junk", "0-99999999", "bytes=0-204799", "0-204800", "0-0", None])
@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_2xx_says_that_a_chunk_was_taken(
    fake: FakeRegistry, repository: Repositories, said: str | None, status: int
) -> None:
    """After a 2xx, no byte of the chunk is sent again, whatever Range the response has.

    The digest is checked at the end.
    """
    fake.fail("_state=a%2Bb.c%3D%3D102400", Headers({"Range": said}), method="PATCH", times=1)
    fake.fail("/uploads/", Restatus(status), method="PATCH")
    assert push(repository()) == "uploaded"
    assert sum(s.heard for s in fake.served()) == len(DATA)
    assert fake.blob("team/kit", BLOB.digest) == DATA


def test_a_part_of_a_chunk_may_be_taken(fake: FakeRegistry, repository: Repositories) -> None:
    """If the Range of a response ends within the chunk, the next chunk begins there."""
    fake.fail("_state=a%2Bb.c%3D%3D102400", Deaf(60_000, answers=True), method="PATCH", times=1)
    assert push(repository()) == "uploaded"
    assert ranges(fake)[1:3] == ["102400-204799", "162400-264799"]
    assert fake.blob("team/kit", BLOB.digest) == DATA


def test_answers_without_range_and_location(fake: FakeRegistry, repository: Repositories) -> None:
    """After a 2xx without Range and Location, the upload continues at the same location."""
    fake.fail(UPLOAD, Headers({"Range": None, "Location": None}), method="PATCH")
    assert push(repository()) == "uploaded"
    assert len(ranges(fake)) == 5


def test_a_session_that_knows_less_goes_back(fake: FakeRegistry, repository: Repositories) -> None:
    """If a registry has lost a part of the blob, that part is sent again."""
    fake.fail("_state=a%2Bb.c%3D%3D204800", Status(503), method="PATCH", times=1)
    fake.fail(UPLOAD, Headers({"Range": "0-102399"}), method="GET", times=1)
    team = repository()

    def read(offset: int) -> Iterator[bytes]:
        if offset == 102400 and len(fake.served(method="PATCH")) == 3:
            for data in fake.sessions("team/kit").values():
                del data[102400:]
        return reader()(offset)

    assert team.upload(BLOB, read, chunk=CHUNK) == "uploaded"
    assert ranges(fake)[2:4] == ["204800-307199", "102400-204799"]


def test_a_blob_in_one_request_gets_a_new_session(fake: FakeRegistry, repository: Repositories) -> None:
    """If a blob is sent in one request, each attempt has a new session."""
    fake.fail(UPLOAD, Deaf(10_000), method="PUT", times=2)
    assert push(repository(), chunk=1 << 30) == "uploaded"
    assert asked(fake) == ["HEAD", "POST", "PUT"] + ["HEAD", "POST", "PUT"] * 2
    assert fake.blob("team/kit", BLOB.digest) == DATA


@pytest.mark.parametrize("chunk", [CHUNK, 1 << 30])
def test_a_lost_answer_to_the_last_request(fake: FakeRegistry, repository: Repositories, chunk: int) -> None:
    """If the response to the last request is lost, the registry is asked whether it has the blob.

    The blob is sent again only if the registry does not have the blob.
    """
    fake.fail(UPLOAD, Status(502), method="PUT", times=1)  # the registry stored the blob, but a proxy lost its response
    assert push(repository(), chunk=chunk) == "uploaded"
    assert asked(fake).count("PUT") == 1


def test_a_registry_that_says_nothing_is_given_up(fake: FakeRegistry, repository: Repositories) -> None:
    """After timeouts, fewer attempts are made than after other failures."""
    fake.fail(UPLOAD, Status(500, refuses=True), method="PATCH")
    fake.fail(UPLOAD, Stall(), method="PATCH")
    with pytest.raises(Unavailable, match=r"sent nothing for 0\.3 s"):
        push(repository(read_timeout=0.3))
    assert len(ranges(fake)) == 3


# -- from call to call


def interrupted(fake: FakeRegistry, team: Repository, notes: Notes) -> None:
    """Run a push that ends after two chunks and a part of the third, as if the process was killed."""

    class Killed(BaseException):
        pass

    def read(offset: int) -> Iterator[bytes]:
        if offset >= 2 * CHUNK:
            yield DATA[offset : offset + 10]
            raise Killed
        yield from reader()(offset)

    with pytest.raises(Killed):
        team.upload(BLOB, read, chunk=CHUNK, hints=notes)
    assert len(notes) == 1
    fake.stop()  # waits until the registry has handled the last request
    fake.start()
    fake.forget()


def test_a_later_call_goes_on(fake: FakeRegistry, repository: Repositories) -> None:
    """After an interrupted push, a later call sends only the missing bytes and deletes the hint."""
    notes, reported = Notes(), list[int]()
    interrupted(fake, repository(), notes)
    assert push(repository(), hints=notes, progress=reported.append) == "uploaded"
    assert ranges(fake)[0].startswith("2048")
    assert (asked(fake)[:2], sum(reported), notes) == (["HEAD", "GET"], len(DATA), {})
    assert fake.blob("team/kit", BLOB.digest) == DATA


def test_a_session_that_the_registry_lost_meanwhile(fake: FakeRegistry, repository: Repositories) -> None:
    """If the registry has lost the session of an earlier call, a new session is started without an error."""
    notes = Notes()
    interrupted(fake, repository(), notes)
    fake.lose_uploads()
    assert push(repository(), hints=notes) == "uploaded"
    assert (ranges(fake)[0], notes) == ("0-102399", {})


def test_a_session_with_other_bytes_in_it(fake: FakeRegistry, repository: Repositories) -> None:
    """If the digest of a resumed upload is wrong, the blob is sent once more in a new session."""
    notes = Notes()
    interrupted(fake, repository(), notes)
    for data in fake.sessions("team/kit").values():
        data[7] ^= 1
    assert push(repository(), hints=notes) == "uploaded"
    assert asked(fake).count("PUT") == 2


def test_a_session_with_too_many_bytes(fake: FakeRegistry, repository: Repositories) -> None:
    """A session with more bytes than the blob is not used."""
    notes = Notes()
    interrupted(fake, repository(), notes)
    for data in fake.sessions("team/kit").values():
        data += DATA
    assert push(repository(), hints=notes) == "uploaded"


@pytest.mark.parametrize(
    "note",
    [
        None,
        7,
        "text",
        [],
        {},
        *({"location": at, "at": 1, "least": 0} for at in (7, "http://[", "ftp://x/", "http://x")),
    ],
)
def test_an_invalid_hint_is_ignored(fake: FakeRegistry, repository: Repositories, note: Any) -> None:
    team, notes = repository(), Notes()
    notes["upload", f"{team.endpoints[-1].base}@{BLOB.digest}"] = note
    assert push(team, hints=notes) == "uploaded"
    assert notes == {}


def test_the_hint_of_a_failed_push_is_kept(fake: FakeRegistry, repository: Repositories) -> None:
    """If a push fails, its hint is kept until a later push succeeds."""
    notes = Notes()
    fake.fail("_state=a%2Bb.c%3D%3D102400", Status(503, refuses=True), method="PATCH")
    with pytest.raises(Unavailable):
        push(repository(), hints=notes)
    fake.heal()
    fake.forget()
    assert push(repository(), hints=notes) == "uploaded"
    assert ranges(fake)[0] == "102400-204799"


def test_the_hint_of_a_blob_that_exists_is_deleted(fake: FakeRegistry, repository: Repositories) -> None:
    """If the registry already has the blob, the hint is deleted."""
    notes = Notes()
    interrupted(fake, repository(), notes)
    fake.put_blob("team/kit", DATA)
    assert push(repository(), hints=notes) == "exists"
    assert notes == {}


# -- tokens


def test_one_token_serves_a_push(fake: FakeRegistry, repository: Repositories) -> None:
    """A push requests one token, which permits pull and push."""
    fake.require_token()
    push(repository())
    assert [s.path for s in fake.served("/token")] == [
        "/token?service=fake&scope=repository%3Ateam%2Fkit%3Apull%2Cpush"
    ]
    assert [s.status for s in fake.served() if s.status == 401] == [401]


@pytest.mark.parametrize("early", [True, False])
def test_a_token_that_expires_in_the_middle(fake: FakeRegistry, repository: Repositories, early: bool) -> None:
    """If a token expires, the chunk is sent again with a new token.

    The 401 may arrive before the whole chunk was sent.
    """
    fake.require_token()
    reported: list[int] = []

    def progress(n: int) -> None:
        reported.append(n)
        if sum(reported) == 200 * KiB and len(fake.served("/token")) == 1:
            fake.expire_tokens()
            if early:
                fake.fail(UPLOAD, Deaf(20_000, answers=True), method="PATCH", times=1)

    assert push(repository(), progress=progress) == "uploaded"
    assert len(fake.served("/token")) == 2
    assert sum(reported) == len(DATA)
    assert fake.blob("team/kit", BLOB.digest) == DATA


def test_a_token_that_is_known_to_be_old_is_replaced_first(fake: FakeRegistry, repository: Repositories) -> None:
    """A token that has expired is replaced before a chunk is sent."""
    fake.require_token(expires_in=1)
    now = [0.0]
    team = repository(clock=lambda: now[0])

    def progress(_: int) -> None:
        now[0] += 0.5

    assert push(team, progress=progress) == "uploaded"
    assert [s.method for s in fake.served() if s.status == 401] == ["HEAD"]
    assert len(fake.served("/token")) > 5


def test_a_token_that_may_not_push(fake: FakeRegistry, repository: Repositories) -> None:
    """If a token does not permit a push, the 401 or 403 raises Unauthorized. No session is left behind."""
    fake.require_basic({"u": "p"})
    with pytest.raises(Unauthorized, match=f"log in with kitfs login {fake.host}"):
        push(repository())


# -- refusals


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (400, RegistryError, "returned 400"),
        (403, Unauthorized, "no permission"),
        (405, RegistryError, "it does not accept pushes"),
        (413, RegistryError, "the request is too large"),
        (501, Unavailable, "returned 501"),
        (507, RegistryError, "it has no space left"),
    ],
)
@pytest.mark.parametrize(("method", "early"), [("POST", False), ("P", False), ("P", True), ("PUT", False)])
def test_refusals(
    fake: FakeRegistry,
    repository: Repositories,
    method: str,
    early: bool,
    status: int,
    kind: type[KitfsError],
    words: str,
) -> None:
    """If all methods are refused, the error is that of the first refusal, in one line. The session is cancelled.

    A refusal that arrives before the whole body was sent counts too.
    """
    for one in ("PATCH", "PUT") if method == "P" else (method,):
        fake.fail("/uploads/", Status(status, refuses=True), method=one)
        if early:
            fake.fail("/uploads/", Deaf(1000, answers=True), method=one)
    with pytest.raises(kind, match=f"^team/kit: blob {BLOB.digest}: {fake.host}.*{status}") as caught:
        push(repository(), chunk=CHUNK)
    assert words in str(caught.value)
    assert type(caught.value) is kind
    assert len(fake.served(method="POST")) <= 5  # each method once
    assert len(fake.uploads("team/kit")) == (status == 403 and method != "POST")  # an upload can resume after a login


def test_an_early_answer_over_tls(client: Callable[..., RegistryClient]) -> None:
    """A refusal that arrives before the whole body was sent is read over TLS too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "server.pem")
    big = random.Random(3).randbytes(8 << 20)
    with FakeRegistry(tls=context) as fake:
        for method in ("PATCH", "PUT"):
            fake.fail("/uploads/", Status(413, refuses=True), method=method)
            fake.fail("/uploads/", Deaf(1000, answers=True), method=method)
        team = repository_at(client(plain_http=False, tls_certs=(str(TLS / "ca.pem"),)), fake.host)
        with pytest.raises(RegistryError, match="returned 413"):
            push(team, descriptor(big), big, chunk=1 << 30)


def test_a_wrong_digest(fake: FakeRegistry, repository: Repositories) -> None:
    """If the registry computes another digest for a blob, the local copy is checked.

    If the local copy is damaged, it is not sent again.
    """
    with pytest.raises(IntegrityError, match=f"{fake.host} computed another digest, because the local copy is damaged"):
        push(repository(), data=DATA[:-1] + b"?")
    assert asked(fake).count("PUT") == 1


def test_a_registry_that_stores_it_as_something_else(fake: FakeRegistry, repository: Repositories) -> None:
    """If the response to the last request names another digest than that of the blob, IntegrityError is raised."""
    fake.fail(UPLOAD, Headers({"Docker-Content-Digest": f"sha256:{'0' * 64}"}), method="PUT")
    with pytest.raises(IntegrityError, match="stored it under another digest: sha256:000"):
        push(repository())


@pytest.mark.parametrize("chunk", [CHUNK, 1 << 30])
def test_a_local_copy_that_is_too_short(fake: FakeRegistry, repository: Repositories, chunk: int) -> None:
    """A local copy that is too short raises IntegrityError without a retry."""
    with pytest.raises(IntegrityError, match="the local copy has only 460700 bytes"):
        push(repository(), data=DATA[:-100], chunk=chunk)
    assert [s.status for s in fake.served(method="PUT")] in ([], [0])


def test_a_local_copy_that_is_too_long(fake: FakeRegistry, repository: Repositories) -> None:
    """Bytes beyond the size in the descriptor are not sent."""
    assert push(repository(), data=DATA + b"more") == "uploaded"


def test_a_local_copy_that_cannot_be_read(fake: FakeRegistry, repository: Repositories) -> None:
    """A local copy that cannot be read raises StoreError without a retry."""

    def read(offset: int) -> Iterator[bytes]:
        yield DATA[offset : offset + 10]
        raise OSError(5, "Input/output error")

    with pytest.raises(StoreError, match="cannot read the local copy"):
        repository().upload(BLOB, read, chunk=CHUNK)


def test_no_location(fake: FakeRegistry, repository: Repositories) -> None:
    """If the response to the POST has no Location, RegistryError is raised."""
    fake.fail("/uploads/$", Headers({"Location": None, "Docker-Upload-UUID": None}))
    with pytest.raises(RegistryError, match=f"{fake.host} returned 202 without a Location"):
        push(repository())


def test_nothing_there(fake: FakeRegistry, repository: Repositories) -> None:
    """If the POST returns 404, NotFound is raised."""
    fake.fail("/uploads/$", Status(404, code="NAME_UNKNOWN", message="x"))
    with pytest.raises(NotFound, match="the repository does not exist"):
        push(repository())


def test_redirects_are_followed_with_the_body(fake: FakeRegistry, repository: Repositories) -> None:
    """After a redirect, the chunk is sent again from its start, without credentials."""
    with FakeRegistry() as storage:
        storage.sessions("team/kit")["1"] = bytearray()
        fake.fail(
            UPLOAD,
            Status(307, {"Location": f"{storage.url}/v2/team/kit/blobs/uploads/1?_state=a%2Bb+c%3D%3D0"}),
            method="PATCH",
            times=1,
        )
        assert push(repository()) == "uploaded"
        assert storage.blob("team/kit", BLOB.digest) == DATA


def test_repr_is_for_people(fake: FakeRegistry, client: Callable[..., RegistryClient]) -> None:
    """``repr`` of an upload shows the digest, the host and the progress."""
    assert repr(upload_of(client(), fake)) == f"<Upload {BLOB.digest} to {fake.host}, 0 of {len(DATA)} bytes>"


def test_the_body_is_never_half_consumed() -> None:
    """Each time a body is sent, it is read from its start."""
    reported: list[int] = []
    body = StreamedBody(reader(), 100, 50_000, "blob", reported.append)
    one = iter(body)
    next(one)
    assert b"".join(body) == DATA[100:50_000]
    assert reported[:2] == [100, 100]
    assert (reported[-1], body.size) == (50_000, 49_900)
    assert isinstance(body, httpx.SyncByteStream)
