"""The commands init, import and export work with real git, real skopeo and a fake hub."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import kitfs
from tests import kits, trees
from tests.conftest import GOLDEN, GOLDEN_KITS, needs
from tests.fakes.faults import Cut, Fault, Lie, Status
from tests.fakes.huggingface import FakeHub, Tree, lfs
from tests.fakes.registry import FakeRegistry
from tests.host import Host

pytestmark = pytest.mark.interop
TRANSCRIPTS = Path(__file__).parents[3] / "shared/golden/transcripts-kit-1.7.txt"
MiB = 1 << 20
WEIGHTS = bytes(range(256)) * 20_000
LICENSE = b"Apache License\n Version 2.0, January 2004\n http://www.apache.org/licenses/\n"
TREE: Tree = {
    ".gitattributes": b"*.safetensors filter=lfs",
    "LICENSE": LICENSE,
    "README.md": b"# net\n",
    "config.json": b'{"a": 1}',
    "model.safetensors": lfs(WEIGHTS),
    "onnx/model.onnx": lfs(WEIGHTS[:100_000]),
    "run me#1%.py": b"print()\n",
    "src/a/b.py": b"pass\n",
}


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as running:
        running.put("models", "Team/Net", TREE)
        rows = {
            "train/0.parquet": lfs(b"rows" * 1000),
            "train/1.parquet": lfs(b"more" * 1000),
            "README.md": b"# rows\n",
        }
        running.put("datasets", "team/rows", rows)
        yield running


def golden_tree(root: Path, name: str) -> Path:
    subprocess.run([sys.executable, GOLDEN / "make_trees.py", root, name], check=True)
    return root / name


def files(box: Host, reference: str) -> dict[str, bytes]:
    """Return the paths and the contents of a kit, as a mount shows them."""
    with kitfs.open(reference, cache_dir=box.cache, config=box.home) as kit:
        return {info.path: kit.read(info.path) for info in kit.files() if info.kind == "file"}


def plain(tree: Tree) -> dict[str, bytes]:
    return {
        path: one if isinstance(one, bytes) else one.data for path, one in tree.items() if not path.startswith(".git")
    }


# -- init


@pytest.mark.skipif(
    not TRANSCRIPTS.exists(), reason="not here: this checkout does not have the transcripts of the real kit"
)
def test_init_prints_what_kit_printed(box: Host, tmp_path: Path) -> None:
    """``kitfs init`` prints the same stdout as the recorded ``kit init``, and fails where ``kit init`` failed.

    The commands run one after the other in one directory.
    """
    golden_tree(tmp_path, "modelpack")
    blocks = re.findall(r"^\$ kit (init .*)\n((?:(?!^\$ ).*\n)*)", TRANSCRIPTS.read_text(), re.MULTILINE)
    assert len(blocks) >= 4
    for command, told in blocks:
        done = box.kitfs(*command.split(), check=False, cwd=tmp_path)
        stdout = re.search(r"\[stdout\]\n(.*?)(?=^\[(?:stderr|exit))", told, re.MULTILINE | re.DOTALL)
        assert done.stdout == (stdout[1] if stdout else "")
        assert (done.returncode == 0) == ("[exit 0]" in told)
        assert done.stderr == "" if done.returncode == 0 else done.stderr.startswith("kitfs: ")


def test_init_for_programs(box: Host, tmp_path: Path) -> None:
    """``init --json`` prints the Kitfile and its path, and the Kitfile can be packed."""
    tree = golden_tree(tmp_path, "modelpack")
    said = json.loads(box.kitfs("init", tree, "--json").stdout)
    assert said["path"] == str(tree / "Kitfile")
    assert said["kitfile"]["model"]["path"] == "gguf/tiny.gguf"
    assert box.kitfs("init", tree, "--output", "-").stdout == (tree / "Kitfile").read_text()
    box.kitfs("pack", tree, "-t", "here:v1")


def test_init_by_the_real_kit(box: Host, tmp_path: Path) -> None:
    """For the golden trees, ``kitfs init`` writes the same Kitfile as kit 1.7.

    The test is skipped if kit 1.7 is not on PATH. Files that end in ``.bin`` are renamed first, because only kit treats
    them as models.
    """
    kit = shutil.which("kit")
    if (
        kit is None
        or "--remote" in subprocess.run([kit, "init", "--help"], capture_output=True, text=True, check=False).stdout
    ):
        pytest.skip("not here: kit 1.7 is not on PATH")
    for name in ("basic", "parts", "context", "names", "modelpack", "modes"):
        tree = golden_tree(tmp_path, name)
        for path in tree.rglob("*.bin"):
            path.rename(path.with_suffix(".pt"))
        (tree / "Kitfile").unlink(missing_ok=True)
        subprocess.run(
            [kit, "init", ".", "--name", "n", "--desc", "d"],
            cwd=tree,
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
        )
        theirs = (tree / "Kitfile").read_text()
        box.kitfs("init", tree, "--name", "n", "--desc", "d", "-f")
        assert (tree / "Kitfile").read_text() == theirs


# -- from a hub


def test_a_repository_of_a_hub_is_a_kit(box: Host, hub: FakeHub) -> None:
    """An import from a hub prints what kit prints, keeps the files unchanged, and adds the licence to the Kitfile."""
    env = {"HF_ENDPOINT": hub.url}
    done = box.kitfs("import", "Team/Net", env=env)
    lines = done.stdout.splitlines()
    assert lines[0] == "Using tag team/net:latest. Use flag --tag to override"
    assert lines[1:3] == ["Generated Kitfile:", ""]
    assert lines[-1] == "Model is packed as team/net:latest"
    assert "  authors: [Team]" in lines
    assert "  license: Apache-2.0" in lines
    assert files(box, "team/net:latest") | {"Kitfile": b""} == plain(TREE) | {"Kitfile": b""}
    hub.forget()
    again = box.kitfs("import", "https://huggingface.co/Team/Net", "-t", "other/name:v1,v2", env=env)
    assert again.stdout.splitlines()[-1] == "Model is packed as other/name:v1,v2"
    assert [s.path for s in hub.served("/resolve/") if "LICENSE" not in s.path] == []
    assert files(box, "other/name:v2") == files(box, "team/net:latest")


def test_datasets_and_own_kitfiles_are_imported(box: Host, hub: FakeHub, tmp_path: Path) -> None:
    """A dataset repository can be imported. If the user passes a Kitfile, the import uses it."""
    kitfile = tmp_path / "Kitfile"
    kitfile.write_text("manifestVersion: 1.0.0\ndatasets:\n  - name: rows\n    path: train\n")
    box.kitfs("import", "datasets/team/rows", "-f", kitfile, env={"HF_ENDPOINT": hub.url})
    found = files(box, "team/rows:latest")
    assert {p: d for p, d in found.items() if p != "Kitfile"} == {
        "train/0.parquet": b"rows" * 1000,
        "train/1.parquet": b"more" * 1000,
    }
    assert b"    path: train/1.parquet" in box.kitfs("cat", "team/rows:latest", "Kitfile").stdout.encode()


def test_an_imported_kit_is_mounted(host: Host, hub: FakeHub) -> None:
    """An imported kit is mounted from the store, and no request is sent to the hub."""
    host.kitfs("import", "Team/Net", env={"HF_ENDPOINT": hub.url})
    hub.stop()
    mount = host.mount("team/net:latest")
    assert {p: row["sha256"] for p, row in host.scan(mount).items() if row["type"] == "file" and p != "Kitfile"} == {
        path: hashlib.sha256(data).hexdigest() for path, data in plain(TREE).items()
    }
    host.umount(mount)


def test_straight_to_a_registry(box: Host, hub: FakeHub) -> None:
    """With ``--push`` blobs are sent to the registry and are not stored.

    A blob that the registry already has is not sent again.
    """
    with FakeRegistry() as registry:
        registry.put_blob("team/kit", WEIGHTS)
        reference = f"{registry.host}/team/kit:v1"
        done = box.kitfs("import", "Team/Net", "-t", reference, "--push", env={"HF_ENDPOINT": hub.url})
        assert re.fullmatch(r"Pushed sha256:[0-9a-f]{64}", done.stdout.splitlines()[-1])
        assert hub.served("resolve/[0-9a-f]+/model.safetensors") == []
        assert {p: d for p, d in files(box, reference).items() if p != "Kitfile"} == plain(TREE)


def test_events_for_programs(box: Host, hub: FakeHub) -> None:
    """``import --json`` prints one event per line."""
    lines = [
        json.loads(line)
        for line in box.kitfs("import", "Team/Net", "--json", env={"HF_ENDPOINT": hub.url}).stdout.splitlines()
    ]
    assert lines[-1]["event"] == "done"
    assert lines[-1]["references"] == ["team/net:latest"]
    assert {line["event"] for line in lines} >= {"kitfile", "noted", "saved", "total", "moved"}


@pytest.mark.parametrize(
    ("args", "env", "code", "text"),
    [
        (["team/none"], {}, 5, "the repository does not exist, or it is private (pass a token"),
        (["Team/Net", "--ref", "v9"], {}, 3, "the branch, tag or commit does not exist"),
        (["too/many/path/segments"], {}, 2, "use flag --tag"),
        (["Team/Net", "--push"], {}, 2, "registry is required when pushing"),
        (["Team/Net", "--tool", "svn"], {}, 2, "is not one of hf, git, auto"),
        (["Team/Net", "--concurrency", "0"], {}, 2, "not a whole number above 0"),
        (["Team/Net"], {"HF_ENDPOINT": "http://127.0.0.1:1"}, 4, "cannot reach"),
        (["Team/Net", "-f", "/none"], {}, 10, "cannot read /none"),
        (["oci:/none:v1"], {}, 3, "the directory does not exist"),
    ],
)
def test_failures_are_one_line(
    box: Host, hub: FakeHub, args: list[str], env: dict[str, str], code: int, text: str
) -> None:
    """An import that fails prints one line, which says why."""
    done = box.kitfs("import", *args, env={"HF_ENDPOINT": hub.url, **env}, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert text in done.stderr


# -- from git


def git(directory: Path, *args: str) -> str:
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = {**os.environ, **identity, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_COMMITTER_DATE": "1700000000 +0000"}
    return subprocess.run(["git", *args], cwd=directory, env=env, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Return a git repository with two commits and a tag on the first."""
    needs("git")
    made = tmp_path / "net"
    made.mkdir()
    git(made, "init", "-q", "-b", "trunk")
    (made / ".gitattributes").write_text("*.x text\n")
    (made / "w.gguf").write_bytes(WEIGHTS[:50_000])
    (made / "run.py").write_text("print()\n")
    (made / "run.py").chmod(0o755)
    git(made, "add", ".")
    git(made, "commit", "-q", "-m", "one")
    git(made, "tag", "v1")
    (made / "sub").mkdir()
    (made / "sub/.gitignore").write_text("*.tmp\n")
    (made / "sub/a.md").write_text("# a\n")
    git(made, "add", ".")
    git(made, "commit", "-q", "-m", "two")
    return made


