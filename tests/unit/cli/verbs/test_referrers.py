"""With --with-referrers, push, pull and export copy the referrers of a kit. remove removes a kit with its referrers."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from kitfs.oci import referrers
from kitfs.oci.manifest import IMAGE_INDEX, IMAGE_MANIFEST
from kitfs.oci.names import Digest
from kitfs.ops.transfer.referrers import MAX_REFERRERS
from tests import kits
from tests.conftest import GOLDEN
from tests.fakes.registry import FakeRegistry
from tests.unit.cli.conftest import Kitfs

PUB = GOLDEN / "cosign/test-only.pub"
SIGNED_LAYOUT = f"oci-archive:{GOLDEN / 'cosign/basic-signed.tar'}:v1"
KIT = kits.build([kits.Part(kind="docs", path="a.txt", content=kits.kit_tar({"a.txt": b"one"}))])
SBOM = "application/vnd.test.sbom"


@pytest.fixture(params=["referrers API", "fallback tag"])
def registry(request: pytest.FixtureRequest, fake: FakeRegistry) -> FakeRegistry:
    """Return a registry. Each test runs twice: with the referrers API and without it."""
    fake.referrers_api = request.param == "referrers API"
    return fake


def attach(fake: FakeRegistry, subject: str, content: bytes, *, repository: str = "team/kit") -> str:
    """Attach a document to a manifest as other programs do. Return the digest of the manifest of the document."""
    return put_referrer(fake, subject, SBOM, content, repository=repository)


def put_referrer(
    fake: FakeRegistry, subject: str, media_type: str, content: bytes, *, repository: str = "team/llama"
) -> str:
    """Attach a blob to a manifest as a referrer with one layer. Return the digest of the referrer."""
    blob, config = fake.put_blob(repository, content), fake.put_blob(repository, b"{}")
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "artifactType": media_type,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
            "layers": [{"mediaType": media_type, "digest": blob, "size": len(content)}],
            "subject": {"mediaType": IMAGE_MANIFEST, "digest": subject, "size": 5},
        }
    ).encode()
    digest = Digest(fake.put_manifest(repository, manifest))
    if not fake.referrers_api:
        tag = referrers.tag_of(Digest(subject))
        try:
            index = fake.manifest(repository, tag)[0]
        except KeyError:
            index = referrers.EMPTY
        changed = referrers.with_entry(index, referrers.entry_of(IMAGE_MANIFEST, digest, manifest))
        assert changed is not None
        fake.put_manifest(repository, changed, tag=tag, media_type=IMAGE_INDEX)
    return digest


def signed_copy(kitfs: Kitfs, fake: FakeRegistry) -> str:
    """Put the kit that cosign signed, and its two signatures, into a registry. Return the reference of the kit."""
    with tarfile.open(GOLDEN / "cosign/basic-signed.tar") as archive:
        for member in archive.getmembers():
            found = archive.extractfile(member)
            if found is not None and member.name.startswith("blobs/"):
                data = found.read()
                fake.put_blob("team/signed", data)
                if data.startswith(b'{"schemaVersion"'):
                    media_type = IMAGE_INDEX if b'"manifests"' in data else IMAGE_MANIFEST
                    fake.put_manifest("team/signed", data, media_type=media_type)
        index = archive.extractfile("index.json")
        assert index is not None
        for entry in json.load(index)["manifests"]:
            data, media_type = fake.manifest("team/signed", entry["digest"])
            tag = entry["annotations"]["org.opencontainers.image.ref.name"]
            fake.put_manifest("team/signed", data, tag=tag, media_type=media_type)
    return f"{fake.host}/team/signed:v1"


def test_signatures_go_from_one_registry_to_another(kitfs: Kitfs, registry: FakeRegistry) -> None:
    """A kit is pulled and pushed to another registry with its signatures.

    They are valid there, in both formats of cosign.
    """
    registry.referrers_api = False  # like the golden layout
    kit = signed_copy(kitfs, registry)
    assert kitfs("pull", kit, "--with-referrers").code == 0
    with FakeRegistry() as other:
        target = f"{other.host}/elsewhere/signed:v1"
        assert kitfs("push", kit, target, "--with-referrers").code == 0
        found = kitfs("verify", target, "--key", PUB, "--json").json["signatures"]
        assert sorted(one["format"] for one in found) == ["bundle", "tag"]


def test_a_push_without_the_option_sends_the_kit_alone(kitfs: Kitfs, registry: FakeRegistry) -> None:
    kit = registry.put_kit("team/kit", KIT, "v1")
    attach(registry, Digest.of(KIT.manifest), b"a document")
    assert kitfs("pull", kit).code == 0
    with FakeRegistry() as other:
        assert kitfs("push", kit, f"{other.host}/team/kit:v1").code == 0
        assert other.blob("team/kit", Digest.of(b"a document")) is None
        done = kitfs("push", kit, f"{other.host}/team/kit:v1", "--with-referrers")
        assert (done.code, "pull it with --with-referrers first" in done.err) == (0, True)


def test_what_refers_to_a_referrer_comes_too(kitfs: Kitfs, registry: FakeRegistry) -> None:
    """If a document is attached to a referrer of the kit, both are pulled and pushed with the kit."""
    kit = registry.put_kit("team/kit", KIT, "v1")
    first = attach(registry, Digest.of(KIT.manifest), b"about the kit")
    attach(registry, first, b"about the document")
    assert kitfs("pull", kit, "--with-referrers").code == 0
    registry.stop()
    with FakeRegistry() as other:
        assert kitfs("push", kit, f"{other.host}/team/kit:v1", "--with-referrers").code == 0
        assert other.blob("team/kit", Digest.of(b"about the document")) == b"about the document"
        assert other.manifest("team/kit", first)


@pytest.mark.parametrize("target", ["oci:layout", "oci-archive:layout.tar"])
def test_an_exported_layout_has_the_signatures(kitfs: Kitfs, fake: FakeRegistry, tmp_path: Path, target: str) -> None:
    """With --with-referrers, export writes the signatures of a kit into the layout.

    The kit is in a registry, in the store or in another layout.
    """
    fake.referrers_api = False
    kit = signed_copy(kitfs, fake)
    sources = [kit, SIGNED_LAYOUT]
    for number, source in enumerate(sources):
        to = target.replace("layout", f"l{number}") + ":v1"
        assert kitfs("export", source, to, "--with-referrers").code == 0
        assert len(kitfs("verify", to, "--key", PUB, "--json").json["signatures"]) == 2
    kitfs("pull", kit, "--with-referrers")
    fake.stop()
    assert kitfs("export", kit, f"{target.replace('layout', 'stored')}:v1", "--with-referrers").code == 0
    assert kitfs("verify", f"{target.replace('layout', 'stored')}:v1", "--key", PUB).code == 0
    assert kitfs("export", kit, f"{target.replace('layout', 'alone')}:v1").code == 0
    assert kitfs("verify", f"{target.replace('layout', 'alone')}:v1", "--key", PUB).code == 11


def test_a_removed_kit_takes_its_referrers_with_it(kitfs: Kitfs, registry: FakeRegistry) -> None:
    """`cache clear` does not remove pulled referrers. They are not listed as kits, and are removed with the kit."""
    kit = registry.put_kit("team/kit", KIT, "v1")
    attach(registry, Digest.of(KIT.manifest), b"a document")
    kitfs("pull", kit, "--with-referrers")
    assert [row["digest"] for row in kitfs("list", "--json").json] == [Digest.of(KIT.manifest)]
    kitfs("cache", "clear")
    with FakeRegistry() as other:
        assert kitfs("push", kit, f"{other.host}/team/kit:v1", "--with-referrers").code == 0
        assert other.blob("team/kit", Digest.of(b"a document")) == b"a document"
    assert kitfs("remove", kit).code == 0
    blobs = kitfs("cache", "info", "--json").json["blobs"]
    assert (blobs if isinstance(blobs, int) else len(blobs)) == 0
    assert kitfs("list", "--json").json == []


def test_signatures_at_the_target_stay(kitfs: Kitfs, fake: FakeRegistry, tmp_path: Path, monkeypatch: Any) -> None:
    """If the target has other signatures under cosign's tag, a push adds its signatures to them."""
    monkeypatch.setenv("KITFS_KEY_PASSWORD", "")
    fake.referrers_api = False
    kit = signed_copy(kitfs, fake)
    kitfs("pull", kit, "--with-referrers")
    with FakeRegistry() as other:
        target = f"{other.host}/team/signed:v1"
        kitfs("push", kit, target)
        kitfs("generate-key-pair", "--output-key-prefix", "other")
        assert kitfs("sign", target, "--key", "other.key", "--signature-format", "tag").code == 0
        for _ in range(2):
            assert kitfs("push", kit, target, "--with-referrers").code == 0
        for key in (PUB, tmp_path / "other.pub"):
            found = kitfs("verify", target, "--key", key, "--json").json["signatures"]
            assert [one["format"] for one in found if one["format"] == "tag"] == ["tag"]


