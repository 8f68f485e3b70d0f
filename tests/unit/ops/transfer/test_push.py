"""A push sends the blobs of a kit in the store, and then its manifest."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kitfs.errors import NotFound, StoreError, Unauthorized
from kitfs.modelkit.kitfile import Kitfile
from kitfs.modelkit.writer import KitFormat, PackedKit
from kitfs.oci.manifest import Descriptor
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import Event, Moved, Sent, Total, quiet
from kitfs.ops.pack.pack import pack_to_store
from kitfs.ops.transfer.push import push_to
from kitfs.store.store import Store

HERE = Reference.parse("registry.test/a/b:v1")
PATIENCE = 30.0


class FakeTarget:
    """A fake repository that records blobs and requests.

    ``how`` returns the result of an upload, such as "uploaded".
    """

    def __init__(self, how: Callable[[Descriptor], str] = lambda _: "uploaded") -> None:
        self.how = how
        self.blobs: dict[Digest, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.asked: dict[Digest, tuple[str, ...]] = {}
        self.order: list[str] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def upload(
        self,
        descriptor: Descriptor,
        read: Callable[[int], Iterator[bytes]],
        *,
        mount_from: Sequence[str] = (),
        hints: Any = None,
        progress: Callable[[int], None] | None = None,
    ) -> str:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self.asked[descriptor.digest] = tuple(mount_from)
            self.order.append(descriptor.digest)
        try:
            how = self.how(descriptor)
            if how == "uploaded":
                self.blobs[descriptor.digest] = b"".join(read(0))
                if progress is not None:
                    progress(len(self.blobs[descriptor.digest]))
            return how
        finally:
            with self._lock:
                self._now -= 1

    def put_manifest(self, identifier: str, media_type: str, data: bytes) -> Digest:
        self.manifests[identifier] = data
        self.order.append(f"{identifier} {media_type}")
        return Digest.of(data)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a directory of twelve files. The first file is empty."""
    root = tmp_path / "tree"
    root.mkdir()
    for number in range(12):
        (root / f"f{number}").write_bytes(os.urandom(1000 * number))
    return root


def packed(tree: Path, store: Store, *references: Reference) -> PackedKit:
    code = [{"path": f"f{number}"} for number in range(12)]
    kitfile = Kitfile.from_json(json.dumps({"manifestVersion": "1.0.0", "package": {}, "code": code}).encode())
    return pack_to_store(
        str(tree), kitfile, store, references or [HERE], kit_format=KitFormat("1.17.0", created=0), report=quiet
    )


def test_blobs_go_first_and_the_manifest_last(tree: Path, store: Store) -> None:
    """Each layer and the config are sent once. Then the manifest is sent with its media type under every tag."""
    made = packed(tree, store)
    target = FakeTarget()
    assert (
        push_to(target, store, HERE, Reference.parse("r.test/c:v2,v3", multiple_tags=True), report=quiet)
        == made.descriptor.digest
    )
    wanted = {made.manifest.config.digest, *(layer.digest for layer in made.manifest.layers)}
    assert {digest: Digest.of(data) for digest, data in target.blobs.items()} == {digest: digest for digest in wanted}
    assert sorted(target.order[:-2]) == sorted(wanted)
    assert target.order[-2:] == [f"{tag} application/vnd.oci.image.manifest.v1+json" for tag in ("v2", "v3")]
    assert {tag: Digest.of(data) for tag, data in target.manifests.items()} == dict.fromkeys(
        ("v2", "v3"), made.descriptor.digest
    )


def test_a_digest_is_pushed_as_it_is(tree: Path, store: Store) -> None:
    digest = packed(tree, store).descriptor.digest
    target = FakeTarget()
    push_to(target, store, Reference.parse(digest), Reference.parse(f"r.test/c@{digest}"), report=quiet)
    assert list(target.manifests) == [digest]


@pytest.mark.parametrize("how", ["uploaded", "mounted", "exists"])
def test_what_is_pushed_is_told(tree: Path, store: Store, how: str) -> None:
    """For every blob, the moved bytes add up to its total, even if the blob is mounted or exists already.

    A push reports each blob once, and the manifest last.
    """
    packed(tree, store)
    events: list[Event] = []
    push_to(FakeTarget(lambda _: how), store, HERE, HERE, report=events.append)
    totals = {e.name: e.size for e in events if isinstance(e, Total)}
    moved = {name: sum(e.size for e in events if isinstance(e, Moved) and e.name == name) for name in totals}
    assert moved == totals
    assert [(e.what, e.how) for e in events if isinstance(e, Sent)] == [("blob", how)] * 13 + [("manifest", "uploaded")]


