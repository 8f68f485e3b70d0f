"""``kitfs serve`` answers the requests of the distribution-spec's conformance suite as the suite requires.

The requests are sent over real sockets. The suite itself is not run here.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bcrypt
import httpx
import pytest

from kitfs.oci.manifest import IMAGE_INDEX, IMAGE_MANIFEST
from kitfs.oci.names import Digest
from tests.interop.serving import (
    CONFIG,
    OCTETS,
    Wire,
    begun,
    client_of,
    code,
    descriptor,
    finished,
    index,
    manifest,
    no_traceback,
    pushed,
    put,
    received,
)
from tests.server import Server

DATA = bytes(range(256)) * 5000
UNKNOWN = Digest.of(b"never pushed")
TLS = Path(__file__).parents[1] / "unit" / "registry" / "tls"
MAX_MANIFEST = 4 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("serve")
    with Server(directory / "root", directory / "log") as running:
        yield running
        assert running.stop() == 0
    no_traceback(running.log)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with client_of(server) as client:
        yield client


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Return the name of a repository that only this test uses."""
    return "test/" + re.sub("[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:200]


def sha512(data: bytes) -> Digest:
    return Digest.parse("sha512:" + hashlib.sha512(data).hexdigest())


def test_v2_names_the_api_version(client: httpx.Client) -> None:
    """GET /v2/ returns 200 and the version of the API."""
    for path in ("/v2/", "/v2"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["Docker-Distribution-Api-Version"]) == (200, "registry/2.0")
        assert client.head(path).status_code == 200


# Pushing blobs


def monolithic(client: httpx.Client, name: str, data: bytes) -> None:
    finished(client, begun(client, name), data, data)


def single(client: httpx.Client, name: str, data: bytes) -> None:
    answer = client.post(f"/v2/{name}/blobs/uploads/", params={"digest": Digest.of(data)}, content=data, headers=OCTETS)
    assert (answer.status_code, answer.headers["Location"]) == (201, f"/v2/{name}/blobs/{Digest.of(data)}")


def in_chunks(client: httpx.Client, name: str, data: bytes) -> None:
    location = begun(client, name)
    for at in range(0, len(data), 300_000):
        chunk = data[at : at + 300_000]
        answer = client.patch(
            location, content=chunk, headers={"Content-Range": f"{at}-{at + len(chunk) - 1}", **OCTETS}
        )
        assert (answer.status_code, answer.headers["Range"]) == (202, f"0-{at + len(chunk) - 1}")
        location = answer.headers["Location"]
    finished(client, location, data)


def in_chunks_without_ranges(client: httpx.Client, name: str, data: bytes) -> None:
    location = begun(client, name)
    for at in range(0, len(data), 300_000):
        location = client.patch(location, content=data[at : at + 300_000]).headers["Location"]
    finished(client, location, data)


def in_chunks_the_last_with_put(client: httpx.Client, name: str, data: bytes) -> None:
    location = begun(client, name)
    half = len(data) // 2
    if half:
        location = client.patch(
            location, content=data[:half], headers={"Content-Range": f"bytes 0-{half - 1}/*"}
        ).headers["Location"]
    finished(client, location, data, data[half:])


def streamed(client: httpx.Client, name: str, data: bytes) -> None:
    answer = client.patch(begun(client, name), content=iter([data[:10], data[10:70_000], data[70_000:]]))
    assert answer.status_code == 202
    finished(client, answer.headers["Location"], data)


def streamed_with_put(client: httpx.Client, name: str, data: bytes) -> None:
    answer = client.put(begun(client, name), params={"digest": Digest.of(data)}, content=iter([data[:10], data[10:]]))
    assert answer.status_code == 201


WAYS = [
    monolithic,
    single,
    in_chunks,
    in_chunks_without_ranges,
    in_chunks_the_last_with_put,
    streamed,
    streamed_with_put,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda w: w.__name__)
@pytest.mark.parametrize("data", [b"", b"x", DATA], ids=["empty", "one byte", "1.2 MB"])
def test_a_blob_comes_back_as_it_was_pushed(client: httpx.Client, name: str, way: Any, data: bytes) -> None:
    """A blob that was pushed in any way is served with its bytes, its digest and its size."""
    blob = f"/v2/{name}/blobs/{Digest.of(data)}"
    assert code(client.get(blob)) == (404, "BLOB_UNKNOWN")
    way(client, name, data)
    got = client.get(blob)
    assert (got.status_code, got.content) == (200, data)
    assert got.headers["Docker-Content-Digest"] == Digest.of(data)
    assert got.headers["Content-Length"] == str(len(data))
    head = client.head(blob)
    assert (head.status_code, head.headers["Content-Length"], head.content) == (200, str(len(data)), b"")
    assert head.headers["Docker-Content-Digest"] == Digest.of(data)


def test_blobs_with_sha512_are_accepted(client: httpx.Client, name: str) -> None:
    """A blob can be pushed and pulled by a sha512 digest."""
    digest = pushed(client, name, DATA, sha512(DATA))
    got = client.get(f"/v2/{name}/blobs/{digest}")
    assert (got.content, got.headers["Docker-Content-Digest"]) == (DATA, digest)
    answer = client.post(f"/v2/{name}/blobs/uploads/", params={"digest": sha512(b"x")}, content=b"x")
    assert (answer.status_code, answer.headers["Docker-Content-Digest"]) == (201, sha512(b"x"))


@pytest.mark.parametrize("said", ["0-9", "19-28", "11-20", "x", "10-8", "bytes=10-19", "10-20", "10-18", "-1-9"])
def test_a_chunk_that_is_not_the_next_one_is_refused(client: httpx.Client, name: str, said: str) -> None:
    """A chunk that does not begin at the upload's current offset is refused with 416. The upload can be continued."""
    location = begun(client, name)
    assert client.patch(location, content=DATA[:10], headers={"Content-Range": "0-9"}).status_code == 202
    for do, params in ((client.patch, {}), (client.put, {"digest": Digest.of(DATA)})):
        answer = do(location, content=DATA[10:20], headers={"Content-Range": said}, params=params)
        assert code(answer) == (416, "BLOB_UPLOAD_INVALID")
    assert received(client, location) == 10
    assert client.patch(location, content=DATA[10:20], headers={"Content-Range": "10-19"}).headers["Range"] == "0-19"
    finished(client, location, DATA, DATA[20:])


def test_a_cancelled_upload_is_gone(client: httpx.Client, name: str) -> None:
    """After DELETE an upload no longer exists."""
    location = begun(client, name)
    client.patch(location, content=DATA)
    assert client.delete(location).status_code == 204
    for do in (client.get, client.patch, client.delete):
        assert code(do(location)) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert code(client.put(location, params={"digest": Digest.of(DATA)})) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_a_finished_upload_is_gone(client: httpx.Client, name: str) -> None:
    location = begun(client, name)
    finished(client, location, DATA, DATA)
    assert code(client.get(location)) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_an_upload_belongs_to_its_repository(client: httpx.Client, name: str) -> None:
    location = begun(client, name)
    assert code(client.get(location.replace(name, "another"))) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert code(client.patch(location.replace(name, "another"), content=b"x")) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert received(client, location) == 0


@pytest.mark.parametrize(
    "digest",
    ["", "x", "sha256:x", "sha256:" + "G" * 64, "sha256:" + "0" * 63, "md5:" + "0" * 32, "sha256:../../../etc/passwd"],
)
def test_an_invalid_digest_does_not_change_an_upload(client: httpx.Client, name: str, digest: str) -> None:
    """PUT with an invalid digest or without one is refused, and the upload can still be completed."""
    location = begun(client, name)
    client.patch(location, content=DATA[:100])
    assert code(client.put(location, params={"digest": digest}, content=DATA[100:])) == (400, "DIGEST_INVALID")
    assert code(client.put(location, content=DATA[100:])) == (400, "DIGEST_INVALID")
    assert received(client, location) == 100
    finished(client, location, DATA, DATA[100:])
    assert code(client.post(f"/v2/{name}/blobs/uploads/", params={"digest": digest}, content=b"x")) == (
        400,
        "DIGEST_INVALID",
    )


def test_other_bytes_than_the_digest_says_are_refused(client: httpx.Client, name: str) -> None:
    """Bytes that do not match the digest are refused, and the upload no longer exists."""
    location = begun(client, name)
    assert code(client.put(location, params={"digest": UNKNOWN}, content=DATA)) == (400, "DIGEST_INVALID")
    assert code(client.get(location)) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert code(client.post(f"/v2/{name}/blobs/uploads/", params={"digest": UNKNOWN}, content=DATA)) == (
        400,
        "DIGEST_INVALID",
    )
    for digest in (UNKNOWN, Digest.of(DATA)):
        assert client.head(f"/v2/{name}/blobs/{digest}").status_code == 404


# Mounting


def test_a_blob_is_mounted_from_another_repository(client: httpx.Client, name: str) -> None:
    """A POST with ``mount`` and ``from`` mounts the blob if the repository ``from`` has it.

    If not, an upload begins.
    """
    data = name.encode()
    digest = pushed(client, f"{name}/source", data)
    uploads = f"/v2/{name}/blobs/uploads/"
    for params in (
        {"mount": digest, "from": "nobody/has"},
        {"mount": UNKNOWN, "from": f"{name}/source"},
        {"mount": digest, "from": "../x"},
    ):
        answer = client.post(uploads, params=params)
        assert answer.status_code == 202
        assert client.head(f"/v2/{name}/blobs/{digest}").status_code == 404
        assert client.delete(answer.headers["Location"]).status_code == 204
    answer = client.post(uploads, params={"mount": digest, "from": f"{name}/source"})
    assert (answer.status_code, answer.headers["Location"]) == (201, f"/v2/{name}/blobs/{digest}")
    assert client.get(answer.headers["Location"]).content == data


def test_a_blob_is_mounted_without_from(client: httpx.Client, name: str) -> None:
    """Without ``from`` a blob is mounted from any repository that has it."""
    data = name.encode()
    answer = client.post(f"/v2/{name}/blobs/uploads/", params={"mount": Digest.of(data)})
    assert answer.status_code == 202
    finished(client, answer.headers["Location"], data, data)
    answer = client.post(f"/v2/{name}/other/blobs/uploads/", params={"mount": Digest.of(data)})
    assert answer.status_code == 201
    assert client.get(answer.headers["Location"]).content == data


# Pulling blobs


@pytest.fixture(scope="module")
def blob(client: httpx.Client) -> str:
    return f"/v2/pull/blobs/{pushed(client, 'pull', DATA)}"


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-99", 0, 100),
        ("bytes=100000-", 100_000, len(DATA)),
        ("bytes=-7", len(DATA) - 7, len(DATA)),
        (f"bytes=5-{len(DATA) + 5}", 5, len(DATA)),
        (f"bytes=-{len(DATA) + 5}", 0, len(DATA)),
    ],
)
def test_a_range_is_answered_with_206(client: httpx.Client, blob: str, asked: str, start: int, stop: int) -> None:
    """A request for a range gets status 206, the bytes of the range and a Content-Range header."""
    got = client.get(blob, headers={"Range": asked})
    assert (got.status_code, got.content) == (206, DATA[start:stop])
    assert got.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(DATA)}"
    assert got.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("asked", [f"bytes={len(DATA)}-", "bytes=9-8", "bytes=-0", "bytes=x"])