def test_a_git_repository_is_a_kit(box: Host, repository: Path) -> None:
    """HEAD, a tag and a commit can be imported. The kit has no files of git, and no temporary file is left behind."""
    box.kitfs("import", repository, "-t", "here/net:head")
    assert set(files(box, "here/net:head")) == {"Kitfile", "w.gguf", "run.py", "sub/a.md"}
    (repository.parent / "rel").symlink_to(repository)
    box.kitfs("import", "./rel", "-t", "here/net:rel", cwd=repository.parent)
    assert "authors" not in box.kitfs("cat", "here/net:rel", "Kitfile").stdout  # a directory has a name but no owner
    for ref in ("v1", git(repository, "rev-parse", "v1").strip()):
        box.kitfs("import", f"file://{repository}", "--ref", ref, "-t", "here/net:v1")
        assert {p: d for p, d in files(box, "here/net:v1").items() if p != "Kitfile"} == {
            "w.gguf": WEIGHTS[:50_000],
            "run.py": b"print()\n",
        }
    assert re.search(r"(?m)^-rwxr-xr-x .* run\.py$", box.kitfs("ls", "-l", "here/net:v1").stdout)
    assert list((box.cache / "ingest").iterdir()) == []


def test_the_same_commit_is_the_same_kit(box: Host, repository: Path) -> None:
    """Two imports of one commit give the same digest."""
    said = [
        json.loads(box.kitfs("import", repository, "-t", f"here/{i}:v1", "--json").stdout.splitlines()[-1])["digest"]
        for i in range(2)
    ]
    assert said[0] == said[1]


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_the_umask_does_not_change_a_kit(box: Host, repository: Path, mask: int) -> None:
    """Files of a kit have the modes of the commit under any umask."""
    first, second = (
        box.kitfs("import", str(repository), "-t", name, "--json", umask=m)
        for name, m in (("a:b", 0o022), ("a:c", mask))
    )
    assert json.loads(first.stdout.splitlines()[-1])["digest"] == json.loads(second.stdout.splitlines()[-1])["digest"]


