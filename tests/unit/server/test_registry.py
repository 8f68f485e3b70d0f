"""The registry is tested without HTTP: the content of repositories, invalid names, and damaged files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kitfs.errors import IntegrityError, StoreError
from kitfs.oci.manifest import IMAGE_INDEX, IMAGE_MANIFEST, MAX_MANIFEST
from kitfs.oci.names import Digest
from kitfs.server.api_errors import ApiError
from kitfs.server.manifests import PushedManifest
from kitfs.server.registry import Registry
from kitfs.store.store import Store

DATA = bytes(range(256)) * 100
CONFIG = b'{"kit": 1}'
UNKNOWN = Digest.of(b"never pushed")


def sha512(data: bytes) -> Digest:
    return Digest.parse("sha512:" + hashlib.sha512(data).hexdigest())


def pushed(registry: Registry, name: str, data: bytes, digest: Digest | None = None) -> Digest:
    ingest = registry.begin(name)
    ingest.write(data)
    return registry.finish(name, ingest, str(digest or Digest.of(data)))


def pulled(registry: Registry, name: str, digest: str) -> bytes:
    found, file = registry.blob(name, digest)
    assert found == digest
    with contextlib.closing(file):
        return file.readall()


def descriptor(data: bytes, media_type: str = "application/octet-stream") -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}


def manifest(**more: Any) -> bytes:
    parts = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": descriptor(CONFIG),
        "layers": [descriptor(DATA)],
    }
    return json.dumps({k: v for k, v in {**parts, **more}.items() if v is not None}).encode()


def index(*manifests: bytes, **more: Any) -> bytes:
    listed = [descriptor(m, IMAGE_MANIFEST) for m in manifests]
    return json.dumps({"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": listed, **more}).encode()


def put(
    registry: Registry, name: str, reference: str, data: bytes, content_type: str = "", tags: tuple[str, ...] = ()
) -> PushedManifest:
    for part in (CONFIG, DATA):
        pushed(registry, name, part)
    return registry.put_manifest(name, reference, data, content_type, tags)


def referring(
    registry: Registry, name: str, digest: str, kind: str | None = None, last: str | None = None
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(registry.referrers(name, digest, kind, last).data)["manifests"]
    return found


def refusal(do: Callable[..., object], *args: Any) -> tuple[int, str]:
    with pytest.raises(ApiError) as caught:
        do(*args)
    errors = json.loads(caught.value.body())["errors"]
    assert [e["code"] for e in errors] == [caught.value.code]
    return caught.value.status, caught.value.code


def files(root: str | Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(at, name), root) for at, below, names in os.walk(root) for name in below + names
    }


# Blobs


@pytest.mark.parametrize("digest", [Digest.of(DATA), sha512(DATA)], ids=lambda d: d.algorithm)
def test_a_pushed_blob_belongs_to_its_repository_only(registry: Registry, digest: Digest) -> None:
    assert pushed(registry, "a/b", DATA, digest) == digest
    assert pulled(registry, "a/b", digest) == DATA
    assert refusal(registry.blob, "a", digest) == (404, "BLOB_UNKNOWN")
    assert refusal(registry.blob, "a/b/c", digest) == (404, "BLOB_UNKNOWN")
    assert refusal(registry.blob, "a/b", UNKNOWN) == (404, "BLOB_UNKNOWN")


def test_wrong_bytes_are_dropped(registry: Registry, store: Store) -> None:
    ingest = registry.begin("a")
    ingest.write(DATA)
    with pytest.raises(IntegrityError):
        registry.finish("a", ingest, str(UNKNOWN))
    assert refusal(registry.progress, "a", ingest.name) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert refusal(registry.blob, "a", UNKNOWN) == (404, "BLOB_UNKNOWN")
    assert refusal(registry.blob, "a", Digest.of(DATA)) == (404, "BLOB_UNKNOWN")
    assert os.listdir(os.path.join(store.root, "ingest")) == []


def test_an_upload_is_its_repositorys_and_ends_once(registry: Registry) -> None:
    ingest = registry.begin("a")
    ingest.write(DATA[:100])
    ingest.close()
    assert registry.progress("a", ingest.name) == 100
    assert refusal(registry.progress, "b", ingest.name) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert refusal(registry.resume, "b", ingest.name) == (404, "BLOB_UPLOAD_UNKNOWN")
    again = registry.resume("a", ingest.name)
    again.write(DATA[100:])
    assert registry.finish("a", again, str(Digest.of(DATA))) == Digest.of(DATA)
    assert refusal(registry.resume, "a", ingest.name) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_an_upload_makes_no_repository(registry: Registry) -> None:
    registry.begin("a").discard()
    assert registry.catalog(None, None).names == []


@pytest.mark.parametrize(
    "upload",
    ["..", "../blobs", "upload-", "new-" + "0" * 32, "upload-" + "0" * 32, "\0", "upload-" + "A" * 32, "x" * 5000],
)
def test_what_is_no_upload_is_unknown(registry: Registry, upload: str) -> None:
    assert refusal(registry.progress, "a", upload) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert refusal(registry.resume, "a", upload) == (404, "BLOB_UPLOAD_UNKNOWN")


def test_a_deleted_blob_leaves_the_other_repositories_alone(registry: Registry) -> None:
    digest = pushed(registry, "a", DATA)
    assert registry.mount("b", digest, "a") == digest
    registry.delete_blob("a", digest)
    assert refusal(registry.blob, "a", digest) == (404, "BLOB_UNKNOWN")
    assert refusal(registry.delete_blob, "a", digest) == (404, "BLOB_UNKNOWN")
    assert pulled(registry, "b", digest) == DATA


def test_a_mount_needs_a_repository_that_has_the_blob(registry: Registry) -> None:
    digest = pushed(registry, "a", DATA)
    assert registry.mount("b", digest, "c") is None
    assert registry.mount("b", digest, "../a") is None
    assert registry.mount("b", digest, "") is None
    assert registry.mount("b", UNKNOWN, "a") is None
    assert registry.mount("b", UNKNOWN, None) is None
    assert refusal(registry.blob, "b", digest) == (404, "BLOB_UNKNOWN")
    assert registry.mount("b", digest, None) == digest
    assert registry.mount("c", digest, "b") == digest
    assert pulled(registry, "c", digest) == DATA
    for repository in ("a", "b", "c"):
        registry.delete_blob(repository, digest)
    assert registry.mount("a", digest, None) is None  # the bytes still exist, but belong to no repository


def test_what_a_repository_has_is_pinned(registry: Registry, store: Store) -> None:
    kept, deleted = pushed(registry, "a", DATA * 40), pushed(registry, "a", DATA * 41)
    registry.mount("b", kept, "a")
    registry.delete_blob("a", kept)
    registry.delete_blob("a", deleted)
    store.evict(at_least=1 << 40)
    assert (store.has_sealed(kept), store.has_sealed(deleted)) == (True, False)


def test_a_blob_that_is_gone_from_the_store_is_unknown_and_may_be_pushed_again(
    registry: Registry, store: Store
) -> None:
    digest = pushed(registry, "a", DATA)
    os.unlink(os.path.join(store.path(digest), "sealed"))
    assert refusal(registry.blob, "a", digest) == (404, "BLOB_UNKNOWN")
    assert registry.mount("b", digest, "a") is None
    pushed(registry, "a", DATA)
    assert pulled(registry, "a", digest) == DATA


# Names


OUTSIDE = (
    "..", "../x", "a/../b", "a/..", "/a", "a/", "a//b", ".", "./a", "a/.", "a+b", "A", "a b", "a\0b", "\0", "a\nb",
    "a%2fb", "a:b", "a@b", "-a", "a-",
    "a__", "a___b", "a..b", "a~", "é", "\udcff", "", "a" * 256, "a/" * 127 + "aa",
)  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE, ids=lambda n: ascii(n[:20]))
def test_what_is_no_name_is_refused_everywhere_and_touches_nothing(
    registry: Registry, store: Store, tmp_path: Path, name: str
) -> None:
    digest = pushed(registry, "a", DATA)
    before = files(tmp_path)
    for do, *args in (
        (registry.blob, digest), (registry.delete_blob, digest), (registry.mount, digest, "a"),
        (registry.mount, digest, None), (registry.begin,),
        (registry.manifest, "v1"), (registry.put_manifest, "v1", manifest(), ""), (registry.delete_manifest, "v1"),
        (registry.tags, None, None),
        (registry.referrers, digest, None),
    ):  # fmt: skip
        assert refusal(do, name, *args) == (400, "NAME_INVALID")
    assert registry.mount("b", digest, name) is None
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["a", "a/b", "a" * 255, "a/" * 127 + "a", "a-b/c__d/e.f/0", "blobs/uploads", "tags/list", "a--b", "v2"]
)
def test_names(registry: Registry, name: str) -> None:
    done = put(registry, name, "v1", manifest())
    assert registry.manifest(name, "v1").digest == done.digest
    assert registry.catalog(None, None).names == [name]


REFERENCES = ("..", ".", "../x", "a/b", "a+b", "-a", ".a", "a~", "a\0", "\0", "a b", "é", "\udcff", "", "a" * 129)


@pytest.mark.parametrize("tag", REFERENCES, ids=lambda n: ascii(n[:20]))
def test_what_is_no_tag(registry: Registry, tmp_path: Path, tag: str) -> None:
    put(registry, "a", "v1", manifest())
    before = files(tmp_path)
    assert refusal(registry.manifest, "a", tag) == (404, "MANIFEST_UNKNOWN")
    assert refusal(registry.delete_manifest, "a", tag) == (404, "MANIFEST_UNKNOWN")
    assert refusal(registry.put_manifest, "a", tag, manifest(), "") == (400, "TAG_INVALID")
    assert refusal(registry.put_manifest, "a", "v2", manifest(), "", ("fine", tag)) == (400, "TAG_INVALID")
    assert files(tmp_path) == before
    assert registry.tags("a", None, None).names == ["v1"]


DIGESTS = (
    "sha256:", "sha256:" + "0" * 63, "sha256:" + "0" * 65, "sha256:" + "A" * 64, "sha512:" + "0" * 64,
    "md5:" + "0" * 32, ":", "a:b",
    "sha256:../../../../x", "sha256:" + "0" * 63 + "\n", "sha256:" + "０" * 64, "blake3:" + "0" * 64,
)  # fmt: skip


@pytest.mark.parametrize("digest", DIGESTS, ids=lambda n: ascii(n[:20]))
def test_what_is_no_digest(registry: Registry, tmp_path: Path, digest: str) -> None:
    put(registry, "a", "v1", manifest())
    ingest = registry.begin("a")
    before = files(tmp_path)
    for do, *args in (
        (registry.blob,), (registry.delete_blob,), (registry.manifest,), (registry.put_manifest, manifest(), ""),
        (registry.delete_manifest,), (registry.referrers, None),
    ):  # fmt: skip
        assert refusal(do, "a", digest, *args) == (400, "DIGEST_INVALID")
    assert refusal(registry.finish, "a", ingest, digest) == (400, "DIGEST_INVALID")
    assert registry.mount("b", digest, "a") is None
    assert registry.mount("b", digest, None) is None
    assert files(tmp_path) == before
    ingest.discard()


# Manifests


@pytest.mark.parametrize("digest_of", [Digest.of, sha512], ids=["sha256", "sha512"])
def test_a_manifest_by_its_digest(registry: Registry, digest_of: Callable[[bytes], Digest]) -> None:
    data = manifest()
    digest = digest_of(data)
    assert put(registry, "a", digest, data, tags=("v1", "v2")) == (digest, None, ("v1", "v2"))
    for reference in (digest, "v1", "v2"):
        found = registry.manifest("a", reference)
        assert (found.digest, found.media_type, found.data) == (digest, IMAGE_MANIFEST, data)
    assert registry.tags("a", None, None).names == ["v1", "v2"]
    assert refusal(registry.manifest, "b", digest) == (404, "MANIFEST_UNKNOWN")
    assert refusal(registry.put_manifest, "a", UNKNOWN, data, "") == (400, "DIGEST_INVALID")


def test_a_tag_moves(registry: Registry) -> None:
    first, second = put(registry, "a", "v1", manifest()), put(registry, "a", "v1", manifest(annotations={"n": "2"}))
    assert registry.manifest("a", "v1").digest == second.digest != first.digest
    assert registry.manifest("a", first.digest).data == manifest()


def test_a_manifest_is_served_as_it_came(registry: Registry) -> None:
    data = b"\n " + manifest(mediaType=None, more={"\u00e9": [1.50]}) + b"\n"
    put(registry, "a", "v1", data, "Application/vnd.oci.image.manifest.v1+json; charset=utf-8")
    assert registry.manifest("a", "v1").data == data
    assert registry.manifest("a", "v1").media_type == IMAGE_MANIFEST


@pytest.mark.parametrize(
    ("data", "content_type"),
    [
        (b"", ""),
        (b"{", ""),
        (b"[]", ""),
        (b"null", ""),
        (b"\xff", ""),
        (b"{}", ""),
        (b'{"schemaVersion": 2}', ""),
        (b'{"schemaVersion": NaN}', ""),
        (b"[" * 100_000, ""),
        (manifest(schemaVersion=1), ""),
        (manifest(schemaVersion="2"), ""),
        (manifest(mediaType="text/plain"), ""),
        (manifest(mediaType="text/plain"), "text/plain"),
        (manifest(mediaType=None), "text/plain"),
        (manifest(), IMAGE_INDEX),
        (manifest(config=None), ""),
        (manifest(config=[]), ""),
        (manifest(config={"digest": 7}), ""),
        (manifest(layers={}), ""),
        (manifest(layers=["x"]), ""),
        (manifest(layers=[{"digest": "sha256:../../x"}]), ""),
        (manifest(subject="x"), ""),
        (manifest(subject={"digest": "../x"}), ""),
        (manifest(artifactType=["x"]), ""),
        (manifest(config={**descriptor(CONFIG), "mediaType": 7}), ""),
        (manifest(annotations="x"), ""),
        (manifest(annotations={"a": 1}), ""),
        (index(manifests="x"), ""),
        (index(manifests=[7]), ""),
        (index(manifests=[{}]), ""),
    ],
    ids=lambda x: ascii(x[:40]),
)
def test_what_is_no_manifest(registry: Registry, data: bytes, content_type: str) -> None:
    for part in (CONFIG, DATA):
        pushed(registry, "a", part)
    assert refusal(registry.put_manifest, "a", "v1", data, content_type) == (400, "MANIFEST_INVALID")
    assert registry.tags("a", None, None).names == []


def test_a_manifest_of_4_mib_and_one_byte_more(registry: Registry) -> None:
    room = MAX_MANIFEST - len(manifest(annotations={"a": ""}))
    data = manifest(annotations={"a": "x" * room})
    assert put(registry, "a", "v1", data).digest == Digest.of(data)
    assert registry.manifest("a", "v1").data == data
    assert refusal(put, registry, "a", "v1", manifest(annotations={"a": "x" * (room + 1)})) == (413, "MANIFEST_INVALID")


def test_a_manifest_whose_parts_are_missing_makes_no_repository(registry: Registry) -> None:
    pushed(registry, "b", CONFIG)
    assert refusal(registry.put_manifest, "a", "v1", manifest(), "") == (400, "MANIFEST_BLOB_UNKNOWN")
    assert refusal(registry.put_manifest, "a", "v1", index(manifest()), "") == (400, "MANIFEST_BLOB_UNKNOWN")
    assert registry.catalog(None, None).names == ["b"]
    assert refusal(registry.tags, "a", None, None) == (404, "NAME_UNKNOWN")
    with pytest.raises(ApiError) as caught:
        registry.put_manifest("b", "v1", manifest(), "")
    assert caught.value.detail == [{"digest": str(Digest.of(DATA))}]


def test_layers_that_are_elsewhere_may_be_missing(registry: Registry) -> None:
    away = {**descriptor(b"away"), "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar"}
    linked = {**descriptor(b"linked"), "urls": ["https://example.org/x"]}
    put(registry, "a", "v1", manifest(layers=[away, linked]))
    assert refusal(registry.put_manifest, "a", "v2", manifest(layers=[descriptor(b"away")]), "") == (
        400,
        "MANIFEST_BLOB_UNKNOWN",
    )


def test_an_index_needs_its_manifests(registry: Registry) -> None:
    put(registry, "a", "v1", manifest())
    data = index(manifest())
    done = registry.put_manifest("a", "all", data, "", ())
    assert registry.manifest("a", "all") == registry.manifest("a", done.digest)
    assert registry.manifest("a", "all").media_type == IMAGE_INDEX
    assert registry.put_manifest("a", "none", index(), "").digest == Digest.of(index())
    pushed(registry, "a", b"a blob is not a manifest")
    assert refusal(registry.put_manifest, "a", "v2", index(b"a blob is not a manifest"), "") == (
        400,
        "MANIFEST_BLOB_UNKNOWN",
    )


def test_a_deleted_manifest_takes_its_tags_along(registry: Registry) -> None:
    done = put(registry, "a", "v1", manifest(), tags=("v2", "v3"))
    other = put(registry, "a", "w", manifest(layers=[]))
    registry.delete_manifest("a", "v3")
    assert registry.manifest("a", done.digest).data == manifest()
    assert refusal(registry.delete_manifest, "a", "v3") == (404, "MANIFEST_UNKNOWN")
    registry.delete_manifest("a", done.digest)
    assert registry.tags("a", None, None).names == ["w"]
    for reference in (done.digest, "v1", "v2", "v3"):
        assert refusal(registry.manifest, "a", reference) == (404, "MANIFEST_UNKNOWN")
    assert refusal(registry.delete_manifest, "a", done.digest) == (404, "MANIFEST_UNKNOWN")
    assert refusal(registry.delete_manifest, "nobody", done.digest) == (404, "NAME_UNKNOWN")
    assert registry.manifest("a", other.digest).data == manifest(layers=[])
    assert registry.catalog(None, None).names == ["a"]


# Referrers


def test_referrers(registry: Registry) -> None:
    subject = put(registry, "a", "v1", manifest())
    assert referring(registry, "a", subject.digest) == []
    about = {"subject": descriptor(manifest())}
    typed = manifest(artifactType="text/x", annotations={"a": "b", "é": "ü"}, **about)
    by_config = manifest(config={**descriptor(CONFIG), "mediaType": "text/y"}, **about)
    listed = index(artifactType="text/x", **about)
    for data in (typed, by_config, listed):
        assert put(registry, "a", Digest.of(data), data).subject == subject.digest
    expected = [
        {
            "mediaType": IMAGE_MANIFEST,
            "digest": Digest.of(typed),
            "size": len(typed),
            "artifactType": "text/x",
            "annotations": {"a": "b", "é": "ü"},
        },
        {"mediaType": IMAGE_MANIFEST, "digest": Digest.of(by_config), "size": len(by_config), "artifactType": "text/y"},
        {"mediaType": IMAGE_INDEX, "digest": Digest.of(listed), "size": len(listed), "artifactType": "text/x"},
    ]
    expected.sort(key=lambda d: str(d["digest"]))
    assert referring(registry, "a", subject.digest) == expected
    assert referring(registry, "a", subject.digest, "text/x") == [d for d in expected if d["artifactType"] == "text/x"]
    assert referring(registry, "a", subject.digest, "text/z") == []
    assert referring(registry, "b", subject.digest) == []
    assert referring(registry, "a", subject.digest, None, str(expected[0]["digest"])) == expected[1:]
    registry.delete_manifest("a", Digest.of(by_config))
    assert referring(registry, "a", subject.digest) == [d for d in expected if d["artifactType"] == "text/x"]


def test_the_subject_may_come_later_or_never(registry: Registry) -> None:
    later = manifest(annotations={"comes": "later"})
    data = manifest(subject=descriptor(later))
    assert put(registry, "a", "sig", data).subject == Digest.of(later)
    assert [d["digest"] for d in referring(registry, "a", Digest.of(later))] == [Digest.of(data)]
    put(registry, "a", "v1", later)
    registry.delete_manifest("a", Digest.of(later))
    assert len(referring(registry, "a", Digest.of(later))) == 1


def test_a_subject_of_sha512(registry: Registry) -> None:
    data = manifest(subject={**descriptor(manifest()), "digest": sha512(manifest())})
    put(registry, "a", sha512(data), data)
    assert [d["digest"] for d in referring(registry, "a", sha512(manifest()))] == [sha512(data)]


def test_referrers_come_in_pages_that_clients_can_read(registry: Registry) -> None:
    subject = Digest.of(manifest())
    pushed_digests = []
    for n in range(5):
        data = manifest(subject=descriptor(manifest()), annotations={"fill": "FILL", "n": str(n)}).replace(
            b"FILL", "é".encode() * 800_000
        )
        pushed_digests.append(put(registry, "a", Digest.of(data), data).digest)
    seen: list[str] = []
    last = None
    pages = 0
    while True:
        page = registry.referrers("a", subject, None, last)
        assert len(page.data) <= MAX_MANIFEST
        seen += [d["digest"] for d in json.loads(page.data)["manifests"]]
        pages += 1
        last = page.next
        if last is None:
            break
    assert seen == sorted(pushed_digests)
    assert pages == 3


def test_a_referrer_larger_than_a_page_is_a_page(registry: Registry) -> None:
    """A referrer that is larger than a page is listed alone on a page.

    In the list, each byte of an annotation that is not UTF-8 becomes the three bytes of U+FFFD, so the referrer grows.
    """
    for n in b"ab":
        data = manifest(subject=descriptor(manifest()), annotations={"fill": "FILL"}).replace(
            b"FILL", bytes([n]) + b"\xff" * (MAX_MANIFEST - 2000)
        )
        put(registry, "a", Digest.of(data), data)
    first = registry.referrers("a", Digest.of(manifest()), None)
    assert first.next is not None
    second = registry.referrers("a", Digest.of(manifest()), None, first.next)
    assert second.next is None
    assert [len(json.loads(page.data)["manifests"]) for page in (first, second)] == [1, 1]


# Lists


def test_tags_come_in_pages_in_the_order_of_their_bytes(registry: Registry) -> None:
    put(registry, "a", "v1", manifest(), tags=("V1", "_", "v10", "v2", "0"))
    everything = ["0", "V1", "_", "v1", "v10", "v2"]
    assert registry.tags("a", None, None) == (everything, False)
    assert registry.tags("a", 6, None) == (everything, False)
    assert registry.tags("a", 0, None) == ([], False)
    assert registry.tags("a", 4, None) == (everything[:4], True)
    assert registry.tags("a", 4, "v1") == (everything[4:], False)
    assert registry.tags("a", None, "between") == (everything[3:], False)
    assert registry.tags("a", None, "zzz") == ([], False)
    assert registry.tags("a", 10**9, "\udcff\0") == ([], False)
    assert refusal(registry.tags, "b", None, None) == (404, "NAME_UNKNOWN")


def test_more_tags_than_a_page_holds(registry: Registry) -> None:
    put(registry, "a", "v1", manifest())
    for n in range(1200):
        Path(registry._links._path("a", "tags", f"t{n:04}")).write_text(json.dumps({"digest": Digest.of(manifest())}))
    first = registry.tags("a", None, None)
    assert (len(first.names), first.more) == (1000, True)
    second = registry.tags("a", 5000, first.names[-1])
    assert (len(first.names) + len(second.names), second.more) == (1201, False)


def test_the_catalog(registry: Registry) -> None:
    for name in ("b", "a/b", "a", "a-b"):
        pushed(registry, name, DATA)
    assert registry.catalog(None, None) == (["a", "a-b", "a/b", "b"], False)
    assert registry.catalog(2, "a") == (["a-b", "a/b"], True)


# Damage


def damaged(store: Store, *parts: str) -> Path:
    path = Path(store.root, "served", *parts)
    assert path.exists()
    path.write_bytes(b"\0" * 40)
    return path


def test_a_damaged_link_of_a_blob_is_an_error_until_the_blob_is_pushed_or_deleted(
    registry: Registry, store: Store
) -> None:
    digest = pushed(registry, "a", DATA)
    path = damaged(store, "a", "blobs", "sha256-" + digest.hex)
    with pytest.raises(StoreError, match="is damaged"):
        registry.blob("a", digest)
    pushed(registry, "a", DATA)
    assert pulled(registry, "a", digest) == DATA
    path.write_bytes(b"")
    registry.delete_blob("a", digest)
    assert refusal(registry.blob, "a", digest) == (404, "BLOB_UNKNOWN")


def test_a_damaged_tag_is_an_error_until_it_is_pushed_or_deleted(registry: Registry, store: Store) -> None:
    put(registry, "a", "v1", manifest(), tags=("v2",))
    damaged(store, "a", "tags", "v1")
    with pytest.raises(StoreError, match="cannot read the link"):
        registry.manifest("a", "v1")
    assert registry.manifest("a", "v2").data == manifest()
    assert registry.tags("a", None, None).names == ["v1", "v2"]
    put(registry, "a", "v1", manifest())
    assert registry.manifest("a", "v1").data == manifest()
    damaged(store, "a", "tags", "v1")
    registry.delete_manifest("a", "v1")
    assert registry.tags("a", None, None).names == ["v2"]


@pytest.mark.parametrize("text", ["{}", "[]", '{"digest": null}', '{"digest": "sha256:../../x"}'])
def test_a_tag_that_names_nothing(registry: Registry, store: Store, text: str) -> None:
    put(registry, "a", "v1", manifest())
    Path(store.root, "served", "a", "tags", "v1").write_text(text)
    with pytest.raises(StoreError, match="damaged"):
        registry.manifest("a", "v1")


def test_a_manifest_with_a_damaged_neighbour_can_be_deleted(registry: Registry, store: Store) -> None:
    done = put(registry, "a", "v1", manifest(), tags=("v2",))
    damaged(store, "a", "tags", "v2")
    damaged(store, "a", "manifests", "sha256-" + done.digest.hex)
    with pytest.raises(StoreError, match="cannot read the link"):
        registry.manifest("a", done.digest)
    registry.delete_manifest("a", done.digest)
    assert registry.tags("a", None, None).names == ["v2"]
    assert refusal(registry.manifest, "a", done.digest) == (404, "MANIFEST_UNKNOWN")


def test_a_damaged_manifest_is_unknown_and_may_be_deleted(registry: Registry, store: Store) -> None:
    done = put(registry, "a", "v1", manifest())
    rest = Path(store.path(done.digest), "rest")
    rest.write_bytes(manifest()[:-1] + b" ")
    assert refusal(registry.manifest, "a", "v1") == (404, "MANIFEST_UNKNOWN")
    registry.delete_manifest("a", done.digest)
    assert registry.tags("a", None, None).names == []


def test_a_damaged_referrer_is_an_error(registry: Registry, store: Store) -> None:
    data = manifest(subject=descriptor(manifest()))
    put(registry, "a", "sig", data)
    damaged(store, "a", "referrers", "sha256-" + Digest.of(manifest()).hex, "sha256-" + Digest.of(data).hex)
    with pytest.raises(StoreError, match="cannot read the link"):
        registry.referrers("a", Digest.of(manifest()), None)
    put(registry, "a", "sig", data)
    assert len(referring(registry, "a", Digest.of(manifest()))) == 1


def test_foreign_files_in_the_root_are_no_repositories(registry: Registry, store: Store) -> None:
    pushed(registry, "a", DATA)
    served = Path(store.root, "served")
    (served / "file").write_text("x")
    (served / "a" / "tags").write_text("x")
    assert registry.tags("a", None, None).names == []
    assert registry.mount("b", Digest.of(DATA), None) == Digest.of(DATA)