def test_a_range_outside_of_the_blob_is_416(client: httpx.Client, blob: str, asked: str) -> None:
    """A request for a range outside of the blob gets status 416 and the size of the blob."""
    answer = client.get(blob, headers={"Range": asked})
    assert code(answer)[0] == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(DATA)}"


def test_several_ranges_are_answered_with_everything(client: httpx.Client, blob: str) -> None:
    """A request for several ranges gets status 200 and the whole blob."""
    got = client.get(blob, headers={"Range": "bytes=0-1,5-6"})
    assert (got.status_code, got.content) == (200, DATA)


def test_if_range_compares_strong_etags(client: httpx.Client, blob: str) -> None:
    """The range is sent if If-Range equals the blob's ETag. Otherwise the whole blob is sent."""
    tag = client.head(blob).headers["ETag"]
    for condition, status in ((tag, 206), ('"other"', 200), (f"W/{tag}", 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200)):
        got = client.get(blob, headers={"Range": "bytes=1-2", "If-Range": condition})
        assert (got.status_code, got.content) == (status, DATA[1:3] if status == 206 else DATA)


def test_if_none_match_is_answered_with_304(client: httpx.Client, blob: str, name: str) -> None:
    """GET and HEAD of a blob or manifest return 304 if If-None-Match matches."""
    put(client, name, "v1", manifest())
    for path in (blob, f"/v2/{name}/manifests/v1"):
        tag = client.head(path).headers["ETag"]
        for condition in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            for method in ("GET", "HEAD"):
                got = client.request(method, path, headers={"If-None-Match": condition})
                assert (got.status_code, got.content, got.headers["ETag"]) == (304, b"", tag)
        assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_connections_stay_usable_after_a_304_and_a_head(server: Server, blob: str) -> None:
    with Wire(server.host) as wire:
        for line, headers, status, body in (
            (f"HEAD {blob}", (), 200, False),
            (f"GET {blob}", ("If-None-Match: *",), 304, False),
            (f"HEAD {blob}x", (), 400, False),
            (f"GET {blob}", ("Range: bytes=0-3",), 206, True),
        ):
            wire.send(line, *headers)
            assert wire.receive(body=body).status == status


