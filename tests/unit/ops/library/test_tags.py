"""Tags of kits in the store can move to another kit, and a kit can lose its last tag."""

from __future__ import annotations

import pytest

from kitfs.errors import NotFound
from kitfs.oci.manifest import IMAGE_MANIFEST, Descriptor
from kitfs.oci.names import Digest, Reference
from kitfs.ops.library.tags import assign, find, kits, required
from kitfs.store.store import Store

ONE, TWO = (Descriptor(IMAGE_MANIFEST, Digest.of(data), 3) for data in (b"one", b"two"))


def told(store: Store) -> list[tuple[str, Digest, tuple[str, ...]]]:
    return [(kit.name, kit.digest, kit.tags) for kit in kits(store)]


def test_a_kit_that_loses_its_last_tag_is_kept_without_one(store: Store) -> None:
    v1, v2 = Reference.parse("r.io/a:v1"), Reference.parse("r.io/a:v2")
    assign(store, v1, ONE)
    assign(store, v2, ONE)
    assert told(store) == [("r.io/a", ONE.digest, ("v1", "v2"))]
    assign(store, v1, TWO)
    assert set(told(store)) == {("r.io/a", ONE.digest, ("v2",)), ("r.io/a", TWO.digest, ("v1",))}
    assign(store, v2, TWO)
    assert set(told(store)) == {("r.io/a", ONE.digest, ()), ("r.io/a", TWO.digest, ("v1", "v2"))}
    assign(store, v2, ONE)
    assert set(told(store)) == {("r.io/a", ONE.digest, ("v2",)), ("r.io/a", TWO.digest, ("v1",))}


def test_without_a_tag_it_is_listed_once(store: Store) -> None:
    unnamed = Reference.parse("r.io/a")
    assign(store, unnamed, ONE)
    assign(store, unnamed, ONE)
    assert told(store) == [("r.io/a", ONE.digest, ())]
    assign(store, unnamed.with_tag("v1"), ONE)
    assign(store, unnamed, ONE)
    assert told(store) == [("r.io/a", ONE.digest, ("v1",))]


def test_kits_are_found_by_tag_and_by_digest_in_their_own_repository(store: Store) -> None:
    reference = Reference.parse("r.io/a:v1")
    assign(store, reference, ONE)
    by_digest = Reference("r.io", "a", digest=ONE.digest)
    assert find(store, reference) == find(store, by_digest) == kits(store)[0]
    assert find(store, Reference("r.io", "b", digest=ONE.digest)) is None
    with pytest.raises(NotFound, match=r"r\.io/a:v2 is not in the store"):
        required(store, reference.with_tag("v2"))
