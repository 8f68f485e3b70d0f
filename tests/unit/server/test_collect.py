"""A collection frees the blobs of removed kits and keeps the blobs that are needed.

Needed blobs are manifests, blobs that a manifest references, blobs of a running push, and young blobs.
"""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path

import pytest

from kitfs.oci.names import Digest
from kitfs.server.api_errors import ApiError
from kitfs.server.collect import Collected, SteadyClock, collect
from kitfs.server.registry import Registry
from kitfs.store.store import Store
from tests.unit.server.test_registry import CONFIG, DATA, descriptor, index, manifest, pulled, pushed, put

LOG = logging.getLogger("kitfs.test")
DAY = 86_400.0
LAYER = b"a layer of its own " * 1000


def gc(store: Store, *, later: float = 2 * DAY, min_age: float = DAY) -> Collected:
    """Run a collection whose clock is ``later`` seconds ahead."""
    return collect(store, log=LOG, min_age=min_age, now=time.time() + later)


def kit(registry: Registry, name: str, tag: str, *layers: bytes, **more: object) -> Digest:
    """Push a kit with the given layers. Return the digest of its manifest."""
    for part in (CONFIG, *layers):
        pushed(registry, name, part)
    return registry.put_manifest(name, tag, manifest(layers=[descriptor(layer) for layer in layers], **more), "").digest


def has(registry: Registry, name: str, data: bytes) -> bool:
    try:
        return pulled(registry, name, str(Digest.of(data))) == data
    except ApiError:
        return False


def test_the_layers_of_a_removed_kit_are_freed(registry: Registry, store: Store) -> None:
    """After a kit was deleted, its blobs are removed from the disk. The blobs of another kit stay."""
    gone = kit(registry, "a", "v1", LAYER)
    kit(registry, "a", "v2", DATA)
    registry.delete_manifest("a", str(gone))
    found = gc(store)
    assert (has(registry, "a", LAYER), has(registry, "a", DATA), has(registry, "a", CONFIG)) == (False, True, True)
    assert not os.path.exists(store.path(Digest.of(LAYER)))
    assert not os.path.exists(store.path(gone))
    assert found.blobs == 2  # the layer and the manifest
    assert found.freed >= len(LAYER)


def test_an_untagged_kit_stays(registry: Registry, store: Store) -> None:
    """A kit without tags can still be pulled by its digest."""
    digest = kit(registry, "a", "v1", LAYER)
    registry.delete_manifest("a", "v1")
    assert gc(store).blobs == 0
    assert has(registry, "a", LAYER)
    assert registry.manifest("a", str(digest)).digest == digest


def test_a_blob_that_another_repository_has_stays_there(registry: Registry, store: Store) -> None:
    gone = kit(registry, "a", "v1", LAYER)
    kit(registry, "b", "v1", LAYER)
    registry.delete_manifest("a", str(gone))
    gc(store)
    assert (has(registry, "a", LAYER), has(registry, "b", LAYER)) == (False, True)


def test_what_an_index_leads_to_stays(registry: Registry, store: Store) -> None:
    """The blobs of an index's children are kept, even if a child was deleted from its repository."""
    one, two = LAYER + b"1", LAYER + b"2"
    children = [manifest(layers=[descriptor(layer)]) for layer in (one, two)]
    for layer, child in zip((one, two), children, strict=True):
        pushed(registry, "a", layer)
        put(registry, "a", str(Digest.of(child)), child)
    registry.put_manifest("a", "all", index(*children), "")
    registry.delete_manifest("a", str(Digest.of(children[1])))
    gc(store)
    assert has(registry, "a", one)
    assert has(registry, "a", two)


def test_referrers_and_their_subjects_keep_what_they_lead_to(registry: Registry, store: Store) -> None:
    """A chain of referrers keeps the blobs and configs of the referrers, and the layers of their subject.

    No tag is needed.
    """
    subject = manifest(layers=[descriptor(LAYER)])
    pushed(registry, "a", LAYER)
    put(registry, "a", "v1", subject)
    signature, config = b"a signature" * 100, b'{"artifact": 1}'
    pushed(registry, "a", signature)
    pushed(registry, "a", config)
    about = {**descriptor(subject), "mediaType": "application/vnd.oci.image.manifest.v1+json"}
    first = manifest(
        subject=about, layers=[descriptor(signature)], config=descriptor(config, "application/vnd.example.config")
    )
    put(registry, "a", str(Digest.of(first)), first)
    second = manifest(subject=descriptor(first), layers=[])
    put(registry, "a", str(Digest.of(second)), second)
    registry.delete_manifest("a", str(Digest.of(subject)))
    gc(store)
    assert [has(registry, "a", data) for data in (signature, config, LAYER, CONFIG)] == [True] * 4


def test_a_young_blob_stays_until_it_is_old(registry: Registry, store: Store) -> None:
    """A blob without a manifest is kept and reported as young until it reaches the minimum age."""
    pushed(registry, "a", LAYER)
    found = gc(store, later=DAY - 60)
    assert (found.blobs, found.young_blobs) == (0, 1)
    assert found.young >= len(LAYER)
    assert has(registry, "a", LAYER)
    assert gc(store, later=DAY + 120).blobs == 1


def test_the_age_counts_from_the_last_time_that_a_push_was_told_of_it(registry: Registry, store: Store) -> None:
    """After a HEAD, an old blob counts as young, because a push may be about to send a manifest that references it."""
    digest = pushed(registry, "a", LAYER)
    link = Path(store.root, "served", "a", "blobs", f"sha256-{digest.hex}")
    os.utime(link, (1, 1))
    registry.blob("a", str(digest), promised=True)[1].close()
    assert gc(store, later=0).blobs == 0
    kit(registry, "a", "v1", LAYER)
    assert gc(store).blobs == 0
    assert has(registry, "a", LAYER)


