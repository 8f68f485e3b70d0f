"""An Admission decides whether a kit may be used.

The tests check its requests, its refusals, and when it reuses an earlier verdict.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kitfs.errors import KitfsError, NotFound, RateLimited, SignatureError, Unauthorized, Unavailable
from kitfs.kit.admission import MAX_AGE, Admission
from kitfs.oci.manifest import IMAGE_MANIFEST, Descriptor
from kitfs.oci.names import Digest, LayoutReference, Reference, parse_any
from kitfs.trust import simple_signing
from kitfs.trust.keys import PrivateKey, private_key
from kitfs.trust.policy_file import read_key_policy, read_policy
from tests.conftest import GOLDEN

PUB = GOLDEN / "cosign/test-only.pub"
KIT = Digest.of(b"the manifest")
ASKED = parse_any("registry.example.com/team/kit:v1")
NAME = "registry.example.com/team/kit"


class Hints:
    """A store of hints in memory."""

    def __init__(self) -> None:
        self.notes: dict[tuple[str, str], Any] = {}

    def get(self, key: tuple[str, str]) -> Any:
        return self.notes.get(key)

    def set(self, key: tuple[str, str], value: Any) -> None:
        self.notes[key] = json.loads(json.dumps(value))

    def delete(self, key: tuple[str, str]) -> None:
        self.notes.pop(key, None)


class Place:
    """A fake repository that contains a signature by each key. If ``error`` is set, every request raises it."""

    def __init__(self, *keys: PrivateKey) -> None:
        self.error: KitfsError | None = None
        self.asked = 0
        self.blobs: dict[Digest, bytes] = {}
        payload = simple_signing.payload_of(NAME, KIT)
        self.manifest_bytes = b""
        for key in keys:
            layer = simple_signing.layer_of(payload, key.sign(payload))
            self.blobs[layer.digest] = payload
            self.manifest_bytes, _ = simple_signing.manifest_of(None, layer)

    def _ask(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error

    def manifest(self, identifier: str) -> tuple[Descriptor, bytes]:
        self._ask()
        if not self.manifest_bytes or identifier != simple_signing.tag_of(KIT):
            raise NotFound(identifier)
        return Descriptor(IMAGE_MANIFEST, Digest.of(self.manifest_bytes), len(self.manifest_bytes)), self.manifest_bytes

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes:
        return self.blobs[descriptor.digest]

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        self._ask()
        return ()


@pytest.fixture(scope="module")
def signer() -> PrivateKey:
    """Return the private key whose public key is in the file PUB."""
    return private_key((GOLDEN / "cosign/test-only.key").read_bytes(), "k", lambda: b"pw")


class World:
    """An Admission whose collaborators are fakes. A test can set its time, ``now``."""

    def __init__(self, places: list[Place], *, policy: Path | None = None) -> None:
        self.hints, self.now, self.places = Hints(), 1_000_000.0, places
        self._policy = read_key_policy(str(PUB)) if policy is None else read_policy(str(policy))

    def check(self, asked: Reference | LayoutReference = ASKED, digest: Digest = KIT) -> None:
        Admission(
            [self._policy],
            lambda _: self.places,
            self.hints,
            log=logging.getLogger("kitfs.test"),
            clock=lambda: self.now,
        ).check(asked, digest)


def unreachable() -> Unavailable:
    return Unavailable("registry.example.com cannot be reached")


def test_a_signed_kit_is_accepted_and_the_verdict_is_kept(signer: PrivateKey) -> None:
    """The stored verdict contains the digests of the valid signatures."""
    world = World([Place(signer)])
    world.check()
    [verdict] = world.hints.notes.values()
    assert verdict == {"seen": 1_000_000, "signatures": [str(digest) for digest in world.places[0].blobs]}


def test_a_refusal_is_one_line_with_the_rule_and_the_signers(signer: PrivateKey) -> None:
    with pytest.raises(SignatureError) as refusal:
        World([Place()]).check()
    assert str(refusal.value) == (
        f"registry.example.com/team/kit:v1 ({KIT}) is refused: --verify-key demands a signature by "
        "key SHA256:pdfPSO6irabwxS5g8S1K7SN1UWVP0o1EHnPEaTpUlQg=; no signature was found"
    )
    assert refusal.value.exit_code == 11


def test_every_place_is_asked_until_one_has_the_signature(signer: PrivateKey) -> None:
    """If a mirror fails or has no signatures, the registry is asked."""
    broken, empty, registry = Place(), Place(), Place(signer)
    broken.error = unreachable()
    World([broken, empty, registry]).check()


@pytest.mark.parametrize("error", [unreachable(), RateLimited("slow down")])
def test_a_verdict_counts_while_the_registry_cannot_be_reached(
    signer: PrivateKey, error: KitfsError, caplog: pytest.LogCaptureFixture
) -> None:
    """A verdict is reused until it is MAX_AGE old, with a warning. Setting the clock back does not extend this time."""
    world = World([Place(signer)])
    world.check()
    world.places[0].error = error
    world.now += MAX_AGE
    world.check()
    assert "its signature was verified 7 d ago" in caplog.text
    for jump in (1, -2 * MAX_AGE):
        world.now += jump
        with pytest.raises(SignatureError):
            world.check()


def test_without_a_verdict_an_unreachable_registry_is_a_refusal(signer: PrivateKey) -> None:
    world = World([Place(signer)])
    world.places[0].error = unreachable()
    with pytest.raises(SignatureError, match=r"no signature can be fetched: registry\.example\.com cannot be reached"):
        world.check()


@pytest.mark.parametrize(
    "other",
    [
        lambda world: world.check(digest=Digest.of(b"another manifest")),
        lambda world: world.check(parse_any("registry.example.com/team/other:v1")),
        lambda world: world.check(LayoutReference("oci", "/srv/kit", "v1")),
    ],
)
def test_a_verdict_is_for_one_repository_and_digest(signer: PrivateKey, other: Callable[[World], None]) -> None:
    world = World([Place(signer)])
    world.check()
    world.places[0].error = unreachable()
    world.check()
    with pytest.raises(SignatureError):
        other(world)


def test_a_verdict_is_for_one_policy(signer: PrivateKey, tmp_path: Path) -> None:
    """A verdict is not reused if the policy file has changed."""
    path = tmp_path / "policy.json"

    def write(kind: str) -> None:
        rule = {"type": "sigstoreSigned", "keyPath": str(PUB), "signedIdentity": {"type": kind}}
        path.write_text(json.dumps({"default": [rule]}))

    write("matchRepository")
    world = World([Place(signer)], policy=path)
    world.check()
    write("matchRepoDigestOrExact")
    later = World(world.places, policy=path)
    later.hints = world.hints
    world.places[0].error = unreachable()
    world.check()
    with pytest.raises(SignatureError):
        later.check()


def test_a_verdict_is_forgotten_when_the_signature_is_gone(signer: PrivateKey) -> None:
    """If the registry answered that there is no signature, an older verdict is not reused later."""
    world = World([Place(signer)])
    world.check()
    world.places = [Place()]
    with pytest.raises(SignatureError):
        world.check()
    world.places[0].error = unreachable()
    with pytest.raises(SignatureError):
        world.check()


def test_an_access_that_is_denied_is_not_an_unreachable_registry(signer: PrivateKey) -> None:
    """If the registry returns 401, no verdict is reused. The error says that access was denied."""
    world = World([Place(signer)])
    world.check()
    world.places[0].error = Unauthorized("registry.example.com denied access")
    with pytest.raises(SignatureError, match="denied access"):
        world.check()


def test_a_verdict_of_one_rule_does_not_count_for_another(signer: PrivateKey, tmp_path: Path) -> None:
    """Two policies in one file apply to the kit. Each policy has its own verdict."""
    path = tmp_path / "policy.yaml"
    document = (
        "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: NAME}\n"
        "spec: {images: [{glob: '**'}], authorities: [{key: {data: KEY}}]}\n"
    )
    other = signer.public.pem.decode()
    both = [document.replace("NAME", name).replace("KEY", json.dumps(other)) for name in ("first", "second")]
    path.write_text("---\n".join(both))
    world = World([Place(signer)], policy=path)
    world.check()
    assert len(world.hints.notes) == 2


def test_a_policy_that_rejects_asks_nobody(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{"default": [{"type": "reject"}]}')
    world = World([Place()], policy=path)
    with pytest.raises(SignatureError, match=r"the rule default of .*policy\.json rejects it$"):
        world.check()
    path.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    World(world.places, policy=path).check()
    assert world.places[0].asked == 0


def test_a_policy_that_only_warns_accepts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "apiVersion: policy.sigstore.dev/v1beta1\nkind: ClusterImagePolicy\nmetadata: {name: p}\n"
        "spec: {mode: warn, images: [{glob: '**'}], authorities: [{static: {action: fail}}]}\n"
    )
    World([Place()], policy=path).check()
    assert "because the policy only warns" in caplog.text


def test_a_kit_without_a_registry_has_no_signatures() -> None:
    with pytest.raises(SignatureError, match="this reference has no registry"):
        World([Place()]).check(parse_any("kit:v1"))
