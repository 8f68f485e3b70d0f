"""Blobs are read over real sockets from a registry with faults."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from kitfs.errors import (
    IntegrityError,
    KitfsError,
    NotFound,
    RangeIgnored,
    RateLimited,
    RegistryError,
    Unauthorized,
    Unavailable,
)
from kitfs.metrics import Counters
from kitfs.registry.blob import RemoteBlob
from kitfs.registry.repository import Repository
from tests.fakes.faults import Chunked, ContentRange, Cut, Drip, Fault, Headers, IgnoreRange, Resize, Stall, Status
from tests.fakes.registry import FakeRegistry
from tests.host import wait_until
from tests.unit.registry.conftest import descriptor

DATA = random.Random(5).randbytes(1_000_000)
Repositories = Callable[..., Repository]


def read(blob: RemoteBlob, start: int = 0, stop: int | None = None) -> bytes:
    return b"".join(bytes(view) for _, view in blob.read_range(start, stop))


def read_until(error: type[KitfsError], words: str, blob: RemoteBlob, start: int, stop: int | None) -> bytes:
    """Read until the expected error, and return the bytes that were yielded before the error."""
    got = bytearray()

    def take() -> None:
        for _, view in blob.read_range(start, stop):
            got.extend(view)

    with pytest.raises(error, match=words):
        take()
    return bytes(got)


def blob_of(fake: FakeRegistry, repository: Repositories, size: int = -1, **options: object) -> RemoteBlob:
    fake.put_blob("team/kit", DATA)
    return repository(**options).blob(descriptor(DATA, size))


def test_a_range_asks_for_itself_only(fake: FakeRegistry, repository: Repositories, counters: Counters) -> None:
    """A range is read by one request with identity encoding. The counters count its bytes and the request."""
    assert read(blob_of(fake, repository), 1000, 5096) == DATA[1000:5096]
    (served,) = fake.served()
    assert (served.method, served.range, served.sent) == ("GET", "bytes=1000-5095", 4096)
    assert served.headers["accept-encoding"] == "identity"
    assert (counters.get("bytes_fetched"), counters.get("requests")) == (4096, 1)


def test_nothing_is_asked_before_it_is_read(fake: FakeRegistry, repository: Repositories) -> None:
    """No request is sent before a blob is read."""
    blob_of(fake, repository)
    assert fake.served() == []


def test_an_empty_blob_needs_no_request(fake: FakeRegistry, repository: Repositories) -> None:
    """An empty blob is read without a request, because a range must have at least one byte."""
    assert read(repository().blob(descriptor(b""))) == b""
    assert fake.served() == []


def test_sequential_ranges_share_one_connection(fake: FakeRegistry, repository: Repositories) -> None:
    """After a body was read to its end, its connection is used for the next request."""
    blob = blob_of(fake, repository)
    for n in range(20):
        pieces = blob.read_range(n * 100, n * 100 + 100)
        assert bytes(next(pieces)[1]) == DATA[n * 100 : n * 100 + 100]
        pieces.close()  # like a reader that needs no more bytes
    assert {s.connection for s in fake.served()} == {1}


@pytest.mark.parametrize("reset", [False, True])
def test_a_cut_body_is_taken_up_where_it_stands(fake: FakeRegistry, repository: Repositories, reset: bool) -> None:
    """If a body breaks off, the next request starts at the first missing byte."""
    blob = blob_of(fake, repository)
    fake.fail("/blobs/", Cut(300_000, reset=reset), times=3)
    assert read(blob) == DATA
    starts = [int(s.range.removeprefix("bytes=").split("-")[0]) for s in fake.served()]
    assert starts[0] == 0
    if not reset:  # a reset may lose bytes in flight
        assert starts == [0, 300_000, 600_000, 900_000]
        assert fake.moved() == len(DATA)


def test_a_body_that_never_brings_a_byte_is_given_up(fake: FakeRegistry, repository: Repositories) -> None:
    """Consecutive attempts without a new byte are limited. The error names the host and the offset."""
    blob = blob_of(fake, repository)
    fake.fail("/blobs/", Cut(0))
    with pytest.raises(Unavailable, match=f"{fake.host}") as caught:
        read(blob)
    assert len(fake.served()) == 3
    assert str(descriptor(DATA).digest) in str(caught.value)


def test_progress_renews_the_budget(fake: FakeRegistry, repository: Repositories) -> None:
    """A blob is read to its end even if the registry cuts every body after 50 kB."""
    blob = blob_of(fake, repository)
    fake.fail("/blobs/", Cut(50_000))
    assert read(blob) == DATA
    assert len(fake.served()) == 20


def test_200_to_a_range_is_the_whole_blob_once(fake: FakeRegistry, repository: Repositories) -> None:
    """If a range request gets a 200, ``ranged`` becomes False, and the body starts at byte 0 of the blob.

    No byte is requested twice.
    """
    blob = blob_of(fake, repository)
    fake.fail("/blobs/", IgnoreRange())
    pieces = list(blob.read_range(500_000, 500_010))
    assert pieces[0][0] == 0
    assert b"".join(bytes(view) for _, view in pieces) == DATA
    assert not blob.ranged
    assert fake.moved() == len(DATA)
    assert [s.range for s in fake.served()] == ["bytes=500000-500009"]
    fake.forget()
    assert read(blob, 5, 6) == DATA
    assert [s.range for s in fake.served()] == [""]


def test_200_to_a_range_of_everything_proves_nothing(fake: FakeRegistry, repository: Repositories) -> None:
    """If the requested range is the whole blob, a 200 does not set ``ranged`` to False."""
    blob = blob_of(fake, repository)
    fake.fail("/blobs/", IgnoreRange(), times=1)
    assert read(blob) == DATA
    assert blob.ranged


def test_a_stream_that_breaks_off_goes_on_behind_what_came(fake: FakeRegistry, repository: Repositories) -> None:
    """If a body breaks off and the registry ignores ranges, the next body starts at byte 0.

    The bytes that were already yielded are skipped.
    """
    blob = blob_of(fake, repository)
    fake.fail("/blobs/", IgnoreRange())
    fake.fail("/blobs/", Cut(400_000), times=1)
    offsets = []
    got = b""
    for offset, view in blob.read_range(10, 20):
        offsets.append(offset)
        got += bytes(view)
    assert got == DATA
    assert offsets == sorted(offsets)


def test_a_node_without_ranges_amid_a_range(fake: FakeRegistry, repository: Repositories) -> None:
    """If a range breaks off and the next response is a 200, the range is still read to its end.

    Afterwards, ``ranged`` is False.
    """
    blob = blob_of(fake, repository)
    fake.fail("/blobs/", Cut(1_000), times=1)
    pieces = blob.read_range(100_000, 300_000)
    offset, view = next(pieces)
    got = bytes(view)
    fake.fail("/blobs/", IgnoreRange())
    got += b"".join(bytes(view) for _, view in pieces)
    assert offset == 100_000
    assert got == DATA[100_000:300_000]
    assert not blob.ranged


WRONG: list[tuple[Fault, type[KitfsError], str]] = [
    (ContentRange(""), RangeIgnored, "Content-Range"),
    (ContentRange("bytes 0-9/1000000"), RegistryError, "sent bytes 0-9 instead of the requested 10-19"),
    (ContentRange("bytes 10-29/1000000"), RegistryError, "sent bytes 10-29 instead of the requested 10-19"),
    (ContentRange("bytes 10-14/1000000"), RegistryError, "sent bytes 10-14 instead of the requested 10-19"),
    (ContentRange("bytes 10-19/999"), IntegrityError, "has 999 bytes, but the descriptor declares 1000000"),
    (ContentRange("bytes */1000000"), RangeIgnored, "Content-Range"),
    (Resize(-1), RegistryError, "instead of the requested"),
    (Resize(1), RegistryError, "instead of the requested"),
    (Headers({"Content-Encoding": "gzip"}), RegistryError, "Content-Encoding gzip"),
    (Status(404, code="BLOB_UNKNOWN"), NotFound, "the blob does not exist"),
    (Status(404, code="NAME_UNKNOWN"), NotFound, "the repository does not exist"),
    (Status(401), Unauthorized, "the repository does not exist"),
    (Status(403), Unauthorized, "no permission, or the repository does not exist"),
    (Status(416), IntegrityError, "fewer than the declared 1000000 bytes"),
    (Status(400, body=b"no"), RegistryError, "returned 400"),
    (Status(302), RegistryError, "returned 302"),
    (Status(204), RegistryError, "returned 204"),
    (Status(307, {"Location": "ftp://elsewhere/x"}), RegistryError, "redirects to ftp"),
    (Status(307, {"Location": "http://[::bad/x"}), RegistryError, "invalid URL"),
    (Status(429, {"Retry-After": "0"}, code="TOOMANYREQUESTS", message="slow down"), RateLimited, "slow down"),
]


@pytest.mark.parametrize(("fault", "kind", "words"), WRONG, ids=lambda x: str(x)[:40])
def test_wrong_answers_are_errors_of_their_class(
    fake: FakeRegistry, repository: Repositories, fault: Fault, kind: type[KitfsError], words: str
) -> None:
    """An invalid response yields no byte. The error has the right class and names the host and the blob."""
    blob = blob_of(fake, repository)
    fake.fail("/blobs/", fault)
    with pytest.raises(KitfsError) as caught:
        read(blob, 10, 20)
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert fake.host in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 416])
def test_client_errors_are_not_retried(fake: FakeRegistry, repository: Repositories, status: int) -> None:
    """A 4xx status except 408 and 429 is not retried."""
    blob = blob_of(fake, repository)
    fake.fail("/blobs/", Status(status))
    with pytest.raises(KitfsError):
        read(blob, 0, 10)
    assert len(fake.served()) == 1


def test_a_blob_shorter_than_its_descriptor(fake: FakeRegistry, repository: Repositories) -> None:
    """A blob that is too short is detected from the Content-Length of a 200 or the Content-Range of a 206."""
    with pytest.raises(IntegrityError, match="has 1000000 bytes, but the descriptor declares 1000001"):
        read(blob_of(fake, repository, len(DATA) + 1), 0, 10)
    fake.fail("/blobs/", IgnoreRange())
    with pytest.raises(IntegrityError, match="has 1000000 bytes, but the descriptor declares 1000001"):
        read(blob_of(fake, repository, len(DATA) + 1), 0, 10)


@pytest.mark.parametrize("by", [-1, 1, 70_000])
def test_a_stream_without_length_that_is_shorter_or_longer(
    fake: FakeRegistry, repository: Repositories, by: int
) -> None:
    """If a body has no Content-Length, its length is checked at the end of the body.

    Missing bytes are requested again a few times. Extra bytes raise IntegrityError.
    """
    blob = blob_of(fake, repository)
    for fault in (IgnoreRange(), Resize(by), Chunked()):
        fake.fail("/blobs/", fault)
    got = read_until(Unavailable if by < 0 else IntegrityError, "byte", blob, 10, 20)
    assert got == DATA[: len(got)]


def test_a_stall_fails_after_the_read_timeout(fake: FakeRegistry, repository: Repositories) -> None:
    """If no byte arrives within the read timeout, the read fails without a retry.

    The error names the host and the timeout.
    """
    blob = blob_of(fake, repository, read_timeout=0.3)
    stall = Stall(100_000)
    fake.fail("/blobs/", stall)
    got = read_until(
        Unavailable, rf"blob sha256:.*: {fake.host} sent nothing for 0.3 s \(--read-timeout\)", blob, 0, None
    )
    assert got == DATA[:100_000]
    assert len(fake.served()) == 1


def test_a_slow_drip_is_not_a_stall(fake: FakeRegistry, repository: Repositories) -> None:
    """A body that arrives at the minimum speed (1 KiB/s) may take longer than the read timeout."""
    blob = blob_of(fake, repository, read_timeout=1.0)
    fake.fail("/blobs/", Drip(500, 0.05))
    assert read(blob, 0, 20_000) == DATA[:20_000]


def test_a_drip_below_the_least_speed_is_a_stall(fake: FakeRegistry, repository: Repositories) -> None:
    """A body below the minimum speed fails the read. The error states how many bytes arrived."""
    blob = blob_of(fake, repository, read_timeout=0.5)
    fake.fail("/blobs/", Drip(1, 0.05))
    got = read_until(Unavailable, rf"{fake.host} sent only \d+ bytes in 0.5 s \(--read-timeout\)", blob, 0, None)
    assert DATA.startswith(got)
    assert len(fake.served()) == 1


def test_every_byte_that_came_before_a_stall_is_given_at_once(fake: FakeRegistry, repository: Repositories) -> None:
    """Bytes are yielded as they arrive, not only when a buffer is full."""
    blob = blob_of(fake, repository)
    stall = Stall(1_000)
    fake.fail("/blobs/", stall)
    pieces = blob.read_range(0, None)
    assert bytes(next(pieces)[1]) == DATA[:1_000]
    stall.until.set()
    assert b"".join(bytes(view) for _, view in pieces) == DATA[1_000:]


def test_a_redirects_target_is_kept_and_gets_no_authorization(fake: FakeRegistry, repository: Repositories) -> None:
    """The target of a redirect is reused for later ranges. No credentials are sent to the target."""
    fake.require_basic({"u": "p"})
    with FakeRegistry() as cdn:
        fake.redirect_blobs_to(cdn)
        blob = blob_of(fake, repository, auths={fake.host: {"auth": "dTpw"}})
        assert read(blob, 0, 10) + read(blob, 10, 20) == DATA[:20]
        assert [s.status for s in fake.served()] == [401, 307]
        assert [s.range for s in cdn.served()] == ["bytes=0-9", "bytes=10-19"]
        assert [s for s in cdn.served() if "authorization" in s.headers] == []


def test_an_expired_target_is_resolved_once_more(fake: FakeRegistry, repository: Repositories) -> None:
    """If a reused target returns 403, the registry is asked for a new target.

    A 403 from that new target is an error.
    """
    with FakeRegistry() as cdn:
        fake.redirect_blobs_to(cdn)
        blob = blob_of(fake, repository)
        assert read(blob, 0, 10) == DATA[:10]
        cdn.expire_locations()
        assert read(blob, 10, 20) == DATA[10:20]
        assert [s.status for s in cdn.served()] == [206, 403, 206]
        cdn.fail("/cdn/", Status(403))
        with pytest.raises(Unauthorized, match=cdn.host):
            read(blob, 20, 30)
        assert [s.status for s in cdn.served()] == [206, 403, 206, 403, 403]


def test_a_target_whose_host_is_gone_is_replaced(fake: FakeRegistry, repository: Repositories) -> None:
    """If the host of a reused target is unreachable, the registry is asked for a new target."""
    with FakeRegistry() as old, FakeRegistry() as new:
        fake.redirect_blobs_to(old)
        blob = blob_of(fake, repository)
        assert read(blob, 0, 10) == DATA[:10]
        old.stop()
        fake.redirect_blobs_to(new)
        assert read(blob, 10, 20) == DATA[10:20]


def test_redirects_end(fake: FakeRegistry, repository: Repositories) -> None:
    """A cycle of redirects raises an error after five redirects."""
    blob = blob_of(fake, repository)
    fake.fail("/blobs/", Status(307, {"Location": "/v2/team/kit/blobs/again"}))
    with pytest.raises(RegistryError, match="redirects more than 5 times"):
        read(blob, 0, 10)
    assert len(fake.served()) == 6


def test_a_mirror_that_breaks_off_is_followed_by_the_next(fake: FakeRegistry, repository: Repositories) -> None:
    """If a mirror breaks off, the next endpoint is asked for the missing bytes only."""
    with FakeRegistry() as mirror:
        mirror.put_blob("team/kit", DATA)
        stall = Stall(100_000)
        mirror.fail("/blobs/", stall)
        blob = blob_of(fake, repository, read_timeout=0.3, mirrors={fake.host: (mirror.url,)})
        assert read(blob) == DATA
        stall.until.set()
    assert [s.range for s in fake.served()] == ["bytes=100000-999999"]


def test_all_endpoints_causes_are_named(fake: FakeRegistry, repository: Repositories) -> None:
    """If all endpoints fail, the error has the class of the registry's error.

    The message names the cause of the failure for each mirror.
    """
    with FakeRegistry() as empty, FakeRegistry() as dead:
        dead.stop()
        blob = blob_of(fake, repository, mirrors={fake.host: (empty.url, dead.url)})
        fake.fail("/blobs/", Status(403))
        with pytest.raises(Unauthorized) as caught:
            read(blob, 0, 10)
    message = str(caught.value)
    assert f"mirror {empty.host}: " in message
    assert "the repository does not exist" in message
    assert f"mirror {dead.host}: " in message
    assert "connection refused" in message
    assert f"; {fake.host}: " in message


def test_a_mirror_that_lies_is_dropped_for_the_blob_and_named(
    fake: FakeRegistry, repository: Repositories, caplog: pytest.LogCaptureFixture
) -> None:
    """A mirror whose bytes were wrong, or whose blob has another size, is not asked for this blob any more.

    One line of the log names the mirror and the blob. The mirror is still asked for other blobs.
    """
    for reason, size in (("wrong digest", 0), ("bytes, but the descriptor declares", 7)):
        caplog.clear()
        with FakeRegistry() as mirror:
            mirror.put_blob("team/kit", DATA + b"x" * size, digest=descriptor(DATA).digest)
            blob = blob_of(fake, repository, mirrors={fake.host: (mirror.url,)})
            assert read(blob, 0, 100) == DATA[:100]
            assert blob.distrust() == (size == 0)
            mirror.forget()
            assert read(blob, 100, 200) == DATA[100:200]
            assert mirror.served() == []
            (line,) = [record.getMessage() for record in caplog.records]
            assert f"the mirror {mirror.host} is not used for this blob any more" in line
            assert (reason in line, str(descriptor(DATA).digest) in line) == (True, True)
            assert read(blob_of(fake, repository, mirrors={fake.host: (mirror.url,)}), 0, 1) == DATA[:1]
            assert mirror.served() != []


def test_two_mirrors_on_one_host_keep_their_own_targets(fake: FakeRegistry, repository: Repositories) -> None:
    """A redirect target of one mirror is not used for another mirror on the same host."""
    with FakeRegistry(prefix="/a") as one, FakeRegistry() as cdn:
        one.put_blob("team/kit", DATA)
        one.redirect_blobs_to(cdn)
        base = one.url.removesuffix("/a")
        blob = blob_of(fake, repository, mirrors={fake.host: (f"{base}/b", f"{base}/a")})
        assert read(blob, 0, 10) + read(blob, 10, 20) == DATA[:20]
        assert [s.path.split("/v2")[0] for s in one.served()] == ["/b", "/a", "/b"]


def test_sixty_four_readers_at_once(fake: FakeRegistry, repository: Repositories) -> None:
    """Each of 64 readers gets a connection without waiting for another reader."""
    blob = blob_of(fake, repository)
    gate = threading.Barrier(64)
    wrong: list[int] = []

    def one(n: int) -> None:
        gate.wait(30)
        if read(blob, n * 1000, n * 1000 + 1000) != DATA[n * 1000 : n * 1000 + 1000]:
            wrong.append(n)

    stall = Stall()
    held = fake.fail("/blobs/", stall)
    threads = [threading.Thread(target=one, args=(n,)) for n in range(64)]
    for thread in threads:
        thread.start()
    wait_until(lambda: held.hits == 64, "the requests were not in flight at the same time")
    stall.until.set()
    for thread in threads:
        thread.join()
    assert wrong == []