def test_no_more_than_five_blobs_at_once(tree: Path, store: Store) -> None:
    packed(tree, store)
    together = threading.Barrier(5)
    first = iter(range(5))

    def how(_: Descriptor) -> str:
        if next(first, None) is not None:
            together.wait(PATIENCE)
        return "uploaded"

    target = FakeTarget(how)
    push_to(target, store, HERE, HERE, report=quiet)
    assert target.most == 5


def test_the_first_error_ends_the_others_and_nothing_is_tagged(tree: Path, store: Store) -> None:
    """If one blob fails, the other uploads end too, and the first error is raised."""
    made = packed(tree, store)
    failed = threading.Event()
    culprit = made.manifest.layers[3].digest

    def how(descriptor: Descriptor) -> str:
        if descriptor.digest == culprit:
            failed.set()
            raise Unauthorized("not you", status=403)
        assert failed.wait(PATIENCE)
        return "uploaded"

    target = FakeTarget(how)
    with pytest.raises(Unauthorized, match="not you"):
        push_to(target, store, HERE, HERE, report=quiet)
    assert target.manifests == {}


def test_neighbours_are_repositories_of_the_same_registry(tree: Path, store: Store) -> None:
    """A push tries to mount a blob from at most three repositories of the same registry.

    According to the store, kits in these repositories contain the blob. The destination itself is not one of them.
    """
    names = [
        "registry.test/a/b",
        "registry.test/c",
        "registry.test/d",
        "registry.test/e",
        "registry.test/f",
        "other.test/a",
        "localhost/x",
    ]
    packed(tree, store, *(Reference.parse(f"{name}:v1") for name in names))
    target = FakeTarget()
    push_to(target, store, HERE, HERE, report=quiet)
    assert set(target.asked.values()) == {("c", "d", "e")}


def test_a_damaged_tag_of_another_kit_is_no_reason_to_fail(tree: Path, store: Store) -> None:
    packed(tree, store, HERE, Reference.parse("registry.test/z:v1"))
    [path] = Path(store.root, "refs").glob("*z/v1")
    path.write_bytes(b"{")
    target = FakeTarget()
    push_to(target, store, HERE, HERE, report=quiet)
    assert list(target.manifests) == ["v1"]


def test_a_blob_that_is_evicted_meanwhile_is_pushed_all_the_same(tree: Path, store: Store) -> None:
    """A push opens the files of all blobs before the first upload. The files may be removed afterwards."""
    made = packed(tree, store)

    def how(_: Descriptor) -> str:
        shutil.rmtree(os.path.join(store.root, "blobs"), ignore_errors=True)
        return "uploaded"

    target = FakeTarget(how)
    push_to(target, store, HERE, HERE, report=quiet)
    assert {Digest.of(data) for data in target.blobs.values()} == {
        made.manifest.config.digest,
        *(d.digest for d in made.manifest.layers),
    }


def test_a_blob_that_is_lost_is_told_before_anything_is_sent(tree: Path, store: Store) -> None:
    """The error for a lost blob contains the digest of the blob and says what to do."""
    lost = packed(tree, store).manifest.layers[5].digest
    shutil.rmtree(store.path(lost))
    target = FakeTarget()
    with pytest.raises(
        StoreError, match=rf"^registry\.test/a/b:v1: the store has lost its blob {lost}; pack or pull it again$"
    ):
        push_to(target, store, HERE, HERE, report=quiet)
    assert target.order == []


@pytest.mark.parametrize("reference", ["registry.test/a/b:v2", "registry.test/a/c:v1", "sha256:" + "0" * 64])
def test_a_kit_that_is_not_here_is_not_found(tree: Path, store: Store, reference: str) -> None:
    packed(tree, store)
    with pytest.raises(NotFound, match="is not in the store; pack or pull it first"):
        push_to(FakeTarget(), store, Reference.parse(reference), HERE, report=quiet)
