"""A pull stores, verifies and pins the blobs of a kit, and resumes after failures. The registry is on a socket."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import NoReturn

import pytest

from kitfs.errors import IntegrityError, ManifestError, NotFound, RegistryError, Unauthorized, UsageError
from kitfs.kit.resolver import Resolver
from kitfs.modelkit.index import KIT_INDEX
from kitfs.oci.manifest import Descriptor, Manifest
from kitfs.oci.names import Digest, Reference
from kitfs.ops.events import Event, Moved, Noted, Sent, Total, Warned, quiet
from kitfs.ops.library.tags import find
from kitfs.ops.library.tags import kits as local_kits
from kitfs.ops.transfer.decoded import decode
from kitfs.ops.transfer.pull import pull_from
from kitfs.registry.client import RegistryClient
from kitfs.store.fill import STRIPE
from kitfs.store.store import Store
from tests import kits
from tests.fakes.faults import After, Answer, Cut, Fault, IgnoreRange, Lie, Resize, Status
from tests.fakes.registry import FakeRegistry
from tests.stores import Opener

MiB = 1 << 20
LOG = logging.getLogger("kitfs.test")
WEIGHTS = random.Random(3).randbytes(21 * MiB + 11)
SMALL = random.Random(4).randbytes(100_001)
TALK = 1 * MiB  # upper bound of the bytes that are lost in socket buffers when a request is aborted

Pull = Callable[..., Digest]


@pytest.fixture
def bring(client: RegistryClient, store: Store) -> Pull:
    """Return a function that pulls a kit into the store."""

    def run(reference: str, *, into: Store = store, told: list[Event] | None = None) -> Digest:
        return pull_from(
            client.repository, into, Reference.parse(reference), report=quiet if told is None else told.append
        )

    return run


def kit_of(*parts: kits.Part, **more: object) -> kits.Kit:
    parts = parts or (
        kits.part("model", "w.bin", WEIGHTS, format="raw"),
        kits.part("code", "src", kits.kit_tar({"src/a.py": SMALL})),
    )
    return kits.build(list(parts), **more)  # type: ignore[arg-type]


def whole(store: Store, kit: kits.Kit, reference: str) -> None:
    """Assert that a reference names the kit in the store, and that all blobs of the kit are verified and pinned."""
    found = find(store, Reference.parse(reference))
    assert found is not None
    assert found.digest == kit.digest
    for text, content in {**kit.blobs, kit.digest: kit.manifest}.items():
        digest = Digest.parse(text)
        file = store.open_sealed(digest)
        assert file is not None, digest
        with file:
            assert file.read() == content
        assert digest in store.pinned()


def total(kit: kits.Kit) -> int:
    return len(kit.manifest) + sum(kits.size_of(content) for content in kit.blobs.values())


# -- what is stored afterwards


@pytest.mark.parametrize("vintage", ["0.4", "1.7", "1.10", "1.17", "modelpack", "modctl", "cnai"])
def test_a_kit_of_every_vintage(fake: FakeRegistry, store: Store, bring: Pull, vintage: kits.Vintage) -> None:
    """The manifest, the config and the layers are verified and pinned, and each byte is transferred once.

    Afterwards, the tree can be read offline.
    """
    parts = [
        kits.part("model", "w.bin", WEIGHTS, format="raw"),
        kits.part("docs", "docs", kits.kit_tar({"docs/a.md": SMALL}), compression="gzip"),
    ]
    kit = kit_of(*parts, vintage=vintage)
    ref = fake.put_kit("team/kit", kit, "v1")
    assert bring(ref) == kit.digest
    whole(store, kit, ref)
    assert fake.moved() == total(kit)
    fake.stop()
    opened = Resolver(
        store, lambda _: pytest.fail("a registry was asked although the store has everything"), log=LOG
    ).open(Reference.parse(ref))
    with_files = {
        m.path: layer.pread(m, 0, m.size)
        for layer in opened.layers
        for m in layer.index().members.values()
        if m.kind == "file"
    }
    opened.close()
    assert with_files == {"w.bin": WEIGHTS, "docs/a.md": SMALL}


def test_what_is_told(fake: FakeRegistry, bring: Pull) -> None:
    """For each blob, a pull reports a total with a label, the moved bytes, and the verification."""
    kit = kit_of()
    told: list[Event] = []
    bring(fake.put_kit("team/kit", kit, "v1"), told=told)
    totals = {e.name: e.size for e in told if isinstance(e, Total)}
    assert totals == {digest: kits.size_of(content) for digest, content in kit.blobs.items()}
    assert [e.label for e in told if isinstance(e, Total)] == [
        f"config {kits.sha256(kit.config)[7:19]}",
        "w.bin",
        "src",
    ]
    for name, size in totals.items():
        assert sum(e.size for e in told if isinstance(e, Moved) and e.name == name) == size
    assert {(e.digest, e.how) for e in told if isinstance(e, Sent)} == {(digest, "pulled") for digest in kit.blobs}
    told.clear()
    bring(fake.put_kit("team/kit", kit, "v1"), told=told)
    assert {(e.digest, e.how) for e in told if isinstance(e, Sent)} == {(digest, "exists") for digest in kit.blobs}


@pytest.mark.parametrize(
    "parts", [[], [kits.part("model", "empty", b"", format="raw")]], ids=["no layers", "a layer of no bytes"]
)
def test_a_kit_of_nothing(fake: FakeRegistry, store: Store, bring: Pull, parts: list[kits.Part]) -> None:
    kit = kits.build(parts)
    ref = fake.put_kit("team/kit", kit, "v1")
    bring(ref)
    whole(store, kit, ref)


def test_a_kit_that_has_a_layer_twice(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """A layer that the manifest lists twice is transferred and reported once."""
    kit = kit_of(kits.part("code", "a", SMALL, format="raw"), kits.part("docs", "b", SMALL, format="raw"))
    assert len(json.loads(kit.manifest)["layers"]) == 2
    told: list[Event] = []
    ref = fake.put_kit("team/kit", kit, "v1")
    bring(ref, told=told)
    whole(store, kit, ref)
    assert (fake.moved(), len([e for e in told if isinstance(e, Total)])) == (total(kit), 2)


def test_by_its_digest(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """A kit that is pulled by its digest gets no tag in the store."""
    kit = kit_of()
    ref = f"{fake.put_kit('team/kit', kit, 'v1').removesuffix(':v1')}@{kit.digest}"
    bring(ref)
    whole(store, kit, ref)
    assert [found.tags for found in local_kits(store)] == [()]


def test_a_tag_that_moved(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """When a tag has moved at the registry, a pull moves the tag in the store.

    The old kit stays in the store without a tag.
    """
    old, new = kit_of(), kit_of(kits.part("code", "b", SMALL, format="raw"))
    ref = fake.put_kit("team/kit", old, "v1")
    bring(ref)
    fake.put_kit("team/kit", new, "v1")
    bring(ref)
    whole(store, new, ref)
    assert {found.digest: found.tags for found in local_kits(store)} == {new.digest: ("v1",), old.digest: ()}
    whole(store, old, f"{ref.removesuffix(':v1')}@{old.digest}")


# -- what is transferred


def test_again(fake: FakeRegistry, bring: Pull) -> None:
    """A second pull transfers only the manifest. Its progress still counts the bytes of all blobs."""
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    bring(ref)
    fake.forget()
    told: list[Event] = []
    assert bring(ref, told=told) == kit.digest
    assert [s.path for s in fake.served()] == ["/v2/team/kit/manifests/v1"]
    assert sum(e.size for e in told if isinstance(e, Moved)) == sum(
        kits.size_of(content) for content in kit.blobs.values()
    )


def test_after_a_part(fake: FakeRegistry, store: Store, client: RegistryClient, bring: Pull) -> None:
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    layer = next(d for d in Manifest.parse(kit.manifest).layers if d.size == len(WEIGHTS))
    blob = store.blob(layer.digest, size=layer.size, source=client.repository(Reference.parse(ref)).blob(layer))
    assert blob.pread(7 * MiB + 5, 3 * MiB) == WEIGHTS[7 * MiB + 5 : 10 * MiB + 5]
    before = fake.moved()
    blob.close()
    assert before >= 3 * MiB
    bring(ref)
    whole(store, kit, ref)
    assert fake.moved() == total(kit)


def test_while_a_mount_reads(
    fake: FakeRegistry, store: Store, client: RegistryClient, bring: Pull, open_store: Opener
) -> None:
    """If a pull and a mount read the same blob at the same time, most bytes are transferred only once.

    A long request is aborted when it reaches bytes that the other process has fetched. The bytes in the socket buffers
    of the request are lost.
    """
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    layer = next(d for d in Manifest.parse(kit.manifest).layers if d.size == len(WEIGHTS))
    blob = open_store().blob(layer.digest, size=layer.size, source=client.repository(Reference.parse(ref)).blob(layer))
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(lambda: b"".join(blob.pread(at, 50_000) for at in range(0, len(WEIGHTS), 50_000)))
        bring(ref)
        assert read.result() == WEIGHTS
    whole(store, kit, ref)
    assert fake.moved() <= total(kit) + 8 * MiB + TALK


def test_twice_at_once(fake: FakeRegistry, open_store: Opener, store: Store, bring: Pull) -> None:
    """Two pulls of one kit at the same time transfer each byte about once in total."""
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    other = open_store()
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(bring, ref, into=other)
        bring(ref)
        assert second.result() == kit.digest
    whole(store, kit, ref)
    assert fake.moved() <= total(kit) + len(kit.manifest) + len(kit.config) + TALK


def test_a_registry_without_ranges(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """If the registry ignores ranges, one stream transfers the whole blob.

    The other requests are aborted. The bytes in their socket buffers are lost.
    """
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    fake.fail("/blobs/", IgnoreRange())
    bring(ref)
    whole(store, kit, ref)
    assert fake.moved() <= total(kit) + 4 * 4 * MiB


def test_a_registry_that_redirects(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """Blobs are fetched from the target of a redirect, although each location is valid for three requests only."""
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    with FakeRegistry() as cdn:
        fake.redirect_blobs_to(cdn, uses=3)
        bring(ref)
        whole(store, kit, ref)
        assert cdn.moved() >= total(kit) - len(kit.manifest)
    assert fake.moved() == len(kit.manifest)


def test_bodies_that_break_off(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """If the connection breaks during a body, the pull resumes after the last received byte."""
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    fake.fail("/blobs/", Cut(1 * MiB + 1), times=9)
    bring(ref)
    whole(store, kit, ref)
    assert fake.moved() <= total(kit) + TALK


def test_what_broke_off_goes_on(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """A failed pull tags no kit. The next pull does not transfer the received bytes again."""
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    fake.fail(f"/blobs/{kit.layers[0]}", After(1, Status(404, code="BLOB_UNKNOWN", message="gone")))
    fake.fail(f"/blobs/{kit.layers[0]}", Cut(3 * STRIPE + 5))
    with pytest.raises(NotFound):
        bring(ref)
    assert local_kits(store) == []
    assert fake.moved(kit.layers[0]) >= 3 * STRIPE
    fake.heal()
    bring(ref)
    whole(store, kit, ref)
    assert fake.moved() <= total(kit) + len(kit.manifest) + TALK


def test_a_kit_larger_than_the_limit(fake: FakeRegistry, open_store: Opener, bring: Pull) -> None:
    """A pull may exceed --cache-size, because pulled blobs are pinned and never evicted."""
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    tiny = open_store(size_limit=1)
    bring(ref, into=tiny)
    assert tiny.evict(at_least=1 << 40) == 0
    whole(tiny, kit, ref)
    assert fake.moved() == total(kit)


def test_a_limit_takes_what_is_not_pinned(
    fake: FakeRegistry, open_store: Opener, client: RegistryClient, bring: Pull
) -> None:
    """If the store is full, a pull evicts blobs that are not pinned."""
    tiny = open_store(size_limit=2 * MiB)
    read = random.Random(9).randbytes(3 * MiB)
    other = Descriptor("", Digest.parse(fake.put_blob("team/kit", read)), len(read))
    blob = tiny.blob(
        other.digest, size=other.size, source=client.repository(Reference.parse(f"{fake.host}/team/kit")).blob(other)
    )
    assert b"".join(blob.stream()) == read
    blob.close()
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    bring(ref, into=tiny)
    tiny.evict()
    whole(tiny, kit, ref)
    assert not tiny.has_sealed(other.digest)


def test_a_disk_that_is_almost_full(fake: FakeRegistry, open_store: Opener, bring: Pull) -> None:
    """A pull may use the part of the disk that a cache must leave free."""
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    store = open_store(free_share=1.0)
    store.evict()
    bring(ref, into=store)
    whole(store, kit, ref)


# -- parents


def test_parents_come_too(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """The parents of a kit are pulled and pinned under their own names, and each parent is reported."""
    first = kit_of(name="first")
    grand = fake.put_kit("base/first", first, "v1")
    second = kit_of(kits.part("code", "b", SMALL, format="raw"), parent=grand)
    parent = fake.put_kit("base/second", second, "v2")
    kit = kit_of(kits.part("docs", "c", b"docs", format="raw"), parent=parent)
    ref = fake.put_kit("team/kit", kit, "v1")
    told: list[Event] = []
    bring(ref, told=told)
    for name, one in ((ref, kit), (parent, second), (grand, first)):
        whole(store, one, name)
    assert [e.text for e in told if isinstance(e, Noted)] == [
        f"Pulling referenced image {parent}",
        f"Pulling referenced image {grand}",
    ]


def test_a_parent_that_is_not_there(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """If a parent does not exist, nothing is tagged."""
    ref = fake.put_kit(
        "team/kit", kit_of(kits.part("code", "b", SMALL, format="raw"), parent=f"{fake.host}/base/none:v1"), "v1"
    )
    with pytest.raises(NotFound, match="base/none"):
        bring(ref)
    assert local_kits(store) == []


def test_parents_in_a_circle(fake: FakeRegistry, bring: Pull) -> None:
    """A cycle of parents fails with kit's message."""
    ref = f"{fake.host}/team/kit:v1"
    other = fake.put_kit("team/other", kit_of(kits.part("code", "b", SMALL, format="raw"), parent=ref), "v1")
    fake.put_kit("team/kit", kit_of(kits.part("code", "a", SMALL, format="raw"), parent=other), "v1")
    with pytest.raises(ManifestError, match=f"found cycle in modelkit references: \\[{ref}=>{other}=>{ref}\\]"):
        bring(ref)


