"""The verbs sign, verify and generate-key-pair create keys, and store and check signatures by keys."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kitfs.oci import referrers
from kitfs.oci.manifest import IMAGE_MANIFEST
from kitfs.oci.names import Digest
from kitfs.trust import simple_signing
from kitfs.trust.bundle import MEDIA_TYPE, bundle_of
from kitfs.trust.keys import PrivateKey, PublicKey, private_key
from kitfs.trust.statement import PAYLOAD_TYPE, SIGN, signed_bytes, statement_about
from tests import kits
from tests.conftest import GOLDEN
from tests.fakes.faults import Status
from tests.fakes.registry import FakeRegistry
from tests.unit.cli.conftest import Kitfs

ENCRYPTED = GOLDEN / "cosign/test-only.key"  # written by cosign; decrypting it takes a second on a busy machine
PUB = GOLDEN / "cosign/test-only.pub"
NAME = "key SHA256:pdfPSO6irabwxS5g8S1K7SN1UWVP0o1EHnPEaTpUlQg="
SIGNED_LAYOUT = f"oci-archive:{GOLDEN / 'cosign/basic-signed.tar'}:v1"
ONE = kits.build([kits.Part(kind="docs", path="a.txt", content=kits.kit_tar({"a.txt": b"one"}))])
TWO = kits.build([kits.Part(kind="docs", path="a.txt", content=kits.kit_tar({"a.txt": b"two"}))])


@pytest.fixture(autouse=True)
def _password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KITFS_KEY_PASSWORD", raising=False)
    monkeypatch.setenv("COSIGN_PASSWORD", "pw")


def write_key(path: Path, key: PrivateKey) -> Path:
    path.write_bytes(
        key.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return path


@pytest.fixture(scope="module")
def signer() -> PrivateKey:
    """Return the private key whose public key is PUB."""
    return private_key(ENCRYPTED.read_bytes(), "test-only.key", lambda: b"pw")


@pytest.fixture
def key(tmp_path: Path, signer: PrivateKey) -> Path:
    """Return the path of a file with the private key whose public key is PUB. The file has no password."""
    return write_key(tmp_path / "signer.pem", signer)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Return the path of a file with another private key. The public key is in a file with the suffix .pub."""
    made = ec.generate_private_key(ec.SECP256R1())
    path = write_key(tmp_path / "other.key", PrivateKey(made, PublicKey(made.public_key(), b"")))
    pem = made.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(pem)
    return path


@pytest.fixture(params=["referrers API", "fallback tag"])
def registry(request: pytest.FixtureRequest, fake: FakeRegistry) -> FakeRegistry:
    """Return a registry. Each test runs twice: with the referrers API and without it."""
    fake.referrers_api = request.param == "referrers API"
    return fake


@pytest.fixture
def kit(registry: FakeRegistry) -> str:
    return registry.put_kit("team/kit", ONE, "v1")


def put_bundle(fake: FakeRegistry, subject: Digest, bundle: bytes) -> None:
    """Store a bundle as a referrer of ``subject``. Every user with permission to push can do this."""
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": fake.put_blob("team/kit", b"{}"), "size": 2}
    layer = {"mediaType": MEDIA_TYPE, "digest": fake.put_blob("team/kit", bundle), "size": len(bundle)}
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "artifactType": MEDIA_TYPE,
            "config": empty,
            "layers": [layer],
            "subject": {"mediaType": IMAGE_MANIFEST, "digest": subject, "size": 5},
        }
    ).encode()
    digest = Digest(fake.put_manifest("team/kit", manifest))
    if not fake.referrers_api:
        index = referrers.with_entry(referrers.EMPTY, referrers.entry_of(IMAGE_MANIFEST, digest, manifest))
        assert index is not None
        fake.put_manifest(
            "team/kit", index, tag=referrers.tag_of(subject), media_type="application/vnd.oci.image.index.v1+json"
        )


def statement_bundle(key: PrivateKey, digest: Digest, predicate_type: str = SIGN) -> bytes:
    """Return a bundle with a statement about ``digest``, signed by ``key``."""
    payload = statement_about(digest, predicate_type, {})
    return bundle_of(payload, key.sign(signed_bytes(PAYLOAD_TYPE, payload)), key.public.hint)


