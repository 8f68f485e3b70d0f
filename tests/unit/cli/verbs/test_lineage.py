"""lineage answers where a kit comes from, and labels every line; approve signs an approval that lineage shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kitfs.oci.names import Digest
from kitfs.ops.provenance.facts import Fact, FactSource, merged
from kitfs.trust.attestations import APPROVAL, PROVENANCE
from kitfs.trust.bundle import bundle_of
from kitfs.trust.keys import private_key
from kitfs.trust.statement import PAYLOAD_TYPE, signed_bytes, statement_about
from tests import kits
from tests.fakes.registry import FakeRegistry
from tests.unit.cli.conftest import Done, Kitfs
from tests.unit.cli.verbs.key_pairs import write_key_pair
from tests.unit.cli.verbs.test_referrers import put_referrer

TREE = {
    "data/train.csv": "a,b\n1,2\n",
    "model/w.bin": "weights",
    "sets/Kitfile": "manifestVersion: 1.0.0\ndatasets: [{name: pairs, path: data}]\n",
    "llama/Kitfile": "manifestVersion: 1.0.0\npackage: {authors: [Ann]}\nmodel: {name: llama, path: model}\n"
    "datasets: [{name: train, path: data}, {name: web, path: web, remotePath: 's3://b/k', remoteHash: '123'}]\n",
}
FORGED = {
    "buildDefinition": {
        "externalParameters": {"source": {"uri": "https://evil.example.com", "digest": {"gitCommit": "666"}}},
        "resolvedDependencies": [
            {"name": "\x1b[31mclean data", "digest": {"sha256": "0" * 64}, "annotations": {"role": "dataset"}}
        ],
    },
    "runDetails": {"builder": {"id": "urn:evil", "version": {"evil": "1"}}},
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kitfs: Kitfs) -> Path:
    """Return a directory with the parts of two kits that share a dataset, and with three key pairs."""
    monkeypatch.delenv("KITFS_PACK_KIT_VERSION")
    for path, text in TREE.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    for name in ("trainer", "reviewer", "stranger"):
        write_key_pair(tmp_path / name)
    return tmp_path


def pack(kitfs: Kitfs, name: str, reference: str, *options: str) -> str:
    """Pack the kit ``name`` of the tree, and return its digest."""
    done = kitfs("pack", ".", "-f", f"{name}/Kitfile", "-t", reference, "--json", *options)
    assert done.code == 0, done.err
    return str(json.loads(done.out.splitlines()[-1])["digest"])


def facts(done: Done, **wanted: str) -> list[dict[str, Any]]:
    """Return the facts that have the wanted fields."""
    assert done.code == 0, done.err
    return [one for one in done.json["facts"] if wanted.items() <= one.items()]


def test_the_questions_about_a_trained_model_are_answered(kitfs: Kitfs, tree: Path, fake: FakeRegistry) -> None:
    """The kit was trained on the dataset of another kit, packed and signed by one key, and approved by another key.

    Everything is read from the registry, by a reader with only the dataset's kit in its store. Facts that no trusted
    key has signed are only *stated*. Without trusted keys, no fact is *signed*.
    """
    llama = f"{fake.host}/team/llama:v1"
    pack(kitfs, "llama", llama, "--push", "--provenance=sign", "--signing-key", "trainer.key")
    assert kitfs("sign", llama, "--key", "trainer.key").code == 0
    assert kitfs("approve", llama, "--key", "reviewer.key", "--note", "0.81 on the test set").code == 0
    pack(kitfs, "sets", "team/sets:v3")
    done = kitfs("lineage", llama, "--key", "trainer.pub", "--key", "reviewer.pub", "--json")
    [layer] = facts(done, question="data", name="train")
    assert (layer["label"], "trainer.pub" in layer["sources"][0]["by"]) == ("signed", True)
    assert [one["label"] for one in layer["sources"]] == ["signed", "stated"]
    [remote] = facts(done, question="data", name="web")
    assert (remote["uri"], remote["digest"], remote["label"]) == ("s3://b/k", "etag:123", "signed")
    [packed, stated] = facts(done, kind="packed")
    assert (packed["label"], stated["label"]) == ("signed", "stated")
    [signature] = facts(done, kind="signature")
    assert (signature["label"], "trainer.pub" in signature["sources"][0]["by"]) == ("signed", True)
    [approval] = facts(done, kind="approval")
    assert (approval["label"], approval["note"]) == ("signed", "0.81 on the test set")
    assert "reviewer.pub" in approval["sources"][0]["by"]
    [author] = facts(done, kind="author")
    assert (author["name"], author["label"]) == ("Ann", "stated")
    [shared] = facts(done, question="shared")
    assert (shared["reference"], shared["label"], shared["digest"]) == ("team/sets:v3", "derived", layer["digest"])
    nobody = kitfs("lineage", llama, "--json")
    assert {one["label"] for one in facts(nobody)} == {"stated", "derived"}
    [approval] = facts(nobody, kind="approval")
    assert approval["sources"][0]["by"].startswith("signed by an unknown key; it names key SHA256:")
    only = kitfs("lineage", llama, "--key", "reviewer.pub", "--json")
    assert [one["label"] for one in facts(only, question="data")] == ["stated", "stated"]


def test_text_has_a_label_on_every_line(kitfs: Kitfs, tree: Path, fake: FakeRegistry) -> None:
    """Under each question, every line begins with its label, and an unanswered question says so."""
    pack(kitfs, "llama", "llama:v1", "--provenance")
    lines = kitfs("lineage", "llama:v1").out.splitlines()
    answers = [line for line in lines[1:] if line.startswith("  ")]
    assert {line.split()[0] for line in answers} == {"stated", "unknown", "none"}
    assert [line for line in lines[1:] if line and not line.startswith("  ")] == [
        "What data trained this model?",
        "Who packed, signed and approved it, and when?",
        "What is it based on?",
        "Which other kits of this store share its data?",
    ]


def test_statements_of_strangers_are_only_stated(kitfs: Kitfs, tree: Path, fake: FakeRegistry) -> None:
    """A forged statement is not labelled *signed*, whether it is unsigned or signed by an unknown key.

    A statement about another kit is not shown, and control characters are escaped.
    """
    llama = f"{fake.host}/team/llama:v1"
    digest = Digest.parse(pack(kitfs, "llama", llama, "--push"))
    key = private_key(Path("stranger.key").read_bytes(), "stranger", lambda: b"")
    for subject in (digest, Digest.of(b"another kit")):
        statement = statement_about(subject, PROVENANCE, FORGED)
        bundle = bundle_of(statement, key.sign(signed_bytes(PAYLOAD_TYPE, statement)), "trainer")
        put_referrer(fake, digest, "application/vnd.dev.sigstore.bundle.v0.3+json", bundle)
        put_referrer(fake, digest, PAYLOAD_TYPE, statement)
    done = kitfs("lineage", llama, "--key", "trainer.pub", "--json")
    [forged] = [one for one in facts(done, question="data") if one["digest"].endswith("0" * 64)]
    assert [one["label"] for one in forged["sources"]] == ["stated", "stated"]
    text = kitfs("lineage", llama, "--key", "trainer.pub").out
    assert "\x1b" not in text
    assert "\\x1b[31mclean data" in text


@pytest.mark.parametrize(
    "predicate",
    [None, 7, [], {"buildDefinition": 1, "runDetails": []}, {"buildDefinition": {"resolvedDependencies": [1, {}]}}],
)
def test_a_predicate_of_another_form_is_skipped(kitfs: Kitfs, tree: Path, fake: FakeRegistry, predicate: Any) -> None:
    """lineage shows the other facts if a predicate does not have the form of its type."""
    llama = f"{fake.host}/team/llama:v1"
    digest = Digest.parse(pack(kitfs, "llama", llama, "--push"))
    for kind in (PROVENANCE, APPROVAL, "https://example.com/other"):
        put_referrer(fake, digest, PAYLOAD_TYPE, statement_about(digest, kind, predicate))
    assert len(facts(kitfs("lineage", llama, "--json"), question="data")) == 2


def test_an_approval_without_a_registry_is_kept_in_the_store(kitfs: Kitfs, tree: Path, fake: FakeRegistry) -> None:
    """The approval of a kit of the store is shown by lineage, and pushed with --with-referrers."""
    pack(kitfs, "llama", "llama:v1")
    done = kitfs("approve", "llama:v1", "--key", "reviewer.key", "--note", "fine", "--json")
    assert done.code == 0, done.err
    assert [one["note"] for one in facts(kitfs("lineage", "llama:v1", "--json"), kind="approval")] == ["fine"]
    llama = f"{fake.host}/team/llama:v1"
    assert kitfs("push", "llama:v1", llama, "--with-referrers").code == 0
    assert len(facts(kitfs("lineage", llama, "--remote", "--json"), kind="approval")) == 1


def test_a_pull_keeps_the_approvals_of_the_store(kitfs: Kitfs, tree: Path, fake: FakeRegistry) -> None:
    """An approval that was made in the store stays when the referrers of the registry are pulled."""
    pack(kitfs, "llama", "llama:v1")
    llama = f"{fake.host}/team/llama:v1"
    assert kitfs("push", "llama:v1", llama).code == 0
    assert kitfs("sign", llama, "--key", "trainer.key").code == 0
    assert kitfs("pull", llama, "--with-referrers").code == 0
    assert kitfs("tag", llama, "copy:v1").code == 0
    kitfs("approve", "llama:v1", "--key", "reviewer.key")
    for _ in range(2):
        assert kitfs("push", "llama:v1", llama, "--with-referrers").code == 0
        assert kitfs("pull", llama, "--with-referrers").code == 0
    done = kitfs("lineage", llama, "--key", "trainer.pub", "--key", "reviewer.pub", "--json")
    assert [one["label"] for one in facts(done, kind="approval")] == ["signed"]
    assert [one["label"] for one in facts(done, kind="signature")] == ["signed"]


def test_a_dataset_without_a_name_is_called_by_its_path(kitfs: Kitfs, tree: Path, fake: FakeRegistry) -> None:
    """The line of a signature says that its time is not signed."""
    (tree / "sets/Kitfile").write_text("manifestVersion: 1.0.0\ndatasets: [{path: data}]\n")
    sets = f"{fake.host}/team/sets:v1"
    pack(kitfs, "sets", sets, "--push", "--provenance=sign", "--signing-key", "trainer.key")
    assert kitfs("sign", sets, "--key", "trainer.key").code == 0
    lines = kitfs("lineage", sets, "--key", "trainer.pub").out.splitlines()
    assert any(line.startswith("  signed   dataset data: sha256:") for line in lines)
    [packed] = [line for line in lines if line.startswith("  signed   packed by kitfs ")]
    assert re.search(r" at [0-9-]{10}T[0-9:]{8}Z \(", packed)
    assert any(
        line.startswith("  signed   kit signed at ") and ", but the time is not signed (" in line for line in lines
    )


def test_two_keys_that_signed_under_one_tag_are_two_signers(kitfs: Kitfs, tree: Path, fake: FakeRegistry) -> None:
    """Signatures under cosign's tag have the same payload. A key that signed in both formats is listed once."""
    llama = f"{fake.host}/team/llama:v1"
    pack(kitfs, "llama", llama, "--push")
    for key, shape in (("trainer", "tag"), ("reviewer", "tag"), ("trainer", "bundle")):
        assert kitfs("sign", llama, "--key", f"{key}.key", "--signature-format", shape).code == 0
    done = kitfs("lineage", llama, "--key", "trainer.pub", "--key", "reviewer.pub", "--json")
    signers = [one["sources"][0]["by"].rpartition("(")[2] for one in facts(done, kind="signature")]
    assert sorted(signers) == ["reviewer.pub)", "trainer.pub)"]


