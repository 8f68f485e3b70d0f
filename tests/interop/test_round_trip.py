"""A kit of any form has the same tree after it was copied to another registry or read by another program.

In each test, kitfs packs a kit that another program reads, or reads a kit that another program packed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import trees
from tests.conftest import CANNOT, GOLDEN, needs
from tests.host import Host
from tests.registry_process import RegistryProcess

pytestmark = [pytest.mark.interop, pytest.mark.mount]

KITS = ("basic", "parts", "context", "names", "modes")
FORMS = {
    "tar": (),
    "tar-gzip": ("--compression", "gzip"),
    "tar-zstd": ("--compression", "zstd"),
    "raw": ("--layer-format", "raw"),
    "raw-gzip": ("--layer-format", "raw", "--compression", "gzip-fastest"),
    "raw-zstd": ("--layer-format", "raw", "--compression", "zstd"),
    "pack-tar": ("--use-model-pack",),
    "pack-tar-gzip": ("--use-model-pack", "--compression", "gzip"),
    "pack-tar-zstd": ("--use-model-pack", "--compression", "zstd"),
    "pack-raw": ("--use-model-pack", "--layer-format", "raw"),
}


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which other programs have temporary home directories."""
    return {
        **os.environ,
        "HOME": str(tmp_path / "home"),
        "KITOPS_HOME": str(tmp_path / "kitops"),
        "DOCKER_CONFIG": str(tmp_path / "docker"),
    }


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run([str(c) for c in command], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def foreign(name: str) -> str:
    """Return the path of another project's program, or skip the test if the program is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{CANNOT} {name} is not on PATH")
    return found


@pytest.mark.parametrize("form", FORMS)
def test_packed_here_and_carried_by_skopeo(
    host: Host, registry: RegistryProcess, golden_trees: Path, form: str, tmp_path: Path
) -> None:
    """After a push, and a copy by skopeo to another repository, a kit has the golden tree.

    The copy is pulled, mounted and unpacked.
    """
    needs("skopeo")
    name = "basic"
    first, second = (f"{registry.host}/trip/{which}-{form}:v1" for which in ("one", "two"))
    host.kitfs("pack", golden_trees / name, "-t", first, *FORMS[form])
    host.kitfs("push", first)
    run(
        "skopeo",
        "copy",
        "-q",
        "--preserve-digests",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        f"docker://{first}",
        f"docker://{second}",
    )
    golden = trees.golden(GOLDEN, name)
    elsewhere = {"KITFS_CACHE_DIR": str(tmp_path / "elsewhere")}
    mount = host.mount(second, env=elsewhere)
    assert host.scan(mount) == golden
    host.umount(mount)
    host.kitfs("unpack", second, "-d", tmp_path / "lazily", env=elsewhere)
    assert trees.scan(tmp_path / "lazily") == golden
    host.kitfs("pull", second, env=elsewhere)
    host.kitfs("unpack", second, "-d", tmp_path / "pulled", env=elsewhere)
    assert trees.scan(tmp_path / "pulled") == golden


@pytest.mark.parametrize("compression", ["none", "gzip", "gzip-fastest"])
@pytest.mark.parametrize("name", KITS)
def test_packed_here_and_unpacked_by_kit(
    host: Host,
    registry: RegistryProcess,
    golden_trees: Path,
    name: str,
    compression: str,
    tmp_path: Path,
    home: dict[str, str],
) -> None:
    """kit 1.7 unpacks a kit with tar layers, without compression or with gzip."""
    kit = foreign("kit")
    reference = f"{registry.host}/trip/kit-{name}-{compression}:v1"
    host.kitfs("pack", golden_trees / name, "-t", reference, "--compression", compression)
    host.kitfs("push", reference)
    run(kit, "pull", reference, "--plain-http", env=home)
    umask = os.umask(0)
    try:
        run(kit, "unpack", reference, "-d", tmp_path / "out", env=home)
    finally:
        os.umask(umask)
    assert trees.masked(trees.scan(tmp_path / "out")) == trees.masked(trees.golden(GOLDEN, name))


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("name", KITS)
def test_packed_by_kit_and_read_here(
    host: Host,
    registry: RegistryProcess,
    golden_trees: Path,
    name: str,
    compression: str,
    tmp_path: Path,
    home: dict[str, str],
) -> None:
    """A kit that the real kit packed has the golden tree."""
    kit = foreign("kit")
    reference = f"{registry.host}/trip/by-kit-{name}-{compression}:v1"
    run(kit, "pack", golden_trees / name, "-t", reference, "--compression", compression, env=home)
    run(kit, "push", reference, "--plain-http", env=home)
    golden = trees.golden(GOLDEN, name)
    mount = host.mount(reference)
    assert host.scan(mount) == golden
    host.umount(mount)
    host.kitfs("unpack", reference, "-d", tmp_path / "out")
    assert trees.scan(tmp_path / "out") == golden
    if compression == "none":
        shown = json.loads(run(kit, "inspect", reference, env=home))
        host.kitfs("pack", golden_trees / name, "-t", f"{reference}-here", "--kit-version", shown["cliVersion"])
        ours = json.loads(run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}"))
        assert ours["config"] == shown["manifest"]["config"]


@pytest.mark.parametrize("form", ["pack-tar", "pack-raw"])  # modctl does not terminate on compressed layers
def test_model_packs_of_here_are_extracted_by_modctl(
    host: Host, registry: RegistryProcess, golden_trees: Path, form: str, tmp_path: Path, home: dict[str, str]
) -> None:
    """modctl extracts a ModelPack that kitfs packed."""
    modctl = foreign("modctl")
    reference = f"{registry.host}/trip/modctl-{form}:v1"
    host.kitfs("pack", golden_trees / "basic", "-t", reference, *FORMS[form])
    host.kitfs("push", reference)
    run(modctl, "pull", reference, "--plain-http", "--extract-dir", tmp_path / "out", "--extract-from-remote", env=home)
    extracted = {path: (told["type"], told.get("sha256")) for path, told in trees.scan(tmp_path / "out").items()}
    golden = trees.without(trees.golden(GOLDEN, "basic"), "Kitfile")
    assert extracted == {path: (told["type"], told.get("sha256")) for path, told in golden.items()}


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "tar"])
def test_model_packs_of_modctl_are_read_here(
    host: Host, registry: RegistryProcess, golden_trees: Path, raw: bool, tmp_path: Path, home: dict[str, str]
) -> None:
    """A ModelPack that modctl packed is mounted and unpacked."""
    modctl = foreign("modctl")
    reference = f"{registry.host}/trip/by-modctl-{str(raw).lower()}:v1"
    tree = tmp_path / "tree"
    shutil.copytree(golden_trees / "modelpack", tree)
    run(modctl, "build", "-t", reference, "-f", tree / "Modelfile", f"--raw={str(raw).lower()}", tree, env=home)
    run(modctl, "push", reference, "--plain-http", env=home)
    run(
        modctl,
        "pull",
        reference,
        "--plain-http",
        "--extract-dir",
        tmp_path / "by-modctl",
        "--extract-from-remote",
        env=home,
    )
    wanted = {path: (told["type"], told.get("sha256")) for path, told in trees.scan(tmp_path / "by-modctl").items()}
    assert "model-00001-of-00002.safetensors" in wanted
    mount = host.mount(reference)
    assert {path: (told["type"], told.get("sha256")) for path, told in host.scan(mount).items()} == wanted
    host.umount(mount)
    host.kitfs("unpack", reference, "-d", tmp_path / "out")
    assert {path: (told["type"], told.get("sha256")) for path, told in trees.scan(tmp_path / "out").items()} == wanted