@pytest.mark.parametrize("shape", ["bundle", "tag"])
def test_a_signed_kit_is_verified(kitfs: Kitfs, kit: str, shape: str, key: Path) -> None:
    """sign stores a signature, and verify accepts it, in both formats."""
    signed = kitfs("sign", kit, "--key", key, "--signature-format", shape)
    assert (signed.code, signed.out) == (0, f"{Digest.of(ONE.manifest)} signed by {NAME} ({shape})\n"), signed.err
    verified = kitfs("verify", kit, "--key", PUB)
    assert (verified.code, verified.out) == (0, f"{Digest.of(ONE.manifest)} is signed by {NAME} ({shape})\n")
    found = kitfs("verify", kit, "--key", PUB, "--json").json
    assert (found["reference"], found["digest"]) == (kit, Digest.of(ONE.manifest))
    [signature] = found["signatures"]
    assert (signature["signer"], signature["format"]) == (NAME, shape)


@pytest.mark.parametrize("shape", ["bundle", "tag"])
def test_signing_again_stores_nothing(
    kitfs: Kitfs, registry: FakeRegistry, kit: str, shape: str, key: Path, other: Path
) -> None:
    """A second signature by the same key in the same format is not stored. A signature by another key is stored."""
    assert kitfs("sign", kit, "--key", key, "--signature-format", shape).code == 0
    pushes = len(registry.served(method="PUT"))
    again = kitfs("sign", kit, "--key", key, "--signature-format", shape)
    assert again.out == f"{Digest.of(ONE.manifest)} was signed before by {NAME} ({shape})\n"
    assert len(registry.served(method="PUT")) == pushes
    assert kitfs("sign", kit, "--key", other, "--signature-format", shape).code == 0
    for public in (PUB, other.with_suffix(".pub")):
        assert kitfs("verify", kit, "--key", public).code == 0


def test_a_kit_without_a_signature_is_refused(kitfs: Kitfs, kit: str) -> None:
    done = kitfs("verify", kit, "--key", PUB)
    assert (done.code, done.out) == (11, "")
    assert done.err == f"kitfs: {Digest.of(ONE.manifest)} is not signed by {NAME}; no signature was found\n"


@pytest.mark.parametrize("shape", ["bundle", "tag"])
def test_another_key_is_refused(kitfs: Kitfs, kit: str, other: Path, shape: str, key: Path) -> None:
    """The error lists the signers that were found.

    A signature in cosign's tag format does not say which key made it.
    """
    kitfs("sign", kit, "--key", key, "--signature-format", shape)
    done = kitfs("verify", kit, "--key", other.with_suffix(".pub"))
    assert done.code == 11
    named = f"{NAME} (bundle)" if shape == "bundle" else "an unnamed key (tag)"
    assert done.err.endswith(f"; the signatures that were found name {named}\n")


@pytest.mark.parametrize("shape", ["bundle", "tag"])
def test_a_signature_of_another_kit_is_refused(
    kitfs: Kitfs, registry: FakeRegistry, kit: str, shape: str, key: Path, signer: PrivateKey, other: Path
) -> None:
    """A valid signature that was copied to another kit is refused."""
    kitfs("sign", kit, "--key", key, "--signature-format", shape)
    other = registry.put_kit("team/kit", TWO, "v2")
    if shape == "bundle":
        put_bundle(registry, Digest.of(TWO.manifest), statement_bundle(signer, Digest.of(ONE.manifest)))
    else:
        copied, _ = registry.manifest("team/kit", simple_signing.tag_of(Digest.of(ONE.manifest)))
        registry.put_manifest("team/kit", copied, tag=simple_signing.tag_of(Digest.of(TWO.manifest)))
    assert kitfs("verify", other, "--key", PUB).code == 11


def test_an_attestation_is_not_a_signature(kitfs: Kitfs, registry: FakeRegistry, kit: str, signer: PrivateKey) -> None:
    """A signed statement with another predicate type is not accepted as a signature."""
    put_bundle(
        registry,
        Digest.of(ONE.manifest),
        statement_bundle(signer, Digest.of(ONE.manifest), "https://slsa.dev/provenance/v1"),
    )
    assert kitfs("verify", kit, "--key", PUB).code == 11