def test_a_mount_counts_as_a_use(registry: Registry, store: Store) -> None:
    """A blob that was mounted from another repository counts as young in both repositories."""
    digest = pushed(registry, "a", LAYER)
    os.utime(Path(store.root, "served", "a", "blobs", f"sha256-{digest.hex}"), (1, 1))
    assert registry.mount("b", str(digest), "a") == digest
    assert gc(store, later=0).blobs == 0
    assert (has(registry, "a", LAYER), has(registry, "b", LAYER)) == (True, True)


def test_a_long_push_keeps_what_it_has_sent(registry: Registry, store: Store) -> None:
    """While an upload to a repository is open, blobs that were pushed after its start are kept."""
    pushed(registry, "a", LAYER)
    ingest = registry.begin("a")
    ingest.write(b"more")
    ingest.close()
    later = time.time() + 3 * DAY
    os.utime(Path(store.root, "ingest", ingest.name, "rest"), (later, later))
    assert gc(store, later=3 * DAY).blobs == 0
    assert has(registry, "a", LAYER)


def test_an_unfinished_upload_goes_on_after_a_collection_without_an_age(registry: Registry, store: Store) -> None:
    """The parts of an unfinished upload are not blobs yet.

    A collection never removes them, even with a minimum age of 0.
    """
    ingest = registry.begin("a")
    ingest.write(LAYER[:1000])
    ingest.close()
    gc(store, min_age=0)
    ingest = registry.resume("a", ingest.name)
    ingest.write(LAYER[1000:])
    assert registry.finish("a", ingest, str(Digest.of(LAYER))) == Digest.of(LAYER)


def test_a_clock_that_jumps_back_frees_nothing(registry: Registry, store: Store) -> None:
    """If the time of a blob is in the future, it counts as the current time."""
    pushed(registry, "a", LAYER)
    assert gc(store, later=-400 * DAY).blobs == 0
    assert has(registry, "a", LAYER)


def test_a_use_never_sets_a_time_back(registry: Registry, store: Store) -> None:
    """If the clock is behind, a HEAD does not change the time of a blob to an earlier time."""
    digest = pushed(registry, "a", LAYER)
    link = Path(store.root, "served", "a", "blobs", f"sha256-{digest.hex}")
    ahead = int(time.time()) + 1000
    os.utime(link, (ahead, ahead))
    registry.blob("a", str(digest), promised=True)[1].close()
    assert link.stat().st_mtime == ahead


def test_a_running_server_does_not_follow_a_clock_that_jumps_ahead() -> None:
    """If the clock jumps ahead, a running server still uses its start time plus the elapsed monotonic time."""
    clock = SteadyClock()
    clock._start -= 1000
    assert clock() < time.time() - 900


def test_a_manifest_that_cannot_be_read_keeps_its_repository(
    registry: Registry, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """If a manifest cannot be parsed, its references are unknown, so all blobs of its repository are kept.

    Other repositories are collected.
    """
    digest = kit(registry, "a", "v1", DATA)
    pushed(registry, "a", LAYER)
    pushed(registry, "b", LAYER + b"b")
    Path(store.path(digest), "rest").write_bytes(b"\0" * 40)
    with caplog.at_level(logging.WARNING):
        gc(store)
    assert (has(registry, "a", LAYER), has(registry, "b", LAYER + b"b")) == (True, False)
    [told] = caplog.messages
    assert str(digest) in told
    registry.delete_manifest("a", str(digest))
    gc(store)
    assert not has(registry, "a", LAYER)


def test_what_mounts_fetched_into_the_same_store_stays(registry: Registry, store: Store) -> None:
    """A blob that a mount fetched belongs to the cache, and is not freed with the registry's blobs."""
    digest = Digest.of(LAYER)
    store.put(digest, LAYER)
    gc(store, min_age=0)
    assert store.get(digest) == LAYER


def test_a_kit_packed_into_the_same_store_stays(registry: Registry, store: Store) -> None:
    """Tags of packed and pulled kits protect their blobs from collections and from eviction."""
    digest = kit(registry, "a", "v1", LAYER)
    store.refs.set("localhost/a", "v1", {"digest": str(digest), "size": 1, "mediaType": "x"})
    registry.delete_manifest("a", str(digest))
    gc(store)
    assert not has(registry, "a", LAYER)
    assert os.path.exists(store.path(Digest.of(LAYER)))
    assert os.path.exists(store.path(digest))


def test_a_blob_that_is_being_read_is_read_to_its_end(registry: Registry, store: Store) -> None:
    """While a blob is being pulled, it is kept, and the pull gets the right bytes.

    A later collection frees the blob.
    """
    digest = pushed(registry, "a", LAYER)
    _, file = registry.blob("a", str(digest))
    with file:
        assert gc(store).blobs == 0
        assert file.readall() == LAYER
    assert gc(store).blobs == 1


def test_fields_that_only_go_reads_count_too(registry: Registry, store: Store) -> None:
    """A descriptor in any field of a manifest keeps its blob, even if the key "digest" is written as "Digest"."""
    pushed(registry, "a", LAYER)
    put(registry, "a", "v1", json.dumps({**json.loads(manifest()), "x": [{"Digest": str(Digest.of(LAYER))}]}).encode())
    gc(store)
    assert has(registry, "a", LAYER)
