"""Indexes and converted images work with CNCF distribution and with ``kitfs serve``.

Labels select a kit of an index. From an image, other programs read the same tree as a mount of the kit shows.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

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


def counts(registry: RegistryProcess | Server) -> tuple[int, int]:
    """Return how many blobs a registry has received, and how many it has mounted from another repository."""
    if isinstance(registry, Server):
        lines = [
            line for line in registry.log.read_text().splitlines() if "/blobs/uploads/" in line and " 201 " in line
        ]
        return sum('"PUT ' in line for line in lines), sum('"POST ' in line and "mount=" in line for line in lines)
    rows = [row for row in registry.served() if "/blobs/uploads/" in row.path and row.status == 201]
    return sum(row.method == "PUT" for row in rows), sum(row.method == "POST" and "mount=" in row.path for row in rows)


def skopeo(*args: str) -> None:
    done = subprocess.run(
        ["skopeo", "--insecure-policy", *args], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def extracted(layout: Path, into: Path) -> trees.Tree:
    """Extract an image's layers in order with GNU tar, and return the tree."""
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
    either_registry: RegistryProcess | Server, host: Host, golden_trees: Path, form: str, tmp_path: Path
) -> None:
    """``convert`` uploads only a config and a Kitfile. The registry copies the layers from the kit's repository.

    Skopeo copies the image, and tar extracts the golden tree from the copy.
    """
    needs("skopeo", "tar")
    for name in ("basic", "names"):
        ref, image = f"{either_registry.host}/kits/{name}-{form}:v1", f"{either_registry.host}/images/{name}-{form}:v1"
        host.kitfs("pack", golden_trees / name, "-t", ref, *FORMS[form])
        host.kitfs("push", ref)
        host.kitfs("remove", ref)
        uploads, mounts = counts(either_registry)
        told = json.loads(host.kitfs("convert", ref, image, "--json").stdout.splitlines()[-1])
        assert (told["event"], told["uploaded"], told["existed"]) == ("done", 0, 0)
        layers = {
            digest["digest"] for digest in json.loads(host.kitfs("inspect", "-r", ref).stdout)["manifest"]["layers"]
        }
        assert counts(either_registry) == (uploads + 2, mounts + len(layers))
        layout = tmp_path / f"{name}-layout"
        skopeo("copy", "-q", "--src-tls-verify=false", f"docker://{image}", f"oci:{layout}:v1")
        mount = host.mount(ref, at=name)
        assert extracted(layout, tmp_path / name) == host.scan(mount) == trees.masked(trees.golden(GOLDEN, name))


def test_an_image_of_many_platforms(
    either_registry: RegistryProcess | Server, host: Host, golden_trees: Path, tmp_path: Path
) -> None:
    """An image can be pulled for each of its platforms. A second ``convert`` sends nothing."""
    needs("skopeo")
    ref, image = f"{either_registry.host}/kits/basic:v1", f"{either_registry.host}/kits/basic:image"
    host.kitfs("pack", golden_trees / "basic", "-t", ref)
    host.kitfs("push", ref)
    args = ("convert", ref, image, "--platform", "linux/amd64", "--platform", "linux/arm64")
    first = host.kitfs(*args).stdout
    uploads = counts(either_registry)
    assert host.kitfs(*args).stdout == first
    assert counts(either_registry) == uploads
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


def test_labels_choose_what_is_mounted(
    either_registry: RegistryProcess | Server, host: Host, golden_trees: Path, tmp_path: Path
) -> None:
    """A kit can be chosen from an index by its labels, and then be mounted, listed and unpacked.

    ``status --check`` shows whether the labels now select another kit.
    """
    name = f"{either_registry.host}/team/model"

    def there(*args: str | Path) -> None:
        host.kitfs(*args, env={"KITFS_CACHE_DIR": str(tmp_path / "there")})

    there("index", "create", f"{name}:all")
    for kit in ("basic", "parts"):
        there("pack", golden_trees / kit, "-t", f"{name}:{kit}")
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
    assert "is already mounted there" in other.stderr
    there("index", "remove", f"{name}:all", f"{name}:basic")
    there("tag", f"{name}:parts", f"{name}:new")
    there("index", "add", f"{name}:all", f"{name}:new", "-l", "kind=basic")
    there("index", "push", f"{name}:all")
    check = json.loads(host.kitfs("status", mounts["basic"].path, "--json", "--check").stdout)["check"]
    assert check == {"moved": True, "digest": mounts["parts"].digest}
    refused = host.kitfs("mount", f"{name}:all", host.mnt / "no", check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"reference {name}:all is a ModelKit index; select one of its ModelKits" in refused.stderr
    assert f"with --label (-l): {name}:new (kind=basic)" in refused.stderr
    assert not (host.mnt / "no").exists()


def test_skopeo_reads_an_index_and_its_kits(
    either_registry: RegistryProcess | Server, host: Host, golden_trees: Path, tmp_path: Path
) -> None:
    """Skopeo reads an index byte for byte. A kit of the index is copied by its digest and mounted from the copy."""
    needs("skopeo")
    name = f"{either_registry.host}/team/model"
    host.kitfs("index", "create", f"{name}:all")
    for kit in ("basic", "names"):
        host.kitfs("pack", golden_trees / kit, "-t", f"{name}:{kit}")
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
