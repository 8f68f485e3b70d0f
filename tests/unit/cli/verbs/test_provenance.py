"""pack and import attach the provenance of a kit, signed or not, and write it as kit does."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kitfs.oci.names import Digest, LayoutReference
from kitfs.registry.layout import open_layout
from kitfs.trust.attestations import PROVENANCE, Attestation, attestations_of
from kitfs.trust.keys import public_key
from tests.conftest import needs
from tests.fakes.huggingface import FakeHub
from tests.fakes.registry import FakeRegistry
from tests.unit.cli.conftest import Kitfs
from tests.unit.cli.verbs.key_pairs import write_key_pair

ETAG = "0123456789abcdef0123456789abcdef"
KITFILE = f"""manifestVersion: 1.0.0
package: {{name: llama}}
model:
  name: llama
  path: model
  parameters:
    mlflow_provenance: {{mlflow_tracking_uri: "http://ann:secret@ml:5000", run_id: r7, experiment_id: "3"}}
datasets:
  - {{name: train, path: data}}
  - {{name: web, path: web, remotePath: "s3://bucket/web.parquet", remoteHash: {ETAG}}}
"""
DVC_LOCK = """schema: '2.0'
stages:
  train:
    cmd: python train.py
    deps: [{path: data/train.csv, hash: md5, md5: aaa, size: 4}]
    outs: [{path: model, hash: md5, md5: bbb.dir, size: 9, nfiles: 1}]
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a directory with a Kitfile, a model, data, and records of DVC."""
    root = tmp_path / "tree"
    for path, text in {
        "Kitfile": KITFILE,
        "model/w.bin": "weights",
        "data/train.csv": "a,b\n",
        "data/train.csv.dvc": "outs: [{md5: aaa, size: 4, hash: md5, path: train.csv}]\n",
        "dvc.lock": DVC_LOCK,
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def git(directory: Path, *args: str) -> str:
    command = ["git", "-C", str(directory), "-c", "user.name=a", "-c", "user.email=a@b.c", *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def exported(kitfs: Kitfs, reference: str, *options: str) -> list[Attestation]:
    """Export a kit with its referrers, and return the statements in the layout."""
    shutil.rmtree("out", ignore_errors=True)
    assert kitfs("export", reference, "oci:out:v1", "--with-referrers", *options).code == 0
    layout = open_layout(LayoutReference("oci", "out", "v1"))
    try:
        return attestations_of(layout, layout.manifest("v1")[0].digest)
    finally:
        layout.close()


def dependencies(predicate: Any) -> dict[str, list[dict[str, Any]]]:
    """Return the resolved dependencies of a predicate by their role."""
    found: dict[str, list[dict[str, Any]]] = {}
    for one in predicate["buildDefinition"]["resolvedDependencies"]:
        found.setdefault(one["annotations"]["role"], []).append(one)
    return found


def test_pack_states_commit_data_and_records(kitfs: Kitfs, tree: Path) -> None:
    """The provenance names the git commit, whether the tree was clean, the datasets, and the records of DVC and MLflow.

    Passwords in URLs are left out.
    """
    needs("git")
    git(tree, "init", "-q")
    git(tree, "remote", "add", "origin", "https://ann:secret@git.example.com/team/llama")
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "first")
    assert kitfs("pack", tree, "-t", "llama:v1", "--attestation-output", "clean.json").code == 0
    (tree / "model/w.bin").write_text("weighty")
    assert kitfs("pack", tree, "-t", "llama:v1", "--attestation-output", "dirty.json").code == 0
    clean, dirty = (json.loads(Path(name).read_text())["buildDefinition"] for name in ("clean.json", "dirty.json"))
    commit = git(tree, "rev-parse", "HEAD")
    source = {"uri": "https://git.example.com/team/llama", "digest": {"gitCommit": commit}}
    assert clean["externalParameters"]["source"] == dirty["externalParameters"]["source"] == source
    assert (clean["internalParameters"], dirty["internalParameters"]) == (
        {"source": {"clean": True}},
        {"source": {"clean": False}},
    )
    found = dependencies(json.loads(Path("clean.json").read_text()))
    layer, remote = found["dataset"]
    manifest = kitfs("inspect", "llama:v1").json["manifest"]
    assert f"sha256:{layer['digest']['sha256']}" == manifest["layers"][1]["digest"]
    assert (remote["uri"], remote["digest"]) == (
        "s3://bucket/web.parquet",
        {"etag": ETAG},
    )
    assert [(one["name"], one["digest"]) for one in found["dvc-data"]] == [("data/train.csv", {"md5": "aaa"})]
    assert [one["digest"] for one in found["dvc-output"]] == [{"dvcDirectory": "bbb"}]
    assert [one["uri"] for one in found["mlflow-run"]] == ["http://ml:5000/#/experiments/3/runs/r7"]
    assert "secret" not in Path("clean.json").read_text()


def test_unsigned_provenance_is_attached_and_exported(kitfs: Kitfs, tree: Path) -> None:
    """--provenance attaches the statement to the kit in the store, and export --with-referrers takes it along."""
    assert kitfs("pack", tree, "-t", "llama:v1", "--provenance").code == 0
    [found] = exported(kitfs, "llama:v1")
    assert (found.statement.predicate_type, found.signature) == (PROVENANCE, None)


def test_signed_provenance_is_signed_by_the_key(kitfs: Kitfs, tree: Path) -> None:
    """--provenance=sign signs the statement with the signing key, and not with another key."""
    for name in ("one", "two"):
        write_key_pair(Path(name))
    done = kitfs("pack", tree, "-t", "llama:v1", "--provenance=sign", "--signing-key", "one.key")
    assert done.code == 0, done.err
    [found] = exported(kitfs, "llama:v1")
    keys = [public_key(Path(f"{name}.pub").read_bytes(), name) for name in ("one", "two")]
    assert [found.is_by(key) for key in keys] == [True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--provenance=sign"], "--signing-key"),
        (["--provenance", "--signing-key", "one.key"], "only with --provenance=sign"),
        (["--provenance=all"], "none, unsigned, sign"),
    ],
)
def test_wrong_options_are_refused(kitfs: Kitfs, tree: Path, options: list[str], message: str) -> None:
    write_key_pair(Path("one"))
    done = kitfs("pack", tree, "-t", "llama:v1", *options)
    assert (done.code, message in done.err) == (2, True), done.err
    assert kitfs("list", "--json").json == []


def test_push_takes_provenance_along_only_on_request(kitfs: Kitfs, fake: FakeRegistry, tree: Path) -> None:
    """push says that the provenance stays in the store. It is pushed with --with-referrers, also under a new tag."""
    kitfs("pack", tree, "-t", "llama:v1", "--provenance")
    target = f"{fake.host}/team/llama:v1"
    kitfs("tag", "llama:v1", target)
    done = kitfs("push", target)
    assert (done.code, "stay in the store" in done.out) == (0, True), done.out
    assert exported(kitfs, target, "--remote") == []
    done = kitfs("push", target, "--with-referrers")
    assert (done.code, "stay in the store" in done.out) == (0, False), done.out
    assert len(exported(kitfs, target, "--remote")) == 1


def test_pack_push_attaches_at_the_registry(kitfs: Kitfs, fake: FakeRegistry, tree: Path) -> None:
    """With --push, the statement is attached to the kit at the registry, and nothing is in the store."""
    target = f"{fake.host}/team/llama:v1"
    done = kitfs("pack", tree, "-t", target, "--push", "--provenance")
    assert done.code == 0, done.err
    assert kitfs("list", "--json").json == []
    assert len(exported(kitfs, target)) == 1


def test_a_removed_kit_takes_its_provenance_with_it(kitfs: Kitfs, tree: Path) -> None:
    kitfs("pack", tree, "-t", "llama:v1", "--provenance")
    assert kitfs("remove", "llama:v1").code == 0
    assert "empty" in kitfs("cache", "info").out


def test_import_writes_the_predicate_of_kit(kitfs: Kitfs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The predicate of an import has the fields that kit writes, with the commit of the repository.

    It is also attached to the kit.
    """
    with FakeHub() as hub:
        hub.put("models", "team/net", {"README.md": b"# net\n", "config.json": b"{}"})
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        done = kitfs("import", "team/net", "--provenance", "--attestation-output", "net.json")
        assert done.code == 0, done.err
    predicate = json.loads(Path("net.json").read_text())
    definition, run = predicate["buildDefinition"], predicate["runDetails"]
    assert definition["buildType"] == "https://kitops.org/import/v1"
    assert set(definition["externalParameters"]) == {"source", "kitfile"}
    assert definition["externalParameters"]["source"]["uri"] == f"{hub.url}/team/net"
    assert len(definition["externalParameters"]["source"]["digest"]["gitCommit"]) == 40
    config = kitfs("inspect", "team/net:latest").json["manifest"]["config"]["digest"]
    assert f"sha256:{definition['externalParameters']['kitfile']['digest']['sha256']}" == config
    assert [one["annotations"] for one in definition["resolvedDependencies"]] == [
        {"role": "dataset", "path": "config.json"}
    ]
    assert set(run["metadata"]) == {"invocationId", "startedOn", "finishedOn"}
    [found] = exported(kitfs, "team/net:latest")
    assert found.statement.predicate == predicate