def test_a_changed_statement_is_refused(kitfs: Kitfs, registry: FakeRegistry, kit: str, signer: PrivateKey) -> None:
    fields = json.loads(statement_bundle(signer, Digest.of(TWO.manifest)))
    statement = base64.b64encode(statement_about(Digest.of(ONE.manifest), SIGN, {})).decode()
    fields["dsseEnvelope"]["payload"] = statement
    put_bundle(registry, Digest.of(ONE.manifest), json.dumps(fields).encode())
    assert kitfs("verify", kit, "--key", PUB).code == 11


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, b"\xff" * 100, b'{"mediaType":"x"}'])
def test_a_bundle_that_cannot_be_read_does_not_hide_a_good_one(
    kitfs: Kitfs, fake: FakeRegistry, data: bytes, key: Path
) -> None:
    """If a registry contains a referrer that is not valid, the kit can still be signed and verified."""
    kit = fake.put_kit("team/kit", ONE, "v1")
    put_bundle(fake, Digest.of(ONE.manifest), data)
    assert kitfs("verify", kit, "--key", PUB).code == 11
    assert kitfs("sign", kit, "--key", key).code == 0
    assert kitfs("verify", kit, "--key", PUB).code == 0


def test_the_name_of_a_key_cannot_control_the_terminal(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """The name of the key in a bundle is not trusted. It is escaped and shortened before it is printed."""
    kit = fake.put_kit("team/kit", ONE, "v1")
    bundle = bundle_of(statement_about(Digest.of(ONE.manifest), SIGN, {}), b"x", "\x1b[2J" + "x" * 1000)
    put_bundle(fake, Digest.of(ONE.manifest), bundle)
    done = kitfs("verify", kit, "--key", PUB)
    assert done.code == 11
    assert "\x1b" not in done.err
    assert len(done.err) < 500


@pytest.mark.parametrize("shape", ["referrers/", r"\.sig"])
def test_an_error_of_the_registry_is_not_a_missing_signature(
    kitfs: Kitfs, fake: FakeRegistry, shape: str, key: Path, other: Path
) -> None:
    """verify fails if the registry returns an error for one format and the other format has no valid signature."""
    kit = fake.put_kit("team/kit", ONE, "v1")
    fake.fail(shape, Status(500))
    assert kitfs("verify", kit, "--key", PUB, "--read-timeout", "2").code == 4
    kitfs("sign", kit, "--key", key, "--signature-format", "tag" if shape == "referrers/" else "bundle")
    fake.heal()
    fake.fail(shape, Status(500))
    assert kitfs("verify", kit, "--key", PUB, "--read-timeout", "2").code == 0


def test_a_mirror_without_signatures_does_not_hide_those_of_the_registry(
    kitfs: Kitfs, fake: FakeRegistry, key: Path
) -> None:
    kit = fake.put_kit("team/kit", ONE, "v1")
    kitfs("sign", kit, "--key", key)
    with FakeRegistry() as mirror:
        mirror.put_kit("team/kit", ONE, "v1")
        done = kitfs("verify", kit, "--key", PUB, "--mirror", f"{fake.host}={mirror.url}")
        assert (done.code, done.err) == (0, "")
        assert mirror.served("referrers")


def test_the_layout_that_cosign_signed_is_verified(kitfs: Kitfs, other: Path, key: Path) -> None:
    """The golden layout has two signatures by cosign 3.

    Both are accepted with cosign's key, and refused with another key.
    """
    found = kitfs("verify", SIGNED_LAYOUT, "--key", PUB, "--json").json["signatures"]
    assert sorted(one["format"] for one in found) == ["bundle", "tag"]
    assert kitfs("verify", SIGNED_LAYOUT, "--key", other.with_suffix(".pub")).code == 11


def test_one_kit_of_an_index_is_signed_by_its_label(kitfs: Kitfs, fake: FakeRegistry, key: Path) -> None:
    """--label selects the kit of an index that is signed or verified."""
    for name, kit in (("a", ONE), ("b", TWO)):
        fake.put_kit("team/kit", kit, name)
        assert kitfs("pull", f"{fake.host}/team/kit:{name}").code == 0
    index = f"{fake.host}/team/kit:all"
    assert kitfs("index", "create", index).code == 0
    for name in "ab":
        assert kitfs("index", "add", index, f"{fake.host}/team/kit:{name}", "--label", f"n={name}").code == 0
    assert kitfs("index", "push", index).code == 0
    assert kitfs("sign", index, "--key", key).code == 2
    assert kitfs("sign", index, "--key", key, "--label", "n=b").out.startswith(Digest.of(TWO.manifest))
    assert kitfs("verify", index, "--key", PUB, "--label", "n=b").code == 0
    assert kitfs("verify", index, "--key", PUB, "--label", "n=a").code == 11


WRONG: list[tuple[list[Any], str]] = [
    (["sign", "KIT"], "sign needs a private key"),
    (["verify", "KIT"], "verify needs a public key"),
    (["sign", "KIT", "--key", PUB], "it is a public key; name the file of its private key"),
    (["verify", "KIT", "--key", ENCRYPTED], "it is a private key"),
    (["sign", "kit:v1", "--key", ENCRYPTED], "registry is required when signing"),
    (["verify", "kit:v1", "--key", PUB], "registry is required when verifying"),
    (["sign", "KIT,v2", "--key", ENCRYPTED], "only one tag"),
    (["sign", "KIT", "--key", ENCRYPTED, "--cert", PUB], "--cert and --client-key must be given together"),
    (["verify", "KIT", "--key", "missing.pub"], "missing.pub"),
]


@pytest.mark.parametrize(("words", "text"), WRONG)
def test_a_wrong_command_line_is_exit_code_2(kitfs: Kitfs, fake: FakeRegistry, words: list[Any], text: str) -> None:
    kit = fake.put_kit("team/kit", ONE, "v1")
    done = kitfs(*[str(word).replace("KIT", kit) for word in words])
    assert (done.code, done.out) == (2, "")
    assert text in done.err


def test_a_missing_password_is_exit_code_2(
    kitfs: Kitfs, fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch, key: Path
) -> None:
    """The password of an encrypted key comes from a variable or a terminal. A wrong password is an error."""
    kit = fake.put_kit("team/kit", ONE, "v1")
    monkeypatch.setenv("KITFS_KEY_PASSWORD", "wrong")
    assert "the password is wrong" in kitfs("sign", kit, "--key", ENCRYPTED).err
    monkeypatch.delenv("KITFS_KEY_PASSWORD")
    monkeypatch.delenv("COSIGN_PASSWORD")
    done = kitfs("sign", kit, "--key", ENCRYPTED)
    assert (done.code, "KITFS_KEY_PASSWORD" in done.err) == (2, True)


def test_a_new_key_pair_is_private_and_overwrites_nothing(kitfs: Kitfs, tmp_path: Path, key: Path) -> None:
    done = kitfs("generate-key-pair")
    assert done.out == f"private key: {tmp_path / 'cosign.key'}\npublic key: {tmp_path / 'cosign.pub'}\n"
    assert stat.S_IMODE((tmp_path / "cosign.key").stat().st_mode) == 0o600
    assert (tmp_path / "cosign.pub").read_text().startswith("-----BEGIN PUBLIC KEY-----\n")
    before = (tmp_path / "cosign.key").read_bytes()
    again = kitfs("generate-key-pair")
    assert (again.code, "exists already" in again.err) == (2, True)
    assert (tmp_path / "cosign.key").read_bytes() == before


def test_a_key_of_the_settings_file_is_the_client_key(
    kitfs: Kitfs, tmp_path: Path, fake: FakeRegistry, key: Path
) -> None:
    """The setting ``key`` is the key of the client certificate, also for sign.

    The setting for the signing key is ``sign: key``.
    """
    kit = fake.put_kit("team/kit", ONE, "v1")
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"key: {key}\nsign: {{key: {key}}}\nverify-key: {PUB}\n")
    assert "--cert and --client-key must be given together" in kitfs("sign", kit, "--settings", settings).err
    settings.write_text(f"sign: {{key: {key}}}\n")
    assert kitfs("sign", kit, "--settings", settings).code == 0