def test_parents_of_parents_without_end(fake: FakeRegistry, bring: Pull) -> None:
    """As with kit, a chain of parents is limited to ten kits."""
    for n in range(12):
        fake.put_kit(
            f"team/n{n}",
            kits.build([kits.part("code", "a", b"a", format="raw")], parent=f"{fake.host}/team/n{n + 1}:v1"),
            "v1",
        )
    with pytest.raises(ManifestError, match="reached maximum number of model references"):
        bring(f"{fake.host}/team/n0:v1")
    assert len(fake.served("/manifests/")) == 11


# -- failures


@pytest.mark.parametrize("place", [0, 9 * MiB, len(WEIGHTS) - 1])
def test_a_wrong_byte(fake: FakeRegistry, store: Store, bring: Pull, place: int) -> None:
    """A wrong byte fails the pull. Nothing is tagged, the layer is not stored, and the next pull succeeds."""
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    fake.fail(f"/blobs/{kit.layers[0]}", Lie(place))
    with pytest.raises(IntegrityError, match=kit.layers[0]):
        bring(ref)
    assert local_kits(store) == []
    assert store.open_sealed(Digest.parse(kit.layers[0])) is None
    fake.heal()
    bring(ref)
    whole(store, kit, ref)


@pytest.mark.parametrize("fault", [Lie(3), Resize(-1), Resize(1)], ids=str)
@pytest.mark.parametrize("what", ["config", "manifest"])
def test_a_config_or_manifest_that_is_wrong(
    fake: FakeRegistry, store: Store, bring: Pull, what: str, fault: Fault
) -> None:
    kit = kit_of(kits.part("code", "a", b"a", format="raw"))
    ref = fake.put_kit("team/kit", kit, "v1")
    fake.fail("/manifests/" if what == "manifest" else f"/blobs/{kits.sha256(kit.config)}", fault)
    with pytest.raises(IntegrityError if isinstance(fault, Lie) or what == "manifest" else RegistryError):
        bring(ref)
    assert local_kits(store) == []
    fake.heal()
    bring(ref)
    whole(store, kit, ref)