def test_a_kitfile_of_the_repository_is_used(box: Host, repository: Path) -> None:
    """A Kitfile in the repository is used instead of a generated one."""
    (repository / "Kitfile").write_text("manifestVersion: 1.0.0\nmodel:\n  name: mine\n  path: w.gguf\n")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "three")
    box.kitfs("import", repository, "-t", "here/net:v3")
    assert set(files(box, "here/net:v3")) == {"Kitfile", "w.gguf"}


def test_a_failure_of_git_is_one_line(box: Host, repository: Path, tmp_path: Path) -> None:
    for args, code, text in (
        ([str(repository), "--ref", "none"], 3, "git cannot fetch none"),
        ([str(tmp_path / "none")], 3, "git cannot fetch HEAD"),
        (["ext::sh -c true", "--tool", "git"], 3, "transport 'ext' not allowed"),
        ([str(repository), "--ref", "--upload-pack=x"], 2, "not a git repository or reference"),
    ):
        done = box.kitfs("import", *args, "-t", "here/net:v1", check=False)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert text in done.stderr
    done = box.kitfs("import", repository, "-t", "here/net:v1", env={"PATH": "/none"}, check=False)
    assert (done.returncode, done.stderr.startswith("kitfs: git is not installed")) == (2, True)


def pointer(data: bytes) -> bytes:
    digest = hashlib.sha256(data).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n".encode()