# -- signatures that pull and unpack require


@pytest.mark.parametrize("verb", [["pull"], ["unpack", "-d", "out"]])
def test_a_kit_is_used_only_if_it_is_signed(kitfs: Kitfs, kit: str, key: Path, other: Path, verb: list[str]) -> None:
    """With --verify-key, a kit without a signature by the key is refused, and nothing is stored."""
    refused = kitfs(*verb, kit, "--verify-key", PUB)
    assert (refused.code, refused.err.count("\n")) == (11, 1)
    assert "no signature was found" in refused.err
    assert kitfs("list", "--json").json == []
    assert not Path("out").exists() or not list(Path("out").iterdir())
    kitfs("sign", kit, "--key", key)
    assert kitfs(*verb, kit, "--verify-key", other.with_suffix(".pub")).code == 11
    assert kitfs(*verb, kit, "--verify-key", PUB).code == 0


def test_no_layer_is_fetched_of_a_kit_that_is_refused(kitfs: Kitfs, fake: FakeRegistry) -> None:
    kit = fake.put_kit("team/kit", ONE, "v1")
    assert kitfs("pull", kit, "--verify-key", PUB).code == 11
    assert fake.served("/blobs/") == []


def test_a_pulled_kit_needs_its_signature_again(kitfs: Kitfs, fake: FakeRegistry, key: Path) -> None:
    """The signature of a kit in the store is checked at the registry.

    If the registry cannot be reached, the kit is accepted only if its signature was verified when the kit was pulled.
    """
    kit = fake.put_kit("team/kit", ONE, "v1")
    assert kitfs("pull", kit).code == 0
    assert kitfs("unpack", kit, "-d", "a", "--verify-key", PUB).code == 11
    kitfs("sign", kit, "--key", key)
    assert kitfs("pull", kit, "--verify-key", PUB).code == 0
    fake.stop()
    done = kitfs("unpack", kit, "-d", "b", "--verify-key", PUB)
    assert done.code == 0
    assert "its signature was verified" in done.err
    assert kitfs("verify", kit, "--key", PUB).code == 4


