"""index prints the same texts, tables and JSON as kit 1.17. The cases are those of kit's testdata/index."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import dedent

import pytest

from tests import kits
from tests.fakes.registry import FakeRegistry
from tests.unit.cli.conftest import Kitfs

KITFILE = "manifestVersion: 1.0.0\npackage: {name: index-testing}\nmodel: {path: model.bin}\n"


@pytest.fixture
def packed(kitfs: Kitfs, tmp_path: Path) -> list[str]:
    """Pack the kits test/model:q4_0 and :q8_0, and return their digests."""
    found = []
    for name in ("q4_0", "q8_0"):
        tree = tmp_path / name
        tree.mkdir()
        (tree / "Kitfile").write_text(KITFILE)
        (tree / "model.bin").write_bytes(f"weights-{name}".encode())
        found.append(kitfs("pack", tree, "-t", f"test/model:{name}", "--kit-version", "1.17.0").out.split()[-1])
    return found


def last_digest(out: str) -> str:
    return out.rstrip(")\n").rpartition(" ")[2]


def test_texts(kitfs: Kitfs, packed: list[str]) -> None:
    done = kitfs("index", "create", "test/model:all")
    assert (done.code, done.out) == (0, f"Created index test/model:all (digest {last_digest(done.out)})\n")
    done = kitfs("index", "add", "test/model:all", "test/model:q4_0", "-l", "quantization=q4_0")
    assert done.out == f"Added test/model:q4_0 to index test/model:all (digest {last_digest(done.out)})\n"
    done = kitfs("index", "add", "test/model:all", f"test/model@{packed[1]}")
    assert done.out == f"Added test/model@{packed[1]} to index test/model:all (digest {last_digest(done.out)})\n"
    done = kitfs("index", "remove", "test/model:all", "test/model:q4_0")
    assert done.out == f"Removed test/model:q4_0 from index test/model:all (digest {last_digest(done.out)})\n"
    done = kitfs("index", "remove", "test/model:all", packed[1])
    assert done.out == f"Removed {packed[1]} from index test/model:all (digest {last_digest(done.out)})\n"
    kitfs("index", "create", "test/model:too")
    empty = last_digest(done.out)
    assert kitfs("index", "delete", "test/model:all").out == f"Untagged index test/model:all (digest {empty})\n"
    assert (
        kitfs("index", "delete", "test/model:too").out
        == f"Deleted index test/model:too (digest {empty})\nRemoved tags: too\n"
    )
    assert kitfs("index", "list").out == "REPOSITORY   TAG   MODELKITS   DIGEST\n"


def test_delete_all(kitfs: Kitfs, packed: list[str]) -> None:
    """index delete --all deletes untagged indexes, and with --force also tagged indexes. It deletes no kits."""
    digest = last_digest(kitfs("index", "create", "test/model:all").out)
    assert kitfs("index", "delete", "--all").out == ""
    assert kitfs("index", "delete", "--all", "--force").out == f"Deleted index test/model@{digest}\nRemoved tags: all\n"
    assert (
        kitfs("index", "delete", "--all", "test/model:all").err
        == "kitfs: index should not be specified when --all flag is used\n"
    )
    assert kitfs("index", "delete").err == "kitfs: index is required for delete unless --all is specified\n"
    assert [row["tags"] for row in kitfs("list", "--json").json] in ([["q4_0"], ["q8_0"]], [["q8_0"], ["q4_0"]])


def test_tables(kitfs: Kitfs, packed: list[str]) -> None:
    """A kit with labels has one row for each label, and a kit without labels has one row.

    A missing value is shown as <none>.
    """
    kitfs("index", "create", "test/model:all")
    kitfs(
        "index", "add", "test/model:all", "test/model:q4_0", "-l", "quantization=q4_0", "-l", "vram=6GB",
        "-l", 'gpuArchs:=["sm_80", "sm_90"]',
        "--annotate", "org.example.tested=true",
    )  # fmt: skip
    digest = last_digest(kitfs("index", "add", "test/model:all", f"test/model@{packed[1]}").out)
    assert kitfs("index", "info", "test/model:all").out == dedent(f"""\
        Index test/model:all ({digest})
        2 ModelKits:
        ORIGINAL REFERENCE   SIZE      LABELS                       ANNOTATIONS               DIGEST
        test/model:q4_0      2.0 KiB   gpuArchs=["sm_80","sm_90"]   org.example.tested=true   {packed[0]}
                                       quantization=q4_0
                                       vram=6GB
        <none>               2.0 KiB   <none>                       <none>                    {packed[1]}
    """)
    assert kitfs("index", "list").out == dedent(f"""\
        REPOSITORY   TAG   MODELKITS   DIGEST
        test/model   all   2           {digest}
    """)
    empty = last_digest(kitfs("index", "create", "test/model:empty").out)
    assert (
        kitfs("index", "info", "test/model:empty").out
        == f"Index test/model:empty ({empty})\nIndex contains no ModelKits\n"
    )


def test_json(kitfs: Kitfs, packed: list[str]) -> None:
    kitfs("index", "create", "test/model:all")
    digest = last_digest(
        kitfs("index", "add", "test/model:all", "test/model:q4_0", "-l", "n:=1.50", "--annotate", "a=b").out
    )
    done = kitfs("index", "list", "--format", "json")
    assert done.out == kitfs("index", "list", "--json").out
    assert done.json == [{"repo": "test/model", "digest": digest, "tags": ["all"], "modelKits": 1}]
    done = kitfs("index", "info", "test/model:all", "--format", "json")
    assert done.out == kitfs("index", "info", f"test/model@{digest}", "--json").out.replace(
        f"model@{digest}", "model:all"
    )
    assert done.json == {
        "reference": "test/model:all",
        "digest": digest,
        "modelKits": [
            {
                "reference": "test/model:q4_0",
                "digest": packed[0],
                "size": 2048,
                "labels": {"n": 1.5},
                "annotations": {"a": "b"},
            }
        ],
    }
    assert '"n": 1.50' in done.out
    done = kitfs("index", "inspect", "test/model:all")
    assert done.out == json.dumps(done.json, indent=2).replace("1.5\n", "1.50\n") + "\n"
    assert list(done.json) == ["schemaVersion", "mediaType", "artifactType", "manifests"]
    assert done.json["manifests"][0]["annotations"]["ml.kitops.modelkit.original-tag"] == "q4_0"
    for args in (
        ("create", "test/model:b"),
        ("add", "test/model:b", "test/model:q8_0"),
        ("remove", "test/model:b", "test/model:q8_0"),
    ):
        assert set(kitfs("index", *args, "--json").json) <= {"index", "reference", "removed", "digest"}
    [gone] = kitfs("index", "delete", "test/model:b", "--json").json
    assert (gone["repository"], gone["tags"], gone["index"]) == ("test/model", ["b"], True)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ("create test/model@sha256:" + "0" * 64, "index reference must be a tag, not a digest: test/model@sha256:"),
        (
            "info test/model:all",
            "could not find index test/model:all in local storage (pull it with kitfs index pull, or read it from its",
        ),
        ("info test/model:q4_0", "could not find index test/model:q4_0 in local storage"),
        ("info test/model", "missing tag or digest from index reference test/model"),
        ("info -r test/model:all", "can not check remote: test/model:all does not contain registry"),
        ("add test/model:all test/model", "missing tag or digest from ModelKit reference test/model"),
        (
            "add test/model:all test/model:q4_0",
            "could not find index test/model:all in local storage; use kitfs index create",
        ),
        ("add test/model:all other/model:q4_0", "an index may only reference ModelKits in its own repository"),
        (
            "add test/model:all test/model:q4_0 -l bad",
            'invalid label "bad": expected key=value to set, or key- to remove',
        ),
        ("add -r test/model:all test/model:q4_0", "can not check remote: test/model:q4_0 does not contain registry"),
        ("delete test/model:q4_0", "test/model:q4_0 is not a ModelKit index; use kitfs remove to remove a ModelKit"),
        ("push test/model:all", "registry is required when pushing"),
        ("pull test/model:all", "registry is required when pulling"),
        ("list --format yaml", "is not one of table, json"),
    ],
)
def test_refusals(kitfs: Kitfs, packed: list[str], args: str, told: str) -> None:
    """A refused command prints one line on stderr."""
    done = kitfs("index", *args.split())
    assert done.code in (2, 3)
    assert done.out == ""
    assert told in done.err
    assert done.err.count("\n") == 1


def test_an_index_is_hidden_from_list_and_from_verbs_of_kits(kitfs: Kitfs, packed: list[str]) -> None:
    """If a kit and an index have the same name, all verbs except ``index`` use the kit."""
    kitfs("index", "create", "test/model:all")
    assert {row["tags"][0] for row in kitfs("list", "--json").json} == {"q4_0", "q8_0"}
    assert kitfs("inspect", "test/model:all").code == 3
    kitfs("tag", "test/model:q4_0", "test/model:all")
    assert kitfs("inspect", "test/model:all").json["digest"] == packed[0]
    assert kitfs("index", "inspect", "test/model:all").json["manifests"] == []
    kitfs("remove", "test/model:all")
    assert kitfs("index", "info", "test/model:all").code == 0


def test_labels_choose(kitfs: Kitfs, packed: list[str], tmp_path: Path) -> None:
    """ls, cat and unpack accept labels that select a kit of an index. No registry is needed.

    ls has no short form of --label: -l means --long.
    """
    kitfs("index", "create", "test/model:all")
    for name in ("q4_0", "q8_0"):
        kitfs("index", "add", "test/model:all", f"test/model:{name}", "-l", f"quantization={name}", "-l", "gpu=cuda")
    assert kitfs("cat", "test/model:all", "model.bin", "-l", "quantization=q8_0").out == "weights-q8_0"
    assert "model.bin" in kitfs("ls", "-l", "test/model:all", "--label", "quantization=q4_0").out
    assert (
        kitfs("unpack", "test/model:all", "-l", "quantization=q8_0", "-l", "gpu=cuda", "-d", tmp_path / "out").code == 0
    )
    assert (tmp_path / "out/model.bin").read_text() == "weights-q8_0"
    listed = "test/model:q4_0 (gpu=cuda, quantization=q4_0); test/model:q8_0 (gpu=cuda, quantization=q8_0)"
    for labels, told in (
        ((), f"reference test/model:all is a ModelKit index; select one of its ModelKits with --label (-l): {listed}"),
        (
            ("quantization=q2_k",),
            f"test/model:all: no ModelKit in the index has quantization=q2_k. The index contains: {listed}",
        ),
        (("gpu=cuda",), f"test/model:all: 2 ModelKits in the index match; add labels to select one of: {listed}"),
    ):
        done = kitfs("unpack", "test/model:all", *(f"--label={label}" for label in labels), "-d", tmp_path / "no")
        assert (done.code, done.err) == (2, f"kitfs: {told}\n")
    assert kitfs("unpack", "test/model:q4_0", "-l", "quantization=q8_0", "-d", tmp_path / "no").code == 3
    assert not (tmp_path / "no").exists()


def test_push_and_pull(kitfs: Kitfs, fake: FakeRegistry, tmp_path: Path) -> None:
    """index push sends the kits first and then the index.

    index pull fetches the index without its kits. pull --label fetches one kit.
    """
    name = f"{fake.host}/team/model"
    for i, text in enumerate((b"zero", b"one")):
        tree = tmp_path / str(i)
        tree.mkdir()
        (tree / "Kitfile").write_text(KITFILE)
        (tree / "model.bin").write_bytes(text)
        kitfs("pack", tree, "-t", f"{name}:{i}")
    kitfs("index", "create", f"{name}:all")
    for i in range(2):
        kitfs("index", "add", f"{name}:all", f"{name}:{i}", "-l", f"number:={i}")
    done = kitfs("index", "push", f"{name}:all")
    digest = done.out.split()[-1]
    assert done.out == f"Pushing index {name}:all\nPushed index {digest}\n"
    shown = kitfs("index", "inspect", f"{name}:all").out
    assert kitfs("index", "inspect", "--remote", f"{name}:all").out == shown
    table = kitfs("index", "info", f"{name}:all").out
    kitfs("index", "delete", f"{name}:all")
    kitfs("remove", "--all", "--force")
    assert kitfs("index", "pull", f"{name}:all").out == f"Pulling index {name}:all\nPulled index {digest}\n"
    assert kitfs("index", "info", f"{name}:all").out == table == kitfs("index", "info", "-r", f"{name}:all").out
    assert kitfs("list", "--json").json == []
    done = kitfs("pull", f"{name}:all", "-l", "number=1")
    assert f"Index {name}:all refers to ModelKit {name}:1" in done.out
    assert [row["tags"] for row in kitfs("list", "--json").json] == [["all"]]
    assert kitfs("cat", f"{name}:all", "model.bin").out == "one"
    assert kitfs("cat", f"{name}:all", "model.bin", "-l", "number=0").out == "zero"
    kitfs("index", "create", f"{name}:more")
    added = kitfs("index", "add", "--remote", f"{name}:more", f"{name}:all")
    assert "this is an index of several manifests" in added.err


def test_an_index_that_drives_no_terminal(kitfs: Kitfs, fake: FakeRegistry) -> None:
    """If an index from a registry contains control characters, they are printed in escaped form."""
    row = {
        "mediaType": kits.MANIFEST,
        "digest": "sha256:" + "0" * 64,
        "size": 1,
        "modelMetadata": {"\x1b[2J": "\x1b]0;x\x07"},
    }
    row["annotations"] = {"ml.kitops.modelkit.original-tag": "\x1b[31m", "\x9b": "\x7f"}
    kind = "application/vnd.kitops.modelkit.index.v1+json"
    data = json.dumps(
        {"schemaVersion": 2, "mediaType": kits.INDEX, "artifactType": kind, "manifests": [row]}, ensure_ascii=False
    ).encode()
    fake.put_manifest("team/model", data, tag="all", media_type=kits.INDEX)
    for args in (("index", "info", "-r"), ("index", "inspect", "-r"), ("ls",), ("ls", "--label", "a=b")):
        done = kitfs(*args, f"{fake.host}/team/model:all")
        assert not {c for c in done.out + done.err if not c.isprintable()} - {"\n"}