@pytest.fixture
def without_git_lfs(tmp_path: Path) -> dict[str, str]:
    """Return an environment with git on PATH and without git-lfs."""
    needs("git")
    place = tmp_path / "bin"
    place.mkdir()
    (place / "git").symlink_to(shutil.which("git") or "")
    return {"PATH": str(place)}


def test_large_files_come_from_an_lfs_server(
    box: Host, hub: FakeHub, repository: Path, without_git_lfs: dict[str, str]
) -> None:
    """Large files are fetched from the LFS server although git-lfs is not installed, and keep their modes.

    The import succeeds although connections break.
    """
    (repository / "w.gguf").write_bytes(pointer(WEIGHTS))
    (repository / "run.py").write_bytes(pointer(b"#!"))
    (repository / "same.gguf").write_bytes(pointer(WEIGHTS))
    (repository / "none.gguf").write_bytes(pointer(b""))
    (repository / ".lfsconfig").write_text(f"[lfs]\n\turl = {hub.url}/lfs/\n")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "large")
    hub.objects = {hashlib.sha256(data).hexdigest(): data for data in (WEIGHTS, b"#!", b"")}
    hub.fail("/objects/[0-9a-f]", Cut(MiB), times=2)
    box.kitfs("import", repository, "-t", "here/net:v1", env=without_git_lfs)
    found = files(box, "here/net:v1")
    assert [found[p] for p in ("w.gguf", "same.gguf", "none.gguf", "run.py")] == [WEIGHTS, WEIGHTS, b"", b"#!"]
    assert re.search(r"(?m)^-rwxr-xr-x .* run\.py$", box.kitfs("ls", "-l", "here/net:v1").stdout)


