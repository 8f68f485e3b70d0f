"""``kitfs pack`` and ``kitfs push`` print the same lines on stdout as kit 1.7.0."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest

from tests.conftest import GOLDEN_KITS
from tests.fakes.registry import FakeRegistry
from tests.host import Host

AS_OF_1_7 = ("--kit-version", "1.7.0")
KINDS = {  # kit's names for the layers of the golden trees
    "basic": ["model", "code", "code", "dataset", "dataset", "docs", "docs"],
    "parts": ["model", "modelpart", "modelpart", "modelpart"],
    "empty": [],
}


def lines(
    name: str,
    *,
    layers: str = "Saved",
    config: str = "Saved configuration",
    manifest: str = "Saved manifest to storage",
) -> list[str]:
    """Return the lines that kit prints when it packs a golden tree.

    The lines for layers, config and manifest can vary.
    """
    kit = GOLDEN_KITS[name]
    found = [f"{layers} {kind} layer: {digest}" for kind, digest in zip(KINDS[name], kit["diff_ids"], strict=True)]
    found += [
        f"{config}: {kit['config']['digest']}",
        f"{manifest}: {kit['manifest']}",
        f"Model saved: {kit['manifest']}",
    ]
    return found


KNOWN = {"layers": "Already saved", "config": "Configuration already exists in storage"}
MANIFEST_KNOWN = "Manifest already exists in storage"


def test_pack_says_what_kit_says(box: Host, golden_trees: Path) -> None:
    """A layer or a config is reported as already saved if a kit in the store contains it.

    A manifest is reported as existing only if the same repository in the store contains it.
    """

    def said(name: str, *options: str) -> list[str]:
        done = box.kitfs("pack", golden_trees / name, *options, *AS_OF_1_7)
        assert done.stderr == ""
        return done.stdout.splitlines()

    assert said("basic", "-t", "registry.test/t/basic:v1,latest") == lines("basic")
    assert said("basic", "-t", "registry.test/t/basic:v1") == lines("basic", **KNOWN, manifest=MANIFEST_KNOWN)
    assert said("parts", "-t", "registry.test/t/parts:v1") == lines("parts")
    assert said("empty", "-t", "empty:v1") == lines("empty")
    assert said("empty") == lines("empty", **KNOWN)
    assert said("empty") == lines("empty", **KNOWN, manifest=MANIFEST_KNOWN)


def test_pack_reads_a_kitfile_from_stdin_and_from_elsewhere(box: Host, golden_trees: Path, tmp_path: Path) -> None:
    """With ``-f -`` (stdin) and ``-f FILE``, the kit is the same as with a Kitfile in the packed directory."""
    text = (golden_trees / "basic/Kitfile").read_bytes()
    (tmp_path / "other.yaml").write_bytes(text)
    with (tmp_path / "other.yaml").open("rb") as file:
        done = box.kitfs("pack", golden_trees / "basic", "-f", "-", *AS_OF_1_7, stdin=file)
    assert done.stdout.splitlines() == lines("basic")
    done = box.kitfs("pack", golden_trees / "basic", "-f", tmp_path / "other.yaml", *AS_OF_1_7)
    assert done.stdout.splitlines() == lines("basic", **KNOWN, manifest=MANIFEST_KNOWN)


def test_push_says_what_kit_says(box: Host, golden_trees: Path) -> None:
    """The first push and the second push print the destination and the digest. A push of a missing kit fails."""
    digest = GOLDEN_KITS["parts"]["manifest"]
    with FakeRegistry() as registry:
        ref, other, absent = (f"{registry.host}/t/{name}" for name in ("parts:v1", "renamed:v9", "absent:v1"))
        box.kitfs("pack", golden_trees / "parts", "-t", ref, *AS_OF_1_7)
        for _ in range(2):
            done = box.kitfs("push", ref, "--plain-http")
            assert (done.stdout, done.stderr) == (f"Pushing {ref}\nPushed {digest}\n", "")
        done = box.kitfs("push", ref, other, "--plain-http")
        assert (done.stdout, done.stderr) == (f"Pushing {ref} to {other}\nPushed {digest}\n", "")
        done = box.kitfs("push", absent, "--plain-http", check=False)
        assert (done.returncode, done.stdout) == (3, f"Pushing {absent}\n")
        assert done.stderr == f"kitfs: {absent} is not in the store; pack or pull it first\n"
    box.kitfs("pack", golden_trees / "empty", "-t", "empty:v1")
    done = box.kitfs("push", "empty:v1", "--plain-http", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("kitfs: registry is required when pushing")


@pytest.mark.parametrize(
    ("kitfile", "said"),
    [
        ("manifestVersion: 1.0.0\nmodel:\n  foo: x\n", "line 3: field foo not found"),
        (
            "manifestVersion: 1.0.0\nmodel: {name: m, path: /etc/passwd}\n",
            "absolute paths are not supported in a Kitfile (path /etc/passwd in model m)",
        ),
        (
            "manifestVersion: 1.0.0\nmodel: {name: m, path: m}\ncode: [{path: m}]\n",
            "model m and code layer 0 use the same path m",
        ),
        ("manifestVersion: 1.0.0\nmodel: {name: m, path: ../x}\n", "../x"),
        (
            "manifestVersion: 1.0.0\nmodel: {name: m, path: missing}\n",
            "error processing model: path missing does not exist",
        ),
        (
            "manifestVersion: 1.0.0\nmodel: {name: m, path: m, parts: [{name: p, path: p, type: a b}]}\n",
            "modelpart p has invalid type (must be alphanumeric with dots, dashes, and underscores)",
        ),
        ("manifestVersion: [\n", "Kitfile: yaml: line "),
    ],
)
def test_a_kitfile_that_kit_refuses_is_refused(box: Host, tmp_path: Path, kitfile: str, said: str) -> None:
    """stdout is empty, stderr has one line in kit's words, and nothing is stored."""
    (tmp_path / "Kitfile").write_text(kitfile)
    done = box.kitfs("pack", tmp_path, "-t", "a:b", check=False)
    assert done.returncode in (8, 10)
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("kitfs: ")
    assert said in line
    assert not list(box.cache.rglob("rest"))


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("nothing",), 2, "No Kitfile found in nothing. Consider using the -f flag to specify its path"),
        (("absent",), 2, "No Kitfile found in absent. Consider using the -f flag to specify its path"),
        ((".",), 2, "No Kitfile found in /"),
        (("basic", "-t", "UPPER/Case:v1"), 2, "must be lowercase"),
        (("basic", "-t", "a b"), 2, "a b"),
        (("basic", "-t", "registry.test/t/x:bad/tag"), 2, "bad/tag"),
        (("basic", "-t", "sha256:" + "0" * 64), 2, "is a digest"),
        (("basic", "-f", "absent"), 10, "cannot read absent: No such file or directory"),
        (("basic/README.md", "-f", "basic/Kitfile"), 2, "basic/README.md is not a directory"),
        ((), 2, "DIR"),
    ],
)
def test_a_pack_that_cannot_be_is_one_line(
    box: Host, golden_trees: Path, args: tuple[str, ...], code: int, said: str
) -> None:
    (golden_trees / "nothing").mkdir(exist_ok=True)
    done = box.kitfs("pack", *args, check=False, cwd=golden_trees)
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