# Manifests


def test_a_manifest_comes_back_as_it_was_pushed(client: httpx.Client, name: str) -> None:
    """A manifest is served byte for byte, by tag and by digest."""
    data = manifest(annotations={"é": "<&>"}) + b"\n"
    digest = Digest.of(data)
    for reference in ("v1", digest):
        answer = put(client, name, reference, data)
        assert (answer.status_code, answer.headers["Docker-Content-Digest"]) == (201, digest)
        assert "OCI-Subject" not in answer.headers
        assert client.get(answer.headers["Location"]).content == data
        for method in ("GET", "HEAD"):
            got = client.request(method, f"/v2/{name}/manifests/{reference}")
            assert (got.status_code, got.content) == (200, data if method == "GET" else b"")
            assert got.headers["Content-Type"] == IMAGE_MANIFEST
            assert got.headers["Content-Length"] == str(len(data))
            assert got.headers["Docker-Content-Digest"] == digest
    assert put(client, name, sha512(data), data).headers["Docker-Content-Digest"] == sha512(data)
    assert client.get(f"/v2/{name}/manifests/{sha512(data)}").content == data
    assert client.get(f"/v2/{name}/tags/list").json() == {"name": name, "tags": ["v1"]}


def test_tags_of_a_manifest_that_is_pushed_by_digest(client: httpx.Client, name: str) -> None:
    """If a manifest is pushed by digest, each ``tag`` parameter of the URL sets a tag."""
    answer = put(client, name, Digest.of(manifest()), manifest(), tag=["v1", "v2"])
    assert (answer.status_code, answer.headers["OCI-Tag"]) == (201, "v1, v2")
    assert client.get(f"/v2/{name}/manifests/v2").content == manifest()