def test_what_the_store_has_is_shown_if_the_registry_refuses(kitfs: Kitfs, tree: Path, fake: FakeRegistry) -> None:
    """If the registry does not answer, lineage warns and shows the statements that a pull has brought."""
    llama = f"{fake.host}/team/llama:v1"
    pack(kitfs, "llama", llama, "--push", "--provenance=sign", "--signing-key", "trainer.key")
    assert kitfs("pull", llama, "--with-referrers").code == 0
    fake.require_basic({"ann": "secret"})
    done = kitfs("lineage", llama, "--key", "trainer.pub", "--json")
    assert "may be missing" in done.err
    assert done.json["missing"]
    assert [one["label"] for one in facts(done, question="data")] == ["signed", "signed"]


def test_a_policy_names_the_trusted_keys(kitfs: Kitfs, tree: Path, fake: FakeRegistry) -> None:
    """With --policy, the keys that the policy demands for the kit are trusted."""
    llama = f"{fake.host}/team/llama:v1"
    pack(kitfs, "llama", llama, "--push", "--provenance=sign", "--signing-key", "trainer.key")
    requirement = {"type": "sigstoreSigned", "keyPath": str(tree / "trainer.pub")}
    identity = {"signedIdentity": {"type": "matchRepository"}}
    rules = {"docker": {f"{fake.host}/team": [requirement | identity]}}
    Path("policy.json").write_text(json.dumps({"default": [{"type": "reject"}], "transports": rules}))
    done = kitfs("lineage", llama, "--policy", "policy.json", "--json")
    assert {one["label"] for one in facts(done, question="data")} == {"signed"}