@pytest.mark.parametrize("by", [-1, 1, -5 * MiB, 3 << 40])
def test_a_layer_of_another_size(fake: FakeRegistry, store: Store, bring: Pull, by: int) -> None:
    """If the size of a layer differs from the size in its descriptor, the pull fails."""
    kit = kit_of(kits.part("model", "w.bin", WEIGHTS, format="raw", size=len(WEIGHTS) + by))
    ref = fake.put_kit("team/kit", kit, "v1")
    with pytest.raises(IntegrityError):
        bring(ref)
    assert local_kits(store) == []


def test_a_layer_of_a_size_that_cannot_be(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """A layer whose declared size exceeds the limit is not requested."""
    kit = kit_of(kits.part("model", "w.bin", WEIGHTS, format="raw", size=1 << 60))
    ref = fake.put_kit("team/kit", kit, "v1")
    with pytest.raises(ManifestError, match="limit for a blob"):
        bring(ref)
    assert fake.served(kit.layers[0]) == []
    assert local_kits(store) == []


def test_what_is_not_there(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """If a repository, tag, digest or layer does not exist, NotFound is raised."""
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    for absent in (f"{fake.host}/team/none:v1", ref.replace("v1", "v2"), f"{fake.host}/team/kit@sha256:{'0' * 64}"):
        with pytest.raises(NotFound):
            bring(absent)
    fake.fail(f"/blobs/{kit.layers[1]}", Status(404, code="BLOB_UNKNOWN", message="no"))
    with pytest.raises(NotFound, match=kit.layers[1]):
        bring(ref)
    assert local_kits(store) == []


def test_a_config_that_is_too_long_is_not_fetched(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """A config above the size limit is refused."""
    kit = kits.build([kits.part("model", "m", SMALL, format="raw")])
    manifest = json.loads(kit.manifest)
    manifest["config"]["size"] = (8 << 20) + 1
    ref = fake.put_kit("team/long", kits.Kit(kits.compact(manifest), kit.config, kit.blobs, kit.layers), "v1")
    with pytest.raises(
        ManifestError, match=r"/team/long:v1: the config is 8388609 bytes; the limit for a config is 8388608$"
    ):
        bring(ref)
    assert fake.served("/blobs/") == []
    assert local_kits(store) == []


def test_an_ordinary_image(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """A container image is refused, and no blob of the image is fetched."""
    ref = fake.put_kit("team/image", kits.container_image(), "v1")
    with pytest.raises(ManifestError, match=f"reference {ref} does not refer to a model") as failure:
        bring(ref)
    assert len(str(failure.value).splitlines()) == 1
    assert fake.served("/blobs/") == []
    assert local_kits(store) == []


def test_the_first_failure_ends_the_others(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """After a failure, no further blobs are requested."""
    parts = [kits.part("code", f"c{n}", bytes([n]) * 1000, format="raw") for n in range(40)]
    kit = kit_of(*parts)
    ref = fake.put_kit("team/kit", kit, "v1")
    fake.fail("/blobs/", Status(404, code="BLOB_UNKNOWN", message="no"))
    with pytest.raises(NotFound):
        bring(ref)
    assert len(fake.served("/blobs/")) < 40


# -- credentials, and registries that are busy


def test_without_credentials(fake: FakeRegistry, bring: Pull) -> None:
    ref = fake.put_kit("team/kit", kit_of(), "v1")
    fake.require_basic({"ada": "secret"})
    with pytest.raises(Unauthorized):
        bring(ref)


class Expire:
    """A fault that does not change responses. At every ``every``-th authorized response, all tokens expire."""

    def __init__(self, registry: FakeRegistry, *, every: int) -> None:
        self.registry = registry
        self.every = every
        self.count = 0

    def apply(self, answer: Answer) -> Answer:
        self.count += answer.status != 401
        if answer.status != 401 and self.count % self.every == 0:
            self.registry.expire_tokens()
        return answer


def test_tokens_that_live_for_two_requests(fake: FakeRegistry, store: Store, client: RegistryClient) -> None:
    """A pull requests a new token when the registry refuses the old one, even before the token's declared expiry."""
    kit = kit_of(*(kits.part("code", f"c{n}", bytes([n]) * 1000, format="raw") for n in range(20)))
    ref = fake.put_kit("team/kit", kit, "v1")
    with FakeRegistry() as desk:
        fake.require_token(server=desk, expires_in=300)
        fake.fail("/blobs/", Expire(fake, every=2))
        pull_from(client.repository, store, Reference.parse(ref), concurrency=1, report=quiet)
        whole(store, kit, ref)
        assert len(desk.served("/token")) == 11


def test_a_token_that_expires_in_the_middle_of_a_layer(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """The requests that fetch the layer get new tokens, and each byte is transferred once."""
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    with FakeRegistry() as desk:
        fake.require_token(server=desk)
        fake.fail(f"/blobs/{kit.layers[0]}", Expire(fake, every=1), times=1)
        bring(ref)
        whole(store, kit, ref)
    assert sum(s.sent for s in fake.served() if s.status != 401) == total(kit)


def test_a_registry_that_asks_to_come_later(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """After a response 429 with Retry-After, a pull waits and retries, for manifests and for blobs."""
    kit = kit_of()
    ref = fake.put_kit("team/kit", kit, "v1")
    later = Status(429, {"Retry-After": "1"}, code="TOOMANYREQUESTS", message="slow down", refuses=True)
    manifests, blobs = fake.fail("/manifests/", later, times=2), fake.fail("/blobs/", later, times=7)
    bring(ref)
    whole(store, kit, ref)
    assert (manifests.hits, blobs.hits) == (2, 7)
    assert fake.moved() < total(kit) + TALK


# -- indexes


def test_the_kit_of_an_index_that_labels_choose(fake: FakeRegistry, store: Store, client: RegistryClient) -> None:
    """Labels select a kit of an index. As in kit, the selected kit gets the tag of the index in the store.

    Without labels, the pull fails.
    """
    made = [kit_of(kits.part("model", "w.bin", text.encode(), format="raw")) for text in ("q4", "q8")]
    for number, kit in enumerate(made):
        fake.put_kit("team/kit", kit, f"q{number}")
    rows = [
        {"mediaType": kits.MANIFEST, "digest": k.digest, "size": len(k.manifest), "modelMetadata": {"q": i}}
        for i, k in enumerate(made)
    ]
    listed = json.dumps(
        {"schemaVersion": 2, "mediaType": kits.INDEX, "artifactType": KIT_INDEX, "manifests": rows}
    ).encode()
    named = Reference.parse(f"{fake.host}/team/kit:all")
    client.repository(named).put_manifest("all", kits.INDEX, listed)
    told: list[Event] = []
    assert pull_from(client.repository, store, named, labels={"q": "1"}, report=told.append) == made[1].digest
    assert Noted(f"Index {named.display} refers to ModelKit {made[1].digest}") in told
    whole(store, made[1], named.display)
    with pytest.raises(UsageError, match="is a ModelKit index; select one of its ModelKits"):
        pull_from(client.repository, store, named, report=quiet)
    assert [kit.digest for kit in local_kits(store)] == [made[1].digest]


def test_labels_of_a_kit_are_ignored_and_told(fake: FakeRegistry, store: Store, client: RegistryClient) -> None:
    kit = kit_of(kits.part("model", "w.bin", SMALL, format="raw"))
    named = Reference.parse(fake.put_kit("team/kit", kit, "v1"))
    told: list[Event] = []
    assert pull_from(client.repository, store, named, labels={"q": "1"}, report=told.append) == kit.digest
    assert Warned(f"labels are ignored: {named.display} is a ModelKit, not a ModelKit index") in told


class BusyUntilItExpires:
    """A fault that answers the first ``times`` requests with 429. The token expires before a request is retried."""

    def __init__(self, registry: FakeRegistry, times: int) -> None:
        self.registry = registry
        self.left = times

    def apply(self, answer: Answer) -> Answer:
        if answer.status == 401 or self.left == 0:
            return answer
        self.left -= 1
        self.registry.expire_tokens()
        return Status(429, code="TOOMANYREQUESTS", message="slow down").apply(answer)


def test_a_busy_registry_whose_tokens_do_not_live_that_long(
    fake: FakeRegistry, store: Store, client: RegistryClient
) -> None:
    """If the token expires while a pull waits after a 429, a new token is requested."""
    kit = kit_of(kits.part("code", "a", SMALL, format="raw"))
    ref = fake.put_kit("team/kit", kit, "v1")
    fake.require_token()
    fake.fail(f"/blobs/{kit.layers[0]}", BusyUntilItExpires(fake, 3))
    pull_from(client.repository, store, Reference.parse(ref), concurrency=1, report=quiet)
    whole(store, kit, ref)


def test_tokens_that_are_never_good(fake: FakeRegistry, bring: Pull) -> None:
    """If a new token is refused too, the pull fails after one token request and one retry."""
    ref = fake.put_kit("team/kit", kit_of(), "v1")
    with FakeRegistry() as desk:
        fake.require_token(server=desk)
        desk.fail("/token", Status(200, body=b'{"token": "of-nothing"}'))
        with pytest.raises(Unauthorized):
            bring(ref)
        assert (len(fake.served()), len(desk.served())) == (2, 1)


# -- decoded layers


def compressed_kit() -> kits.Kit:
    return kit_of(
        kits.part("model", "w.bin", SMALL * 80, format="raw", compression="gzip"),
        kits.part("code", "src", kits.kit_tar({"src/a.py": SMALL}), compression="zstd"),
        kits.part("docs", "x.md", b"text", format="raw"),
    )


def decode_layers(store: Store, reference: str) -> None:
    """Decode the layers of a pulled kit, as ``pull`` does."""

    def nowhere(reference: object) -> NoReturn:
        raise AssertionError("the kit is in the store")

    with closing(Resolver(store, nowhere, log=LOG).open(Reference.parse(reference))) as kit:
        decode(store, kit, concurrency=2, log=LOG)


def test_compressed_layers_are_decoded(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """The compressed blobs remain in the store, because a push sends them."""
    kit = compressed_kit()
    ref = fake.put_kit("team/kit", kit, "v1")
    bring(ref)
    moved = fake.moved()
    decode_layers(store, ref)
    assert [store.has_decoded(Digest.parse(text)) for text in kit.layers] == [True, True, False]
    whole(store, kit, ref)
    assert fake.moved() == moved
    file = store.open_sealed(Digest.parse(kit.layers[0]), "decoded")
    assert file is not None
    with file:
        assert file.read() == SMALL * 80


def test_nothing_is_evicted_for_decoded_layers(fake: FakeRegistry, open_store: Opener, bring: Pull) -> None:
    """If the disk has no free space, the layers are not decoded, and layers of other kits are not evicted."""
    kit = compressed_kit()
    ref = fake.put_kit("team/kit", kit, "v1")
    store = open_store(free_share=1.0)
    other = Descriptor("", Digest.parse(fake.put_blob("team/kit", WEIGHTS)), len(WEIGHTS))
    with store.pin([other.digest]):
        store.put(other.digest, WEIGHTS)
        bring(ref, into=store)
        decode_layers(store, ref)
        assert not any(store.has_decoded(Digest.parse(text)) for text in kit.layers)
        assert store.has_sealed(other.digest)
    whole(store, kit, ref)


def test_a_layer_that_cannot_be_decoded_is_pulled(fake: FakeRegistry, store: Store, bring: Pull) -> None:
    """A pull checks only the digest of a layer, so the pull succeeds.

    A mount reports that the layer cannot be decoded.
    """
    kit = kit_of(kits.part("model", "m", b"", compression="gzip", blob=b"not gzip"))
    ref = fake.put_kit("team/kit", kit, "v1")
    bring(ref)
    decode_layers(store, ref)
    whole(store, kit, ref)
    assert not store.has_decoded(Digest.parse(kit.layers[0]))