def test_an_index_may_contain_an_index(client: httpx.Client, name: str) -> None:
    """An index is accepted if all of its manifests exist. A manifest of an index can be an index."""
    assert code(put(client, name, "all", index(manifest()), IMAGE_INDEX)) == (400, "MANIFEST_BLOB_UNKNOWN")
    put(client, name, "v1", manifest())
    inner = index(manifest())
    outer = index(inner, annotations={"is": "outer"})
    for data in (inner, outer):
        assert put(client, name, Digest.of(data), data, IMAGE_INDEX).status_code == 201
    assert client.get(f"/v2/{name}/manifests/{Digest.of(outer)}").content == outer


@pytest.mark.parametrize("size", [MAX_MANIFEST, MAX_MANIFEST + 1])
@pytest.mark.parametrize("chunked", [False, True], ids=["Content-Length", "chunked"])
def test_a_manifest_has_4_mib_at_most(client: httpx.Client, name: str, size: int, chunked: bool) -> None:
    """A manifest of 4 MiB is accepted. A manifest of one byte more is refused with 413."""
    pushed(client, name, CONFIG)
    data = manifest(annotations={"a": "x" * (size - len(manifest(annotations={"a": ""})))})
    content: Any = (data[at : at + 100_000] for at in range(0, size, 100_000)) if chunked else data
    answer = client.put(f"/v2/{name}/manifests/v1", content=content, headers={"Content-Type": IMAGE_MANIFEST})
    if size <= MAX_MANIFEST:
        assert answer.status_code == 201
        assert client.get(f"/v2/{name}/manifests/v1").content == data
    else:
        assert code(answer) == (413, "MANIFEST_INVALID")