def test_a_model_pack_states_its_sources(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """The fields sourceURL, revision and datasetsURL of a ModelPack's config are shown as stated."""
    kit = kits.build([kits.Part(kind="model", path="w.bin", content=b"w", format="raw")], vintage="modctl")
    config = json.loads(kit.config)
    config["descriptor"] |= {"sourceURL": "https://git.example.com/m", "revision": "abc", "datasetsURL": ["https://d"]}
    data = json.dumps(config).encode()
    manifest = json.loads(kit.manifest)
    manifest["config"] |= {"digest": fake.put_blob("team/pack", data), "size": len(data)}
    for content in kit.blobs.values():
        assert isinstance(content, bytes)
        fake.put_blob("team/pack", content)
    fake.put_manifest("team/pack", json.dumps(manifest).encode(), tag="v1")
    done = kitfs("lineage", f"{fake.host}/team/pack:v1", "--json")
    [source] = facts(done, kind="source")
    assert (source["uri"], source["digest"]) == ("https://git.example.com/m", "gitCommit:abc")
    assert [one["uri"] for one in facts(done, kind="dataset")] == ["https://d"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["lineage", "none:v1"], 3),
        (["lineage", "none:v1", "--certificate-identity", "ann"], 2),
        (["approve", "none:v1"], 2),
        (["approve", "none:v1", "--key", "trainer.key"], 3),
        (["approve", "none:v1", "--key", "trainer.key", "--note", "x" * 5000], 2),
    ],
)
def test_refusals(kitfs: Kitfs, tree: Path, arguments: list[str], code: int) -> None:
    assert kitfs(*arguments).code == code