@pytest.mark.parametrize(
    ("fault", "objects", "code", "text"),
    [
        (None, {}, 4, "has no LFS object .*: Object does not exist"),
        (Lie(5), {"w": WEIGHTS}, 6, "w.gguf: the downloaded LFS object does not match"),
        (Status(401), {}, 5, "pass a token with --token, or install git-lfs"),
        (Status(200, body=b"[]"), {}, 4, "not a valid list of objects"),
    ],
)
def test_lfs_servers_that_fail(
    box: Host,
    hub: FakeHub,
    repository: Path,
    without_git_lfs: dict[str, str],
    fault: Fault | None,
    objects: dict[str, bytes],
    code: int,
    text: str,
) -> None:
    """A failure of the LFS server is reported in one line, and nothing is left behind in the store."""
    (repository / "w.gguf").write_bytes(pointer(WEIGHTS))
    (repository / ".lfsconfig").write_text(f"[lfs]\n\turl = {hub.url}/lfs\n")
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "large")
    hub.objects = {hashlib.sha256(data).hexdigest(): data for data in objects.values()}
    if fault is not None:
        hub.fail("/lfs/", fault) if not objects else hub.fail("/objects/[0-9a-f]", fault)
    done = box.kitfs("import", repository, "-t", "here/net:v1", env=without_git_lfs, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert re.search(text, done.stderr)
    assert list((box.cache / "ingest").iterdir()) == []


def test_large_files_of_a_local_repository(box: Host, repository: Path, without_git_lfs: dict[str, str]) -> None:
    """LFS objects are read from the local repository, and a missing object is reported."""
    (repository / "w.gguf").write_bytes(pointer(WEIGHTS))
    git(repository, "commit", "-q", "-a", "-m", "large")
    done = box.kitfs("import", repository, "-t", "here/net:v1", env=without_git_lfs, check=False)
    assert (done.returncode, "LFS object w.gguf is missing from the repository" in done.stderr) == (10, True)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    place = repository / ".git/lfs/objects" / digest[:2] / digest[2:4]
    place.mkdir(parents=True)
    (place / digest).write_bytes(WEIGHTS)
    box.kitfs("import", repository, "-t", "here/net:v1", env=without_git_lfs)
    assert files(box, "here/net:v1")["w.gguf"] == WEIGHTS


# -- layouts


def skopeo(*args: str | Path) -> str:
    needs("skopeo")
    return subprocess.run(["skopeo", *map(str, args)], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", ["basic", "many-gzip", "empty", "names", "modelpack-raw"])
def test_layouts_there_and_back(box: Host, tmp_path: Path, name: str) -> None:
    """A golden archive has the same manifest and the same tree after several copies.

    The archive is imported, exported as a directory and as an archive, copied by skopeo, and imported again.
    """
    archive, digest = GOLDEN / f"layouts/{name}.tar", GOLDEN_KITS[name]["manifest"]
    box.kitfs("import", f"oci-archive:{archive}:v1", "-t", "here/kit:v1")
    box.kitfs("export", "here/kit:v1", f"oci:{tmp_path / 'dir'}:one")
    box.kitfs("export", "here/kit:v1", f"oci-archive:{tmp_path / 'file.tar'}:two")
    for place in (f"oci:{tmp_path / 'dir'}:one", f"oci-archive:{tmp_path / 'file.tar'}:two"):
        assert kits.sha256(skopeo("inspect", "--raw", place).encode()) == digest
        skopeo("copy", "--preserve-digests", place, f"oci:{tmp_path / 'by-skopeo'}:v1")
        done = box.kitfs("import", place, "-t", "here/again:v1", "--json")
        assert json.loads(done.stdout.splitlines()[-1])["digest"] == digest
        box.kitfs("import", f"oci:{tmp_path / 'by-skopeo'}:v1", "-t", "here/third:v1")
        assert files(box, place) == files(box, "here/kit:v1") == files(box, "here/third:v1")
        shutil.rmtree(tmp_path / "by-skopeo")
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith("~")] == []


@pytest.mark.parametrize("target", ["oci:{}", "oci-archive:{}"])
def test_an_export_removes_what_a_killed_export_left(box: Host, tmp_path: Path, target: str) -> None:
    """An export removes the temporary files that a killed export left.

    Temporary files of a running export are kept, and so are all other files.
    """
    box.kitfs("import", f"oci-archive:{GOLDEN / 'layouts/basic.tar'}:v1", "-t", "here/kit:v1")
    busy = tmp_path / f"out.{'b' * 32}~"
    for name in (f"out.{'a' * 32}~", busy.name, f"other.{'a' * 32}~", "out~"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / f"out.{'c' * 32}~/blobs").mkdir(parents=True)
    with busy.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        box.kitfs("export", "here/kit:v1", target.format(tmp_path / "out"))
    assert sorted(os.listdir(tmp_path)) == sorted([f"other.{'a' * 32}~", "out", busy.name, "out~"])


def test_an_export_keeps_what_a_layout_contains(box: Host, tmp_path: Path) -> None:
    """An export to an existing layout keeps unknown fields and the manifests of other tags.

    The export replaces the manifest of its own tag, and writes a damaged blob again.
    """
    place = tmp_path / "dir"
    skopeo("copy", "--preserve-digests", f"oci-archive:{GOLDEN / 'layouts/parts.tar'}:v1", f"oci:{place}:parts")
    index = json.loads((place / "index.json").read_text()) | {"annotations": {"mine": "stays"}}
    (place / "index.json").write_text(json.dumps(index))
    for name in ("many", "basic", "basic"):
        box.kitfs("import", f"oci-archive:{GOLDEN / f'layouts/{name}.tar'}:v1", "-t", f"here/{name}:v1")
        box.kitfs("export", f"here/{name}:v1", f"oci:{place}:new")
    index = json.loads((place / "index.json").read_text())
    tags = [d["annotations"]["org.opencontainers.image.ref.name"] for d in index["manifests"]]
    assert (tags, index["annotations"]) == (["parts", "new"], {"mine": "stays"})
    golden = GOLDEN_KITS
    assert [d["digest"] for d in index["manifests"]] == [golden["parts"]["manifest"], golden["basic"]["manifest"]]
    blob = place / "blobs" / golden["basic"]["layers"][0]["digest"].replace(":", "/")
    right = blob.read_bytes()
    blob.write_bytes(bytes(len(right)))
    box.kitfs("export", "here/basic:v1", f"oci:{place}:new")
    assert blob.read_bytes() == right


def test_a_kit_of_a_registry_is_exported_past_the_store(box: Host, tmp_path: Path) -> None:
    """An export of a kit from a registry writes the blobs to the layout and not to the store.

    If a blob has wrong bytes, no layout is left behind.
    """
    part = kits.Part(kind="model", path="w.bin", content=kits.kit_tar({"w.bin": WEIGHTS}))
    kit = kits.build([part], vintage="1.17")
    with FakeRegistry() as registry:
        reference = registry.put_kit("team/kit", kit, "v1")
        rule = registry.fail(f"/blobs/{kit.layers[0]}", Lie(1000))
        for kind in ("oci", "oci-archive"):
            done = box.kitfs("export", reference, f"{kind}:{tmp_path / 'bad'}", check=False)
            assert (done.returncode, done.stderr.count("\n"), list(tmp_path.iterdir())) == (6, 1, [])
        rule.times = 0
        box.kitfs("export", reference, f"oci:{tmp_path / 'good'}")
    assert not (box.cache / "blobs" / "sha256" / kit.layers[0][7:9] / kit.layers[0][7:]).exists()
    assert files(box, f"oci:{tmp_path / 'good'}")["w.bin"] == WEIGHTS


def test_export_refuses_invalid_targets(box: Host, tmp_path: Path) -> None:
    """A file, a full directory, an archive or a broken layout is refused as a target in one line."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/x").write_text("x")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/index.json").write_text("{}")
    (tmp_path / "odd/oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    box.kitfs("import", f"oci-archive:{GOLDEN / 'layouts/basic.tar'}:v1", "-t", "here/kit:v1")
    for target, code, text in (
        (f"oci:{tmp_path / 'file'}", 2, "is not an OCI layout"),
        (f"oci:{tmp_path / 'full'}", 2, "is not an OCI layout"),
        (f"oci-archive:{tmp_path / 'file'}", 2, "kits cannot be added to an archive"),
        ("here/other:v1", 2, "is not an OCI layout"),
        (f"oci:{tmp_path / 'odd'}", 8, "is not an index of an OCI layout"),
        (f"oci:{tmp_path / 'file/below'}", 10, "cannot write"),
    ):
        done = box.kitfs("export", "here/kit:v1", target, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert text in done.stderr
    assert (tmp_path / "file").read_text() == "x"


def test_a_layout_names_itself(box: Host, tmp_path: Path) -> None:
    """Without ``--tag`` an imported kit is named after the layout's directory or archive.

    The tag is the one that the kit has in the layout.
    """
    shutil.copy(GOLDEN / "layouts/basic.tar", tmp_path / "My.Kit.tar")
    done = box.kitfs("import", f"oci-archive:{tmp_path / 'My.Kit.tar'}:v1")
    assert done.stdout.splitlines()[0] == "Using tag my:v1. Use flag --tag to override"
    assert trees.golden(GOLDEN, "basic").keys() >= set(files(box, "my:v1"))


def test_an_archive_is_an_ordinary_tar(box: Host, tmp_path: Path) -> None:
    """Python's tarfile reads an exported archive. Its first entries are oci-layout and index.json."""
    box.kitfs("import", f"oci-archive:{GOLDEN / 'layouts/basic.tar'}:v1", "-t", "here/kit:v1")
    box.kitfs("export", "here/kit:v1", f"oci-archive:{tmp_path / 'a.tar'}:v1")
    with tarfile.open(tmp_path / "a.tar") as archive:
        names = archive.getnames()
    assert names[:4] == ["oci-layout", "index.json", "blobs", "blobs/sha256"]