@pytest.mark.parametrize(
    ("data", "media_type", "expected"),
    [
        (b"", IMAGE_MANIFEST, "MANIFEST_INVALID"),
        (b"{", IMAGE_MANIFEST, "MANIFEST_INVALID"),
        (b"[" * 100_000, IMAGE_MANIFEST, "MANIFEST_INVALID"),
        (b"null", IMAGE_MANIFEST, "MANIFEST_INVALID"),
        (manifest(), IMAGE_INDEX, "MANIFEST_INVALID"),
        (manifest(), "text/plain", "MANIFEST_INVALID"),
        (manifest(schemaVersion=1), IMAGE_MANIFEST, "MANIFEST_INVALID"),
        (manifest(layers=[{"digest": "sha256:../../../etc/passwd"}]), IMAGE_MANIFEST, "MANIFEST_INVALID"),
        (manifest(layers=[descriptor(b"never pushed")]), IMAGE_MANIFEST, "MANIFEST_BLOB_UNKNOWN"),
    ],
    ids=lambda x: ascii(x[:30]),
)
def test_what_is_not_a_manifest_is_refused(
    client: httpx.Client, name: str, data: bytes, media_type: str, expected: str
) -> None:
    """Bytes that are not a manifest of the given media type are refused with 400, and nothing is stored."""
    assert code(put(client, name, "v1", data, media_type)) == (400, expected)
    assert client.get(f"/v2/{name}/manifests/v1").status_code == 404


def test_invalid_references_of_manifests_are_refused(client: httpx.Client, name: str) -> None:
    """A manifest is refused if it is pushed with the digest of other bytes or with an invalid tag."""
    assert code(put(client, name, UNKNOWN, manifest())) == (400, "DIGEST_INVALID")
    assert code(put(client, name, "sha256:x", manifest())) == (400, "DIGEST_INVALID")
    assert code(put(client, name, "-v1", manifest())) == (400, "TAG_INVALID")
    assert code(put(client, name, "v" * 129, manifest())) == (400, "TAG_INVALID")
    assert put(client, name, "v" * 128, manifest()).status_code == 201


def test_unknown_things_have_their_error_codes(client: httpx.Client, name: str) -> None:
    """A request for something that does not exist gets 404 and the right error code."""
    expected = {
        f"/v2/{name}/manifests/v1": "MANIFEST_UNKNOWN",
        f"/v2/{name}/manifests/{UNKNOWN}": "MANIFEST_UNKNOWN",
        f"/v2/{name}/blobs/{UNKNOWN}": "BLOB_UNKNOWN",
        f"/v2/{name}/tags/list": "NAME_UNKNOWN",
        f"/v2/{name}/blobs/uploads/upload-{'0' * 32}": "BLOB_UPLOAD_UNKNOWN",
        "/": "NAME_UNKNOWN",
        "/v1/": "NAME_UNKNOWN",
        f"/v2/{name}": "NAME_UNKNOWN",
        f"/v2/{name}/manifests/": "NAME_UNKNOWN",
    }
    assert {path: code(client.get(path)) for path in expected} == {path: (404, text) for path, text in expected.items()}