def test_a_kit_of_a_layout_has_no_new_provenance(kitfs: Kitfs, tree: Path) -> None:
    kitfs("pack", tree, "-t", "llama:v1")
    kitfs("export", "llama:v1", "oci:out:v1")
    done = kitfs("import", "oci:out:v1", "--tag", "copy:v1", "--provenance")
    assert (done.code, "packed before" in done.err) == (2, True)


def test_records_that_cannot_be_read_are_left_out(kitfs: Kitfs, tree: Path) -> None:
    """A damaged file of DVC is left out with a warning."""
    (tree / "dvc.lock").write_text("stages: [}")
    (tree / "data/other.dvc").write_text("outs: 7\n")
    done = kitfs("pack", tree, "-t", "llama:v1", "--attestation-output", "p.json")
    assert (done.code, "dvc.lock is left out" in done.err) == (0, True), done.err
    assert "dvc-output" not in dependencies(json.loads(Path("p.json").read_text()))


def test_the_digest_of_a_dataset_kit_is_recorded(kitfs: Kitfs, fake: FakeRegistry, tree: Path) -> None:
    """If a dataset of the Kitfile is another kit, the provenance has the digest of that kit."""
    (tree / "Kitfile").write_text("manifestVersion: 1.0.0\ndatasets: [{name: train, path: data}]\n")
    kitfs("pack", tree, "-t", "sets:v3")
    digest = kitfs("list", "--json").json[0]["digest"]
    (tree / "Kitfile").write_text(
        "manifestVersion: 1.0.0\nmodel: {name: m, path: model}\n"
        "datasets: [{name: train, path: x, remotePath: 'sets:v3'}, {name: lost, path: y, remotePath: 'none:v1'}]\n"
    )
    done = kitfs("pack", tree, "-t", "llama:v1", "--attestation-output", "p.json")
    assert (done.code, "names none:v1 without a digest" in done.err) == (0, True), done.err
    found, lost = dependencies(json.loads(Path("p.json").read_text()))["dataset"]
    assert found["digest"] == {"sha256": Digest.parse(digest).hex}
    assert "digest" not in lost


def test_an_import_from_git_names_the_commit(kitfs: Kitfs, tree: Path) -> None:
    """The provenance of an import from a git repository has the commit that was imported."""
    needs("git")
    (tree / "Kitfile").write_text("manifestVersion: 1.0.0\nmodel: {name: m, path: model}\n")
    git(tree, "init", "-q")
    git(tree, "add", ".")
    git(tree, "commit", "-qm", "first")
    done = kitfs("import", tree, "--tag", "net:v1", "--attestation-output", "net.json")
    assert done.code == 0, done.err
    source = json.loads(Path("net.json").read_text())["buildDefinition"]["externalParameters"]["source"]
    assert source["digest"] == {"gitCommit": git(tree, "rev-parse", "HEAD")}