def test_the_parent_of_a_kit_must_be_signed_too(kitfs: Kitfs, fake: FakeRegistry, key: Path) -> None:
    weights = kits.Part(kind="model", path="model", content=kits.kit_tar({"model/w.bin": b"weights"}))
    parent = fake.put_kit("team/parent", kits.build([weights]), "v1")
    docs = kits.Part(kind="docs", path="a.txt", content=kits.kit_tar({"a.txt": b"child"}))
    child = fake.put_kit("team/child", kits.build([docs], parent=parent), "v1")
    kitfs("sign", child, "--key", key)
    for verb in (["pull"], ["unpack", "-d", "out"]):
        refused = kitfs(*verb, child, "--verify-key", PUB)
        assert (refused.code, f"{parent} (" in refused.err) == (11, True)
    kitfs("sign", parent, "--key", key)
    assert kitfs("pull", child, "--verify-key", PUB).code == 0


def test_a_policy_file_names_its_rule(kitfs: Kitfs, fake: FakeRegistry, tmp_path: Path, key: Path) -> None:
    """The error names the rule and the policy file.

    If --verify-key is given too, the kit must satisfy the policy and have a signature by the key.
    """
    kit = fake.put_kit("team/kit", ONE, "v1")
    policy = tmp_path / "policy.json"
    rule = {"type": "sigstoreSigned", "keyPath": str(PUB), "signedIdentity": {"type": "matchRepository"}}
    policy.write_text(json.dumps({"default": [{"type": "reject"}], "transports": {"docker": {fake.host: [rule]}}}))
    refused = kitfs("pull", kit, "--policy", policy)
    assert refused.code == 11
    assert f"the rule docker '{fake.host}' of {policy} demands a signature by {NAME}" in refused.err
    kitfs("sign", kit, "--key", key)
    assert kitfs("pull", kit, "--policy", policy, "--verify-key", PUB).code == 0
    policy.write_text('{"default": [{"type": "reject"}]}')
    assert kitfs("pull", kit, "--policy", policy, "--verify-key", PUB).code == 11
    policy.write_text("{")
    assert kitfs("pull", kit, "--policy", policy).code == 2


def test_a_signed_layout_is_unpacked(kitfs: Kitfs, other: Path) -> None:
    """unpack accepts the kit in the golden layout only with the key that signed it."""
    assert kitfs("unpack", SIGNED_LAYOUT, "-d", "a", "--verify-key", other.with_suffix(".pub")).code == 11
    assert kitfs("unpack", SIGNED_LAYOUT, "-d", "b", "--verify-key", PUB).code == 0