@pytest.mark.parametrize(
    "repository",
    ["A", "a..b", "a_", "-a", "a//b", "a%20b", "a%2f", "%2e%2e", "a/%2e%2e/b", "a+b", "a%00", "é", "a" * 256],
)
def test_an_invalid_repository_name_is_refused(client: httpx.Client, repository: str) -> None:
    """An invalid name of a repository is refused with 400 and NAME_INVALID."""
    for method, path in (
        ("GET", "tags/list"), ("GET", "manifests/v1"), ("PUT", "manifests/v1"), ("DELETE", "manifests/v1"),
        ("POST", "blobs/uploads/"),
        ("GET", f"blobs/{UNKNOWN}"), ("DELETE", f"blobs/{UNKNOWN}"), ("GET", f"referrers/{UNKNOWN}"),
    ):  # fmt: skip
        assert code(client.request(method, f"/v2/{repository}/{path}")) == (400, "NAME_INVALID")


# Deleting


def test_tags_manifests_and_blobs_are_deleted(client: httpx.Client, name: str) -> None:
    """Tags, manifests and blobs can be deleted, and do not exist afterwards."""
    data = manifest(annotations={"name": name})
    put(client, name, "v1", data)
    put(client, name, "v2", data)
    put(client, name, "v3", data)
    manifests = f"/v2/{name}/manifests"
    assert client.delete(f"{manifests}/v1").status_code == 202
    assert code(client.delete(f"{manifests}/v1")) == (404, "MANIFEST_UNKNOWN")
    assert client.get(f"/v2/{name}/tags/list").json()["tags"] == ["v2", "v3"]
    assert client.delete(f"{manifests}/{Digest.of(data)}").status_code == 202
    assert code(client.delete(f"{manifests}/{Digest.of(data)}")) == (404, "MANIFEST_UNKNOWN")
    assert client.get(f"/v2/{name}/tags/list").json()["tags"] == []
    blob = f"/v2/{name}/blobs/{Digest.of(CONFIG)}"
    assert client.delete(blob).status_code == 202
    assert code(client.delete(blob)) == (404, "BLOB_UNKNOWN")
    assert client.get(blob).status_code == 404


# Lists


def paged(client: httpx.Client, path: str, key: str, **params: Any) -> list[list[Any]]:
    """Read all pages of a list by following the Link headers."""
    pages = []
    answer = client.get(path, params=params)
    while True:
        assert answer.status_code == 200
        pages.append(answer.json()[key])
        link = answer.headers.get("Link")
        if link is None:
            return pages
        found = re.fullmatch('<(/v2/[^>]+)>; rel="next"', link)
        assert found is not None
        answer = client.get(found[1])


def test_tags_in_pages(client: httpx.Client, name: str) -> None:
    """Tags are listed in order. A page has at most ``n`` tags, and begins with the tag that follows ``last``."""
    tags = [f"v{n:02}" for n in range(7)]
    put(client, name, Digest.of(manifest()), manifest(), tag=tags)
    path = f"/v2/{name}/tags/list"
    assert paged(client, path, "tags") == [tags]
    assert paged(client, path, "tags", n=3) == [tags[:3], tags[3:6], tags[6:]]
    assert paged(client, path, "tags", n=7) == [tags]
    assert paged(client, path, "tags", n=100) == [tags]
    assert paged(client, path, "tags", n=0) == [[]]
    assert paged(client, path, "tags", n=4, last="v02") == [tags[3:]]
    assert paged(client, path, "tags", last="v02x") == [tags[3:]]
    assert paged(client, path, "tags", n="0" * 20 + "5", x="é&", last="\0") == [tags[:5], tags[5:]]
    for wrong in ("-1", "x", "1.5", "²", "0x1"):
        assert code(client.get(path, params={"n": wrong})) == (400, "PAGINATION_NUMBER_INVALID")


def test_the_catalog_in_pages(client: httpx.Client, name: str) -> None:
    """Repositories are listed in order. A page has at most ``n`` repositories."""
    for letter in "abc":
        pushed(client, f"{name}/{letter}", b"x")
    everything = [x for page in paged(client, "/v2/_catalog", "repositories") for x in page]
    assert everything == sorted(everything)
    assert {f"{name}/{letter}" for letter in "abc"} <= set(everything)
    assert [x for page in paged(client, "/v2/_catalog", "repositories", n=2) for x in page] == everything