def test_a_name_that_would_drive_a_terminal_is_escaped(box: Host, tmp_path: Path) -> None:
    (tmp_path / "Kitfile").write_text("manifestVersion: 1.0.0\ncode: [{path: m}]\n")
    (tmp_path / "m").mkdir()
    (tmp_path / "m/\x1b[31m\nx").symlink_to("/etc")
    done = box.kitfs("pack", tmp_path, "-t", "a:b")
    assert "Skipping m/\\x1b[31m\\nx: " in done.stderr
    assert "\x1b" not in done.stderr
    (tmp_path / "Kitfile").write_text('manifestVersion: 1.0.0\ncode: [{path: "m\\e]0;x\\a"}]\n')
    done = box.kitfs("pack", tmp_path, "-t", "a:b", check=False)
    assert done.returncode == 10
    assert "\x1b" not in done.stderr
    assert "path m\\x1b]0;x\\x07 does not exist" in done.stderr


def test_a_kit_has_more_layers_than_files_may_be_open_at_first(box: Host, tmp_path: Path) -> None:
    """The soft limit of 100 descriptors is raised to the hard limit, so 150 layers can be packed."""
    names = [f"f{number}" for number in range(150)]
    for name in names:
        (tmp_path / name).write_text(name)
    (tmp_path / "Kitfile").write_text(
        "manifestVersion: 1.0.0\ncode:\n" + "".join(f"  - path: {name}\n" for name in names)
    )
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))

    with FakeRegistry() as registry:
        ref = f"{registry.host}/many:v1"
        box.kitfs("pack", tmp_path, "-t", ref, preexec_fn=few)
        box.kitfs("push", ref, "--plain-http", preexec_fn=few)
        assert len(json.loads(registry.manifest("many", "v1")[0])["layers"]) == 150