SIGNED, STATED = FactSource("signed", "a key"), FactSource("stated", "the Kitfile")


def test_a_signature_does_not_cover_a_digest_that_it_does_not_name() -> None:
    """A signed fact without a digest is not merged into a stated fact that claims a digest for the same kit."""
    signed = Fact("data", "dataset", (SIGNED,), reference="sets:v3")
    claimed = Fact("data", "dataset", (STATED,), reference="sets:v3", digest="sha256:0")
    assert merged([claimed, signed]) == (claimed, signed)
    stated = Fact("data", "dataset", (STATED,), reference="sets:v3")
    known = Fact("data", "dataset", (SIGNED,), reference="sets:v3", digest="sha256:1")
    assert merged([stated, known]) == (Fact("data", "dataset", (SIGNED, STATED), "", "sets:v3", "", "sha256:1"),)


def test_the_words_of_the_strongest_source_are_kept() -> None:
    """If a signed and a stated fact have the same digest, the name in the signed statement is shown."""
    signed = Fact("data", "dataset", (SIGNED,), "train", digest="sha256:0")
    stated = Fact("data", "dataset", (STATED,), "free of licences", digest="sha256:0")
    [fact] = merged([stated, signed])
    assert (fact.name, fact.label, fact.by) == ("train", "signed", ("a key",))