# Referrers


def test_referrers_of_a_manifest_are_listed(client: httpx.Client, name: str) -> None:
    """The referrers of a digest are listed with their annotations, and filtered by artifactType."""
    subject = Digest.of(manifest())
    path = f"/v2/{name}/referrers/{subject}"
    empty = client.get(path)
    assert (empty.status_code, empty.headers["Content-Type"]) == (200, IMAGE_INDEX)
    assert empty.json() == {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []}
    about = {"subject": descriptor(manifest(), IMAGE_MANIFEST)}
    signature, other = (
        manifest(artifactType="text/sig", annotations={"a": "b"}, **about),
        index(artifactType="text/other", **about),
    )
    for data, media_type in ((signature, IMAGE_MANIFEST), (other, IMAGE_INDEX)):
        answer = put(client, name, Digest.of(data), data, media_type)
        assert (answer.status_code, answer.headers["OCI-Subject"]) == (201, subject)
    listed = {**descriptor(signature, IMAGE_MANIFEST), "artifactType": "text/sig", "annotations": {"a": "b"}}
    everything = client.get(path)
    assert "OCI-Filters-Applied" not in everything.headers
    assert {d["digest"] for d in everything.json()["manifests"]} == {Digest.of(signature), Digest.of(other)}
    filtered = client.get(path, params={"artifactType": "text/sig"})
    assert (filtered.headers["OCI-Filters-Applied"], filtered.json()["manifests"]) == ("artifactType", [listed])
    assert client.get(path, params={"artifactType": "text/none"}).json()["manifests"] == []
    client.delete(f"/v2/{name}/manifests/{Digest.of(other)}")
    assert client.get(path).json()["manifests"] == [listed]
    assert code(client.get(f"/v2/{name}/referrers/v1")) == (400, "DIGEST_INVALID")


def test_more_than_4_mib_of_referrers_come_in_pages(client: httpx.Client, name: str) -> None:
    """A list of referrers that exceeds 4 MiB is served in pages."""
    about = {"artifactType": "text/sig", "subject": descriptor(manifest(), IMAGE_MANIFEST)}
    expected = []
    for n in range(6):
        data = manifest(**about, annotations={"n": str(n), "fill": "x" * (1 << 20)})
        expected.append(put(client, name, Digest.of(data), data).headers["Docker-Content-Digest"])
    put(client, name, "other", manifest(**{**about, "artifactType": "text/other"}))
    pages = paged(client, f"/v2/{name}/referrers/{Digest.of(manifest())}", "manifests", artifactType="text/sig")
    assert [len(page) for page in pages] == [3, 3]
    assert [d["digest"] for page in pages for d in page] == sorted(expected)


