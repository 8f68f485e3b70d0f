"""Indexes and images at CNCF distribution and ``kitfs serve``: labels choose what is mounted; an image is the mount's
tree to foreign hands.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests import trees
from tests.conftest import GOLDEN, needs
from tests.host import Host
from tests.registry_process import RegistryProcess
from tests.server import Server

pytestmark = [pytest.mark.interop, pytest.mark.mount]

FORMS = {
    "none": (), "gzip": ("--compression", "gzip"), "zstd": ("--compression", "zstd"),
    "pack": ("--use-model-pack",), "pack-zstd": ("--use-model-pack", "--compression", "zstd"),
}  # fmt: skip
DECODER = {"+gzip": ("--gzip",), "+zstd": ("--zstd",), "": ()}
LAYER = "application/vnd.oci.image.layer.v1.tar"


class Running(Protocol):
    """A registry, and how many blobs it was sent and gave from one repository to another."""

    host: str

    def counts(self) -> tuple[int, int]: ...


class Distribution:
    """Debian's docker-registry."""

    def __init__(self, process: RegistryProcess) -> None:
        self.process = process
        self.host = process.host

    def counts(self) -> tuple[int, int]:
        rows = [row for row in self.process.served() if "/blobs/uploads/" in row.path]
        return (
            sum(row.method == "PUT" and row.status == 201 for row in rows),
            sum(row.method == "POST" and "mount=" in row.path and row.status == 201 for row in rows),
        )


class Embedded:
    """kitfs serve."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.host = server.address

    def counts(self) -> tuple[int, int]:
        lines = [
            line for line in self.server.log.read_text().splitlines() if "/blobs/uploads/" in line and " 201 " in line
        ]
        return sum('"PUT ' in line for line in lines), sum('"POST ' in line and "mount=" in line for line in lines)


@pytest.fixture(params=["distribution", "serve"])
def running(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    if request.param == "serve":
        with Server(tmp_path / "served", tmp_path / "serve.log") as server:
            yield Embedded(server)
    else:
        needs("docker-registry")
        with RegistryProcess(tmp_path / "registry") as process:
            yield Distribution(process)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden trees, as they are packed."""
    out = tmp_path_factory.mktemp("trees")
    subprocess.run([sys.executable, str(GOLDEN / "make_trees.py"), str(out)], check=True)
    return out