def test_the_number_of_referrers_is_bounded(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """A pull fetches a limited number of referrers. It prints a warning if the registry lists more."""
    kit = fake.put_kit("team/kit", KIT, "v1")
    for number in range(MAX_REFERRERS + 5):
        attach(fake, Digest.of(KIT.manifest), b"%d" % number)
    done = kitfs("pull", kit, "--with-referrers")
    assert (done.code, f"more than {MAX_REFERRERS} referrers" in done.err) == (0, True)


def test_a_referrer_that_cannot_be_read_is_left_out(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """A pull skips referrers whose manifests do not exist or are not valid."""
    kit = fake.put_kit("team/kit", KIT, "v1")
    fake.referrers_api = False
    attach(fake, Digest.of(KIT.manifest), b"a document")
    tag = referrers.tag_of(Digest.of(KIT.manifest))
    index = json.loads(fake.manifest("team/kit", tag)[0])
    rubbish = fake.put_manifest("team/kit", b'{"schemaVersion":2}')
    for digest in (Digest.of(b"missing"), rubbish):
        index["manifests"].append({"mediaType": IMAGE_MANIFEST, "digest": digest, "size": 19})
    fake.put_manifest("team/kit", json.dumps(index).encode(), tag=tag, media_type=IMAGE_INDEX)
    assert kitfs("pull", kit, "--with-referrers").code == 0