# Methods


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v2/", "GET, HEAD"),
        ("/v2/_catalog", "GET, HEAD"),
        ("/v2/a/tags/list", "GET, HEAD"),
        (f"/v2/a/referrers/{UNKNOWN}", "GET, HEAD"),
        ("/v2/a/manifests/v1", "DELETE, GET, HEAD, PUT"),
        (f"/v2/a/blobs/{UNKNOWN}", "DELETE, GET, HEAD"),
        ("/v2/a/blobs/uploads/", "POST"),
        ("/v2/a/blobs/uploads/x", "DELETE, GET, HEAD, PATCH, PUT"),
    ],
)
def test_other_methods_are_answered_with_405(client: httpx.Client, path: str, allowed: str) -> None:
    """A method that a path does not support gets status 405 and an Allow header."""
    for method in ({"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - set(allowed.split(", "))) | {"LINK"}:
        answer = client.request(method, path)
        assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
        assert code(answer) == (405, "UNSUPPORTED")


# Options


def test_read_only_refuses_every_write(tmp_path: Path) -> None:
    """With ``--read-only`` everything can be pulled, and every write is answered with 405."""
    with Server(tmp_path / "root", tmp_path / "log") as server, client_of(server) as client:
        digest = pushed(client, "a", DATA)
        put(client, "a", "v1", manifest())
        location = begun(client, "a")
    with Server(tmp_path / "root", tmp_path / "log", "--read-only") as server:
        with client_of(server) as client:
            assert client.get(f"/v2/a/blobs/{digest}").content == DATA
            assert client.get("/v2/a/manifests/v1").content == manifest()
            assert client.get("/v2/a/tags/list").json()["tags"] == ["v1"]
            for method, path in (
                ("POST", "/v2/a/blobs/uploads/"), ("POST", f"/v2/b/blobs/uploads/?mount={digest}"), ("PATCH", location),
                ("DELETE", location),
                ("PUT", f"{location}?digest={UNKNOWN}"), ("PUT", "/v2/a/manifests/v2"),
                ("DELETE", "/v2/a/manifests/v1"),
                ("DELETE", f"/v2/a/blobs/{digest}"),
            ):  # fmt: skip
                answer = client.request(method, path, content=b"" if method == "DELETE" else b"{}")
                assert code(answer) == (405, "UNSUPPORTED")
                assert not {"POST", "PUT", "PATCH", "DELETE"} & set(answer.headers["Allow"].split(", "))
            assert client.get("/v2/_catalog").json()["repositories"] == ["a"]
        assert server.stop() == 0
    no_traceback(server.log)


def test_htpasswd_asks_for_a_login(tmp_path: Path) -> None:
    """With ``--htpasswd`` every request needs a user name and a password from the file."""
    users = tmp_path / "users"
    users.write_text(f"ann:{bcrypt.hashpw(b'secret', bcrypt.gensalt(4)).decode()}\n")
    with Server(tmp_path / "root", tmp_path / "log", "--htpasswd", str(users)) as server:
        with client_of(server) as client:
            for auth in (None, ("ann", "wrong"), ("eve", "secret")):
                for method, path in (
                    ("GET", "/v2/"),
                    ("POST", "/v2/a/blobs/uploads/"),
                    ("GET", "/none"),
                    ("PUT", "/v2/A/manifests/x"),
                ):
                    answer = client.request(method, path, auth=auth)
                    assert code(answer) == (401, "UNAUTHORIZED")
                    assert answer.headers["WWW-Authenticate"] == 'Basic realm="kitfs"'
        with client_of(server, auth=("ann", "secret")) as client:
            assert client.get(f"/v2/a/blobs/{pushed(client, 'a', DATA)}").content == DATA
            users.write_text(f"eve:{bcrypt.hashpw(b'other', bcrypt.gensalt(4)).decode()}\n")
            assert client.get("/v2/").status_code == 401
            assert client.get("/v2/", auth=("eve", "other")).status_code == 200
        assert server.stop() == 0
    no_traceback(server.log)
    log = server.log.read_text()
    assert ' ann "' in log
    assert "secret" not in log


def test_tls_serves_https(tmp_path: Path) -> None:
    """With ``--tls-cert`` and ``--tls-key`` the server speaks HTTPS only."""
    pem = str(TLS / "server.pem")
    context = ssl.create_default_context(cafile=str(TLS / "ca.pem"))
    with Server(tmp_path / "root", tmp_path / "log", "--tls-cert", pem, "--tls-key", pem) as server:
        assert server.scheme == "https"
        with client_of(server, verify=context) as client:
            big = DATA * 20
            blob = f"/v2/a/blobs/{pushed(client, 'a', big)}"
            assert client.get(blob).content == big
            got = client.get(blob, headers={"Range": "bytes=1000000-"})
            assert (got.status_code, got.content) == (206, big[1_000_000:])
            assert put(client, "a", "v1", manifest()).status_code == 201
        with Wire(server.host) as plain:
            plain.send("GET /v2/")
            assert plain.ended()
        with Wire(server.host) as silent, Wire(server.host, context=context) as idle:
            idle.send("GET /v2/")
            assert json.loads(idle.receive().body) == {}
            assert server.stop() == 0
            assert silent.ended()
    no_traceback(server.log)