def skopeo(*args: str) -> None:
    done = subprocess.run(
        ["skopeo", "--insecure-policy", *args], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def extracted(layout: Path, into: Path) -> trees.Tree:
    """The tree that GNU tar makes of an image's layers, one over the other."""
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads((layout / "blobs" / index["manifests"][0]["digest"].replace(":", "/")).read_bytes())
    into.mkdir()
    for layer in manifest["layers"]:
        blob = layout / "blobs" / layer["digest"].replace(":", "/")
        options = DECODER[layer["mediaType"].removeprefix(LAYER)]
        subprocess.run(
            ["tar", "-x", "-p", "--no-same-owner", "-C", str(into), "-f", str(blob), *options], check=True, timeout=60
        )
    return trees.masked(trees.scan(into))


@pytest.mark.parametrize("form", FORMS)
def test_an_image_is_the_tree_of_the_mount(
    running: Running, host: Host, sources: Path, form: str, tmp_path: Path
) -> None:
    """pack → push → convert sends a config and a Kitfile and no layer; skopeo copies the image, and tar makes the
    golden tree of it.
    """
    needs("skopeo", "tar")
    for name in ("basic", "names"):
        ref, image = f"{running.host}/kits/{name}-{form}:v1", f"{running.host}/images/{name}-{form}:v1"
        host.kitfs("pack", sources / name, "-t", ref, *FORMS[form])
        host.kitfs("push", ref)
        host.kitfs("remove", ref)
        uploads, mounts = running.counts()
        told = json.loads(host.kitfs("convert", ref, image, "--json").stdout.splitlines()[-1])
        assert (told["event"], told["uploaded"], told["existed"]) == ("done", 0, 0)
        layers = {
            digest["digest"] for digest in json.loads(host.kitfs("inspect", "-r", ref).stdout)["manifest"]["layers"]
        }
        assert running.counts() == (uploads + 2, mounts + len(layers))
        layout = tmp_path / f"{name}-layout"
        skopeo("copy", "-q", "--src-tls-verify=false", f"docker://{image}", f"oci:{layout}:v1")
        mount = host.mount(ref, at=name)
        assert extracted(layout, tmp_path / name) == host.scan(mount) == trees.masked(trees.golden(GOLDEN, name))


def test_an_image_of_many_platforms(running: Running, host: Host, sources: Path, tmp_path: Path) -> None:
    """Each can be asked for; converting again sends nothing."""
    needs("skopeo")
    ref, image = f"{running.host}/kits/basic:v1", f"{running.host}/kits/basic:image"
    host.kitfs("pack", sources / "basic", "-t", ref)
    host.kitfs("push", ref)
    args = ("convert", ref, image, "--platform", "linux/amd64", "--platform", "linux/arm64")
    first = host.kitfs(*args).stdout
    uploads = running.counts()
    assert host.kitfs(*args).stdout == first
    assert running.counts() == uploads
    for architecture in ("amd64", "arm64"):
        layout = tmp_path / architecture
        skopeo(
            "--override-arch",
            architecture,
            "copy",
            "-q",
            "--src-tls-verify=false",
            f"docker://{image}",
            f"oci:{layout}:v1",
        )
        inspected = subprocess.run(
            ["skopeo", "inspect", "--config", f"oci:{layout}:v1"], capture_output=True, text=True, check=True
        )
        assert json.loads(inspected.stdout)["architecture"] == architecture
        assert extracted(layout, tmp_path / f"{architecture}-tree") == trees.masked(trees.golden(GOLDEN, "basic"))


def test_labels_choose_what_is_mounted(running: Running, host: Host, sources: Path, tmp_path: Path) -> None:
    """An index goes up with its kits; each variant is mounted, listed and unpacked out of another store; status
    --check asks anew.
    """
    name = f"{running.host}/team/model"

    def there(*args: str | Path) -> None:
        host.kitfs(*args, env={"KITFS_CACHE_DIR": str(tmp_path / "there")})

    there("index", "create", f"{name}:all")
    for kit in ("basic", "parts"):
        there("pack", sources / kit, "-t", f"{name}:{kit}")
        there("index", "add", f"{name}:all", f"{name}:{kit}", "-l", f"kind={kit}")
    there("index", "push", f"{name}:all")
    mounts = {kit: host.mount(f"{name}:all", "-l", f"kind={kit}", at=kit) for kit in ("basic", "parts")}
    for kit, mount in mounts.items():
        assert host.scan(mount) == trees.masked(trees.golden(GOLDEN, kit))
        status = json.loads(host.kitfs("status", mount.path, "--json", "--check").stdout)
        assert (status["reference"], status["labels"]) == (f"{name}:all", {"kind": kit})
        assert (status["digest"], status["check"]) == (mount.digest, {"moved": False, "digest": mount.digest})
        host.kitfs("unpack", f"{name}:all", "-l", f"kind={kit}", "-d", tmp_path / kit)
        assert trees.masked(trees.scan(tmp_path / kit)) == trees.masked(trees.golden(GOLDEN, kit))
        listed = host.kitfs("ls", f"{name}:all", "--label", f"kind={kit}", "-R").stdout
        assert set(listed.splitlines()) == set(trees.golden(GOLDEN, kit))
    again = host.kitfs("mount", f"{name}:all", mounts["basic"].path, "-l", "kind=basic")
    assert f"pid {mounts['basic'].pid} " in again.stdout
    other = host.kitfs("mount", f"{name}:all", mounts["basic"].path, "-l", "kind=parts", check=False)
    assert "is already a mount" in other.stderr
    there("index", "remove", f"{name}:all", f"{name}:basic")
    there("tag", f"{name}:parts", f"{name}:new")
    there("index", "add", f"{name}:all", f"{name}:new", "-l", "kind=basic")
    there("index", "push", f"{name}:all")
    check = json.loads(host.kitfs("status", mounts["basic"].path, "--json", "--check").stdout)["check"]
    assert check == {"moved": True, "digest": mounts["parts"].digest}
    refused = host.kitfs("mount", f"{name}:all", host.mnt / "no", check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert (
        f"reference {name}:all is a ModelKit index; select one of its ModelKits with --label (-l): {name}:new (kind=basic)"
        in refused.stderr
    )
    assert not (host.mnt / "no").exists()


def test_skopeo_reads_an_index_and_its_kits(running: Running, host: Host, sources: Path, tmp_path: Path) -> None:
    """Byte for byte; a kit that it lists is copied by its digest, and mounted out of the copy."""
    needs("skopeo")
    name = f"{running.host}/team/model"
    host.kitfs("index", "create", f"{name}:all")
    for kit in ("basic", "names"):
        host.kitfs("pack", sources / kit, "-t", f"{name}:{kit}")
        host.kitfs("index", "add", f"{name}:all", f"{name}:{kit}", "-l", f"kind={kit}", "-l", "n:=1.50")
    pushed = host.kitfs("index", "push", f"{name}:all").stdout.split()[-1]
    command = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}:all"]
    raw = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
    assert pushed == f"sha256:{hashlib.sha256(raw).hexdigest()}"
    assert [row["modelMetadata"] for row in json.loads(raw)["manifests"]] == [
        {"kind": "basic", "n": 1.5},
        {"kind": "names", "n": 1.5},
    ]
    listed = json.loads(raw)["manifests"][1]["digest"]
    skopeo(
        "copy",
        "-q",
        "--preserve-digests",
        "--src-tls-verify=false",
        f"docker://{name}@{listed}",
        f"oci:{tmp_path / 'layout'}:v1",
    )
    mount = host.mount(f"oci:{tmp_path / 'layout'}:v1")
    assert (mount.digest, host.scan(mount)) == (listed, trees.masked(trees.golden(GOLDEN, "names")))
